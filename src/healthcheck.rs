//! `timber healthcheck`: the probe that a scratch image cannot get from curl. One connection, one request, no
//! runtime.

use std::{
    io::{self, Read, Write},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, ToSocketAddrs},
    time::{Duration, Instant},
};

use crate::config::Config;

/// For the whole probe: a service that takes longer is not healthy, and Docker's own limit is 3 s in the images.
const TIMEOUT: Duration = Duration::from_secs(2);

/// Probes `url`, or `/healthz` of the service that `config` describes.
///
/// # Errors
/// Why it is not healthy, in one line.
pub fn probe(config: &Config, url: Option<&str>) -> Result<String, String> {
    let target = match url {
        Some(url) => Target::parse(url)?,
        None => Target::of(config)?,
    };
    let deadline = Instant::now() + TIMEOUT;
    let mut failure = "no address to probe".to_owned();
    for address in &target.addresses {
        let name = format!("http://{address}{}", target.path);
        match status(*address, &target, deadline) {
            Ok(200) => return Ok(format!("{name} answered 200")),
            Ok(status) => return Err(format!("{name} answered {status}, expected 200")),
            Err(error) => failure = format!("{name}: {error}"),
        }
    }
    Err(failure)
}

struct Target {
    addresses: Vec<SocketAddr>,
    host: String,
    path: String,
}

impl Target {
    /// An address, never a name: what `localhost` means differs from image to image. A service on all
    /// interfaces is asked at the loopback ones, IPv4 first, for IPv6 may be off.
    fn of(config: &Config) -> Result<Self, String> {
        let port = config.port();
        let loopback = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];
        let addresses = match config.host.as_deref().map(|host| (host, host.parse::<IpAddr>())) {
            None => loopback.map(|ip| SocketAddr::new(ip, port)).to_vec(),
            Some((_, Ok(ip))) if ip.is_unspecified() => loopback.map(|ip| SocketAddr::new(ip, port)).to_vec(),
            Some((_, Ok(ip))) => vec![SocketAddr::new(ip, port)],
            Some((name, Err(_))) => resolve(&format!("{name}:{port}"))?,
        };
        Ok(Target { host: format!("localhost:{port}"), addresses, path: "/healthz".to_owned() })
    }

    fn parse(url: &str) -> Result<Self, String> {
        let form = || format!("{url:?}: expected http://HOST[:PORT][/PATH]");
        let rest = url.strip_prefix("http://").ok_or_else(form)?;
        let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        let plain =
            !authority.is_empty() && rest.bytes().all(|b| b.is_ascii_graphic()) && !authority.contains('@');
        let has_port = authority.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok());
        if !plain {
            return Err(form());
        }
        Ok(Target {
            addresses: resolve(&if has_port { authority.to_owned() } else { format!("{authority}:80") })?,
            host: authority.to_owned(),
            path: if path.is_empty() { "/".to_owned() } else { path.to_owned() },
        })
    }
}

fn resolve(authority: &str) -> Result<Vec<SocketAddr>, String> {
    Ok(authority.to_socket_addrs().map_err(|error| format!("{authority}: {error}"))?.collect())
}

fn status(address: SocketAddr, target: &Target, deadline: Instant) -> io::Result<u16> {
    let left = || match deadline.saturating_duration_since(Instant::now()) {
        Duration::ZERO => {
            Err(io::Error::new(io::ErrorKind::TimedOut, format!("no answer within {TIMEOUT:?}")))
        }
        left => Ok(left),
    };
    let mut stream = TcpStream::connect_timeout(&address, left()?)?;
    stream.set_write_timeout(Some(left()?))?;
    let Target { path, host, .. } = target;
    stream.write_all(
        format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: timber-healthcheck\r\nConnection: close\r\n\r\n")
            .as_bytes(),
    )?;

    // `HTTP/1.1 200` is all that is read of the answer.
    let mut answer = Vec::new();
    let mut part = [0; 12];
    while answer.len() < 12 {
        stream.set_read_timeout(Some(left()?))?;
        match stream.read(&mut part) {
            Ok(0) => break,
            Ok(n) => answer.extend_from_slice(&part[..n]),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => _ = left()?,
            Err(error) => return Err(error),
        }
    }
    str::from_utf8(&answer)
        .ok()
        .and_then(|text| text.strip_prefix("HTTP/1.")?.get(2..5)?.parse().ok())
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "the answer is not HTTP"))
}
