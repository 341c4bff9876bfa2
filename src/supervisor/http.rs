//! The HTTP client of jobs' errands: artifacts and caches. One request at a time, bodies as streams.
//!
//! Knows no retries and follows no redirects: what an answer means is decided by who asked. Never shows an address's
//! query, which may be signed, nor a header. Names are looked up by the host's own `getent`: the binary is static, and
//! must not load the C library's name services.

pub mod early;
pub mod proxy;
pub mod resolver;
pub mod secure;

use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::sync::Arc;
use std::time::Duration;

use rustls::ClientConfig;
use serde::{Deserialize, Serialize};
use ureq::http::{self, HeaderMap, Method, StatusCode};
use ureq::unversioned::transport::{ConnectProxyConnector, Connector, TcpConnector};
use ureq::{Agent, BodyReader, SendBody};
use url::{Origin, Url};

use self::early::{EarlyAnswers, Flag};
use self::proxy::ProxySettings;
use self::resolver::HostResolver;
use self::secure::SecureConnector;
use crate::spool::order::ClientIdentity;
use crate::tls;

/// Time for a connection, its handshake included.
const CONNECT: Duration = Duration::from_secs(40);

/// Time until an answer begins, once all is sent: object storage takes its time to put a large upload together.
const ANSWER: Duration = Duration::from_secs(10 * 60);

/// Time for everything together.
pub const WHOLE: Duration = Duration::from_secs(60 * 60);

/// Most that is kept of a body that is only shown.
const SHOWN: u64 = 4096;

/// How requests are made.
#[derive(Clone, Default, Serialize, Deserialize)]
pub struct HttpSettings {
    /// Certificates to trust besides the host's own, as PEM.
    pub ca_bundle: Option<String>,
    /// What is shown, and to whom.
    #[serde(default)]
    pub shown: Option<Shown>,
    /// Proxies.
    pub proxy: ProxySettings,
}

/// A certificate that one server is shown and no other: not the storage it sends requests on to.
#[derive(Clone, Serialize, Deserialize)]
pub struct Shown {
    /// An address of the server.
    pub to: String,
    /// The certificate.
    pub identity: ClientIdentity,
}

/// A client.
#[derive(Debug)]
pub struct Client {
    tls: Arc<ClientConfig>,
    /// For the one server that is shown a certificate.
    showing: Option<(Origin, Arc<ClientConfig>)>,
    proxy: ProxySettings,
}

/// What is sent along.
pub enum Payload<'a> {
    /// Nothing.
    Nothing,
    /// A stream, of a known length or in chunks.
    Stream {
        /// Where it comes from.
        from: &'a mut dyn Read,
        /// How long it is.
        length: Option<u64>,
    },
}

/// A request.
pub struct Request<'a> {
    /// Its method.
    pub method: Method,
    /// Where to.
    pub url: &'a Url,
    /// Headers.
    pub headers: &'a [(&'a str, &'a str)],
    /// What is sent along.
    pub payload: Payload<'a>,
    /// Time for everything together, the answer's body included.
    pub time: Duration,
}

/// An answer, of any status.
pub struct Response {
    /// Its status.
    pub status: StatusCode,
    headers: HeaderMap,
    body: BodyReader<'static>,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum HttpError {
    /// The settings cannot be used.
    #[error("{0}")]
    Settings(String),
    /// The host has no address.
    #[error("the host {0} is not known")]
    UnknownHost(String),
    /// The connection cannot be trusted.
    #[error("no trusted connection to {host}: {why}")]
    Untrusted {
        /// The host.
        host: String,
        /// Why.
        why: String,
    },
    /// It took too long.
    #[error("{0} did not answer in time")]
    TimedOut(String),
    /// The connection failed.
    #[error("the connection to {host} failed: {why}")]
    Failed {
        /// The host.
        host: String,
        /// Why.
        why: String,
    },
}

impl Client {
    /// A client.
    ///
    /// # Errors
    /// When the certificates cannot be read.
    pub fn new(settings: &HttpSettings) -> Result<Self, HttpError> {
        let config = |identity: Option<&str>| {
            let made = tls::client_config(settings.ca_bundle.as_deref(), identity);
            made.map(Arc::new).map_err(|error| HttpError::Settings(error.to_string()))
        };
        let showing = settings.shown.as_ref().map(|shown| {
            let to = Url::parse(&shown.to)
                .map_err(|_| HttpError::Settings("the pool's GitLab address cannot be used".to_owned()))?;
            Ok((to.origin(), config(Some(&shown.identity.pem()))?))
        });
        Ok(Self { tls: config(None)?, showing: showing.transpose()?, proxy: settings.proxy.clone() })
    }

    /// Sends a request.
    ///
    /// # Errors
    /// When there is no answer.
    pub fn send(&self, request: Request<'_>) -> Result<Response, HttpError> {
        let answered = Flag::default();
        let agent = self.agent(request.url, request.time, &answered)?;
        let host = request.url.host_str().unwrap_or_default().to_owned();
        let mut message = http::Request::builder().method(request.method).uri(request.url.as_str());
        for (name, value) in request.headers {
            message = message.header(*name, *value);
        }
        let cannot = |error: http::Error| HttpError::Settings(format!("the request cannot be made: {error}"));
        let sent = match request.payload {
            Payload::Nothing => agent.run(message.body(SendBody::none()).map_err(cannot)?),
            Payload::Stream { from, length } => {
                if let Some(length) = length {
                    message = message.header("Content-Length", length);
                }
                let mut until_answered = early::Body { from, answered };
                agent.run(message.body(SendBody::from_reader(&mut until_answered)).map_err(cannot)?)
            }
        };
        let response = sent.map_err(|error| told(&host, error))?;
        let (head, body) = response.into_parts();
        let body = body.into_with_config().limit(u64::MAX).reader();
        Ok(Response { status: head.status, headers: head.headers, body })
    }

    fn agent(&self, url: &Url, time: Duration, answered: &Flag) -> Result<Agent, HttpError> {
        let proxy = self.proxy.of_url(url).map_err(HttpError::Settings)?;
        let config = Agent::config_builder()
            .proxy(proxy)
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .accept_encoding("identity")
            .user_agent(user_agent())
            .input_buffer_size(64 * 1024)
            .output_buffer_size(64 * 1024)
            .max_idle_connections(0)
            .timeout_global(Some(time))
            .timeout_connect(Some(CONNECT))
            .timeout_recv_response(Some(ANSWER))
            .build();
        let connector =
            ().chain(ConnectProxyConnector::default())
                .chain(TcpConnector::default())
                .chain(EarlyAnswers { answered: answered.clone() })
                .chain(SecureConnector { config: Arc::clone(self.tls_to(url)) });
        Ok(Agent::with_parts(config, connector, HostResolver))
    }

    /// How a server is spoken to.
    fn tls_to(&self, url: &Url) -> &Arc<ClientConfig> {
        let showing = self.showing.as_ref().filter(|(origin, _)| *origin == url.origin());
        showing.map_or(&self.tls, |(_, config)| config)
    }
}

/// In the form that runners have, so that people find us in GitLab's logs as they find others.
fn user_agent() -> String {
    let (version, arch) = (env!("CARGO_PKG_VERSION"), std::env::consts::ARCH);
    format!("dormouse-supervisor {version} (supervisor; rust; linux/{arch})")
}

/// 32 random hex digits: GitLab's logs name a request by them.
///
/// # Errors
/// When the system has no random numbers.
pub fn request_id() -> io::Result<String> {
    let mut random = [0; 16];
    File::open("/dev/urandom")?.read_exact(&mut random)?;
    Ok(format!("{:032x}", u128::from_ne_bytes(random)))
}

/// What an error says without saying too much.
fn told(host: &str, error: ureq::Error) -> HttpError {
    let host = host.to_owned();
    match error {
        ureq::Error::HostNotFound => HttpError::UnknownHost(host),
        ureq::Error::Timeout(_) => HttpError::TimedOut(host),
        ureq::Error::Rustls(error) => HttpError::Untrusted { host, why: error.to_string() },
        ureq::Error::Tls(why) => HttpError::Untrusted { host, why: why.to_owned() },
        ureq::Error::Io(error) => {
            match error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
                Some(error) => HttpError::Untrusted { host, why: error.to_string() },
                None => HttpError::Failed { host, why: error.to_string() },
            }
        }
        ureq::Error::ConnectProxyFailed(why) => {
            HttpError::Failed { host, why: format!("the proxy says {why}") }
        }
        ureq::Error::BadUri(_) | ureq::Error::Http(_) => {
            HttpError::Settings("the address is none that can be asked".to_owned())
        }
        other => HttpError::Failed { host, why: other.to_string() },
    }
}

impl Response {
    /// A header's value, if it is text.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    /// How long the server wants us to wait.
    pub fn retry_after(&self) -> Option<Duration> {
        self.header("Retry-After")?.trim().parse().ok().map(Duration::from_secs)
    }

    /// The body's beginning, for a message.
    pub fn text(&mut self) -> String {
        let mut bytes = Vec::new();
        // What could be read is shown.
        let _read = (&mut self.body).take(SHOWN).read_to_end(&mut bytes);
        String::from_utf8_lossy(&bytes).trim().to_owned()
    }
}

impl Read for Response {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        self.body.read(out)
    }
}

impl fmt::Debug for HttpSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HttpSettings")
            .field("has_ca_bundle", &self.ca_bundle.is_some())
            .field("shows_certificate", &self.shown.is_some())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
