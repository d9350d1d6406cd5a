//! One comparison at a time on an engine, because two would falsify the figures of both. What a
//! comparison leaves behind when it is killed, the next one removes.
//!
//! A volume with a fixed name is the lock: engines create it for one run only, and tell other runs
//! its labels. Containers and networks have the id of their run as a label.

use std::collections::HashMap;

use anyhow::{Context as _, Result, bail};
use bollard::{
    errors::Error::DockerResponseServerError, models::VolumeCreateRequest,
    query_parameters::RemoveVolumeOptions,
};
use serde::{Deserialize, Serialize};

use super::{Engine, LABEL};
use crate::host;

const LOCK: &str = "timber-workshop";
/// Label of the lock: the [`Owner`] as JSON.
const OWNER: &str = "timber.workshop.owner";

/// The process that runs a comparison.
#[derive(Serialize, Deserialize)]
struct Owner {
    pid: i32,
    /// In clock ticks since the boot. `None`: unknown.
    start: Option<u64>,
    /// In which its id is unique.
    namespace: String,
    /// The container that it runs in.
    container: Option<String>,
}

impl Owner {
    fn this_process(container: Option<&str>) -> Self {
        let pid = std::process::id().cast_signed();
        Owner {
            pid,
            start: host::process_start(pid),
            namespace: host::pid_namespace(),
            container: container.map(str::to_owned),
        }
    }

    /// Returns whether the process is running, if it is visible from `here`.
    fn is_running(&self, here: &Owner) -> Option<bool> {
        if self.namespace == here.namespace {
            let is_same = self.start.is_none() || self.start == host::process_start(self.pid);
            return Some(is_same && host::is_running(self.pid));
        }
        // This container, before it was restarted.
        let is_earlier = self.container.is_some() && self.container == here.container;
        is_earlier.then_some(false)
    }
}

impl Engine {
    /// Claims the engine for this run. Then removes what killed comparisons left behind, and
    /// returns the number of their containers.
    ///
    /// # Errors
    /// Another comparison is running.
    pub async fn claim(&self) -> Result<usize> {
        while let Some((run, owner)) = self.lock().await? {
            if self.is_alive(owner.as_ref()).await? {
                let who = match owner {
                    Some(Owner {
                        container: Some(id),
                        ..
                    }) => format!("container {id:.12}"),
                    Some(owner) => format!("process {}", owner.pid),
                    None => "an unknown process".to_owned(),
                };
                bail!(
                    "{who} is running another comparison on this engine. If that is wrong, run docker volume rm {LOCK}"
                );
            }
            self.unlock(&run).await?;
        }
        let abandoned = self.containers(|run| run != self.run).await?;
        for id in &abandoned {
            self.remove(id).await?;
        }
        self.remove_networks(|run| run != self.run).await?;
        Ok(abandoned.len())
    }

    /// Removes everything that this run made, also what the engine is still creating.
    pub async fn clear(&self) -> Result<()> {
        self.creating.close();
        self.creating.wait().await;
        for id in self.containers(|run| run == self.run).await? {
            self.remove(&id).await?;
        }
        self.remove_networks(|run| run == self.run).await?;
        self.unlock(&self.run).await
    }

    /// Creates the lock. Returns `None` if this run has it now. Otherwise returns the run that has
    /// it, and its owner, if that is known.
    async fn lock(&self) -> Result<Option<(String, Option<Owner>)>> {
        let request = VolumeCreateRequest {
            name: Some(LOCK.to_owned()),
            labels: Some(HashMap::from([
                (LABEL.to_owned(), self.run.clone()),
                (OWNER.to_owned(), serde_json::to_string(&self.owner())?),
            ])),
            ..VolumeCreateRequest::default()
        };
        // If there is a volume of that name, the engine keeps it.
        let created = self.docker.create_volume(request).await;
        created.with_context(|| format!("cannot create the volume {LOCK}"))?;
        // After a restart of the engine, the response above lacks the labels of an older volume.
        let labels = self.docker.inspect_volume(LOCK).await?.labels;
        let run = labels.get(LABEL).cloned().unwrap_or_default();
        if run == self.run {
            return Ok(None);
        }
        let owner = labels.get(OWNER).map(String::as_str).unwrap_or_default();
        Ok(Some((run, serde_json::from_str(owner).ok())))
    }

    /// Removes the lock of a run, but not one that another run has taken since.
    async fn unlock(&self, run: &str) -> Result<()> {
        let found = self.docker.inspect_volume(LOCK).await.ok();
        let other = found.and_then(|volume| volume.labels.get(LABEL).cloned());
        if other.is_some_and(|other| other != run) {
            return Ok(());
        }
        match self
            .docker
            .remove_volume(LOCK, None::<RemoveVolumeOptions>)
            .await
        {
            Ok(())
            | Err(DockerResponseServerError {
                status_code: 404, ..
            }) => Ok(()),
            Err(error) => Err(error).with_context(|| format!("cannot remove the volume {LOCK}")),
        }
    }

    /// Returns whether the process is running. If that cannot be known, it is.
    async fn is_alive(&self, owner: Option<&Owner>) -> Result<bool> {
        let Some(owner) = owner else { return Ok(true) };
        if let Some(is_running) = owner.is_running(&self.owner()) {
            return Ok(is_running);
        }
        let Some(container) = &owner.container else {
            return Ok(true);
        };
        match self.docker.inspect_container(container, None).await {
            Ok(found) => Ok(found.state.and_then(|state| state.running) == Some(true)),
            Err(DockerResponseServerError {
                status_code: 404, ..
            }) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    fn owner(&self) -> Owner {
        Owner::this_process(self.own.as_ref().map(|own| own.id.as_str()))
    }
}

#[cfg(test)]
mod tests {
    use super::Owner;

    fn owner(pid: i32, start: Option<u64>, namespace: &str, container: Option<&str>) -> Owner {
        Owner {
            pid,
            start,
            namespace: namespace.to_owned(),
            container: container.map(str::to_owned),
        }
    }

    #[test]
    fn an_owner_is_visible_in_its_namespace_only() {
        let mut here = Owner::this_process(Some("a"));
        here.namespace = "own".to_owned();
        let (pid, start) = (here.pid, here.start);
        assert_eq!(
            owner(pid, start, "own", Some("a")).is_running(&here),
            Some(true)
        );
        assert_eq!(owner(pid, None, "own", None).is_running(&here), Some(true));
        // The id was used again.
        assert_eq!(
            owner(pid, Some(1), "own", None).is_running(&here),
            Some(false)
        );
        assert_eq!(
            owner(i32::MAX, Some(1), "own", None).is_running(&here),
            Some(false)
        );
        // In every container, the first process has the same id.
        assert_eq!(owner(1, Some(1), "other", None).is_running(&here), None);
        assert_eq!(
            owner(1, Some(1), "other", Some("b")).is_running(&here),
            None
        );
        assert_eq!(
            owner(1, Some(1), "other", Some("a")).is_running(&here),
            Some(false)
        );
    }
}
