//! The zip format, as far as artifacts and caches use it: deflated or stored entries, of any size and number; those that are
//! compressed with zstd are read, not written.
//!
//! Ours rather than a library's, because names need not be UTF-8 on Linux, because the output cannot be sought in, and
//! because a central directory of a hundred thousand entries must not be a hundred thousand objects in memory: it is
//! kept as the bytes it will be, and read a piece at a time.

pub mod entry;
pub mod header;
pub mod read;
pub mod write;

/// Signature of an entry's own header.
const LOCAL: u32 = 0x0403_4b50;
/// Signature of what follows an entry's data.
const DESCRIPTOR: u32 = 0x0807_4b50;
/// Signature of an entry in the central directory.
const CENTRAL: u32 = 0x0201_4b50;
/// Signature of the archive's end.
const END: u32 = 0x0605_4b50;
/// Signature of the archive's end with wide numbers.
const END_WIDE: u32 = 0x0606_4b50;
/// Signature of what says where that is.
const END_WIDE_LOCATOR: u32 = 0x0706_4b50;

/// Bytes of an entry's own header before its name.
const LOCAL_LENGTH: u64 = 30;
/// Bytes of an entry of the central directory before its name.
const CENTRAL_LENGTH: usize = 46;
/// Bytes of the archive's end before its comment.
const END_LENGTH: usize = 22;

/// A number that stands for "see the wide one".
const WIDE: u32 = u32::MAX;
/// A count that stands for "see the wide one".
const WIDE_COUNT: u16 = u16::MAX;

/// Id of the extra field with wide numbers.
const EXTRA_WIDE: u16 = 0x0001;
/// Id of the extra field with the time of the last change, in seconds of 1970.
const EXTRA_TIME: u16 = 0x5455;

/// The data is not compressed.
const STORED: u16 = 0;
/// The data is deflated.
const DEFLATED: u16 = 8;

/// The data is compressed with zstd.
const ZSTD: u16 = 93;

/// Flag: the entry is encrypted.
const ENCRYPTED: u16 = 1;
/// Flag: sizes and checksum follow the data.
const STREAMED: u16 = 1 << 3;
/// Flag: the name is UTF-8.
const UTF8: u16 = 1 << 11;

/// Who made the archive: Unix, so that modes are Unix modes.
const UNIX: u16 = 3;
