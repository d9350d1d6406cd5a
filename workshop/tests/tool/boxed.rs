//! The tool in its own image, as docs/workshop.md runs it: with the engine's socket.

use std::{
    fs,
    net::TcpListener,
    path::Path,
    process::{self, Command, Output, Stdio},
    sync::LazyLock,
    thread,
    time::{Duration, Instant},
};

use serde_json::Value;
use tempfile::TempDir;

use crate::engine;

const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");
const IMAGES: [&str; 2] = ["timber-tutorial:1", "timber-tutorial:2"];

fn try_docker(line: &str) -> Output {
    Command::new("timeout")
        .args(["1800", "docker"])
        .args(line.split_whitespace())
        .current_dir(ROOT)
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

fn said(output: &Output) -> String {
    let all = [&output.stdout[..], &output.stderr[..]].concat();
    String::from_utf8_lossy(&all).into_owned()
}

fn docker(line: &str) -> String {
    let output = try_docker(line);
    assert!(output.status.success(), "docker {line}: {}", said(&output));
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

/// Returns the name of the tool's image, which is built once.
fn image() -> &'static str {
    static IMAGE: LazyLock<&str> = LazyLock::new(|| {
        docker("build -f workshop/Dockerfile -t timber-workshop .");
        "timber-workshop"
    });
    *IMAGE
}

/// Returns what comparisons made and did not remove.
fn left() -> String {
    let lists = ["ps --all", "network ls", "volume ls"];
    let list = |list| docker(&format!("{list} --quiet --filter label=timber.workshop"));
    lists.map(list).concat()
}

/// The tool in a container. Removed when dropped.
struct Boxed {
    id: String,
    directory: TempDir,
}

impl Boxed {
    fn start(options: &str, arguments: &str) -> Self {
        let host = std::env::var("DOCKER_HOST").unwrap_or_default();
        let socket = host
            .strip_prefix("unix://")
            .unwrap_or("/var/run/docker.sock");
        let directory = tempfile::tempdir().unwrap();
        let id = docker(&format!(
            "run --detach --label timber.test=true -v {socket}:/var/run/docker.sock -v {}:/comparison {options} {} {arguments}",
            directory.path().display(),
            image(),
        ));
        Boxed { id, directory }
    }

    fn compare(options: &str, rounds: u32) -> Self {
        let images = IMAGES.join(" ");
        Self::start(
            options,
            &format!("compare {images} --rounds {rounds} --load 1 --format json"),
        )
    }

    /// Waits until it has started a container to measure.
    fn wait_until_measuring(&self) {
        let begin = Instant::now();
        while docker("ps --quiet --filter label=timber.workshop").is_empty() {
            assert!(begin.elapsed() < Duration::from_mins(2), "{}", self.logs());
            thread::sleep(Duration::from_millis(50));
        }
    }

    fn logs(&self) -> String {
        said(&try_docker(&format!("logs {}", self.id)))
    }

    /// Waits for the end, and returns the exit code.
    fn wait(&self) -> i32 {
        docker(&format!("wait {}", self.id)).parse().unwrap()
    }

    fn results(&self) -> Value {
        let file = self.directory.path().join("results.json");
        serde_json::from_slice(&fs::read(file).unwrap()).unwrap()
    }
}

impl Drop for Boxed {
    fn drop(&mut self) {
        try_docker(&format!("rm --force {}", self.id));
    }
}

/// The tool on this machine.
fn outside(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_timber-workshop"));
    command
        .arg("compare")
        .args(IMAGES)
        .args(["--rounds", "1", "--load", "1"])
        .args(arguments)
        .stdin(Stdio::null());
    command
}

#[test]
#[ignore = "needs Docker Engine"]
fn the_image_is_one_static_file_of_at_most_15_mb() {
    let _engine = engine();
    let size = docker(&format!("image inspect --format {{{{.Size}}}} {}", image()));
    println!("{size} bytes");
    assert!(size.parse::<u64>().unwrap() <= 15_000_000, "{size} bytes");

    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().display();
    let container = docker(&format!("create --label timber.test=true {}", image()));
    docker(&format!("export --output {path}/files.tar {container}"));
    docker(&format!("cp {container}:/timber-workshop {path}"));
    docker(&format!("rm --volumes {container}"));
    let list = Command::new("tar")
        .args(["-tf", &format!("{path}/files.tar")])
        .output()
        .unwrap();
    let list = String::from_utf8(list.stdout).unwrap();
    // The engine adds the others to each container.
    let files = list.lines().filter(|path| {
        let added = ["dev/", "etc/", "proc/", "sys/", ".dockerenv"];
        !path.ends_with('/') && !added.iter().any(|added| path.starts_with(added))
    });
    assert_eq!(
        files.collect::<Vec<_>>(),
        ["LICENSE-DejaVu", "timber-workshop"]
    );
    let headers = Command::new("readelf")
        .args(["--program-headers", "--dynamic"])
        .arg(directory.path().join("timber-workshop"))
        .output()
        .unwrap();
    let headers = String::from_utf8(headers.stdout).unwrap();
    assert!(headers.contains("LOAD"), "{headers}");
    for loaded in ["INTERP", "NEEDED"] {
        assert!(!headers.contains(loaded), "not static: {headers}");
    }
}

#[test]
#[ignore = "needs Docker Engine"]
fn compares_over_a_network_of_its_own_and_leaves_nothing() {
    let _engine = engine();
    // By default, the host name is the container's id.
    for options in ["", "--hostname workshop"] {
        let tool = Boxed::compare(options, 1);
        assert_eq!(tool.wait(), 0, "{}", tool.logs());
        let results = tool.results();
        assert_eq!(results["engine"]["reached"], "container network");
        for image in results["images"].as_array().unwrap() {
            for figure in ["start", "process", "memory", "rate", "cpu", "stop", "files"] {
                let value = &image["figures"][figure];
                let is_missing = value.is_null() || value.get("not_available").is_some();
                assert!(!is_missing, "{figure}: {value}");
            }
            // The processes are invisible in the container.
            let notes = image["notes"].to_string();
            assert!(notes.contains("charged to its control group"), "{notes}");
            assert!(!notes.contains("stand-ins unknown"), "{notes}");
            assert!(!notes.contains("other containers"), "{notes}");
        }
        let picture = fs::read(tool.directory.path().join("report.png")).unwrap();
        assert!(picture.starts_with(b"\x89PNG"));
        let page = fs::read_to_string(tool.directory.path().join("report.html")).unwrap();
        assert!(page.contains("requests over a container network"));
        assert_eq!(left(), "");

        let baseline = tool.directory.path().join("results.json");
        let output = tempfile::tempdir().unwrap();
        let mut command = outside(&["--baseline", baseline.to_str().unwrap()]);
        let output = command.arg("--output").arg(output.path()).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{}", said(&output));
        let refusal = "--baseline: not comparable: requests went over a container network then";
        assert!(said(&output).contains(refusal), "{}", said(&output));
    }
}

#[test]
#[ignore = "needs Docker Engine"]
fn a_container_in_the_network_of_the_machine_uses_published_ports() {
    let _engine = engine();
    let tool = Boxed::compare("--network host", 1);
    assert_eq!(tool.wait(), 0, "{}", tool.logs());
    assert_eq!(tool.results()["engine"]["reached"], "published ports");
    assert_eq!(left(), "");
}

#[test]
#[ignore = "needs Docker Engine"]
fn an_interrupted_comparison_leaves_nothing() {
    let _engine = engine();
    for (signal, word) in [("kill --signal INT", "interrupted"), ("stop", "terminated")] {
        let tool = Boxed::compare("", 100);
        tool.wait_until_measuring();
        assert_ne!(left(), "");
        docker(&format!("{signal} {}", tool.id));
        // 137 would be the engine's SIGKILL after 10 s.
        assert_eq!(tool.wait(), 2, "{}", tool.logs());
        assert!(tool.logs().contains(&format!("error: {word}")));
        assert_eq!(left(), "", "after {signal}");
    }
}

#[test]
#[ignore = "needs Docker Engine"]
fn the_next_comparison_removes_what_a_killed_one_left() {
    let _engine = engine();
    for removes in [false, true] {
        let tool = Boxed::compare("", 100);
        tool.wait_until_measuring();
        docker(&format!("kill {}", tool.id));
        assert_ne!(left(), "");
        if removes {
            drop(tool);
        }
        let next = Boxed::compare("", 1);
        assert_eq!(next.wait(), 0, "{}", next.logs());
        assert!(next.logs().contains("aborted comparison removed: "));
        assert_eq!(left(), "");
    }

    let tool = Boxed::compare("", 100);
    tool.wait_until_measuring();
    docker(&format!("kill {}", tool.id));
    let directory = tempfile::tempdir().unwrap();
    let mut next = outside(&["--output", directory.path().to_str().unwrap()]);
    let output = next.output().unwrap();
    assert!(output.status.success(), "{}", said(&output));
    assert_eq!(left(), "");
}

#[test]
#[ignore = "needs Docker Engine"]
fn a_second_comparison_is_refused_and_disturbs_nothing() {
    let _engine = engine();
    let directory = tempfile::tempdir().unwrap();
    let output = directory.path().to_str().unwrap();
    let first = Boxed::compare("", 2);
    first.wait_until_measuring();
    let refusal = format!(
        "container {:.12} is running another comparison on this engine",
        first.id
    );
    let second = Boxed::compare("", 1);
    assert_eq!(second.wait(), 2, "{}", second.logs());
    assert!(second.logs().contains(&refusal), "{}", second.logs());
    let third = outside(&["--output", output]).output().unwrap();
    assert_eq!(third.status.code(), Some(2), "{}", said(&third));
    assert!(said(&third).contains(&refusal), "{}", said(&third));
    assert_eq!(first.wait(), 0, "{}", first.logs());
    assert_eq!(left(), "");

    let mut first = outside(&["--output", output])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    while left().is_empty() {
        assert_eq!(first.try_wait().unwrap(), None, "it ended early");
    }
    let second = Boxed::compare("", 1);
    assert_eq!(second.wait(), 2, "{}", second.logs());
    let refusal = format!(
        "process {} is running another comparison on this engine",
        first.id()
    );
    assert!(second.logs().contains(&refusal), "{}", second.logs());
    assert!(first.wait().unwrap().success());
    assert_eq!(left(), "");
}

#[test]
#[ignore = "needs Docker Engine"]
fn without_the_repository_an_error_names_the_command_that_builds_an_image() {
    let _engine = engine();
    let tool = Boxed::start("", "compare --rebuild");
    assert_eq!(tool.wait(), 2, "{}", tool.logs());
    let command = "docker build -f workshop/hug/Dockerfile -t timber-workshop:hug workshop/hug";
    assert!(tool.logs().contains(command), "{}", tool.logs());
    assert_eq!(left(), "");
}

/// In a container, the tool does not see presenterm, but it sees what the engine knows.
#[test]
#[ignore = "needs Docker Engine"]
fn ready_names_what_is_ready_and_what_is_not() {
    let _engine = engine();
    let tool = Boxed::start("", "ready");
    assert_eq!(tool.wait(), 0, "{}", tool.logs());
    let said = tool.logs();
    for line in [
        "?     terminal: the output is not a terminal",
        "?     presenterm: not found in this container",
        "ok    engine: Docker Engine ",
        "ok    swarm: none yet",
        "ok    disk: ",
        "ok    timber-workshop:hug on port 8080: responds ",
        "ok    timber-tutorial:1 on port 8081: responds ",
        "ok    timber-tutorial:2 on port 8082: responds ",
    ] {
        assert!(said.contains(line), "{line:?} is not in:\n{said}");
    }

    let _port = TcpListener::bind("127.0.0.1:8081").unwrap();
    let tool = Boxed::start("", "ready");
    assert_eq!(tool.wait(), 1, "{}", tool.logs());
    let line = "FAIL  timber-tutorial:1 on port 8081: port 8081 of this machine is in use";
    assert!(tool.logs().contains(line), "{}", tool.logs());
    assert_eq!(left(), "");
}

/// The service's images must not be compiled again after an edit of the tool.
#[test]
#[ignore = "needs Docker Engine"]
fn an_edit_of_the_tool_does_not_change_the_images_of_the_service() {
    let _engine = engine();
    let copy = tempfile::tempdir().unwrap();
    let path = copy.path().display();
    let files = format!(
        "cd {ROOT} && cp -a --parents .cargo .dockerignore Cargo.toml Cargo.lock build.rs src workshop/src \
         workshop/Cargo.toml workshop/Cargo.lock Dockerfile.musl {path}"
    );
    let copied = Command::new("bash").args(["-c", &files]).status().unwrap();
    assert!(copied.success());
    let name = format!("timber-test:edit-{}", process::id());
    let build = || {
        docker(&format!(
            "build --quiet -f {path}/Dockerfile.musl -t {name} {path}"
        ))
    };
    let before = build();
    let main = Path::new(copy.path()).join("workshop/src/main.rs");
    fs::write(main, "an edit").unwrap();
    assert_eq!(build(), before);
    docker(&format!("rmi {name}"));
}
