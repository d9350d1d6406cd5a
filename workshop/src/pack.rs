//! All that a room without a network needs, in one archive.
//!
//! The archive is a plain tar whose parts are what other tools read, too: `images.tar.gz` is for `docker load`,
//! `crates.tar.gz` and `report.tar.gz` are for `tar xzf`, and `manifest.json`, the last one, has their sums.

mod archive;
mod stream;
mod unpack;

use std::{
    env,
    fs::Permissions,
    io::{self, Read, Seek, SeekFrom},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{ExitCode, Stdio},
};

use anyhow::{Context, Result, bail, ensure};
use bollard::{Docker, models::ImageInspect};
use clap::Args;
use futures_util::{StreamExt, TryStreamExt};
use indicatif::DecimalBytes;
use jiff::Timestamp;
use tempfile::TempDir;
use tokio::{process::Command, task::spawn_blocking};
use tokio_util::{
    io::{StreamReader, SyncIoBridge},
    sync::CancellationToken,
};

use self::archive::{Archive, CRATES, FORMAT, Manifest, REPORT};
use self::stream::stop_on_signal;
pub use self::unpack::{Arguments as UnpackArguments, run as unpack};
use crate::{
    engine::{self, Engine},
    ladder, progress,
};

/// In `crates.tar.gz`, for `cargo --config`: cargo takes `vendor` as beside the directory that this file is in.
const CARGO_CONFIG: &str = "\
[source.crates-io]
replace-with = \"vendored\"

[source.vendored]
directory = \"vendor\"
";

/// In `crates.tar.gz`: a base image that has the crates, under the name of the one that has not. A build in `/timber`
/// finds `/.cargo`.
const CRATES_DOCKERFILE: &str = "\
ARG BASE
FROM $BASE
COPY .cargo /.cargo
COPY vendor /vendor
";

#[derive(Args)]
#[command(after_long_help = "\
In the room, `cargo workshop unpack FILE` loads the images and makes a directory of the rest. Without this tool:
  tar xf FILE && docker load -i images.tar.gz && mkdir crates && tar xzf crates.tar.gz -C crates

Builds without a network, DIR being that directory:
  cargo build --release --offline --config DIR/crates/.cargo/config.toml
  docker build --network none --build-arg BASE=rust:1.96-alpine -t rust:1.96-alpine DIR/crates
  docker build --network none -f Dockerfile.musl -t timber-tutorial:2 .
The second line puts the crates into the base image, the third is the usual one; Dockerfile goes the same way with its
own base. The tutorial's Python image comes built: pip would need a network.")]
pub struct Arguments {
    /// Archive to write
    #[arg(default_value = "timber-workshop.tar")]
    file: PathBuf,

    /// Images to take instead of the tutorial's ladder and its base images
    #[arg(long, value_name = "IMAGE", value_delimiter = ',', num_args = 1..)]
    images: Vec<String>,

    /// Report to take [default: comparison, if it is there]
    #[arg(long, value_name = "DIR")]
    report: Option<PathBuf>,

    /// Leave the crates out, which only a build needs
    #[arg(long)]
    no_crates: bool,
}

/// # Errors
/// The engine does not answer; an image is neither there nor to be had; a file cannot be read or written; it was
/// interrupted. Nothing is left then: an archive that was there before stays as it was.
pub async fn run(arguments: Arguments) -> Result<ExitCode> {
    let stop = stop_on_signal()?;
    let packed = pack(&arguments, &stop).await;
    if stop.is_cancelled() {
        bail!("interrupted, nothing was written");
    }
    let (manifest, bytes) = packed?;
    println!("{}: {}", arguments.file.display(), DecimalBytes(bytes));
    for part in manifest.parts {
        println!(
            "  {:14} {:>10}  {}",
            part.name,
            DecimalBytes(part.bytes).to_string(),
            part.what
        );
    }
    Ok(ExitCode::SUCCESS)
}

/// The manifest, and the bytes of the archive.
async fn pack(arguments: &Arguments, stop: &CancellationToken) -> Result<(Manifest, u64)> {
    let file = &arguments.file;
    let directory = directory_of(file);
    // Found out now, and not after minutes.
    ensure!(!file.is_dir(), "{} is a directory", file.display());
    let unfinished = tempfile::Builder::new()
        .prefix(".timber-workshop-")
        .permissions(Permissions::from_mode(0o644))
        .tempfile_in(directory)
        .with_context(|| format!("cannot write to {}", directory.display()))?;
    let report = match &arguments.report {
        Some(report) => {
            ensure!(
                report.is_dir(),
                "the report {} is not a directory",
                report.display()
            );
            Some(report.clone())
        }
        None => Some(PathBuf::from("comparison")).filter(|report| report.is_dir()),
    };

    let docker = Engine::connect().await?.docker;
    let images = stop
        .run_until_cancelled(images(&docker, &arguments.images))
        .await
        .context("interrupted")??;
    let crates = if arguments.no_crates {
        None
    } else {
        Some(vendor(directory, stop).await?)
    };

    let mut archive = Archive {
        file: unfinished.reopen()?,
        stop: stop.clone(),
        manifest: Manifest {
            format: FORMAT,
            made: Timestamp::now(),
            parts: Vec::new(),
            images: Vec::new(),
        },
    };
    let names: Vec<&str> = images.iter().map(|(name, _)| name.as_str()).collect();
    // A cancelled stream ends early; that it is cancelled shows in the bytes that are written next.
    let saved = engine::patient(&docker)
        .export_images(&names)
        .map_err(io::Error::other)
        .take_until(stop.clone().cancelled_owned())
        .boxed();
    let saved = SyncIoBridge::new(StreamReader::new(saved));
    let archive = spawn_blocking(move || {
        archive.images(saved, &images)?;
        if let Some(crates) = &crates {
            archive.directory(CRATES, "crates, for builds", crates.path())?;
        }
        if let Some(report) = &report {
            archive.directory(REPORT, "report of the comparison", report)?;
        }
        archive.finish()?;
        anyhow::Ok(archive)
    });
    let archive = archive
        .await?
        .with_context(|| format!("cannot write {}", file.display()))?;
    let bytes = archive.file.metadata()?.len();
    ensure!(!stop.is_cancelled(), "interrupted");
    unfinished
        .persist(file)
        .map_err(|error| error.error)
        .with_context(|| format!("cannot write {}", file.display()))?;
    if report_is_missing(arguments) {
        eprintln!(
            "note: no report in it, as there is no directory `comparison`: `cargo workshop compare` makes it"
        );
    }
    Ok((archive.manifest, bytes))
}

fn report_is_missing(arguments: &Arguments) -> bool {
    arguments.report.is_none() && !Path::new("comparison").is_dir()
}

/// Where what is not yet finished goes: on the file system of what it becomes.
fn directory_of(file: &Path) -> &Path {
    file.parent()
        .filter(|parent| !parent.as_os_str().is_empty())
        .unwrap_or(Path::new("."))
}

/// What is asked for, or the ladder and what it is built on. The engine has all of them in the end.
async fn images(docker: &Docker, wanted: &[String]) -> Result<Vec<(String, ImageInspect)>> {
    let mut names = wanted.to_vec();
    if wanted.is_empty() {
        ladder::build_missing(docker, false).await?;
        names.extend(ladder::LADDER.iter().map(|rung| rung.image.to_owned()));
        for base in ladder::base_images()? {
            // BuildKit, for one, keeps base images to itself.
            if engine::find(docker, &base).await?.is_none() {
                ladder::pull(docker, &base).await?;
            }
            names.push(base);
        }
    }
    let mut images = Vec::new();
    for name in names {
        let found = engine::find(docker, &name).await?;
        let found = found.with_context(|| format!("the engine has no image {name}"))?;
        images.push((name, found));
    }
    Ok(images)
}

/// The crates of the lock file, what tells cargo of them, and what puts them into an image.
async fn vendor(beside: &Path, stop: &CancellationToken) -> Result<TempDir> {
    let directory = tempfile::Builder::new()
        .prefix(".timber-workshop-")
        .tempdir_in(beside)?;
    let bar = progress::spinner("collecting the crates: cargo vendor");
    let mut log = tempfile::tempfile()?;
    let mut child = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        .args(["vendor", "--locked", "--versioned-dirs"])
        .arg(std::path::absolute(directory.path())?.join("vendor"))
        .current_dir(*ladder::ROOT)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log.try_clone()?)
        // A Ctrl-C is for this process, which then ends that one.
        .process_group(0)
        .spawn()
        .context("cannot start cargo")?;
    let status = stop.run_until_cancelled(child.wait()).await;
    drop(bar);
    let Some(status) = status else {
        // Before the directory is removed, so that nothing is added to it meanwhile.
        child.kill().await?;
        bail!("interrupted");
    };
    if !status?.success() {
        let mut text = String::new();
        log.seek(SeekFrom::Start(0))?;
        log.read_to_string(&mut text)?;
        bail!("cargo vendor failed:\n{}", text.trim_end());
    }
    std::fs::create_dir(directory.path().join(".cargo"))?;
    std::fs::write(directory.path().join(".cargo/config.toml"), CARGO_CONFIG)?;
    std::fs::write(directory.path().join("Dockerfile"), CRATES_DOCKERFILE)?;
    Ok(directory)
}
