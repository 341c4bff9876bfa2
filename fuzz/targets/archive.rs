//! Archives: any bytes are unpacked or refused, and nothing leaves the project's folder, on the way or by what is left
//! behind; no more comes out than may.

#![no_main]

use std::fs::{self, File};
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::path::Path;

use dormouse::supervisor::archive::extract::{Bounds, extract};
use dormouse::supervisor::archive::project::ProjectFolder;
use libfuzzer_sys::fuzz_target;

const BOUNDS: Bounds = Bounds { entries: 64, bytes: 64 * 1024 };

/// Looks at everything below a folder; links are not followed, but where they lead is looked at.
fn look(folder: &Path, project: &Path, bytes: &mut u64) {
    for entry in fs::read_dir(folder).expect("a folder can be listed") {
        let path = entry.expect("a folder can be listed").path();
        let meta = fs::symlink_metadata(&path).expect("what is listed is there");
        let kind = meta.file_type();
        assert!(
            !(kind.is_block_device() || kind.is_char_device() || kind.is_fifo() || kind.is_socket()),
            "{path:?} is special"
        );
        if kind.is_symlink() {
            if let Ok(target) = fs::canonicalize(&path) {
                assert!(target.starts_with(project), "{path:?} leads to {target:?}");
            }
            continue;
        }
        assert_eq!(meta.permissions().mode() & 0o7000, 0, "{path:?} has special bits");
        if kind.is_dir() {
            look(&path, project, bytes);
        } else {
            *bytes += meta.len();
        }
    }
}

fuzz_target!(|bytes: &[u8]| {
    let base = Path::new("/dev/shm");
    let base = if base.is_dir() { base.to_owned() } else { std::env::temp_dir() };
    let bed = tempfile::tempdir_in(base).expect("a folder can be made");
    let outside = bed.path().join("outside");
    let project = bed.path().join("project");
    fs::create_dir(&project).expect("a folder can be made");
    // What an earlier job may have left behind.
    std::os::unix::fs::symlink("../outside", project.join("out")).expect("a link can be made");
    fs::write(&outside, "untouched").expect("a file can be written");
    let archive = bed.path().join("archive");
    fs::write(&archive, bytes).expect("a file can be written");
    let folder = ProjectFolder::open(&project).expect("a folder can be opened");
    let archive = File::open(&archive).expect("a file can be opened");
    let _ = extract(archive, &folder, BOUNDS, "fallback", &mut |_| {});
    assert_eq!(fs::read(&outside).expect("a file can be read"), b"untouched");
    assert_eq!(fs::read_dir(bed.path()).expect("a folder can be listed").count(), 3);
    if fs::read_link(project.join("out")).is_ok_and(|target| target == Path::new("../outside")) {
        fs::remove_file(project.join("out")).expect("a link can be removed");
    }
    let mut unpacked = 0;
    look(&project, &project, &mut unpacked);
    assert!(unpacked <= BOUNDS.bytes, "{unpacked} bytes came out");
});
