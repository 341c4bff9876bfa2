//! The job's log: from what a script prints to the bytes GitLab gets.
//!
//! ```text
//! phrases -> URL parameters -> token prefixes -> UTF-8 -> lines with timestamps -> limit -> file
//! ```
//!
//! UTF-8 is repaired before lines are laid out, so that neither a prefix nor the limit splits a character.
//! Survives a crash at any byte: the file is only ever appended to, and whoever appends next starts a new line.

pub mod file;
pub mod mask;
pub mod redact;
pub mod timestamp;
pub mod utf8;

use std::io;

use jiff::Timestamp;

use self::file::LogFile;
use self::mask::PhraseMask;
use self::redact::{ParameterRedactor, PrefixRedactor};
use self::timestamp::{LineLayout, Stream};
use self::utf8::Utf8Repair;
use crate::clock;

/// What the log hides and how it looks.
#[derive(Debug)]
pub struct LogStyle<'a> {
    /// Phrases to hide.
    pub secrets: Vec<String>,
    /// Token prefixes the server names.
    pub token_prefixes: &'a [String],
    /// Whether lines carry timestamps.
    pub timestamps: bool,
    /// Bytes kept of what the job prints.
    pub limit: u64,
}

/// The log of a job that runs.
#[derive(Debug)]
pub struct JobLog {
    file: LogFile,
    hidden: Hidden,
    layout: LineLayout,
    limit: u64,
    full: bool,
    torn: bool,
    stream: Stream,
}

impl JobLog {
    /// A log that goes on at the end of `file`.
    ///
    /// # Errors
    /// When the secrets together are too large to search for.
    pub fn new(file: LogFile, style: LogStyle<'_>) -> io::Result<Self> {
        Ok(Self {
            file,
            hidden: Hidden::new(style.secrets, style.token_prefixes)?,
            layout: LineLayout::new(style.timestamps),
            limit: style.limit,
            full: false,
            torn: false,
            stream: Stream::Runner,
        })
    }

    /// Writes what a stream printed.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn write(&mut self, stream: Stream, bytes: &[u8]) -> io::Result<()> {
        if self.full {
            return Ok(());
        }
        let mut shown = Vec::with_capacity(bytes.len() + 64);
        if self.stream != stream {
            self.hidden.finish(&mut shown);
            self.append(&shown)?;
            shown.clear();
            self.stream = stream;
        }
        self.hidden.push(bytes, &mut shown);
        self.append(&shown)
    }

    /// Writes a line of the runner.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn line(&mut self, text: &str) -> io::Result<()> {
        self.write(Stream::Runner, format!("{text}\n").as_bytes())
    }

    /// Writes a mark of the runner's that GitLab reads: a secret that it happens to hold would break it.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn mark(&mut self, mark: &str) -> io::Result<()> {
        if self.full {
            return Ok(());
        }
        self.settle()?;
        self.stream = Stream::Runner;
        self.append(mark.as_bytes())
    }

    /// Writes what is held back because it could be the beginning of a secret.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn settle(&mut self) -> io::Result<()> {
        let mut shown = Vec::new();
        self.hidden.finish(&mut shown);
        self.append(&shown)
    }

    /// Writes the log's last line, also when the log is full, and makes it durable.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn close(&mut self, last_line: &str) -> io::Result<()> {
        self.settle()?;
        self.full = false;
        self.limit = u64::MAX;
        self.line(last_line)?;
        self.settle()?;
        self.file.sync()
    }

    /// Makes what is written durable.
    ///
    /// # Errors
    /// When the disk fails.
    pub fn sync(&mut self) -> io::Result<()> {
        self.settle()?;
        self.file.sync()
    }

    fn append(&mut self, shown: &[u8]) -> io::Result<()> {
        if shown.is_empty() || self.full {
            return Ok(());
        }
        let Self { file, layout, limit, full, stream, torn, .. } = self;
        let written = file.append(|end| {
            let begins_anew = end.written_by_others || *torn;
            if begins_anew {
                layout.restart();
            }
            let mut laid_out = Vec::with_capacity(shown.len() + 64);
            if end.within_line && begins_anew {
                laid_out.push(b'\n');
            }
            layout.push(*stream, shown, clock::now(), &mut laid_out);
            let room = usize::try_from(limit.saturating_sub(end.length)).unwrap_or(usize::MAX);
            if laid_out.len() > room {
                *full = true;
                truncate_at_character(&mut laid_out, room);
                layout.restart();
                if laid_out.last().is_none_or(|byte| *byte != b'\n') {
                    laid_out.push(b'\n');
                }
                layout.push(Stream::Runner, limit_notice(*limit).as_bytes(), clock::now(), &mut laid_out);
            }
            laid_out
        });
        // What a full disk has cut short is not continued: the rest of it is lost.
        *torn = written.is_err();
        written
    }
}

/// The stages that hide secrets and repair text; they belong to one stream at a time.
#[derive(Debug)]
pub struct Hidden {
    phrases: PhraseMask,
    parameters: ParameterRedactor,
    prefixes: PrefixRedactor,
    utf8: Utf8Repair,
}

impl Hidden {
    /// Hides these secrets, and what follows token prefixes, the server's own included.
    ///
    /// # Errors
    /// When the secrets together are too large to search for.
    pub fn new(secrets: Vec<String>, token_prefixes: &[String]) -> io::Result<Self> {
        Ok(Self {
            phrases: PhraseMask::new(secrets).map_err(io::Error::other)?,
            parameters: ParameterRedactor::default(),
            prefixes: PrefixRedactor::new(token_prefixes.iter().map(String::as_str)),
            utf8: Utf8Repair::default(),
        })
    }

    /// Takes bytes as they come and appends what may be shown.
    pub fn push(&mut self, bytes: &[u8], out: &mut Vec<u8>) {
        let mut masked = Vec::with_capacity(bytes.len());
        self.phrases.push(bytes, &mut masked);
        self.redact(&masked, out);
    }

    /// Ends the stream: what was held back is decided as it stands.
    pub fn finish(&mut self, out: &mut Vec<u8>) {
        let mut masked = Vec::new();
        self.phrases.finish(&mut masked);
        self.redact(&masked, out);
        self.utf8.finish(out);
    }

    fn redact(&mut self, masked: &[u8], out: &mut Vec<u8>) {
        let mut by_parameter = Vec::with_capacity(masked.len());
        self.parameters.push(masked, &mut by_parameter);
        let mut by_prefix = Vec::with_capacity(by_parameter.len());
        self.prefixes.push(&by_parameter, &mut by_prefix);
        self.utf8.push(&by_prefix, out);
    }
}

fn truncate_at_character(text: &mut Vec<u8>, room: usize) {
    let mut at = room;
    while at > 0 && text.get(at).is_some_and(|byte| byte & 0xc0 == 0x80) {
        at -= 1;
    }
    text.truncate(at);
}

fn limit_notice(limit: u64) -> String {
    format!(
        "\x1b[33;1mThe log is full at {limit} bytes: the job goes on, further output is dropped.\x1b[0;m\n"
    )
}

/// The text of lines as they stand in a log with or without timestamps, for those who append to a finished one.
pub fn laid_out(text: &str, timestamps: bool, now: Timestamp) -> Vec<u8> {
    let mut out = Vec::new();
    LineLayout::new(timestamps).push(Stream::Runner, text.as_bytes(), now, &mut out);
    out
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn log(folder: &Path, limit: u64, timestamps: bool) -> JobLog {
        let style = LogStyle { secrets: vec!["hush-hush".into()], token_prefixes: &[], timestamps, limit };
        JobLog::new(LogFile::open(&folder.join("log")).unwrap(), style).unwrap()
    }

    fn read(folder: &Path) -> String {
        std::fs::read_to_string(folder.join("log")).unwrap()
    }

    #[test]
    fn a_secret_cut_between_writes_is_hidden_and_junk_is_repaired() {
        let folder = tempfile::tempdir().unwrap();
        let mut log = log(folder.path(), 1000, false);
        log.write(Stream::Job, b"say hush-").unwrap();
        log.write(Stream::Job, b"hush glpat-abc \xff\n").unwrap();
        log.settle().unwrap();
        assert_eq!(read(folder.path()), "say [MASKED] glpat-[MASKED] \u{fffd}\n");
    }

    #[test]
    fn a_full_log_says_so_drops_the_rest_and_still_takes_the_last_line() {
        let folder = tempfile::tempdir().unwrap();
        let mut log = log(folder.path(), 10, false);
        for _ in 0..3 {
            log.write(Stream::Job, "1234567ß9\n".as_bytes()).unwrap();
        }
        log.close("the end").unwrap();
        let text = read(folder.path());
        assert!(text.starts_with("1234567ß9\n\u{1b}[33;1mThe log is full at 10 bytes"), "{text}");
        assert!(text.ends_with("the end\n"), "{text}");
        assert_eq!(text.matches("1234567").count(), 1);
    }

    #[test]
    fn an_open_line_that_somebody_else_ended_is_not_continued() {
        let folder = tempfile::tempdir().unwrap();
        let mut log = log(folder.path(), 1000, true);
        log.write(Stream::Job, b"prompt? ").unwrap();
        let mut other = LogFile::open(&folder.path().join("log")).unwrap();
        other
            .append(|end| [if end.within_line { "\n" } else { "" }, "other\n"].concat().into_bytes())
            .unwrap();
        log.write(Stream::Job, b"answer\n").unwrap();
        let text = read(folder.path());
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 3, "{text}");
        assert!(lines[2].ends_with("01O answer"), "{text}");
    }
}
