//! The tutorial's images: the original Python service, timber's, and the steps between them. From
//! which Dockerfiles they are built, and on which base images.

mod context;
pub mod prepare;

use std::{path::Path, sync::LazyLock};

use anyhow::{Result, ensure};

use crate::{
    engine::{Engine, Inspected},
    results::{BASE_IMAGE, StandIn},
};

#[derive(Clone, Copy)]
pub struct TutorialImage {
    pub name: &'static str,
    /// Path in the repository.
    pub dockerfile: &'static str,
    /// Directory in the repository. Its .dockerignore applies.
    pub context: &'static str,
    /// The images in its Dockerfile, sorted. Known without the repository.
    pub bases: &'static [&'static str],
}

/// Returns the path of a step's Dockerfile.
macro_rules! step {
    ($directory:literal) => {
        concat!("docs/from-1-gb-to-nothing/", $directory, "/Dockerfile")
    };
}

const REPOSITORY: &str = "";
const HUG: &str = "workshop/hug";
const ALPINE: &str = "rust:1.95-alpine";
const DEBIAN: &str = "debian:trixie-slim";
const PYTHON: &str = "python:3.11";
const PYTHON_SLIM: &str = "python:3.11-slim";
const RUST: &str = "rust:1.95-slim-trixie";
const GLIBC: TutorialImage = image(
    "timber-tutorial:1",
    "Dockerfile",
    REPOSITORY,
    &[DEBIAN, RUST],
);
const MUSL: TutorialImage = image(
    "timber-tutorial:2",
    "Dockerfile.musl",
    REPOSITORY,
    &[ALPINE],
);

/// What `compare` compares by default. The Python image comes twice, because gunicorn's defaults, one
/// worker that closes each connection, are not how someone who knows it would run it. Of the tuned
/// commands that were tried, this one had the highest throughput: with the (2 × cores) + 1 workers
/// of gunicorn's documentation it was lower, and without `--preload` memory was higher.
pub const COMPARED: [&str; 4] = [
    "timber-workshop:hug=tutorial: Python, gunicorn",
    "timber-workshop:hug=Python, gunicorn tuned:command=sh -c 'exec gunicorn --bind=0.0.0.0:8080 \
     --workers=$(nproc) --threads=4 --keep-alive=75 --preload --worker-tmp-dir=/dev/shm app:__hug_wsgi__'",
    "timber-tutorial:1=Rust on Debian",
    "timber-tutorial:2=Rust on scratch",
];

/// The images of [`COMPARED`].
pub const IMAGES: [TutorialImage; 3] = [
    image(
        "timber-workshop:hug",
        "workshop/hug/Dockerfile",
        HUG,
        &[PYTHON],
    ),
    GLIBC,
    MUSL,
];

/// The steps of docs/from-1-gb-to-nothing.md, and the images to which they lead.
pub const LADDER: [TutorialImage; 10] = [
    image("timber-step:1", step!("1-python"), HUG, &[PYTHON]),
    image("timber-step:2", step!("2-python-slim"), HUG, &[PYTHON_SLIM]),
    image(
        "timber-step:3",
        step!("3-rust"),
        REPOSITORY,
        &[DEBIAN, RUST],
    ),
    image("timber-step:4", step!("4-static"), REPOSITORY, &[ALPINE]),
    image("timber-step:5", step!("5-size"), REPOSITORY, &[ALPINE]),
    image("timber-step:6", step!("6-linker"), REPOSITORY, &[ALPINE]),
    image("timber-step:7", step!("7-build-std"), REPOSITORY, &[ALPINE]),
    GLIBC,
    MUSL,
    image(
        "timber-tutorial:3",
        "Dockerfile.build-std",
        REPOSITORY,
        &[ALPINE],
    ),
];

const fn image(
    name: &'static str,
    dockerfile: &'static str,
    context: &'static str,
    bases: &'static [&'static str],
) -> TutorialImage {
    TutorialImage {
        name,
        dockerfile,
        context,
        bases,
    }
}

const HUG_NOTE: &str = "with Python 3.11, because hug does not start on the tutorial's python:3: \
                        hug 2.4.0 works up to Python 3.6, 2.6.1 up to 3.11 (both tested)";

/// Marks an image that stands in for an official one. Images built on it inherit the label.
const STAND_IN_LABEL: &str = "timber.stand-in";
/// On a stand-in for the Rust image.
const RUST_LABEL: &str = "timber.stand-in.rust";

/// The repository. A tool that was copied to another place, such as an image, does not find it.
pub static ROOT: LazyLock<&Path> = LazyLock::new(|| {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("the repository contains workshop/")
});

/// Returns what a reader of the figures must know about an image, other than its stand-ins.
pub fn note(image: &str) -> Option<String> {
    (known(image)?.context == HUG).then(|| HUG_NOTE.to_owned())
}

/// Returns the default path of requests: the tutorial's for its images, and `/` for others.
pub fn path(image: &str) -> &'static str {
    if known(image).is_some() {
        "/index"
    } else {
        "/"
    }
}

fn known(name: &str) -> Option<&'static TutorialImage> {
    let mut images = IMAGES.iter().chain(&LADDER);
    images.find(|image| image.name == name)
}

/// Returns the stand-ins with which an image was built.
///
/// The labels of a base image reach only the images that are built on it, and not those that copy a
/// file from it. The base images of the tutorial's images are therefore known here.
///
/// # Errors
/// The engine does not respond.
pub async fn stand_ins(engine: &Engine, name: &str, inspected: &Inspected) -> Result<Vec<StandIn>> {
    let mut stand_ins = Vec::new();
    if let Some(image) = known(name) {
        for base in image.bases {
            let found = engine.find(base).await?;
            stand_ins.extend(found.and_then(|found| stand_in(base, &found)));
        }
    }
    if stand_ins.is_empty() {
        stand_ins.extend(stand_in(BASE_IMAGE, inspected));
    }
    Ok(stand_ins)
}

/// Returns `image` as a stand-in if its label says that it is one.
pub fn stand_in(image: &str, inspected: &Inspected) -> Option<StandIn> {
    let label = |name| inspected.labels.get(name).map(String::as_str);
    (label(STAND_IN_LABEL) == Some("true")).then(|| StandIn {
        image: image.to_owned(),
        made_from: match label(RUST_LABEL) {
            Some(_) => "Debian packages and the official Rust toolchain",
            None => "Debian packages",
        }
        .to_owned(),
    })
}

impl TutorialImage {
    /// Returns its name in tables and charts: for a step the name of its directory.
    pub fn label(&self) -> &'static str {
        let mut directories = self.dockerfile.rsplit('/').skip(1);
        match directories.next() {
            Some(directory) if self.name.starts_with("timber-step:") => directory,
            _ => self.name,
        }
    }

    /// Returns the command that builds it.
    pub fn build_command(&self) -> String {
        let context = match self.context {
            REPOSITORY => ".",
            context => context,
        };
        format!(
            "docker build -f {} -t {} {context}",
            self.dockerfile, self.name
        )
    }

    /// Returns an error if the repository is missing, such as in a container.
    pub fn check_dockerfile(&self) -> Result<()> {
        ensure!(
            ROOT.join(self.dockerfile).exists(),
            "cannot build the image {} without the repository: run {} in a clone of the repository",
            self.name,
            self.build_command()
        );
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, fs};

    use super::*;

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
        for image in LADDER.iter().chain(&IMAGES) {
            let dockerfile = fs::read_to_string(ROOT.join(image.dockerfile)).unwrap();
            let found = base_images_in(&dockerfile);
            let found: Vec<_> = found.iter().map(String::as_str).collect();
            assert_eq!(found, image.bases, "{}", image.dockerfile);
        }
    }

    #[test]
    fn labels_tell_what_a_stand_in_is_made_from() {
        let image = |labels: &[(&str, &str)]| {
            let labels = labels
                .iter()
                .map(|&(name, value)| (name.into(), value.into()));
            Inspected {
                labels: labels.collect(),
                ..Inspected::default()
            }
        };
        let made_from = |labels: &[(&str, &str)]| {
            stand_in("rust:1", &image(labels)).map(|stand_in| stand_in.made_from)
        };
        let is_stand_in = (STAND_IN_LABEL, "true");
        assert_eq!(made_from(&[]), None);
        assert_eq!(made_from(&[is_stand_in]).unwrap(), "Debian packages");
        assert!(
            made_from(&[is_stand_in, (RUST_LABEL, "true")])
                .unwrap()
                .contains("the official Rust toolchain")
        );
    }
}
