//! Deploys deploy/compose.yaml in a real engine, and counts the requests that a rollout in a swarm loses.
//! Run `.ci/install`, then
//! `cargo test --manifest-path tests/system/Cargo.toml --test swarm -- --ignored`. Port 8080 must be
//! free and the engine must not be in a swarm. A test fails and names the program that is missing.
//! The images are the existing ones, which the tests in `image` have built from this tree. Missing
//! images are built.
//!
//! `bench/roll-outs` sets `ROLL_OUTS=10` for ten rollouts in each direction instead of one.

#[allow(dead_code, reason = "tests/service uses the rest")]
#[path = "../../support/mod.rs"]
mod support;

#[allow(dead_code, reason = "the image tests use the rest")]
#[path = "../image/docker.rs"]
mod docker;

#[allow(dead_code, reason = "the browser tests use the rest")]
#[path = "../browser/chromium.rs"]
mod chromium;

#[path = "../documents/clone.rs"]
mod clone;
#[allow(
    dead_code,
    reason = "a program of its own, included to be formatted and linted"
)]
mod mesh;
mod pipeline;
mod roll_out;
#[allow(dead_code, reason = "the tests of the documents use the rest")]
mod swarm;

use std::{env, thread, time::Duration};

use chromium::Browser;
use docker::{command, docker, inspect, run};
use serde_json::{Value, json};
use swarm::{Engine, SERVICE, Swarm, Watch, ready, wait_for};

#[test]
#[ignore = "needs Docker Engine"]
fn rollout_loses_no_request() {
    let rounds = env::var("ROLL_OUTS").map_or(1, |n| n.parse().expect("ROLL_OUTS is a number"));
    let swarm = Swarm::deploy(&ready(1));
    ready(2);
    for round in 1..=rounds {
        for (from, to) in [(1, 2), (2, 1)] {
            let watch = Watch::start();
            swarm.roll(&image_name(to), "completed");
            let summary = watch.end();
            println!("{round}: :{from} to :{to}: {}", counts(&summary));
            assert_no_loss(&summary);
            assert_eq!(releases(&summary), ["1", "2"], "{summary:#}");
            swarm.all_run(&image_name(to), 3);
        }
    }
}

/// Leaves tmp/roll-out.png in the target directory, the picture in docs/.
#[test]
#[ignore = "needs Docker Engine and Chromium"]
fn page_shows_a_rollout() {
    const PAGE: &str = "http://timber.test:8080/"; // the browser resolves it to 127.0.0.1
    let swarm = Swarm::deploy(&ready(1));
    ready(2);
    let mut browser = Browser::start();
    browser.open(PAGE);
    wait_for("responses of release 1", || {
        browser
            .script("+served.innerText")
            .as_u64()
            .filter(|answered| *answered >= 40)
    });
    thread::scope(|scope| {
        scope.spawn(|| swarm.roll(&image_name(2), "completed"));
        wait_for("both releases", || {
            (browser.script("document.title") == "timber, release 1 and 2").then_some(())
        });
        let shown = browser.script("+served.innerText").as_u64().unwrap();
        wait_for("more responses", || {
            browser
                .script("+served.innerText")
                .as_u64()
                .filter(|answered| *answered > shown + 40)
        });
        browser.picture("roll-out");
    });
    wait_for("release 2", || {
        (browser.script("document.title") == "timber, release 2").then_some(())
    });
    let counts = browser.script("({ failed: +failed.innerText, lost: +lost.innerText })");
    // Chromium gives up connections that are being opened when an interface appears on this machine,
    // as with each new task.
    let requests = browser
        .events()
        .iter()
        .filter(|event| event["method"] == "Network.loadingFailed");
    let (given_up, others): (Vec<&Value>, Vec<&Value>) = requests
        .map(|event| &event["params"]["errorText"])
        .partition(|reason| *reason == "net::ERR_NETWORK_CHANGED");
    println!("Chromium gave up {} requests", given_up.len());
    assert_eq!(others, [&Value::Null; 0]);
    assert_eq!(counts["failed"], 0);
    assert!(
        counts["lost"].as_u64().unwrap() <= given_up.len() as u64,
        "{counts}"
    );
    browser.assert_calm(PAGE, &[&format!("{PAGE}sample"), "data:,"]);
}

#[test]
#[ignore = "needs Docker Engine"]
fn scaling_loses_no_request() {
    let swarm = Swarm::deploy(&ready(2));
    swarm.scale(1);
    let watch = Watch::start();
    swarm.scale(5);
    swarm.scale(2);
    let summary = watch.end();
    println!("1 to 5 to 2: {}", counts(&summary));
    assert_no_loss(&summary);
    let hosts = summary["answers"].as_array().unwrap().len();
    assert_eq!(hosts, 5, "tasks that responded: {summary:#}");
}

#[test]
#[ignore = "needs Docker Engine"]
fn swarm_applies_hardening_and_update_settings() {
    let swarm = Swarm::deploy(&ready(2));
    for task in swarm.tasks() {
        let (host, config) = (inspect(&task, "HostConfig"), inspect(&task, "Config"));
        assert_eq!(host["ReadonlyRootfs"], true);
        assert_eq!(host["CapDrop"], json!(["ALL"]));
        assert_eq!(host["Memory"], 64 << 20);
        assert_eq!(host["PidsLimit"], 32);
        assert_eq!(config["User"], "65532:65532");
    }
    let service: Value =
        serde_json::from_str(&docker(&format!("service inspect {SERVICE}"))).unwrap();
    let spec = &service[0]["Spec"];
    // `stop-first` loses nothing either, but only two of three replicas serve during an update.
    for (config, at_failure) in [("UpdateConfig", "rollback"), ("RollbackConfig", "pause")] {
        let config = &spec[config];
        assert_eq!(
            [&config["Order"], &config["FailureAction"]],
            ["start-first", at_failure],
            "{config}"
        );
        assert_eq!(config["Parallelism"], 1);
    }
    let container = &spec["TaskTemplate"]["ContainerSpec"];
    assert_drain_fits_grace_period(
        container["Env"].as_array().unwrap(),
        container["StopGracePeriod"].as_u64().unwrap(),
    );
}

#[test]
#[ignore = "needs Docker Engine and Compose 2"]
fn compose_applies_hardening() {
    let _engine = Engine::claim();
    ready(2);
    let _project = Project;
    run("docker compose -f deploy/compose.yaml up -d");
    let tasks = run("docker compose -f deploy/compose.yaml ps -q");
    assert_eq!(tasks.lines().count(), 3);
    for task in tasks.lines() {
        let (host, config) = (inspect(task, "HostConfig"), inspect(task, "Config"));
        assert_eq!(host["ReadonlyRootfs"], true);
        assert_eq!(host["CapDrop"], json!(["ALL"]));
        assert_eq!(host["SecurityOpt"], json!(["no-new-privileges:true"]));
        assert_eq!(host["Memory"], 64 << 20);
        assert_eq!(host["PidsLimit"], 32);
        assert_eq!(config["User"], "65532:65532");
        assert_drain_fits_grace_period(
            config["Env"].as_array().unwrap(),
            config["StopTimeout"].as_u64().unwrap() * 1_000_000_000,
        );
    }
}

fn image_name(release: usize) -> String {
    format!("timber-tutorial:{release}")
}

/// Every request was sent and got a response, and there were enough to notice a loss.
fn assert_no_loss(summary: &Value) {
    let number = |value: &Value| value.as_f64().unwrap();
    assert_eq!(
        (&summary["lost"], &summary["unsent"]),
        (&json!(0), &json!(0)),
        "{summary:#}"
    );
    for kind in ["new", "kept"] {
        let due = number(&summary["seconds"]) * 50.0; // the default rate of `watch`
        assert!(
            number(&summary[kind]["good"]) > due * 0.9,
            "{kind} connections: {summary:#}"
        );
    }
}

fn counts(summary: &Value) -> String {
    let count = |kind: &str| {
        let counts = &summary[kind];
        format!(
            "{} requests on {kind} connections, {} lost",
            counts["asked"], counts["lost"]
        )
    };
    format!(
        "{} s, {}; {}",
        summary["seconds"],
        count("new"),
        count("kept")
    )
}

fn releases(summary: &Value) -> Vec<&str> {
    let answers = summary["answers"].as_array().unwrap().iter();
    let mut releases: Vec<_> = answers
        .map(|answer| answer["release"].as_str().unwrap())
        .collect();
    releases.sort_unstable();
    releases.dedup();
    releases
}

/// Delay, deadline and a margin end before the engine sends SIGKILL. The service itself parses the
/// settings.
fn assert_drain_fits_grace_period(variables: &[Value], grace: u64) {
    let variables = variables
        .iter()
        .map(|variable| variable.as_str().unwrap().split_once('=').unwrap());
    let variables: Vec<_> = variables
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect();
    let (_, settings) = timber::cli::parse(&[], &variables).unwrap();
    let stop = settings.drain_delay + settings.drain_deadline + Duration::from_secs(2);
    assert!(stop < Duration::from_nanos(grace), "{stop:?}");
    assert!(
        settings.drain_delay >= Duration::from_secs(3),
        "{:?}",
        settings.drain_delay
    );
}

/// The containers of Compose, removed when dropped.
struct Project;

impl Drop for Project {
    fn drop(&mut self) {
        _ = command("docker compose -f deploy/compose.yaml down --timeout 1").output();
    }
}
