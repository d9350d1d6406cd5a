//! The contents of an image, read from the layers in the archive of `docker save`.

mod sharing;
mod tree;
mod writable;

use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, BufReader, Read, Seek, SeekFrom, Take, Write},
    path::Path,
};

use anyhow::{Context, Result, bail, ensure};
use flate2::{Compression, read::MultiGzDecoder, write::GzEncoder};
use serde::Deserialize;
use tar::Archive;

pub use self::sharing::Sharing;
use self::{
    sharing::Layer,
    tree::{Tree, name_of},
};
use crate::engine::Layered;

/// Properties of the file system that a container sees, and the size of a pull.
#[derive(Debug, PartialEq)]
pub struct Contents {
    /// Size of regular files. A file with several hard links counts once.
    pub unpacked_bytes: u64,
    /// Size of the layers, compressed with gzip as `docker push` does. A layer that is stored
    /// compressed counts as it is.
    pub compressed_bytes: u64,
    pub layers: u64,
    /// An error if the base image is unknown.
    pub sharing: Result<Sharing, String>,
    pub files: u64,
    pub executables: u64,
    pub shell: Option<String>,
    pub interpreters: Vec<String>,
    pub package_managers: Vec<String>,
    pub setuid: Vec<String>,
    pub base: Option<String>,
    /// By kind. An error if they are in an unsupported database.
    pub packages: Result<BTreeMap<String, u64>, String>,
    /// Files and directories that the image's user may write. An error if the image names an unknown
    /// user.
    pub writable: Result<BTreeMap<String, u64>, String>,
}

/// What is read of an image's configuration (OCI image specification, config.md).
#[derive(Deserialize)]
struct Configuration {
    #[serde(default)]
    config: Execution,
    rootfs: Digests,
    #[serde(default)]
    history: Vec<Step>,
}

#[derive(Default, Deserialize)]
struct Execution {
    #[serde(default, rename = "User")]
    user: String,
}

#[derive(Deserialize)]
struct Digests {
    diff_ids: Vec<String>,
}

#[derive(Deserialize)]
struct Step {
    #[serde(default)]
    created_by: String,
    #[serde(default)]
    empty_layer: bool,
}

impl Configuration {
    /// Returns whether a Dockerfile's COPY made the first layer. Base images begin with the archive
    /// of a file system.
    fn begins_with_copy(&self) -> bool {
        let mut layers = self.history.iter().filter(|step| !step.empty_layer);
        layers.next().is_some_and(|step| {
            let instruction = step.created_by.trim_start_matches("/bin/sh -c #(nop) ");
            instruction.starts_with("COPY ")
        })
    }
}

/// Reads the archive of one image. Calls `progress` with the number of bytes that were read.
///
/// `user` replaces the image's user, as `docker run --user` does. `others` are the images with which
/// it can share layers.
///
/// # Errors
/// The file is not an archive of `docker save`, or a layer is compressed with another algorithm than
/// gzip.
pub fn read(
    archive: &Path,
    user: Option<&str>,
    others: &[Layered],
    progress: &impl Fn(u64),
) -> Result<Contents> {
    #[derive(Deserialize)]
    struct Manifest {
        #[serde(rename = "Config")]
        configuration: String,
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

    let find = |name: &str| {
        files
            .get(name)
            .with_context(|| format!("missing {name} in the archive"))
    };
    let manifest = manifest.context("missing manifest.json in the archive")?;
    let (position, size, _) = find(&manifest.configuration)?;
    let mut configuration = File::open(archive)?;
    configuration.seek(SeekFrom::Start(*position))?;
    let configuration: Configuration = serde_json::from_reader(configuration.take(*size))
        .context("invalid configuration of the image")?;
    let digests = &configuration.rootfs.diff_ids;
    ensure!(
        digests.len() == manifest.layers.len(),
        "{} layers in the archive, but {} in the configuration of the image",
        manifest.layers.len(),
        digests.len()
    );

    let mut tree = Tree::default();
    let mut layers = Vec::new();
    for (name, digest) in manifest.layers.iter().zip(digests) {
        let mut found = find(name)?;
        if let Some(link) = &found.2 {
            found = find(link)?;
        }
        let (bytes, compressed_bytes) = read_layer(archive, found.0, found.1, &mut tree, progress)
            .with_context(|| format!("layer {name}"))?;
        layers.push(Layer {
            digest: digest.clone(),
            bytes,
            compressed_bytes,
        });
    }
    let user = user.unwrap_or(&configuration.config.user);
    Ok(tree.describe(&layers, &configuration, user, others))
}

/// Adds a layer to the tree. Returns the size of its files and its compressed size.
fn read_layer(
    archive: &Path,
    position: u64,
    size: u64,
    tree: &mut Tree,
    progress: &impl Fn(u64),
) -> Result<(u64, u64)> {
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
            let bytes = tree.lay_over(MultiGzDecoder::new(raw))?;
            Ok((bytes, size))
        }
        [0x28, 0xb5, 0x2f, 0xfd] => bail!("unsupported compression: zstd"),
        _ => {
            let mut through = Tee {
                inner: raw,
                gzip: GzEncoder::new(Counter(0), Compression::default()),
            };
            let bytes = tree.lay_over(&mut through)?;
            // The padding that the tar reader left over is part of the layer.
            io::copy(&mut through, &mut io::sink())?;
            Ok((bytes, through.gzip.finish()?.0))
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
    use crate::engine::Layered;
    use flate2::{Compression, write::GzEncoder};
    use serde_json::json;
    use std::{fs, io::Write};
    use tar::{Builder, EntryType, Header};

    /// Takes paths, modes and contents. A slash at the end makes a directory, an arrow a hard link,
    /// and a wave a symbolic one. All belong to user 7 and group 8, except those with `root` in their
    /// path.
    fn layer(files: &[(&str, u32, &str)]) -> Vec<u8> {
        let mut tar = Builder::new(Vec::new());
        for (path, mode, text) in files {
            let mut header = Header::new_gnu();
            header.set_mode(*mode);
            header.set_size(text.len() as u64);
            let is_root = path.contains("root");
            header.set_uid(if is_root { 0 } else { 7 });
            header.set_gid(if is_root { 0 } else { 8 });
            let links = [(" -> ", EntryType::Link), (" ~> ", EntryType::Symlink)];
            let link = links
                .iter()
                .find_map(|(arrow, kind)| Some((kind, path.split_once(arrow)?)));
            if let Some((kind, (path, to))) = link {
                header.set_entry_type(*kind);
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
        image_of("", "ADD . /", &[], layers)
    }

    /// An image with a user, and with the instruction that made all layers. Their digests are `0`,
    /// `1` and so on.
    fn image_of(
        user: &str,
        instruction: &str,
        others: &[Layered],
        layers: &[Vec<u8>],
    ) -> Result<Contents, String> {
        let mut tar = Builder::new(Vec::new());
        let names: Vec<_> = (0..layers.len())
            .map(|number| format!("{number}/layer.tar"))
            .collect();
        let digests: Vec<_> = (0..layers.len()).map(|number| number.to_string()).collect();
        let manifest = json!([{"Config": "x.json", "Layers": names}]).to_string();
        let history = [
            json!({"created_by": "LABEL a=b", "empty_layer": true}),
            json!({ "created_by": instruction }),
        ];
        let configuration =
            json!({"config": {"User": user}, "rootfs": {"diff_ids": digests}, "history": history})
                .to_string();
        let texts = [
            ("manifest.json", manifest.as_bytes()),
            ("x.json", configuration.as_bytes()),
        ];
        let files = names
            .iter()
            .map(String::as_str)
            .zip(layers.iter().map(Vec::as_slice));
        for (name, bytes) in files.chain(texts) {
            let mut header = Header::new_gnu();
            header.set_size(bytes.len() as u64);
            tar.append_data(&mut header, name, bytes).unwrap();
        }
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), tar.into_inner().unwrap()).unwrap();
        read(file.path(), None, others, &|_| ()).map_err(|error| format!("{error:#}"))
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
    fn a_busybox_without_links_is_a_shell() {
        let shell = |path: &str, text: &str| {
            let found = image(&[layer(&[(path, 0o755, text)])]).unwrap();
            found.shell
        };
        let busybox = "\x7fELF…BusyBox v1.37.0 (Debian)…\0setsid\0sh\0sha1sum\0";
        let toybox = "\x7fELF…Toybox %s multicall binary%s";
        for (path, text, found) in [
            ("srv/httpd", busybox, Some("/srv/httpd (BusyBox)")),
            ("tool", toybox, Some("/tool (toybox)")),
            ("opt/x/bin/bash", "#!", Some("/opt/x/bin/bash")),
            // No shell in it, no program, and a text about it.
            ("srv/httpd", "\x7fELF…BusyBox v1.37.0\0httpd\0", None),
            ("srv/httpd", "BusyBox v1.37.0\0sh\0", None),
            ("srv/bash", "#!", None),
        ] {
            assert_eq!(shell(path, text).as_deref(), found, "{path}: {text}");
        }
        let found = image(&[layer(&[("srv/httpd", 0o644, busybox)])]).unwrap();
        assert_eq!(found.shell, None, "not executable");
        let linked = layer(&[
            ("bin/busybox", 0o755, busybox),
            ("bin/sh ~> /bin/busybox", 0o777, ""),
        ]);
        let found = image(&[linked]).unwrap();
        assert_eq!(found.shell.as_deref(), Some("/bin/sh"));
        let broken = image(&[layer(&[("bin/sh ~> /bin/dash", 0o777, "")])]).unwrap();
        assert_eq!(broken.shell, None, "a link without a target");
    }

    #[test]
    fn interpreters_count_once() {
        let found = image(&[layer(&[
            ("bin ~> usr/bin", 0o777, ""),
            ("usr/local/bin/python3.11", 0o755, ""),
            ("usr/local/bin/python3 ~> python3.11", 0o777, ""),
            ("usr/local/bin/python ~> ./python3", 0o777, ""),
            ("usr/local/bin/python3-config", 0o755, ""),
            ("app/venv/bin/python ~> /usr/local/bin/python3", 0o777, ""),
            ("usr/bin/python3 ~> python3.13", 0o777, ""),
            ("usr/bin/python3.13", 0o755, ""),
            ("usr/bin/perl5.40.1", 0o755, ""),
            ("usr/bin/perl -> usr/bin/perl5.40.1", 0o755, ""),
            ("usr/lib/jvm/java-21/bin/java", 0o755, ""),
            ("usr/lib/jvm/java-21/bin/javac", 0o755, ""),
            (
                "etc/alternatives/java ~> ../../usr/lib/jvm/java-21/bin/java",
                0o777,
                "",
            ),
            ("usr/bin/java ~> /etc/alternatives/java", 0o777, ""),
            ("opt/node/bin/node", 0o755, ""),
            ("usr/share/node/php", 0o755, ""),
            ("usr/bin/ruby ~> ruby3.3", 0o777, ""),
            ("usr/bin/lua5.4 ~> lua5.4", 0o777, ""),
            ("usr/bin/php8.4", 0o644, ""),
        ])]);
        assert_eq!(
            found.unwrap().interpreters,
            ["java", "node", "perl", "python3.11", "python3.13"]
        );
    }

    #[test]
    fn writable_paths_follow_owner_group_and_mode() {
        let files = || {
            layer(&[
                ("etc/root/passwd", 0o644, ""),
                ("etc/passwd", 0o444, "web:x:7:9::/:\n"),
                ("etc/group", 0o444, "logs:x:8:web\n"),
                ("mine/", 0o755, ""),
                ("mine/read-only", 0o577, ""),
                ("root/", 0o755, ""),
                ("root/tmp/", 0o1777, ""),
                ("root/closed/", 0o700, ""),
                ("root/closed/open/file", 0o666, ""),
                ("root/link ~> /mine", 0o777, ""),
                ("mine/file", 0o620, ""),
                ("mine/other -> mine/file", 0o620, ""),
            ])
        };
        let writable = |user: &str| {
            let found = image_of(user, "", &[], &[files()]).unwrap().writable?;
            let count = |kind| found.get(kind).copied().unwrap_or_default();
            Ok((count("directories"), count("files")))
        };
        assert_eq!(writable("web"), Ok((2, 2)), "its own");
        assert_eq!(writable("7"), Ok((2, 2)));
        assert_eq!(writable("65532"), Ok((1, 1)), "of others: read-only, tmp");
        assert_eq!(writable("65532:logs"), Ok((1, 3)), "of the group");
        assert_eq!(writable(""), Ok((4, 7)), "root may write everything");
        let unknown: Result<_, String> = writable("absent");
        assert!(unknown.unwrap_err().contains("absent"));
    }

    #[test]
    fn layers_are_shared_from_the_first_one() {
        let base = layer(&[("a", 0o644, "1234567"), ("b", 0o644, "890")]);
        let own = layer(&[("a", 0o644, "12"), ("bin/sh", 0o755, "#!")]);
        let layers = [base, gzip(&own)];
        let others = [Layered {
            name: "debian:trixie-slim".to_owned(),
            layers: vec!["0".to_owned()],
        }];
        let found = image_of("", "ADD . /", &others, &layers).unwrap();
        let sharing = found.sharing.unwrap();
        // The hidden file takes space on the node, too.
        assert_eq!((sharing.shared_bytes, sharing.own_bytes), (10, 4));
        assert_eq!(sharing.with.as_deref(), Some("debian:trixie-slim"));

        let alone = |instruction| image_of("", instruction, &[], &layers).unwrap().sharing;
        assert!(alone("ADD . /").unwrap_err().contains("unknown base image"));
        for copy in [
            "COPY busybox /bin/sh # buildkit",
            "/bin/sh -c #(nop) COPY file:1 in /bin/sh ",
        ] {
            assert_eq!(alone(copy).unwrap().own_bytes, 14);
        }
        let one = image_of("", "ADD . /", &[], &layers[1..]).unwrap();
        assert_eq!(one.sharing.unwrap().ten_services(), 40);
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
            read(file.path(), None, &[], &|_| ())
                .unwrap_err()
                .to_string()
                .contains("manifest.json")
        );
    }
}
