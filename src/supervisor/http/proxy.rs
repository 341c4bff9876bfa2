//! Which proxy a request goes through, by the variables that every program reads. Pure.

use std::fmt;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};
use ureq::Proxy;
use url::{Host, Url};

/// The proxy variables of a job.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProxySettings {
    /// For `http` addresses.
    pub http: Option<String>,
    /// For `https` addresses.
    pub https: Option<String>,
    /// Hosts without a proxy.
    pub none: Option<String>,
}

impl fmt::Debug for ProxySettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Proxies are named with passwords.
        f.debug_struct("ProxySettings").field("none", &self.none).finish_non_exhaustive()
    }
}

impl ProxySettings {
    /// Reads `HTTP_PROXY`, `HTTPS_PROXY` and `NO_PROXY`, in capitals or not.
    pub fn read(value: impl Fn(&str) -> Option<String>) -> Self {
        let either = |name: &str| {
            let given = |name: &str| value(name).filter(|text| !text.trim().is_empty());
            given(name).or_else(|| given(&name.to_ascii_lowercase()))
        };
        Self { http: either("HTTP_PROXY"), https: either("HTTPS_PROXY"), none: either("NO_PROXY") }
    }

    /// The proxy for an address.
    ///
    /// # Errors
    /// A sentence when what the variable says is no proxy.
    pub fn of_url(&self, url: &Url) -> Result<Option<Proxy>, String> {
        let (name, proxy) = match url.scheme() {
            "https" => ("HTTPS_PROXY", &self.https),
            _ => ("HTTP_PROXY", &self.http),
        };
        let Some(proxy) = proxy.as_deref().map(str::trim).filter(|_| !self.is_direct(url)) else {
            return Ok(None);
        };
        let with_scheme = if proxy.contains("://") { proxy.to_owned() } else { format!("http://{proxy}") };
        if !with_scheme.starts_with("http://") && !with_scheme.starts_with("https://") {
            return Err(format!("the variable {name} names no HTTP proxy; others are not supported"));
        }
        // Without the value: it may hold a password.
        let proxy = Proxy::new(&with_scheme).map_err(|_| format!("the variable {name} names no proxy"))?;
        Ok(Some(proxy))
    }

    /// Whether an address is asked without a proxy: this very machine always is.
    fn is_direct(&self, url: &Url) -> bool {
        let (name, address) = match url.host() {
            None => return true,
            Some(Host::Domain(name)) => (name.to_ascii_lowercase(), None),
            Some(Host::Ipv4(address)) => (address.to_string(), Some(IpAddr::V4(address))),
            Some(Host::Ipv6(address)) => (address.to_string(), Some(IpAddr::V6(address))),
        };
        if name == "localhost" || address.is_some_and(|address| address.is_loopback()) {
            return true;
        }
        let port = url.port_or_known_default();
        let none = self.none.as_deref().unwrap_or_default().to_ascii_lowercase();
        none.split(',').map(str::trim).filter(|rule| !rule.is_empty()).any(|rule| {
            rule == "*" || address.is_some_and(|address| is_in(rule, address)) || is_named(rule, &name, port)
        })
    }
}

fn is_named(rule: &str, name: &str, port: Option<u16>) -> bool {
    let (rule, wanted) = match rule.rsplit_once(':') {
        Some((rule, digits)) if !rule.contains(':') => (rule, digits.parse::<u16>().ok()),
        _ => (rule, None),
    };
    if wanted.is_some() && wanted != port {
        return false;
    }
    let rule = rule.trim_start_matches("*.").trim_start_matches('.');
    name == rule || name.strip_suffix(rule).is_some_and(|rest| rest.ends_with('.'))
}

fn is_in(rule: &str, address: IpAddr) -> bool {
    let Some((net, length)) = rule.split_once('/') else {
        return rule.parse::<IpAddr>().is_ok_and(|rule| rule == address);
    };
    let (Ok(net), Ok(length)) = (net.parse::<IpAddr>(), length.parse::<u32>()) else { return false };
    match (net, address) {
        (IpAddr::V4(net), IpAddr::V4(address)) => {
            length <= 32 && (net.to_bits() ^ address.to_bits()).checked_shr(32 - length).unwrap_or(0) == 0
        }
        (IpAddr::V6(net), IpAddr::V6(address)) => {
            length <= 128 && (net.to_bits() ^ address.to_bits()).checked_shr(128 - length).unwrap_or(0) == 0
        }
        (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(none: &str) -> ProxySettings {
        ProxySettings::read(|name| match name {
            "https_proxy" => Some("http://user:pass@proxy.example:3128".to_owned()),
            "HTTP_PROXY" => Some("plain.example:80".to_owned()),
            "NO_PROXY" => Some(none.to_owned()),
            _ => None,
        })
    }

    fn host(settings: &ProxySettings, url: &str) -> Option<String> {
        settings.of_url(&Url::parse(url).unwrap()).unwrap().map(|proxy| proxy.host().to_owned())
    }

    #[test]
    fn the_scheme_chooses_the_proxy() {
        let settings = settings("");
        assert_eq!(host(&settings, "https://gitlab.example/x").as_deref(), Some("proxy.example"));
        assert_eq!(host(&settings, "http://gitlab.example/x").as_deref(), Some("plain.example"));
    }

    #[test]
    fn some_hosts_are_asked_directly() {
        for (none, url) in [
            ("", "https://localhost:1/"),
            ("", "http://127.3.4.5/"),
            ("", "http://[::1]/"),
            ("*", "https://gitlab.example/"),
            ("gitlab.example", "https://gitlab.example/"),
            (".example", "https://gitlab.example/"),
            ("a, example ,b", "https://gitlab.EXAMPLE/"),
            ("gitlab.example:443", "https://gitlab.example/"),
            ("10.0.0.0/8", "http://10.9.8.7/"),
            ("192.0.2.1", "http://192.0.2.1/"),
            ("2001:db8::/32", "http://[2001:db8::5]/"),
            ("0.0.0.0/0", "http://10.9.8.7/"),
        ] {
            assert_eq!(host(&settings(none), url), None, "{none} {url}");
        }
        for (none, url) in [
            ("lab.example", "https://gitlab.example/"),
            ("gitlab.example:8443", "https://gitlab.example/"),
            ("10.0.0.0/8", "http://11.0.0.1/"),
            ("10.0.0.0/99", "http://10.0.0.1/"),
        ] {
            assert!(host(&settings(none), url).is_some(), "{none} {url}");
        }
    }

    #[test]
    fn what_is_no_http_proxy_is_refused_without_showing_it() {
        let settings =
            ProxySettings { https: Some("socks5://user:secret@p".into()), ..ProxySettings::default() };
        let error = settings.of_url(&Url::parse("https://gitlab.example").unwrap()).unwrap_err();
        assert!(error.contains("HTTPS_PROXY") && !error.contains("secret"), "{error}");
    }
}
