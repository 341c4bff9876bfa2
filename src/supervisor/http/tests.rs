//! The client against real sockets, each a server for one connection.

use std::io::Write;
use std::net::{TcpListener, TcpStream};
use std::thread::{self, JoinHandle};

use super::*;

/// A server for one connection; `serve` gets it with the request's head read.
fn server<T: Send + 'static>(
    serve: impl FnOnce(&mut TcpStream, String) -> T + Send + 'static,
) -> (Url, JoinHandle<T>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = Url::parse(&format!("http://{}/path?signed=secret", listener.local_addr().unwrap())).unwrap();
    let thread = thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            stream.read_exact(&mut byte).unwrap();
            head.extend(byte);
        }
        serve(&mut stream, String::from_utf8(head).unwrap())
    });
    (url, thread)
}

fn client() -> Client {
    Client::new(&HttpSettings::default()).unwrap()
}

fn get(url: &Url) -> Request<'_> {
    Request {
        method: Method::GET,
        url,
        headers: &[],
        payload: Payload::Nothing,
        time: Duration::from_secs(20),
    }
}

#[test]
fn a_stream_of_unknown_length_goes_in_chunks_with_its_headers() {
    let (url, server) = server(|stream, head| {
        let mut body = Vec::new();
        while !body.ends_with(b"0\r\n\r\n") {
            let mut byte = [0];
            stream.read_exact(&mut byte).unwrap();
            body.extend(byte);
        }
        stream.write_all(b"HTTP/1.1 201 Created\r\nContent-Length: 2\r\n\r\nok").unwrap();
        (head.to_lowercase(), body.len())
    });
    let payload = Payload::Stream { from: &mut io::repeat(b'x').take(300_000), length: None };
    let headers = [("JOB-TOKEN", "token")];
    let mut answer =
        client().send(Request { method: Method::POST, headers: &headers, payload, ..get(&url) }).unwrap();
    assert_eq!((answer.status.as_u16(), answer.text().as_str()), (201, "ok"));
    let (head, length) = server.join().unwrap();
    assert!(head.contains("transfer-encoding: chunked") && head.contains("job-token: token"), "{head}");
    assert!(!head.contains("content-length") && length > 300_000, "{head} {length}");
}

#[test]
fn a_stream_of_known_length_says_it() {
    let (url, server) = server(|stream, head| {
        let mut body = vec![0; 100_000];
        stream.read_exact(&mut body).unwrap();
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").unwrap();
        head.to_lowercase()
    });
    let payload = Payload::Stream { from: &mut io::repeat(b'x').take(100_000), length: Some(100_000) };
    let answer = client().send(Request { method: Method::PUT, payload, ..get(&url) }).unwrap();
    assert_eq!(answer.status.as_u16(), 200);
    let head = server.join().unwrap();
    assert!(head.contains("content-length: 100000") && !head.contains("chunked"), "{head}");
}

#[test]
fn a_refusal_in_the_middle_of_a_large_body_is_heard() {
    let (url, server) = server(|stream, _| {
        stream
            .write_all(b"HTTP/1.1 413 Payload Too Large\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
            .unwrap();
    });
    let payload = Payload::Stream { from: &mut io::repeat(b'x').take(1 << 30), length: None };
    let answer = client().send(Request { method: Method::POST, payload, ..get(&url) }).unwrap();
    assert_eq!(answer.status.as_u16(), 413);
    server.join().unwrap();
}

#[test]
fn a_redirect_is_an_answer() {
    let (url, server) = server(|stream, _| {
        stream
            .write_all(b"HTTP/1.1 302 Found\r\nLocation: http://other/\r\nContent-Length: 0\r\n\r\n")
            .unwrap();
    });
    let answer = client().send(get(&url)).unwrap();
    assert_eq!((answer.status.as_u16(), answer.header("location")), (302, Some("http://other/")));
    server.join().unwrap();
}

#[test]
fn a_body_that_is_cut_short_is_an_error() {
    let (url, server) = server(|stream, _| {
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf").unwrap();
    });
    let mut answer = client().send(get(&url)).unwrap();
    let read = io::copy(&mut answer, &mut io::sink());
    assert!(read.is_err(), "{read:?}");
    server.join().unwrap();
}

#[test]
fn a_body_that_fails_is_not_ended_as_if_it_were_whole() {
    struct Broken;
    impl Read for Broken {
        fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
            Err(io::Error::other("the disk is gone"))
        }
    }
    let (url, server) = server(|stream, _| {
        let mut body = Vec::new();
        stream.read_to_end(&mut body).unwrap();
        body
    });
    let payload = Payload::Stream { from: &mut Broken, length: None };
    let sent = client().send(Request { method: Method::POST, payload, ..get(&url) });
    assert!(sent.is_err_and(|error| error.to_string().contains("the disk is gone")));
    assert!(!server.join().unwrap().ends_with(b"0\r\n\r\n"));
}

#[test]
fn nobody_there_is_said_without_the_address_s_secrets() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = Url::parse(&format!("http://{}/path?signed=secret", listener.local_addr().unwrap())).unwrap();
    drop(listener);
    let error = client().send(get(&url)).err().unwrap().to_string();
    assert!(error.contains("127.0.0.1") && !error.contains("secret"), "{error}");
    let nowhere = Url::parse("http://no-such-host.invalid/?signed=secret").unwrap();
    let error = client().send(get(&nowhere)).err().unwrap();
    assert!(matches!(error, HttpError::UnknownHost(_)), "{error}");
}

/// A key and a certificate for 127.0.0.1 that signs itself, as PEM, made by openssl; `authority` is what it says of itself.
fn certificate(authority: &str) -> (Vec<u8>, String) {
    let folder = tempfile::tempdir().unwrap();
    let (key, certificate) = (folder.path().join("key"), folder.path().join("certificate"));
    let made = std::process::Command::new("openssl")
        .args([
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:P-256",
            "-nodes",
            "-days",
            "2",
        ])
        .args([
            "-subj",
            "/CN=test",
            "-addext",
            "subjectAltName=IP:127.0.0.1",
            "-addext",
            &format!("basicConstraints=critical,CA:{authority}"),
            "-keyout",
        ])
        .arg(&key)
        .arg("-out")
        .arg(&certificate)
        .output()
        .unwrap();
    assert!(made.status.success(), "{made:?}");
    (std::fs::read(key).unwrap(), std::fs::read_to_string(certificate).unwrap())
}

/// A TLS server for one connection that answers 413 before it has read the body, then closes.
fn tls_server(key: &[u8], certificate: &str) -> (Url, JoinHandle<bool>) {
    use rustls::pki_types::pem::PemObject as _;
    use rustls::pki_types::{CertificateDer, PrivateKeyDer};

    let chain = vec![CertificateDer::from_pem_slice(certificate.as_bytes()).unwrap()];
    let key = PrivateKeyDer::from_pem_slice(key).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = Url::parse(&format!("https://{}/", listener.local_addr().unwrap())).unwrap();
    let thread = thread::spawn(move || {
        let (stream, _) = listener.accept().unwrap();
        // What waits to be sent is dropped by a close that leaves something unread.
        stream.set_nodelay(true).unwrap();
        let connection = rustls::ServerConnection::new(Arc::new(config)).unwrap();
        let mut stream = rustls::StreamOwned::new(connection, stream);
        let mut head = [0; 1024];
        // A client that does not trust us ends here.
        if stream.read(&mut head).is_err() {
            return false;
        }
        let answer = b"HTTP/1.1 413 Payload Too Large\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
        stream.write_all(answer).is_ok() && stream.flush().is_ok()
    });
    (url, thread)
}

#[test]
fn a_server_is_trusted_by_the_pools_bundle_and_not_without_it() {
    for authority in ["FALSE", "TRUE"] {
        trusted_by_its_bundle(authority);
    }
}

fn trusted_by_its_bundle(authority: &str) {
    let (key, certificate) = certificate(authority);
    let (url, server) = tls_server(&key, &certificate);
    let error = client().send(get(&url)).err().unwrap();
    assert!(matches!(error, HttpError::Untrusted { .. }), "{error}");
    assert!(!server.join().unwrap());

    let settings = HttpSettings { ca_bundle: Some(certificate.clone()), ..HttpSettings::default() };
    let (url, server) = tls_server(&key, &certificate);
    let payload = Payload::Stream { from: &mut io::repeat(b'x').take(1 << 30), length: None };
    let trusting = Client::new(&settings).unwrap();
    let answer = trusting.send(Request { method: Method::POST, payload, ..get(&url) }).unwrap();
    assert_eq!(answer.status.as_u16(), 413);
    assert!(server.join().unwrap());
}

/// A TLS server for one connection; answers what it was shown, if the handshake came to its end.
fn asking_server(key: &[u8], certificate: &str) -> (Url, JoinHandle<Option<usize>>) {
    use rustls::pki_types::pem::PemObject as _;
    use rustls::pki_types::{CertificateDer, PrivateKeyDer};
    use rustls::server::WebPkiClientVerifier;

    let own = CertificateDer::from_pem_slice(certificate.as_bytes()).unwrap();
    let mut roots = rustls::RootCertStore::empty();
    roots.add(own.clone()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let asks = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
        .allow_unauthenticated()
        .build()
        .unwrap();
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_client_cert_verifier(asks)
        .with_single_cert(vec![own], PrivateKeyDer::from_pem_slice(key).unwrap())
        .unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = Url::parse(&format!("https://{}/", listener.local_addr().unwrap())).unwrap();
    let thread = thread::spawn(move || {
        let (stream, _) = listener.accept().unwrap();
        let connection = rustls::ServerConnection::new(Arc::new(config)).unwrap();
        let mut stream = rustls::StreamOwned::new(connection, stream);
        stream.read_exact(&mut [0; 4]).ok()?;
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").ok()?;
        Some(stream.conn.peer_certificates().map_or(0, <[_]>::len))
    });
    (url, thread)
}

#[test]
fn the_pools_certificate_is_shown_to_its_own_server_and_to_no_other() {
    let (key, certificate) = certificate("FALSE");
    let identity =
        ClientIdentity { certificate: certificate.clone(), key: String::from_utf8(key.clone()).unwrap() };
    let (gitlab, of_gitlab) = asking_server(&key, &certificate);
    let (storage, of_storage) = asking_server(&key, &certificate);
    let shown = Some(Shown { to: gitlab.join("sub/path").unwrap().to_string(), identity });
    let settings = HttpSettings { ca_bundle: Some(certificate), shown, ..HttpSettings::default() };
    let text = format!("{settings:?}");
    assert!(text.contains("shows_certificate: true") && !text.contains("BEGIN"), "{text}");
    let client = Client::new(&settings).unwrap();
    for url in [&gitlab, &storage] {
        assert_eq!(client.send(get(url)).unwrap().status.as_u16(), 200);
    }
    assert_eq!((of_gitlab.join().unwrap(), of_storage.join().unwrap()), (Some(1), Some(0)));
}

#[test]
fn a_proxy_is_asked_in_the_hosts_place() {
    // It speaks plain HTTP and is asked for a tunnel, whatever is behind it.
    let (url, server) = server(|stream, head| {
        stream.write_all(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n").unwrap();
        head
    });
    let proxy = ProxySettings { http: Some(url.origin().ascii_serialization()), ..ProxySettings::default() };
    let client = Client::new(&HttpSettings { proxy, ..HttpSettings::default() }).unwrap();
    let behind = Url::parse("http://gitlab.invalid/path?signed=secret").unwrap();
    let error = client.send(get(&behind)).err().map(|error| error.to_string()).unwrap_or_default();
    assert!(!error.contains("secret"), "{error}");
    let head = server.join().unwrap();
    assert!(head.starts_with("CONNECT gitlab.invalid:80 "), "{head}");
}
