//! The other end: an archive that `pack` wrote, checked, its images loaded, the rest in a directory.

use std::{
    collections::BTreeMap,
    fs::{self, File, Permissions},
    io::{self, Read, Seek, SeekFrom},
    os::unix::fs::PermissionsExt,
    path::{Component, Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context, Result, bail, ensure};
use bollard::{Docker, query_parameters::ImportImageOptions};
use clap::Args;
use flate2::read::GzDecoder;
use futures_util::{StreamExt, stream};
use hyper::body::Bytes;
use tokio::{sync::mpsc, task::spawn_blocking};
use tokio_util::sync::CancellationToken;

use super::{
    archive::{CRATES, FORMAT, IMAGES, MANIFEST, Manifest, REPORT},
    directory_of,
    stream::{Meter, Summed, stop_on_signal},
};
use crate::{
    engine::{self, Engine},
    progress,
};

/// More than any manifest has: an archive from elsewhere is not to fill the memory.
const MOST_MANIFEST_BYTES: u64 = 1 << 20;

/// Of what is sent to the engine, bytes at a time.
const CHUNK: usize = 1 << 16;

#[derive(Args)]
pub struct Arguments {
    /// Archive that `cargo workshop pack` wrote
    file: PathBuf,

    /// Directory to make, for the crates and the report [default: the archive's name without its ending]
    directory: Option<PathBuf>,
}

/// Of a part, where it is in the archive, in bytes.
#[derive(Clone, Copy)]
struct Place {
    start: u64,
    bytes: u64,
}

/// # Errors
/// The directory is there already; the archive is not whole, or not one of `pack`; the engine does not answer or does
/// not take the images; a file cannot be written; it was interrupted. No directory is left then. Images that the engine
/// had taken by then stay with it.
pub async fn run(arguments: Arguments) -> Result<ExitCode> {
    let stop = stop_on_signal()?;
    let unpacked = unpack(&arguments, &stop).await;
    if stop.is_cancelled() {
        bail!("interrupted");
    }
    unpacked?;
    Ok(ExitCode::SUCCESS)
}

async fn unpack(Arguments { file, directory }: &Arguments, stop: &CancellationToken) -> Result<()> {
    let directory = directory.clone().unwrap_or_else(|| {
        file.with_extension("")
            .file_name()
            .unwrap_or_default()
            .into()
    });
    ensure!(
        !directory.exists(),
        "{} is there already",
        directory.display()
    );
    let mut archive =
        File::open(file).with_context(|| format!("cannot open {}", file.display()))?;
    let docker = Engine::connect().await?.docker;
    let unfinished = tempfile::Builder::new()
        .prefix(".timber-workshop-")
        .permissions(Permissions::from_mode(0o755))
        .tempdir_in(directory_of(&directory))
        .with_context(|| format!("cannot write to {}", directory_of(&directory).display()))?;

    // All sums first: what is damaged does not get as far as the engine.
    let (file, stop_check) = (file.clone(), stop.clone());
    let blocking = spawn_blocking(move || {
        let (manifest, places) = check(&mut archive, &stop_check).with_context(|| {
            format!(
                "{} is not a whole archive of `cargo workshop pack`: cut off, altered or of another kind",
                file.display()
            )
        })?;
        for (name, directory) in [(CRATES, "crates"), (REPORT, "report")] {
            if let Some(place) = places.get(name) {
                let directory = unfinished.path().join(directory);
                extract(&mut archive, *place, &directory, &stop_check)
                    .with_context(|| format!("cannot unpack {name}"))?;
            }
        }
        let text = serde_json::to_string_pretty(&manifest)? + "\n";
        fs::write(unfinished.path().join(MANIFEST), text).context("cannot write the manifest")?;
        anyhow::Ok((archive, unfinished, manifest, places))
    });
    let (archive, unfinished, manifest, places) = blocking.await??;

    if let Some(place) = places.get(IMAGES) {
        let load = load(&docker, archive, *place, stop);
        stop.run_until_cancelled(load)
            .await
            .context("interrupted")??;
    }
    for image in &manifest.images {
        let found = engine::find(&docker, &image.name).await?;
        let found = found.with_context(|| {
            format!(
                "the engine took the images, but does not have {}",
                image.name
            )
        })?;
        if found.id.as_ref() != Some(&image.id) {
            eprintln!(
                "note: {} has another id here: this engine stores images in another way",
                image.name
            );
        }
    }
    fs::rename(unfinished.path(), &directory)
        .with_context(|| format!("cannot make the directory {}", directory.display()))?;
    drop(unfinished.keep());

    let names: Vec<&str> = manifest
        .images
        .iter()
        .map(|image| image.name.as_str())
        .collect();
    println!("loaded {}", names.join(", "));
    println!("the rest is in {}", directory.display());
    if places.contains_key(CRATES) {
        println!("builds without a network: see `cargo workshop pack --help`");
    }
    Ok(())
}

/// What the archive says that it has, and where that is. All parts are there, with the right sums, and no others.
fn check(file: &mut File, stop: &CancellationToken) -> Result<(Manifest, BTreeMap<String, Place>)> {
    let bar = progress::bytes("checking", file.metadata()?.len());
    let mut archive = tar::Archive::new(Meter::new(file, &bar, stop));
    let (mut manifest, mut found) = (None, BTreeMap::new());
    for entry in archive.entries()? {
        let mut entry = entry?;
        ensure!(manifest.is_none(), "something follows the manifest");
        let name = entry
            .path()?
            .to_str()
            .context("a part has a strange name")?
            .to_owned();
        let place = Place {
            start: entry.raw_file_position(),
            bytes: entry.size(),
        };
        if name == MANIFEST {
            let mut text = Vec::new();
            entry.take(MOST_MANIFEST_BYTES).read_to_end(&mut text)?;
            let read: Manifest =
                serde_json::from_slice(&text).context("the manifest is damaged")?;
            ensure!(
                read.format == FORMAT,
                "it has format {}, this timber-workshop reads {FORMAT}",
                read.format
            );
            manifest = Some(read);
        } else {
            let mut sum = Summed::new(io::sink());
            io::copy(&mut entry, &mut sum)?;
            let sum = sum.finish();
            // The length that is in the header is not there when the file was cut off.
            ensure!(sum.0 == place.bytes, "{name} is cut off");
            ensure!(
                found.insert(name.clone(), (place, sum)).is_none(),
                "{name} is there twice"
            );
        }
    }
    let manifest = manifest.context("it has no manifest")?;
    let mut places = BTreeMap::new();
    for part in &manifest.parts {
        let (place, (bytes, sha256)) = found
            .remove(&part.name)
            .with_context(|| format!("{} is missing", part.name))?;
        ensure!(
            bytes == part.bytes && sha256 == part.sha256,
            "{} is altered",
            part.name
        );
        places.insert(part.name.clone(), place);
    }
    if let Some(name) = found.keys().next() {
        bail!("{name} is not in the manifest");
    }
    Ok((manifest, places))
}

/// Files and directories below `directory`, nothing else, nothing elsewhere.
fn extract(
    file: &mut File,
    place: Place,
    directory: &Path,
    stop: &CancellationToken,
) -> Result<()> {
    let bar = progress::bytes("unpacking", place.bytes);
    file.seek(SeekFrom::Start(place.start))?;
    let compressed = Meter::new(file.take(place.bytes), &bar, stop);
    let mut archive = tar::Archive::new(GzDecoder::new(compressed));
    fs::create_dir(directory)?;
    for entry in archive.entries()? {
        let mut entry = entry?;
        let path = entry.path()?.into_owned();
        let stays = path
            .components()
            .all(|part| matches!(part, Component::Normal(_) | Component::CurDir));
        let kind = entry.header().entry_type();
        ensure!(
            stays && (kind.is_file() || kind.is_dir()),
            "it has {}, a {kind:?}, which is refused",
            path.display()
        );
        ensure!(
            entry.unpack_in(directory)?,
            "it has {}, which is refused",
            path.display()
        );
    }
    Ok(())
}

/// Unpacked on the way: Docker Engine would do that itself, podman's engine would not.
async fn load(
    docker: &Docker,
    mut file: File,
    place: Place,
    stop: &CancellationToken,
) -> Result<()> {
    let bar = progress::bytes("loading images", place.bytes);
    file.seek(SeekFrom::Start(place.start))?;
    let mut images = GzDecoder::new(Meter::new(file.take(place.bytes), &bar, stop));
    let (sender, mut receiver) = mpsc::channel(4);
    // Ends with the stream that it feeds.
    spawn_blocking(move || {
        loop {
            let mut chunk = vec![0; CHUNK];
            let chunk = images.read(&mut chunk).map(|count| {
                chunk.truncate(count);
                Bytes::from(chunk)
            });
            let is_last = chunk.as_ref().map_or(true, Bytes::is_empty);
            // Whoever took them may have failed.
            if sender.blocking_send(chunk).is_err() || is_last {
                return;
            }
        }
    });
    let chunks = stream::poll_fn(move |context| receiver.poll_recv(context));
    let docker = engine::patient(docker);
    let mut answers = docker.import_image_stream(ImportImageOptions::default(), chunks, None);
    while let Some(answer) = answers.next().await {
        let answer = answer.context("the engine does not take the images")?;
        if let Some(detail) = answer.error_detail {
            bail!(
                "the engine does not take the images: {}",
                detail.message.unwrap_or_default()
            );
        }
        if let Some(status) = answer.status {
            progress::say(&bar, &status);
        }
    }
    Ok(())
}
