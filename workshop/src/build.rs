//! Builds the tutorial's images in the engine.

use std::collections::VecDeque;

use anyhow::{Context as _, Result, bail, ensure};
use bollard::{
    Docker, body_full, errors::Error, models::BuildInfo, query_parameters::BuildImageOptionsBuilder,
};
use futures_util::{Stream, StreamExt};
use indicatif::ProgressBar;

use crate::{
    context,
    engine::{find, patient},
    progress,
    tutorial::TutorialImage,
};

/// Number of lines of a failed build to show.
const LAST_LINES: usize = 15;

/// Builds the images that are missing in the engine, or all of them with `rebuild`.
///
/// Dropping the future cancels the build.
///
/// # Errors
/// The engine does not respond, or a build fails. The error then contains the end of its output.
pub async fn build_missing(docker: &Docker, images: &[TutorialImage], rebuild: bool) -> Result<()> {
    for image in images {
        if rebuild || find(docker, image.name).await?.is_none() {
            build(docker, image).await?;
        }
    }
    Ok(())
}

async fn build(docker: &Docker, image: &TutorialImage) -> Result<()> {
    let context = context::archive(image)
        .with_context(|| format!("cannot read the build context of {}", image.name))?;
    // The classic builder, because BuildKit needs a session, and these Dockerfiles work with any
    // builder. Intermediate images stay as its cache. Intermediate containers are removed, even if
    // the build fails.
    let options = BuildImageOptionsBuilder::new()
        .dockerfile(image.dockerfile)
        .t(image.name)
        .rm(true)
        .forcerm(true)
        .build();
    let docker = patient(docker);
    let messages = docker.build_image(options, None, Some(body_full(context.into())));
    let what = format!("building {}", image.name);
    follow(&progress::spinner(&what), messages)
        .await
        .with_context(|| format!("{what} failed"))?;
    ensure!(
        find(&docker, image.name).await?.is_some(),
        "{} was built, but is missing in the engine",
        image.name
    );
    Ok(())
}

/// Shows the current step until the build ends.
///
/// # Errors
/// The error of the build, and its last lines.
async fn follow(
    bar: &ProgressBar,
    messages: impl Stream<Item = Result<BuildInfo, Error>>,
) -> Result<()> {
    let mut last = VecDeque::new();
    let mut messages = std::pin::pin!(messages);
    while let Some(message) = messages.next().await {
        let failure = match message {
            Ok(BuildInfo {
                error_detail: Some(detail),
                ..
            }) => detail.message.unwrap_or_default(),
            Ok(BuildInfo {
                stream: Some(text), ..
            }) => {
                // Docker colors the standard error of a step.
                let text = text.replace("\u{1b}[91m", "").replace("\u{1b}[0m", "");
                for line in text.lines().filter(|line| !line.trim().is_empty()) {
                    // Docker prints `Step 1/9 : FROM …`, Podman `STEP 1/9: FROM …`.
                    if line
                        .get(..5)
                        .is_some_and(|start| start.eq_ignore_ascii_case("step "))
                    {
                        progress::say(bar, line);
                    }
                    last.push_back(line.to_owned());
                    if last.len() > LAST_LINES {
                        last.pop_front();
                    }
                }
                continue;
            }
            Ok(BuildInfo { status, .. }) => {
                if let Some(status) = status {
                    progress::say(bar, &status);
                }
                continue;
            }
            Err(Error::DockerStreamError { error }) => error,
            Err(error) => error.to_string(),
        };
        last.push_front(failure);
        bail!("{}", last.make_contiguous().join("\n  "));
    }
    Ok(())
}
