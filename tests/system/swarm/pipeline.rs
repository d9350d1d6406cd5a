//! Runs the pipelines as they are in the repository, in a changed clone of it, with an image registry
//! on this machine: `.gitlab-ci.yml` by gitlab-ci-local, which runs each job in a container of its own, and
//! the steps of `.drone.yml` as Drone's Docker runner would.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::Value;
use tempfile::TempDir;

use crate::clone::Clone;
use crate::docker::{Image, ROOT, edit, output};
use crate::support::{exchange, get};
use crate::swarm::{Swarm, Watch, ready};
use crate::{assert_no_loss, counts};

/// What the test changes, as docs/pipeline.md tells its readers.
const GREETING: (&str, &str, &str) = ("src/page.html", "This replica", "Hello, pipeline");
/// A setting that no container accepts. Neither the tests nor the gate can see that.
const MISTAKE: (&str, &str, &str) = (
    "deploy/compose.yaml",
    r#"TIMBER_WORKERS: "2""#,
    r#"TIMBER_WORKERS: "two""#,
);

impl Clone {
    fn change(&self, (file, from, to): (&str, &str, &str)) {
        edit(&self.path().join(file), from, to);
        self.commit();
    }

    fn revision(&self) -> String {
        self.sh("git rev-parse HEAD").trim().to_owned()
    }
}

/// An image registry, stopped when dropped.
struct Registry {
    directory: TempDir,
    address: String,
}

impl Registry {
    fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let mut start = Command::new(format!("{ROOT}/.ci/registry"));
        let started = output(start.arg("start").arg(directory.path()));
        let address = String::from_utf8(started.stdout).unwrap().trim().to_owned();
        assert!(started.status.success(), "this test needs .ci/registry");
        Registry { directory, address }
    }

    fn image(&self) -> String {
        format!("{}/timber-tutorial", self.address)
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let stop = format!(
            "{ROOT}/.ci/registry stop {}
             docker images --format '{{{{.Repository}}}}:{{{{.Tag}}}}' {} | xargs -r docker rmi --force",
            self.directory.path().display(),
            self.image()
        );
        _ = Command::new("bash").args(["-c", &stop]).output();
    }
}

/// Runs a pipeline for the last commit of the clone. Returns whether it passed, and its log.
type Pipeline = fn(&Clone, &Registry) -> (bool, String);

#[test]
#[ignore = "needs Docker Engine, docker-registry and gitlab-ci-local; takes a quarter of an hour"]
fn gitlab_pipeline_rolls_a_change_out_and_takes_a_mistake_back() {
    let registry = Registry::start();
    let clone = Clone::new();
    let swarm = Swarm::deploy(&ready(2));
    let (image, revision) = roll_a_change_out(run_gitlab, &clone, &registry);

    clone.change(MISTAKE);
    let watch = Watch::start();
    let (passed, log) = run_gitlab(&clone, &registry);
    let summary = watch.end();
    assert!(!passed, "{log}");
    println!("a mistake: {}", counts(&summary));
    assert_no_loss(&summary);
    for part in [
        "roll-out: FAILED: update rolled back",
        "task: non-zero exit (2)",
        "roll-out: taken back",
    ] {
        assert!(log.contains(part), "{part:?} is not in:\n{log}");
    }
    swarm.all_run_image(&image, 3);
    assert_serves(&revision);
}

#[test]
#[ignore = "needs Docker Engine and docker-registry; takes ten minutes"]
fn drone_pipeline_rolls_a_change_out() {
    let registry = Registry::start();
    let clone = Clone::new();
    let swarm = Swarm::deploy(&ready(2));
    let (image, _) = roll_a_change_out(run_drone, &clone, &registry);
    swarm.all_run_image(&image, 3);
}

/// act runs the workflow in one container. It copies the clone itself, in place of actions/checkout.
#[test]
#[ignore = "needs Docker Engine and act; takes five minutes"]
fn github_workflow_tests_a_change() {
    let clone = Clone::new();
    clone.change(GREETING);
    let runner = Image::new("act");
    // What GitHub's machines have.
    let dockerfile = "FROM rust:1.95-slim-trixie
        RUN apt-get -q update && apt-get -qy install --no-install-recommends docker-cli docker-buildx nodejs python3";
    clone.sh(&format!(
        "echo '{dockerfile}' | docker build --quiet --label timber.test=true -t {} -",
        runner.0
    ));
    let (passed, log) = run_logged(
        Command::new("act")
            .args([
                "push",
                "--workflows",
                ".github/workflows/ci.yml",
                "--pull=false",
                "--rm",
            ])
            .args(["--platform", &format!("ubuntu-24.04={}", runner.0)])
            .current_dir(clone.path()),
    );
    assert!(passed, "{log}");
    for part in [
        "test result: ok.",
        "ok      exit code: 0, expected 0",
        "Job succeeded",
    ] {
        assert!(log.contains(part), "{part:?} is not in:\n{log}");
    }
}

/// So the run of Drone's steps stands for both.
#[test]
fn woodpecker_runs_the_commands_of_drone() {
    let steps = |file: &str| {
        let text = fs::read_to_string(Path::new(ROOT).join(file)).unwrap();
        let pipeline: Value = serde_saphyr::from_str(&text).unwrap();
        let steps = pipeline["steps"].as_array().unwrap().iter();
        let text = |step: &Value| {
            ["name", "image", "environment", "commands"]
                .map(|key| step[key].to_string())
                .join("\n")
        };
        steps.map(text).collect::<Vec<_>>()
    };
    let drone = steps(".drone.yml");
    let drone: Vec<_> = drone
        .iter()
        .map(|step| step.replace("DRONE_COMMIT_SHA", "CI_COMMIT_SHA"))
        // A step of Woodpecker cannot have the host's network.
        .map(|step| step.replace("127.0.0.1:8080", "swarm.example:8080"))
        .collect();
    assert_eq!(steps(".woodpecker.yml"), drone);
}

/// Returns the name of the image, and the revision that it serves.
fn roll_a_change_out(pipeline: Pipeline, clone: &Clone, registry: &Registry) -> (String, String) {
    clone.change(GREETING);
    let revision = clone.revision();
    let watch = Watch::start();
    let (passed, log) = pipeline(clone, registry);
    let summary = watch.end();
    assert!(passed, "{log}");
    println!("a change: {}", counts(&summary));
    assert_no_loss(&summary);
    let all = "3 of 3 tasks run the image, 3 of 3 hosts serve it";
    assert!(log.contains(all), "{log}");
    assert_serves(&revision);
    (format!("{}:{revision}", registry.image()), revision)
}

fn assert_serves(revision: &str) {
    let request = |text: &str| {
        let mut stream = std::net::TcpStream::connect("127.0.0.1:8080").unwrap();
        exchange(&mut stream, text)
    };
    let page =
        request("GET / HTTP/1.1\r\nHost: a\r\nAccept: text/html\r\nConnection: close\r\n\r\n");
    assert!(page.text().contains(GREETING.2), "{}", page.text());
    assert_eq!(request(&get("/version")).json()["revision"], revision);
}

fn run_gitlab(clone: &Clone, registry: &Registry) -> (bool, String) {
    let Registry { address, .. } = registry;
    let image = registry.image();
    let (passed, log) = run_logged(
        Command::new("gitlab-ci-local")
            .args([
                "--network",
                "host",
                "--volume",
                "/run/docker.sock:/var/run/docker.sock",
            ])
            .args([
                "--helper-image",
                "docker:cli",
                "--pull-policy",
                "if-not-present",
            ])
            .args(["--variable", &format!("CI_REGISTRY={address}")])
            .args(["--variable", &format!("CI_REGISTRY_IMAGE={image}")])
            .args(["--variable", "CI_REGISTRY_USER=nobody"])
            .args(["--variable", "CI_REGISTRY_PASSWORD=none"])
            .current_dir(clone.path()),
    );
    fs::remove_dir_all(clone.path().join(".gitlab-ci-local")).unwrap();
    (passed, log)
}

/// Each step is a container of the step's image, with the workspace, and runs its commands in one shell
/// that ends at the first failure.
fn run_drone(clone: &Clone, registry: &Registry) -> (bool, String) {
    let text = fs::read_to_string(clone.path().join(".drone.yml")).unwrap();
    // What its comments say is to be replaced.
    let text = text.replace("registry.example", &registry.address);
    let pipeline: Value = serde_saphyr::from_str(&text).unwrap();
    assert_eq!(pipeline["type"], "docker");
    let mut log = String::new();
    for step in pipeline["steps"].as_array().unwrap() {
        println!("{}", step["name"]);
        let mut container = Command::new("docker");
        container.args([
            "run",
            "--rm",
            "--label",
            "timber.test=true",
            "--workdir",
            "/drone/src",
        ]);
        container.args([
            "--volume",
            &format!("{}:/drone/src", clone.path().display()),
        ]);
        for volume in step["volumes"].as_array().into_iter().flatten() {
            let host = &pipeline["volumes"][0];
            assert_eq!(volume["name"], host["name"]);
            let (from, to) = (&host["host"]["path"], &volume["path"]);
            container.args(["--volume", &format!("{}:{}", word(from), word(to))]);
        }
        if let Some(network) = step["network_mode"].as_str() {
            container.args(["--network", network]);
        }
        container.args(["--env", &format!("DRONE_COMMIT_SHA={}", clone.revision())]);
        for (name, value) in step["environment"].as_object().into_iter().flatten() {
            let value = value
                .as_str()
                .unwrap_or_else(|| word(&value["from_secret"]));
            container.args(["--env", &format!("{name}={value}")]);
        }
        if let Some(when) = step.get("when") {
            assert_eq!(when["branch"][0], "main");
        }
        let commands: Vec<_> = step["commands"]
            .as_array()
            .unwrap()
            .iter()
            .map(word)
            .collect();
        container.args([
            "--entrypoint",
            "sh",
            word(&step["image"]),
            "-exc",
            &commands.join("\n"),
        ]);
        let (passed, output) = run_logged(&mut container);
        log += &output;
        if !passed {
            return (false, log);
        }
    }
    (true, log)
}

fn word(value: &Value) -> &str {
    value
        .as_str()
        .unwrap_or_else(|| panic!("{value} is not a word"))
}

/// Returns whether the program succeeded, and all that it printed.
fn run_logged(command: &mut Command) -> (bool, String) {
    let output = output(command.stdin(Stdio::null()));
    let log = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    println!("{log}");
    (output.status.success(), log.into_owned())
}
