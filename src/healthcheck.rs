//! `timber healthcheck`: the probe that a scratch image cannot get from curl. One connection, one request, no
//! runtime.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use crate::{config, config::Config, server::address};

/// For the whole probe: a service that takes longer is not healthy, and Docker's own limit is 3 s in the images.
const TIMEOUT: Duration = Duration::from_secs(2);

/// Probes `url`, or `/healthz` of the service that `config` describes.
///
/// # Errors
/// Why it is not healthy, in one line.
pub fn probe(config: &Config, url: Option<&str>) -> Result<String, String> {
    let (addresses, host, path) = match url {
        Some(url) => parse(url).ok_or_else(|| {
            format!("{url:?}: expected http://ADDRESS[:PORT][/PATH], the address may be localhost")
        })?,
        None => (own_addresses(config)?, "localhost", "/healthz"),
    };
    let deadline = Instant::now() + TIMEOUT;
    let mut failure = None;
    for address in addresses {
        let name = format!("http://{address}{path}");
        match status(address, host, path, deadline) {
            Ok(200) => return Ok(format!("{name} answered 200")),
            Ok(status) => return Err(format!("{name} answered {status}, expected 200")),
            Err(error) => _ = failure.get_or_insert(format!("{name}: {error}")),
        }
    }
    Err(failure.unwrap_or_default())
}

/// A service on all interfaces is asked at the loopback ones, IPv4 first: IPv6 may be off.
fn own_addresses(config: &Config) -> Result<Vec<SocketAddr>, String> {
    let host = config.host.as_deref().unwrap_or("0.0.0.0");
    let ip = address(host).ok_or_else(|| format!("{host:?}: expected an address, or localhost"))?;
    let loopback = [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()];
    let ips = if ip.is_unspecified() {
        loopback.to_vec()
    } else {
        vec![ip]
    };
    Ok(ips
        .into_iter()
        .map(|ip| SocketAddr::new(ip, config.port()))
        .collect())
}

/// The address, host and path of a URL.
fn parse(url: &str) -> Option<(Vec<SocketAddr>, &str, &str)> {
    let rest = url
        .strip_prefix("http://")
        .filter(|rest| rest.bytes().all(|b| b.is_ascii_graphic()))?;
    let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    let is_bare = authority.parse::<Ipv6Addr>().is_ok(); // RFC 3986 section 3.2.2 demands brackets
    let (host, port) = config::host_and_port(authority).filter(|_| !is_bare)?;
    let address = SocketAddr::new(address(&host?)?, port.unwrap_or(80));
    Some((
        vec![address],
        authority,
        if path.is_empty() { "/" } else { path },
    ))
}

fn status(address: SocketAddr, host: &str, path: &str, deadline: Instant) -> io::Result<u16> {
    let left = || match deadline.saturating_duration_since(Instant::now()) {
        Duration::ZERO => Err(io::Error::other(format!("no answer within {TIMEOUT:?}"))),
        left => Ok(left),
    };
    let mut stream = TcpStream::connect_timeout(&address, left()?)?;
    stream.set_write_timeout(Some(left()?))?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes())?;

    // `HTTP/1.1 200` is all that is read of the answer.
    let (mut answer, mut length) = ([0; 12], 0);
    while length < answer.len() {
        stream.set_read_timeout(Some(left()?))?;
        match stream.read(&mut answer[length..]) {
            Ok(0) => break,
            Ok(n) => length += n,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {} // out of time
            Err(error) => return Err(error),
        }
    }
    let status = str::from_utf8(&answer)
        .ok()
        .and_then(|text| text.strip_prefix("HTTP/1.")?.get(2..5)?.parse().ok());
    status.ok_or_else(|| io::Error::other("the answer is not HTTP"))
}
