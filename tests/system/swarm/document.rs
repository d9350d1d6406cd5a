//! Types the commands of docs/cluster.md in the root of the repository, and compares the output with
//! what the document shows, by the rules in documents/console.rs.
//!
//! A command that only looks is repeated until it prints what the document shows, as a reader would.
//! `cargo workshop watch` is meant for another terminal: its output is compared when it ends. Commands
//! that need a Kubernetes cluster are not typed.

use std::fs;
use std::path::Path;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::console::{self, Step};
use crate::docker::ROOT;
use crate::swarm::Engine;

const LOOK: [&str; 6] = [
    "docker service inspect",
    "docker service ps",
    "docker stack services",
    "docker ps",
    "docker compose -f deploy/compose.yaml ps",
    "curl ",
];

const NEED_A_CLUSTER: [&str; 5] = [
    "kubectl apply",
    "kubectl rollout",
    "kubectl port-forward",
    "kubectl set",
    "kubectl delete",
];

const PATIENCE: Duration = Duration::from_mins(2);

/// For one command.
const SECONDS: u64 = 300;

pub fn perform(engine: &mut Engine) {
    let text = fs::read_to_string(Path::new(ROOT).join("docs/cluster.md")).unwrap();
    let mut watches: Vec<(String, JoinHandle<String>)> = Vec::new();
    let steps = console::steps(&text);
    assert!(steps.len() > 15, "docs/cluster.md has few commands");
    for Step {
        command, mut shown, ..
    } in steps
    {
        let is_start = |start: &&str| command.starts_with(*start);
        if NEED_A_CLUSTER.iter().any(&is_start) {
            assert_eq!(
                shown, "",
                "output of a command that no test typed: {command}"
            );
            continue;
        }
        println!("$ {command}");
        if command.starts_with("cargo workshop watch") {
            let command = format!("{command} 2>/dev/null");
            watches.push((shown, thread::spawn(move || type_in(&command))));
            thread::sleep(Duration::from_secs(3));
            continue;
        }
        if command.starts_with("docker stack rm") {
            engine.drop_mesh();
        }
        let end = Instant::now() + PATIENCE;
        let only_looks = LOOK.iter().any(is_start);
        loop {
            let printed = type_in(&command);
            if console::is_shown(&printed, &shown) {
                break;
            }
            // The page says to repeat it. The second time, the service is gone.
            let is_too_early =
                command.starts_with("docker stack rm") && printed.contains("is in use by task");
            if is_too_early {
                shown = "Removing network timber_default".into();
            }
            assert!(
                (only_looks || is_too_early) && Instant::now() < end,
                "$ {command}\n{printed}\ndocs/cluster.md shows:\n{shown}"
            );
            thread::sleep(Duration::from_millis(500));
        }
        if command.contains("docker stack deploy") {
            engine.need_mesh();
        }
        if command.starts_with("docker service inspect") {
            for (shown, watch) in watches.drain(..) {
                let printed = watch.join().unwrap();
                println!("{printed}");
                assert!(
                    console::is_shown(&printed, &shown),
                    "{printed}\ndocs/cluster.md shows:\n{shown}"
                );
            }
        }
    }
    assert!(
        watches.is_empty(),
        "after a watch, docs/cluster.md has to look at the end of the update"
    );
}

/// Returns the output, and the status of a command that failed.
fn type_in(command: &str) -> String {
    let (printed, status) = console::run(command, Path::new(ROOT), SECONDS);
    if status.success() {
        printed
    } else {
        format!("{printed}({status})\n")
    }
}
