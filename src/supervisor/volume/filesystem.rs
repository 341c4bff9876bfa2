//! What a volume carries, told from its first bytes; and the programs that make and grow a file system.
//!
//! Only what is blank is ever formatted. What is not known is not blank.

use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// How much of a device is looked at. All that is known to begin a disk's use lies in it.
pub const HEAD: u64 = 1024 * 1024;

/// Label of the file systems made here.
const LABEL: &str = "dormouse";

/// The least that a file system is grown by: what making one leaves at a volume's end is less.
const LEAST_GROWTH: u64 = 128 * 1024 * 1024;

/// Where programs for disks may be; a connection's PATH often lacks the system folders.
const FOLDERS: [&str; 4] = ["/usr/sbin", "/sbin", "/usr/bin", "/bin"];

/// What is on a volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Content {
    /// Nothing.
    Blank,
    /// A file system of the ext family.
    Ext(Ext),
    /// XFS.
    Xfs,
    /// Something else, by its name where it is known.
    Other(&'static str),
}

/// What an ext file system says of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ext {
    /// Its size in bytes.
    pub size: u64,
    /// Whether it was never mounted.
    pub is_unused: bool,
}

/// Signs of what is not ours to touch: where they stand, what they are, what they mean.
const SIGNS: [(usize, &[u8], &str); 7] = [
    (0, b"LUKS\xba\xbe", "a LUKS volume"),
    (512, b"EFI PART", "a GPT partition table"),
    (512, b"LABELONE", "an LVM volume"),
    (4086, b"SWAPSPACE2", "swap space"),
    (65600, b"_BHRfS_M", "btrfs"),
    (4096, b"\xfc\x4e\x2b\xa9", "a RAID member"),
    (510, b"\x55\xaa", "a partition table"),
];

/// Tells what a volume carries from its first [`HEAD`] bytes, or all of them where it has fewer.
pub fn content(head: &[u8]) -> Content {
    if is_at(head, 0, b"XFSB") {
        return Content::Xfs;
    }
    if let Some(ext) = ext(head) {
        return Content::Ext(ext);
    }
    if head.iter().all(|byte| *byte == 0) {
        return if head.is_empty() { Content::Other("nothing that can be read") } else { Content::Blank };
    }
    let known = SIGNS.iter().find(|(offset, sign, _)| is_at(head, *offset, sign));
    Content::Other(known.map_or("data of an unknown kind", |(_, _, name)| name))
}

/// Reads the superblock of an ext file system, which begins at 1024.
fn ext(head: &[u8]) -> Option<Ext> {
    const SUPERBLOCK: usize = 1024;
    const WIDE: u32 = 0x80;
    if !is_at(head, SUPERBLOCK + 56, &[0x53, 0xef]) {
        return None;
    }
    let word = |offset: usize| -> Option<u32> {
        let bytes = head.get(SUPERBLOCK + offset..)?.first_chunk::<4>()?;
        Some(u32::from_le_bytes(*bytes))
    };
    let is_wide = word(0x60)? & WIDE != 0;
    let high = if is_wide { word(0x150)? } else { 0 };
    let blocks = u64::from(high) << 32 | u64::from(word(0x4)?);
    let block_size = 1024_u64.checked_shl(word(0x18)?)?;
    Some(Ext { size: blocks.saturating_mul(block_size), is_unused: word(0x2c)? == 0 })
}

fn is_at(head: &[u8], offset: usize, sign: &[u8]) -> bool {
    head.get(offset..).is_some_and(|rest| rest.starts_with(sign))
}

/// Whether a file system leaves a device's end unused, and by enough to be grown.
pub fn can_grow(size: u64, device_size: u64) -> bool {
    device_size.saturating_sub(size) >= LEAST_GROWTH
}

/// Makes a file system on a device that is blank.
///
/// # Errors
/// When the program is missing or fails.
pub fn make(device: &Path) -> io::Result<()> {
    let mut command = Command::new(program("mkfs.ext4")?);
    // Tables are filled in the background, once it is mounted; no room is kept back, all of it is the job's.
    command.args(["-q", "-L", LABEL, "-m", "0", "-E", "lazy_itable_init=1,lazy_journal_init=1,nodiscard"]);
    run(command.arg(device), "mkfs.ext4")
}

/// Grows an ext file system, which is mounted, to the size of its device.
///
/// # Errors
/// When the program is missing or fails.
pub fn grow(device: &Path) -> io::Result<()> {
    run(Command::new(program("resize2fs")?).arg(device), "resize2fs")
}

fn program(name: &str) -> io::Result<PathBuf> {
    let found = FOLDERS.iter().map(|folder| Path::new(folder).join(name)).find(|path| path.is_file());
    found.ok_or_else(|| {
        io::Error::other(format!("{name} is missing; install e2fsprogs on the instance's image"))
    })
}

fn run(command: &mut Command, name: &str) -> io::Result<()> {
    let output = command.stdin(Stdio::null()).current_dir("/").output()?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let said = said.lines().filter(|line| !line.trim().is_empty()).collect::<Vec<_>>().join("; ");
    Err(io::Error::other(format!("{name} failed ({}): {said}", output.status)))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const HEAD_LENGTH: usize = HEAD as usize;

    fn with(offset: usize, sign: &[u8]) -> Vec<u8> {
        let mut head = vec![0; HEAD_LENGTH];
        head[offset..offset + sign.len()].copy_from_slice(sign);
        head
    }

    #[test]
    fn each_kind_is_told_by_its_sign() {
        assert_eq!(content(&vec![0; HEAD_LENGTH]), Content::Blank);
        assert_eq!(content(&with(0, b"XFSB")), Content::Xfs);
        assert!(matches!(content(&with(1080, &[0x53, 0xef])), Content::Ext(_)));
        for (offset, sign, name) in SIGNS {
            assert_eq!(content(&with(offset, sign)), Content::Other(name));
        }
        assert_eq!(content(&with(HEAD_LENGTH - 1, b"x")), Content::Other("data of an unknown kind"));
        assert!(matches!(content(&[]), Content::Other(_)), "what cannot be read is not blank");
    }

    #[test]
    fn the_size_of_an_ext_file_system_is_read_beyond_32_bits_of_blocks() {
        let mut head = with(1080, &[0x53, 0xef]);
        let mut set =
            |offset: usize, word: u32| head[1024 + offset..][..4].copy_from_slice(&word.to_le_bytes());
        set(0x4, 5);
        set(0x18, 2);
        set(0x150, 1);
        assert_eq!(content(&head), Content::Ext(Ext { size: 5 * 4096, is_unused: true }));
        let mut set =
            |offset: usize, word: u32| head[1024 + offset..][..4].copy_from_slice(&word.to_le_bytes());
        set(0x60, 0x80);
        set(0x2c, 1_700_000_000);
        let size = ((1 << 32) + 5) * 4096;
        assert_eq!(content(&head), Content::Ext(Ext { size, is_unused: false }));
    }

    #[test]
    fn a_real_file_system_is_told_and_measured() {
        if program("mkfs.ext4").is_err() {
            eprintln!("left out: mkfs.ext4 is not here");
            return;
        }
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("disk");
        let size = 64 * HEAD;
        std::fs::File::create(&path).unwrap().set_len(size).unwrap();
        let read = || std::fs::read(&path).unwrap()[..HEAD_LENGTH].to_vec();
        assert_eq!(content(&read()), Content::Blank);
        make(&path).unwrap();
        assert_eq!(content(&read()), Content::Ext(Ext { size, is_unused: true }));
    }

    #[test]
    fn a_rest_that_making_leaves_is_no_reason_to_grow() {
        assert!(!can_grow(1000, 1000) && !can_grow(2000, 1000));
        assert!(!can_grow(0, LEAST_GROWTH - 1) && can_grow(1, LEAST_GROWTH + 1));
    }

    proptest! {
        #[test]
        fn one_byte_anywhere_and_it_is_not_blank(length in 1_usize..8192, at: usize, byte in 1_u8..) {
            let mut head = vec![0; length];
            prop_assert_eq!(content(&head), Content::Blank);
            head[at % length] = byte;
            prop_assert_ne!(content(&head), Content::Blank);
        }

        #[test]
        fn whatever_the_bytes_are_they_are_read(bytes in prop::collection::vec(any::<u8>(), 0..2048)) {
            let mut head = bytes;
            if head.len() > 1082 {
                head[1080] = 0x53;
                head[1081] = 0xef;
            }
            content(&head);
        }
    }
}
