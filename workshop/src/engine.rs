//! The API of Docker Engine or Podman. What a run makes has a label, and is removed at the end.

mod claim;
mod container;
mod images;
mod network;

use std::collections::HashMap;

use anyhow::{Context as _, Result, ensure};
use bollard::{Docker, query_parameters::ListContainersOptionsBuilder};
use tokio::sync::OnceCell;
use tokio_util::task::TaskTracker;

use self::network::{Network, OwnContainer};
pub use self::{
    container::{Container, Mount, RunOptions, Tasks, Usage},
    images::{Inspected, Layered},
};
use crate::{
    host,
    results::{self, Machine},
};

/// Label of each container and network. Its value is the id of the run that created it.
const LABEL: &str = "timber.workshop";

pub struct Engine {
    docker: Docker,
    pub description: results::Engine,
    pub machine: Machine,
    /// Id of this run. Random, because in a container, every process has the same id.
    run: String,
    /// The container that the tool runs in.
    own: Option<OwnContainer>,
    network: OnceCell<Network>,
    /// Create calls that can outlive an interrupted caller.
    creating: TaskTracker,
}

/// What `cargo workshop ready` asks an engine.
pub struct Facts {
    /// State of the engine in a swarm: `inactive`, `active`, …
    pub swarm: String,
    /// Directory of the engine's images.
    pub directory: Option<String>,
    /// Names of all containers.
    pub containers: Vec<String>,
}

impl Engine {
    /// Connects to the engine at `DOCKER_HOST`, or at Docker's default socket.
    ///
    /// # Errors
    /// The engine does not respond or is on another machine.
    pub async fn connect() -> Result<Self> {
        refuse_remote()?;
        let docker = Docker::connect_with_defaults().with_context(no_engine)?;
        let docker = docker.negotiate_version().await.with_context(no_engine)?;
        let version = docker.version().await.with_context(no_engine)?;
        let info = docker.info().await.with_context(no_engine)?;
        let known = |text: Option<String>| {
            text.filter(|text| !text.is_empty())
                .unwrap_or_else(|| "unknown".into())
        };
        let components = version.components.unwrap_or_default();
        let is_podman = components
            .iter()
            .any(|component| component.name.contains("Podman"));
        let is_rootless = info
            .security_options
            .unwrap_or_default()
            .iter()
            .any(|option| option.contains("rootless"));
        let kernel = known(info.kernel_version);
        let own = OwnContainer::find(&docker, info.name.as_deref().unwrap_or_default()).await?;
        Ok(Engine {
            docker,
            description: results::Engine {
                name: if is_podman { "Podman" } else { "Docker Engine" }.to_owned(),
                version: known(info.server_version),
                storage_driver: known(info.driver),
                cgroup_version: info
                    .cgroup_version
                    .map_or_else(|| "unknown".into(), |version| version.to_string()),
                rootless: is_rootless,
                reached: OwnContainer::reaches(own.as_ref()),
            },
            machine: Machine {
                architecture: known(info.architecture),
                cpus: info
                    .ncpu
                    .and_then(|count| count.try_into().ok())
                    .context("the engine reports no number of CPUs")?,
                cpu_model: host::cpu_model().filter(|_| host::is_our_kernel(&kernel)),
                memory_bytes: info
                    .mem_total
                    .and_then(|bytes| bytes.try_into().ok())
                    .context("the engine reports no memory size")?,
                kernel,
                operating_system: known(info.operating_system),
            },
            run: format!("{:016x}", host::random()),
            own,
            network: OnceCell::new(),
            creating: TaskTracker::new(),
        })
    }

    /// # Errors
    /// The engine does not respond.
    pub async fn facts(&self) -> Result<Facts> {
        let info = self.docker.info().await;
        let info = info.context("the engine has stopped responding")?;
        let swarm = info.swarm.and_then(|swarm| swarm.local_node_state);
        let all = ListContainersOptionsBuilder::new().all(true).build();
        let containers = self.docker.list_containers(Some(all)).await?;
        let names = containers
            .into_iter()
            .flat_map(|container| container.names.unwrap_or_default());
        Ok(Facts {
            containers: names
                .map(|name| name.trim_start_matches('/').to_owned())
                .collect(),
            swarm: swarm.map_or_else(|| "inactive".to_owned(), |state| state.to_string()),
            directory: info.docker_root_dir,
        })
    }

    pub async fn responds(&self) -> bool {
        self.docker.ping().await.is_ok()
    }

    /// Returns the number of running containers that do not belong to a comparison.
    pub async fn others(&self) -> Result<usize> {
        let containers = self.docker.list_containers(None).await;
        let containers = containers.context("the engine has stopped responding")?;
        let own = self.own.as_ref().map(|own| &own.id);
        let others = containers.iter().filter(|container| {
            let labels = container.labels.as_ref();
            container.id.as_ref() != own && !labels.is_some_and(|labels| labels.contains_key(LABEL))
        });
        Ok(others.count())
    }

    /// Returns the ids of containers of comparisons. `which` gets the id of the run.
    async fn containers(&self, which: impl Fn(&str) -> bool) -> Result<Vec<String>> {
        let filters = HashMap::from([("label", vec![LABEL])]);
        let options = ListContainersOptionsBuilder::new()
            .all(true)
            .filters(&filters)
            .build();
        let containers = self.docker.list_containers(Some(options)).await?;
        let found = containers.into_iter().filter_map(|container| {
            let run = container.labels?.remove(LABEL)?;
            container.id.filter(|_| which(&run))
        });
        Ok(found.collect())
    }
}

/// Rejects remote engines: requests are sent to published ports on this machine.
fn refuse_remote() -> Result<()> {
    let host = std::env::var("DOCKER_HOST").unwrap_or_default();
    let authority = host
        .strip_prefix("tcp://")
        .or(host.strip_prefix("http://"))
        .unwrap_or_default();
    let name = authority
        .split('/')
        .next()
        .unwrap_or_default()
        .rsplit_once(':')
        .map_or(authority, |(name, _)| name);
    let is_here = ["", "localhost", "127.0.0.1", "[::1]"].contains(&name);
    ensure!(
        is_here,
        "unsupported DOCKER_HOST={host}: the engine must publish its ports on this machine"
    );
    Ok(())
}

fn no_engine() -> String {
    let host = std::env::var("DOCKER_HOST");
    let at = host
        .as_deref()
        .unwrap_or("unix:///var/run/docker.sock (DOCKER_HOST is unset)");
    format!("no container engine responds at {at}: start it, or allow this user to access it")
}
