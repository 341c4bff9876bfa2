//! Looks names up as the host does, by its own `getent`.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::process::{Command, Stdio};

use ureq::Error;
use ureq::config::Config;
use ureq::http::Uri;
use ureq::unversioned::resolver::{ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::NextTimeout;

/// Most addresses of a name that are tried; the client has room for so many.
const MOST: usize = 16;

/// Asks the host.
#[derive(Debug)]
pub struct HostResolver;

impl Resolver for HostResolver {
    fn resolve(&self, uri: &Uri, _: &Config, _: NextTimeout) -> Result<ResolvedSocketAddrs, Error> {
        let host = uri.host().ok_or(Error::HostNotFound)?;
        let default = if uri.scheme_str() == Some("https") { 443 } else { 80 };
        let port = uri.port_u16().unwrap_or(default);
        let mut found = self.empty();
        for address in addresses(host)?.into_iter().take(MOST) {
            found.push(SocketAddr::new(address, port));
        }
        if found.is_empty() { Err(Error::HostNotFound) } else { Ok(found) }
    }
}

fn addresses(host: &str) -> Result<Vec<IpAddr>, Error> {
    if let Ok(address) = host.trim_start_matches('[').trim_end_matches(']').parse() {
        return Ok(vec![address]);
    }
    // A name that begins with a dash would be an option.
    if host.starts_with('-') {
        return Err(Error::HostNotFound);
    }
    let asked = Command::new("getent").args(["ahosts", host]).stdin(Stdio::null()).output();
    let said = asked.map_err(|error| {
        let text = format!("getent, which looks names up, cannot be started: {error}");
        Error::Io(io::Error::new(error.kind(), text))
    })?;
    Ok(read(&String::from_utf8_lossy(&said.stdout)))
}

/// The addresses in what `getent ahosts` prints, each once.
fn read(text: &str) -> Vec<IpAddr> {
    let mut found = Vec::new();
    for address in text.lines().filter_map(|line| line.split_whitespace().next()?.parse().ok()) {
        if !found.contains(&address) {
            found.push(address);
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_address_is_tried_once_in_the_hosts_order() {
        let text = "2001:db8::1     STREAM gitlab.example\n2001:db8::1     DGRAM  \n192.0.2.7  STREAM\n";
        assert_eq!(read(text), ["2001:db8::1".parse::<IpAddr>().unwrap(), "192.0.2.7".parse().unwrap()]);
    }

    #[test]
    fn numbers_need_no_looking_up_and_options_are_no_names() {
        assert_eq!(addresses("127.0.0.1").unwrap(), ["127.0.0.1".parse::<IpAddr>().unwrap()]);
        assert_eq!(addresses("[::1]").unwrap(), ["::1".parse::<IpAddr>().unwrap()]);
        assert!(matches!(addresses("-s"), Err(Error::HostNotFound)));
        assert!(!addresses("localhost").unwrap().is_empty());
    }
}
