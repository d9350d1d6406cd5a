//! `cargo workshop compare` on real images in a real engine. Figures are verified with other tools.

use std::{
    io::Read,
    net::TcpListener,
    path::Path,
    process::{self, Command, Output, Stdio},
    sync::{Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

/// Only one comparison at a time, because they would disturb each other.
static ENGINE: Mutex<()> = Mutex::new(());

fn engine() -> MutexGuard<'static, ()> {
    ENGINE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn run(program: &str, arguments: &[&str]) -> Output {
    let mut command = Command::new("timeout");
    let output = command
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

fn docker(arguments: &str) -> String {
    let output = run("docker", &arguments.split_whitespace().collect::<Vec<_>>());
    assert!(
        output.status.success(),
        "docker {arguments}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

fn workshop(arguments: &[&str]) -> Command {
    let mut command = Command::new("timeout");
    command
        .args(["600", env!("CARGO_BIN_EXE_timber-workshop")])
        .args(arguments)
        .stdin(Stdio::null());
    command
}

/// Returns the exit code, the output, and the results file.
fn compare(arguments: &[&str]) -> (Option<i32>, String, Value) {
    let directory = tempfile::tempdir().unwrap();
    let output = directory.path().to_str().unwrap();
    let arguments = [&["compare", "--output", output], arguments].concat();
    let output = workshop(&arguments).output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    let results =
        std::fs::read(directory.path().join("results.json")).unwrap_or_else(|_| b"null".to_vec());
    (
        output.status.code(),
        String::from_utf8(said).unwrap(),
        serde_json::from_slice(&results).unwrap(),
    )
}

/// An image based on timber-tutorial:1, which contains a shell and the service. Removed when
/// dropped.
struct Image(String);

impl Image {
    fn new(name: &str, lines: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(
            directory.path().join("Dockerfile"),
            format!("FROM {}\n{lines}\n", base()),
        )
        .unwrap();
        let image = format!("timber-test:{name}-{}", process::id());
        docker(&format!(
            "build --quiet --tag {image} {}",
            directory.path().display()
        ));
        Image(image)
    }
}

impl Drop for Image {
    fn drop(&mut self) {
        run("docker", &["rmi", "--force", &self.0]);
    }
}

fn base() -> &'static str {
    let there = run("docker", &["image", "inspect", "timber-tutorial:1"])
        .status
        .success();
    assert!(
        there,
        "missing image timber-tutorial:1: run docker build -t timber-tutorial:1 ."
    );
    "timber-tutorial:1"
}

fn containers() -> String {
    docker("ps --all --quiet --filter label=timber.workshop")
}

fn figure<'a>(results: &'a Value, image: &str, key: &str) -> &'a Value {
    let images = results["images"].as_array().unwrap();
    let image = images.iter().find(|found| found["label"] == image).unwrap();
    let figure = image["figures"][key].as_object();
    let (kind, value) = figure
        .and_then(|figure| figure.iter().next())
        .unwrap_or_else(|| panic!("no {key} in {image:#}"));
    assert_ne!(kind, "not_available", "{key}: {value}");
    value
}

fn lowest(results: &Value, image: &str, key: &str) -> f64 {
    let samples = figure(results, image, key).as_array().unwrap();
    let samples = samples.iter().map(|sample| sample.as_f64().unwrap());
    samples.min_by(f64::total_cmp).expect("there are samples")
}

/// Lists sizes and names of the files and hard links in an archive, with GNU tar.
fn listing(archive: &str) -> Vec<(u64, String)> {
    let output = run("tar", &["-tvf", archive]);
    let lines = String::from_utf8(output.stdout).unwrap();
    let files = lines.lines().filter(|line| line.starts_with(['-', 'h']));
    let file = |line: &str| {
        let mut words = line.split_whitespace();
        (
            words.nth(2).unwrap().parse().unwrap(),
            words.nth(2).unwrap().to_owned(),
        )
    };
    files.map(file).collect()
}

/// Returns the layers in the archive of `docker save`.
fn layers(directory: &Path, image: &str) -> Vec<String> {
    let directory = directory.display();
    docker(&format!("save --output {directory}/save.tar {image}"));
    run(
        "tar",
        &[
            "-C",
            &directory.to_string(),
            "-xf",
            &format!("{directory}/save.tar"),
        ],
    );
    let manifest = std::fs::read(format!("{directory}/manifest.json")).unwrap();
    let manifest: Value = serde_json::from_slice(&manifest).unwrap();
    let layers = manifest[0]["Layers"].as_array().unwrap().iter();
    layers
        .map(|layer| format!("{directory}/{}", layer.as_str().unwrap()))
        .collect()
}

#[test]
#[ignore = "needs Docker Engine"]
fn sizes_agree_with_other_tools() {
    let _engine = engine();
    // Removed files, replaced files, and a file with two names.
    let image = Image::new(
        "sizes",
        "USER 0:0\n\
         RUN rm -r /usr/share/doc && rm /usr/bin/perl && mkdir /many && seq 100000 > /many/a && ln /many/a /many/b\n\
         RUN rm /many/a && cp /timber /many/c && chmod 6755 /many/c",
    );
    let (code, said, results) = compare(&[
        &format!("{}:path=/index", image.0),
        "--rounds",
        "1",
        "--load",
        "1",
        "--format",
        "json",
    ]);
    assert_eq!(code, Some(0), "{said}");
    let size = |key: &str| figure(&results, &image.0, key).as_u64().unwrap();

    let inspected = docker(&format!("image inspect --format {{{{.Size}}}} {}", image.0));
    assert_eq!(size("size"), inspected.parse::<u64>().unwrap());

    let directory = tempfile::tempdir().unwrap();
    let container = docker(&format!("create --label timber.test=true {}", image.0));
    docker(&format!(
        "export --output {}/export.tar {container}",
        directory.path().display()
    ));
    docker(&format!("rm {container}"));
    let layers = layers(directory.path(), &image.0);
    // The engine replaces these files in each container.
    let replaced = |(_, name): &(u64, String)| {
        let name = name.trim_start_matches("./");
        matches!(
            name,
            ".dockerenv" | "etc/hostname" | "etc/hosts" | "etc/resolv.conf" | "dev/console"
        )
    };
    let mut files = listing(&format!("{}/export.tar", directory.path().display()));
    files.retain(|file| !replaced(file));
    files.extend(
        layers
            .iter()
            .flat_map(|layer| listing(layer))
            .filter(replaced),
    );
    assert_eq!(
        size("unpacked"),
        files.iter().map(|(bytes, _)| bytes).sum::<u64>()
    );
    assert_eq!(size("files"), files.len() as u64);

    // At the same level, files from zlib-rs are 3 % larger than GNU's.
    let gzip = |layer: &String| {
        run("gzip", &["-6", "--stdout", "--no-name", layer])
            .stdout
            .len() as u64
    };
    let (ours, theirs) = (size("pull"), layers.iter().map(gzip).sum::<u64>());
    assert!(ours.abs_diff(theirs) <= theirs / 20, "{ours} and {theirs}");

    let setuid = figure(&results, &image.0, "setuid").as_array().unwrap();
    assert!(setuid.contains(&"/many/c".into()), "{setuid:?}");
    assert_eq!(containers(), "");
}

#[test]
#[ignore = "needs Docker Engine"]
fn start_times_agree_with_other_tools() {
    const SLEEP: f64 = 2.0;
    let _engine = engine();
    let slow = Image::new(
        "slow",
        "ENTRYPOINT [\"sh\", \"-c\", \"sleep 2; exec /timber\"]",
    );
    let slow_subject = format!("{}:path=/index", slow.0);
    let (code, said, results) = compare(&[
        &slow_subject,
        base(),
        "--rounds",
        "3",
        "--load",
        "1",
        "--format",
        "json",
    ]);
    assert_eq!(code, Some(0), "{said}");
    for key in ["process", "start"] {
        let difference = lowest(&results, &slow.0, key) - lowest(&results, base(), key);
        assert!(
            (difference - SLEEP).abs() < 1.0,
            "{key}: {difference} s for a sleep of {SLEEP} s"
        );
    }

    // The same with docker run and curl.
    let begin = Instant::now();
    let container = docker(&format!(
        "run --detach --label timber.test=true --publish 127.0.0.1::8080 {}",
        slow.0
    ));
    let address = docker(&format!("port {container} 8080"));
    while !run(
        "curl",
        &["--silent", "--fail", &format!("http://{address}/index")],
    )
    .status
    .success()
    {
        assert!(
            begin.elapsed() < Duration::from_secs(30),
            "no response at {address}"
        );
        thread::sleep(Duration::from_millis(10));
    }
    let independent = begin.elapsed().as_secs_f64();
    docker(&format!("rm --force {container}"));
    let ours = lowest(&results, &slow.0, "start");
    assert!(
        (ours - independent).abs() < 1.5,
        "{ours} s, with docker run and curl {independent} s"
    );
}

#[test]
#[ignore = "needs Docker Engine"]
fn failed_images_are_reported_and_the_others_measured() {
    let _engine = engine();
    let silent = Image::new(
        "silent",
        "ENTRYPOINT [\"sleep\", \"600\"]\nSTOPSIGNAL SIGKILL",
    );
    let ends = Image::new(
        "ends",
        "ENTRYPOINT [\"sh\", \"-c\", \"echo no configuration >&2; exit 3\"]",
    );
    let ports = Image::new("ports", "EXPOSE 81 82");
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = format!(
        "{}=taken:port={}:8080",
        base(),
        taken.local_addr().unwrap().port()
    );
    let wrong_path = format!("{}=wrong path:path=/nothing", base());
    let arguments = [
        "--rounds", "1", "--load", "1", "--ready", "5", "--format", "json",
    ];
    let images = [
        "timber-test:absent",
        &silent.0,
        &ends.0,
        &ports.0,
        &taken,
        &wrong_path,
        base(),
    ];
    let (code, said, results) = compare(&[&images[..], &arguments].concat());
    assert_eq!(code, Some(1), "{said}");
    let failures: Vec<_> = results["images"]
        .as_array()
        .unwrap()
        .iter()
        .map(|image| &image["failure"])
        .collect();
    for (failure, part) in failures.iter().zip([
        "missing image timber-test:absent",
        "no response with status 200 to GET / on port 8080 within 5s",
        "the container exited with code 3: no configuration",
        "choose one, as timber-test:ports",
        "is in use",
        "last attempt: status 404",
    ]) {
        assert!(
            failure
                .as_str()
                .is_some_and(|failure| failure.contains(part)),
            "{part:?} in {failure}"
        );
    }
    assert_eq!(*failures[6], Value::Null);
    assert_eq!(*figure(&results, base(), "errors"), 0);
    assert!(
        figure(&results, &silent.0, "unpacked").as_u64() > Some(0),
        "a failed image has a size"
    );
    assert_eq!(containers(), "");
}

#[test]
fn a_missing_engine_is_an_error() {
    let mut command = workshop(&["compare", "timber-tutorial:2"]);
    let output = command
        .env("DOCKER_HOST", "unix:///nowhere/docker.sock")
        .output()
        .unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(
        said.contains("no container engine responds at unix:///nowhere/docker.sock"),
        "{said}"
    );
}

#[test]
fn options_are_checked_before_the_measurement() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let below = format!("{}/results", file.path().display());
    for (arguments, said) in [
        (
            ["--output", &below],
            format!("--output: cannot write to {below}"),
        ),
        (
            ["--fail-over", "timber-tutorial:3/size=1MB"],
            "timber-tutorial:3: unknown image".to_owned(),
        ),
        (["--baseline", "/nowhere.json"], "--baseline".to_owned()),
    ] {
        let mut command = workshop(&["compare", "timber-tutorial:2"]);
        let output = command
            .args(arguments)
            .env("DOCKER_HOST", "unix:///nowhere/docker.sock")
            .output()
            .unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{stderr}");
        assert!(stderr.contains(&said), "{stderr}");
    }
}

#[test]
#[ignore = "needs Docker Engine"]
fn an_interrupted_comparison_removes_its_containers() {
    let _engine = engine();
    for (signal, delay) in [(Signal::INT, 0), (Signal::INT, 300), (Signal::TERM, 700)] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_timber-workshop"));
        command
            .args(["compare", base(), "--rounds", "100", "--output", "/nowhere"])
            .stdin(Stdio::null());
        let mut child = command
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let begin = Instant::now();
        while containers().is_empty() {
            assert!(
                begin.elapsed() < Duration::from_mins(1),
                "no container was created"
            );
        }
        thread::sleep(Duration::from_millis(delay));
        kill_process(Pid::from_child(&child), signal).unwrap();
        let code = child.wait().unwrap().code();
        let mut said = String::new();
        child.stderr.unwrap().read_to_string(&mut said).unwrap();
        assert_eq!(code, Some(2), "{said}");
        assert!(
            said.contains("error: interrupted") || said.contains("error: terminated"),
            "{said}"
        );
        assert_eq!(containers(), "");
    }
}

#[test]
#[ignore = "needs Docker Engine"]
fn containers_of_a_killed_comparison_are_removed() {
    let _engine = engine();
    let mut command = Command::new(env!("CARGO_BIN_EXE_timber-workshop"));
    command.args(["compare", base(), "--rounds", "100", "--output", "/nowhere"]);
    let mut child = command.stderr(Stdio::null()).spawn().unwrap();
    while containers().is_empty() {
        assert_eq!(child.try_wait().unwrap(), None, "it ended early");
    }
    let (code, said, _) = compare(&[base(), "--rounds", "1", "--load", "1"]);
    assert_eq!(code, Some(2), "{said}");
    let refusal = format!(
        "process {} is running another comparison on this engine",
        child.id()
    );
    assert!(said.contains(&refusal), "{said}");
    assert_eq!(child.try_wait().unwrap(), None, "the second one ended it");

    // Between the removal of a container and the next one, there is none.
    while containers().is_empty() {}
    kill_process(Pid::from_child(&child), Signal::KILL).unwrap();
    child.wait().unwrap();
    let (code, said, _) = compare(&[base(), "--rounds", "1", "--load", "1"]);
    assert_eq!(code, Some(0), "{said}");
    assert!(
        said.contains("Containers of an aborted comparison removed: 1"),
        "{said}"
    );
    assert_eq!(containers(), "");
}

#[test]
#[ignore = "needs Docker Engine"]
fn figures_from_stand_ins_say_so() {
    let _engine = engine();
    // An image inherits the label of its base image.
    let inherited = Image::new("stand-in", "LABEL timber.stand-in=true");
    // An image FROM scratch does not. The base images of this one are known from Dockerfile.musl.
    let from_scratch = "timber-tutorial:2";
    let dockerfile = concat!(env!("CARGO_MANIFEST_DIR"), "/../Dockerfile.musl");
    let dockerfile = std::fs::read_to_string(dockerfile).unwrap();
    let base = dockerfile
        .lines()
        .find_map(|line| line.strip_prefix("FROM rust:"))
        .map(|rest| format!("rust:{}", rest.split(' ').next().unwrap()))
        .unwrap();
    let label = "{{index .Config.Labels \"timber.stand-in\"}}";
    let label = run("docker", &["image", "inspect", "--format", label, &base]);
    let is_stand_in = String::from_utf8(label.stdout).unwrap().trim() == "true";
    println!("{base} is a stand-in: {is_stand_in}");

    let directory = tempfile::tempdir().unwrap();
    let output = directory.path().to_str().unwrap();
    let subject = format!("{}=inherited:path=/index", inherited.0);
    let mut command = workshop(&["compare", &subject, from_scratch, "--output", output]);
    let output = command
        .args(["--rounds", "1", "--load", "1"])
        .output()
        .unwrap();
    let table = String::from_utf8(output.stdout).unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let read = |name| std::fs::read_to_string(directory.path().join(name)).unwrap();
    let results: Value = serde_json::from_str(&read("results.json")).unwrap();
    assert_eq!(
        results["images"][0]["stand_ins"][0]["image"],
        "its base image"
    );
    let stand_ins = results["images"][1]["stand_ins"].as_array().unwrap();
    assert_eq!(stand_ins.len(), usize::from(is_stand_in), "{stand_ins:?}");
    let marked = format!("{from_scratch} †");
    let read = |name| read(name).replace('\u{a0}', " ");
    for (name, text) in [
        ("table", table.replace('\n', " ")),
        ("report.html", read("report.html")),
        ("report.svg", read("report.svg")),
    ] {
        assert!(text.contains("inherited †"), "{name}: {text}");
        assert!(
            text.contains("† Built with local stand-ins"),
            "{name}: {text}"
        );
        assert_eq!(text.contains(&marked), is_stand_in, "{name}: {text}");
    }
}

/// The container checks how it runs, and exits if something is missing.
#[test]
#[ignore = "needs Docker Engine"]
fn containers_run_as_asked() {
    const CHECKS: &str = "\
        test \\\"$GREETING\\\" = hi:there || { echo environment; exit 1; }; \
        test $(id -u):$(id -g) = 12345:54321 || { echo user; exit 1; }; \
        grep -q shown /data/file || { echo mount; exit 1; }; \
        ! touch /data/file 2>/dev/null || { echo the mount is writable; exit 1; }; \
        cat /sys/fs/cgroup/memory/memory.limit_in_bytes /sys/fs/cgroup/memory.max 2>/dev/null \
            | grep -qx 64000000 || { echo memory limit; exit 1; }; \
        getent hosts database >/dev/null || { echo network; exit 1; }; \
        exec /timber $0 $@";
    let _engine = engine();
    let checks = Image::new(
        "checks",
        &format!("USER 0:0\nENTRYPOINT [\"sh\", \"-c\", \"{CHECKS}\"]"),
    );
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("file");
    std::fs::write(&file, "shown").unwrap();
    for path in [directory.path(), &file] {
        let readable = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(path, readable).unwrap();
    }
    let network = format!("timber-test-{}", process::id());
    docker(&format!(
        "network create --label timber.test=true {network}"
    ));
    let database = docker(&format!(
        "run --detach --label timber.test=true --network {network} --network-alias database {}",
        base()
    ));
    let run = format!(
        "{}=checked:command=--bind :9000:port=9000:env=GREETING=hi:there:user=12345:54321:mount={}:/data\
         :memory=64MB:cpus=0.1:network={network}:path=/nothing:status=404:header=Accept: text/plain",
        checks.0,
        directory.path().display()
    );
    let options = ["--rounds", "1", "--load", "0.5", "--ready", "10"];
    let unlimited = format!("{}=unlimited", base());
    let (code, said, results) = compare(&[&[&*run, &*unlimited], &options[..]].concat());
    let wrong = run.replace("network=timber-test", "network=no-such");
    let (failed, why, _) = compare(&[&[&*wrong], &options[..]].concat());
    docker(&format!("rm --force {database}"));
    docker(&format!("network rm {network}"));
    assert_eq!(code, Some(0), "{said}");
    assert_eq!(*figure(&results, "checked", "cpus"), 0.1);
    assert_eq!(*figure(&results, "checked", "errors"), 0);
    let rate = |label| lowest(&results, label, "rate");
    assert!(
        rate("checked") < rate("unlimited"),
        "a tenth of a CPU is slower"
    );
    let notes = results["images"][0]["notes"].to_string();
    assert!(notes.contains("run with command=--bind :9000"), "{notes}");
    assert_eq!(failed, Some(1));
    assert!(why.contains("network no-such"), "{why}");
    assert!(why.contains("not found"), "{why}");
    assert_eq!(containers(), "");
}

/// A second process holds 50 MB until its input ends.
#[test]
#[ignore = "needs Docker Engine"]
fn memory_of_all_processes_counts() {
    const HELD: f64 = 50e6;
    let _engine = engine();
    let holder = Image::new(
        "holder",
        "ENTRYPOINT [\"sh\", \"-c\", \"{ head -c 50000000 /dev/zero; sleep 600; } | tail -c 50000000 >/dev/null & exec /timber\"]",
    );
    let subject = format!("{}:path=/index", holder.0);
    let (code, said, results) = compare(&[&subject, base(), "--rounds", "1", "--load", "0"]);
    assert_eq!(code, Some(0), "{said}");
    let memory = |image| lowest(&results, image, "memory");
    let held = memory(&holder.0) - memory(base());
    // tail needs some more for its buffers, and the processes for themselves.
    assert!((HELD..HELD * 1.2).contains(&held), "{held} bytes");
}

/// Every tenth response takes 100 ms.
#[test]
#[ignore = "needs Docker Engine"]
fn latencies_are_those_of_the_service() {
    const SERVICE: &str = "import itertools, time\nimport hug\nnumber = itertools.count()\n\
        @hug.get()\ndef index():\n    time.sleep(0.1 if next(number) % 10 == 9 else 0)\n    return 1\n";
    let _engine = engine();
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/hug");
    docker(&format!("build --quiet --tag timber-workshop:hug {root}"));
    let mut file = tempfile::NamedTempFile::new().unwrap();
    std::io::Write::write_all(&mut file, SERVICE.as_bytes()).unwrap();
    let readable = std::os::unix::fs::PermissionsExt::from_mode(0o644);
    std::fs::set_permissions(file.path(), readable).unwrap();
    let subject = format!(
        "timber-workshop:hug=slow:mount={}:/app/app.py",
        file.path().display()
    );
    let options = ["--rounds", "1", "--load", "2", "--connections", "1"];
    let (code, said, results) = compare(&[&[&*subject], &options[..]].concat());
    assert_eq!(code, Some(0), "{said}");
    for (key, expected) in [
        ("p50", 0.0..0.05),
        ("p99", 0.1..0.2),
        ("fixed-p50", 0.0..0.1),
        ("fixed-p99", 0.1..0.4),
        ("rate", 50.0..100.0),
    ] {
        let found = lowest(&results, "slow", key);
        assert!(expected.contains(&found), "{key}: {found}");
    }
    assert_eq!(*figure(&results, "slow", "connections"), "closed");
}
