//! Measurements of a single container, which is always removed at the end.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use jiff::Timestamp;
use tokio::time;

use crate::{
    client::{Load, Service},
    engine::{Container, Engine},
    results::{Figure, Memory, Work},
    subject::Subject,
};

/// Duration of the load before the measured load.
pub const WARM_UP: Duration = Duration::from_secs(2);

/// Time between the first response and the measurement of idle memory. Memory used for the start is
/// freed by then.
pub const SETTLE: Duration = Duration::from_secs(1);

/// Why there are no figures of the load.
const NO_LOAD: &str = "measured without a load";

pub struct Trial<'a> {
    pub engine: &'a Engine,
    pub subject: &'a Subject,
    /// Port inside the container.
    pub port: u16,
    /// Timeout for the first response.
    pub timeout: Duration,
}

/// Figures of one start and stop.
pub struct Run {
    pub create_to_response: f64,
    pub process_to_response: Figure<f64>,
    pub stop: f64,
    pub exit_code: i64,
}

/// Figures of one container before, during and after the load.
pub struct Worked {
    pub memory: Memory,
    pub work: Work,
    pub note: Option<&'static str>,
}

impl Trial<'_> {
    pub async fn start_and_stop(&self) -> Result<Run> {
        let begin = Instant::now();
        let container = self.create().await?;
        let run = async {
            let (responded, at) = self.ready(&container).await?;
            let process_to_response = self.engine.since_start(&container, at).await?;
            let (stop, exit_code) = self.engine.stop(&container).await?;
            Ok(Run {
                create_to_response: responded.duration_since(begin).as_secs_f64(),
                process_to_response,
                stop: stop.as_secs_f64(),
                exit_code,
            })
        };
        let run = run.await;
        self.engine.remove(&container.id).await?;
        run
    }

    /// Measures memory, and if `duration` is not zero also a load.
    pub async fn work(&self, connections: u32, duration: Duration) -> Result<Worked> {
        let container = self.create().await?;
        let worked = async {
            self.ready(&container).await?;
            time::sleep(SETTLE).await;
            let idle = self.engine.usage(&container).await?;
            if duration.is_zero() {
                return Ok(Worked {
                    memory: Memory {
                        idle: idle.memory,
                        loaded: Figure::NotAvailable(NO_LOAD.to_owned()),
                    },
                    work: Work::unmeasured(NO_LOAD),
                    note: idle.memory_note,
                });
            }
            let service = Service::new(container.port, &self.subject.path);
            self.under_load(&container, service.load(connections, WARM_UP))
                .await?;
            let before = self.engine.usage(&container).await?;
            let load = self
                .under_load(&container, service.load(connections, duration))
                .await?;
            let after = self.engine.usage(&container).await?;
            Ok(Worked {
                work: Work::new(
                    &load,
                    after.cpu_seconds - before.cpu_seconds,
                    self.engine.machine.cpus,
                ),
                memory: Memory {
                    idle: idle.memory,
                    loaded: after.memory,
                },
                note: idle.memory_note.or(after.memory_note),
            })
        };
        let worked = worked.await;
        self.engine.remove(&container.id).await?;
        worked
    }

    async fn create(&self) -> Result<Container> {
        self.engine
            .create(&self.subject.name, self.port, self.subject.published)
            .await
    }

    /// Starts the container. Returns the time at the end of its first response with status 200.
    async fn ready(&self, container: &Container) -> Result<(Instant, Timestamp)> {
        let service = Service::new(container.port, &self.subject.path);
        let mut last_attempt = String::from("connection refused");
        let response = async {
            // No attempt before the start: TCP would wait for a second before it retries.
            self.engine.start(container).await?;
            tokio::select! {
                () = service.first_response(&mut last_attempt) => Ok((Instant::now(), Timestamp::now())),
                ended = self.engine.ended(container) => bail!(ended?),
            }
        };
        match time::timeout(self.timeout, response).await {
            Ok(response) => response,
            Err(_) => bail!(
                "no response with status 200 to GET {} on port {} within {:?}; last attempt: {last_attempt}",
                self.subject.path,
                self.port,
                self.timeout
            ),
        }
    }

    /// Fails if the container exits during the load.
    async fn under_load(
        &self,
        container: &Container,
        load: impl Future<Output = Result<Load>>,
    ) -> Result<Load> {
        tokio::select! {
            load = load => load,
            ended = self.engine.ended(container) => bail!("under load, {}", ended?),
        }
    }
}

impl Work {
    #[expect(
        clippy::cast_precision_loss,
        reason = "exact up to 2^53 requests or microseconds"
    )]
    fn new(load: &Load, cpu_seconds: f64, cpus: u64) -> Self {
        let (seconds, requests) = (load.elapsed.as_secs_f64(), load.latencies.len());
        let quantile = |quantile| match requests {
            0 => Figure::NotAvailable("no request had a response with status 200".to_owned()),
            _ => Figure::Value(load.latencies.value_at_quantile(quantile) as f64 / 1e6),
        };
        let (ours, theirs) = (load.cpu_seconds / seconds, cpu_seconds / seconds);
        let bottleneck = if ours > theirs {
            Some("the image could have served more requests")
        } else if theirs < 0.8 && theirs < cpus as f64 / 2.0 {
            Some("the bottleneck was between them, such as the engine's port forwarding")
        } else {
            None
        };
        Work {
            requests_per_second: Figure::Value(requests as f64 / seconds),
            p50_seconds: quantile(0.5),
            p99_seconds: quantile(0.99),
            requests: Figure::Value(requests + load.errors),
            errors: Figure::Value(load.errors),
            cpu_seconds_per_request: match requests {
                0 => Figure::NotAvailable("no request had a response with status 200".to_owned()),
                _ => Figure::Value(cpu_seconds / (requests + load.errors) as f64),
            },
            generator_cpus: Figure::Value(ours),
            generator_was_the_bottleneck: bottleneck.map(|why| {
                format!("the load generator used {ours:.2} of {cpus} CPUs, the container {theirs:.2}: {why}")
            }),
        }
    }
}
