//! `timber healthcheck`: the probe for an image that has no curl. One connection, one request, no
//! runtime.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use crate::config::{Config, parse_host_and_port, parse_ip};

/// Limit for the whole probe. The images grant it 3 s.
const TIMEOUT: Duration = Duration::from_secs(2);

/// Probes `url`, or `/healthz` of the service that `config` describes.
///
/// # Errors
/// Why the service is not healthy, in one line.
pub fn probe(config: &Config, url: Option<&str>) -> Result<String, String> {
    let (addresses, host, path) = match url {
        Some(url) => parse_url(url).ok_or_else(|| {
            let form = "http://ADDRESS[:PORT][/PATH], such as http://127.0.0.1:8000/healthz";
            format!("invalid URL {url:?}: expected {form}")
        })?,
        None => (own_addresses(config)?, "localhost", "/healthz"),
    };
    let deadline = Instant::now() + TIMEOUT;
    let mut failure = None;
    for address in addresses {
        let target = format!("http://{address}{path}");
        match request_status(address, host, path, deadline) {
            Ok(200) => return Ok(format!("{target} returned 200")),
            Ok(status) => return Err(format!("{target} returned {status}, expected 200")),
            Err(error) => _ = failure.get_or_insert(format!("{target}: {error}")),
        }
    }
    Err(failure.unwrap_or_default())
}

/// Returns where the service of `config` listens. One on every interface is probed at the loopback
/// addresses, IPv4 first because IPv6 may be off.
fn own_addresses(config: &Config) -> Result<Vec<SocketAddr>, String> {
    let host = config.host.as_deref().unwrap_or("0.0.0.0");
    let ip = parse_ip(host).ok_or_else(|| {
        format!("invalid host {host:?}: expected an IPv4 or IPv6 address, or localhost")
    })?;
    let loopback: [IpAddr; 2] = [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()];
    let ips = if ip.is_unspecified() {
        loopback.to_vec()
    } else {
        vec![ip]
    };
    let port = config.port();
    Ok(ips
        .into_iter()
        .map(|ip| SocketAddr::new(ip, port))
        .collect())
}

/// Returns the address, the host and the path of a URL.
fn parse_url(url: &str) -> Option<(Vec<SocketAddr>, &str, &str)> {
    let rest = url.strip_prefix("http://")?;
    if !rest.bytes().all(|byte| byte.is_ascii_graphic()) {
        return None;
    }
    let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    if authority.parse::<Ipv6Addr>().is_ok() {
        return None; // RFC 3986 section 3.2.2 demands brackets
    }
    let (host, port) = parse_host_and_port(authority)?;
    let address = SocketAddr::new(parse_ip(&host?)?, port.unwrap_or(80));
    let path = if path.is_empty() { "/" } else { path };
    Some((vec![address], authority, path))
}

/// Sends one GET request, and returns the status of its response.
fn request_status(
    address: SocketAddr,
    host: &str,
    path: &str,
    deadline: Instant,
) -> io::Result<u16> {
    let time_left = || match deadline.saturating_duration_since(Instant::now()) {
        Duration::ZERO => Err(io::Error::other(format!("no response within {TIMEOUT:?}"))),
        left => Ok(left),
    };
    let mut stream = TcpStream::connect_timeout(&address, time_left()?)?;
    stream.set_write_timeout(Some(time_left()?))?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes())?;

    // Only `HTTP/1.1 200` is read.
    let (mut status_line, mut length) = ([0; 12], 0);
    while length < status_line.len() {
        stream.set_read_timeout(Some(time_left()?))?;
        match stream.read(&mut status_line[length..]) {
            Ok(0) => break,
            Ok(read) => length += read,
            Err(error) if error.kind() == ErrorKind::WouldBlock => {} // out of time
            Err(error) => return Err(error),
        }
    }
    str::from_utf8(&status_line)
        .ok()
        .and_then(|text| text.strip_prefix("HTTP/1.")?.get(2..5)?.parse().ok())
        .ok_or_else(|| io::Error::other("the response is not HTTP"))
}
