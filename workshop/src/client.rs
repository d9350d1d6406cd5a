//! The HTTP client of the measurements: it waits for the first response, and generates the load.

use std::{
    net::{Ipv4Addr, SocketAddr},
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use hdrhistogram::Histogram;
use http_body_util::{BodyExt, Empty};
use hyper::{Request, StatusCode, body::Bytes, client::conn::http1::SendRequest, header::HOST};
use hyper_util::rt::TokioIo;
use tokio::{net::TcpStream, task::JoinSet, time};

/// Time for a request. After that it counts as an error.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Time between two attempts, and so the resolution of start times. A refused attempt costs about
/// 50 µs of CPU.
const PAUSE: Duration = Duration::from_millis(1);

/// A published port of a container.
#[derive(Clone)]
pub struct Service {
    address: SocketAddr,
    path: String,
}

/// Figures of a load.
pub struct Load {
    pub elapsed: Duration,
    /// Latencies of responses with status 200, in microseconds.
    pub latencies: Histogram<u64>,
    pub errors: u64,
    /// CPU time that this process used during the load.
    pub cpu_seconds: f64,
}

impl Service {
    pub fn new(port: u16, path: &str) -> Self {
        Service {
            address: (Ipv4Addr::LOCALHOST, port).into(),
            path: path.to_owned(),
        }
    }

    /// Sends requests on new connections until a response has status 200. `last_attempt` describes
    /// the latest failure.
    pub async fn first_response(&self, last_attempt: &mut String) {
        loop {
            match time::timeout(TIMEOUT, self.request_once()).await {
                Ok(Ok(StatusCode::OK)) => return,
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
        let request = Request::get(&self.path)
            .header(HOST, self.address.to_string())
            .body(Empty::new())?;
        let response = sender.send_request(request).await?;
        let status = response.status();
        let mut body = response.into_body();
        while let Some(frame) = body.frame().await {
            frame.context("incomplete response body")?;
        }
        Ok(status)
    }

    /// Generates load on a number of connections. Each sends its next request when it has its
    /// response. If the server closes a connection, the latency of the next request includes a new
    /// connection.
    pub async fn load(&self, connections: u32, duration: Duration) -> Result<Load> {
        let (begin, cpu) = (Instant::now(), cpu_seconds());
        let mut loops = JoinSet::new();
        for _ in 0..connections {
            let service = self.clone();
            loops.spawn(async move { service.request_until(begin + duration).await });
        }
        let mut latencies = histogram();
        let mut errors = 0;
        for (histogram, count) in loops.join_all().await {
            latencies.add(histogram)?;
            errors += count;
        }
        Ok(Load {
            elapsed: begin.elapsed(),
            latencies,
            errors,
            cpu_seconds: cpu_seconds() - cpu,
        })
    }

    async fn request_until(&self, end: Instant) -> (Histogram<u64>, u64) {
        let (mut latencies, mut errors) = (histogram(), 0);
        let mut idle = None;
        while Instant::now() < end {
            let begin = Instant::now();
            let is_reused = idle.is_some();
            let exchange = async {
                let mut sender = match idle.take() {
                    Some(sender) => sender,
                    None => self.connect().await?,
                };
                let status = self.request(&mut sender).await?;
                // Either ready immediately, or closed.
                Ok::<_, anyhow::Error>((status, sender.ready().await.is_ok().then_some(sender)))
            };
            match time::timeout(TIMEOUT, exchange).await {
                Ok(Ok((StatusCode::OK, sender))) => {
                    let micros = begin.elapsed().as_micros().try_into().unwrap_or(u64::MAX);
                    latencies.saturating_record(micros);
                    idle = sender;
                }
                // The server closed the connection before the request was sent: not an error.
                Ok(Err(error))
                    if is_reused && error.downcast_ref().is_some_and(hyper::Error::is_canceled) => {
                }
                _ => {
                    errors += 1;
                    // Avoids a busy loop if the server refuses every connection.
                    time::sleep(PAUSE).await;
                }
            }
        }
        (latencies, errors)
    }
}

/// Returns a histogram up to [`TIMEOUT`], with three significant digits.
fn histogram() -> Histogram<u64> {
    Histogram::new_with_max(TIMEOUT.as_secs() * 1_000_000, 3).expect("the bounds are valid")
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
