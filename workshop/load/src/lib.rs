//! The HTTP client of `cargo workshop compare`: waits for the first response, and generates the load.
//!
//! A separate package, so that only it is optimized: the generator must not be slower than the images.
//! The code of an `async fn` is generated in the crate that awaits it, so public functions return boxed
//! futures.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use futures_util::{FutureExt, StreamExt, future::BoxFuture, stream::FuturesUnordered};
use hdrhistogram::Histogram;
use http_body_util::{BodyExt, Empty};
use hyper::{
    Request, StatusCode,
    body::Bytes,
    client::conn::http1::SendRequest,
    header::{CONNECTION, HOST, HeaderName, HeaderValue},
};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinSet,
    time,
};

/// Time for a request. After that it counts as an error.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Maximum wait for the server to close a connection after its last response.
const CLOSE_TIMEOUT: Duration = Duration::from_millis(100);

/// Time between two attempts, and so the resolution of start times. A refused attempt costs about
/// 50 µs of CPU.
const PAUSE: Duration = Duration::from_millis(1);

/// Where requests are sent.
#[derive(Clone)]
pub struct Service {
    pub address: SocketAddr,
    pub path: String,
    pub headers: Vec<(HeaderName, HeaderValue)>,
    /// Status of a good response.
    pub status: StatusCode,
}

/// What the connections do.
#[derive(Clone, Copy)]
pub enum Pattern {
    /// A closed loop: each connection sends its next request when it has its response. If the
    /// server closes a connection, the latency of the next request includes a new connection.
    Keep,
    /// A closed loop with a new connection for each request, and `Connection: close`.
    New,
    /// An open loop at a number of requests per second, on connections that are kept if the server
    /// keeps them.
    ///
    /// Each request is due at a fixed time. If no connection is free by then, the request waits,
    /// and its latency includes that time. Otherwise a server that stalls would seem fast, because
    /// no requests are sent meanwhile ("coordinated omission").
    Fixed(f64),
}

/// Measurements of a load.
pub struct Load {
    pub seconds: f64,
    /// Latencies of good responses, in microseconds.
    latencies: Histogram<u64>,
    pub errors: u64,
    /// Number of requests on a connection that had had a response before.
    reused: u64,
    /// CPU time that this process used.
    pub generator_cpu_seconds: f64,
    /// CPU time that the container used, if known.
    pub container_cpu_seconds: f64,
}

impl Load {
    fn empty() -> Self {
        Load {
            seconds: 0.0,
            latencies: Histogram::new_with_max(TIMEOUT.as_secs() * 1_000_000, 3)
                .expect("the bounds are valid"),
            errors: 0,
            reused: 0,
            generator_cpu_seconds: 0.0,
            container_cpu_seconds: 0.0,
        }
    }

    /// Good responses per second.
    #[must_use]
    pub fn rate(&self) -> f64 {
        count(self.latencies.len()) / self.seconds
    }

    /// Returns a quantile of the latencies, in seconds.
    ///
    /// # Errors
    /// There was no response.
    pub fn latency(&self, quantile: f64) -> Result<f64, String> {
        self.answered()?;
        Ok(count(self.latencies.value_at_quantile(quantile)) / 1e6)
    }

    /// # Errors
    /// There was no response.
    pub fn cpu_per_request(&self) -> Result<f64, String> {
        self.answered()?;
        Ok(self.container_cpu_seconds / count(self.latencies.len() + self.errors))
    }

    /// Returns whether the server kept connections for further requests.
    #[must_use]
    pub fn is_kept(&self) -> bool {
        self.reused > 0
    }

    fn answered(&self) -> Result<(), String> {
        if self.latencies.is_empty() {
            return Err("no request had a good response".to_owned());
        }
        Ok(())
    }
}

/// Measures the load generator: returns the requests per second that it reaches with a server that
/// does nothing, in this process.
///
/// # Errors
/// There is no free port.
#[must_use]
pub fn own_limit(connections: u32, duration: Duration) -> BoxFuture<'static, Result<f64>> {
    measure_own_limit(connections, duration).boxed()
}

async fn measure_own_limit(connections: u32, duration: Duration) -> Result<f64> {
    const RESPONSE: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let service = Service {
        address: listener.local_addr()?,
        path: "/".to_owned(),
        headers: Vec::new(),
        status: StatusCode::OK,
    };
    let mut server = JoinSet::new();
    server.spawn(async move {
        loop {
            let Ok((mut stream, _)) = listener.accept().await else {
                continue;
            };
            tokio::spawn(async move {
                // Each read returns one request, because the client waits for the response.
                let mut request = [0; 1024];
                while matches!(stream.read(&mut request).await, Ok(1..)) {
                    _ = stream.write_all(RESPONSE).await;
                }
            });
        }
    });
    let load = service.load(Pattern::Keep, connections, duration).await;
    Ok(load.rate())
}

impl Service {
    /// Sends requests on new connections until a response is good. `last_attempt` describes
    /// the latest failure.
    ///
    /// The engine's port forwarding accepts connections before the service does, and may never forward
    /// such a request. So attempts overlap: first after 100 ms, then after twice the time before, so
    /// that a slow service is not flooded.
    pub fn first_response<'a>(&'a self, last_attempt: &'a mut String) -> BoxFuture<'a, ()> {
        self.retry_until_good(last_attempt).boxed()
    }

    async fn retry_until_good(&self, last_attempt: &mut String) {
        let mut patience = Duration::from_millis(100);
        let mut attempts = FuturesUnordered::new();
        loop {
            attempts.push(time::timeout(TIMEOUT, self.request_once()));
            let Ok(Some(ended)) = time::timeout(patience, attempts.next()).await else {
                "no response yet".clone_into(last_attempt);
                patience *= 2;
                continue;
            };
            match ended {
                Ok(Ok(status)) if status == self.status => return,
                Ok(Ok(status)) => *last_attempt = format!("status {status}"),
                Ok(Err(error)) => *last_attempt = format!("{error:#}"),
                Err(_) => *last_attempt = format!("no response within {TIMEOUT:?}"),
            }
            time::sleep(PAUSE).await;
        }
    }

    async fn request_once(&self) -> Result<StatusCode> {
        self.request(&mut self.connect(true).await?, true).await
    }

    async fn connect(&self, is_single: bool) -> Result<SendRequest<Empty<Bytes>>> {
        let stream = TcpStream::connect(self.address).await?;
        stream.set_nodelay(true)?;
        let (sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        tokio::spawn(async move {
            let Ok(parts) = connection.without_shutdown().await else {
                return;
            };
            let mut stream = parts.io.into_inner();
            // The side that closes first stays in TIME_WAIT for a minute, and thousands of those slow
            // down new connections and the start of containers. So the server closes, and then a
            // reset ends the connection for the engine's port forwarding, too.
            if is_single {
                _ = time::timeout(CLOSE_TIMEOUT, stream.read_u8()).await;
            }
            _ = stream.set_zero_linger();
        });
        Ok(sender)
    }

    /// Sends a request, and reads the response to its end.
    async fn request(
        &self,
        sender: &mut SendRequest<Empty<Bytes>>,
        is_single: bool,
    ) -> Result<StatusCode> {
        let mut request = Request::get(&self.path)
            .header(HOST, self.address.to_string())
            .body(Empty::new())?;
        for (name, _) in &self.headers {
            request.headers_mut().remove(name); // such as Host
        }
        request.headers_mut().extend(self.headers.iter().cloned());
        if is_single {
            let close = HeaderValue::from_static("close");
            request.headers_mut().insert(CONNECTION, close);
        }
        let response = sender.send_request(request).await?;
        let status = response.status();
        let mut body = response.into_body();
        while let Some(frame) = body.frame().await {
            frame.context("incomplete response body")?;
        }
        Ok(status)
    }

    /// Generates load on a number of connections. Requests without a good response are counted.
    #[must_use]
    pub fn load(
        &self,
        pattern: Pattern,
        connections: u32,
        duration: Duration,
    ) -> BoxFuture<'_, Load> {
        self.generate(pattern, connections, duration).boxed()
    }

    async fn generate(&self, pattern: Pattern, connections: u32, duration: Duration) -> Load {
        let schedule = Schedule {
            pattern,
            begin: Instant::now(),
            duration,
            next: Arc::default(),
        };
        let cpu = cpu_seconds();
        let mut loops = JoinSet::new();
        for _ in 0..connections {
            let (service, schedule) = (self.clone(), schedule.clone());
            loops.spawn(async move { service.follow(schedule).await });
        }
        let mut sum = Load::empty();
        for load in loops.join_all().await {
            sum.latencies
                .add(load.latencies)
                .expect("all have the same bounds");
            sum.errors += load.errors;
            sum.reused += load.reused;
        }
        sum.seconds = schedule.begin.elapsed().as_secs_f64();
        sum.generator_cpu_seconds = cpu_seconds() - cpu;
        sum
    }

    /// Sends requests on one connection.
    async fn follow(&self, schedule: Schedule) -> Load {
        let mut load = Load::empty();
        let mut idle = None;
        let mut again = None;
        loop {
            let begin = match again.take() {
                Some(begin) => Some(begin),
                None => schedule.next_request().await,
            };
            let Some(begin) = begin else {
                return load;
            };
            // Of a stalled server, the requests that wait for a connection time out as well.
            if begin.elapsed() > TIMEOUT {
                load.errors += 1;
                continue;
            }
            let is_reused = idle.is_some();
            let exchange = async {
                let is_single = matches!(schedule.pattern, Pattern::New);
                let mut sender = match idle.take() {
                    Some(sender) => sender,
                    None => self.connect(is_single).await?,
                };
                let status = self.request(&mut sender, is_single).await?;
                if is_single {
                    return Ok((status, None));
                }
                // Either ready immediately, or closed.
                Ok::<_, anyhow::Error>((status, sender.ready().await.is_ok().then_some(sender)))
            };
            match time::timeout(TIMEOUT, exchange).await {
                Ok(Ok((status, sender))) if status == self.status => {
                    let micros = begin.elapsed().as_micros().try_into().unwrap_or(u64::MAX);
                    load.latencies.saturating_record(micros);
                    load.reused += u64::from(is_reused);
                    idle = sender;
                }
                // The server closed the connection before the request was sent: not an error.
                Ok(Err(error))
                    if is_reused && error.downcast_ref().is_some_and(hyper::Error::is_canceled) =>
                {
                    again = Some(begin);
                }
                _ => {
                    load.errors += 1;
                    // Avoids a busy loop if the server refuses every connection.
                    time::sleep(PAUSE).await;
                }
            }
        }
    }
}

/// When requests are sent. The connections of a load share it.
#[derive(Clone)]
struct Schedule {
    pattern: Pattern,
    begin: Instant,
    duration: Duration,
    /// Number of the next request of an open loop.
    next: Arc<AtomicU32>,
}

impl Schedule {
    /// Waits until a request is due, and returns the time from which its latency counts. Returns
    /// `None` at the end of the load.
    async fn next_request(&self) -> Option<Instant> {
        let (due, now) = match self.pattern {
            Pattern::Keep | Pattern::New => {
                let now = Instant::now();
                (now, now)
            }
            Pattern::Fixed(rate) => {
                let number = f64::from(self.next.fetch_add(1, Ordering::Relaxed));
                let due = self.begin + Duration::from_secs_f64(number / rate);
                (due, Instant::now())
            }
        };
        if due >= self.begin + self.duration {
            return None;
        }
        if due <= now {
            return Some(due);
        }
        // The timer is up to 1 ms late, which is not the server's fault.
        time::sleep_until(due.into()).await;
        Some(Instant::now())
    }
}

#[expect(clippy::cast_precision_loss, reason = "far below 2^53")]
fn count(count: u64) -> f64 {
    count as f64
}

/// Returns the CPU time that all threads of this process have used.
fn cpu_seconds() -> f64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::new(
        time.tv_sec.unsigned_abs(),
        time.tv_nsec.try_into().unwrap_or_default(),
    )
    .as_secs_f64()
}

#[cfg(test)]
mod tests {
    use std::{net::SocketAddr, time::Duration};

    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpListener,
        sync::Mutex,
        time,
    };

    use super::{Pattern, Service, StatusCode, own_limit};

    /// Serves requests one after the other. Every tenth response takes `slow`, the others nothing.
    async fn server(slow: Duration, keep_alive: bool) -> SocketAddr {
        const RESPONSE: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let served: &'static Mutex<u32> = Box::leak(Box::default());
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let mut request = [0; 1024];
                    while matches!(stream.read(&mut request).await, Ok(1..)) {
                        let mut served = served.lock().await;
                        *served += 1;
                        if served.is_multiple_of(10) {
                            time::sleep(slow).await;
                        }
                        drop(served);
                        stream.write_all(RESPONSE).await.unwrap();
                        if !keep_alive {
                            break;
                        }
                    }
                });
            }
        });
        address
    }

    fn service(address: SocketAddr) -> Service {
        Service {
            address,
            path: "/".to_owned(),
            headers: Vec::new(),
            status: StatusCode::OK,
        }
    }

    #[tokio::test]
    async fn the_close_of_new_connections_is_left_to_the_server() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let service = service(listener.local_addr().unwrap());
        let load = tokio::spawn(async move {
            service
                .load(Pattern::New, 1, Duration::from_millis(100))
                .await
        });
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut request = [0; 1024];
        let length = stream.read(&mut request).await.unwrap();
        let head = String::from_utf8_lossy(&request[..length]).to_lowercase();
        assert!(head.contains("\r\nconnection: close\r\n"), "{head}");
        stream
            .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok")
            .await
            .unwrap();
        let end = time::timeout(Duration::from_millis(50), stream.read(&mut request)).await;
        assert!(end.is_err(), "the client has closed: {end:?}");
        drop((stream, listener));
        load.await.unwrap();
    }

    /// As behind the engine's port forwarding before the service listens.
    #[tokio::test]
    async fn the_first_response_does_not_wait_for_an_attempt_that_hangs() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let service = service(listener.local_addr().unwrap());
        tokio::spawn(async move {
            let (_hangs, _) = listener.accept().await.unwrap();
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = [0; 1024];
            assert!(stream.read(&mut request).await.unwrap() > 0);
            stream
                .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
                .await
                .unwrap();
            time::sleep(Duration::from_secs(5)).await;
        });
        let mut last_attempt = String::new();
        let response = service.first_response(&mut last_attempt);
        let response = time::timeout(Duration::from_secs(2), response).await;
        assert!(response.is_ok(), "the second attempt came late");
        assert_eq!(last_attempt, "no response yet");
    }

    #[tokio::test]
    async fn kept_connections_close_at_once() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let service = service(listener.local_addr().unwrap());
        let load = tokio::spawn(async move {
            service
                .load(Pattern::Keep, 1, Duration::from_millis(1))
                .await
        });
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut request = [0; 1024];
        assert!(stream.read(&mut request).await.unwrap() > 0);
        time::sleep(Duration::from_millis(5)).await;
        let response = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
        stream.write_all(response).await.unwrap();
        load.await.unwrap();
        let end = time::timeout(Duration::from_millis(50), stream.read(&mut request)).await;
        assert!(end.is_ok(), "the connection is still open");
    }

    #[tokio::test]
    async fn quantiles_are_those_of_the_server() {
        let service = service(server(Duration::from_millis(100), true).await);
        let load = service.load(Pattern::Keep, 1, Duration::from_secs(2)).await;
        // 9 of 10 responses are immediate.
        assert!(
            load.latency(0.85).unwrap() < 0.05,
            "{:?}",
            load.latency(0.85)
        );
        let slow = load.latency(0.95).unwrap();
        assert!((0.1..0.2).contains(&slow), "{slow}");
        assert!(
            load.rate() > 50.0 && load.rate() <= 100.0,
            "{}",
            load.rate()
        );
        assert!(load.is_kept() && load.errors == 0);
    }

    /// At 100 requests per second, every tenth takes 200 ms: in each of these periods, 20 requests
    /// become due. A closed loop would send none of them, and report nine fast of ten.
    #[tokio::test]
    async fn requests_that_wait_for_a_stalled_server_count() {
        let service = service(server(Duration::from_millis(200), true).await);
        let load = service
            .load(Pattern::Fixed(100.0), 1, Duration::from_secs(2))
            .await;
        let median = load.latency(0.5).unwrap();
        assert!(median > 0.2, "{median}");
    }

    #[tokio::test]
    async fn the_generator_knows_its_limit() {
        let limit = own_limit(4, Duration::from_millis(200)).await.unwrap();
        assert!(limit > 1000.0, "{limit}");
    }

    #[tokio::test]
    async fn connections_are_kept_or_new() {
        let keeps = service(server(Duration::ZERO, true).await);
        let closes = service(server(Duration::ZERO, false).await);
        for (service, pattern, is_kept) in [
            (&keeps, Pattern::Keep, true),
            (&keeps, Pattern::Fixed(1000.0), true),
            (&keeps, Pattern::New, false),
            (&closes, Pattern::Keep, false),
        ] {
            let load = service.load(pattern, 2, Duration::from_millis(200)).await;
            assert_eq!(load.is_kept(), is_kept);
            assert!(load.rate() > 100.0 && load.errors == 0, "{}", load.errors);
        }
    }
}
