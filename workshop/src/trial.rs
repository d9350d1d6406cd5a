//! A round of the measurement: one container from its creation to its removal.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use jiff::Timestamp;
use tokio::time;

use crate::{
    engine::{Container, Engine, Tasks, Usage},
    load::{Load, Pattern, Service},
    subject::Subject,
    units::number,
};

/// Duration of the load before the measured load.
const WARM_UP: Duration = Duration::from_millis(500);

/// Time between the first response and the measurement of idle memory. Memory used for the start is
/// freed by then.
const SETTLE: Duration = Duration::from_secs(1);

/// What happens in each round.
#[derive(Clone, Copy)]
pub struct Plan {
    /// Timeout for the first response.
    pub timeout: Duration,
    /// Number of connections.
    pub connections: u32,
    /// Duration of each kind of load. Zero: no load.
    pub load: Duration,
    /// Requests per second of the load at a fixed rate. `None`: no such load.
    pub fixed_rate: Option<f64>,
}

impl Plan {
    /// Returns about how long a round takes, without the start and the stop.
    pub fn duration(&self) -> Duration {
        if self.load.is_zero() {
            SETTLE
        } else {
            SETTLE + WARM_UP + self.load * 3
        }
    }
}

/// Measurements of one container. Times are in seconds, sizes in bytes, and errors say why
/// something is not available.
pub struct Round {
    pub create_to_response: f64,
    pub process_to_response: Result<f64, String>,
    pub idle_memory: Result<f64, String>,
    /// `None`: no load.
    pub loads: Option<Loads>,
    /// Duration of `docker stop`.
    pub stop: f64,
    pub exit_code: i64,
    /// What must be known about the figures.
    pub note: Option<&'static str>,
}

pub struct Loads {
    /// Connections are kept if the server keeps them.
    pub kept: Load,
    pub new: Load,
    pub fixed: Option<Load>,
    /// Number of CPUs that the container may use.
    pub cpus: f64,
    /// Memory and tasks immediately after the load.
    pub memory: Result<f64, String>,
    pub tasks: Result<Tasks, String>,
}

impl Loads {
    pub fn errors(&self) -> u64 {
        let fixed = self.fixed.as_ref().map_or(0, |fixed| fixed.errors);
        self.kept.errors + self.new.errors + fixed
    }
}

pub struct Trial<'a> {
    pub engine: &'a Engine,
    pub subject: &'a Subject,
    /// Port inside the container.
    pub port: u16,
    pub plan: Plan,
}

impl Trial<'_> {
    /// Measures a new container, and removes it.
    ///
    /// # Errors
    /// The container does not respond, or exits.
    pub async fn run(&self) -> Result<Round> {
        let begin = Instant::now();
        let container = self
            .engine
            .create(&self.subject.name, self.port, &self.subject.run)
            .await?;
        let round = self.measure(&container, begin).await;
        let removed = self.engine.remove(&container.id).await;
        let round = round?;
        removed?;
        Ok(round)
    }

    async fn measure(&self, container: &Container, begin: Instant) -> Result<Round> {
        let service = Service {
            address: container.address,
            path: self.subject.path.clone(),
            headers: self.subject.headers.clone(),
            status: self.subject.status,
        };
        let (responded, at) = self.ready(container, &service).await?;
        let process_to_response = self.engine.since_start(container, at).await?;
        time::sleep(SETTLE).await;
        let idle = self.engine.usage(container).await?;
        let loads = if self.plan.load.is_zero() {
            None
        } else {
            // Fails if the container exits during the load.
            Some(tokio::select! {
                loads = self.loads(container, &service) => loads?,
                ended = self.engine.ended(container) => bail!("under load, {}", ended?),
            })
        };
        let (stop, exit_code) = self.engine.stop(container).await?;
        Ok(Round {
            create_to_response: responded.duration_since(begin).as_secs_f64(),
            process_to_response,
            idle_memory: idle.memory,
            loads,
            stop: stop.as_secs_f64(),
            exit_code,
            note: idle.memory_note,
        })
    }

    /// Starts the container. Returns the time at the end of its first good response.
    async fn ready(
        &self,
        container: &Container,
        service: &Service,
    ) -> Result<(Instant, Timestamp)> {
        let mut last_attempt = String::from("connection refused");
        let response = async {
            // No attempt before the start: TCP would wait for a second before it retries.
            self.engine.start(container).await?;
            tokio::select! {
                () = service.first_response(&mut last_attempt) => Ok((Instant::now(), Timestamp::now())),
                ended = self.engine.ended(container) => bail!(ended?),
            }
        };
        match time::timeout(self.plan.timeout, response).await {
            Ok(response) => response,
            Err(_) => bail!(
                "no response with status {} to GET {} on port {} within {:?}; last attempt: {last_attempt}",
                self.subject.status.as_u16(),
                self.subject.path,
                self.port,
                self.plan.timeout
            ),
        }
    }

    async fn loads(&self, container: &Container, service: &Service) -> Result<Loads> {
        let connections = self.plan.connections;
        service.load(Pattern::Keep, connections, WARM_UP).await;
        let before = self.engine.usage(container).await?;
        let (kept, usage) = self
            .load(container, service, Pattern::Keep, &before)
            .await?;
        let (new, mut usage) = self.load(container, service, Pattern::New, &usage).await?;
        let mut fixed = None;
        if let Some(rate) = self.plan.fixed_rate {
            let (load, after) = self
                .load(container, service, Pattern::Fixed(rate), &usage)
                .await?;
            (fixed, usage) = (Some(load), after);
        }
        Ok(Loads {
            kept,
            new,
            fixed,
            cpus: self.cpus(),
            memory: usage.memory,
            tasks: self.engine.tasks(container, usage.threads).await,
        })
    }

    fn cpus(&self) -> f64 {
        let all = number(self.engine.machine.cpus);
        self.subject.run.cpus.map_or(all, |limit| limit.min(all))
    }

    async fn load(
        &self,
        container: &Container,
        service: &Service,
        pattern: Pattern,
        before: &Usage,
    ) -> Result<(Load, Usage)> {
        let mut load = service
            .load(pattern, self.plan.connections, self.plan.load)
            .await;
        let after = self.engine.usage(container).await?;
        load.container_cpu_seconds = after.cpu_seconds - before.cpu_seconds;
        Ok((load, after))
    }
}
