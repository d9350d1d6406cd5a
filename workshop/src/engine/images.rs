//! Images in the engine.

use std::{collections::HashMap, path::Path, time::Duration};

use anyhow::{Context, Result, anyhow, bail};
use bollard::{
    Docker, body_full,
    errors::Error::{DockerResponseServerError, DockerStreamError},
    models::BuildInfo,
    query_parameters::{
        BuildImageOptionsBuilder, CreateImageOptionsBuilder, ListImagesOptions,
        RemoveImageOptionsBuilder,
    },
};
use futures_util::{StreamExt, TryStreamExt, future, stream};
use tokio::{fs::File, io::AsyncWriteExt, time};

use super::Engine;

/// Maximum time of a pull without progress, so that a firewall that drops packets delays a
/// comparison only once and not for long.
const SILENCE: Duration = Duration::from_secs(30);

/// What the engine knows about an image.
#[derive(Default)]
pub struct Inspected {
    /// `sha256:…`
    pub id: String,
    /// Size that `docker images` shows.
    pub bytes: Option<u64>,
    /// The user that the image names. Empty: root.
    pub user: String,
    /// Exposed TCP ports.
    pub ports: Vec<u16>,
    pub labels: HashMap<String, String>,
    /// Digests of the uncompressed layers, the lowest one first.
    pub layers: Vec<String>,
}

/// An image whose layers another image can share.
#[derive(Clone, Debug, PartialEq)]
pub struct Layered {
    pub name: String,
    /// See [`Inspected::layers`].
    pub layers: Vec<String>,
}

impl Engine {
    /// Returns an image, if the engine has it.
    ///
    /// # Errors
    /// The engine does not respond.
    pub async fn find(&self, image: &str) -> Result<Option<Inspected>> {
        let found = match self.docker.inspect_image(image).await {
            Ok(found) => found,
            Err(DockerResponseServerError {
                status_code: 404, ..
            }) => return Ok(None),
            Err(error) => {
                return Err(error).with_context(|| format!("cannot inspect the image {image}"));
            }
        };
        let config = found.config.unwrap_or_default();
        let ports = config.exposed_ports.unwrap_or_default();
        Ok(Some(Inspected {
            id: found.id.unwrap_or_default(),
            bytes: found.size.and_then(|size| size.try_into().ok()),
            user: config.user.unwrap_or_default(),
            ports: ports
                .iter()
                .filter_map(|port| port.trim_end_matches("/tcp").parse().ok())
                .collect(),
            labels: config.labels.unwrap_or_default(),
            layers: found
                .root_fs
                .and_then(|layers| layers.layers)
                .unwrap_or_default(),
        }))
    }

    /// Returns the layers of the images that have a tag or were pulled by digest, and of `compared`
    /// ones, which may have neither. An unnamed image is a step of a build, or a replaced version.
    ///
    /// # Errors
    /// The engine does not respond.
    pub async fn layered(&self, compared: &[&str]) -> Result<Vec<Layered>> {
        let images = self.docker.list_images(None::<ListImagesOptions>).await?;
        let named = images.into_iter().filter_map(|image| {
            let mut names = image.repo_tags.into_iter().chain(image.repo_digests);
            // Older engines list an unnamed image as <none>:<none>.
            let name = names.find(|name| !name.starts_with("<none>"))?;
            Some((name, image.id))
        });
        let compared = compared
            .iter()
            .map(|name| ((*name).to_owned(), (*name).to_owned()));
        let layers = named.chain(compared).map(async |(name, id)| {
            // Removed since it was listed, or damaged: other images can still be compared.
            let found = self.find(&id).await.ok().flatten();
            Ok(found.map(|Inspected { layers, .. }| Layered { name, layers }))
        });
        stream::iter(layers)
            .buffered(16)
            .try_filter_map(|layered| future::ready(Ok(layered)))
            .try_collect()
            .await
    }

    /// # Errors
    /// The image is missing in the engine.
    pub async fn image(&self, name: &str) -> Result<Inspected> {
        let found = self.find(name).await?;
        found.with_context(|| format!("missing image {name}: build it, or run docker pull {name}"))
    }

    /// Writes the archive of `docker save`.
    pub async fn save(&self, image: &str, file: &Path, progress: impl Fn(u64)) -> Result<()> {
        let cannot = || format!("cannot save image {image}");
        let mut archive = self.patient().export_image(image);
        let mut file = File::create(file).await?;
        while let Some(chunk) = archive.try_next().await.with_context(cannot)? {
            file.write_all(&chunk).await.with_context(cannot)?;
            progress(chunk.len() as u64);
        }
        file.flush().await.with_context(cannot)
    }

    /// Builds an image from a tar archive of its context. Calls `line` with each line of output.
    ///
    /// Dropping the future cancels the build.
    ///
    /// # Errors
    /// The error of the build.
    pub async fn build(
        &self,
        name: &str,
        dockerfile: &str,
        context: Vec<u8>,
        mut line: impl FnMut(&str),
    ) -> Result<()> {
        // The classic builder, because BuildKit needs a session, and these Dockerfiles work with
        // any builder. Intermediate images stay as its cache. Intermediate containers are removed,
        // even if the build fails.
        let options = BuildImageOptionsBuilder::new()
            .dockerfile(dockerfile)
            .t(name)
            .rm(true)
            .forcerm(true)
            .build();
        let docker = self.patient();
        let mut messages = docker.build_image(options, None, Some(body_full(context.into())));
        loop {
            match messages.try_next().await {
                Ok(None) => return Ok(()),
                Ok(Some(BuildInfo {
                    error_detail: Some(detail),
                    ..
                })) => bail!(detail.message.unwrap_or_default()),
                Ok(Some(BuildInfo { stream, status, .. })) => {
                    // Docker colors the standard error of a step.
                    let text = stream.or(status).unwrap_or_default();
                    let text = text.replace("\u{1b}[91m", "").replace("\u{1b}[0m", "");
                    text.lines()
                        .filter(|text| !text.trim().is_empty())
                        .for_each(&mut line);
                }
                Err(DockerStreamError { error }) => bail!(error),
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Pulls an image. Calls `status` with what the engine does.
    ///
    /// # Errors
    /// The registry does not respond, or does not have the image.
    pub async fn pull(&self, image: &str, mut status: impl FnMut(&str)) -> Result<()> {
        let options = CreateImageOptionsBuilder::new().from_image(image).build();
        let docker = self.patient();
        let mut messages = docker.create_image(Some(options), None, None);
        loop {
            let message = time::timeout(SILENCE, messages.try_next())
                .await
                .map_err(|_| anyhow!("no progress within {} s", SILENCE.as_secs()))?;
            match message {
                Ok(Some(message)) => message.status.iter().for_each(|text| status(text)),
                Ok(None) => return Ok(()),
                Err(
                    DockerStreamError { error: reason }
                    | DockerResponseServerError {
                        message: reason, ..
                    },
                ) => bail!(reason),
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Removes an image, but not the layers that other builds can use.
    pub async fn remove_image(&self, name: &str) -> Result<()> {
        let options = RemoveImageOptionsBuilder::new()
            .force(true)
            .noprune(true)
            .build();
        let removed = self.docker.remove_image(name, Some(options), None).await;
        removed.with_context(|| format!("cannot remove the image {name}"))?;
        Ok(())
    }

    /// Returns a client with a long timeout, for calls whose response can take minutes to begin.
    fn patient(&self) -> Docker {
        self.docker.clone().with_timeout(Duration::from_hours(1))
    }
}
