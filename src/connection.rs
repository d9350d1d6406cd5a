//! One connection: hyper at work on it, its deadlines, and each exchange. The only file that names hyper's
//! connection types.

use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::Relaxed};
use std::task::{Context, Poll};
use std::{convert::Infallible, future, future::poll_fn, io, io::ErrorKind, mem, net::IpAddr};

use http_body_util::Full;
use hyper::body::{Body, Bytes, Incoming};
use hyper::header::{CONNECTION, HeaderValue};
use hyper::{Request, Response, StatusCode, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Duration, Instant, Sleep};
use tokio::{net::TcpStream, sync::watch::Receiver};

use crate::server::{Server, is_first};
use crate::{api, api::Failure, config::Config};

/// Bytes of a request's head, and of whatever is pipelined behind it, that are held at once: twice what the
/// original took.
const MAX_HEAD: usize = 16 * 1024;

/// How often a connection in hyper's hands is looked at: its deadlines are wrong by that much at most. After as long
/// without a request it is parked.
const TICK: Duration = Duration::from_secs(1);

/// For a client to read the last answer; what it sends meanwhile is thrown away.
const LINGER: Duration = Duration::from_secs(2);

/// Stands for what was no request, so that hyper words the refusal like any other answer.
const REFUSED: &[u8] = b"GET / HTTP/1.1\r\nhost:\r\nconnection: close\r\n\r\n";

/// Serves one connection until it ends or is overdue. While it is parked it does not count as busy, and all that
/// is left of it are the socket and a timer, and none of hyper's buffers.
pub async fn serve(
    server: &'static Server,
    mut stream: TcpStream,
    client: IpAddr,
    mut busy: Receiver<()>,
) {
    // Answers are written whole, so there is nothing to gain from waiting to fill a packet. Where this fails,
    // they are only slower.
    _ = stream.set_nodelay(true);
    let mut until = Instant::now() + server.config.header_timeout;
    while let Some(parked) = Box::pin(talk(server, stream, client, until)).await {
        drop(busy);
        (stream, until) = parked;
        let timer = pin!(server.sleep_until(until));
        if !is_first(poll_fn(|cx| stream.poll_read_ready(cx)), timer).await {
            return;
        }
        busy = server.busy.subscribe();
    }
}

/// The socket of a connection that is parked, and until when a request has to begin.
type Parked = (TcpStream, Instant);

/// Lets hyper serve the connection until that is over, or nothing has come for a while and it can be parked. The time
/// for a request to begin is put off by requests alone; before the first it is `until`.
async fn talk(
    server: &'static Server,
    stream: TcpStream,
    client: IpAddr,
    until: Instant,
) -> Option<Parked> {
    let Config {
        idle_timeout,
        header_timeout,
        write_timeout,
        ..
    } = server.config;
    let (requests, unanswered, is_last) = Default::default();
    let activity = &Activity {
        server,
        client,
        client_name: client.to_string(),
        requests,
        unanswered,
        is_last,
    };
    let tick = (idle_timeout.min(header_timeout).min(write_timeout) / 4).min(TICK);
    let mut timer = pin!(server.sleep_until(Instant::now() + tick));
    let mut close = pin!(server.close.notified());
    // Polled once, they wake the task: to poll them at every request would cost.
    _ = poll_fn(|cx| Poll::Ready((timer.as_mut().poll(cx), close.as_mut().poll(cx)))).await;
    let (unread, is_closing, is_quiet, requests, since) =
        (Bytes::new(), false, false, 0, Instant::now());
    let mut socket = Socket {
        stream,
        unread,
        activity,
        tick,
        timer,
        is_closing,
        is_quiet,
        requests,
        since,
    };
    let mut http = http1::Builder::new();
    // hyper's own timer would be set anew for each request; the deadlines of `Socket` cost next to nothing.
    http.header_read_timeout(None)
        .half_close(true)
        .max_buf_size(MAX_HEAD);

    let mut refusal = None;
    loop {
        let answer =
            |request| future::ready(Ok::<_, Infallible>(activity.exchange(refusal, request)));
        let mut hyper = http.serve_connection(TokioIo::new(socket), service_fn(answer));
        let end = (&mut hyper).await;
        let parts = hyper.into_parts();
        socket = parts.io.into_inner();
        socket.unread = parts.read_buf;
        let failure = match end {
            _ if mem::take(&mut socket.is_quiet) => {
                if socket.unread.is_empty() {
                    let until = if socket.requests > 0 {
                        socket.since + idle_timeout
                    } else {
                        until
                    };
                    return (!socket.is_closing).then_some((socket.stream, until));
                }
                if socket.since.elapsed() < header_timeout {
                    continue;
                }
                Failure(
                    StatusCode::REQUEST_TIMEOUT,
                    "The head of the request took too long",
                )
            }
            Err(error) if error.is_parse() && !activity.is_last.load(Relaxed) => {
                explain(&error, &socket.unread)
            }
            _ => break,
        };
        server.log.info(&format!(
            "Refused {}: {}: {}",
            activity.client_name, failure.0, failure.1
        ));
        (refusal, socket.unread) = (Some(failure), Bytes::from_static(REFUSED));
    }
    let Socket { stream, unread, .. } = socket;
    // Nobody will answer what is pipelined behind the last request, but it is no reason to lose the last answer.
    let has_more =
        || !unread.is_empty() || stream.try_read(&mut [0]).is_ok_and(|length| length > 0);
    if !activity.is_answering() && (activity.is_last.load(Relaxed) || has_more()) {
        linger(stream, server.sleep_until(Instant::now() + LINGER)).await;
    }
    None
}

/// Why hyper took this for no request. A head that it could not use is still `unread`.
fn explain(error: &hyper::Error, unread: &[u8]) -> Failure {
    let mut lines = unread
        .split(|byte| *byte == b'\n')
        .map(<[u8]>::trim_ascii_end);
    let line = lines.find(|line| !line.is_empty()).unwrap_or_default();
    let version = line.rsplit(|byte| *byte == b' ').next().unwrap_or_default();
    if let [
        b'H',
        b'T',
        b'T',
        b'P',
        b'/',
        major @ b'0'..=b'9',
        b'.',
        minor @ b'0'..=b'9',
    ] = version
        && !matches!((major, minor), (b'1', b'0' | b'1'))
    {
        return Failure(
            StatusCode::HTTP_VERSION_NOT_SUPPORTED,
            "This server speaks HTTP/1.1 and HTTP/1.0",
        );
    }
    let more_lines = lines.count();
    // hyper also calls a Content-Length too large that is near the end of 64 bits.
    if !error.is_parse_too_large() || unread.len() < MAX_HEAD && more_lines <= 100 {
        Failure(
            StatusCode::BAD_REQUEST,
            "What came is no HTTP request (RFC 9112)",
        )
    } else if more_lines > 0 {
        Failure(
            StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            "The head takes more than 16 KiB or 100 fields",
        )
    } else {
        Failure(
            StatusCode::URI_TOO_LONG,
            "The target takes more than 16 KiB",
        )
    }
}

/// Lets the client read the answer before the connection is closed: the reset that the kernel sends for what it
/// then has not read can overtake it (RFC 9112 section 9.6).
async fn linger(mut stream: TcpStream, limit: Sleep) {
    let mut waste = [0; 4096];
    let rest = async {
        _ = poll_fn(|cx| Pin::new(&mut stream).poll_shutdown(cx)).await;
        let mut read = |cx: &mut Context| {
            let mut buffer = ReadBuf::new(&mut waste);
            Pin::new(&mut stream)
                .poll_read(cx, &mut buffer)
                .map_ok(|()| buffer.filled().len())
        };
        while poll_fn(&mut read).await.is_ok_and(|length| length > 0) {}
    };
    is_first(rest, limit).await;
}

/// What passes through a connection's socket and service. One thread uses it; these are atomic because a task has
/// to be `Send`.
struct Activity {
    server: &'static Server,
    client: IpAddr,
    client_name: String,
    /// Requests so far.
    requests: AtomicU32,
    /// Requests whose answers are not yet with the kernel.
    unanswered: AtomicU32,
    /// This request is the last, and the client may still send.
    is_last: AtomicBool,
}

impl Activity {
    /// Answers one request, counts it and logs it.
    fn exchange(
        &self,
        refusal: Option<Failure>,
        request: Request<Incoming>,
    ) -> Response<Full<Bytes>> {
        let (server, started) = (self.server, std::time::Instant::now());
        self.begin();
        let (mut head, body) = request.into_parts();
        let (route, answer) = match refusal {
            Some(failure) => (None, failure.into()),
            None => api::answer(server.app, &head, self.client),
        };
        // No route takes a body. What comes of it is thrown away when the answer is sent; to keep the connection, its
        // end would have to be found.
        let has_body = !body.is_end_stream();
        if has_body || refusal.is_some() {
            self.is_last.store(true, Relaxed);
        }
        if refusal.is_none() {
            let is_probe = route.is_some_and(|route| api::ROUTES[route].is_probe);
            server
                .log
                .access(&self.client_name, &head, &answer, is_probe);
        }
        // The map of the request is memory enough for the answer's.
        head.headers.clear();
        for (name, value) in answer.headers {
            head.headers.insert(name, value.clone());
        }
        if has_body || server.app.draining.load(Relaxed) {
            head.headers
                .insert(CONNECTION, HeaderValue::from_static("close"));
        }
        let mut response = Response::new(Full::new(answer.body));
        *response.status_mut() = answer.status;
        *response.headers_mut() = head.headers;
        server
            .app
            .metrics
            .count(route, answer.status.as_u16(), started.elapsed());
        response
    }

    fn begin(&self) {
        self.requests.fetch_add(1, Relaxed);
        self.unanswered.fetch_add(1, Relaxed);
        self.server.app.metrics.in_flight.fetch_add(1, Relaxed);
    }

    fn end(&self) {
        let answered = self.unanswered.swap(0, Relaxed);
        self.server
            .app
            .metrics
            .in_flight
            .fetch_sub(answered.into(), Relaxed);
    }

    fn is_answering(&self) -> bool {
        self.unanswered.load(Relaxed) > 0
    }
}

impl Drop for Activity {
    fn drop(&mut self) {
        self.end();
    }
}

/// A connection's socket, which keeps to the deadlines while it is in hyper's hands.
///
/// What has come only hyper knows: half a request may be in its buffer. So after a quiet tick the socket, where
/// there is nothing to read, pretends to have ended. hyper then gives it back with what it could not use.
struct Socket<'a> {
    stream: TcpStream,
    /// What an earlier hyper had read and not used.
    unread: Bytes,
    activity: &'a Activity,
    tick: Duration,
    timer: Pin<&'a mut Sleep>,
    /// The server's closing has been seen.
    is_closing: bool,
    /// It has pretended to have ended.
    is_quiet: bool,
    /// How many there were at the last look, and since when.
    requests: u32,
    since: Instant,
}

impl Socket<'_> {
    /// To be called where hyper would have to wait for the socket. What is ready instead of that is what the socket
    /// ends with: an error when the client does not take its answer, and no bytes when it has none to take.
    fn look(&mut self, cx: &mut Context) -> Poll<io::Result<()>> {
        let server = self.activity.server;
        let is_due = self.timer.is_elapsed();
        if is_due {
            self.timer.as_mut().reset(Instant::now() + self.tick);
            _ = self.timer.as_mut().poll(cx);
        }
        let is_told = server.closing.load(Relaxed) && !self.is_closing;
        if !is_due && !is_told {
            return Poll::Pending;
        }
        self.is_closing |= is_told;

        let requests = self.activity.requests.load(Relaxed);
        let is_active = requests != self.requests;
        if is_active {
            (self.requests, self.since) = (requests, Instant::now());
        }
        if self.activity.is_answering() {
            let is_overdue = self.since.elapsed() >= server.config.write_timeout;
            return if is_overdue {
                Poll::Ready(Err(ErrorKind::TimedOut.into()))
            } else {
                Poll::Pending
            };
        }
        if is_active && !is_told {
            return Poll::Pending;
        }
        self.is_quiet = true;
        Poll::Ready(Ok(()))
    }
}

impl AsyncRead for Socket<'_> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context,
        buffer: &mut ReadBuf,
    ) -> Poll<io::Result<()>> {
        if !self.unread.is_empty() {
            let length = self.unread.len().min(buffer.remaining());
            buffer.put_slice(&self.unread.split_to(length));
            return Poll::Ready(Ok(()));
        }
        let read = Pin::new(&mut self.stream).poll_read(cx, buffer);
        if read.is_pending() {
            self.look(cx)
        } else {
            read
        }
    }
}

impl AsyncWrite for Socket<'_> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        if !self.activity.is_answering() {
            return Poll::Ready(Ok(bytes.len())); // hyper's own refusal, which has no body: ours follows
        }
        let written = Pin::new(&mut self.stream).poll_write(cx, bytes);
        // With an answer under way, only an error can come of it.
        if written.is_pending() {
            self.look(cx).map_ok(|()| 0)
        } else {
            written
        }
    }

    /// hyper flushes when it has handed over all that it had to write. The socket itself buffers nothing.
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context) -> Poll<io::Result<()>> {
        self.activity.end();
        Poll::Ready(Ok(()))
    }

    /// hyper does this last, when all it had to write is written. What becomes of the socket is not its concern.
    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
