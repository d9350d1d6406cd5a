//! The client that measures: until the first answer, and a closed loop of requests.

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

/// What an answer may take before it counts as an error.
const PATIENCE: Duration = Duration::from_secs(5);

/// How exact a start is measured. An attempt that is refused costs the machine some 50 µs.
const PAUSE: Duration = Duration::from_millis(1);

/// What is measured: a container's published port on this machine.
#[derive(Clone)]
pub struct Service {
    address: SocketAddr,
    path: String,
}

/// What a closed loop found.
pub struct Load {
    pub elapsed: Duration,
    /// In microseconds, of answers with status 200.
    pub latencies: Histogram<u64>,
    pub errors: u64,
    /// What this process used meanwhile.
    pub cpu_seconds: f64,
}

impl Service {
    pub fn new(port: u16, path: &str) -> Self {
        Service {
            address: (Ipv4Addr::LOCALHOST, port).into(),
            path: path.to_owned(),
        }
    }

    /// Asks until the answer has status 200, each time on a new connection. `seen` keeps what came last.
    pub async fn first_answer(&self, seen: &mut String) {
        loop {
            match time::timeout(PATIENCE, self.ask_once()).await {
                Ok(Ok(StatusCode::OK)) => return,
                Ok(Ok(status)) => *seen = format!("status {status}"),
                Ok(Err(error)) => *seen = format!("{error:#}"),
                Err(_) => *seen = format!("no answer in {PATIENCE:?}"),
            }
            time::sleep(PAUSE).await;
        }
    }

    async fn ask_once(&self) -> Result<StatusCode> {
        self.ask(&mut self.connect().await?).await
    }

    async fn connect(&self) -> Result<SendRequest<Empty<Bytes>>> {
        let stream = TcpStream::connect(self.address).await?;
        stream.set_nodelay(true)?;
        let (sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        Ok(sender)
    }

    /// To the end of the answer's body.
    async fn ask(&self, sender: &mut SendRequest<Empty<Bytes>>) -> Result<StatusCode> {
        let request = Request::get(&self.path)
            .header(HOST, self.address.to_string())
            .body(Empty::new())?;
        let response = sender.send_request(request).await?;
        let status = response.status();
        let mut body = response.into_body();
        while let Some(frame) = body.frame().await {
            frame.context("the answer's body breaks off")?;
        }
        Ok(status)
    }

    /// So many connections, each of which asks again as soon as it has its answer. One that the server closes is opened
    /// anew, and the next request's latency includes that.
    pub async fn load(&self, connections: u32, duration: Duration) -> Result<Load> {
        let (begin, cpu) = (Instant::now(), cpu_seconds());
        let mut loops = JoinSet::new();
        for _ in 0..connections {
            let service = self.clone();
            loops.spawn(async move { service.ask_again_and_again(begin + duration).await });
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

    async fn ask_again_and_again(&self, end: Instant) -> (Histogram<u64>, u64) {
        let (mut latencies, mut errors) = (histogram(), 0);
        let mut kept = None;
        while Instant::now() < end {
            let begin = Instant::now();
            let is_kept = kept.is_some();
            let exchange = async {
                let mut sender = match kept.take() {
                    Some(sender) => sender,
                    None => self.connect().await?,
                };
                let status = self.ask(&mut sender).await?;
                // Ready at once, or closed.
                Ok::<_, anyhow::Error>((status, sender.ready().await.is_ok().then_some(sender)))
            };
            match time::timeout(PATIENCE, exchange).await {
                Ok(Ok((StatusCode::OK, sender))) => {
                    let micros = begin.elapsed().as_micros().try_into().unwrap_or(u64::MAX);
                    latencies.saturating_record(micros);
                    kept = sender;
                }
                // The server had closed the connection before any of the request was sent: nothing is lost.
                Ok(Err(error))
                    if is_kept && error.downcast_ref().is_some_and(hyper::Error::is_canceled) => {}
                _ => {
                    errors += 1;
                    // A server that refuses everything is not to be asked a million times.
                    time::sleep(PAUSE).await;
                }
            }
        }
        (latencies, errors)
    }
}

/// Of latencies up to [`PATIENCE`], to three digits.
fn histogram() -> Histogram<u64> {
    Histogram::new_with_max(PATIENCE.as_secs() * 1_000_000, 3).expect("these are valid bounds")
}

/// Processor time that this process has used, all threads together.
fn cpu_seconds() -> f64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::new(
        time.tv_sec.unsigned_abs(),
        time.tv_nsec.try_into().unwrap_or_default(),
    )
    .as_secs_f64()
}
