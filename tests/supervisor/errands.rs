//! Errands by themselves: how much memory they take, what many files cost, what they say of a broken order.

use std::io::Write;
use std::process::{Command, Stdio};

use super::supervisor;
use crate::testbed::errand::{Wanted, upload};

/// Most memory an errand may take, in KiB.
const MOST_MEMORY: u64 = 32 * 1024;

#[test]
fn a_gibibyte_is_uploaded_within_a_few_megabytes_of_memory() {
    let project = tempfile::tempdir().unwrap();
    std::fs::File::create(project.path().join("big")).unwrap().set_len(1 << 30).unwrap();
    let raw = upload(supervisor(), project.path(), &Wanted { format: "raw", path: "big" }).unwrap();
    assert!(raw.bytes > 1 << 30, "{raw:?}");
    assert!(raw.memory < MOST_MEMORY, "{raw:?}");
    let zip = upload(supervisor(), project.path(), &Wanted { format: "zip", path: "big" }).unwrap();
    assert!(zip.said.contains("201 Created"), "{zip:?}");
    assert!(zip.memory < MOST_MEMORY, "{zip:?}");
}

#[test]
fn a_hundred_thousand_files_are_one_upload_within_a_few_megabytes_of_memory() {
    let project = tempfile::tempdir().unwrap();
    for folder in 0..100 {
        let folder = project.path().join(format!("out/package-with-a-name-{folder}"));
        std::fs::create_dir_all(&folder).unwrap();
        for file in 0..1000 {
            std::fs::write(folder.join(format!("module-{file}.js")), "x").unwrap();
        }
    }
    let done = upload(supervisor(), project.path(), &Wanted { format: "zip", path: "out" }).unwrap();
    assert!(done.said.contains("found 100101 matching"), "{done:?}");
    assert!(done.memory < MOST_MEMORY, "{done:?}");
}

#[test]
fn a_broken_order_is_told_without_what_is_in_it() {
    let mut errand = Command::new(supervisor())
        .args(["launch", "--errand"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    errand.stdin.take().unwrap().write_all(br#"{"UploadArtifacts": {"token": "glcbt-secret""#).unwrap();
    let output = errand.wait_with_output().unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(!output.status.success() && said.contains("cannot be read"), "{said}");
    assert!(!said.contains("glcbt-secret"), "{said}");
}
