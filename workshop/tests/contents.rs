//! What `cargo workshop compare` finds in images that were made to have known values. Counted again
//! with other tools.

use std::{
    fs,
    io::Write,
    path::Path,
    process::{self, Command, Output, Stdio},
    sync::{Mutex, MutexGuard, PoisonError},
};

use serde_json::{Value, json};

/// Only one comparison at a time: the tool refuses a second one.
static ENGINE: Mutex<()> = Mutex::new(());

fn engine() -> MutexGuard<'static, ()> {
    ENGINE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn run(program: &str, arguments: &[&str]) -> Output {
    let output = Command::new("timeout")
        .args(["600", program])
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert!(
        output.status.code() != Some(127),
        "this test needs {program}"
    );
    output
}

/// Returns the output of a command that must succeed.
fn said(program: &str, arguments: &[&str]) -> String {
    let output = run(program, arguments);
    assert!(
        output.status.success(),
        "{program} {arguments:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

fn docker(arguments: &str) -> String {
    said("docker", &arguments.split_whitespace().collect::<Vec<_>>())
}

/// An image that this test builds, and removes at the end.
struct Image(String);

impl Image {
    fn new(name: &str, context: &Path, dockerfile: &str) -> Self {
        fs::write(context.join("Dockerfile"), dockerfile).unwrap();
        let image = Image::named(name);
        docker(&format!(
            "build --quiet --tag {} {}",
            image.0,
            context.display()
        ));
        image
    }

    fn named(name: &str) -> Self {
        Image(format!("timber-contents:{name}-{}", process::id()))
    }

    fn tag(&self, name: &str) -> Self {
        let copy = Image::named(name);
        docker(&format!("tag {} {}", self.0, copy.0));
        copy
    }

    /// Size of all layers.
    fn bytes(&self) -> u64 {
        let size = docker(&format!("image inspect --format {{{{.Size}}}} {}", self.0));
        size.parse().unwrap()
    }

    fn layers(&self) -> Vec<String> {
        let format = "{{json .RootFS.Layers}}";
        let layers = said("docker", &["image", "inspect", "--format", format, &self.0]);
        serde_json::from_str(&layers).unwrap()
    }
}

impl Drop for Image {
    fn drop(&mut self) {
        run("docker", &["rmi", "--force", &self.0]);
    }
}

/// The figures of an image. Most of these images have no server, so that only what they contain is
/// measured.
struct Figures(Value);

impl Figures {
    fn of(subject: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let output = directory.path().to_str().unwrap();
        let tool = env!("CARGO_BIN_EXE_timber-workshop");
        let options = ["--rounds", "1", "--load", "0", "--ready", "1", "--output"];
        let compared = run(
            tool,
            &[&["compare", subject], &options[..], &[output]].concat(),
        );
        let results = fs::read(directory.path().join("results.json"));
        let results = results.unwrap_or_else(|_| panic!("{compared:?}"));
        let results: Value = serde_json::from_slice(&results).unwrap();
        Figures(results["images"][0]["figures"].clone())
    }

    fn get(&self, key: &str) -> &Value {
        let figure = self.0[key].as_object().unwrap_or_else(|| panic!("{key}"));
        figure.values().next().unwrap()
    }

    /// Bytes in shared and own layers, and those of ten services.
    fn sharing(&self) -> [&Value; 3] {
        ["shared", "own", "ten"].map(|key| self.get(key))
    }
}

#[test]
#[ignore = "needs Docker Engine"]
fn files_have_the_known_properties() {
    let _engine = engine();
    let directory = tempfile::tempdir().unwrap();
    let base = "timber-tutorial:1";
    let plain = Figures::of(base);
    let image = Image::new(
        "files",
        directory.path(),
        &format!(
            "FROM {base}\n\
             USER 0:0\n\
             RUN echo web:x:1233:1234::/:/bin/sh >>/etc/passwd \\\n\
             && echo editors:x:1235:other,web >>/etc/group \\\n\
             && mkdir -p /known/own /known/group /known/all /known/closed /opt/tool/bin \\\n\
             && cd /known && touch own/file own/read-only group/file closed/file setuid \\\n\
             && chown -R 1233:1234 own && chown -R 0:1235 group \\\n\
             && chmod 466 own/read-only && chmod -R g+w group && chmod 777 all \\\n\
             && chmod 666 closed/file && chmod 700 closed && chmod 6755 setuid \\\n\
             && cd /opt/tool/bin && echo '#!' >python3.99 && chmod 755 python3.99 \\\n\
             && ln -s python3.99 python3 && ln -s /opt/tool/bin/python3 /usr/bin/python3\n\
             USER web"
        ),
    );
    let found = Figures::of(&image.0);
    let count = |figures: &Figures, key: &str| figures.get(key).as_u64().unwrap();
    assert_eq!(count(&found, "files"), count(&plain, "files") + 6);
    let names = |figures: &Figures, key: &str| figures.get(key).as_array().unwrap().clone();
    let added = |key: &str| {
        let before = names(&plain, key);
        let mut after = names(&found, key);
        after.retain(|name| !before.contains(name));
        after
    };
    assert_eq!(added("setuid"), [json!("/known/setuid")]);
    assert_eq!(added("interpreters"), [json!("python3.99")]);
    assert_eq!(
        names(&plain, "interpreters"),
        [json!("perl")],
        "Debian's perl-base"
    );

    // The same in a container, by the kernel's own answer. Mounts of the engine are not entered.
    let find = "find / -xdev -mindepth 1 '(' -type f -o -type d ')' -writable 2>/dev/null";
    for (subject, user) in [(base, None), (&image.0, None), (&image.0, Some("7:1235"))] {
        let option = user.map(|user| format!(":user={user}")).unwrap_or_default();
        let found = Figures::of(&format!("{subject}{option}"));
        let mut run = vec!["run", "--rm", "--label", "timber.test=true"];
        run.extend(user.iter().flat_map(|user| ["--user", user]));
        run.extend(["--entrypoint", "sh", subject, "-c"]);
        let script = format!("{find}; true");
        let paths = said("docker", &[&run[..], &[&script]].concat());
        let counts = found.get("writable").as_object().unwrap().values();
        let ours: u64 = counts.map(|count| count.as_u64().unwrap()).sum();
        println!("{subject}{option}: {ours} writable paths");
        assert_eq!(ours, paths.lines().count() as u64, "{subject}: {paths}");
        for (path, is_writable) in [
            ("/known/own/file", user.is_none()),
            ("/known/own/read-only", user.is_some()),
            ("/known/group/file", true),
            ("/known/all", true),
            ("/known/closed/file", false),
        ] {
            let is_found = paths.lines().any(|found| found == path);
            assert_eq!(is_found, is_writable && subject != base, "{path}");
        }
    }
    let root = Figures::of(&format!("{}:user=0:0", image.0));
    assert_eq!(root.get("writable")["files"], *root.get("files"));
}

/// Debian's package, because a registry's image has links to it.
#[test]
#[ignore = "needs Docker Engine"]
fn a_static_busybox_without_links_is_a_shell() {
    let _engine = engine();
    let directory = tempfile::tempdir().unwrap();
    let download = "cd \"$1\" && apt-get download busybox-static && dpkg-deb -x busybox-static_*.deb . \
                    && mv \"$(find . -path '*/bin/busybox')\" program";
    let path = directory.path().to_str().unwrap();
    said("sh", &["-ec", download, "sh", path]);
    let image = Image::new(
        "busybox",
        directory.path(),
        "FROM scratch\nCOPY program /srv/busybox-httpd\nCOPY Dockerfile /srv/",
    );
    let found = Figures::of(&image.0);
    assert_eq!(*found.get("shell"), "/srv/busybox-httpd (BusyBox)");
    assert_eq!(*found.get("executables"), 1);
    let run = "run --rm --label timber.test=true --entrypoint /srv/busybox-httpd";
    let run: Vec<_> = run.split(' ').collect();
    let sh = [&image.0, "sh", "-c", "echo $((6 * 7))"];
    assert_eq!(said("docker", &[&run[..], &sh].concat()), "42");
    // A Dockerfile copied it: it is not a base image.
    assert_eq!(*found.get("own"), image.bytes());
}

#[test]
#[ignore = "needs Docker Engine"]
fn shared_and_own_bytes_are_known() {
    const OS_RELEASE: &str = "PRETTY_NAME=Known\n";
    const SHARED: u64 = 1_000_003 + OS_RELEASE.len() as u64;
    const OWN: u64 = 200_005 + 300_001;
    let _engine = engine();
    let directory = tempfile::tempdir().unwrap();
    let context = directory.path();
    // A replaced file takes space, too: b and c.
    for (name, bytes) in [
        ("a", 1_000_003),
        ("b", 200_005),
        ("c", 300_001),
        ("d", 70_009),
    ] {
        let mut random = fs::File::open("/dev/urandom").unwrap();
        let mut file = fs::File::create(context.join(name)).unwrap();
        std::io::copy(&mut std::io::Read::take(&mut random, bytes), &mut file).unwrap();
        file.flush().unwrap();
    }
    fs::write(context.join("os-release"), OS_RELEASE).unwrap();
    let base = Image::new(
        "base",
        context,
        "FROM scratch\nCOPY a /a\nCOPY os-release /etc/",
    );
    let on_base = |name, copy| Image::new(name, context, &format!("FROM {}\n{copy}", base.0));
    let image = on_base("service", "COPY b /b\nCOPY c /b");
    assert_eq!((base.bytes(), image.bytes()), (SHARED, SHARED + OWN));
    let written = |with: &Image| json!(format!("1 MB, with {}", with.0));
    let check = |with: &Image, case| {
        let found = Figures::of(&image.0);
        let expected = [written(with), json!(OWN), json!(SHARED + 10 * OWN)];
        assert_eq!(found.sharing(), expected.each_ref(), "{case}");
    };
    check(&base, "the base image has a tag");

    let sibling = on_base("sibling", "COPY d /b");
    check(&base, "a sibling has the same layers in common");
    let copy = image.tag("copy");
    check(&base, "the image has two tags");
    let relabelled = Image::new(
        "relabelled",
        context,
        &format!("FROM {}\nLABEL a=b", image.0),
    );
    assert_eq!(relabelled.layers(), image.layers());
    let derived = Image::new("derived", context, &format!("FROM {}\nCOPY d /d", image.0));
    check(&base, "another image is built FROM it");

    let found = Figures::of(&derived.0);
    let ten = SHARED + OWN + 10 * 70_009;
    assert_eq!(found.sharing()[1..], [&json!(70_009), &json!(ten)]);

    // Without its tag, it may still be there, as a step of a build.
    drop(base);
    check(&sibling, "only a sibling has a tag");
    drop(sibling);
    let found = Figures::of(&image.0);
    for reason in found.sharing() {
        assert!(
            reason.as_str().unwrap().contains("unknown base image"),
            "{reason}"
        );
    }
    drop((copy, relabelled, derived));

    let alone = Image::new("alone", context, "FROM scratch\nCOPY d /d\nCOPY c /c");
    let found = Figures::of(&alone.0);
    let own = 70_009 + 300_001;
    let expected = [json!("none"), json!(own), json!(10 * own)];
    assert_eq!(found.sharing(), expected.each_ref());
}

#[test]
#[ignore = "needs Docker Engine"]
fn own_bytes_agree_with_docker_system_df() {
    let _engine = engine();
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("file"), vec![b'x'; 70_009]).unwrap();
    let dockerfile = "FROM timber-tutorial:1\nCOPY file /file";
    let image = Image::new("on-debian", directory.path(), dockerfile);
    let found = Figures::of(&image.0);
    assert_eq!(*found.get("own"), 70_009);
    // The engine's sizes of shared layers contain the lengths of symbolic links as well.
    let shared = found.get("ten").as_u64().unwrap() - 700_090;
    let theirs = image.bytes() - 70_009;
    assert!(
        shared <= theirs && theirs - shared < theirs / 100,
        "{shared} {theirs}"
    );

    let format = "{{range .Images}}{{.Repository}}:{{.Tag}} {{.UniqueSize}}\n{{end}}";
    let usage = said("docker", &["system", "df", "--verbose", "--format", format]);
    let unique = usage.lines().find_map(|line| line.strip_prefix(&image.0));
    assert_eq!(unique, Some(" 70.01kB"), "{usage}");
}
