//! Archives of all kinds, hostile ones too, against a project with something beside it that must stay as it is.

use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;

use flate2::Compression;
use proptest::prelude::*;

use super::*;
use crate::supervisor::archive::selection::{Choice, select};
use crate::supervisor::archive::write::{Format, write};
use crate::supervisor::archive::zip::header::Meta;
use crate::supervisor::archive::zip::write::ZipWriter;

const FILE: Meta = Meta { mode: 0o100_644, modified: 1_700_000_000, size: u64::MAX };
const LINK: Meta = Meta { mode: 0o120_777, ..FILE };
const FOLDER: Meta = Meta { mode: 0o040_755, ..FILE };

/// A folder with a project and something beside it.
struct Bed {
    folder: tempfile::TempDir,
    lines: Vec<String>,
}

impl Bed {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("p")).unwrap();
        std::fs::write(folder.path().join("beside"), "untouched").unwrap();
        Self { folder, lines: Vec::new() }
    }

    fn project(&self) -> ProjectFolder {
        ProjectFolder::open(&self.path()).unwrap()
    }

    fn path(&self) -> std::path::PathBuf {
        self.folder.path().join("p")
    }

    fn extract(&mut self, archive: &[u8]) -> Result<Extracted, ArchiveError> {
        self.extract_within(archive, Bounds::default())
    }

    fn extract_within(&mut self, archive: &[u8], bounds: Bounds) -> Result<Extracted, ArchiveError> {
        let path = self.folder.path().join("archive");
        std::fs::write(&path, archive).unwrap();
        let lines = &mut self.lines;
        let project = ProjectFolder::open(&self.folder.path().join("p")).unwrap();
        let file = File::open(path).unwrap();
        extract(file, &project, bounds, "unnamed", &mut |line| lines.push(line.to_owned()))
    }

    /// Nothing has left the project.
    fn assert_untouched(&self) {
        assert_eq!(std::fs::read_to_string(self.folder.path().join("beside")).unwrap(), "untouched");
        let mut names: Vec<_> =
            std::fs::read_dir(self.folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        assert_eq!(names, ["archive", "beside", "p"]);
    }
}

fn zip(fill: impl FnOnce(&mut ZipWriter<Vec<u8>>)) -> Vec<u8> {
    let mut zip = ZipWriter::new(Vec::new(), Compression::fast());
    fill(&mut zip);
    zip.finish().unwrap()
}

fn one_file(name: &[u8]) -> Vec<u8> {
    zip(|zip| zip.file(name, FILE, &b"content"[..]).unwrap())
}

fn packed(project: &Path, format: Format, paths: &[&str]) -> Vec<u8> {
    let project = ProjectFolder::open(project).unwrap();
    let paths = paths.iter().map(|path| (*path).to_owned()).collect();
    let names = select(&project, &Choice { paths, ..Choice::default() }, "artifact", &mut |_| {}).unwrap();
    let mut out = Vec::new();
    write(format, Compression::fast(), &project, &names, &mut out, &mut |_| {}).unwrap();
    out
}

fn a_tree(path: &Path) {
    std::fs::create_dir_all(path.join("bin/empty")).unwrap();
    std::fs::write(path.join("bin/run"), "#!/bin/sh\n").unwrap();
    std::fs::set_permissions(path.join("bin/run"), std::fs::Permissions::from_mode(0o755)).unwrap();
    std::fs::write(path.join("line\nbreak"), "odd").unwrap();
    std::fs::write(path.join("zeros"), vec![0; 3_000_000]).unwrap();
    symlink("run", path.join("bin/latest")).unwrap();
    symlink("nowhere", path.join("dangling")).unwrap();
    use std::os::unix::ffi::OsStrExt;
    std::fs::write(path.join(std::ffi::OsStr::from_bytes(b"latin-\xe9")), "bytes").unwrap();
    std::fs::create_dir(path.join("locked")).unwrap();
    std::fs::write(path.join("locked/file"), "in").unwrap();
    std::fs::set_permissions(path.join("locked"), std::fs::Permissions::from_mode(0o555)).unwrap();
}

#[test]
fn what_is_packed_is_unpacked_with_modes_times_and_links() {
    let (from, mut to) = (Bed::new(), Bed::new());
    a_tree(&from.path());
    let done = to.extract(&packed(&from.path(), Format::Zip, &["."])).unwrap();
    assert_eq!((done.files, to.lines.clone()), (7, Vec::new()));
    let compared = Command::new("diff")
        .arg("-r")
        .arg("--no-dereference")
        .args([from.path(), to.path()])
        .output()
        .unwrap();
    assert!(compared.status.success(), "{compared:?}");
    for name in ["bin/run", "locked", "bin/empty", "line\nbreak"] {
        let (was, is) = (
            std::fs::metadata(from.path().join(name)).unwrap(),
            std::fs::metadata(to.path().join(name)).unwrap(),
        );
        assert_eq!((was.mode(), was.mtime()), (is.mode(), is.mtime()), "{name:?}");
    }
    assert!(to.path().join("bin/latest").is_symlink());
}

#[test]
fn another_program_reads_what_we_write_and_we_what_it_writes() {
    let (from, mut to) = (Bed::new(), Bed::new());
    std::fs::create_dir_all(from.path().join("a/b")).unwrap();
    std::fs::write(from.path().join("a/b/ünï.txt"), "text\n".repeat(10_000)).unwrap();
    let archive = packed(&from.path(), Format::Zip, &["a"]);
    let path = from.folder.path().join("ours.zip");
    std::fs::write(&path, archive).unwrap();
    let python = "import sys, zipfile
z = zipfile.ZipFile(sys.argv[1]); assert z.testzip() is None
print(z.namelist(), z.getinfo('a/b/ünï.txt').date_time[0] > 2000, oct(z.getinfo('a/').external_attr >> 16))
out = zipfile.ZipFile(sys.argv[2], 'w', zipfile.ZIP_DEFLATED)
out.writestr('deep/er/x', 'X' * 100000); out.writestr('stored', 'S', zipfile.ZIP_STORED); out.comment = b'c' * 300; out.close()";
    let theirs = from.folder.path().join("theirs.zip");
    let run = Command::new("python3").args(["-c", python]).args([&path, &theirs]).output().unwrap();
    let said = String::from_utf8_lossy(&run.stdout);
    assert_eq!(said.trim(), "['a/', 'a/b/', 'a/b/ünï.txt'] True 0o40755", "{run:?}");
    assert_eq!(to.extract(&std::fs::read(theirs).unwrap()).unwrap().files, 2);
    assert_eq!(std::fs::read_to_string(to.path().join("deep/er/x")).unwrap().len(), 100_000);
}

#[test]
fn names_that_would_leave_the_project_change_nothing() {
    for name in ["../beside", "/etc/dormouse-test", "a/../../beside", "p/../../beside"] {
        let mut bed = Bed::new();
        let archive = zip(|zip| {
            zip.file(b"first", FILE, &b"content"[..]).unwrap();
            zip.file(name.as_bytes(), FILE, &b"content"[..]).unwrap();
        });
        let error = bed.extract(&archive).unwrap_err();
        assert!(matches!(error, ArchiveError::Outside { .. }), "{name}: {error}");
        assert!(!bed.path().join("first").exists());
        bed.assert_untouched();
    }
}

#[test]
fn odd_names_stay_one_name() {
    let mut bed = Bed::new();
    let archive = zip(|zip| {
        for name in [&b"..\\up"[..], b"new\nline", b"C:\\x", b"a b"] {
            zip.file(name, FILE, &b"content"[..]).unwrap();
        }
    });
    assert_eq!(bed.extract(&archive).unwrap().files, 4);
    assert!(bed.path().join("..\\up").is_file() && bed.path().join("new\nline").is_file());
    bed.assert_untouched();
}

#[test]
fn a_file_through_a_link_of_the_archive_does_not_leave() {
    let mut bed = Bed::new();
    let archive = zip(|zip| {
        zip.link(b"out", b"..", LINK).unwrap();
        zip.file(b"out/beside", FILE, &b"content"[..]).unwrap();
    });
    // The link is left out, so that its name becomes an ordinary folder.
    bed.extract(&archive).unwrap();
    assert!(bed.lines[0].contains("outside of the project"), "{:?}", bed.lines);
    assert!(bed.path().join("out/beside").is_file() && !bed.path().join("out").is_symlink());
    bed.assert_untouched();
}

#[test]
fn a_file_through_a_link_of_the_tree_does_not_leave() {
    let mut bed = Bed::new();
    symlink("..", bed.path().join("out")).unwrap();
    let error = bed.extract(&one_file(b"out/beside")).unwrap_err();
    assert!(error.to_string().contains("out/beside"), "{error}");
    bed.assert_untouched();
    // A link in the file's own place is replaced, not written through.
    symlink("../beside", bed.path().join("file")).unwrap();
    bed.extract(&one_file(b"file")).unwrap();
    assert!(!bed.path().join("file").is_symlink());
    bed.assert_untouched();
}

#[test]
fn links_that_point_out_are_left_out_also_when_they_do_so_by_another_link() {
    let mut bed = Bed::new();
    let archive = zip(|zip| {
        zip.folder(b"a/b/c", FOLDER).unwrap();
        zip.link(b"a/b/c/up", b"../../..", LINK).unwrap();
        zip.link(b"by-another", b"a/b/c/up/../beside", LINK).unwrap();
        zip.link(b"absolute", b"/etc/passwd", LINK).unwrap();
        zip.link(b"fine", b"a/b", LINK).unwrap();
    });
    bed.extract(&archive).unwrap();
    let is_there = |name: &str| bed.path().join(name).symlink_metadata().is_ok();
    assert!(is_there("a/b/c/up") && is_there("fine"));
    assert!(!is_there("by-another") && !is_there("absolute"), "{:?}", bed.lines);
    assert_eq!(bed.lines.len(), 2);
}

#[test]
fn an_archive_that_is_damaged_after_its_links_leaves_none_that_points_out() {
    let mut bed = Bed::new();
    let content = b"the content that is changed";
    let mut archive = zip(|zip| {
        zip.folder(b"a/b", FOLDER).unwrap();
        zip.link(b"a/b/up", b"../..", LINK).unwrap();
        zip.link(b"by-another", b"a/b/up/../beside", LINK).unwrap();
        zip.file(b"file", FILE, &content[..]).unwrap();
    });
    // Its checksum in the list at the end, which is what counts.
    let listed = archive.windows(4).rposition(|four| four == b"PK\x01\x02").unwrap();
    archive[listed + 16] ^= 0xff;
    assert!(matches!(bed.extract(&archive).unwrap_err(), ArchiveError::Damaged(_)));
    let is_there = |name: &str| bed.path().join(name).symlink_metadata().is_ok();
    assert!(is_there("a/b/up") && !is_there("by-another"), "{:?}", bed.lines);
}

#[test]
fn a_link_to_an_absolute_path_within_the_project_is_kept() {
    let mut bed = Bed::new();
    let target = bed.path().join("inside");
    let archive = zip(|zip| {
        zip.link(b"link", target.as_os_str().as_encoded_bytes(), LINK).unwrap();
        zip.file(b"inside", FILE, &b"content"[..]).unwrap();
    });
    bed.extract(&archive).unwrap();
    assert_eq!(std::fs::read_to_string(bed.path().join("link")).unwrap(), "content");
}

#[test]
fn devices_and_pipes_are_left_out_and_said() {
    let mut bed = Bed::new();
    let archive = zip(|zip| {
        for (name, mode) in
            [(&b"disk"[..], 0o060_666), (b"tty", 0o020_666), (b"pipe", 0o010_666), (b"socket", 0o140_666)]
        {
            zip.file(name, Meta { mode, ..FILE }, &b""[..]).unwrap();
        }
        zip.file(b"file", FILE, &b""[..]).unwrap();
    });
    assert_eq!(bed.extract(&archive).unwrap().files, 1);
    assert_eq!(bed.lines.len(), 4);
    assert_eq!(std::fs::read_dir(bed.path()).unwrap().count(), 1);
}

#[test]
fn no_file_gets_rights_beyond_permissions() {
    let mut bed = Bed::new();
    bed.extract(&zip(|zip| zip.file(b"f", Meta { mode: 0o106_755, ..FILE }, &b""[..]).unwrap())).unwrap();
    assert_eq!(std::fs::metadata(bed.path().join("f")).unwrap().mode() & 0o7777, 0o755);
}

#[test]
fn a_bomb_is_refused_before_it_is_unpacked() {
    let mut bed = Bed::new();
    let big = zip(|zip| zip.file(b"zeros", FILE, io::repeat(0).take(50_000_000)).unwrap());
    assert!(big.len() < 300_000);
    let error = bed.extract_within(&big, Bounds { entries: 10, bytes: 49_999_999 }).unwrap_err();
    assert!(error.to_string().contains(MOST_BYTES), "{error}");
    let many = zip(|zip| (0..11_u8).for_each(|name| zip.file(&[b'a' + name], FILE, &b""[..]).unwrap()));
    let error = bed.extract_within(&many, Bounds { entries: 10, bytes: 1 }).unwrap_err();
    assert!(error.to_string().contains(MOST_ENTRIES), "{error}");
    assert_eq!(std::fs::read_dir(bed.path()).unwrap().count(), 0);
}

#[test]
fn entries_that_share_their_data_promise_too_much() {
    let mut bed = Bed::new();
    let mut archive = zip(|zip| zip.file(b"a", FILE, io::repeat(0).take(10_000_000)).unwrap());
    // The directory a hundred times: each entry leads to the same data.
    let end_at = archive.len() - 22;
    let at = u32::from_le_bytes(archive[end_at + 16..end_at + 20].try_into().unwrap()) as usize;
    let entry = archive[at..end_at].to_vec();
    let mut end = archive[end_at..].to_vec();
    archive.truncate(at);
    (0..100).for_each(|_| archive.extend(&entry));
    end[8..10].copy_from_slice(&100_u16.to_le_bytes());
    end[10..12].copy_from_slice(&100_u16.to_le_bytes());
    end[12..16].copy_from_slice(&u32::try_from(entry.len() * 100).unwrap().to_le_bytes());
    archive.extend(end);
    let error = bed.extract(&archive).unwrap_err();
    assert!(error.to_string().contains("promises more"), "{error}");
}

#[test]
fn a_file_that_lies_about_its_size_is_found_out() {
    for (size, what) in [(3_u32, "more than it says"), (9, "less than it says")] {
        let mut bed = Bed::new();
        let mut archive = one_file(b"a");
        let end_at = archive.len() - 22;
        let at = u32::from_le_bytes(archive[end_at + 16..end_at + 20].try_into().unwrap()) as usize;
        archive[at + 24..at + 28].copy_from_slice(&size.to_le_bytes());
        let error = bed.extract(&archive).unwrap_err();
        assert!(error.to_string().contains(what), "{error}");
    }
}

#[test]
fn an_archive_that_is_cut_short_or_changed_is_damaged() {
    let whole = zip(|zip| {
        zip.file(b"a", FILE, io::repeat(b'x').take(100_000)).unwrap();
        zip.file(b"b", FILE, &b"content"[..]).unwrap();
    });
    for length in [4, 30, whole.len() / 2, whole.len() - 1] {
        let error = Bed::new().extract(&whole[..length]).unwrap_err();
        assert!(matches!(error, ArchiveError::Damaged(_)), "{length}: {error}");
    }
    let mut changed = whole.clone();
    changed[60] ^= 0xff;
    assert!(matches!(Bed::new().extract(&changed).unwrap_err(), ArchiveError::Damaged(_)));
}

#[test]
fn another_format_is_named() {
    for (bytes, word) in
        [(&b""[..], "empty"), (b"\x28\xb5\x2f\xfd....", "zstd"), (b"<html>", "another format")]
    {
        let error = Bed::new().extract(bytes).unwrap_err();
        assert!(error.to_string().contains(word), "{error}");
    }
}

#[test]
fn several_files_go_through_gzip_and_come_back_where_they_were() {
    let (from, mut to) = (Bed::new(), Bed::new());
    std::fs::create_dir(from.path().join("r")).unwrap();
    std::fs::write(from.path().join("r/1.xml"), "<one/>\n").unwrap();
    std::fs::write(from.path().join("r/2.xml"), "<two/>\n".repeat(50_000)).unwrap();
    let archive = packed(&from.path(), Format::Gzip, &["r/*.xml", "r"]);
    // What GitLab does: all members are one text.
    let path = from.folder.path().join("all.gz");
    std::fs::write(&path, &archive).unwrap();
    let text = Command::new("gzip").args(["-dc"]).arg(&path).output().unwrap().stdout;
    assert_eq!(text.len(), 7 + 350_000);
    assert_eq!(to.extract(&archive).unwrap().files, 2);
    assert_eq!(std::fs::read_to_string(to.path().join("r/1.xml")).unwrap(), "<one/>\n");
    assert_eq!(std::fs::read(to.path().join("r/2.xml")).unwrap().len(), 350_000);
}

#[test]
fn a_gzip_file_cannot_leave_either_and_is_bounded_as_it_goes() {
    let member = |name: &str, content: &[u8]| {
        let mut out = Vec::new();
        let mut gz = flate2::GzBuilder::new().comment(name).write(&mut out, Compression::fast());
        gz.write_all(content).unwrap();
        gz.finish().unwrap();
        out
    };
    let mut bed = Bed::new();
    assert!(matches!(bed.extract(&member("../beside", b"x")).unwrap_err(), ArchiveError::Outside { .. }));
    let error =
        bed.extract_within(&member("big", &[0; 100_000]), Bounds { entries: 1, bytes: 99_999 }).unwrap_err();
    assert!(matches!(error, ArchiveError::TooLarge { .. }), "{error}");
    // As a download leaves it: with its position at the end.
    let mut written = tempfile::tempfile().unwrap();
    written.write_all(&member("late", b"x")).unwrap();
    let done = extract(written, &bed.project(), Bounds::default(), "unnamed", &mut |_| {}).unwrap();
    assert_eq!(done.files, 1);
    let cut = member("cut", &[7; 1000]);
    assert!(matches!(bed.extract(&cut[..cut.len() - 4]).unwrap_err(), ArchiveError::Damaged(_)));
    assert_eq!(bed.extract(&member("", b"x")).unwrap().files, 1);
    assert!(bed.path().join("unnamed").is_file());
    bed.assert_untouched();
}

/// Made by `tar --format=pax` and `zstd -19 --check`: a program, a link to it, an empty folder, zeros, a name above 100 bytes
/// and one that is no UTF-8.
fn tree() -> Vec<u8> {
    use base64::Engine;
    let text: String = include_str!("tree.tar.zst.base64").split_whitespace().collect();
    base64::engine::general_purpose::STANDARD.decode(text).unwrap()
}

fn zstd(bytes: &[u8]) -> Vec<u8> {
    ruzstd::encoding::compress_to_vec(bytes, ruzstd::encoding::CompressionLevel::Fastest)
}

/// Each a kind, a name, a target and a content.
fn tar_zst(entries: &[(::tar::EntryType, &str, &str, &[u8])]) -> Vec<u8> {
    let mut tar = ::tar::Builder::new(Vec::new());
    for (kind, name, target, content) in entries {
        let mut header = ::tar::Header::new_gnu();
        // Also what a well-meant program would not write.
        header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
        header.as_old_mut().linkname[..target.len()].copy_from_slice(target.as_bytes());
        header.set_entry_type(*kind);
        header.set_mode(0o6755);
        header.set_mtime(1_700_000_000);
        header.set_size(content.len() as u64);
        header.set_cksum();
        tar.append(&header, *content).unwrap();
    }
    zstd(&tar.into_inner().unwrap())
}

const TAR_FILE: ::tar::EntryType = ::tar::EntryType::Regular;
const TAR_LINK: ::tar::EntryType = ::tar::EntryType::Symlink;

#[test]
fn what_tar_and_zstd_have_packed_is_unpacked() {
    use std::os::unix::ffi::OsStrExt;
    let mut bed = Bed::new();
    let tree = tree();
    let done = bed.extract(&tree).unwrap();
    assert_eq!((done.files, done.bytes, bed.lines.clone()), (5, 100_031, Vec::new()));
    let run = std::fs::metadata(bed.path().join("bin/run")).unwrap();
    assert_eq!((run.mode() & 0o7777, run.mtime()), (0o755, 1_700_000_000));
    assert_eq!(std::fs::read_link(bed.path().join("bin/latest")).unwrap(), Path::new("run"));
    assert!(bed.path().join("bin/empty").is_dir());
    let long = format!("deep/{}/{}", "n".repeat(60), "m".repeat(70));
    assert_eq!(std::fs::read_to_string(bed.path().join(long)).unwrap(), "long\n");
    let odd = bed.path().join(std::ffi::OsStr::from_bytes(b"latin-\xe9"));
    assert_eq!(std::fs::read_to_string(odd).unwrap(), "bytes");
    for length in [4, 20, tree.len() / 2, tree.len() - 1] {
        let mut bed = Bed::new();
        let error = bed.extract(&tree[..length]).unwrap_err();
        assert!(matches!(error, ArchiveError::Damaged(_)), "{length}: {error}");
        assert_eq!(std::fs::read_dir(bed.path()).unwrap().count(), 0, "{length}");
    }
}

#[test]
fn a_tar_archive_stays_in_the_project_too() {
    for name in ["../beside", "/etc/dormouse-test", "a/../../beside"] {
        let mut bed = Bed::new();
        let archive = tar_zst(&[(TAR_FILE, "first", "", b"x"), (TAR_FILE, name, "", b"x")]);
        let error = bed.extract(&archive).unwrap_err();
        assert!(matches!(error, ArchiveError::Outside { .. }), "{name}: {error}");
        assert!(!bed.path().join("first").exists());
        bed.assert_untouched();
    }
    let mut bed = Bed::new();
    let archive = tar_zst(&[
        (::tar::EntryType::Directory, "./", "", b""),
        (TAR_LINK, "out", "..", b""),
        (TAR_LINK, "fine", "file", b""),
        (::tar::EntryType::Link, "again", "file", b""),
        (::tar::EntryType::Fifo, "pipe", "", b""),
        (::tar::EntryType::XGlobalHeader, "notes", "", b"13 comment=x\n"),
        (TAR_FILE, "file", "", b"content"),
        (TAR_FILE, "out/beside", "", b"content"),
    ]);
    assert_eq!(bed.extract(&archive).unwrap().files, 3);
    let [out, again, pipe] = &bed.lines[..] else { panic!("{:?}", bed.lines) };
    assert!(out.contains("outside of the project") && again.contains("another name"), "{:?}", bed.lines);
    assert!(pipe.contains("a pipe"), "{pipe}");
    assert!(bed.path().join("out/beside").is_file() && !bed.path().join("notes").exists());
    assert_eq!(std::fs::metadata(bed.path().join("file")).unwrap().mode() & 0o7777, 0o755);
    bed.assert_untouched();
}

#[test]
fn a_tar_archive_that_grows_too_much_is_refused_before_it_is_unpacked() {
    let zeros = vec![0; 3_000_000];
    let bomb = tar_zst(&[(TAR_FILE, "small", "", b"x"), (TAR_FILE, "zeros", "", &zeros)]);
    assert!(bomb.len() < 10_000, "{}", bomb.len());
    let mut bed = Bed::new();
    let error = bed.extract_within(&bomb, Bounds { entries: 2, bytes: 3_000_000 }).unwrap_err();
    assert!(matches!(error, ArchiveError::TooLarge { .. }), "{error}");
    let error = bed.extract_within(&bomb, Bounds { entries: 1, bytes: 3_000_001 }).unwrap_err();
    assert!(matches!(error, ArchiveError::TooMany { .. }), "{error}");
    // A name of 3 MB, which would be kept in memory.
    let name =
        tar_zst(&[(::tar::EntryType::GNULongName, "././@LongLink", "", &zeros), (TAR_FILE, "x", "", b"")]);
    let error = bed.extract(&name).unwrap_err();
    assert!(error.to_string().contains("too long"), "{error}");
    assert_eq!(std::fs::read_dir(bed.path()).unwrap().count(), 0);
    assert_eq!(bed.extract_within(&bomb, Bounds { entries: 2, bytes: 3_000_001 }).unwrap().files, 2);
}

/// A zip archive of one entry that is compressed with zstd, and says that it has this size.
fn zstd_zip(name: &[u8], content: &[u8], size: usize) -> Vec<u8> {
    let mut archive = zip(|zip| zip.link(name, &zstd(content), FILE).unwrap());
    let end_at = archive.len() - 22;
    let at = u32::from_le_bytes(archive[end_at + 16..end_at + 20].try_into().unwrap()) as usize;
    archive[at + 10..at + 12].copy_from_slice(&93_u16.to_le_bytes());
    archive[at + 16..at + 20].copy_from_slice(&crc32fast::hash(content).to_le_bytes());
    archive[at + 24..at + 28].copy_from_slice(&u32::try_from(size).unwrap().to_le_bytes());
    archive
}

#[test]
fn a_zip_entry_may_be_compressed_with_zstd() {
    let text = "text of it\n".repeat(100_000);
    let mut bed = Bed::new();
    assert_eq!(bed.extract(&zstd_zip(b"a/b", text.as_bytes(), text.len())).unwrap().files, 1);
    assert_eq!(std::fs::read_to_string(bed.path().join("a/b")).unwrap(), text);
    for (size, what) in [(text.len() - 1, "more than it says"), (text.len() + 1, "less than it says")] {
        let error = bed.extract(&zstd_zip(b"lies", text.as_bytes(), size)).unwrap_err();
        assert!(error.to_string().contains(what), "{error}");
    }
    // More than deflate could make of so few bytes, and no more than it says.
    let zeros = vec![0; 3_000_000];
    let archive = zstd_zip(b"zeros", &zeros, zeros.len());
    assert!(archive.len() * 1032 < zeros.len(), "{}", archive.len());
    assert_eq!(bed.extract(&archive).unwrap().bytes, 3_000_000);
    let error = bed.extract_within(&archive, Bounds { entries: 1, bytes: 2_999_999 }).unwrap_err();
    assert!(matches!(error, ArchiveError::TooLarge { .. }), "{error}");
    let error = bed.extract(&zstd_zip(b"promise", b"", 2_000_000_000)).unwrap_err();
    assert!(error.to_string().contains("promises more"), "{error}");
}

#[test]
fn raw_is_one_file_as_it_is() {
    let from = Bed::new();
    std::fs::write(from.path().join("report.json"), "{}").unwrap();
    assert_eq!(packed(&from.path(), Format::Raw, &["report.json"]), b"{}");
    let names = vec![b"a".to_vec(), b"b".to_vec()];
    let error = write(Format::Raw, Compression::fast(), &from.project(), &names, io::sink(), &mut |_| {})
        .unwrap_err();
    assert!(error.to_string().contains("one file, not 2"), "{error}");
}

#[test]
fn more_entries_than_a_narrow_end_can_count() {
    let mut bed = Bed::new();
    let archive = zip(|zip| {
        (0..70_000_u32).for_each(|number| {
            zip.file(format!("d{}/{number}", number % 7).as_bytes(), FILE, &b""[..]).unwrap();
        })
    });
    assert_eq!(bed.extract(&archive).unwrap().files, 70_000);
}

#[test]
fn a_file_of_wide_size_is_written_with_wide_numbers() {
    // Not its content, which would be 4 GiB: only that what is said of it can be read back.
    let meta = Meta { size: 0xffff_ffff_ff, ..FILE };
    let archive = zip(|zip| zip.file(b"wide", meta, &b"content"[..]).unwrap());
    let mut bed = Bed::new();
    assert_eq!(bed.extract(&archive).unwrap().bytes, 7);
    let path = bed.folder.path().join("archive");
    let tested = Command::new("python3").args(["-m", "zipfile", "-t"]).arg(&path).output().unwrap();
    assert!(tested.status.success(), "{tested:?}");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    /// Whatever bytes are damaged: an answer, and nothing outside.
    #[test]
    fn a_damaged_archive_never_leaves_the_project(at in 0_usize..400, byte: u8, also in 0_usize..400, other: u8) {
        let mut archive = zip(|zip| {
            zip.folder(b"d", FOLDER).unwrap();
            zip.link(b"d/l", b"../x", LINK).unwrap();
            zip.file(b"d/l2/f", FILE, &b"some content"[..]).unwrap();
        });
        let length = archive.len();
        archive[at % length] = byte;
        archive[also % length] = other;
        let mut bed = Bed::new();
        let _answer = bed.extract(&archive);
        bed.assert_untouched();
    }
}
