//! What is in an image: the archive that `docker save` writes, its layers laid over one another.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    io::{self, BufReader, Read, Seek, SeekFrom, Take, Write},
    path::Path,
};

use anyhow::{Context, Result, bail};
use flate2::{Compression, read::MultiGzDecoder, write::GzEncoder};
use serde::Deserialize;
use tar::{Archive, Entry, EntryType};

use crate::results::{Figure, Packages};

/// Of the file system that a container sees, and of what a pull moves.
#[derive(Debug, PartialEq)]
pub struct Contents {
    /// Of regular files; one with several names (hard links) counts once.
    pub unpacked_bytes: u64,
    /// Of the layers, gzipped as `docker push` does it; one that is stored in compressed form, as it is.
    pub compressed_bytes: u64,
    pub layers: u64,
    pub files: u64,
    pub executables: u64,
    pub shell: Option<String>,
    pub package_managers: Vec<String>,
    pub setuid: Vec<String>,
    pub base: Option<String>,
    /// Unless they are in a database that is not read here.
    pub packages: Figure<Vec<Packages>>,
}

const SHELLS: [&str; 8] = ["sh", "bash", "dash", "ash", "zsh", "ksh", "fish", "busybox"];
const PACKAGE_MANAGERS: [&str; 12] =
    ["apt", "apt-get", "dpkg", "apk", "dnf", "microdnf", "yum", "rpm", "zypper", "pacman", "pip", "npm"];
const PROGRAM_DIRECTORIES: [&str; 6] =
    ["bin", "sbin", "usr/bin", "usr/sbin", "usr/local/bin", "usr/local/sbin"];

/// One name in the file system.
struct Node {
    kind: EntryType,
    mode: u32,
    /// Index of its bytes in [`Tree::inodes`], shared by hard links.
    inode: usize,
}

/// What several names may share.
struct Inode {
    bytes: u64,
    crates: u64,
    /// Of the few files that are looked into.
    text: Option<String>,
}

#[derive(Default)]
struct Tree {
    nodes: BTreeMap<String, Node>,
    inodes: Vec<Inode>,
}

/// Reads an archive of one image; `progress` is told of each layer's bytes as they go by.
///
/// # Errors
/// When the archive is not one of `docker save`, or a layer is compressed by other means than gzip.
pub fn read(archive: &Path, progress: &impl Fn(u64)) -> Result<Contents> {
    #[derive(Deserialize)]
    struct Manifest {
        #[serde(rename = "Layers")]
        layers: Vec<String>,
    }

    let mut files = BTreeMap::new();
    let mut manifest = None;
    for entry in Archive::new(BufReader::new(File::open(archive)?)).entries_with_seek()? {
        let mut entry = entry.context("not a tar archive")?;
        let name = name_of(&entry)?;
        // The older layout refers from one layer to an equal one by a symbolic link: ../ID/layer.tar.
        let link = entry.link_name()?.map(|to| to.to_string_lossy().trim_start_matches("../").to_owned());
        if name == "manifest.json" {
            let manifests: Vec<Manifest> = serde_json::from_reader(&mut entry)?;
            manifest = manifests.into_iter().next();
        }
        files.insert(name, (entry.raw_file_position(), entry.size(), link));
    }

    let manifest = manifest.context("no manifest.json in the archive")?;
    let mut tree = Tree::default();
    let (layers, mut compressed_bytes) = (manifest.layers.len() as u64, 0);
    for layer in manifest.layers {
        let find =
            |name: &str| files.get(name).with_context(|| format!("layer {name} is not in the archive"));
        let mut found = find(&layer)?;
        if let Some(link) = &found.2 {
            found = find(link)?;
        }
        compressed_bytes += read_layer(archive, found.0, found.1, &mut tree, progress)
            .with_context(|| format!("layer {layer}"))?;
    }
    Ok(tree.describe(layers, compressed_bytes))
}

/// Lays it over the tree. How many bytes a pull of it moves.
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
    let raw = Watched { inner: BufReader::with_capacity(1 << 18, file).take(size), progress };
    match magic {
        _ if size < 4 => bail!("it has {size} bytes"),
        [0x1f, 0x8b, ..] => {
            tree.lay_over(MultiGzDecoder::new(raw))?;
            Ok(size)
        }
        [0x28, 0xb5, 0x2f, 0xfd] => bail!("it is compressed with zstd, which is not read here"),
        _ => {
            let mut through = Tee { inner: raw, gzip: GzEncoder::new(Counter(0), Compression::default()) };
            tree.lay_over(&mut through)?;
            // What the tar reader left, its padding, belongs to what is moved.
            io::copy(&mut through, &mut io::sink())?;
            Ok(through.gzip.finish()?.0)
        }
    }
}

impl Tree {
    fn lay_over(&mut self, layer: impl Read) -> Result<()> {
        let mut added = Tree::default();
        let mut removed = Vec::new();
        for entry in Archive::new(layer).entries()? {
            let mut entry = entry?;
            let name = name_of(&entry)?;
            let (parent, last) = name.rsplit_once('/').unwrap_or(("", &name));
            // What a layer takes away, as the OCI's image specification has it: whiteouts.
            if last == ".wh..wh..opq" {
                removed.push((parent.to_owned(), true));
            } else if let Some(hidden) = last.strip_prefix(".wh.") {
                let name = if parent.is_empty() { hidden.to_owned() } else { format!("{parent}/{hidden}") };
                removed.push((name, false));
            } else if !name.is_empty() {
                added.add(name, &mut entry)?;
            }
        }
        for (name, only_children) in removed {
            self.remove(&name, only_children);
        }
        let offset = self.inodes.len();
        self.inodes.append(&mut added.inodes);
        for (name, mut node) in added.nodes {
            if node.kind != EntryType::Directory {
                self.remove(&name, false);
            }
            node.inode += offset;
            self.nodes.insert(name, node);
        }
        Ok(())
    }

    fn add(&mut self, name: String, entry: &mut Entry<impl Read>) -> Result<()> {
        let (kind, mode) = (entry.header().entry_type(), entry.header().mode()?);
        if kind == EntryType::Link {
            let to = entry.link_name()?.context("a hard link to nowhere")?;
            let to = normal(&to.to_string_lossy());
            let node = self
                .nodes
                .get(&to)
                .with_context(|| format!("{name} is a link to {to}, which is not there"))?;
            let node = Node { kind: node.kind, mode: node.mode, inode: node.inode };
            self.nodes.insert(name, node);
            return Ok(());
        }
        let bytes = if kind.is_file() { entry.size() } else { 0 };
        let text = is_read(&name).then(|| read_text(entry)).transpose()?;
        let crates = if kind.is_file() && mode & 0o111 != 0 { crates_in(entry)? } else { 0 };
        self.inodes.push(Inode { bytes, crates, text });
        self.nodes.insert(name, Node { kind, mode, inode: self.inodes.len() - 1 });
        Ok(())
    }

    fn remove(&mut self, name: &str, only_children: bool) {
        let below = format!("{name}/");
        let children: Vec<_> = self
            .nodes
            .range(below.clone()..)
            .map(|(name, _)| name.clone())
            .take_while(|name| name.starts_with(&below))
            .collect();
        for child in children {
            self.nodes.remove(&child);
        }
        if !only_children {
            self.nodes.remove(name);
        }
    }

    fn describe(&self, layers: u64, compressed_bytes: u64) -> Contents {
        let files = || self.nodes.iter().filter(|(_, node)| node.kind.is_file());
        let inodes: BTreeSet<_> = files().map(|(_, node)| node.inode).collect();
        let executables = || files().filter(|(_, node)| node.mode & 0o111 != 0);
        let managers = PACKAGE_MANAGERS.iter().filter(|name| self.program(name).is_some());
        let setuid = executables().filter(|(_, node)| node.mode & 0o6000 != 0);
        Contents {
            unpacked_bytes: inodes.iter().map(|&inode| self.inodes[inode].bytes).sum(),
            compressed_bytes,
            layers,
            files: files().count() as u64,
            executables: executables().count() as u64,
            shell: SHELLS.iter().find_map(|name| self.program(name)),
            package_managers: managers.map(|&name| name.to_owned()).collect(),
            setuid: setuid.map(|(name, _)| format!("/{name}")).collect(),
            base: ["etc/os-release", "usr/lib/os-release"].iter().find_map(|name| {
                let line = self.text(name)?.lines().find_map(|line| line.strip_prefix("PRETTY_NAME="))?;
                Some(line.trim_matches('"').to_owned())
            }),
            packages: self.packages(&inodes),
        }
    }

    fn packages(&self, inodes: &BTreeSet<usize>) -> Figure<Vec<Packages>> {
        let rpm = ["var/lib/rpm/", "usr/lib/sysimage/rpm/"];
        if self.nodes.keys().any(|name| rpm.iter().any(|directory| name.starts_with(directory))) {
            return Figure::NotAvailable("rpm's database is not read here".to_owned());
        }
        let counts = [
            ("dpkg", self.dpkg()),
            ("apk", self.lines_with("lib/apk/db/installed", "P:")),
            (
                "pip",
                self.nodes
                    .iter()
                    .filter(|(name, node)| node.kind.is_file() && is_python_package(name))
                    .count() as u64,
            ),
            ("crate", inodes.iter().map(|&inode| self.inodes[inode].crates).sum()),
        ];
        let counts = counts.into_iter().filter(|(_, count)| *count > 0);
        Figure::Value(counts.map(|(kind, count)| Packages { kind: kind.to_owned(), count }).collect())
    }

    /// The whole database, or, in images without dpkg itself, a file for each package.
    fn dpkg(&self) -> u64 {
        let installed = self.lines_with("var/lib/dpkg/status", "Status: install ok installed");
        let single = self.nodes.range("var/lib/dpkg/status.d/".to_owned()..).map(|(name, _)| name);
        let single = single.take_while(|name| name.starts_with("var/lib/dpkg/status.d/"));
        installed + single.filter(|name| !name.ends_with(".md5sums")).count() as u64
    }

    fn lines_with(&self, name: &str, start: &str) -> u64 {
        let lines = self.text(name).unwrap_or_default().lines();
        lines.filter(|line| line.starts_with(start)).count() as u64
    }

    fn text(&self, name: &str) -> Option<&str> {
        self.inodes[self.nodes.get(name)?.inode].text.as_deref()
    }

    /// Where it is, if it is there: a file that can be executed, or a link.
    fn program(&self, name: &str) -> Option<String> {
        let paths = PROGRAM_DIRECTORIES.iter().map(|directory| format!("{directory}/{name}"));
        let is_program = |path: &String| {
            self.nodes
                .get(path)
                .is_some_and(|node| node.kind != EntryType::Directory && node.mode & 0o111 != 0)
        };
        paths.into_iter().find(is_program).map(|path| format!("/{path}"))
    }
}

fn is_read(name: &str) -> bool {
    matches!(name, "etc/os-release" | "usr/lib/os-release" | "var/lib/dpkg/status" | "lib/apk/db/installed")
}

fn is_python_package(name: &str) -> bool {
    name.ends_with(".dist-info/METADATA")
        || name.ends_with(".egg-info/PKG-INFO")
        || name.ends_with(".egg-info")
}

fn read_text(entry: &mut impl Read) -> Result<String> {
    let mut bytes = Vec::new();
    entry.read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// How many crates the list that cargo-auditable puts into a binary names.
fn crates_in(entry: &mut impl Read) -> Result<u64> {
    let mut magic = Vec::new();
    entry.take(4).read_to_end(&mut magic)?;
    if magic != *b"\x7fELF" {
        return Ok(0);
    }
    let mut binary = magic;
    entry.read_to_end(&mut binary)?;
    // Most binaries have no such list, and some are too odd for the parser: no list either.
    let list = auditable_info::audit_info_from_slice(&binary, 64 << 20);
    Ok(list.map_or(0, |list| list.packages.len() as u64))
}

fn name_of(entry: &Entry<impl Read>) -> Result<String> {
    Ok(normal(&entry.path()?.to_string_lossy()))
}

/// Without the `./`, `/` and final `/` that some archives have.
fn normal(path: &str) -> String {
    path.trim_start_matches("./").trim_matches('/').to_owned()
}

/// Hands what is read on to gzip, too.
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
    use crate::results::{Figure, Packages};
    use flate2::{Compression, write::GzEncoder};
    use std::{fs, io::Write};
    use tar::{Builder, EntryType, Header};

    /// Path, mode, and what is in it; a path that ends in a slash is a directory, an arrow makes a hard link.
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
        let names: Vec<_> = (0..layers.len()).map(|number| format!("{number}/layer.tar")).collect();
        let manifest = serde_json::json!([{"Config": "x.json", "Layers": names}]).to_string();
        let files = names.iter().map(String::as_str).zip(layers.iter().map(Vec::as_slice));
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
    fn layers_lie_over_one_another() {
        let lower = layer(&[
            ("./etc/", 0o755, ""),
            ("./etc/os-release", 0o644, "NAME=x\nPRETTY_NAME=\"An OS 1\"\n"),
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
        assert_eq!(found.unpacked_bytes, 29 + 1 + 10 + 2, "os-release, dir/c, su, sh");
        // Where a stream is divided when it is handed to the compressor shows in a few bytes.
        let gzipped = (gzip(&lower).len() + gzip(&upper).len()) as u64;
        assert!(found.compressed_bytes.abs_diff(gzipped) < 16, "{} and {gzipped}", found.compressed_bytes);
        assert_eq!((found.layers, found.files, found.executables), (2, 5, 3));
        assert_eq!(found.setuid, ["/usr/bin/su", "/usr/bin/su2"]);
        assert_eq!(found.shell.as_deref(), Some("/bin/sh"));
        assert_eq!(found.base.as_deref(), Some("An OS 1"));
    }

    #[test]
    fn packages_are_counted_by_kind() {
        let status =
            "Package: a\nStatus: install ok installed\n\nPackage: b\nStatus: deinstall ok config-files\n";
        let found = image(&[layer(&[
            ("var/lib/dpkg/status", 0o644, status),
            ("var/lib/dpkg/status.d/base", 0o644, "Package: base\n"),
            ("var/lib/dpkg/status.d/base.md5sums", 0o644, ""),
            ("lib/apk/db/installed", 0o644, "P:musl\nV:1\n\nP:busybox\n"),
            ("usr/lib/python3/x-1.0.dist-info/METADATA", 0o644, ""),
        ])]);
        let count = |kind: &str, count| Packages { kind: kind.to_owned(), count };
        let counts = vec![count("dpkg", 2), count("apk", 2), count("pip", 1)];
        assert_eq!(found.unwrap().packages, Figure::Value(counts));
        let found = image(&[layer(&[("var/lib/rpm/rpmdb.sqlite", 0o644, "")])]);
        assert!(found.unwrap().packages.value().is_none(), "none that are known is not none");
    }

    #[test]
    fn what_cannot_be_read_is_named() {
        assert!(image(&[vec![0x28, 0xb5, 0x2f, 0xfd]]).unwrap_err().contains("zstd"));
        assert!(image(&[vec![]]).unwrap_err().contains("layer 0/layer.tar"));
        let mut broken = gzip(&layer(&[("a", 0o644, "1")]));
        broken.truncate(30);
        assert!(image(&[broken]).unwrap_err().contains("layer 0/layer.tar"));
        let file = tempfile::NamedTempFile::new().unwrap();
        assert!(read(file.path(), &|_| ()).unwrap_err().to_string().contains("manifest.json"));
    }
}
