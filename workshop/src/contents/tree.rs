//! The file system that results from the layers, and its properties.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::Read,
};

use anyhow::{Context, Result};
use tar::{Archive, Entry, EntryType};

use super::{
    Configuration, Contents,
    sharing::{Layer, Sharing},
    writable::{Permissions, User},
};
use crate::engine::Layered;

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

/// Programs that run code of their input, without the version that can follow these names.
const INTERPRETERS: [&str; 15] = [
    "python", "pypy", "perl", "ruby", "node", "nodejs", "deno", "bun", "java", "dotnet", "php",
    "lua", "luajit", "tclsh", "guile",
];

/// A path in the file system.
#[derive(Clone, Copy)]
struct Node {
    kind: EntryType,
    permissions: Permissions,
    /// Index in [`Tree::inodes`]. Hard links share it.
    inode: usize,
}

impl Node {
    fn is_executable(&self) -> bool {
        self.kind.is_file() && self.permissions.mode & 0o111 != 0
    }
}

/// A file, which can have several paths.
struct Inode {
    bytes: u64,
    binary: Binary,
    /// Content of the few files that are parsed later.
    text: Option<String>,
    /// Target of a symbolic link.
    target: Option<String>,
}

/// What a program's machine code contains.
#[derive(Default)]
struct Binary {
    /// Number of crates in the list that cargo-auditable embeds.
    crates: u64,
    /// Name of a program that is a shell and many tools in one file, whatever that file is called.
    multicall: Option<&'static str>,
}

#[derive(Default)]
pub struct Tree {
    nodes: BTreeMap<String, Node>,
    inodes: Vec<Inode>,
}

impl Tree {
    /// Applies a layer, and returns the size of its files.
    pub fn lay_over(&mut self, layer: impl Read) -> Result<u64> {
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
        let bytes = added.inodes.iter().map(|inode| inode.bytes).sum();
        let offset = self.inodes.len();
        self.inodes.append(&mut added.inodes);
        for (name, mut node) in added.nodes {
            if node.kind != EntryType::Directory {
                self.remove(&name, false);
            }
            node.inode += offset;
            self.nodes.insert(name, node);
        }
        Ok(bytes)
    }

    fn add(&mut self, name: String, entry: &mut Entry<impl Read>) -> Result<()> {
        let (kind, mode) = (entry.header().entry_type(), entry.header().mode()?);
        if kind == EntryType::Link {
            let to = entry.link_name()?.context("hard link without a target")?;
            let to = normal(&to.to_string_lossy());
            let node = *self
                .nodes
                .get(&to)
                .with_context(|| format!("missing target of the hard link {name}: {to}"))?;
            self.nodes.insert(name, node);
            return Ok(());
        }
        let permissions = Permissions {
            mode,
            user: entry.header().uid()?,
            group: entry.header().gid()?,
        };
        let target = entry.link_name()?.filter(|_| kind.is_symlink());
        let target = target.map(|to| to.to_string_lossy().into_owned());
        let bytes = if kind.is_file() { entry.size() } else { 0 };
        let text = is_read(&name).then(|| read_text(entry)).transpose()?;
        let binary = if kind.is_file() && mode & 0o111 != 0 {
            Binary::read(entry)?
        } else {
            Binary::default()
        };
        self.inodes.push(Inode {
            bytes,
            binary,
            text,
            target,
        });
        self.nodes.insert(
            name,
            Node {
                kind,
                permissions,
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

    /// Returns the properties of the image whose layers were applied. `user` is written as
    /// [`User::resolve`] takes it.
    pub fn describe(
        &self,
        layers: &[Layer],
        configuration: &Configuration,
        user: &str,
        others: &[Layered],
    ) -> Contents {
        let files = || self.nodes.iter().filter(|(_, node)| node.kind.is_file());
        let inodes: BTreeSet<_> = files().map(|(_, node)| node.inode).collect();
        let executables = || files().filter(|(_, node)| node.is_executable());
        let managers = PACKAGE_MANAGERS
            .iter()
            .filter(|name| self.program(name).is_some());
        let setuid = executables().filter(|(_, node)| node.permissions.mode & 0o6000 != 0);
        let (base, shell) = (self.distribution(), self.shell());
        // What others build on has a distribution, or at least a shell. The exception is a shell
        // that the Dockerfile copies. An image of one layer has no other that could be shared.
        let is_from_scratch = layers.len() <= 1
            || base.is_none() && (shell.is_none() || configuration.begins_with_copy());
        Contents {
            sharing: Sharing::of(layers, is_from_scratch, others),
            compressed_bytes: layers.iter().map(|layer| layer.compressed_bytes).sum(),
            layers: layers.len() as u64,
            unpacked_bytes: inodes.iter().map(|&inode| self.inodes[inode].bytes).sum(),
            files: files().count() as u64,
            executables: executables().count() as u64,
            shell,
            interpreters: self.interpreters(),
            package_managers: managers.map(|&name| name.to_owned()).collect(),
            setuid: setuid.map(|(name, _)| format!("/{name}")).collect(),
            base,
            packages: self.packages(&inodes),
            writable: self.writable(user),
        }
    }

    fn distribution(&self) -> Option<String> {
        ["etc/os-release", "usr/lib/os-release"]
            .iter()
            .find_map(|name| {
                let mut lines = self.text(name)?.lines();
                let name = lines.find_map(|line| line.strip_prefix("PRETTY_NAME="))?;
                Some(name.trim_matches('"').to_owned())
            })
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
                inodes
                    .iter()
                    .map(|&inode| self.inodes[inode].binary.crates)
                    .sum(),
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
        paths
            .into_iter()
            .find(|path| self.executable(path).is_some())
            .map(|path| format!("/{path}"))
    }

    /// Returns paths and names of the executable files and links in `/` and in directories that are
    /// called `bin` or `sbin`, such as `/opt/java/bin`.
    fn programs(&self) -> impl Iterator<Item = (&str, &str, &Node)> {
        self.nodes.keys().filter_map(|path| {
            let (directory, name) = path.rsplit_once('/').unwrap_or(("", path));
            let is_usual = ["", "bin", "sbin"].contains(&directory.rsplit('/').next()?);
            let file = is_usual.then(|| self.executable(path))??;
            Some((path.as_str(), name, file))
        })
    }

    fn shell(&self) -> Option<String> {
        let usual = || SHELLS.iter().find_map(|name| self.program(name));
        let elsewhere = || {
            let mut programs = self.programs();
            let (path, ..) = programs.find(|(_, name, _)| SHELLS.contains(name))?;
            Some(format!("/{path}"))
        };
        let in_a_file = || {
            let mut paths = self.nodes.iter();
            paths.find_map(|(path, node)| {
                let program = self.inodes[node.inode].binary.multicall?;
                Some(format!("/{path} ({program})"))
            })
        };
        usual().or_else(elsewhere).or_else(in_a_file)
    }

    /// Returns the names of the interpreters. One with several names counts once, with the name of
    /// its file: `python3.11` and not `python3`.
    fn interpreters(&self) -> Vec<String> {
        let mut names = BTreeMap::new();
        for (path, name, file) in self.programs() {
            let version = |c: char| c.is_ascii_digit() || c == '.' || c == '-';
            if INTERPRETERS.contains(&name.trim_end_matches(version)) {
                let is_link = self.nodes[path].kind.is_symlink();
                // Of hard links, such as perl and perl5.40.1, the shortest.
                let name = (is_link, name.len(), name);
                let best = names.entry(file.inode).or_insert(name);
                *best = name.min(*best);
            }
        }
        let names: BTreeSet<_> = names.into_values().map(|(.., name)| name).collect();
        names.into_iter().map(str::to_owned).collect()
    }

    /// Counts what a user may write: files and directories on whose path all directories can be
    /// searched. Directories that no layer names belong to root, and others may not write them.
    fn writable(&self, user: &str) -> Result<BTreeMap<String, u64>, String> {
        let text = |name| self.text(name).unwrap_or_default();
        let user = User::resolve(user, text("etc/passwd"), text("etc/group"))?;
        let can_reach = |path: &str| {
            let parents = path.match_indices('/').map(|(at, _)| &path[..at]);
            let mut parents = parents.filter_map(|parent| self.nodes.get(parent));
            // A link has no permissions of its own.
            parents.all(|node| !node.kind.is_dir() || user.may_search(&node.permissions))
        };
        let mut counts = BTreeMap::new();
        for (path, node) in &self.nodes {
            let kind = match node.kind {
                EntryType::Directory => "directories",
                kind if kind.is_file() => "files",
                _ => continue,
            };
            if user.may_write(&node.permissions) && can_reach(path) {
                *counts.entry(kind.to_owned()).or_default() += 1;
            }
        }
        Ok(counts)
    }

    /// Returns the executable file at a path, or at the end of the links there.
    fn executable(&self, path: &str) -> Option<&Node> {
        let node = self.nodes.get(path)?;
        let file = if node.kind.is_symlink() {
            self.follow(path)?
        } else {
            node
        };
        file.is_executable().then_some(file)
    }

    /// Follows the symbolic links in a path.
    fn follow(&self, path: &str) -> Option<&Node> {
        let mut links = 0;
        let mut rest: Vec<_> = path.rsplit('/').collect();
        let mut found = String::new();
        while let Some(part) = rest.pop() {
            match part {
                "" | "." => continue,
                ".." => {
                    let parent = found.rfind('/').unwrap_or_default();
                    found.truncate(parent);
                    continue;
                }
                _ => {}
            }
            let next = if found.is_empty() {
                part.to_owned()
            } else {
                format!("{found}/{part}")
            };
            let node = self.nodes.get(&next);
            match node.and_then(|node| self.inodes[node.inode].target.as_deref()) {
                Some(target) => {
                    // Linux gives up after 40 links, too (path_resolution(7)).
                    links += 1;
                    if links > 40 {
                        return None;
                    }
                    if target.starts_with('/') {
                        found.clear();
                    }
                    rest.extend(target.rsplit('/'));
                }
                None => found = next,
            }
        }
        self.nodes.get(&found)
    }
}

fn is_read(name: &str) -> bool {
    matches!(
        name,
        "etc/os-release"
            | "usr/lib/os-release"
            | "etc/passwd"
            | "etc/group"
            | "var/lib/dpkg/status"
            | "lib/apk/db/installed"
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

impl Binary {
    fn read(entry: &mut impl Read) -> Result<Self> {
        let mut magic = Vec::new();
        entry.take(4).read_to_end(&mut magic)?;
        if magic != *b"\x7fELF" {
            return Ok(Binary::default());
        }
        let mut code = magic;
        entry.read_to_end(&mut code)?;
        // Most binaries have no list. A binary that cannot be parsed counts as one without.
        let list = auditable_info::audit_info_from_slice(&code, 64 << 20);
        Ok(Binary {
            crates: list.map_or(0, |list| list.packages.len() as u64),
            multicall: multicall(&code),
        })
    }
}

/// Recognizes `busybox` and `toybox` by their messages. The first one can be built without a shell,
/// so `sh` must be in its list of programs. Debian builds the second one without a shell, but with
/// other tools for an intruder, such as `netcat`.
fn multicall(code: &[u8]) -> Option<&'static str> {
    let has = |text: &[u8]| code.windows(text.len()).any(|part| part == text);
    if has(b"BusyBox v") && has(b"\0sh\0") {
        Some("BusyBox")
    } else if has(b"Toybox %s multicall binary") {
        Some("toybox")
    } else {
        None
    }
}

/// Returns the normalized path of an entry.
pub fn name_of(entry: &Entry<impl Read>) -> Result<String> {
    Ok(normal(&entry.path()?.to_string_lossy()))
}

/// Removes the leading `./` or `/` and the trailing `/` that some archives contain.
fn normal(path: &str) -> String {
    path.trim_start_matches("./").trim_matches('/').to_owned()
}
