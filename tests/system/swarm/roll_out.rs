//! `deploy/roll-out` in a real swarm: what it does with good and with failed releases, and its exit
//! codes.

use std::fs;
use std::process::{Command, Stdio};
use std::sync::LazyLock;
use std::thread;

use rustix::process::{Pid, Signal, kill_process};

use crate::docker::{Image, ROOT, docker, output, run};
use crate::swarm::{Engine, SERVICE, Swarm, ready, wait_for};

/// Image 2 with the faults for teaching. Tests of the same run share it.
static FAULTY: LazyLock<String> = LazyLock::new(|| {
    run(
        "docker build --quiet --label timber.test=true -f Dockerfile.musl \
         --build-arg FEATURES=faults -t timber-test:faulty .",
    );
    "timber-test:faulty".to_owned()
});

/// Builds a release from image 2 or a faulty one. `lines` are those of its Dockerfile after FROM.
fn release(name: &str, base: &str, lines: &str) -> Image {
    let image = Image::new(name);
    let dir = tempfile::tempdir().unwrap();
    fs::write(
        dir.path().join("Dockerfile"),
        format!("FROM {base}\n{lines}\n"),
    )
    .unwrap();
    run(&format!(
        "docker build --quiet --label timber.test=true -t {} {}",
        image.0,
        dir.path().display()
    ));
    image
}

fn revision_label(revision: &str) -> String {
    format!("LABEL org.opencontainers.image.revision={revision}")
}

fn roll_out(arguments: &str) -> (i32, String) {
    run_script("deploy/roll-out", arguments)
}

fn check_image(arguments: &str) -> (i32, String) {
    run_script("deploy/check-image", arguments)
}

/// Returns the exit code and the output.
fn run_script(script: &str, arguments: &str) -> (i32, String) {
    let command_line = format!("{script} {arguments} 2>&1");
    let output = output(
        Command::new("sh")
            .args(["-c", &command_line])
            .current_dir(ROOT),
    );
    let text = String::from_utf8(output.stdout).unwrap();
    println!("$ {script} {arguments}\n{text}");
    (output.status.code().unwrap(), text)
}

fn assert_parts(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "{part:?} is not in:\n{text}");
    }
}

/// In one swarm, because creating and removing one takes half a minute.
#[test]
#[ignore = "needs Docker Engine and python3"]
fn roll_out_verifies_a_release_and_takes_failed_ones_back() {
    let swarm = Swarm::deploy(&ready(1));
    ready(2);
    let good = Image::new("good");
    run(&format!("docker tag timber-tutorial:2 {}", good.0));
    let (code, text) = roll_out(&format!("swarm {}", good.0));
    assert_eq!(code, 0, "{text}");
    assert_parts(
        &text,
        &[
            // Only pipelines set the label.
            "no label with its revision, so only its digest tells",
            "3 of 3 tasks run the image, 3 of 3 hosts serve it",
            " 0 failed, 0 lost",
            "good from release 1,",
            "good from release 2,",
            "roll-out: done",
        ],
    );
    swarm.all_run(&good.0, 3);

    // Once more: nothing changes.
    let tasks = swarm.tasks();
    let (code, text) = roll_out(&format!("swarm {}", good.0));
    assert_eq!(code, 0, "{text}");
    assert_eq!(swarm.tasks(), tasks);

    let settings = "ENV TIMBER_RELEASE=sick TIMBER_FAULTS=errors=100%";
    for (name, base, lines, reason) in [
        (
            "never-starts",
            "timber-tutorial:2",
            "CMD [\"--frobnicate\"]".to_owned(),
            "update rolled back due to failure or early termination of task",
        ),
        (
            "sick",
            &FAULTY,
            format!("{}\n{settings}", revision_label("f00")),
            "release sick, revision unknown, responds with status 500",
        ),
    ] {
        let broken = release(name, base, &lines);
        let (code, text) = roll_out(&format!("swarm {}", broken.0));
        assert_eq!(code, 1, "{text}");
        let (reason, back) = (
            format!("roll-out: FAILED: {reason}"),
            format!("roll-out: {} serves again", good.0),
        );
        assert_parts(&text, &[&reason, &back, " 0 lost", "roll-out: taken back"]);
        swarm.all_run(&good.0, 3);
    }

    let before = docker(&format!("service inspect {SERVICE}"));
    let (code, text) = roll_out("swarm timber-test:not-there");
    assert_eq!(code, 2, "{text}");
    assert_parts(&text, &["cannot find image timber-test:not-there: "]);
    // The same tag for another image: nobody could go back.
    run(&format!("docker tag timber-tutorial:1 {}", good.0));
    let (code, text) = roll_out(&format!("swarm {}", good.0));
    assert_eq!(code, 2, "{text}");
    assert_parts(
        &text,
        &["is running already as another image: give each release a tag of its own"],
    );
    assert_eq!(docker(&format!("service inspect {SERVICE}")), before);
}

#[test]
#[ignore = "needs Docker Engine and python3"]
fn first_deployment_that_fails_is_removed_and_one_that_works_stays() {
    let mut engine = Engine::claim();
    ready(2);
    docker("swarm init --advertise-addr 127.0.0.1");
    let broken = release(
        "never-starts-first",
        "timber-tutorial:2",
        "CMD [\"--frobnicate\"]",
    );
    let (code, text) = roll_out(&format!("swarm {}", broken.0));
    assert_eq!(code, 1, "{text}");
    assert_parts(
        &text,
        &[
            "FAILED: a task has failed: task: non-zero exit (2)",
            "removed",
            "0 requests",
        ],
    );
    assert_eq!(docker("service ls --quiet"), "");
    let left = "ps --all --quiet --filter label=com.docker.stack.namespace=timber";
    assert_eq!(docker(left), "");

    let (code, text) = thread::scope(|scope| {
        let roll_out = scope.spawn(|| roll_out("swarm timber-tutorial:2"));
        wait_for("the service", || {
            let networks = docker("network ls --format {{.Name}}");
            let services = docker("service ls --format {{.Name}}");
            (networks.contains("timber_default") && services.contains(SERVICE)).then_some(())
        });
        engine.need_mesh();
        roll_out.join().unwrap()
    });
    assert_eq!(code, 0, "{text}");
    assert_parts(
        &text,
        &[
            "3 of 3 tasks run the image, 3 of 3 hosts serve it",
            " 0 failed, 0 lost",
        ],
    );
}

#[test]
#[ignore = "needs Docker Engine and python3; takes four minutes, so .ci/full runs it"]
fn roll_out_is_also_taken_back_for_rare_reasons() {
    let swarm = Swarm::deploy(&ready(1));
    ready(2);
    let wrong = release("wrong", "timber-tutorial:2", &revision_label("c0ffee"));
    let (code, text) = roll_out(&format!("swarm {}", wrong.0));
    assert_eq!(code, 1, "{text}");
    assert_parts(
        &text,
        &[
            "serves revision unknown: expected c0ffee",
            "timber-tutorial:1 serves again",
            " 0 failed, 0 lost",
        ],
    );
    swarm.all_run("timber-tutorial:1", 3);

    // A pipeline that is cancelled.
    let roll_out_2 = Command::new("deploy/roll-out")
        .args(["swarm", "timber-tutorial:2"])
        .current_dir(ROOT)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    wait_for("the rollout", || {
        let service = docker(&format!("service inspect {SERVICE}"));
        service.contains(r#""State": "updating""#).then_some(())
    });
    kill_process(Pid::from_child(&roll_out_2), Signal::TERM).unwrap();
    let output = roll_out_2.wait_with_output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    println!("{text}");
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert_parts(
        &text,
        &[
            "FAILED: interrupted",
            "timber-tutorial:1 serves again",
            " 0 failed, 0 lost",
        ],
    );
    swarm.all_run("timber-tutorial:1", 3);

    // To a release that loses requests, and away from it: they are lost when its tasks stop.
    let no_drain = release(
        "no-drain",
        &FAULTY,
        "ENV TIMBER_RELEASE=no-drain TIMBER_FAULTS=no-drain",
    );
    let (code, text) = roll_out(&format!("swarm {}", no_drain.0));
    assert_eq!(code, 0, "{text}");
    let (code, text) = roll_out("swarm timber-tutorial:2");
    assert_eq!(code, 1, "{text}");
    assert_parts(
        &text,
        &[
            "FAILED: a request was lost: ",
            "lost from release no-drain",
            "serves again",
        ],
    );
    swarm.all_run(&no_drain.0, 3);
}

#[test]
#[ignore = "needs Docker Engine, kubectl and python3"]
fn invalid_input_of_roll_out_is_reported() {
    let kubernetes = "kubernetes timber-tutorial:2";
    let _engine = Engine::claim();
    ready(2);
    for (arguments, message) in [
        (
            "frobnicate timber-tutorial:2",
            "invalid choice: 'frobnicate'",
        ),
        ("swarm", "the following arguments are required: IMAGE"),
        (
            "swarm timber-tutorial:2",
            "not a manager of a swarm: run `docker swarm init` first",
        ),
        (
            "swarm timber-tutorial:2 --url localhost",
            "invalid --url 'localhost': expected one such as http",
        ),
        (kubernetes, "needs --context and --namespace"),
        (
            &format!("{kubernetes} --context nowhere --namespace timber"),
            "cannot roll out to nowhere, namespace timber: kubectl",
        ),
    ] {
        let (code, text) = roll_out(arguments);
        assert_eq!(code, 2, "{text}");
        assert_parts(&text, &[message]);
    }
    let mut unreachable = Command::new("deploy/roll-out");
    unreachable
        .args(["swarm", "timber-tutorial:2"])
        .current_dir(ROOT);
    let unreachable = output(unreachable.env("DOCKER_HOST", "unix:///nowhere.sock"));
    let text = String::from_utf8(unreachable.stderr).unwrap();
    assert_eq!(unreachable.status.code(), Some(2), "{text}");
    assert_parts(&text, &["Cannot connect to the Docker daemon"]);
}

#[test]
#[ignore = "needs Docker Engine and python3"]
fn check_image_reports_each_broken_promise() {
    let good = ready(2);
    let (code, text) = check_image(&good);
    assert_eq!(code, 0, "{text}");
    assert!(!text.contains("FAILED"), "{text}");

    let cases = [
        (
            "root",
            good.as_str(),
            "USER 0:0",
            "user: 0:0, expected any but root",
        ),
        (
            "two-files",
            &good,
            "COPY Dockerfile /",
            "files: 2, expected 1",
        ),
        (
            "stubborn",
            &FAULTY,
            "ENV TIMBER_FAULTS=ignore-sigterm",
            "seconds from SIGTERM to the end: 10.",
        ),
        (
            "exits-143",
            &FAULTY,
            "ENV TIMBER_FAULTS=no-drain",
            "exit code: 143, expected 0",
        ),
    ];
    for (name, base, lines, message) in cases {
        let image = release(name, base, lines);
        let (code, text) = check_image(&format!("{} --max-size 1000000", image.0));
        assert_eq!(code, 1, "{text}");
        let failed: Vec<_> = text
            .lines()
            .filter(|line| line.starts_with("FAILED"))
            .collect();
        assert!(
            failed.iter().any(|line| line.contains(message)),
            "{message}: {text}"
        );
    }
    let (code, text) = check_image(&ready(1));
    assert_eq!(code, 1, "{text}");
    assert_parts(&text, &["FAILED  bytes: ", "FAILED  files: "]);
    let (code, text) = check_image("timber-test:not-there");
    assert_eq!(code, 2, "{text}");
    assert_parts(&text, &["check-image: docker image: Error"]);
}
