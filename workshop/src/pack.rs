//! All that a room without a network needs, in one archive.
//!
//! The archive is a plain tar whose parts are what other tools read, too: `images.tar.gz` is for `docker load`,
//! `crates.tar.gz` and `report.tar.gz` are for `tar xzf`, and `manifest.json`, the last one, has their sums.

mod stream;
mod unpack;

use std::{
    collections::HashSet,
    env,
    fs::{File, Permissions},
    io::{self, Read, Seek, SeekFrom, Write},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{ExitCode, Stdio},
};

use anyhow::{Context, Result, bail, ensure};
use bollard::{Docker, models::ImageInspect};
use clap::Args;
use flate2::{Compression, write::GzEncoder};
use futures_util::{StreamExt, TryStreamExt};
use indicatif::DecimalBytes;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tar::{EntryType, Header, HeaderMode};
use tempfile::TempDir;
use tokio::{process::Command, task::spawn_blocking};
use tokio_util::{
    io::{StreamReader, SyncIoBridge},
    sync::CancellationToken,
};

use self::stream::{Meter, Summed, stop_on_signal};
pub use self::unpack::{Arguments as UnpackArguments, run as unpack};
use crate::{
    engine::{self, Engine},
    ladder, progress,
};

/// Of the archive. A change that an older reader would misunderstand raises it.
const FORMAT: u32 = 1;

const IMAGES: &str = "images.tar.gz";
const CRATES: &str = "crates.tar.gz";
const REPORT: &str = "report.tar.gz";
const MANIFEST: &str = "manifest.json";

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

/// Of the ladder and its bases, 1.9 GB: level 1 makes 869 MB in 18 s of one processor, 3 makes 703 MB in 32 s, 6 makes
/// 682 MB in 44 s.
const COMPRESSION: u32 = 3;

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

#[derive(Serialize, Deserialize)]
struct Manifest {
    format: u32,
    made: Timestamp,
    /// In the order of the archive.
    parts: Vec<Part>,
    /// In `images.tar.gz`.
    images: Vec<PackedImage>,
}

#[derive(Serialize, Deserialize)]
struct Part {
    name: String,
    what: String,
    bytes: u64,
    /// In hexadecimal digits.
    sha256: String,
}

#[derive(Serialize, Deserialize)]
struct PackedImage {
    name: String,
    /// `sha256:…`, as the engine that packed it calls it. One that stores images in another way has another.
    id: String,
    /// What `docker images` says.
    bytes: u64,
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
        println!("  {:14} {:>10}  {}", part.name, DecimalBytes(part.bytes).to_string(), part.what);
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
            ensure!(report.is_dir(), "the report {} is not a directory", report.display());
            Some(report.clone())
        }
        None => Some(PathBuf::from("comparison")).filter(|report| report.is_dir()),
    };

    let docker = Engine::connect().await?.docker;
    let images =
        stop.run_until_cancelled(images(&docker, &arguments.images)).await.context("interrupted")??;
    let crates = if arguments.no_crates { None } else { Some(vendor(directory, stop).await?) };

    let mut archive = Archive {
        file: unfinished.reopen()?,
        stop: stop.clone(),
        manifest: Manifest { format: FORMAT, made: Timestamp::now(), parts: Vec::new(), images: Vec::new() },
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
    let archive = archive.await?.with_context(|| format!("cannot write {}", file.display()))?;
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
    file.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
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
    let directory = tempfile::Builder::new().prefix(".timber-workshop-").tempdir_in(beside)?;
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

struct Archive {
    file: File,
    stop: CancellationToken,
    manifest: Manifest,
}

impl Archive {
    fn images(&mut self, saved: impl Read, images: &[(String, ImageInspect)]) -> Result<()> {
        let bar = progress::bytes("saving images", expected_bytes(images));
        let mut saved = Meter::new(saved, &bar, &self.stop);
        self.part(IMAGES, &format!("{} images", images.len()), |out| {
            let mut out = Ending { inner: out, last: [1; ENDING] };
            io::copy(&mut saved, &mut out).context("cannot save the images")?;
            // An engine that fails in the middle may end its answer as if nothing had happened.
            ensure!(out.last == [0; ENDING], "cannot save the images: the engine's archive has no end");
            Ok(())
        })?;
        self.manifest.images = images
            .iter()
            .map(|(name, image)| PackedImage {
                name: name.clone(),
                id: image.id.clone().unwrap_or_default(),
                bytes: size_of(image),
            })
            .collect();
        Ok(())
    }

    fn directory(&mut self, name: &str, what: &str, directory: &Path) -> Result<()> {
        let bar = progress::bytes(what, bytes_in(directory)?);
        let meter = (bar.clone(), self.stop.clone());
        self.part(name, what, |out| {
            let mut tar = tar::Builder::new(Meter::new(out, &meter.0, &meter.1));
            tar.mode(HeaderMode::Deterministic);
            tar.append_dir_all(".", directory)
                .with_context(|| format!("cannot pack {}", directory.display()))?;
            tar.finish()?;
            Ok(())
        })?;
        Ok(())
    }

    /// Appends what `write` writes, compressed. Its header, which has the length, is written when that is known.
    fn part(
        &mut self,
        name: &str,
        what: &str,
        write: impl FnOnce(&mut GzEncoder<Summed<&File>>) -> Result<()>,
    ) -> Result<()> {
        let start = self.file.stream_position()?;
        self.file.write_all(Header::new_gnu().as_bytes())?;
        let mut compressor = GzEncoder::new(Summed::new(&self.file), Compression::new(COMPRESSION));
        write(&mut compressor)?;
        let (bytes, sha256) = compressor.finish()?.finish();
        let end = self.file.stream_position()?;
        self.file.seek(SeekFrom::Start(start))?;
        self.file.write_all(header(name, bytes, self.manifest.made)?.as_bytes())?;
        self.file.seek(SeekFrom::Start(end))?;
        self.pad()?;
        self.manifest.parts.push(Part { name: name.into(), what: what.into(), bytes, sha256 });
        Ok(())
    }

    fn finish(&mut self) -> Result<()> {
        let text = serde_json::to_string_pretty(&self.manifest)? + "\n";
        self.file.write_all(header(MANIFEST, text.len() as u64, self.manifest.made)?.as_bytes())?;
        self.file.write_all(text.as_bytes())?;
        self.pad()?;
        self.file.write_all(&[0; ENDING])?;
        // A full disk may not show before.
        Ok(self.file.sync_all()?)
    }

    /// To the next block of a tar archive.
    fn pad(&mut self) -> Result<()> {
        let used = usize::try_from(self.file.stream_position()? % 512)?;
        Ok(self.file.write_all(&[0; 512][..(512 - used) % 512])?)
    }
}

fn header(name: &str, bytes: u64, made: Timestamp) -> Result<Header> {
    let mut header = Header::new_gnu();
    header.set_path(name)?;
    header.set_entry_type(EntryType::Regular);
    header.set_size(bytes);
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(made.as_second().try_into().unwrap_or_default());
    header.set_cksum();
    Ok(header)
}

/// A tar archive ends with this many zeros.
const ENDING: usize = 1024;

/// Keeps the last bytes that were written.
struct Ending<W> {
    inner: W,
    last: [u8; ENDING],
}

impl<W: Write> Write for Ending<W> {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        let count = self.inner.write(buffer)?;
        let new = &buffer[count.saturating_sub(ENDING)..count];
        self.last.rotate_left(new.len());
        self.last[ENDING - new.len()..].copy_from_slice(new);
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

/// About what the engine will send. Layers that two images share are sent once: nothing for the lower one where one
/// image stands on the other.
fn expected_bytes(images: &[(String, ImageInspect)]) -> u64 {
    let layers_of = |image: &ImageInspect| {
        image.root_fs.as_ref().and_then(|root| root.layers.clone()).unwrap_or_default()
    };
    let mut seen = HashSet::new();
    let all: Vec<(Vec<String>, u64)> = images
        .iter()
        .filter(|(_, image)| seen.insert(image.id.clone()))
        .map(|(_, image)| (layers_of(image), size_of(image)))
        .collect();
    all.iter()
        .map(|(layers, bytes)| {
            let below =
                all.iter().filter(|(other, _)| other.len() < layers.len() && layers.starts_with(other));
            bytes - below.map(|&(_, bytes)| bytes).max().unwrap_or(0).min(*bytes)
        })
        .sum()
}

fn size_of(image: &ImageInspect) -> u64 {
    image.size.and_then(|bytes| bytes.try_into().ok()).unwrap_or_default()
}

/// Of all files in it.
fn bytes_in(directory: &Path) -> Result<u64> {
    let mut bytes = 0;
    for entry in directory.read_dir().with_context(|| format!("cannot read {}", directory.display()))? {
        let entry = entry?;
        let metadata = entry.metadata()?;
        bytes += if metadata.is_dir() { bytes_in(&entry.path())? } else { metadata.len() };
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use bollard::models::ImageInspectRootFs;

    use super::*;

    #[test]
    fn shared_layers_are_expected_once() {
        let image = |id: &str, layers: &[&str], size| {
            let root_fs = ImageInspectRootFs {
                layers: Some(layers.iter().map(ToString::to_string).collect()),
                ..Default::default()
            };
            let image = ImageInspect {
                id: Some(id.to_owned()),
                size: Some(size),
                root_fs: Some(root_fs),
                ..Default::default()
            };
            (id.to_owned(), image)
        };
        let images = [
            image("base", &["a"], 100),
            image("app", &["a", "b"], 130),
            image("app", &["a", "b"], 130),
            image("other", &["c"], 7),
        ];
        assert_eq!(expected_bytes(&images), 137);
    }

    #[test]
    fn the_last_bytes_are_kept_however_they_come() {
        let all: Vec<u8> = (0..=u8::MAX).cycle().take(3000).collect();
        for chunk in [1, 7, 1000, 1024, 3000] {
            let mut out = Ending { inner: io::sink(), last: [1; ENDING] };
            all.chunks(chunk).for_each(|chunk| out.write_all(chunk).unwrap());
            assert_eq!(out.last, all[3000 - ENDING..], "{chunk}");
        }
    }
}
