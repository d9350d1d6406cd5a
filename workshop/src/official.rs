//! Official base images first: replaces stand-ins where an image registry can be reached.

use std::{collections::BTreeSet, time::Duration};

use anyhow::{Context as _, Result};
use bollard::{
    Docker,
    errors::Error,
    query_parameters::{CreateImageOptionsBuilder, RemoveImageOptionsBuilder},
};
use futures_util::TryStreamExt;
use tokio::time;

use crate::{
    engine::{find, patient},
    progress,
    tutorial::{self, TutorialImage},
};

/// Maximum time without progress, so that a firewall that drops packets delays a comparison only
/// once and not for long.
const SILENCE: Duration = Duration::from_secs(30);

/// Pulls the official images for base images that are stand-ins, and removes the images that were
/// built on those stand-ins. Keeps the stand-ins if a pull fails, and prints why.
///
/// # Errors
/// The engine does not respond, or a Dockerfile cannot be read.
pub async fn replace_stand_ins(docker: &Docker, images: &[TutorialImage]) -> Result<()> {
    let (mut tried, mut replaced) = (BTreeSet::new(), BTreeSet::new());
    for image in images {
        for base in image.base_images()? {
            if !tried.insert(base.clone()) || !is_stand_in(docker, &base).await? {
                continue;
            }
            if let Err(error) = pull(docker, &base).await {
                eprintln!("Keeping local stand-ins for official images: {error:#}");
                return remove_built_on(docker, images, &replaced).await;
            }
            // A registry of one's own can serve stand-ins.
            if !is_stand_in(docker, &base).await? {
                eprintln!("Pulled {base} in place of a local stand-in");
                replaced.insert(base);
            }
        }
    }
    remove_built_on(docker, images, &replaced).await
}

async fn is_stand_in(docker: &Docker, image: &str) -> Result<bool> {
    let found = find(docker, image).await?;
    Ok(found.is_some_and(|found| tutorial::stand_in(image, &found).is_some()))
}

async fn pull(docker: &Docker, image: &str) -> Result<()> {
    let what = format!("pulling {image}");
    let bar = progress::spinner(&what);
    let options = CreateImageOptionsBuilder::new().from_image(image).build();
    let docker = patient(docker);
    let mut messages = std::pin::pin!(docker.create_image(Some(options), None, None));
    loop {
        let message = time::timeout(SILENCE, messages.try_next())
            .await
            .with_context(|| format!("{what}: no progress within {} s", SILENCE.as_secs()))?;
        match message {
            Ok(Some(message)) => {
                if let Some(status) = message.status {
                    progress::say(&bar, &status);
                }
            }
            Ok(None) => return Ok(()),
            Err(
                Error::DockerStreamError { error: reason }
                | Error::DockerResponseServerError {
                    message: reason, ..
                },
            ) => anyhow::bail!("{what}: {reason}"),
            Err(error) => return Err(error).context(what),
        }
    }
}

async fn remove_built_on(
    docker: &Docker,
    images: &[TutorialImage],
    replaced: &BTreeSet<String>,
) -> Result<()> {
    for image in images {
        if !image.base_images()?.is_disjoint(replaced) && find(docker, image.name).await?.is_some()
        {
            eprintln!("Building {} again, on official images", image.name);
            let options = RemoveImageOptionsBuilder::new()
                .force(true)
                .noprune(true)
                .build();
            docker
                .remove_image(image.name, Some(options), None)
                .await
                .with_context(|| format!("cannot remove the image {}", image.name))?;
        }
    }
    Ok(())
}
