//! The HTTP connections of a pool to its GitLab: whom they trust, which certificate they show, how old they get.
//!
//! A transport outlives changes of certificates: whoever holds it, a job's conversation of hours included, speaks over the
//! connections that are right by then. Proxies are those of the process's environment (`HTTPS_PROXY`, `HTTP_PROXY`,
//! `NO_PROXY`). No connection is used for longer than [`MAX_AGE`], so that a load balancer behind the same name, and a
//! certificate that was replaced on the other side, are followed.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use secrecy::{ExposeSecret, SecretString};

use crate::tls::{self, TlsError};

/// How long connections are used.
const MAX_AGE: Duration = Duration::from_secs(15 * 60);
/// Time for connecting to GitLab, the TLS handshake included.
const DIAL_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a connection may wait for its next request.
const IDLE_TIMEOUT: Duration = Duration::from_secs(90);
/// How many may wait.
const IDLE_CONNECTIONS: usize = 100;
/// How often the kernel looks for a sign of life of a peer that says nothing.
const PROBE_INTERVAL: Duration = Duration::from_secs(15);

/// Why connections cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum TransportError {
    /// The certificates to trust cannot be read.
    #[error("spec.gitlab.caBundle holds no readable PEM certificate")]
    CaBundle(#[source] TlsError),
    /// The certificate to show cannot be read.
    #[error(
        "spec.gitlab.clientCertificateSecretRef holds no certificate and key that can be read: tls.crt and tls.key must \
         be PEM, the key without a passphrase"
    )]
    Identity(#[source] TlsError),
    /// TLS cannot be set up.
    #[error("cannot set TLS up")]
    Tls(#[source] TlsError),
    /// The HTTP client cannot be built.
    #[error("cannot build the HTTP client")]
    Http(#[source] reqwest::Error),
}

/// Whom connections trust, and what they show.
#[derive(Clone, Default)]
pub struct Trust {
    /// PEM certificates to trust besides the system's.
    pub ca_bundle: Option<String>,
    /// PEM of a certificate, its chain and its key.
    pub identity: Option<SecretString>,
}

impl Trust {
    fn same_as(&self, other: &Self) -> bool {
        let identity = |trust: &Self| trust.identity.as_ref().map(|pem| pem.expose_secret().to_owned());
        self.ca_bundle == other.ca_bundle && identity(self) == identity(other)
    }
}

/// The connections of a pool to its GitLab. Cloning shares them.
#[derive(Clone)]
pub struct Transport {
    /// Locked for lines only.
    current: Arc<Mutex<Current>>,
}

struct Current {
    trust: Trust,
    http: reqwest::Client,
    since: Instant,
}

impl Transport {
    /// Connections of this trust.
    ///
    /// # Errors
    /// When its certificates cannot be read.
    pub fn new(trust: Trust) -> Result<Self, TransportError> {
        let current = Current { http: build(&trust)?, trust, since: Instant::now() };
        Ok(Self { current: Arc::new(Mutex::new(current)) })
    }

    /// From now on connections are made with this trust; those there are end with what is under way on them.
    ///
    /// # Errors
    /// When its certificates cannot be read: then all stays as it was.
    pub fn adopt(&self, trust: Trust) -> Result<(), TransportError> {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        if current.trust.same_as(&trust) {
            return Ok(());
        }
        *current = Current { http: build(&trust)?, trust, since: Instant::now() };
        Ok(())
    }

    /// The client to send a request with.
    pub fn http(&self) -> reqwest::Client {
        self.http_at(Instant::now())
    }

    fn http_at(&self, now: Instant) -> reqwest::Client {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        if now.duration_since(current.since) >= MAX_AGE
            // It was built from the same before; if that does not work now, old connections are better than none.
            && let Ok(http) = build(&current.trust)
        {
            current.http = http;
            current.since = now;
        }
        current.http.clone()
    }
}

fn build(trust: &Trust) -> Result<reqwest::Client, TransportError> {
    let identity = trust.identity.as_ref().map(|pem| pem.expose_secret());
    let config = tls::http2_config(trust.ca_bundle.as_deref(), identity).map_err(|error| match error {
        TlsError::Bundle(_) => TransportError::CaBundle(error),
        TlsError::Identity(_) => TransportError::Identity(error),
        TlsError::Rustls(_) => TransportError::Tls(error),
    })?;
    reqwest::Client::builder()
        .tls_backend_preconfigured(config)
        .user_agent(format!(
            "gitlab-runner {} (dormouse; rust; linux/{})",
            env!("CARGO_PKG_VERSION"),
            std::env::consts::ARCH
        ))
        .connect_timeout(DIAL_TIMEOUT)
        .pool_idle_timeout(IDLE_TIMEOUT)
        .pool_max_idle_per_host(IDLE_CONNECTIONS)
        .tcp_keepalive(PROBE_INTERVAL)
        .tcp_keepalive_interval(PROBE_INTERVAL)
        .tcp_nodelay(true)
        .build()
        .map_err(TransportError::Http)
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::TcpListener;

    use super::*;

    /// Answers requests on each connection; counts the connections.
    fn server() -> (String, std::sync::mpsc::Receiver<()>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let (opened, connections) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let Ok(mut stream) = stream else { return };
                if opened.send(()).is_err() {
                    return;
                }
                std::thread::spawn(move || {
                    let mut buffer = [0; 4096];
                    while stream.read(&mut buffer).is_ok_and(|read| read > 0) {
                        if stream.write_all(b"HTTP/1.1 204 No Content\r\n\r\n").is_err() {
                            return;
                        }
                    }
                });
            }
        });
        (url, connections)
    }

    #[tokio::test]
    async fn a_connection_is_used_again_until_it_is_old() {
        // The product does this first of all in main.
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let (url, connections) = server();
        let transport = Transport::new(Trust::default()).unwrap();
        let now = Instant::now();
        let ask = async |at: Instant| {
            let answer = transport.http_at(at).get(&url).send().await.unwrap();
            assert_eq!(answer.status(), 204);
            // The connection goes back to the client only when its answer is read.
            answer.bytes().await.unwrap();
        };
        ask(now).await;
        ask(now + MAX_AGE / 2).await;
        assert_eq!(connections.try_iter().count(), 1);
        ask(now + MAX_AGE).await;
        assert_eq!(connections.try_iter().count(), 1, "the old connection was used");
        ask(now + MAX_AGE + MAX_AGE / 2).await;
        assert_eq!(connections.try_iter().count(), 0);
    }

    #[tokio::test]
    async fn certificates_that_cannot_be_read_change_nothing_and_are_named() {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let transport = Transport::new(Trust::default()).unwrap();
        let bad = || SecretString::from("-----BEGIN CERTIFICATE-----\nsecret\n".to_owned());
        let error = transport.adopt(Trust { identity: Some(bad()), ..Trust::default() }).unwrap_err();
        assert!(error.to_string().contains("spec.gitlab.clientCertificateSecretRef"), "{error}");
        assert!(!format!("{error:?}").contains("secret"), "{error:?}");
        let bundle = Some("-----BEGIN CERTIFICATE-----\nnothing\n-----END CERTIFICATE-----\n".to_owned());
        let error = transport.adopt(Trust { ca_bundle: bundle, ..Trust::default() }).unwrap_err();
        assert!(error.to_string().contains("spec.gitlab.caBundle"), "{error}");
        transport.adopt(Trust::default()).unwrap();
    }
}
