//! How requests reach the containers: over ports that the engine publishes on this machine, or, if
//! the tool runs in a container itself, over a network that it makes.

use std::{
    collections::HashMap,
    net::Ipv4Addr,
    sync::atomic::{AtomicU32, Ordering},
};

use anyhow::{Context as _, Result, anyhow, ensure};
use bollard::{
    Docker,
    errors::Error::DockerResponseServerError,
    models::{
        EndpointIpamConfig, EndpointSettings, Ipam, IpamConfig, NetworkConnectRequest,
        NetworkCreateRequest, NetworkDisconnectRequest, NetworkingConfig,
    },
    query_parameters::ListNetworksOptionsBuilder,
};

use super::{Engine, LABEL};
use crate::{host, results::Reached};

/// The container that the tool runs in.
pub struct OwnContainer {
    pub id: String,
    /// Whether it shares the network of the engine's machine, where published ports are.
    has_host_network: bool,
}

impl OwnContainer {
    /// Returns the container, or `None` if the engine runs on the same system as the tool.
    ///
    /// # Errors
    /// The tool runs in a container that the engine does not know.
    pub async fn find(docker: &Docker, engine_name: &str) -> Result<Option<Self>> {
        for candidate in host::container_ids() {
            let found = match docker.inspect_container(&candidate, None).await {
                Ok(found) => found,
                Err(DockerResponseServerError {
                    status_code: 404, ..
                }) => continue,
                Err(error) => return Err(error).context("cannot inspect the tool's own container"),
            };
            let mode = found.host_config.and_then(|config| config.network_mode);
            // A container's name can look like an id.
            if let Some(id) = found.id.filter(|id| id.starts_with(&candidate)) {
                return Ok(Some(OwnContainer {
                    id,
                    has_host_network: mode.as_deref() == Some("host"),
                }));
            }
        }
        // An engine that runs in the same container has its name.
        ensure!(
            !host::is_container() || engine_name == host::name(),
            "the engine does not know the container that this tool runs in: start the container without --hostname, \
             or with --network host"
        );
        Ok(None)
    }

    pub fn reaches(own: Option<&Self>) -> Reached {
        match own {
            Some(own) if !own.has_host_network => Reached::ContainerNetwork,
            _ => Reached::PublishedPorts,
        }
    }
}

/// A network with the tool's own container in it.
pub struct Network {
    id: String,
    subnet: Subnet,
    /// Number of addresses that were assigned.
    assigned: AtomicU32,
}

impl Network {
    /// Returns the address of the next container, and the settings that assign it. The address is
    /// known before the start, so that no call to the engine delays the first request.
    pub fn next_endpoint(&self) -> (Ipv4Addr, NetworkingConfig) {
        let address = self
            .subnet
            .host(self.assigned.fetch_add(1, Ordering::Relaxed));
        let endpoints = HashMap::from([(self.id.clone(), at(address))]);
        (
            address,
            NetworkingConfig {
                endpoints_config: Some(endpoints),
            },
        )
    }

    pub fn id(&self) -> &str {
        &self.id
    }
}

/// Returns the settings of an endpoint with this address.
fn at(address: Ipv4Addr) -> EndpointSettings {
    EndpointSettings {
        ipam_config: Some(EndpointIpamConfig {
            ipv4_address: Some(address.to_string()),
            ..EndpointIpamConfig::default()
        }),
        ..EndpointSettings::default()
    }
}

impl Engine {
    /// Returns the network of this run. Makes it if it does not exist.
    pub(super) async fn network(&self, own: &OwnContainer) -> Result<&Network> {
        let open = || async {
            let (docker, run, own) = (self.docker.clone(), self.run.clone(), own.id.clone());
            // As for containers.
            let opened = self.creating.spawn(open(docker, run, own));
            opened.await?
        };
        self.network.get_or_try_init(open).await
    }

    /// Removes networks of comparisons. `which` gets the id of the run.
    pub(super) async fn remove_networks(&self, which: impl Fn(&str) -> bool) -> Result<()> {
        let filters = HashMap::from([("label", vec![LABEL])]);
        let options = ListNetworksOptionsBuilder::new().filters(&filters).build();
        for network in self.docker.list_networks(Some(options)).await? {
            let run = network.labels.unwrap_or_default().remove(LABEL);
            let (Some(id), Some(true)) = (network.id, run.map(|run| which(&run))) else {
                continue;
            };
            self.remove_network(&id)
                .await
                .with_context(|| format!("cannot remove the network {id}"))?;
        }
        Ok(())
    }

    /// Removes a network. Disconnects containers first, because the tool's own can be in it.
    async fn remove_network(&self, id: &str) -> Result<()> {
        let network = self.docker.inspect_network(id, None).await?;
        for container in network.containers.unwrap_or_default().into_keys() {
            let request = NetworkDisconnectRequest {
                container,
                force: Some(true),
            };
            self.docker.disconnect_network(id, request).await?;
        }
        Ok(self.docker.remove_network(id).await?)
    }
}

/// Makes a network, and connects the tool's own container.
async fn open(docker: Docker, run: String, own: String) -> Result<Network> {
    let network = create(&docker, &run)
        .await
        .context("cannot create a network")?;
    let request = NetworkConnectRequest {
        container: own,
        endpoint_config: Some(at(network.subnet.own())),
    };
    docker
        .connect_network(&network.id, request)
        .await
        .context("cannot connect the tool's own container to a network")?;
    Ok(network)
}

async fn create(docker: &Docker, run: &str) -> Result<Network> {
    let request = |subnet| NetworkCreateRequest {
        name: format!("timber-workshop-{run}"),
        labels: Some(HashMap::from([(LABEL.to_owned(), run.to_owned())])),
        ipam: Some(Ipam {
            config: Some(vec![IpamConfig {
                subnet,
                ..IpamConfig::default()
            }]),
            ..Ipam::default()
        }),
        ..NetworkCreateRequest::default()
    };
    // The engine assigns fixed addresses only in a subnet that its user chose. So let it choose a
    // free one, and choose the same.
    let template = docker
        .create_network(NetworkCreateRequest {
            ipam: None,
            ..request(None)
        })
        .await?;
    let inspected = docker.inspect_network(&template.id, None).await?;
    let configs = inspected.ipam.and_then(|ipam| ipam.config);
    let mut subnets = configs
        .into_iter()
        .flatten()
        .filter_map(|config| config.subnet);
    let subnet = subnets.find_map(|text| Subnet::parse(&text));
    docker.remove_network(&template.id).await?;
    let subnet = subnet.ok_or_else(|| anyhow!("the engine assigned no IPv4 subnet"))?;
    let created = docker
        .create_network(request(Some(subnet.to_string())))
        .await?;
    Ok(Network {
        id: created.id,
        subnet,
        assigned: AtomicU32::new(0),
    })
}

/// The addresses of a network. The engine takes the first one for the gateway.
#[derive(Clone, Copy)]
struct Subnet {
    first: u32,
    prefix: u32,
}

impl Subnet {
    fn parse(text: &str) -> Option<Self> {
        let (address, prefix) = text.split_once('/')?;
        let prefix = prefix.parse().ok().filter(|prefix| *prefix <= 28)?;
        let first = address.parse::<Ipv4Addr>().ok()?.to_bits();
        Some(Subnet { first, prefix })
    }

    /// The address of the tool's own container.
    fn own(self) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.first + 2)
    }

    /// The address of a container. Those of removed containers are used again as late as possible,
    /// because the kernel remembers which container had them.
    fn host(self, index: u32) -> Ipv4Addr {
        let size = 1_u32 << (32 - self.prefix).min(16);
        // Without the network, the gateway, the tool and the broadcast address.
        Ipv4Addr::from_bits(self.first + 3 + index % (size - 4))
    }
}

impl std::fmt::Display for Subnet {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        write!(f, "{}/{}", Ipv4Addr::from_bits(self.first), self.prefix)
    }
}

#[cfg(test)]
mod tests {
    use super::Subnet;

    #[test]
    fn addresses_of_containers_are_in_the_subnet_and_not_reserved() {
        let subnet = Subnet::parse("172.27.128.0/24").unwrap();
        assert_eq!(subnet.to_string(), "172.27.128.0/24");
        assert_eq!(subnet.own().to_string(), "172.27.128.2");
        assert_eq!(subnet.host(0).to_string(), "172.27.128.3");
        assert_eq!(subnet.host(251).to_string(), "172.27.128.254");
        assert_eq!(subnet.host(252), subnet.host(0));
        let large = Subnet::parse("10.0.0.0/8").unwrap();
        assert_eq!(large.host(300).to_string(), "10.0.1.47");
        for text in ["fd00::/64", "172.27.128.0/30", "172.27.128.0"] {
            assert!(Subnet::parse(text).is_none(), "{text}");
        }
    }
}
