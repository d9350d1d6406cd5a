//! The archive: what is in it, and how it is written.

use std::{
    collections::HashSet,
    fs::File,
    io::{self, Read, Seek, SeekFrom, Write},
    path::Path,
};

use anyhow::{Context, Result, ensure};
use bollard::models::ImageInspect;
use flate2::{Compression, write::GzEncoder};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tar::{EntryType, Header, HeaderMode};
use tokio_util::sync::CancellationToken;

use super::stream::{Meter, Summed};
use crate::progress;

/// Of the archive. A change that an older reader would misunderstand raises it.
pub const FORMAT: u32 = 1;

pub const IMAGES: &str = "images.tar.gz";
pub const CRATES: &str = "crates.tar.gz";
pub const REPORT: &str = "report.tar.gz";
pub const MANIFEST: &str = "manifest.json";

/// Of the ladder and its bases, 1.9 GB: level 1 makes 869 MB in 18 s of one processor, 3 makes 703 MB in 32 s, 6 makes
/// 682 MB in 44 s.
const COMPRESSION: u32 = 3;

#[derive(Serialize, Deserialize)]
pub struct Manifest {
    pub format: u32,
    pub made: Timestamp,
    /// In the order of the archive.
    pub parts: Vec<Part>,
    /// In `images.tar.gz`.
    pub images: Vec<PackedImage>,
}

#[derive(Serialize, Deserialize)]
pub struct Part {
    pub name: String,
    pub what: String,
    pub bytes: u64,
    /// In hexadecimal digits.
    pub sha256: String,
}

#[derive(Serialize, Deserialize)]
pub struct PackedImage {
    pub name: String,
    /// `sha256:…`, as the engine that packed it calls it. One that stores images in another way has another.
    pub id: String,
    /// What `docker images` says.
    pub bytes: u64,
}

pub struct Archive {
    pub file: File,
    pub stop: CancellationToken,
    pub manifest: Manifest,
}

impl Archive {
    pub fn images(&mut self, saved: impl Read, images: &[(String, ImageInspect)]) -> Result<()> {
        let bar = progress::bytes("saving images", expected_bytes(images));
        let mut saved = Meter::new(saved, &bar, &self.stop);
        self.part(IMAGES, &format!("{} images", images.len()), |out| {
            let mut out = Ending {
                inner: out,
                last: [1; ENDING],
            };
            io::copy(&mut saved, &mut out).context("cannot save the images")?;
            // An engine that fails in the middle may end its answer as if nothing had happened.
            ensure!(
                out.last == [0; ENDING],
                "cannot save the images: the engine's archive has no end"
            );
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

    pub fn directory(&mut self, name: &str, what: &str, directory: &Path) -> Result<()> {
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
        self.file
            .write_all(header(name, bytes, self.manifest.made)?.as_bytes())?;
        self.file.seek(SeekFrom::Start(end))?;
        self.pad()?;
        self.manifest.parts.push(Part {
            name: name.into(),
            what: what.into(),
            bytes,
            sha256,
        });
        Ok(())
    }

    pub fn finish(&mut self) -> Result<()> {
        let text = serde_json::to_string_pretty(&self.manifest)? + "\n";
        self.file
            .write_all(header(MANIFEST, text.len() as u64, self.manifest.made)?.as_bytes())?;
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
        image
            .root_fs
            .as_ref()
            .and_then(|root| root.layers.clone())
            .unwrap_or_default()
    };
    let mut seen = HashSet::new();
    let all: Vec<(Vec<String>, u64)> = images
        .iter()
        .filter(|(_, image)| seen.insert(image.id.clone()))
        .map(|(_, image)| (layers_of(image), size_of(image)))
        .collect();
    all.iter()
        .map(|(layers, bytes)| {
            let below = all
                .iter()
                .filter(|(other, _)| other.len() < layers.len() && layers.starts_with(other));
            bytes
                - below
                    .map(|&(_, bytes)| bytes)
                    .max()
                    .unwrap_or(0)
                    .min(*bytes)
        })
        .sum()
}

fn size_of(image: &ImageInspect) -> u64 {
    image
        .size
        .and_then(|bytes| bytes.try_into().ok())
        .unwrap_or_default()
}

/// Of all files in it.
fn bytes_in(directory: &Path) -> Result<u64> {
    let mut bytes = 0;
    for entry in directory
        .read_dir()
        .with_context(|| format!("cannot read {}", directory.display()))?
    {
        let entry = entry?;
        let metadata = entry.metadata()?;
        bytes += if metadata.is_dir() {
            bytes_in(&entry.path())?
        } else {
            metadata.len()
        };
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
            let mut out = Ending {
                inner: io::sink(),
                last: [1; ENDING],
            };
            all.chunks(chunk)
                .for_each(|chunk| out.write_all(chunk).unwrap());
            assert_eq!(out.last, all[3000 - ENDING..], "{chunk}");
        }
    }
}
