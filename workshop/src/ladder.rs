//! The tutorial's ladder: its own Python image, then timber's two; what they are made of, and how they are built.

use std::{
    collections::{BTreeSet, VecDeque},
    fs,
    path::Path,
    sync::LazyLock,
};

use anyhow::{Context, Result, bail, ensure};
use bollard::{
    Docker, body_full,
    errors::Error,
    models::{BuildInfo, ImageInspect},
    query_parameters::{BuildImageOptionsBuilder, CreateImageOptionsBuilder},
};
use futures_util::{Stream, StreamExt};
use indicatif::ProgressBar;
use tar::HeaderMode;

use crate::{
    engine::{find, patient},
    progress,
};

pub struct Rung {
    pub image: &'static str,
    /// Within `context`.
    dockerfile: &'static str,
    /// A directory within the repository, which goes to the builder as far as its .dockerignore lets it.
    context: &'static str,
}

pub const LADDER: [Rung; 3] = [
    Rung {
        image: "timber-workshop:hug",
        dockerfile: "Dockerfile",
        context: "workshop/hug",
    },
    Rung {
        image: "timber-tutorial:1",
        dockerfile: "Dockerfile",
        context: "",
    },
    Rung {
        image: "timber-tutorial:2",
        dockerfile: "Dockerfile.musl",
        context: "",
    },
];

const HUG_NOTE: &str = "on python:3.11; the article's python:3 no longer starts hug: hug 2.4.0 works up to \
                        Python 3.6, 2.6.1 up to 3.11, both tried";
const STAND_IN_NOTE: &str = "on a stand-in for its base image, made of Debian's packages; the official one has another size";

/// Of what a failing build printed, lines to show.
const LAST_LINES: usize = 15;

/// Of the repository. The tool runs from a checkout, as `cargo workshop`.
pub static ROOT: LazyLock<&Path> = LazyLock::new(|| {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("the workspace is the directory above this member")
});

/// What a reader of the figures has to know about an image.
pub fn notes(image: &str, inspected: &ImageInspect) -> Vec<String> {
    let labels = inspected
        .config
        .as_ref()
        .and_then(|config| config.labels.as_ref());
    // An image inherits the labels of the one that it is built on.
    let stand_in = labels
        .and_then(|labels| labels.get("timber.stand-in"))
        .is_some_and(|value| value == "true");
    let notes = [
        (image == LADDER[0].image, HUG_NOTE),
        (stand_in, STAND_IN_NOTE),
    ];
    notes
        .into_iter()
        .filter(|(applies, _)| *applies)
        .map(|(_, note)| note.to_owned())
        .collect()
}

/// What to ask an image for. The ladder's serve the article's path; of others only the root is known to mean anything.
pub fn path(image: &str) -> &'static str {
    if LADDER.iter().any(|rung| rung.image == image) {
        "/index"
    } else {
        "/"
    }
}

/// Sees to it that the engine has the images of the ladder. Builds what is missing, or all with `rebuild`.
///
/// A build ends with the future, should that be dropped.
///
/// # Errors
/// The engine does not answer; a build fails: the error has the last lines that it printed.
pub async fn build_missing(docker: &Docker, rebuild: bool) -> Result<()> {
    for rung in &LADDER {
        if rebuild || find(docker, rung.image).await?.is_none() {
            build(docker, rung).await?;
        }
    }
    Ok(())
}

/// The images that the ladder's Dockerfiles build on. Sorted, each once.
///
/// # Errors
/// A Dockerfile cannot be read.
pub fn base_images() -> Result<BTreeSet<String>> {
    let mut images = BTreeSet::new();
    for rung in &LADDER {
        let file = ROOT.join(rung.context).join(rung.dockerfile);
        let text =
            fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
        images.extend(bases_in(&text));
    }
    Ok(images)
}

/// Earlier stages and `scratch` are no images.
fn bases_in(dockerfile: &str) -> BTreeSet<String> {
    let (mut images, mut stages) = (BTreeSet::new(), vec!["scratch"]);
    for line in dockerfile.lines() {
        let mut words = line.split_whitespace();
        if !words
            .next()
            .is_some_and(|word| word.eq_ignore_ascii_case("FROM"))
        {
            continue;
        }
        let words: Vec<&str> = words.filter(|word| !word.starts_with("--")).collect();
        if let Some(base) = words.first().filter(|base| !stages.contains(base)) {
            images.insert((*base).to_owned());
        }
        if let [_, r#as, stage] = words[..]
            && r#as.eq_ignore_ascii_case("AS")
        {
            stages.push(stage);
        }
    }
    images
}

async fn build(docker: &Docker, rung: &Rung) -> Result<()> {
    let context = archive(&ROOT.join(rung.context), rung.dockerfile)
        .with_context(|| format!("cannot collect what {} is built from", rung.image))?;
    // The engine's own builder: BuildKit would need a session with it, and these Dockerfiles are for any builder.
    // Images of steps stay, as its cache; containers do not, not even when the build fails.
    let options = BuildImageOptionsBuilder::new()
        .dockerfile(rung.dockerfile)
        .t(rung.image)
        .rm(true)
        .forcerm(true)
        .build();
    let docker = patient(docker);
    let answers = docker.build_image(options, None, Some(body_full(context.into())));
    follow(&format!("building {}", rung.image), answers).await?;
    ensure!(
        find(&docker, rung.image).await?.is_some(),
        "{} was built, but the engine does not have it",
        rung.image
    );
    Ok(())
}

/// # Errors
/// No registry answers, or it does not have the image.
pub async fn pull(docker: &Docker, image: &str) -> Result<()> {
    let options = CreateImageOptionsBuilder::new().from_image(image).build();
    let docker = patient(docker);
    let answers = docker
        .create_image(Some(options), None, None)
        .map(|answer| {
            answer.map(|info| BuildInfo {
                status: info.status,
                error_detail: info.error_detail,
                ..Default::default()
            })
        });
    follow(&format!("pulling {image}"), answers).await
}

/// A line that spins, with the latest of the engine's steps, until there are no more.
async fn follow(what: &str, answers: impl Stream<Item = Result<BuildInfo, Error>>) -> Result<()> {
    let bar = progress::spinner(what);
    last_lines(&bar, answers)
        .await
        .with_context(|| format!("{what} failed"))
}

async fn last_lines(
    bar: &ProgressBar,
    answers: impl Stream<Item = Result<BuildInfo, Error>>,
) -> Result<()> {
    let mut last = VecDeque::new();
    let mut answers = std::pin::pin!(answers);
    while let Some(answer) = answers.next().await {
        let failure = match answer {
            Ok(BuildInfo {
                error_detail: Some(detail),
                ..
            }) => detail.message.unwrap_or_default(),
            Ok(BuildInfo {
                stream: Some(text), ..
            }) => {
                // Docker colours what comes from a step's standard error.
                let text = text.replace("\u{1b}[91m", "").replace("\u{1b}[0m", "");
                for line in text.lines().filter(|line| !line.trim().is_empty()) {
                    // Docker says `Step 1/9 : FROM …`, podman `STEP 1/9: FROM …`.
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

/// The files that the builder gets, as a tar archive. Owner and time of each are left out, as the engine leaves them
/// out of what it compares with its cache: this and Docker's command line find each other's steps there.
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

/// Of a .dockerignore that denies all and admits some again, what it admits. That is the one form that is understood.
fn admitted_by(dockerignore: &str) -> Result<Vec<&str>> {
    let mut lines = dockerignore
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty() && !line.starts_with('#'));
    ensure!(lines.next() == Some("*"), "the first pattern has to be `*`");
    lines
        .map(|line| {
            let path = line
                .strip_prefix('!')
                .filter(|path| !path.contains(['*', '?', '[', '\\']));
            path.with_context(|| format!("`{line}` is not of the form `!PATH`"))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::{collections::HashMap, io::Read};

    use bollard::models::ImageConfig;

    use super::*;

    #[test]
    fn bases_are_no_stages_and_not_scratch() {
        let dockerfile = "FROM --platform=linux/arm64 rust:1-alpine AS build\nRUN true # FROM nowhere\n\
                          from build as again\nFROM debian\nFROM scratch\nCOPY --from=build /a /a\n";
        assert_eq!(
            bases_in(dockerfile).into_iter().collect::<Vec<_>>(),
            ["debian", "rust:1-alpine"]
        );
    }

    #[test]
    fn the_ladder_stands_on_images_that_its_dockerfiles_name() {
        let bases = base_images().unwrap();
        for image in ["python:3.11", "debian:", "rust:"] {
            assert!(
                bases.iter().any(|base| base.starts_with(image)),
                "{image} is not in {bases:?}"
            );
        }
    }

    #[test]
    fn the_builder_gets_what_the_dockerignore_admits() {
        for rung in &LADDER {
            let context = archive(&ROOT.join(rung.context), rung.dockerfile).unwrap();
            let mut paths: Vec<String> = Vec::new();
            for entry in tar::Archive::new(&context[..]).entries().unwrap() {
                let mut entry = entry.unwrap();
                entry.read_to_end(&mut Vec::new()).unwrap();
                paths.push(entry.path().unwrap().display().to_string());
            }
            let has = |path| paths.iter().any(|found| found == path);
            assert!(has(rung.dockerfile), "{}: {paths:?}", rung.image);
            if rung.context.is_empty() {
                assert!(
                    has("Cargo.lock") && has("src/main.rs") && has("workshop/Cargo.toml"),
                    "{paths:?}"
                );
                assert!(
                    !has("README.md") && !has("workshop/src/main.rs") && !has(".dockerignore"),
                    "{paths:?}"
                );
            } else {
                assert!(has("app.py") && has("requirements.txt"), "{paths:?}");
            }
        }
    }

    #[test]
    fn a_dockerignore_of_another_form_is_not_guessed_at() {
        assert_eq!(
            admitted_by("# all\n*\n\n!src\n!a/b.toml\n").unwrap(),
            ["src", "a/b.toml"]
        );
        for text in ["", "target\n", "*\n!src\nsrc/private\n", "*\n!*.rs\n"] {
            assert!(admitted_by(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn notes_tell_of_a_stand_in_and_of_the_articles_python() {
        let labels = HashMap::from([("timber.stand-in".to_owned(), "true".to_owned())]);
        let config = ImageConfig {
            labels: Some(labels),
            ..Default::default()
        };
        let stand_in = ImageInspect {
            config: Some(config),
            ..Default::default()
        };
        assert_eq!(notes("timber-tutorial:1", &stand_in), [STAND_IN_NOTE]);
        assert_eq!(
            notes("timber-workshop:hug", &stand_in),
            [HUG_NOTE, STAND_IN_NOTE]
        );
        assert!(notes("timber-tutorial:2", &ImageInspect::default()).is_empty());
    }
}
