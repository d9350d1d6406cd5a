//! One connection's life: hyper serves it, it is parked while idle, and it lingers before it is
//! closed. The only file that names hyper's connection types.

use std::convert::Infallible;
use std::future::{self, poll_fn};
use std::mem::{self, MaybeUninit};
use std::net::{IpAddr, Shutdown};
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::task::Poll;
use std::time::SystemTime;

use http_body_util::Full;
use hyper::body::{Body, Bytes, Incoming};
use hyper::header::{CONNECTION, HeaderMap, HeaderValue};
use hyper::http::request::Parts;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request};
use hyper_util::rt::TokioIo;
use socket2::SockRef;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Duration, Instant};

use crate::admission::ConnectionSlot;
use crate::api::{self, ROUTES};
use crate::context::Context;
use crate::lifecycle::ActiveGuard;
use crate::log::AccessEntry;
use crate::request::{self, MAX_HEAD};
use crate::response::{Failure, Response};
use crate::socket::{Socket, Traffic};
use crate::timeouts::{Timeouts, Verdict};

/// Header fields for which memory is kept between the requests of a connection. Browsers send up to
/// 20.
const MAX_KEPT_FIELDS: usize = 24;

/// Time for the client to read the last response. Its further input is discarded.
const LINGER_TIMEOUT: Duration = Duration::from_secs(2);

/// Time for a connection of the reserve to send its request and to read the response. A probe from
/// the same host takes a millisecond; what is longer keeps others out.
const RESERVE_TIMEOUT: Duration = Duration::from_millis(200);

/// Serves a connection until it ends or misses a deadline. It holds `active` while it is not
/// parked.
///
/// After a quiet tick the connection is parked: without hyper's state and buffers it takes 1.25 kB
/// instead of 13.9 kB. When the client sends something, hyper starts anew.
pub async fn serve(
    context: &'static Context,
    mut stream: TcpStream,
    address: IpAddr,
    mut slot: ConnectionSlot,
    mut active: ActiveGuard,
) {
    // Futures are boxed where their memory is to be returned while the connection is parked.
    if slot.is_reserve() && !Box::pin(slot.leave_reserve(&context.timers)).await {
        return Box::pin(serve_from_reserve(context, stream, address)).await;
    }
    // A new connection has the time of a head for its first byte.
    let mut deadline = Instant::now() + context.config.header_timeout;
    loop {
        let served = Box::pin(async {
            let client = Client::new(context, address, false);
            serve_until_idle(&client, stream, deadline).await
        });
        let Some(parked) = served.await else {
            return;
        };
        drop(active);
        (stream, deadline) = (parked.stream, parked.deadline);
        match wait_while_parked(context, &stream, deadline, &mut slot).await {
            Wake::Readable => {}
            Wake::Deadline if has_unread(&stream) => {}
            Wake::Deadline => return shut_down_write(&stream),
            Wake::Evicted => return,
        }
        active = context.lifecycle.active_guard();
    }
}

/// Responds to a probe although the connection limit is reached, and refuses any other request.
async fn serve_from_reserve(context: &'static Context, stream: TcpStream, address: IpAddr) {
    let deadline = Instant::now() + RESERVE_TIMEOUT;
    let client = Client::new(context, address, true);
    let serve = serve_until_idle(&client, stream, deadline);
    _ = context.timers.timeout(RESERVE_TIMEOUT, serve).await;
    if !client.served_probe.load(Relaxed) {
        let refused = &context.metrics.refused_connections;
        refused.fetch_add(1, Relaxed);
    }
}

/// Why a connection is no longer parked.
enum Wake {
    /// The client has sent something or closed.
    Readable,
    /// The idle timeout is over, or the closing phase has begun.
    Deadline,
    /// Another connection needs the permit of this one.
    Evicted,
}

/// Waits until there is a reason to do something with a parked connection.
async fn wait_while_parked(
    context: &Context,
    stream: &TcpStream,
    deadline: Instant,
    slot: &mut ConnectionSlot,
) -> Wake {
    let mut deadline = pin!(context.timers.sleep_until(deadline));
    let mut wake_up = pin!(context.admission.parked());
    // With `select!`, a parked connection would take 1,627 bytes instead of 1,252
    // (`cargo test idle_connection -- --ignored`).
    poll_fn(|cx| {
        if stream.poll_read_ready(cx).is_ready() {
            return Poll::Ready(Wake::Readable);
        }
        while wake_up.as_mut().poll(cx).is_ready() && !context.lifecycle.is_closing() {
            if has_unread(stream) {
                // This connection has a request, so the next one has to give way.
                context.admission.wake_longest_parked();
                return Poll::Ready(Wake::Readable);
            }
            if slot.give_way() {
                shut_down_write(stream);
                return Poll::Ready(Wake::Evicted);
            }
            wake_up.set(context.admission.parked());
        }
        if deadline.as_mut().poll(cx).is_ready() || context.lifecycle.is_closing() {
            return Poll::Ready(Wake::Deadline);
        }
        Poll::Pending
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

/// Tells the client at once that an idle connection ends. Closing the socket would, too, but only
/// after its tasks and timers are gone: a request that arrives in between would get a bare reset.
fn shut_down_write(stream: &TcpStream) {
    _ = SockRef::from(stream).shutdown(Shutdown::Write);
}

/// A parked connection.
struct Parked {
    stream: TcpStream,
    /// Time by which the next request must begin.
    deadline: Instant,
}

/// Why hyper's part of a connection ends.
enum End {
    /// hyper has finished, or has failed to parse a head.
    Hyper(hyper::Result<()>),
    Verdict(Verdict),
}

/// Lets hyper serve the connection. Returns it once it is idle, or `None` once it is over. The
/// first request must begin before `deadline`.
async fn serve_until_idle(
    client: &Client,
    mut stream: TcpStream,
    deadline: Instant,
) -> Option<Parked> {
    let context = client.context;
    let timer = pin!(context.timers.sleep_until(Instant::now())); // `Timeouts::new` sets the time
    let closing = pin!(context.lifecycle.closing());
    let mut timeouts = Timeouts::new(context, &client.traffic, timer, closing).await;
    let mut unread = Bytes::new();
    let failure = loop {
        let end;
        (end, stream, unread) = run_hyper(client, &mut timeouts, stream, unread).await;
        match end {
            End::Hyper(Err(error)) if error.is_parse() && !client.has_unread_body() => {
                break Some(request::explain(&error, &unread));
            }
            End::Hyper(_) => break None,
            End::Verdict(Verdict::WriteTimeout) => return None,
            End::Verdict(Verdict::Quiet) if !unread.is_empty() => {
                if timeouts.is_head_overdue() {
                    break Some(Failure::REQUEST_TIMEOUT);
                }
                // Part of a head. The next hyper connection gets it back.
            }
            End::Verdict(Verdict::Quiet) if !context.lifecycle.is_closing() => {
                let deadline = timeouts.idle_deadline().unwrap_or(deadline);
                return Some(Parked { stream, deadline });
            }
            End::Verdict(Verdict::Quiet) if !has_unread(&stream) => {
                shut_down_write(&stream);
                return None;
            }
            // A request has arrived, but tokio does not know yet. hyper waits for it. Parking would
            // not: the closing phase ends that wait at once.
            End::Verdict(Verdict::Quiet) => {}
        }
    };
    client.close(stream, &unread, failure).await;
    None
}

/// Runs one hyper connection until it has finished or has to be taken apart. Takes and returns the
/// bytes that hyper has read but not used.
async fn run_hyper(
    client: &Client,
    timeouts: &mut Timeouts<'_>,
    stream: TcpStream,
    unread: Bytes,
) -> (End, TcpStream, Bytes) {
    let socket = Socket {
        stream,
        unread,
        traffic: &client.traffic,
    };
    let respond = |request| future::ready(Ok::<_, Infallible>(client.respond(request)));
    let mut connection = http1::Builder::new()
        // hyper would reset its own header timeout for each request, which costs more than ours.
        .header_read_timeout(None)
        .half_close(true)
        .max_buf_size(MAX_HEAD)
        .serve_connection(TokioIo::new(socket), service_fn(respond));
    let end = poll_fn(|cx| match Pin::new(&mut connection).poll(cx) {
        Poll::Ready(result) => Poll::Ready(End::Hyper(result)),
        Poll::Pending => timeouts.poll(cx).map(End::Verdict),
    })
    .await;
    // hyper documents `into_parts` for finished connections, because others may have unsent bytes.
    // After `Verdict::Quiet` there are none: the socket has seen hyper flush the last response.
    // Tests and the pinned version of hyper guard this.
    let parts = connection.into_parts();
    (end, parts.io.into_inner().stream, parts.read_buf)
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
    _ = context.timers.timeout(LINGER_TIMEOUT, discard).await;
}

/// The client of one connection, and its requests.
struct Client {
    context: &'static Context,
    address: IpAddr,
    /// The address as the logs show it.
    name: String,
    traffic: Traffic,
    /// Served from the reserve.
    is_reserve: bool,
    /// Has got the response to a probe.
    served_probe: AtomicBool,
    /// The last request had a body, which is not read.
    has_unread_body: AtomicBool,
}

impl Client {
    fn new(context: &'static Context, address: IpAddr, is_reserve: bool) -> Self {
        Client {
            context,
            address,
            name: address.to_string(),
            traffic: Traffic::new(context.metrics),
            is_reserve,
            served_probe: AtomicBool::new(false),
            has_unread_body: AtomicBool::new(false),
        }
    }

    fn has_unread_body(&self) -> bool {
        self.has_unread_body.load(Relaxed)
    }

    /// Responds to one request, counts it and logs it.
    fn respond(&self, request: Request<Incoming>) -> hyper::Response<Full<Bytes>> {
        let context = self.context;
        // Not `Instant`, because the access log needs this clock, and reading a second one costs 90
        // instructions. If the clock is set back meanwhile, the duration is 0.
        let start = SystemTime::now();
        self.traffic.start_request();
        let (mut head, body) = request.into_parts();
        let (route, mut response) = api::respond(context, &head, self.address);
        #[cfg(feature = "faults")]
        {
            let path = route.map(|route| ROUTES[route].path);
            response = context.config.faults.apply(path, context.start, response);
        }
        if self.is_reserve {
            if route.is_some_and(|route| ROUTES[route].is_probe) {
                self.served_probe.store(true, Relaxed);
            } else {
                response = Response::at_the_limit();
            }
        }
        let end = SystemTime::now();
        let duration = end.duration_since(start).unwrap_or_default();
        self.log(&head, route, &response, end, duration);
        // No endpoint takes a body. Keeping the connection would require finding the body's end, so
        // the connection closes after the response.
        let has_body = !body.is_end_stream();
        if has_body {
            self.has_unread_body.store(true, Relaxed);
        }
        // The response reuses the memory of the request's header map: nothing is allocated. hyper
        // keeps it for the next request, so a large one is not reused.
        if head.headers.capacity() > MAX_KEPT_FIELDS {
            head.headers = HeaderMap::new();
        } else {
            head.headers.clear();
        }
        for (name, value) in response.headers {
            head.headers.insert(name, value.clone());
        }
        if has_body || self.is_reserve || context.lifecycle.is_draining() {
            let close = HeaderValue::from_static("close");
            head.headers.insert(CONNECTION, close);
        }
        let status = response.status.as_u16();
        context.metrics.count_response(route, status, duration);
        let mut hyper_response = hyper::Response::new(Full::new(response.body));
        *hyper_response.status_mut() = response.status;
        let empty = mem::replace(hyper_response.headers_mut(), head.headers);
        mem::forget(empty); // owns no memory; dropping it takes 84 instructions
        hyper_response
    }

    fn log(
        &self,
        head: &Parts,
        route: Option<usize>,
        response: &Response,
        now: SystemTime,
        duration: Duration,
    ) {
        let is_polled = route.is_some_and(|route| ROUTES[route].is_polled);
        if !self.context.config.access_log.includes(is_polled) {
            return;
        }
        let is_head = head.method == Method::HEAD;
        let entry = AccessEntry {
            client: &self.name,
            method: head.method.as_str(),
            target: &request::target(head),
            version: request::version(head),
            status: response.status.as_u16(),
            bytes: if is_head { 0 } else { response.body.len() },
            duration,
        };
        self.context.log.access(now, &entry);
    }

    /// Closes the connection after its last response, or after refusing what hyper could not serve.
    async fn close(&self, stream: TcpStream, unread: &[u8], failure: Option<Failure>) {
        if let Some(failure) = failure {
            self.refuse(&stream, failure);
        } else if self.traffic.has_request_in_flight() {
            return; // the client has gone
        }
        let may_have_more = || !unread.is_empty() || has_unread(&stream);
        if failure.is_some() || self.has_unread_body() || may_have_more() {
            // Boxed, so that its buffer is not a part of every connection.
            Box::pin(linger(self.context, stream)).await;
        }
    }

    /// Sends an error response for what hyper cannot serve. If the send buffer is full, the client
    /// does not read: then the response is dropped and not counted.
    fn refuse(&self, stream: &TcpStream, failure: Failure) {
        let response = failure.to_http();
        let is_sent = matches!(stream.try_write(&response), Ok(length) if length == response.len());
        let Failure {
            status,
            description,
        } = failure;
        let note = if is_sent { "" } else { " (not sent)" };
        let message = format!("Refused {}: {status}: {description}{note}", self.name);
        self.context.log.info(&message);
        if is_sent {
            let metrics = self.context.metrics;
            metrics.count_response(None, status.as_u16(), Duration::ZERO);
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;
    use crate::config::Config;

    #[tokio::test]
    async fn refusal_that_does_not_fit_into_the_send_buffer_is_not_counted() {
        let context = Context::for_test(Config::default());
        let metrics = context.metrics;
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let connecting = TcpStream::connect(listener.local_addr().unwrap());
        let (mut reader, (server, peer)) = tokio::try_join!(connecting, listener.accept()).unwrap();
        let client = Client::new(context, peer.ip(), false);
        let failure = Failure::bad_request("Malformed HTTP request (RFC 9112)");

        client.refuse(&server, failure);
        assert_eq!(metrics.responses(), 1);
        let mut status_line = [0; 12];
        reader.read_exact(&mut status_line).await.unwrap();
        assert_eq!(&status_line, b"HTTP/1.1 400");

        server.writable().await.unwrap();
        while server.try_write(&[0; 4096]).is_ok() {}
        client.refuse(&server, failure);
        assert_eq!(metrics.responses(), 1);
    }
}
