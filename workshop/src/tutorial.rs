//! The tutorial's images: the original Python service and timber's two. How they are built, and on
//! what.

use std::{
    collections::{BTreeSet, HashMap, VecDeque},
    fs,
    path::Path,
    sync::LazyLock,
};

use anyhow::{Context, Result, bail, ensure};
use bollard::{
    Docker, body_full,
    errors::Error,
    models::{BuildInfo, ImageInspect},
    query_parameters::BuildImageOptionsBuilder,
};
use futures_util::{Stream, StreamExt};
use indicatif::ProgressBar;
use tar::HeaderMode;

use crate::{
    engine::{find, patient},
    progress,
    results::StandIn,
};

pub struct TutorialImage {
    pub name: &'static str,
    /// Path within `context`.
    dockerfile: &'static str,
    /// Directory within the repository. Its .dockerignore applies.
    context: &'static str,
}

pub const IMAGES: [TutorialImage; 3] = [
    TutorialImage {
        name: "timber-workshop:hug",
        dockerfile: "Dockerfile",
        context: "workshop/hug",
    },
    TutorialImage {
        name: "timber-tutorial:1",
        dockerfile: "Dockerfile",
        context: "",
    },
    TutorialImage {
        name: "timber-tutorial:2",
        dockerfile: "Dockerfile.musl",
        context: "",
    },
];

const HUG_NOTE: &str = "built on python:3.11, because hug does not start on the tutorial's python:3: \
                        hug 2.4.0 works up to Python 3.6, 2.6.1 up to 3.11 (both tested)";

/// Marks an image that stands in for an official one. Images built on it inherit the label.
const STAND_IN_LABEL: &str = "timber.stand-in";
/// On a stand-in for the Rust image: `official` if its toolchain is rustup's, `debian` if it is
/// Debian's.
const RUST_LABEL: &str = "timber.stand-in.rust";

/// Number of lines of a failed build to show.
const LAST_LINES: usize = 15;

/// The repository. The tool always runs from a checkout, as `cargo workshop`.
static ROOT: LazyLock<&Path> = LazyLock::new(|| {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("the repository contains workshop/")
});

/// Returns what a reader of the figures must know about an image, other than its stand-ins.
pub fn note(image: &str) -> Option<String> {
    (image == IMAGES[0].name).then(|| HUG_NOTE.to_owned())
}

/// Returns the default path of requests: the tutorial's for its images, and `/` for others.
pub fn path(image: &str) -> &'static str {
    if IMAGES.iter().any(|known| known.name == image) {
        "/index"
    } else {
        "/"
    }
}

/// Builds the tutorial's images that are missing in the engine, or all of them with `rebuild`.
///
/// Dropping the future cancels the build.
///
/// # Errors
/// The engine does not respond, or a build fails. The error then contains the end of its output.
pub async fn build_missing(docker: &Docker, rebuild: bool) -> Result<()> {
    for image in &IMAGES {
        if rebuild || find(docker, image.name).await?.is_none() {
            build(docker, image).await?;
        }
    }
    Ok(())
}

/// Returns the stand-ins with which an image was built.
///
/// The labels of a base image reach only the images that are built on it, and not those that copy a
/// file from it. The base images of the tutorial's images are therefore read from their
/// Dockerfiles.
///
/// # Errors
/// The engine does not respond, or a Dockerfile cannot be read.
pub async fn stand_ins(
    docker: &Docker,
    name: &str,
    inspected: &ImageInspect,
) -> Result<Vec<StandIn>> {
    let mut stand_ins = Vec::new();
    if let Some(image) = IMAGES.iter().find(|image| image.name == name) {
        for base in image.base_images()? {
            let found = find(docker, &base).await?;
            stand_ins.extend(found.and_then(|found| stand_in(&base, &found)));
        }
    }
    if stand_ins.is_empty() {
        stand_ins.extend(stand_in("its base image", inspected));
    }
    Ok(stand_ins)
}

/// Returns `image` as a stand-in if its label says that it is one.
pub fn stand_in(image: &str, inspected: &ImageInspect) -> Option<StandIn> {
    let config = inspected.config.as_ref()?;
    let labels: &HashMap<_, _> = config.labels.as_ref()?;
    let label = |name| labels.get(name).map(String::as_str);
    (label(STAND_IN_LABEL) == Some("true")).then(|| StandIn {
        image: image.to_owned(),
        made_from: match label(RUST_LABEL) {
            Some("official") => "Debian packages and the official Rust toolchain",
            Some(_) => "Debian packages, Debian's Rust compiler among them",
            None => "Debian packages",
        }
        .to_owned(),
    })
}

impl TutorialImage {
    /// Returns the images that its Dockerfile names, sorted.
    ///
    /// # Errors
    /// The Dockerfile cannot be read.
    pub fn base_images(&self) -> Result<BTreeSet<String>> {
        let file = ROOT.join(self.context).join(self.dockerfile);
        let text =
            fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
        Ok(base_images_in(&text))
    }
}

/// Returns the images in the `FROM` lines, without `scratch` and earlier stages. Resolves the
/// defaults of `ARG` lines.
fn base_images_in(dockerfile: &str) -> BTreeSet<String> {
    let (mut images, mut stages) = (BTreeSet::new(), vec!["scratch"]);
    let mut defaults = Vec::new();
    for line in dockerfile.lines() {
        let mut words = line.split_whitespace();
        let instruction = words.next().unwrap_or_default();
        if instruction.eq_ignore_ascii_case("ARG") {
            defaults.extend(words.filter_map(|word| word.split_once('=')));
            continue;
        }
        if !instruction.eq_ignore_ascii_case("FROM") {
            continue;
        }
        let words: Vec<&str> = words.filter(|word| !word.starts_with("--")).collect();
        if let Some(base) = words.first().filter(|base| !stages.contains(base)) {
            images.insert(with_defaults(base, &defaults));
        }
        if let [_, r#as, stage] = words[..]
            && r#as.eq_ignore_ascii_case("AS")
        {
            stages.push(stage);
        }
    }
    images
}

/// Replaces `$NAME` and `${NAME}`.
fn with_defaults(text: &str, defaults: &[(&str, &str)]) -> String {
    let mut text = text.to_owned();
    for (name, value) in defaults {
        let value = value.trim_matches('"');
        text = text.replace(&format!("${{{name}}}"), value);
        if text == format!("${name}") {
            value.clone_into(&mut text);
        }
    }
    text
}

async fn build(docker: &Docker, image: &TutorialImage) -> Result<()> {
    let context = archive(&ROOT.join(image.context), image.dockerfile)
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

/// Returns the build context as a tar archive. Owners and times are left out, because the engine's
/// cache ignores them. So the cache is shared with `docker build`.
fn archive(context: &Path, dockerfile: &str) -> Result<Vec<u8>> {
    let mut archive = tar::Builder::new(Vec::new());
    archive.mode(HeaderMode::Deterministic);
    let ignore = context.join(".dockerignore");
    if ignore.exists() {
        let text = fs::read_to_string(&ignore)
            .with_context(|| format!("cannot read {}", ignore.display()))?;
        let admitted = admitted_by(&text).with_context(|| format!("in {}", ignore.display()))?;
        for path in admitted.into_iter().chain([dockerfile]) {
            let file = context.join(path);
            if file.is_dir() {
                archive.append_dir_all(path, &file)
            } else {
                archive.append_path_with_name(&file, path)
            }
            .with_context(|| format!("cannot read {}", file.display()))?;
        }
    } else {
        archive
            .append_dir_all("", context)
            .with_context(|| format!("cannot read {}", context.display()))?;
    }
    Ok(archive.into_inner()?)
}

/// Returns the paths that a .dockerignore admits. Only `*` followed by lines of the form `!PATH` is
/// supported.
fn admitted_by(dockerignore: &str) -> Result<Vec<&str>> {
    let mut lines = dockerignore
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty() && !line.starts_with('#'));
    ensure!(
        lines.next() == Some("*"),
        "unsupported: the first pattern must be `*`"
    );
    lines
        .map(|line| {
            let path = line
                .strip_prefix('!')
                .filter(|path| !path.contains(['*', '?', '[', '\\']));
            path.with_context(|| format!("unsupported pattern `{line}`: expected `!PATH`"))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use bollard::models::ImageConfig;

    use super::*;

    #[test]
    fn base_images_exclude_stages_and_scratch() {
        let dockerfile = "ARG RUST=rust:1-alpine\nARG SUITE=trixie\n\
                          FROM --platform=linux/arm64 $RUST AS build\nRUN true # FROM nowhere\n\
                          from build as again\nFROM debian:${SUITE}-slim\nFROM scratch\nCOPY --from=build /a /a\n";
        assert_eq!(
            base_images_in(dockerfile).into_iter().collect::<Vec<_>>(),
            ["debian:trixie-slim", "rust:1-alpine"]
        );
    }

    #[test]
    fn base_images_of_the_tutorial_are_in_its_dockerfiles() {
        let starts = |image: &TutorialImage| -> Vec<String> {
            let images = image.base_images().unwrap().into_iter();
            images
                .map(|name| name.split(':').next().unwrap().to_owned())
                .collect()
        };
        let expected = [vec!["python"], vec!["debian", "rust"], vec!["rust"]];
        for (image, expected) in IMAGES.iter().zip(expected) {
            assert_eq!(starts(image), expected, "{}", image.name);
        }
    }

    #[test]
    fn the_build_context_contains_what_the_dockerignore_admits() {
        for image in &IMAGES {
            let context = archive(&ROOT.join(image.context), image.dockerfile).unwrap();
            let mut paths: Vec<String> = Vec::new();
            for entry in tar::Archive::new(&context[..]).entries().unwrap() {
                let mut entry = entry.unwrap();
                entry.read_to_end(&mut Vec::new()).unwrap();
                paths.push(entry.path().unwrap().display().to_string());
            }
            let has = |path| paths.iter().any(|found| found == path);
            assert!(has(image.dockerfile), "{}: {paths:?}", image.name);
            if image.context.is_empty() {
                assert!(has("Cargo.lock") && has("src/main.rs"), "{paths:?}");
                assert!(
                    !has("README.md") && !has("workshop/Cargo.toml") && !has(".dockerignore"),
                    "{paths:?}"
                );
            } else {
                assert!(has("app.py") && has("requirements.txt"), "{paths:?}");
            }
        }
    }

    #[test]
    fn rejects_other_forms_of_a_dockerignore() {
        assert_eq!(
            admitted_by("# all\n*\n\n!src\n!a/b.toml\n").unwrap(),
            ["src", "a/b.toml"]
        );
        for text in ["", "target\n", "*\n!src\nsrc/private\n", "*\n!*.rs\n"] {
            assert!(admitted_by(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn labels_tell_what_a_stand_in_is_made_from() {
        let image = |labels: &[(&str, &str)]| {
            let labels = labels
                .iter()
                .map(|&(name, value)| (name.into(), value.into()));
            ImageInspect {
                config: Some(ImageConfig {
                    labels: Some(labels.collect()),
                    ..Default::default()
                }),
                ..Default::default()
            }
        };
        let made_from = |labels: &[(&str, &str)]| {
            stand_in("rust:1", &image(labels)).map(|stand_in| stand_in.made_from)
        };
        let is_stand_in = (STAND_IN_LABEL, "true");
        assert_eq!(made_from(&[]), None);
        assert_eq!(made_from(&[is_stand_in]).unwrap(), "Debian packages");
        assert!(
            made_from(&[is_stand_in, (RUST_LABEL, "official")])
                .unwrap()
                .contains("the official Rust toolchain")
        );
        assert!(
            made_from(&[is_stand_in, (RUST_LABEL, "debian")])
                .unwrap()
                .contains("Debian's Rust compiler")
        );
    }
}
