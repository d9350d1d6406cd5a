//! One measurement: a container from its creation to its removal, at rest or under load.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use jiff::Timestamp;
use tokio::time;

use timber_load::{Load, Pattern, Service};

use crate::{
    engine::{Container, Engine, Tasks, Usage},
    statistics::median,
    subject::Subject,
    units::number,
};

/// Duration of the load before the measured load.
const WARM_UP: Duration = Duration::from_millis(500);

/// Time between the first response and the measurement of idle memory. Memory used for the start is
/// freed by then.
const SETTLE: Duration = Duration::from_secs(1);

/// Approximate duration of creating, starting and removing a container.
const CONTAINER: Duration = Duration::from_millis(1200);

/// How containers are measured.
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
    /// Returns the approximate duration of this number of rounds, for one image.
    pub fn duration(&self, starts: u32, loads: u32) -> Duration {
        (CONTAINER + SETTLE) * starts + (CONTAINER + WARM_UP + self.load * 3) * loads
    }
}

/// Measurements of a container without load. Times are in seconds, sizes in bytes, and errors say
/// why something is not available.
pub struct Start {
    pub create_to_response: f64,
    pub process_to_response: Result<f64, String>,
    pub idle_memory: Result<f64, String>,
    /// Duration of `docker stop`.
    pub stop: f64,
    pub exit_code: i64,
    /// What must be known about the figures.
    pub note: Option<&'static str>,
}

/// Measurements of a container under load.
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

/// Returns what else may have limited the throughput of an image. `limit` is the load generator's
/// ([`timber_load::own_limit`]), `cpus` the number of CPUs of the machine.
pub fn bottleneck(loads: &[Loads], limit: f64, cpus: f64) -> Option<String> {
    let of = |read: fn(&Load) -> f64| {
        median(
            &loads
                .iter()
                .map(|loads| read(&loads.kept))
                .collect::<Vec<_>>(),
        )
    };
    let rate = of(Load::rate)?;
    let ours = of(|load| load.generator_cpu_seconds / load.seconds)?;
    let theirs = of(|load| load.container_cpu_seconds / load.seconds)?;
    let allowed = loads.last()?.cpus;
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

/// A container that has responded.
struct Running {
    container: Container,
    service: Service,
    /// From the creation of the container to the end of its first good response, in seconds.
    create_to_response: f64,
    responded: Timestamp,
}

pub struct Trial<'a> {
    pub engine: &'a Engine,
    pub subject: &'a Subject,
    /// Port inside the container.
    pub port: u16,
    pub plan: Plan,
}

impl Trial<'_> {
    /// Measures a new container without load, and removes it.
    ///
    /// # Errors
    /// The container does not respond, or exits.
    pub async fn start(&self) -> Result<Start> {
        self.with_container(async |running| {
            let container = &running.container;
            let process_to_response = self
                .engine
                .since_start(container, running.responded)
                .await?;
            let idle = async {
                time::sleep(SETTLE).await;
                self.engine.usage(container).await
            };
            let idle = tokio::select! {
                idle = idle => idle?,
                ended = self.engine.ended(container) => bail!(ended?),
            };
            let (stop, exit_code) = self.engine.stop(container).await?;
            Ok(Start {
                create_to_response: running.create_to_response,
                process_to_response,
                idle_memory: idle.memory,
                stop: stop.as_secs_f64(),
                exit_code,
                note: idle.memory_note,
            })
        })
        .await
    }

    /// Measures a new container under load, and removes it.
    ///
    /// # Errors
    /// The container does not respond, or exits.
    pub async fn load(&self) -> Result<Loads> {
        self.with_container(async |running| {
            // Fails if the container exits meanwhile.
            tokio::select! {
                loads = self.loads(running) => loads,
                ended = self.engine.ended(&running.container) => bail!("under load, {}", ended?),
            }
        })
        .await
    }

    async fn with_container<T>(
        &self,
        measure: impl AsyncFnOnce(&Running) -> Result<T>,
    ) -> Result<T> {
        let begin = Instant::now();
        let Trial {
            engine, subject, ..
        } = self;
        let container = engine
            .create(&subject.name, self.port, &subject.run)
            .await?;
        let id = container.id.clone();
        let measured = async { measure(&self.respond(container, begin).await?).await }.await;
        let removed = engine.remove(&id).await;
        let measured = measured?;
        removed?;
        Ok(measured)
    }

    /// Starts the container, and waits for its first good response.
    async fn respond(&self, container: Container, begin: Instant) -> Result<Running> {
        let service = Service {
            address: container.address,
            path: self.subject.path.clone(),
            headers: self.subject.headers.clone(),
            status: self.subject.status,
        };
        let mut last_attempt = String::from("none");
        let response = async {
            // No attempt before the start: TCP would wait for a second before it retries.
            self.engine.start(&container).await?;
            tokio::select! {
                () = service.first_response(&mut last_attempt) => Ok((begin.elapsed(), Timestamp::now())),
                ended = self.engine.ended(&container) => bail!(ended?),
            }
        };
        let Ok(response) = time::timeout(self.plan.timeout, response).await else {
            bail!(
                "no response with status {} to GET {} on port {} within {:?}; last attempt: {last_attempt}",
                self.subject.status.as_u16(),
                self.subject.path,
                self.port,
                self.plan.timeout
            );
        };
        let (create_to_response, responded) = response?;
        Ok(Running {
            container,
            service,
            create_to_response: create_to_response.as_secs_f64(),
            responded,
        })
    }

    async fn loads(&self, running: &Running) -> Result<Loads> {
        let Running {
            container, service, ..
        } = running;
        service
            .load(Pattern::Keep, self.plan.connections, WARM_UP)
            .await;
        let before = self.engine.usage(container).await?;
        let (kept, usage) = self.measure_load(running, Pattern::Keep, &before).await?;
        let (new, mut usage) = self.measure_load(running, Pattern::New, &usage).await?;
        let mut fixed = None;
        if let Some(rate) = self.plan.fixed_rate {
            let (load, after) = self
                .measure_load(running, Pattern::Fixed(rate), &usage)
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

    async fn measure_load(
        &self,
        running: &Running,
        pattern: Pattern,
        before: &Usage,
    ) -> Result<(Load, Usage)> {
        let Plan {
            connections, load, ..
        } = self.plan;
        let mut load = running.service.load(pattern, connections, load).await;
        let after = self.engine.usage(&running.container).await?;
        load.container_cpu_seconds = after.cpu_seconds - before.cpu_seconds;
        Ok((load, after))
    }
}
