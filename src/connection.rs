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

/// How often a connection compares its deadlines: they are exact to this much or to a quarter of themselves.
const TICK: Duration = Duration::from_secs(1);

/// What a client may take its time with; the settings of the same names.
pub struct Timeouts {
    pub idle: Duration,
    pub header: Duration,
}

/// Serves one connection until it ends, is overdue, or has nothing to do when the server closes.
pub async fn serve(server: &'static Server, stream: TcpStream, client: IpAddr) {
    // Answers are written whole: waiting to fill a packet would only delay them. Failing that, they are late.
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
    let (mut seen, mut since) = (activity.load(), Instant::now());
    // Polled once, it wakes this task when the server closes; that it does is then read from the flag.
    let mut close = pin!(server.close.notified());
    close.as_mut().enable();
    poll_fn(|context| {
        // How a connection ends is the client's affair: it has had its answers, or hyper has told it off.
        if connection.as_mut().poll(context).is_ready() {
            return Poll::Ready(());
        }
        if server.closing.load(Relaxed) && activity.phase() == Phase::Waiting {
            return Poll::Ready(());
        }
        _ = close.as_mut().poll(context);
        while timer.as_mut().poll(context).is_ready() {
            let now = Instant::now();
            if seen != activity.load() {
                (seen, since) = (activity.load(), now);
            }
            let limit = match activity.phase() {
                Phase::Waiting if activity.is_new() => header,
                Phase::Waiting => idle,
                Phase::Head => header,
                Phase::Exchange => EXCHANGE_TIMEOUT,
            };
            if now - since >= limit {
                return Poll::Ready(());
            }
            timer.as_mut().reset(now + tick);
        }
        Poll::Pending
    })
    .await;
}

/// Answers one request, counts it and logs it.
fn exchange(
    server: &'static Server,
    activity: &Arc<Activity>,
    client: IpAddr,
    request: Request<Incoming>,
) -> Response<Full<Bytes>> {
    let started = std::time::Instant::now();
    activity.enter(Phase::Exchange);
    let (head, body) = request.into_parts();
    let (route, mut response) = api::answer(server.app, &head, client);

    let close = !body.is_end_stream() && !drain_body(activity, &head.headers, body);
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
fn drain_body(activity: &Arc<Activity>, headers: &HeaderMap, body: Incoming) -> bool {
    if headers.contains_key(header::EXPECT) {
        return false;
    }
    let keeps = body.size_hint().upper().is_some_and(|length| length <= MAX_BODY as u64);
    activity.body.store(true, Relaxed);
    let activity = Arc::clone(activity);
    tokio::spawn(async move {
        let mut body = Limited::new(body, MAX_BODY);
        let read = async { while let Some(Ok(_)) = body.frame().await {} };
        _ = timeout(EXCHANGE_TIMEOUT, read).await;
        activity.body.store(false, Relaxed);
        activity.leave();
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

/// Where a connection stands, told by what passes through its socket and its service. Written by one thread;
/// atomic because tasks have to be `Send`.
struct Activity {
    /// The phase in the low two bits; above them, how often it has changed.
    state: AtomicU32,
    /// A request's body is being read.
    body: AtomicBool,
    metrics: &'static Metrics,
}

impl Activity {
    fn new(metrics: &'static Metrics) -> Self {
        Activity { state: AtomicU32::new(0), body: AtomicBool::new(false), metrics }
    }

    fn load(&self) -> u32 {
        self.state.load(Relaxed)
    }

    fn phase(&self) -> Phase {
        match self.load() & 3 {
            0 => Phase::Waiting,
            1 => Phase::Head,
            _ => Phase::Exchange,
        }
    }

    /// Nothing has come in yet.
    fn is_new(&self) -> bool {
        self.load() == 0
    }

    fn enter(&self, phase: Phase) {
        if phase == Phase::Exchange {
            self.metrics.in_flight.fetch_add(1, Relaxed);
        } else if self.phase() == Phase::Exchange {
            self.metrics.in_flight.fetch_sub(1, Relaxed);
        }
        self.state.store((self.load() & !3).wrapping_add(4) | phase as u32, Relaxed);
    }

    /// The exchange is over when the answer is written and the body is read.
    fn leave(&self) {
        if self.phase() == Phase::Exchange && !self.body.load(Relaxed) {
            self.enter(Phase::Waiting);
        }
    }
}

impl Drop for Activity {
    fn drop(&mut self) {
        self.enter(Phase::Waiting);
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
        if buffer.filled().len() > before && self.activity.phase() == Phase::Waiting {
            self.activity.enter(Phase::Head);
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

    /// hyper flushes when it has handed over all that it had to write.
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context) -> Poll<io::Result<()>> {
        self.activity.leave();
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
