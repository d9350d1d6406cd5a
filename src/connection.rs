//! One connection's life: hyper serves it, it is parked while idle, and it lingers before it is
//! closed. The only file that names hyper's connection types.

use std::convert::Infallible;
use std::future::{self, poll_fn};
use std::mem::MaybeUninit;
use std::net::IpAddr;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::task::Poll;

use http_body_util::Full;
use hyper::body::{Body, Bytes, Incoming};
use hyper::header::{CONNECTION, HeaderValue};
use hyper::http::request::Parts;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use socket2::SockRef;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Duration, Instant};

use crate::admission::Admitted;
use crate::api::{self, ROUTES};
use crate::context::Context;
use crate::deadlines::{Deadlines, Verdict};
use crate::lifecycle::OpenGuard;
use crate::log::AccessEntry;
use crate::request::{self, MAX_HEAD};
use crate::response::{Failure, Response};
use crate::socket::{Socket, Traffic};

/// Time for the client to read the last response. What it still sends is discarded.
const LINGER: Duration = Duration::from_secs(2);

/// Serves a connection until it ends or misses a deadline.
///
/// After a quiet tick the connection is parked: hyper's state and buffers, 13.9 kB, are dropped,
/// and 1.25 kB remain for the socket and a timer. When the client sends something, hyper starts
/// anew.
pub async fn serve(
    context: &'static Context,
    mut stream: TcpStream,
    client: IpAddr,
    _admitted: Admitted,
    _open: OpenGuard,
) {
    let mut active = context.lifecycle.active_guard();
    // Responses are written whole, so waiting for a full packet only delays them. If this fails,
    // the connection is slower, but works.
    _ = stream.set_nodelay(true);
    // A new connection has the time of a head for its first byte.
    let mut deadline = Instant::now() + context.config.header_timeout;
    // Boxed, so that the memory is returned while the connection is parked.
    while let Some(parked) = Box::pin(serve_until_idle(context, stream, client, deadline)).await {
        drop(active);
        (stream, deadline) = (parked.stream, parked.deadline);
        let is_readable = wait_until_readable(context, &stream, deadline).await;
        if !is_readable && !has_unread(&stream) {
            return;
        }
        active = context.lifecycle.active_guard();
    }
}

/// Waits until the client sends something or closes. Returns false if `deadline` or the closing
/// phase comes first.
async fn wait_until_readable(context: &Context, stream: &TcpStream, deadline: Instant) -> bool {
    let mut deadline = pin!(context.timers.sleep_until(deadline));
    let mut closing = pin!(context.lifecycle.closing());
    // With `select!`, a parked connection would take 1,627 bytes instead of 1,252.
    poll_fn(|cx| {
        if stream.poll_read_ready(cx).is_ready() {
            return Poll::Ready(true);
        }
        let is_over = deadline.as_mut().poll(cx).is_ready()
            || closing.as_mut().poll(cx).is_ready()
            || context.lifecycle.is_closing();
        if is_over {
            Poll::Ready(false)
        } else {
            Poll::Pending
        }
    })
    .await
}

/// Returns true if a request has arrived on an idle connection that is about to be closed. Asks the
/// kernel, because tokio knows only what epoll has reported. If many connections close at once, the
/// last report is milliseconds old.
fn has_unread(stream: &TcpStream) -> bool {
    let peeked = SockRef::from(stream).peek(&mut [MaybeUninit::uninit()]);
    peeked.is_ok_and(|length| length > 0)
}

/// A connection that waits for its next request.
struct Parked {
    stream: TcpStream,
    /// When the next request has to begin.
    deadline: Instant,
}

/// Why hyper's part of a connection ends.
enum End {
    /// hyper has finished, or has failed to parse a head.
    Hyper(hyper::Result<()>),
    Check(Verdict),
}

/// Lets hyper serve the connection. Returns it once it is idle, or `None` once it is over. The
/// first request has to begin before `deadline`.
async fn serve_until_idle(
    context: &'static Context,
    mut stream: TcpStream,
    client: IpAddr,
    deadline: Instant,
) -> Option<Parked> {
    let connection = &Connection::new(context, client);
    let mut http = http1::Builder::new();
    // hyper would reset its own header timeout for each request; the checks below cost next to
    // nothing.
    http.header_read_timeout(None)
        .half_close(true)
        .max_buf_size(MAX_HEAD);
    let timer = pin!(context.timers.sleep_until(Instant::now()));
    let closing = pin!(context.lifecycle.closing());
    let mut deadlines = Deadlines::new(context, &connection.traffic, timer, closing).await;
    let mut unread = Bytes::new();
    let failure = loop {
        let socket = Socket {
            stream,
            unread,
            traffic: &connection.traffic,
        };
        let respond = |request| future::ready(Ok::<_, Infallible>(connection.respond(request)));
        let mut hyper = http.serve_connection(TokioIo::new(socket), service_fn(respond));
        let end = poll_fn(|cx| match Pin::new(&mut hyper).poll(cx) {
            Poll::Ready(result) => Poll::Ready(End::Hyper(result)),
            Poll::Pending => deadlines.poll(cx).map(End::Check),
        })
        .await;
        // hyper documents `into_parts` for finished connections, because others may have unsent
        // bytes. After `Verdict::Quiet` there are none: the socket has seen hyper flush the last
        // response. Tests and the pinned version of hyper guard this.
        let parts = hyper.into_parts();
        stream = parts.io.into_inner().stream;
        unread = parts.read_buf;
        match end {
            End::Hyper(Err(error)) if error.is_parse() && !connection.has_unread_body() => {
                break Some(request::explain(&error, &unread));
            }
            End::Hyper(_) => break None,
            End::Check(Verdict::WriteTimeout) => return None,
            End::Check(Verdict::Quiet) if unread.is_empty() && context.lifecycle.is_closing() => {
                if !has_unread(&stream) {
                    return None;
                }
            }
            End::Check(Verdict::Quiet) if unread.is_empty() => {
                let deadline = deadlines.next_request().unwrap_or(deadline);
                return Some(Parked { stream, deadline });
            }
            // Part of a head. The next hyper connection gets it back.
            End::Check(Verdict::Quiet) if !deadlines.is_head_overdue() => {}
            End::Check(Verdict::Quiet) => {
                let description = "The request head took too long";
                break Some(Failure(StatusCode::REQUEST_TIMEOUT, description));
            }
        }
    };
    connection.close(stream, &unread, failure).await;
    None
}

/// Discards what the client sends until it closes. A kernel that closes a socket with unread bytes
/// sends a reset, which can overtake the last response (RFC 9112 section 9.6).
async fn linger(context: &Context, mut stream: TcpStream) {
    let discard = async {
        _ = stream.shutdown().await;
        let mut discarded = [0; 4096];
        while stream
            .read(&mut discarded)
            .await
            .is_ok_and(|length| length > 0)
        {}
    };
    _ = context.timers.timeout(LINGER, discard).await;
}

/// What the requests of one connection have in common.
struct Connection {
    context: &'static Context,
    client: IpAddr,
    client_name: String,
    traffic: Traffic,
    /// The last request had a body, which is not read.
    has_unread_body: AtomicBool,
}

impl Connection {
    fn new(context: &'static Context, client: IpAddr) -> Self {
        Connection {
            context,
            client,
            client_name: client.to_string(),
            traffic: Traffic::new(context.metrics),
            has_unread_body: AtomicBool::new(false),
        }
    }

    fn has_unread_body(&self) -> bool {
        self.has_unread_body.load(Relaxed)
    }

    /// Responds to one request, counts it and logs it.
    fn respond(&self, request: Request<Incoming>) -> hyper::Response<Full<Bytes>> {
        let (context, started) = (self.context, std::time::Instant::now());
        self.traffic.start_request();
        let (mut head, body) = request.into_parts();
        let (route, response) = api::respond(context, &head, self.client);
        self.log(&head, route, &response);
        // No endpoint takes a body. To keep the connection, its end would have to be found, so the
        // connection closes after the response.
        let has_body = !body.is_end_stream();
        if has_body {
            self.has_unread_body.store(true, Relaxed);
        }
        // The response reuses the memory of the request's header map: nothing is allocated.
        head.headers.clear();
        for (name, value) in response.headers {
            head.headers.insert(name, value.clone());
        }
        if has_body || context.lifecycle.is_draining() {
            let close = HeaderValue::from_static("close");
            head.headers.insert(CONNECTION, close);
        }
        let (status, duration) = (response.status.as_u16(), started.elapsed());
        context.metrics.count_response(route, status, duration);
        let mut http = hyper::Response::new(Full::new(response.body));
        *http.status_mut() = response.status;
        *http.headers_mut() = head.headers;
        http
    }

    fn log(&self, head: &Parts, route: Option<usize>, response: &Response) {
        let is_probe = route.is_some_and(|route| ROUTES[route].is_probe);
        if !self.context.config.access_log.includes(is_probe) {
            return;
        }
        let is_head = head.method == Method::HEAD;
        self.context.log.access(&AccessEntry {
            client: &self.client_name,
            method: head.method.as_str(),
            target: &request::target(head),
            version: request::version(head),
            status: response.status.as_u16(),
            bytes: if is_head { 0 } else { response.body.len() },
        });
    }

    /// Closes the connection after its last response, or after refusing what hyper could not serve.
    async fn close(&self, stream: TcpStream, unread: &[u8], failure: Option<Failure>) {
        if let Some(failure) = failure {
            self.refuse(&stream, failure);
        } else if self.traffic.has_request_in_flight() {
            return; // the client has gone
        }
        let may_have_more =
            || !unread.is_empty() || stream.try_read(&mut [0]).is_ok_and(|length| length > 0);
        if failure.is_some() || self.has_unread_body() || may_have_more() {
            linger(self.context, stream).await;
        }
    }

    /// Sends an error response for what hyper cannot serve, and returns whether it was sent. If the
    /// send buffer is full, the client does not read: then the response is neither waited for nor
    /// counted.
    fn refuse(&self, stream: &TcpStream, failure: Failure) -> bool {
        let Context { metrics, log, .. } = self.context;
        let response = failure.to_http();
        let is_sent = matches!(stream.try_write(&response), Ok(length) if length == response.len());
        let Failure(status, description) = failure;
        let (client, unsent) = (&self.client_name, if is_sent { "" } else { " (not sent)" });
        log.info(&format!(
            "Refused {client}: {status}: {description}{unsent}"
        ));
        if is_sent {
            metrics.count_response(None, status.as_u16(), Duration::ZERO);
        }
        is_sent
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;
    use crate::config::Config;
    use crate::log::Log;
    use crate::metrics::Metrics;

    #[tokio::test]
    async fn refusal_that_does_not_fit_into_the_send_buffer_is_not_counted() {
        let metrics: &Metrics = Box::leak(Box::new(Metrics::new([].into_iter())));
        let log: &Log = Box::leak(Box::new(Log::new(false, false, metrics)));
        let context = Context::new(Config::default(), 0, metrics, log);
        let context: &Context = Box::leak(Box::new(context));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap());
        let (mut client, (server, peer)) = tokio::try_join!(client, listener.accept()).unwrap();
        let connection = Connection::new(context, peer.ip());
        let failure = Failure(StatusCode::BAD_REQUEST, "Malformed HTTP request (RFC 9112)");

        assert!(connection.refuse(&server, failure));
        assert_eq!(metrics.responses(), 1);
        let mut status_line = [0; 12];
        client.read_exact(&mut status_line).await.unwrap();
        assert_eq!(&status_line, b"HTTP/1.1 400");

        server.writable().await.unwrap();
        while server.try_write(&[0; 4096]).is_ok() {}
        assert!(!connection.refuse(&server, failure));
        assert_eq!(metrics.responses(), 1);
    }
}
