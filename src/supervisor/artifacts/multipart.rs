//! A form with one file in it, as a stream: the file comes from another thread through a pipe.

use std::io::{self, Cursor, PipeReader, Read};
use std::sync::OnceLock;

use crate::supervisor::http::request_id;

/// How the file's thread ended. Set before it closes its end of the pipe: an end without it is no end of a file.
pub type Ended = OnceLock<Result<u64, String>>;

/// The form.
pub struct Form<'a> {
    head: Cursor<Vec<u8>>,
    file: PipeReader,
    ended: &'a Ended,
    tail: Cursor<Vec<u8>>,
    is_over: bool,
}

impl<'a> Form<'a> {
    /// A form with the part `file`. The boundary must be one that the file does not hold, that is, a random one.
    pub fn new(boundary: &str, file_name: &str, file: PipeReader, ended: &'a Ended) -> Self {
        let head = format!(
            "--{boundary}\r\nContent-Disposition: form-data; name=\"file\"; filename=\"{}\"\r\nContent-Type: \
             application/octet-stream\r\n\r\n",
            quoted(file_name)
        );
        let tail = format!("\r\n--{boundary}--\r\n");
        Self {
            head: Cursor::new(head.into_bytes()),
            file,
            ended,
            tail: Cursor::new(tail.into_bytes()),
            is_over: false,
        }
    }
}

impl Read for Form<'_> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let count = self.head.read(out)?;
        if count > 0 || out.is_empty() {
            return Ok(count);
        }
        if !self.is_over {
            let count = self.file.read(out)?;
            if count > 0 {
                return Ok(count);
            }
            match self.ended.get() {
                Some(Ok(_)) => self.is_over = true,
                Some(Err(why)) => return Err(io::Error::other(why.clone())),
                None => return Err(io::Error::other("the archive ended before its end")),
            }
        }
        self.tail.read(out)
    }
}

/// A file's name within quotes, as forms have it.
fn quoted(name: &str) -> String {
    name.replace('"', "%22").replace('\r', "%0D").replace('\n', "%0A")
}

/// A boundary that nothing else holds.
///
/// # Errors
/// When the system has no random numbers.
pub fn boundary() -> io::Result<String> {
    Ok(format!("dormouse-{}", request_id()?))
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn read(content: &[u8], result: Option<Result<u64, String>>) -> io::Result<String> {
        let (reader, mut writer) = io::pipe().unwrap();
        let ended = Ended::new();
        writer.write_all(content).unwrap();
        if let Some(result) = result {
            ended.set(result).unwrap();
        }
        drop(writer);
        let mut text = String::new();
        Form::new("b", "a\"\n.zip", reader, &ended).read_to_string(&mut text)?;
        Ok(text)
    }

    #[test]
    fn the_file_is_between_head_and_tail() {
        let text = read(b"content", Some(Ok(1))).unwrap();
        assert!(text.starts_with(
            "--b\r\nContent-Disposition: form-data; name=\"file\"; filename=\"a%22%0A.zip\"\r\n"
        ));
        assert!(text.ends_with("\r\n\r\ncontent\r\n--b--\r\n"), "{text}");
    }

    #[test]
    fn a_file_that_failed_does_not_end_the_form() {
        assert!(read(b"half", Some(Err("no more".into()))).unwrap_err().to_string().contains("no more"));
        assert!(read(b"half", None).is_err());
    }

    #[test]
    fn boundaries_differ() {
        assert_ne!(boundary().unwrap(), boundary().unwrap());
    }
}
