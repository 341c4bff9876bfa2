//! As much of HTTP as the instance metadata service takes: one short question on a connection of its own.
//!
//! Plain, because the service is; an address in numbers, because the static binary must not load the C library's name
//! services. Every wait has an end, and no answer is read beyond a limit.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

/// How long one question may take to be answered.
const PATIENCE: Duration = Duration::from_secs(1);

/// Longest answer that is read; what is asked for here is far shorter.
const LONGEST: u64 = 64 * 1024;

/// Where the service is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Base {
    /// Its address.
    address: SocketAddr,
    /// As the URL names it.
    host: String,
    /// What each path begins with.
    prefix: String,
}

impl Base {
    /// Reads a URL such as `http://169.254.169.254`.
    ///
    /// # Errors
    /// One sentence on what is wrong with it.
    pub fn parse(url: &str) -> Result<Self, String> {
        let wrong =
            |what: &str| format!("the metadata address {url:?} {what}, such as http://169.254.169.254");
        let rest = url.strip_prefix("http://").ok_or_else(|| wrong("must be an http:// URL"))?;
        let (host, prefix) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        let with_port =
            if host.parse::<SocketAddr>().is_ok() { host.to_owned() } else { format!("{host}:80") };
        let address = with_port.parse().map_err(|_| wrong("must name its host by an IP address"))?;
        let is_plain = prefix.bytes().all(|byte| byte.is_ascii_graphic() && !matches!(byte, b'?' | b'#'));
        if !is_plain {
            return Err(wrong("must have a plain path"));
        }
        Ok(Self { address, host: host.to_owned(), prefix: prefix.trim_end_matches('/').to_owned() })
    }

    /// Asks one question; `header` is sent with it.
    ///
    /// # Errors
    /// When there is no answer in time, or none that can be understood.
    pub fn ask(&self, method: &str, path: &str, header: (&str, &str)) -> io::Result<Answer> {
        let deadline = Instant::now() + PATIENCE;
        let mut stream = TcpStream::connect_timeout(&self.address, PATIENCE)?;
        stream.set_write_timeout(Some(PATIENCE))?;
        let Self { host, prefix, .. } = self;
        let (name, value) = header;
        let question = format!(
            "{method} {prefix}/{path} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: dormouse-supervisor\r\n\
             {name}: {value}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
        );
        stream.write_all(question.as_bytes())?;
        let bytes = read_until(&mut stream, deadline)?;
        parse(&bytes).ok_or_else(|| io::Error::other("the answer is no HTTP, or was cut short"))
    }
}

/// Reads to the end of an answer, or of its connection.
fn read_until(stream: &mut TcpStream, deadline: Instant) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let mut buffer = [0; 4096];
    // A server may keep the connection open though it was asked not to.
    while parse(&bytes).is_none_or(|answer| answer.ends_with_connection) && bytes.len() as u64 <= LONGEST {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        stream.set_read_timeout(Some(left))?;
        let count = stream.read(&mut buffer)?;
        if count == 0 {
            break;
        }
        bytes.extend_from_slice(buffer.get(..count).unwrap_or_default());
    }
    Ok(bytes)
}

/// What the service answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// The status code.
    pub status: u16,
    /// The text.
    pub body: String,
    /// Whether only the end of the connection says where the text ends.
    ends_with_connection: bool,
}

/// Reads an answer; `None` while it is not whole, or is none.
fn parse(bytes: &[u8]) -> Option<Answer> {
    let end = bytes.windows(4).position(|window| window == b"\r\n\r\n")?;
    let head = std::str::from_utf8(bytes.get(..end)?).ok()?;
    let rest = bytes.get(end + 4..)?;
    let mut lines = head.split("\r\n");
    let mut words = lines.next()?.split(' ');
    if !words.next()?.starts_with("HTTP/1.") {
        return None;
    }
    let status = words.next()?.parse().ok()?;
    let headers: Vec<(&str, &str)> = lines.filter_map(|line| line.split_once(':')).collect();
    let header = |wanted: &str| {
        let found = headers.iter().find(|(name, _)| name.eq_ignore_ascii_case(wanted));
        found.map(|(_, value)| value.trim())
    };
    let is_chunked = header("transfer-encoding").is_some_and(|value| value.eq_ignore_ascii_case("chunked"));
    let (body, ends_with_connection) = match header("content-length") {
        _ if is_chunked => (join_chunks(rest)?, false),
        Some(length) => (rest.get(..length.parse::<usize>().ok()?)?.to_vec(), false),
        None => (rest.to_vec(), true),
    };
    Some(Answer { status, body: String::from_utf8(body).ok()?, ends_with_connection })
}

/// The text of a chunked answer, once its last chunk is there.
fn join_chunks(mut rest: &[u8]) -> Option<Vec<u8>> {
    let mut body = Vec::new();
    loop {
        let end = rest.windows(2).position(|window| window == b"\r\n")?;
        let size = std::str::from_utf8(rest.get(..end)?).ok()?;
        let size = usize::from_str_radix(size.split(';').next()?.trim(), 16).ok()?;
        if size == 0 {
            return Some(body);
        }
        let from = end + 2;
        let to = from.checked_add(size)?;
        body.extend_from_slice(rest.get(from..to)?);
        rest = rest.get(to..)?.strip_prefix(b"\r\n")?;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn answer(status: u16, body: &str, ends_with_connection: bool) -> Option<Answer> {
        Some(Answer { status, body: body.into(), ends_with_connection })
    }

    #[test]
    fn a_text_ends_by_its_length_by_its_last_chunk_or_with_the_connection() {
        let length = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\ncontent-length: 4\r\n\r\ni-0abc";
        assert_eq!(parse(length), answer(200, "i-0a", false));
        assert_eq!(parse(&length[..length.len() - 3]), None, "a part of it");
        let chunks =
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\ni-\r\n3;x=y\r\n0ab\r\n0\r\n\r\n";
        assert_eq!(parse(chunks), answer(200, "i-0ab", false));
        assert_eq!(parse(&chunks[..chunks.len() - 5]), None, "a part of it");
        assert_eq!(parse(b"HTTP/1.0 404 Not Found\r\n\r\nnone"), answer(404, "none", true));
        assert_eq!(parse(b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\n\r\n"), answer(401, "", false));
    }

    #[test]
    fn what_is_no_http_is_no_answer() {
        for bytes in [
            &b""[..],
            b"SSH-2.0-x\r\n\r\n",
            b"HTTP/1.1\r\n\r\n",
            b"HTTP/1.1 abc\r\n\r\n",
            b"HTTP/1.1 200 OK\r\n",
        ] {
            assert_eq!(parse(bytes), None);
        }
        let length = b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999999999999999\r\n\r\n";
        assert_eq!(parse(length), None);
        let chunk = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\nx";
        assert_eq!(parse(chunk), None);
    }

    #[test]
    fn an_address_is_one_in_numbers() {
        let base = Base::parse("http://127.0.0.1:99/lab/imds/i-1/").unwrap();
        assert_eq!((base.address, base.prefix.as_str()), ("127.0.0.1:99".parse().unwrap(), "/lab/imds/i-1"));
        let base = Base::parse("http://169.254.169.254").unwrap();
        assert_eq!((base.address, base.prefix.as_str()), ("169.254.169.254:80".parse().unwrap(), ""));
        let base = Base::parse("http://[fd00:ec2::254]").unwrap();
        assert_eq!(base.address, "[fd00:ec2::254]:80".parse().unwrap());
        for url in
            ["", "https://127.0.0.1", "http://metadata", "http://", "http://127.0.0.1/a b", "127.0.0.1"]
        {
            assert!(Base::parse(url).unwrap_err().contains("169.254.169.254"), "{url}");
        }
    }

    proptest! {
        #[test]
        fn whatever_comes_is_read_without_a_fall(bytes in prop::collection::vec(any::<u8>(), 0..512)) {
            parse(&bytes);
            let mut chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n".to_vec();
            chunked.extend_from_slice(&bytes);
            parse(&chunked);
        }

        #[test]
        fn a_text_survives_any_cut_into_chunks(body in "[ -~]{1,80}", size in 1_usize..40) {
            let mut bytes = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n".to_vec();
            for chunk in body.as_bytes().chunks(size) {
                bytes.extend_from_slice(format!("{:x}\r\n", chunk.len()).as_bytes());
                bytes.extend_from_slice(chunk);
                bytes.extend_from_slice(b"\r\n");
            }
            bytes.extend_from_slice(b"0\r\n\r\n");
            prop_assert_eq!(parse(&bytes), answer(200, &body, false));
        }
    }
}
