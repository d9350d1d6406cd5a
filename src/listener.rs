//! The listening socket: its address, its options, and how a shutdown empties it.

use std::collections::VecDeque;
use std::io::{self, ErrorKind};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};

use tokio::net::TcpSocket;

use crate::config::{Config, parse_ip};

/// Maximum number of connections that wait to be accepted. Linux caps it at `net.core.somaxconn`,
/// by default 4096.
const BACKLOG: u32 = 4096;

/// Size of a connection's send buffer and of its receive buffer in the kernel, in bytes. Linux
/// doubles it, to have room for its own data. By default both grow to megabytes if the client
/// does not read, which no limit of connections could bound.
const SOCKET_BUFFER: u32 = 8 * 1024;

/// Linux's EAFNOSUPPORT, "address family not supported": IPv6 is switched off.
const EAFNOSUPPORT: i32 = 97;

/// Binds the configured address. Without a host that is every interface: IPv6 and IPv4 (unless
/// `net.ipv6.bindv6only` separates them), or IPv4 alone where IPv6 is off.
///
/// # Errors
/// A one-line message that says why the address cannot be bound.
pub fn bind(config: &Config) -> Result<TcpListener, String> {
    let host = config.host.as_deref().unwrap_or("::");
    let ip = parse_ip(host).ok_or_else(|| {
        format!("cannot listen on {host:?}: expected an IPv4 or IPv6 address, or localhost")
    })?;
    let mut address = SocketAddr::new(ip, config.port());
    let mut result = bind_address(address);
    if config.host.is_none() && result.as_ref().is_err_and(is_ipv6_off) {
        address.set_ip(Ipv4Addr::UNSPECIFIED.into());
        result = bind_address(address);
    }
    result.map_err(|error| {
        let remedy = match error.kind() {
            ErrorKind::AddrInUse => {
                "; another process is listening there: choose another port with --bind or PORT"
            }
            ErrorKind::PermissionDenied => {
                "; ports below 1024 need privileges: choose a higher port with --bind or PORT"
            }
            ErrorKind::AddrNotAvailable => {
                "; no interface of this host has that address: choose another one with --bind"
            }
            _ => "",
        };
        format!("cannot listen on {address}: {error}{remedy}")
    })
}

fn bind_address(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv6() {
        TcpSocket::new_v6()
    } else {
        TcpSocket::new_v4()
    }?;
    // Connections of an earlier process in TIME_WAIT do not hold the port.
    socket.set_reuseaddr(true)?;
    // Accepted connections inherit the following. Responses are written whole, so Nagle's algorithm
    // would only delay them.
    socket.set_nodelay(true)?;
    socket.set_send_buffer_size(SOCKET_BUFFER)?;
    socket.set_recv_buffer_size(SOCKET_BUFFER)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)?.into_std()
}

fn is_ipv6_off(error: &io::Error) -> bool {
    error.kind() == ErrorKind::AddrNotAvailable || error.raw_os_error() == Some(EAFNOSUPPORT)
}

/// Returns true if accept failed because the client has disconnected. The next accept may succeed.
pub fn is_client_gone(error: &io::Error) -> bool {
    use ErrorKind::{ConnectionAborted, ConnectionReset, Interrupted};
    matches!(
        error.kind(),
        ConnectionAborted | ConnectionReset | Interrupted
    )
}

/// Drops the first segment of new handshakes. The client retransmits it a second later, and the
/// closed port refuses it.
#[cfg(target_os = "linux")]
pub fn decline_handshakes(listener: &TcpListener) {
    use socket2::{SockFilter, SockRef};
    // Classic BPF, run for each segment that arrives for the listener. If the kernel refuses it, a
    // handshake that completes before the port closes is reset: a gap of microseconds.
    _ = SockRef::from(listener).attach_filter(&[
        SockFilter::new(0x30, 0, 0, 13), // load the TCP header's byte of flags
        SockFilter::new(0x54, 0, 0, 0x12), // keep SYN and ACK
        SockFilter::new(0x15, 0, 1, 0x02), // SYN alone?
        SockFilter::new(0x06, 0, 0, 0),  // yes: drop the segment
        SockFilter::new(0x06, 0, 0, u32::MAX), // no: take all of it
    ]);
}

/// Other systems have no such filter.
#[cfg(not(target_os = "linux"))]
pub fn decline_handshakes(_: &TcpListener) {}

/// Appends the connections in the backlog to `connections`. `listener` must not block.
///
/// # Errors
/// Why not all of them could be accepted.
pub fn empty_backlog(
    listener: &TcpListener,
    connections: &mut VecDeque<(TcpStream, SocketAddr)>,
) -> io::Result<()> {
    loop {
        match listener.accept() {
            Ok((stream, peer)) => {
                stream.set_nonblocking(true)?;
                connections.push_back((stream, peer));
            }
            Err(error) if is_client_gone(&error) => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
            Err(error) => return Err(error),
        }
    }
}
