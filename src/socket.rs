//! The I/O object for hyper: a connection's socket that first replays bytes which an earlier hyper
//! connection left unread, and that notices when all responses are flushed.

use std::io::{self, ErrorKind};
use std::pin::Pin;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::task::{self, Poll, ready};

use hyper::body::Bytes;
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::TcpStream;

use crate::metrics::Metrics;

/// Linux's flag for the end of a record. The kernel would otherwise append each response to the one
/// that waits before it, and compare the queue with the size of the send buffer only once in 64 KiB.
const MSG_EOR: i32 = if cfg!(target_os = "linux") { 0x80 } else { 0 };

/// Counts the requests of one connection. Only one thread uses it; its counters are atomic because
/// a task has to be `Send`.
pub struct Traffic {
    metrics: &'static Metrics,
    requests: AtomicU32,
    /// Requests whose responses are not yet handed to the kernel.
    in_flight: AtomicU32,
    /// Number of writes of which the kernel has taken at least a part.
    writes: AtomicU32,
}

impl Traffic {
    pub fn new(metrics: &'static Metrics) -> Self {
        Traffic {
            metrics,
            requests: AtomicU32::new(0),
            in_flight: AtomicU32::new(0),
            writes: AtomicU32::new(0),
        }
    }

    /// Counts a request whose head has been read.
    pub fn start_request(&self) {
        self.requests.fetch_add(1, Relaxed);
        self.in_flight.fetch_add(1, Relaxed);
        self.metrics.in_flight.fetch_add(1, Relaxed);
    }

    fn finish_requests(&self) {
        let finished = self.in_flight.swap(0, Relaxed);
        self.metrics.in_flight.fetch_sub(finished.into(), Relaxed);
    }

    /// Number of requests so far.
    pub fn requests(&self) -> u32 {
        self.requests.load(Relaxed)
    }

    /// Counts a write of which the kernel has taken at least a part.
    pub fn count_write(&self) {
        self.writes.fetch_add(1, Relaxed);
    }

    /// Number of writes. While it grows, the client reads.
    pub fn writes(&self) -> u32 {
        self.writes.load(Relaxed)
    }

    /// Returns true while a response, or a part of one, is not yet with the kernel.
    pub fn has_request_in_flight(&self) -> bool {
        self.in_flight.load(Relaxed) > 0
    }
}

impl Drop for Traffic {
    fn drop(&mut self) {
        self.finish_requests();
    }
}

/// A connection's socket while hyper serves it.
pub struct Socket<'a> {
    pub stream: TcpStream,
    /// Bytes that an earlier hyper connection had read but not used.
    pub unread: Bytes,
    pub traffic: &'a Traffic,
}

impl AsyncRead for Socket<'_> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut task::Context,
        buffer: &mut ReadBuf,
    ) -> Poll<io::Result<()>> {
        if self.unread.is_empty() {
            return Pin::new(&mut self.stream).poll_read(cx, buffer);
        }
        let length = self.unread.len().min(buffer.remaining());
        buffer.put_slice(&self.unread.split_to(length));
        if self.unread.is_empty() {
            self.unread = Bytes::new(); // returns the memory
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Socket<'_> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut task::Context,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        if !self.traffic.has_request_in_flight() {
            // hyper's own refusal of a malformed request, which has no body. `connection` sends
            // another with a body.
            return Poll::Ready(Ok(bytes.len()));
        }
        loop {
            ready!(self.stream.poll_write_ready(cx))?;
            let send = || SockRef::from(&self.stream).send_with_flags(bytes, MSG_EOR);
            match self.stream.try_io(Interest::WRITABLE, send) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                result => {
                    if result.is_ok() {
                        self.traffic.count_write();
                    }
                    return Poll::Ready(result);
                }
            }
        }
    }

    /// Called after hyper has written all of its output. The socket itself buffers nothing.
    fn poll_flush(self: Pin<&mut Self>, _: &mut task::Context) -> Poll<io::Result<()>> {
        self.traffic.finish_requests();
        Poll::Ready(Ok(()))
    }

    /// hyper calls this last. `connection` decides how the socket is closed.
    fn poll_shutdown(self: Pin<&mut Self>, _: &mut task::Context) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
