//! The file system that results from the layers, and its properties.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::Read,
};

use anyhow::{Context, Result};
use tar::{Archive, Entry, EntryType};

use super::Contents;

const SHELLS: [&str; 8] = ["sh", "bash", "dash", "ash", "zsh", "ksh", "fish", "busybox"];
const PACKAGE_MANAGERS: [&str; 12] = [
    "apt", "apt-get", "dpkg", "apk", "dnf", "microdnf", "yum", "rpm", "zypper", "pacman", "pip",
    "npm",
];
const PROGRAM_DIRECTORIES: [&str; 6] = [
    "bin",
    "sbin",
    "usr/bin",
    "usr/sbin",
    "usr/local/bin",
    "usr/local/sbin",
];

/// A path in the file system.
struct Node {
    kind: EntryType,
    mode: u32,
    /// Index in [`Tree::inodes`]. Hard links share it.
    inode: usize,
}

/// A file, which can have several paths.
struct Inode {
    bytes: u64,
    crates: u64,
    /// Content of the few files that are parsed later.
    text: Option<String>,
}

#[derive(Default)]
pub struct Tree {
    nodes: BTreeMap<String, Node>,
    inodes: Vec<Inode>,
}

impl Tree {
    /// Applies a layer.
    pub fn lay_over(&mut self, layer: impl Read) -> Result<()> {
        let mut added = Tree::default();
        let mut removed = Vec::new();
        for entry in Archive::new(layer).entries()? {
            let mut entry = entry?;
            let name = name_of(&entry)?;
            let (parent, last) = name.rsplit_once('/').unwrap_or(("", &name));
            // Whiteouts remove files of lower layers (OCI image specification, layer.md).
            if last == ".wh..wh..opq" {
                removed.push((parent.to_owned(), true));
            } else if let Some(hidden) = last.strip_prefix(".wh.") {
                let name = if parent.is_empty() {
                    hidden.to_owned()
                } else {
                    format!("{parent}/{hidden}")
                };
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
            let to = entry.link_name()?.context("hard link without a target")?;
            let to = normal(&to.to_string_lossy());
            let node = self
                .nodes
                .get(&to)
                .with_context(|| format!("missing target of the hard link {name}: {to}"))?;
            let node = Node {
                kind: node.kind,
                mode: node.mode,
                inode: node.inode,
            };
            self.nodes.insert(name, node);
            return Ok(());
        }
        let bytes = if kind.is_file() { entry.size() } else { 0 };
        let text = is_read(&name).then(|| read_text(entry)).transpose()?;
        let crates = if kind.is_file() && mode & 0o111 != 0 {
            crates_in(entry)?
        } else {
            0
        };
        self.inodes.push(Inode {
            bytes,
            crates,
            text,
        });
        self.nodes.insert(
            name,
            Node {
                kind,
                mode,
                inode: self.inodes.len() - 1,
            },
        );
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

    pub fn describe(&self, layers: u64, compressed_bytes: u64) -> Contents {
        let files = || self.nodes.iter().filter(|(_, node)| node.kind.is_file());
        let inodes: BTreeSet<_> = files().map(|(_, node)| node.inode).collect();
        let executables = || files().filter(|(_, node)| node.mode & 0o111 != 0);
        let managers = PACKAGE_MANAGERS
            .iter()
            .filter(|name| self.program(name).is_some());
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
            base: ["etc/os-release", "usr/lib/os-release"]
                .iter()
                .find_map(|name| {
                    let line = self
                        .text(name)?
                        .lines()
                        .find_map(|line| line.strip_prefix("PRETTY_NAME="))?;
                    Some(line.trim_matches('"').to_owned())
                }),
            packages: self.packages(&inodes),
        }
    }

    fn packages(&self, inodes: &BTreeSet<usize>) -> Result<BTreeMap<String, u64>, String> {
        let rpm = ["var/lib/rpm/", "usr/lib/sysimage/rpm/"];
        if self
            .nodes
            .keys()
            .any(|name| rpm.iter().any(|directory| name.starts_with(directory)))
        {
            return Err("unsupported database: rpm".to_owned());
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
            (
                "crate",
                inodes.iter().map(|&inode| self.inodes[inode].crates).sum(),
            ),
        ];
        let counts = counts.into_iter().filter(|(_, count)| *count > 0);
        Ok(counts
            .map(|(kind, count)| (kind.to_owned(), count))
            .collect())
    }

    /// Counts packages in dpkg's database, or, in images without dpkg, the files in status.d.
    fn dpkg(&self) -> u64 {
        let installed = self.lines_with("var/lib/dpkg/status", "Status: install ok installed");
        let single = self
            .nodes
            .range("var/lib/dpkg/status.d/".to_owned()..)
            .map(|(name, _)| name);
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

    /// Returns the path of an executable file or link of this name.
    fn program(&self, name: &str) -> Option<String> {
        let paths = PROGRAM_DIRECTORIES
            .iter()
            .map(|directory| format!("{directory}/{name}"));
        let is_program = |path: &String| {
            self.nodes
                .get(path)
                .is_some_and(|node| node.kind != EntryType::Directory && node.mode & 0o111 != 0)
        };
        paths
            .into_iter()
            .find(is_program)
            .map(|path| format!("/{path}"))
    }
}

fn is_read(name: &str) -> bool {
    matches!(
        name,
        "etc/os-release" | "usr/lib/os-release" | "var/lib/dpkg/status" | "lib/apk/db/installed"
    )
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

/// Counts the crates in the list that cargo-auditable embeds in a binary.
fn crates_in(entry: &mut impl Read) -> Result<u64> {
    let mut magic = Vec::new();
    entry.take(4).read_to_end(&mut magic)?;
    if magic != *b"\x7fELF" {
        return Ok(0);
    }
    let mut binary = magic;
    entry.read_to_end(&mut binary)?;
    // Most binaries have no list. A binary that cannot be parsed counts as one without.
    let list = auditable_info::audit_info_from_slice(&binary, 64 << 20);
    Ok(list.map_or(0, |list| list.packages.len() as u64))
}

/// Returns the normalized path of an entry.
pub fn name_of(entry: &Entry<impl Read>) -> Result<String> {
    Ok(normal(&entry.path()?.to_string_lossy()))
}

/// Removes the leading `./` or `/` and the trailing `/` that some archives contain.
fn normal(path: &str) -> String {
    path.trim_start_matches("./").trim_matches('/').to_owned()
}
