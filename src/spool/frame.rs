//! Frames of an attached stream: one tag byte, four bytes of length (big endian), the body.
//!
//! A decoder is fed bytes as they come, however they are cut, and hands out whole frames. A body longer than
//! [`MAX_BODY`] or an unknown tag is an error: the stream is not ours, and reading on would only invent frames.

use serde::{Deserialize, Serialize};

use super::record::JobRecord;
use super::verb::Answer;

/// Longest body of a frame.
pub const MAX_BODY: usize = 1024 * 1024;

/// Memory that a decoder keeps while it waits for the next frame.
const IDLE_CAPACITY: usize = 4 * 1024;

const HEADER: usize = 5;
const TAG_ANSWER: u8 = b'A';
const TAG_LOG: u8 = b'L';
const TAG_STATUS: u8 = b'S';
const TAG_BEAT: u8 = b'B';

/// One frame from an attached supervisor.
#[derive(Debug, Clone, PartialEq)]
pub enum Frame {
    /// The first frame of every stream.
    Answer(Answer),
    /// Bytes of the log.
    Log(LogChunk),
    /// The job's record changed. After a `Finished` and `sealed` one follows only what is left of the log, then
    /// the end of the stream.
    Status(Box<StatusFrame>),
    /// Nothing new; the host is alive. Sent every few seconds of silence.
    Beat,
}

/// Bytes of the log from an offset.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogChunk {
    /// Offset of the first byte.
    pub offset: u64,
    /// CRC-32 (IEEE) over the log from its first byte to the end of this chunk.
    pub crc32: u32,
    /// The bytes.
    pub bytes: Vec<u8>,
}

/// A job's record with whether its process is alive.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StatusFrame {
    /// The record on disk.
    pub record: JobRecord,
    /// Whether the process that runs it is alive.
    pub alive: bool,
}

/// Why a stream cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// The tag is none of ours.
    #[error("unknown frame tag {0:#04x}")]
    UnknownTag(u8),
    /// The body is longer than [`MAX_BODY`].
    #[error("frame of {0} bytes is longer than {MAX_BODY}")]
    TooLong(usize),
    /// The body is shorter than its fixed part.
    #[error("log frame of {0} bytes is too short")]
    TooShort(usize),
    /// The body is not the JSON it should be.
    #[error("cannot read the frame's JSON")]
    Json(#[from] serde_json::Error),
}

impl Frame {
    /// Appends the encoded frame to `out`.
    ///
    /// # Errors
    /// When the body is longer than [`MAX_BODY`] or a record cannot be written as JSON.
    pub fn encode(&self, out: &mut Vec<u8>) -> Result<(), FrameError> {
        match self {
            Self::Answer(answer) => put(out, TAG_ANSWER, &[&serde_json::to_vec(answer)?]),
            Self::Log(chunk) => {
                put(out, TAG_LOG, &[&chunk.offset.to_be_bytes(), &chunk.crc32.to_be_bytes(), &chunk.bytes])
            }
            Self::Status(status) => put(out, TAG_STATUS, &[&serde_json::to_vec(status)?]),
            Self::Beat => put(out, TAG_BEAT, &[]),
        }
    }
}

fn put(out: &mut Vec<u8>, tag: u8, parts: &[&[u8]]) -> Result<(), FrameError> {
    let length: usize = parts.iter().map(|part| part.len()).sum();
    if length > MAX_BODY {
        return Err(FrameError::TooLong(length));
    }
    let header_length = u32::try_from(length).map_err(|_| FrameError::TooLong(length))?;
    out.push(tag);
    out.extend_from_slice(&header_length.to_be_bytes());
    for part in parts {
        out.extend_from_slice(part);
    }
    Ok(())
}

/// Cuts a byte stream into frames.
#[derive(Debug, Default)]
pub struct Decoder {
    buffer: Vec<u8>,
}

impl Decoder {
    /// Adds bytes as they came.
    pub fn feed(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// The next whole frame, or `None` until more bytes come.
    ///
    /// # Errors
    /// When the bytes are not a frame of ours; the stream is of no use after that.
    pub fn next_frame(&mut self) -> Result<Option<Frame>, FrameError> {
        let Some((header, rest)) = self.buffer.split_first_chunk::<HEADER>() else {
            return Ok(None);
        };
        let [tag, a, b, c, d] = *header;
        if ![TAG_ANSWER, TAG_LOG, TAG_STATUS, TAG_BEAT].contains(&tag) {
            return Err(FrameError::UnknownTag(tag));
        }
        let length = u32::from_be_bytes([a, b, c, d]) as usize;
        if length > MAX_BODY {
            return Err(FrameError::TooLong(length));
        }
        let Some(body) = rest.get(..length) else {
            return Ok(None);
        };
        let frame = decode_body(tag, body)?;
        self.buffer.drain(..HEADER + length);
        // One long frame must not be paid for to the end of the stream.
        if self.buffer.is_empty() && self.buffer.capacity() > IDLE_CAPACITY {
            self.buffer = Vec::new();
        }
        Ok(Some(frame))
    }
}

fn decode_body(tag: u8, body: &[u8]) -> Result<Frame, FrameError> {
    Ok(match tag {
        TAG_ANSWER => Frame::Answer(serde_json::from_slice(body)?),
        TAG_STATUS => Frame::Status(Box::new(serde_json::from_slice(body)?)),
        TAG_LOG => {
            let too_short = || FrameError::TooShort(body.len());
            let (offset, rest) = body.split_first_chunk::<8>().ok_or_else(too_short)?;
            let (crc32, bytes) = rest.split_first_chunk::<4>().ok_or_else(too_short)?;
            Frame::Log(LogChunk {
                offset: u64::from_be_bytes(*offset),
                crc32: u32::from_be_bytes(*crc32),
                bytes: bytes.to_vec(),
            })
        }
        TAG_BEAT => Frame::Beat,
        unknown => return Err(FrameError::UnknownTag(unknown)),
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn chunk(offset: u64, bytes: Vec<u8>) -> Frame {
        Frame::Log(LogChunk { offset, crc32: crc32fast::hash(&bytes), bytes })
    }

    proptest! {
        #[test]
        fn frames_come_out_whole_however_the_stream_is_cut(
            bodies in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..200), 1..10),
            cut in 1usize..50,
        ) {
            let mut sent = vec![Frame::Answer(Answer::Done), Frame::Beat];
            sent.extend(bodies.into_iter().enumerate().map(|(index, body)| chunk(index as u64, body)));
            let mut stream = Vec::new();
            for frame in &sent {
                frame.encode(&mut stream).unwrap();
            }
            let mut decoder = Decoder::default();
            let mut got = Vec::new();
            for piece in stream.chunks(cut) {
                decoder.feed(piece);
                while let Some(frame) = decoder.next_frame().unwrap() {
                    got.push(frame);
                }
            }
            prop_assert_eq!(got, sent);
        }

        #[test]
        fn garbage_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let mut decoder = Decoder::default();
            decoder.feed(&bytes);
            while let Ok(Some(_)) = decoder.next_frame() {}
        }
    }

    #[test]
    fn an_oversized_frame_is_refused_before_it_is_buffered() {
        let mut decoder = Decoder::default();
        decoder.feed(&[TAG_LOG, 0xff, 0xff, 0xff, 0xff]);
        assert!(matches!(decoder.next_frame(), Err(FrameError::TooLong(_))));
    }
}
