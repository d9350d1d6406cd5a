//! The HTTP client: waits for the first response, and generates the load.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use futures_util::{StreamExt, stream::FuturesUnordered};
use hdrhistogram::Histogram;
use http_body_util::{BodyExt, Empty};
use hyper::{
    Request, StatusCode,
    body::Bytes,
    client::conn::http1::SendRequest,
    header::{HOST, HeaderName, HeaderValue},
};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinSet,
    time,
};

use crate::{statistics::median, units::number};

/// Time for a request. After that it counts as an error.
const TIMEOUT: Duration = Duration::from_secs(5);

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
    /// A closed loop with a new connection for each request.
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
    seconds: f64,
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
    pub fn rate(&self) -> f64 {
        number(self.latencies.len()) / self.seconds
    }

    /// Returns a quantile of the latencies, in seconds.
    ///
    /// # Errors
    /// There was no response.
    pub fn latency(&self, quantile: f64) -> Result<f64, String> {
        self.answered()?;
        Ok(number(self.latencies.value_at_quantile(quantile)) / 1e6)
    }

    /// # Errors
    /// There was no response.
    pub fn cpu_per_request(&self) -> Result<f64, String> {
        self.answered()?;
        Ok(self.container_cpu_seconds / number(self.latencies.len() + self.errors))
    }

    /// Returns whether the server kept connections for further requests.
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
pub async fn own_limit(connections: u32, duration: Duration) -> Result<f64> {
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

/// Returns why the throughput may not be that of the image alone, if so. `limit` is that of
/// [`own_limit`]. `allowed` are the CPUs that the container may use, of those of the machine.
pub fn bottleneck(loads: &[&Load], limit: f64, allowed: f64, cpus: f64) -> Option<String> {
    let of =
        |read: fn(&Load) -> f64| median(&loads.iter().map(|load| read(load)).collect::<Vec<_>>());
    let rate = of(Load::rate)?;
    let ours = of(|load| load.generator_cpu_seconds / load.seconds)?;
    let theirs = of(|load| load.container_cpu_seconds / load.seconds)?;
    let used =
        format!("the load generator used {ours:.2} of {cpus} CPUs, the container {theirs:.2}");
    if rate > limit * 0.8 {
        Some(format!(
            "its throughput is that of the load generator, which reaches {limit:.0} requests per second with a server \
             that does nothing: a lower bound"
        ))
    } else if ours > theirs && ours + theirs > cpus * 0.8 && theirs < allowed * 0.8 {
        Some(format!(
            "{used}: the machine was busy with the load generator, so its throughput is a lower bound"
        ))
    } else if theirs < allowed.min(1.0) * 0.8 && theirs < cpus / 2.0 {
        Some(format!(
            "{used}: something else may have limited its throughput, such as the engine's port forwarding or a database"
        ))
    } else {
        None
    }
}

impl Service {
    /// Sends requests on new connections until a response is good. `last_attempt` describes
    /// the latest failure.
    ///
    /// The engine's port forwarding accepts connections before the service does, and such a request
    /// can wait in vain. So the next attempt does not wait for its end.
    pub async fn first_response(&self, last_attempt: &mut String) {
        const OVERLAP: Duration = Duration::from_millis(100);
        let mut attempts = FuturesUnordered::new();
        loop {
            attempts.push(time::timeout(TIMEOUT, self.request_once()));
            let Ok(Some(ended)) = time::timeout(OVERLAP, attempts.next()).await else {
                "no response yet".clone_into(last_attempt);
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
        self.request(&mut self.connect().await?).await
    }

    async fn connect(&self) -> Result<SendRequest<Empty<Bytes>>> {
        let stream = TcpStream::connect(self.address).await?;
        stream.set_nodelay(true)?;
        let (sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        Ok(sender)
    }

    /// Sends a request, and reads the response to its end.
    async fn request(&self, sender: &mut SendRequest<Empty<Bytes>>) -> Result<StatusCode> {
        let mut request = Request::get(&self.path)
            .header(HOST, self.address.to_string())
            .body(Empty::new())?;
        for (name, _) in &self.headers {
            request.headers_mut().remove(name); // such as Host
        }
        request.headers_mut().extend(self.headers.iter().cloned());
        let response = sender.send_request(request).await?;
        let status = response.status();
        let mut body = response.into_body();
        while let Some(frame) = body.frame().await {
            frame.context("incomplete response body")?;
        }
        Ok(status)
    }

    /// Generates load on a number of connections. Requests without a good response are counted.
    pub async fn load(&self, pattern: Pattern, connections: u32, duration: Duration) -> Load {
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
                let mut sender = match idle.take() {
                    Some(sender) => sender,
                    None => self.connect().await?,
                };
                let status = self.request(&mut sender).await?;
                if matches!(schedule.pattern, Pattern::New) {
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
