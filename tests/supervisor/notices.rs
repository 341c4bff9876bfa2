//! What the instance's metadata service says, and what becomes of it when it does not.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use dormouse::spool::verb::{Answer, Notices, RefusalReason, SpotAction, SpotNotice};

use super::Host;

/// A metadata service that wants a token, as the cloud's does.
struct Service {
    url: String,
    texts: Arc<Mutex<Vec<(&'static str, String)>>>,
    is_over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

const TOKEN: &str = "token-of-the-service==";

impl Service {
    fn new() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/prefix", listener.local_addr().unwrap());
        let texts: Arc<Mutex<Vec<(&'static str, String)>>> = Arc::default();
        let is_over = Arc::new(AtomicBool::new(false));
        let (known, over) = (Arc::clone(&texts), Arc::clone(&is_over));
        let thread = std::thread::spawn(move || {
            for stream in listener.incoming() {
                if over.load(Ordering::SeqCst) {
                    return;
                }
                let mut stream = stream.unwrap();
                let mut question = Vec::new();
                let mut buffer = [0; 512];
                while !question.windows(4).any(|window| window == b"\r\n\r\n") {
                    match stream.read(&mut buffer) {
                        Ok(count) if count > 0 => question.extend_from_slice(&buffer[..count]),
                        _ => break,
                    }
                }
                let _gone = stream.write_all(answer(&String::from_utf8_lossy(&question), &known).as_bytes());
            }
        });
        Self { url, texts, is_over, thread: Some(thread) }
    }

    fn says(&self, path: &'static str, text: &str) {
        self.texts.lock().unwrap().push((path, text.to_owned()));
    }
}

fn answer(question: &str, texts: &Mutex<Vec<(&'static str, String)>>) -> String {
    let with = |status: &str, body: &str| {
        format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\n\r\n{body}", body.len())
    };
    let question = question.to_owned();
    let first = question.lines().next().unwrap_or_default();
    if first == "PUT /prefix/latest/api/token HTTP/1.1" {
        let is_timed = question.to_lowercase().contains("x-aws-ec2-metadata-token-ttl-seconds: 60");
        return if is_timed { with("200 OK", TOKEN) } else { with("400 Bad Request", "") };
    }
    if !question.contains(&format!("X-aws-ec2-metadata-token: {TOKEN}\r\n")) {
        return with("401 Unauthorized", "");
    }
    let texts = texts.lock().unwrap();
    let found =
        texts.iter().find(|(path, _)| first == format!("GET /prefix/latest/meta-data/{path} HTTP/1.1"));
    found.map_or_else(|| with("404 Not Found", "none"), |(_, text)| with("200 OK", text))
}

impl Drop for Service {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::SeqCst);
        let address = self.url.trim_start_matches("http://").trim_end_matches("/prefix");
        let _woken = std::net::TcpStream::connect(address);
        let _ended = self.thread.take().unwrap().join();
    }
}

fn ask(host: &Host, url: &str, line: &str) -> Answer {
    let words: Vec<&str> = line.split(' ').collect();
    let output = host.command(&words).env("DORMOUSE_METADATA_URL", url).output().unwrap();
    assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn a_notice_is_told_once_there_is_one() {
    let (host, service) = (Host::new(), Service::new());
    let notices = || ask(&host, &service.url, "notices --epoch 1");
    assert_eq!(notices(), Answer::Notices(Notices::default()));
    service.says("events/recommendations/rebalance", r#"{"noticeTime": "2026-10-26T18:02:53Z"}"#);
    let rebalance = Some("2026-10-26T18:02:53Z".parse().unwrap());
    assert_eq!(notices(), Answer::Notices(Notices { spot: None, rebalance }));
    service.says("spot/instance-action", r#"{"action": "stop", "time": "2026-10-26T18:10:00Z"}"#);
    let time = "2026-10-26T18:10:00Z".parse().unwrap();
    let spot = Some(SpotNotice { action: SpotAction::Stop, time });
    assert_eq!(notices(), Answer::Notices(Notices { spot, rebalance }));
}

#[test]
fn an_instance_says_who_it_is_where_somebody_knows() {
    let (host, service) = (Host::new(), Service::new());
    let hello =
        |url: &str| match ask(&host, url, "hello --pool ns/p --pool-uid pool-uid --epoch 1 --metadata") {
            Answer::Hello(hello) => hello.instance_id,
            other => panic!("{other:?}"),
        };
    assert_eq!(hello(&service.url), None);
    service.says("instance-id", "i-0abc123");
    assert_eq!(hello(&service.url).as_deref(), Some("i-0abc123"));
    assert_eq!(hello("http://127.0.0.1:1"), None, "nobody is there, and the host is greeted all the same");
}

#[test]
fn a_service_that_does_not_answer_is_named() {
    let host = Host::new();
    // Takes connections and says nothing.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let silent = format!("http://{}", listener.local_addr().unwrap());
    let service = Service::new();
    service.says("spot/instance-action", "<html>");
    for url in ["http://127.0.0.1:1", &silent, &service.url, "http://metadata"] {
        let Answer::Refused(refusal) = ask(&host, url, "notices --epoch 1") else { panic!("not refused") };
        assert_eq!(refusal.reason, RefusalReason::HostFailure);
        assert!(refusal.message.contains(url), "{}", refusal.message);
    }
}

#[test]
fn nothing_of_the_service_is_kept() {
    let (host, service) = (Host::new(), Service::new());
    ask(&host, &service.url, "notices --epoch 1");
    assert_eq!(host.files_with("state", TOKEN), Vec::<std::path::PathBuf>::new());
}
