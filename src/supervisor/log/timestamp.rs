//! Lays out the log's lines: GitLab's prefix with the time and the stream before each, or nothing.
//!
//! A line is written as it comes, without waiting for its end. Text longer than 8 KiB is cut, and the
//! next line is marked as its continuation. Assumes UTF-8; never cuts a character. Pure: the time is given.

use jiff::Timestamp;

/// Whose words a line holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    /// The runner's.
    Runner,
    /// The job's script.
    Job,
}

impl Stream {
    /// GitLab's mark: two hex digits of the stream and `O` for output.
    fn mark(self) -> &'static str {
        match self {
            Self::Runner => "00O",
            Self::Job => "01O",
        }
    }
}

/// Bytes after which a line is cut: GitLab reads timestamped logs line by line.
const LONGEST_LINE: usize = 8 * 1024;

/// Where the log's end stands.
#[derive(Debug)]
pub struct LineLayout {
    timestamps: bool,
    place: Place,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// At the start of a line.
    Start,
    /// At the start of a line that continues a cut one.
    Continuation(Stream),
    /// In a line of a stream, with so many bytes.
    Within(Stream, usize),
}

impl LineLayout {
    /// A layout for a log that ends with a whole line, or is empty.
    pub fn new(timestamps: bool) -> Self {
        Self { timestamps, place: Place::Start }
    }

    /// Forgets an open line: somebody else has ended it.
    pub fn restart(&mut self) {
        self.place = Place::Start;
    }

    /// Appends `text` of a stream; an open line of another stream is ended first.
    pub fn push(&mut self, stream: Stream, text: &[u8], now: Timestamp, out: &mut Vec<u8>) {
        if text.is_empty() {
            return;
        }
        self.leave_other(stream, out);
        if !self.timestamps {
            out.extend_from_slice(text);
            let open = text.last() != Some(&b'\n');
            self.place = if open { Place::Within(stream, 0) } else { Place::Start };
            return;
        }
        // One for all lines: writing a time takes longer than copying a line.
        let time = now.strftime("%Y-%m-%dT%H:%M:%S%.6fZ").to_string();
        for line in text.split_inclusive(|byte| *byte == b'\n') {
            self.push_line(stream, line, &time, out);
        }
    }

    fn leave_other(&mut self, stream: Stream, out: &mut Vec<u8>) {
        match self.place {
            Place::Within(open, _) if open != stream => {
                out.push(b'\n');
                self.place = Place::Start;
            }
            Place::Continuation(open) if open != stream => self.place = Place::Start,
            Place::Start | Place::Continuation(_) | Place::Within(..) => {}
        }
    }

    /// Appends a line or a part of one.
    fn push_line(&mut self, stream: Stream, line: &[u8], time: &str, out: &mut Vec<u8>) {
        let mut rest = line;
        while !rest.is_empty() {
            let written = match self.place {
                Place::Within(_, written) => written,
                Place::Start => {
                    prefix(stream, " ", time, out);
                    0
                }
                Place::Continuation(_) => {
                    prefix(stream, "+", time, out);
                    0
                }
            };
            let (piece, after) = rest.split_at(cut(rest, LONGEST_LINE.saturating_sub(written)));
            out.extend_from_slice(piece);
            rest = after;
            self.place = if piece.last() == Some(&b'\n') {
                Place::Start
            } else if rest.is_empty() {
                Place::Within(stream, written + piece.len())
            } else {
                out.push(b'\n');
                Place::Continuation(stream)
            };
        }
    }
}

/// Where to cut `text` so that at most `room` bytes come first and no character is split; the line's end may
/// always come along.
fn cut(text: &[u8], room: usize) -> usize {
    if text.strip_suffix(b"\n").unwrap_or(text).len() <= room {
        return text.len();
    }
    let mut at = room;
    while at > 0 && text.get(at).is_some_and(|byte| byte & 0xc0 == 0x80) {
        at -= 1;
    }
    at
}

fn prefix(stream: Stream, continuation: &str, time: &str, out: &mut Vec<u8>) {
    for part in [time, " ", stream.mark(), continuation] {
        out.extend_from_slice(part.as_bytes());
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at() -> Timestamp {
        "2026-11-21T06:40:00.123456Z".parse().unwrap()
    }

    /// Reads a timestamped log as GitLab does: prefixes away, continuations joined.
    fn read_back(log: &str) -> String {
        let mut text = String::new();
        for line in log.split_inclusive('\n') {
            let (head, body) = line.split_at(32);
            assert!(head.ends_with("O ") || head.ends_with("O+"), "{head}");
            if head.ends_with('+') {
                assert_eq!(text.pop(), Some('\n'));
            }
            text.push_str(body);
        }
        text
    }

    #[test]
    fn each_line_carries_time_and_stream() {
        let mut layout = LineLayout::new(true);
        let mut out = Vec::new();
        layout.push(Stream::Runner, b"one\ntwo", at(), &mut out);
        layout.push(Stream::Job, b"three\n", at(), &mut out);
        assert_eq!(
            String::from_utf8(out).unwrap(),
            "2026-11-21T06:40:00.123456Z 00O one\n2026-11-21T06:40:00.123456Z 00O two\n\
             2026-11-21T06:40:00.123456Z 01O three\n"
        );
    }

    proptest! {
        #[test]
        fn any_cutting_reads_back_as_the_text(
            text in "([a-zß\n]|x{9000}){0,30}", cut in 1usize..5000,
        ) {
            let mut layout = LineLayout::new(true);
            let mut out = Vec::new();
            let mut rest = text.as_str();
            while !rest.is_empty() {
                let mut at_byte = cut.min(rest.len());
                while !rest.is_char_boundary(at_byte) {
                    at_byte += 1;
                }
                let (piece, after) = rest.split_at(at_byte);
                layout.push(Stream::Job, piece.as_bytes(), at(), &mut out);
                rest = after;
            }
            prop_assert_eq!(read_back(&String::from_utf8(out).unwrap()), text);
        }
    }
}
