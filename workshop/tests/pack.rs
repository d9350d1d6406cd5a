//! `cargo workshop pack` and `unpack`, as they are run, with a real engine.
//!
//! Each test makes an image of its own, so that nobody else's is removed.

use std::{
    fs::{self, File},
    io::Read,
    path::{Path, PathBuf},
    process::{self, Child, Command, Output, Stdio},
    thread,
    time::{Duration, Instant},
};

use flate2::{Compression, write::GzEncoder};
use rustix::process::{Pid, Signal, kill_process};
use sha2::{Digest, Sha256};
use tempfile::TempDir;

/// Gone with the value. `name` keeps tests apart that run at the same time.
struct Image(String);

impl Image {
    /// With one file of random bytes.
    fn new(name: &str, megabytes: u64) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut random = File::open("/dev/urandom").unwrap().take(megabytes << 20);
        std::io::copy(
            &mut random,
            &mut File::create(dir.path().join("random")).unwrap(),
        )
        .unwrap();
        Image::build(
            name,
            dir.path(),
            "FROM scratch\nCOPY random /random\nCMD [\"/random\"]\n",
        )
    }

    fn build(name: &str, context: &Path, dockerfile: &str) -> Self {
        let image = Image(format!("timber-test:pack-{name}-{}", process::id()));
        fs::write(context.join("Dockerfile"), dockerfile).unwrap();
        let context = context.display().to_string();
        docker(&[
            "build",
            "--quiet",
            "--label",
            "timber.test=true",
            "--tag",
            &image.0,
            &context,
        ]);
        image
    }

    fn id(&self) -> Option<String> {
        let output = command(
            "docker",
            &["image", "inspect", "--format", "{{.Id}}", &self.0],
        )
        .output()
        .unwrap();
        output.status.success().then(|| text(&output.stdout))
    }

    fn remove(&self) {
        docker(&["rmi", "--force", &self.0]);
        assert_eq!(self.id(), None);
    }
}

impl Drop for Image {
    fn drop(&mut self) {
        let _ = command("docker", &["rmi", "--force", &self.0]).output();
    }
}

#[test]
#[ignore = "needs Docker Engine"]
fn what_was_packed_is_there_again_after_unpacking() {
    let (dir, image) = (tempfile::tempdir().unwrap(), Image::new("round", 3));
    fs::create_dir_all(dir.path().join("comparison/charts")).unwrap();
    fs::write(dir.path().join("comparison/charts/start.svg"), "<svg/>").unwrap();
    let packed = workshop(&dir, &["pack", "--no-crates", "--images", &image.0]);
    assert!(packed.status.success(), "{}", text(&packed.stderr));
    assert_eq!(names_in(&dir), ["comparison", "timber-workshop.tar"]);

    let id = image.id().expect("the image is still there");
    image.remove();
    let unpacked = workshop(&dir, &["unpack", "timber-workshop.tar"]);
    assert!(unpacked.status.success(), "{}", text(&unpacked.stderr));
    assert_eq!(image.id(), Some(id));
    let report = dir.path().join("timber-workshop/report/charts/start.svg");
    assert_eq!(fs::read_to_string(report).unwrap(), "<svg/>");
    assert_eq!(
        names_in(&dir),
        ["comparison", "timber-workshop", "timber-workshop.tar"]
    );

    let again = workshop(&dir, &["unpack", "timber-workshop.tar"]);
    assert_fails(&again, "timber-workshop is there already");
}

#[test]
#[ignore = "needs Docker Engine"]
fn an_unpacked_image_runs() {
    let (dir, made) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    fs::write(
        made.path().join("say.c"),
        "#include <stdio.h>\nint main(void) { puts(\"unpacked\"); }\n",
    )
    .unwrap();
    let compiled = command("cc", &["-static", "-o", "say", "say.c"])
        .current_dir(made.path())
        .status()
        .unwrap();
    assert!(compiled.success());
    let image = Image::build(
        "run",
        made.path(),
        "FROM scratch\nCOPY say /say\nCMD [\"/say\"]\n",
    );

    let packed = workshop(
        &dir,
        &["pack", "small.tar", "--no-crates", "--images", &image.0],
    );
    assert!(packed.status.success(), "{}", text(&packed.stderr));
    image.remove();
    let unpacked = workshop(&dir, &["unpack", "small.tar", "elsewhere"]);
    assert!(unpacked.status.success(), "{}", text(&unpacked.stderr));
    assert_eq!(
        docker(&["run", "--rm", "--label", "timber.test=true", &image.0]),
        "unpacked"
    );
}

#[test]
#[ignore = "needs Docker Engine"]
fn the_crates_build_the_service_without_a_network() {
    let (dir, image) = (tempfile::tempdir().unwrap(), Image::new("crates", 1));
    let packed = workshop(&dir, &["pack", "--images", &image.0]);
    assert!(packed.status.success(), "{}", text(&packed.stderr));
    let unpacked = workshop(&dir, &["unpack", "timber-workshop.tar"]);
    assert!(unpacked.status.success(), "{}", text(&unpacked.stderr));
    let config = dir.path().join("timber-workshop/crates/.cargo/config.toml");
    // An empty home has no crates and no index.
    let built = command(
        "cargo",
        &["check", "--locked", "--offline", "--quiet", "--config"],
    )
    .arg(config)
    .env("CARGO_HOME", dir.path().join("home"))
    .env("CARGO_TARGET_DIR", dir.path().join("target"))
    .current_dir(root())
    .output()
    .unwrap();
    assert!(built.status.success(), "{}", text(&built.stderr));
}

#[test]
#[ignore = "needs Docker Engine"]
fn an_archive_that_is_not_whole_is_refused() {
    let (dir, image) = (tempfile::tempdir().unwrap(), Image::new("damage", 1));
    let packed = workshop(
        &dir,
        &["pack", "good.tar", "--no-crates", "--images", &image.0],
    );
    assert!(packed.status.success(), "{}", text(&packed.stderr));
    image.remove();
    let good = fs::read(dir.path().join("good.tar")).unwrap();

    let lengths = [
        0,
        100,
        512,
        1000,
        good.len() / 2,
        good.len() - 2048,
        good.len() - 4096,
    ];
    for length in lengths {
        refused(&dir, &image, &good[..length], "not a whole archive");
    }
    for place in [600, good.len() / 2] {
        let mut altered = good.clone();
        altered[place] ^= 1;
        refused(&dir, &image, &altered, "is altered");
    }
    refused(
        &dir,
        &image,
        b"\x1f\x8bsomething else altogether",
        "not a whole archive",
    );
    refused(&dir, &image, &[b'x'; 4096], "not a whole archive");
    // A tar, but not of `pack`.
    let mut other = tar::Builder::new(Vec::new());
    other
        .append_path_with_name(root().join("Cargo.toml"), "Cargo.toml")
        .unwrap();
    refused(
        &dir,
        &image,
        &other.into_inner().unwrap(),
        "it has no manifest",
    );
}

#[test]
#[ignore = "needs Docker Engine"]
fn no_archive_writes_outside_of_its_directory() {
    let dir = tempfile::tempdir().unwrap();
    let outside = dir.path().join("outside");
    for (path, kind) in [
        ("../outside", tar::EntryType::Regular),
        ("a/../../outside", tar::EntryType::Regular),
        (outside.to_str().unwrap(), tar::EntryType::Regular),
        ("link", tar::EntryType::Symlink),
        ("link", tar::EntryType::Link),
    ] {
        let file = dir.path().join("evil.tar");
        fs::write(&file, with_crates(path, kind)).unwrap();
        assert_fails(&workshop(&dir, &["unpack", "evil.tar"]), "which is refused");
        fs::remove_file(&file).unwrap();
        assert!(names_in(&dir).is_empty(), "{path}: {:?}", names_in(&dir));
    }
}

#[test]
#[ignore = "needs Docker Engine"]
fn an_interrupted_pack_leaves_nothing() {
    let image = Image::new("interrupt", 300);
    for (signal, before) in [
        (Signal::INT, None),
        (Signal::TERM, Some("an earlier archive")),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let mut expected = Vec::new();
        if let Some(before) = before {
            fs::write(dir.path().join("timber-workshop.tar"), before).unwrap();
            expected.push("timber-workshop.tar".to_owned());
        }
        let child = start(&dir, &["pack", "--no-crates", "--images", &image.0]);
        // Some of it is written already.
        eventually(|| {
            let files = fs::read_dir(dir.path()).unwrap().flatten();
            files
                .into_iter()
                .any(|file| file.metadata().is_ok_and(|file| file.len() > 1 << 20))
        });
        kill_process(Pid::from_child(&child), signal).unwrap();
        let begun = Instant::now();
        assert_fails(
            &child.wait_with_output().unwrap(),
            "interrupted, nothing was written",
        );
        assert!(
            begun.elapsed() < Duration::from_secs(5),
            "it took {:?} to stop",
            begun.elapsed()
        );
        assert_eq!(names_in(&dir), expected);
        if let Some(before) = before {
            assert_eq!(
                fs::read_to_string(dir.path().join("timber-workshop.tar")).unwrap(),
                before
            );
        }
    }
}

#[test]
#[ignore = "needs Docker Engine"]
fn interrupted_while_it_collects_crates_it_leaves_nothing() {
    let (dir, image) = (tempfile::tempdir().unwrap(), Image::new("vendor", 1));
    let child = start(&dir, &["pack", "--images", &image.0]);
    eventually(|| {
        let mut directories = fs::read_dir(dir.path()).unwrap().flatten();
        directories.any(|directory| directory.path().join("vendor").is_dir())
    });
    kill_process(Pid::from_child(&child), Signal::INT).unwrap();
    assert_fails(
        &child.wait_with_output().unwrap(),
        "interrupted, nothing was written",
    );
    assert!(names_in(&dir).is_empty(), "{:?}", names_in(&dir));
}

#[test]
#[ignore = "needs Docker Engine"]
fn a_full_disk_is_told_and_leaves_nothing() {
    let (dir, image) = (tempfile::tempdir().unwrap(), Image::new("full", 3));
    let at = dir.path().display().to_string();
    assert!(
        command("mount", &["-t", "tmpfs", "-o", "size=1m", "tmpfs", &at])
            .status()
            .unwrap()
            .success()
    );
    let packed = workshop(&dir, &["pack", "--no-crates", "--images", &image.0]);
    let left = names_in(&dir);
    assert!(command("umount", &[&at]).status().unwrap().success());
    assert_fails(&packed, "No space left on device");
    assert!(left.is_empty(), "{left:?}");
}

#[test]
#[ignore = "needs Docker Engine"]
fn what_cannot_be_done_is_told_in_a_line() {
    let dir = tempfile::tempdir().unwrap();
    let missing = "timber-test:there-is-none";
    assert_fails(
        &workshop(&dir, &["pack", "--images", missing]),
        "the engine has no image timber-test:there-is-none",
    );
    assert_fails(
        &workshop(&dir, &["pack", "--images", missing, "--report", "none"]),
        "the report none is not a directory",
    );
    assert_fails(
        &workshop(&dir, &["pack", "no/where.tar"]),
        "cannot write to no",
    );
    assert_fails(&workshop(&dir, &["pack", "."]), ". is a directory");
    assert_fails(
        &workshop(&dir, &["unpack", "none.tar"]),
        "cannot open none.tar",
    );
    let lost = tool(&dir, &["pack"])
        .env("DOCKER_HOST", "unix:///nowhere.sock")
        .output()
        .unwrap();
    assert_fails(&lost, "no container engine answers");
    assert!(names_in(&dir).is_empty(), "{:?}", names_in(&dir));
}

/// The archive is refused with these words, nothing is left, and the engine got nothing.
fn refused(dir: &TempDir, image: &Image, archive: &[u8], words: &str) {
    let file = dir.path().join("bad.tar");
    fs::write(&file, archive).unwrap();
    assert_fails(&workshop(dir, &["unpack", "bad.tar"]), words);
    fs::remove_file(file).unwrap();
    assert_eq!(names_in(dir), ["good.tar"]);
    assert_eq!(image.id(), None);
}

/// A well-formed archive without images whose crates hold one entry of this kind, with this path.
fn with_crates(path: &str, kind: tar::EntryType) -> Vec<u8> {
    let mut header = tar::Header::new_gnu();
    // As no library would let it be written.
    header.as_old_mut().name[..path.len()].copy_from_slice(path.as_bytes());
    header.set_entry_type(kind);
    header.set_mode(0o644);
    if kind != tar::EntryType::Regular {
        header.set_link_name("/etc/passwd").unwrap();
    }
    header.set_size(0);
    header.set_cksum();
    let mut inner = tar::Builder::new(GzEncoder::new(Vec::new(), Compression::fast()));
    inner.append(&header, &b""[..]).unwrap();
    let crates = inner.into_inner().unwrap().finish().unwrap();

    let sum = hex::encode(Sha256::digest(&crates));
    let manifest = format!(
        r#"{{"format":1,"made":"2026-01-01T00:00:00Z","images":[],
            "parts":[{{"name":"crates.tar.gz","what":"","bytes":{},"sha256":"{sum}"}}]}}"#,
        crates.len()
    );
    let mut outer = tar::Builder::new(Vec::new());
    for (name, bytes) in [
        ("crates.tar.gz", &crates[..]),
        ("manifest.json", manifest.as_bytes()),
    ] {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        outer.append_data(&mut header, name, bytes).unwrap();
    }
    outer.into_inner().unwrap()
}

fn workshop(dir: &TempDir, arguments: &[&str]) -> Output {
    tool(dir, arguments).output().unwrap()
}

fn start(dir: &TempDir, arguments: &[&str]) -> Child {
    tool(dir, arguments)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

fn tool(dir: &TempDir, arguments: &[&str]) -> Command {
    let mut command = command(env!("CARGO_BIN_EXE_timber-workshop"), arguments);
    command.current_dir(dir.path());
    command
}

fn docker(arguments: &[&str]) -> String {
    let output = command("docker", arguments).output().unwrap();
    assert!(
        output.status.success(),
        "docker {arguments:?}: {}",
        text(&output.stderr)
    );
    text(&output.stdout)
}

fn command(program: &str, arguments: &[&str]) -> Command {
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null());
    command
}

/// With exit code 2 and an error that has these words.
fn assert_fails(output: &Output, words: &str) {
    let error = text(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{error}");
    assert!(
        error.contains("error: ") && error.contains(words),
        "{words:?} is not in {error:?}"
    );
}

fn eventually(condition: impl Fn() -> bool) {
    let end = Instant::now() + Duration::from_mins(1);
    while !condition() {
        assert!(Instant::now() < end, "it did not come to that in a minute");
        thread::sleep(Duration::from_millis(5));
    }
}

/// What `ls -A` shows.
fn names_in(dir: &TempDir) -> Vec<String> {
    let entries = fs::read_dir(dir.path()).unwrap();
    let mut names: Vec<String> = entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .unwrap()
        .to_owned()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).trim().to_owned()
}
