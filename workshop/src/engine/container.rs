//! Containers: creation, start, stop, and the resources that they use.

use std::{
    collections::HashMap,
    fmt,
    net::{Ipv4Addr, SocketAddr, TcpListener},
    sync::{
        LazyLock,
        atomic::{AtomicU16, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow, bail};
use bollard::{
    errors::Error::{DockerContainerWaitError, DockerResponseServerError},
    models::{
        ContainerCreateBody, HealthConfig, HostConfig, MountType, NetworkConnectRequest,
        NetworkingConfig, PortBinding,
    },
    query_parameters::{
        CreateContainerOptionsBuilder, LogsOptionsBuilder, RemoveContainerOptionsBuilder,
        StatsOptionsBuilder, StopContainerOptionsBuilder, WaitContainerOptionsBuilder,
    },
};
use futures_util::{StreamExt as _, TryStreamExt as _};
use jiff::Timestamp;

use super::{Engine, LABEL};
use crate::{host, results::Reached, units::number};

pub struct Container {
    pub id: String,
    /// Where it gets requests.
    pub address: SocketAddr,
    /// Its port on this machine.
    published: Option<u16>,
}

/// How requests reach a new container.
struct Route {
    address: SocketAddr,
    /// Port on this machine.
    published: Option<u16>,
    /// Id of its network, and its address there. `None`: the default network.
    network: Option<String>,
    endpoint: Option<NetworkingConfig>,
}

/// How a container differs from that of `docker run IMAGE`.
#[derive(Clone, Debug, Default)]
pub struct RunOptions {
    /// Port on this machine. `None`: a free one, if requests need one.
    pub published: Option<u16>,
    pub command: Option<Vec<String>>,
    /// `NAME=VALUE`
    pub env: Vec<String>,
    pub user: Option<String>,
    /// Limit in bytes.
    pub memory: Option<i64>,
    /// Limit of CPU time per time.
    pub cpus: Option<f64>,
    /// Read-only.
    pub mounts: Vec<Mount>,
    /// A network to join, beside the one for requests.
    pub network: Option<String>,
}

#[derive(Clone, Debug)]
pub struct Mount {
    pub source: String,
    pub target: String,
}

/// Resources that the processes of a container have used.
pub struct Usage {
    pub cpu_seconds: f64,
    /// Bytes, or why they are not available.
    pub memory: Result<f64, String>,
    /// Set if the value of `memory` is not exact.
    pub memory_note: Option<&'static str>,
    pub threads: Option<u64>,
}

/// Processes and threads of a container.
#[derive(Clone)]
pub struct Tasks {
    pub processes: u64,
    pub threads: u64,
}

impl fmt::Display for Tasks {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let count = |count, one, many| match count {
            1 => format!("1 {one}"),
            _ => format!("{count} {many}"),
        };
        write!(
            f,
            "{}, {}",
            count(self.processes, "process", "processes"),
            count(self.threads, "thread", "threads")
        )
    }
}

impl Engine {
    /// Creates a container that can get requests. Does not start it.
    pub async fn create(&self, image: &str, port: u16, run: &RunOptions) -> Result<Container> {
        let route = self.route(port, run).await?;
        let inside = format!("{port}/tcp");
        let bindings = route.published.map(|published| {
            let binding = PortBinding {
                host_ip: Some("127.0.0.1".into()),
                host_port: Some(published.to_string()),
            };
            HashMap::from([(inside.clone(), Some(vec![binding]))])
        });
        let body = ContainerCreateBody {
            image: Some(image.to_owned()),
            cmd: run.command.clone(),
            env: Some(run.env.clone()),
            user: run.user.clone(),
            labels: Some(HashMap::from([(LABEL.to_owned(), self.run.clone())])),
            exposed_ports: Some(vec![inside]),
            // A health check would consume CPU time during the measurement.
            healthcheck: Some(HealthConfig {
                test: Some(vec!["NONE".into()]),
                ..HealthConfig::default()
            }),
            host_config: Some(HostConfig {
                network_mode: route.network,
                port_bindings: bindings,
                memory: run.memory,
                nano_cpus: run.cpus.map(nano),
                mounts: Some(run.mounts.iter().map(Mount::read_only).collect()),
                ..HostConfig::default()
            }),
            networking_config: route.endpoint,
            ..ContainerCreateBody::default()
        };
        // In a task of its own: if the caller is dropped, the container can still be found and
        // removed.
        let docker = self.docker.clone();
        let create = async move {
            docker
                .create_container(Some(CreateContainerOptionsBuilder::new().build()), body)
                .await
        };
        let created = self
            .creating
            .spawn(create)
            .await?
            .context("cannot create a container")?;
        if let Some(network) = &run.network
            && let Err(error) = self.join(&created.id, network).await
        {
            _ = self.remove(&created.id).await; // or at the end of the run
            return Err(error);
        }
        Ok(Container {
            id: created.id,
            address: route.address,
            published: route.published,
        })
    }

    /// Chooses the address of a container's `port`.
    async fn route(&self, port: u16, run: &RunOptions) -> Result<Route> {
        if let Some(own) = &self.own
            && self.description.reached == Reached::ContainerNetwork
        {
            let network = self.network(own).await?;
            let (address, endpoint) = network.next_endpoint();
            return Ok(Route {
                address: (address, port).into(),
                published: run.published,
                network: Some(network.id().to_owned()),
                endpoint: Some(endpoint),
            });
        }
        let published = run.published.map_or_else(free_port, Ok)?;
        Ok(Route {
            address: (Ipv4Addr::LOCALHOST, published).into(),
            published: Some(published),
            network: None,
            endpoint: None,
        })
    }

    /// Connects a container to a network, in which other containers serve it.
    async fn join(&self, container: &str, network: &str) -> Result<()> {
        let request = NetworkConnectRequest {
            container: container.to_owned(),
            ..NetworkConnectRequest::default()
        };
        let joined = self.docker.connect_network(network, request).await;
        joined.with_context(|| format!("cannot join the network {network}"))
    }

    pub async fn start(&self, container: &Container) -> Result<()> {
        let started = self.docker.start_container(&container.id, None).await;
        started.map_err(|error| {
            let message = error.to_string();
            match container.published {
                Some(port)
                    if message.contains("already allocated") || message.contains("in use") =>
                {
                    anyhow!("port {port} of this machine is in use: free it, or choose another one")
                }
                _ => anyhow!("cannot start the container: {message}"),
            }
        })
    }

    /// Waits for the end of the process. Returns its exit code and last lines of output as a
    /// sentence.
    pub async fn ended(&self, container: &Container) -> Result<String> {
        let options = WaitContainerOptionsBuilder::new()
            .condition("not-running")
            .build();
        let waited = self
            .docker
            .wait_container(&container.id, Some(options))
            .next()
            .await;
        match waited {
            // bollard returns an error for exit codes other than 0. The state contains the code in
            // any case.
            None | Some(Ok(_) | Err(DockerContainerWaitError { .. })) => {}
            Some(Err(error)) => return Err(error).context("cannot wait for the container"),
        }
        let code = self.exit_code(&container.id).await?;
        let logs = LogsOptionsBuilder::new()
            .stdout(true)
            .stderr(true)
            .tail("5")
            .build();
        let lines: Vec<_> = self
            .docker
            .logs(&container.id, Some(logs))
            .map_ok(|line| line.to_string())
            .try_collect()
            .await?;
        let lines = lines.concat();
        let lines: Vec<_> = lines
            .lines()
            .map(str::trim)
            .filter(|line| !line.is_empty())
            .collect();
        let lines = if lines.is_empty() {
            "no output".to_owned()
        } else {
            lines.join(" / ")
        };
        Ok(format!("the container exited with code {code}: {lines}"))
    }

    /// Returns the seconds between the start of the process and `moment`, or why they are not
    /// available.
    ///
    /// # Errors
    /// The engine does not respond.
    pub async fn since_start(
        &self,
        container: &Container,
        moment: Timestamp,
    ) -> Result<Result<f64, String>> {
        let state = self
            .docker
            .inspect_container(&container.id, None)
            .await?
            .state
            .unwrap_or_default();
        let started: Timestamp = state
            .started_at
            .context("the engine reports no start time")?
            .parse()?;
        Ok(if host::is_our_kernel(&self.machine.kernel) {
            Ok(moment.duration_since(started).as_secs_f64())
        } else {
            Err("the engine runs on another kernel, which has its own clock".to_owned())
        })
    }

    /// Stops the container as `docker stop` does. Returns the duration and the exit code.
    pub async fn stop(&self, container: &Container) -> Result<(Duration, i64)> {
        // The default of `docker stop`. Podman's API would kill at once.
        let options = StopContainerOptionsBuilder::new().t(10).build();
        let begin = Instant::now();
        self.docker
            .stop_container(&container.id, Some(options))
            .await
            .context("cannot stop the container")?;
        let taken = begin.elapsed();
        Ok((taken, self.exit_code(&container.id).await?))
    }

    async fn exit_code(&self, id: &str) -> Result<i64> {
        let state = self.docker.inspect_container(id, None).await?.state;
        state
            .and_then(|state| state.exit_code)
            .context("the engine reports no exit code")
    }

    pub async fn remove(&self, id: &str) -> Result<()> {
        let options = RemoveContainerOptionsBuilder::new()
            .force(true)
            .v(true)
            .build();
        match self.docker.remove_container(id, Some(options)).await {
            // Already removed, or being removed.
            Err(DockerResponseServerError {
                status_code: 404 | 409,
                ..
            }) => Ok(()),
            removed => removed.with_context(|| format!("cannot remove container {id}")),
        }
    }

    pub async fn usage(&self, container: &Container) -> Result<Usage> {
        let options = StatsOptionsBuilder::new()
            .stream(false)
            .one_shot(true)
            .build();
        let stats = self
            .docker
            .stats(&container.id, Some(options))
            .next()
            .await
            .context("the engine reports no statistics")??;
        let cpu = stats
            .cpu_stats
            .and_then(|cpu| cpu.cpu_usage?.total_usage)
            .context("the engine reports no CPU time")?;
        let (memory, memory_note) = match host::memory_of_processes(&container.id) {
            Some(bytes) => (Ok(bytes), None),
            None => memory_of_group(
                &stats
                    .memory_stats
                    .and_then(|memory| memory.stats)
                    .unwrap_or_default(),
            ),
        };
        Ok(Usage {
            cpu_seconds: number(cpu) / 1e9,
            memory,
            memory_note,
            threads: stats.pids_stats.and_then(|pids| pids.current),
        })
    }

    /// Returns the number of processes, with the number of threads that [`Usage`] contains.
    pub async fn tasks(
        &self,
        container: &Container,
        threads: Option<u64>,
    ) -> Result<Tasks, String> {
        let top = self.docker.top_processes(&container.id, None).await;
        let processes = top.map_err(|error| format!("the engine lists no processes: {error}"))?;
        Ok(Tasks {
            processes: processes.processes.unwrap_or_default().len() as u64,
            threads: threads.ok_or("the engine does not count threads")?,
        })
    }
}

impl Mount {
    fn read_only(&self) -> bollard::models::Mount {
        bollard::models::Mount {
            source: Some(self.source.clone()),
            target: Some(self.target.clone()),
            typ: Some(MountType::BIND),
            read_only: Some(true),
            ..bollard::models::Mount::default()
        }
    }
}

/// Returns billionths.
#[expect(
    clippy::cast_possible_truncation,
    reason = "checked when it was parsed"
)]
fn nano(value: f64) -> i64 {
    (value * 1e9) as i64
}

/// Returns a free port below the range of ephemeral ports. A client that retries an ephemeral port,
/// before a server listens on it, can connect to itself.
fn free_port() -> Result<u16> {
    const FIRST: u16 = 20_000;
    const COUNT: u16 = 10_000;
    static NEXT: AtomicU16 = AtomicU16::new(0);
    // Other processes begin elsewhere.
    static BEGIN: LazyLock<u16> =
        LazyLock::new(|| u16::try_from(host::random() % u64::from(COUNT)).expect("COUNT is a u16"));
    for _ in 0..COUNT {
        let port = FIRST + (*BEGIN + NEXT.fetch_add(1, Ordering::Relaxed) % COUNT) % COUNT;
        if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            return Ok(port);
        }
    }
    bail!(
        "no port from {FIRST} to {} is free on 127.0.0.1",
        FIRST + COUNT - 1
    )
}

/// Reads memory from the statistics of the control group. Of the page cache, only mapped pages
/// count.
fn memory_of_group(stats: &HashMap<String, u64>) -> (Result<f64, String>, Option<&'static str>) {
    const NOTE: &str = "file-backed memory is the part charged to its control group, without pages that another container read first";
    let of = |names: [&str; 2]| names.iter().find_map(|name| stats.get(*name)).copied();
    // Names in cgroup version 2 and in version 1.
    let anonymous = of(["anon", "total_rss"]);
    let mapped = of(["file_mapped", "total_mapped_file"]);
    match (anonymous, mapped) {
        (Some(anonymous), Some(mapped)) => (Ok(number(anonymous + mapped)), Some(NOTE)),
        _ => (
            Err("the engine's statistics do not distinguish memory from page cache".to_owned()),
            None,
        ),
    }
}
