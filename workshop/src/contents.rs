//! The contents of an image, read from the layers in the archive of `docker save`.

mod tree;

use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, BufReader, Read, Seek, SeekFrom, Take, Write},
    path::Path,
};

use anyhow::{Context, Result, bail};
use flate2::{Compression, read::MultiGzDecoder, write::GzEncoder};
use serde::Deserialize;
use tar::Archive;

use self::tree::{Tree, name_of};

/// Properties of the file system that a container sees, and the size of a pull.
#[derive(Debug, PartialEq)]
pub struct Contents {
    /// Size of regular files. A file with several hard links counts once.
    pub unpacked_bytes: u64,
    /// Size of the layers, compressed with gzip as `docker push` does. A layer that is stored
    /// compressed counts as it is.
    pub compressed_bytes: u64,
    pub layers: u64,
    pub files: u64,
    pub executables: u64,
    pub shell: Option<String>,
    pub package_managers: Vec<String>,
    pub setuid: Vec<String>,
    pub base: Option<String>,
    /// By kind. An error if they are in an unsupported database.
    pub packages: Result<BTreeMap<String, u64>, String>,
}

/// Reads the archive of one image. Calls `progress` with the number of bytes that were read.
///
/// # Errors
/// The file is not an archive of `docker save`, or a layer is compressed with another algorithm than
/// gzip.
pub fn read(archive: &Path, progress: &impl Fn(u64)) -> Result<Contents> {
    #[derive(Deserialize)]
    struct Manifest {
        #[serde(rename = "Layers")]
        layers: Vec<String>,
    }

    let mut files = BTreeMap::new();
    let mut manifest = None;
    for entry in Archive::new(BufReader::new(File::open(archive)?)).entries_with_seek()? {
        let mut entry = entry.context("invalid tar archive")?;
        let name = name_of(&entry)?;
        // In the older format, a repeated layer is a symbolic link: ../ID/layer.tar.
        let link = entry
            .link_name()?
            .map(|to| to.to_string_lossy().trim_start_matches("../").to_owned());
        if name == "manifest.json" {
            let manifests: Vec<Manifest> = serde_json::from_reader(&mut entry)?;
            manifest = manifests.into_iter().next();
        }
        files.insert(name, (entry.raw_file_position(), entry.size(), link));
    }

    let manifest = manifest.context("missing manifest.json in the archive")?;
    let mut tree = Tree::default();
    let (layers, mut compressed_bytes) = (manifest.layers.len() as u64, 0);
    for layer in manifest.layers {
        let find = |name: &str| {
            files
                .get(name)
                .with_context(|| format!("missing layer {name} in the archive"))
        };
        let mut found = find(&layer)?;
        if let Some(link) = &found.2 {
            found = find(link)?;
        }
        compressed_bytes += read_layer(archive, found.0, found.1, &mut tree, progress)
            .with_context(|| format!("layer {layer}"))?;
    }
    Ok(tree.describe(layers, compressed_bytes))
}

/// Adds a layer to the tree, and returns its compressed size.
fn read_layer(
    archive: &Path,
    position: u64,
    size: u64,
    tree: &mut Tree,
    progress: &impl Fn(u64),
) -> Result<u64> {
    let mut file = File::open(archive)?;
    file.seek(SeekFrom::Start(position))?;
    let mut magic = [0; 4];
    file.read_exact(&mut magic)?;
    file.seek(SeekFrom::Start(position))?;
    let raw = Watched {
        inner: BufReader::with_capacity(1 << 18, file).take(size),
        progress,
    };
    match magic {
        _ if size < 4 => bail!("too short: {size} bytes"),
        [0x1f, 0x8b, ..] => {
            tree.lay_over(MultiGzDecoder::new(raw))?;
            Ok(size)
        }
        [0x28, 0xb5, 0x2f, 0xfd] => bail!("unsupported compression: zstd"),
        _ => {
            let mut through = Tee {
                inner: raw,
                gzip: GzEncoder::new(Counter(0), Compression::default()),
            };
            tree.lay_over(&mut through)?;
            // The padding that the tar reader left over is part of the layer.
            io::copy(&mut through, &mut io::sink())?;
            Ok(through.gzip.finish()?.0)
        }
    }
}

/// Passes everything that is read to gzip, too.
struct Tee<R> {
    inner: R,
    gzip: GzEncoder<Counter>,
}

impl<R: Read> Read for Tee<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.gzip.write_all(&buffer[..count])?;
        Ok(count)
    }
}

struct Counter(u64);

impl Write for Counter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0 += bytes.len() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

struct Watched<'a, P> {
    inner: Take<BufReader<File>>,
    progress: &'a P,
}

impl<P: Fn(u64)> Read for Watched<'_, P> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        (self.progress)(count as u64);
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::{Contents, read};
    use flate2::{Compression, write::GzEncoder};
    use std::{fs, io::Write};
    use tar::{Builder, EntryType, Header};

    /// Takes paths, modes and contents. A slash at the end makes a directory, an arrow a hard link.
    fn layer(files: &[(&str, u32, &str)]) -> Vec<u8> {
        let mut tar = Builder::new(Vec::new());
        for (path, mode, text) in files {
            let mut header = Header::new_gnu();
            header.set_mode(*mode);
            header.set_size(text.len() as u64);
            if let Some((path, to)) = path.split_once(" -> ") {
                header.set_entry_type(EntryType::Link);
                tar.append_link(&mut header, path, to).unwrap();
            } else {
                header.set_entry_type(if path.ends_with('/') {
                    EntryType::Directory
                } else {
                    EntryType::Regular
                });
                tar.append_data(&mut header, path, text.as_bytes()).unwrap();
            }
        }
        tar.into_inner().unwrap()
    }

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut gzip = GzEncoder::new(Vec::new(), Compression::default());
        gzip.write_all(bytes).unwrap();
        gzip.finish().unwrap()
    }

    fn image(layers: &[Vec<u8>]) -> Result<Contents, String> {
        let mut tar = Builder::new(Vec::new());
        let names: Vec<_> = (0..layers.len())
            .map(|number| format!("{number}/layer.tar"))
            .collect();
        let manifest = serde_json::json!([{"Config": "x.json", "Layers": names}]).to_string();
        let files = names
            .iter()
            .map(String::as_str)
            .zip(layers.iter().map(Vec::as_slice));
        for (name, bytes) in files.chain([("manifest.json", manifest.as_bytes())]) {
            let mut header = Header::new_gnu();
            header.set_size(bytes.len() as u64);
            tar.append_data(&mut header, name, bytes).unwrap();
        }
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), tar.into_inner().unwrap()).unwrap();
        read(file.path(), &|_| ()).map_err(|error| format!("{error:#}"))
    }

    #[test]
    fn upper_layers_replace_files_of_lower_layers() {
        let lower = layer(&[
            ("./etc/", 0o755, ""),
            (
                "./etc/os-release",
                0o644,
                "NAME=x\nPRETTY_NAME=\"An OS 1\"\n",
            ),
            ("./etc/gone", 0o644, "12345"),
            ("./dir/a", 0o644, "123"),
            ("./dir/b", 0o644, "456"),
            ("./usr/bin/su", 0o4755, "0123456789"),
            ("./usr/bin/su2 -> ./usr/bin/su", 0o4755, ""),
        ]);
        let upper = layer(&[
            ("etc/.wh.gone", 0o644, ""),
            ("dir/c", 0o644, "7"),
            ("dir/.wh..wh..opq", 0o644, ""),
            ("bin/sh", 0o755, "#!"),
        ]);
        let found = image(&[lower.clone(), gzip(&upper)]).unwrap();
        assert_eq!(
            found.unpacked_bytes,
            29 + 1 + 10 + 2,
            "os-release, dir/c, su, sh"
        );
        // The sizes of the writes to the compressor make a difference of a few bytes.
        let gzipped = (gzip(&lower).len() + gzip(&upper).len()) as u64;
        assert!(
            found.compressed_bytes.abs_diff(gzipped) < 16,
            "{} and {gzipped}",
            found.compressed_bytes
        );
        assert_eq!((found.layers, found.files, found.executables), (2, 5, 3));
        assert_eq!(found.setuid, ["/usr/bin/su", "/usr/bin/su2"]);
        assert_eq!(found.shell.as_deref(), Some("/bin/sh"));
        assert_eq!(found.base.as_deref(), Some("An OS 1"));
    }

    #[test]
    fn packages_are_counted_by_kind() {
        let status = "Package: a\nStatus: install ok installed\n\nPackage: b\nStatus: deinstall ok config-files\n";
        let found = image(&[layer(&[
            ("var/lib/dpkg/status", 0o644, status),
            ("var/lib/dpkg/status.d/base", 0o644, "Package: base\n"),
            ("var/lib/dpkg/status.d/base.md5sums", 0o644, ""),
            ("lib/apk/db/installed", 0o644, "P:musl\nV:1\n\nP:busybox\n"),
            ("usr/lib/python3/x-1.0.dist-info/METADATA", 0o644, ""),
        ])]);
        let counts = [("dpkg", 2), ("apk", 2), ("pip", 1)].map(|(kind, n)| (kind.to_owned(), n));
        assert_eq!(found.unwrap().packages, Ok(counts.into()));
        let found = image(&[layer(&[("var/lib/rpm/rpmdb.sqlite", 0o644, "")])]);
        assert!(
            found.unwrap().packages.is_err(),
            "an unsupported database is not zero packages"
        );
    }

    #[test]
    fn errors_name_what_cannot_be_read() {
        assert!(
            image(&[vec![0x28, 0xb5, 0x2f, 0xfd]])
                .unwrap_err()
                .contains("zstd")
        );
        assert!(image(&[vec![]]).unwrap_err().contains("layer 0/layer.tar"));
        let mut broken = gzip(&layer(&[("a", 0o644, "1")]));
        broken.truncate(30);
        assert!(image(&[broken]).unwrap_err().contains("layer 0/layer.tar"));
        let file = tempfile::NamedTempFile::new().unwrap();
        assert!(
            read(file.path(), &|_| ())
                .unwrap_err()
                .to_string()
                .contains("manifest.json")
        );
    }
}
