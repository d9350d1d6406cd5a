//! One connection: hyper at work on it, its deadlines, and each exchange. The only file that names hyper's
//! connection types.

use std::{
    convert::Infallible,
    future::{Future, poll_fn, ready},
    io,
    net::IpAddr,
    pin::{Pin, pin},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering::Relaxed},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use http_body_util::{BodyExt, Full, Limited};
use hyper::{
    HeaderMap, Request, Response,
    body::{Body, Bytes, Incoming},
    header::{self, HeaderValue},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    time::{Instant, sleep, timeout},
};

use crate::{api, metrics::Metrics, server::Server};

/// From the end of a request's head until its answer is with the kernel and its body is in. An answer takes
/// microseconds: what takes long is a client that does not read, or does not send what it has announced.
const EXCHANGE_TIMEOUT: Duration = Duration::from_secs(30);

/// Bytes of a request's body that are read and thrown away so that the connection can be kept. No route takes
/// a body; to close costs less than to read more.
const MAX_BODY: usize = 64 * 1024;

/// Bytes of a request's head, and of whatever is pipelined behind it, that are held at once: twice what the
/// original took.
const MAX_HEAD: usize = 16 * 1024;

/// Deadlines are checked this often, or four times in the shortest of them: they are late by that much at most.
const TICK: Duration = Duration::from_secs(1);

/// What a client may take its time with; the settings of the same names.
pub struct Timeouts {
    pub idle: Duration,
    pub header: Duration,
}

/// Serves one connection until it ends, is overdue, or has nothing to do when the server closes.
pub async fn serve(server: &'static Server, stream: TcpStream, client: IpAddr) {
    // Answers are written whole, so there is nothing to gain from waiting to fill a packet. Where this fails,
    // they are only slower.
    _ = stream.set_nodelay(true);
    let activity = Arc::new(Activity::new(server.app.metrics));
    let service =
        service_fn(|request| ready(Ok::<_, Infallible>(exchange(server, &activity, client, request))));
    let mut http = http1::Builder::new();
    // hyper's own timer is set anew for each request, which costs a sixth of its instructions; the deadlines
    // below cover what it covers, and more.
    http.header_read_timeout(None).half_close(true).max_buf_size(MAX_HEAD);
    let io = TokioIo::new(Watched { stream, activity: &activity });
    let mut connection = pin!(http.serve_connection(io, service));

    let Timeouts { idle, header } = server.timeouts;
    let tick = TICK.min(idle / 4).min(header / 4);
    let mut timer = pin!(sleep(tick));
    let (mut seen, mut since) = (activity.changes(), Instant::now());
    let mut close = pin!(server.close.notified());
    poll_fn(|context| {
        if let Poll::Ready(end) = connection.as_mut().poll(context) {
            return Poll::Ready(end.err());
        }
        // The call wakes this task once; what it says is then read from the flag.
        _ = close.as_mut().poll(context);
        let phase = activity.phase();
        if server.closing.load(Relaxed) && phase == Phase::Waiting {
            return Poll::Ready(None);
        }
        while timer.as_mut().poll(context).is_ready() {
            let now = Instant::now();
            if seen != activity.changes() {
                (seen, since) = (activity.changes(), now);
            }
            let limit = match phase {
                Phase::Waiting if seen > 0 => idle,
                Phase::Waiting | Phase::Head => header,
                Phase::Exchange => EXCHANGE_TIMEOUT,
            };
            if now - since >= limit {
                return Poll::Ready(None);
            }
            timer.as_mut().reset(now + tick);
        }
        Poll::Pending
    })
    .await
    .filter(hyper::Error::is_parse)
    .inspect(|error| refuse(server, client, error));
}

/// hyper has answered this one by itself, with an empty 400 or 431: it was no request.
fn refuse(server: &Server, client: IpAddr, error: &hyper::Error) {
    let status = if error.is_parse_too_large() { 431 } else { 400 };
    server.app.metrics.count(usize::MAX, status, Duration::ZERO);
    server.log.info(format_args!("Refused what {} sent with {status}: {error}", client.to_canonical()));
}

/// Answers one request, counts it and logs it.
fn exchange(
    server: &'static Server,
    activity: &Arc<Activity>,
    client: IpAddr,
    request: Request<Incoming>,
) -> Response<Full<Bytes>> {
    let started = std::time::Instant::now();
    activity.change(|| activity.unanswered.store(true, Relaxed));
    let (head, body) = request.into_parts();
    let (route, mut response) = api::answer(server.app, &head, client);

    let close = !body.is_end_stream() && !discard(activity, &head.headers, body);
    if close || server.app.draining.load(Relaxed) {
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    let metrics = server.app.metrics;
    metrics.count(route, response.status().as_u16(), started.elapsed());
    let is_probe = api::ROUTES.get(route).is_some_and(|route| route.is_probe);
    server.log.access(client, &head, &response, is_probe);
    response.map(Full::new)
}

/// Reads a request's body in the background, for its own sake: what is unread when a connection closes can cost
/// the client the answer. False if the connection cannot be kept: the body is too long, may be, or was offered
/// and is declined (RFC 9110 section 10.1.1: a final answer instead of 100 Continue).
fn discard(activity: &Arc<Activity>, headers: &HeaderMap, body: Incoming) -> bool {
    if headers.contains_key(header::EXPECT) {
        return false;
    }
    let keeps = body.size_hint().upper().is_some_and(|length| length <= MAX_BODY as u64);
    let activity = Arc::clone(activity);
    activity.change(|| activity.bodies.fetch_add(1, Relaxed));
    tokio::spawn(async move {
        let mut body = Limited::new(body, MAX_BODY);
        let read = async { while let Some(Ok(_)) = body.frame().await {} };
        _ = timeout(EXCHANGE_TIMEOUT, read).await;
        activity.change(|| {
            activity.bodies.fetch_sub(1, Relaxed);
            activity.tail.store(HEAD_END, Relaxed);
        });
    });
    keeps
}

/// What a connection is waiting for.
#[derive(Clone, Copy, PartialEq)]
enum Phase {
    /// The first byte of a request.
    Waiting,
    /// The rest of its head.
    Head,
    /// Its body, or the client's reading of the answer.
    Exchange,
}

const HEAD_END: u32 = u32::from_be_bytes(*b"\r\n\r\n");

/// Like hyper, takes a bare line feed for the end of a line.
fn is_head_end(tail: u32) -> bool {
    matches!(tail.to_be_bytes(), [.., b'\n', b'\n'] | [.., b'\n', b'\r', b'\n'])
}

/// What passes through a connection's socket and service, and what that makes it wait for. One thread writes;
/// these are atomic because a task has to be `Send`.
struct Activity {
    /// A request has come whose answer is not yet with the kernel.
    unanswered: AtomicBool,
    /// Bodies that are being read.
    bodies: AtomicU32,
    /// The last bytes read: unless they end a head, the rest of one is to come. (What hyper has left over
    /// of them it does not tell.)
    tail: AtomicU32,
    /// How often the phase has changed.
    changes: AtomicU32,
    metrics: &'static Metrics,
}

impl Activity {
    fn new(metrics: &'static Metrics) -> Self {
        Activity {
            unanswered: AtomicBool::new(false),
            bodies: AtomicU32::new(0),
            tail: AtomicU32::new(HEAD_END),
            changes: AtomicU32::new(0),
            metrics,
        }
    }

    fn phase(&self) -> Phase {
        if self.unanswered.load(Relaxed) || self.bodies.load(Relaxed) > 0 {
            Phase::Exchange
        } else if is_head_end(self.tail.load(Relaxed)) {
            Phase::Waiting
        } else {
            Phase::Head
        }
    }

    fn changes(&self) -> u32 {
        self.changes.load(Relaxed)
    }

    fn change<T>(&self, change: impl FnOnce() -> T) {
        let before = self.phase();
        change();
        match (before, self.phase()) {
            (before, after) if before == after => return,
            (_, Phase::Exchange) => _ = self.metrics.in_flight.fetch_add(1, Relaxed),
            (Phase::Exchange, _) => _ = self.metrics.in_flight.fetch_sub(1, Relaxed),
            _ => {}
        }
        self.changes.store(self.changes().saturating_add(1), Relaxed);
    }
}

impl Drop for Activity {
    fn drop(&mut self) {
        if self.phase() == Phase::Exchange {
            self.metrics.in_flight.fetch_sub(1, Relaxed);
        }
    }
}

/// A socket that tells what passes through it.
struct Watched<'a> {
    stream: TcpStream,
    activity: &'a Activity,
}

impl AsyncRead for Watched<'_> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context,
        buffer: &mut ReadBuf,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(context, buffer))?;
        let read = &buffer.filled()[before..];
        if !read.is_empty() {
            let tail = &self.activity.tail;
            let last = read.iter().skip(read.len().saturating_sub(4));
            let shifted = last.fold(tail.load(Relaxed), |tail, byte| tail << 8 | u32::from(*byte));
            self.activity.change(|| tail.store(shifted, Relaxed));
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Watched<'_> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context,
        parts: &[io::IoSlice],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, parts)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    /// hyper flushes when it has handed over all that it had to write. The socket itself buffers nothing.
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context) -> Poll<io::Result<()>> {
        self.activity.change(|| self.activity.unanswered.store(false, Relaxed));
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
