//! Types the commands of a document in a clone of the repository, and compares the output with what the
//! document shows, by the rules in documents/console.rs.
//!
//! A command that only looks is repeated until it prints what the document shows, as a reader would.
//! `cargo workshop watch` is meant for another terminal: its output is compared when it ends.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::console::{self, Step};
use crate::docker::ROOT;
use crate::swarm::Engine;

const LOOK: [&str; 11] = [
    "docker service inspect",
    "docker service ps",
    "docker service ls",
    "docker stack services",
    "docker events",
    "docker inspect",
    "docker logs",
    "docker ps",
    "docker compose -f deploy/compose.yaml ps",
    "curl ",
    "sleep ",
];

/// Commands that are not typed. The documents show no output for them.
const NOT_TYPED: [&str; 13] = [
    // Need a cluster.
    "kubectl apply",
    "kubectl rollout",
    "kubectl port-forward",
    "kubectl set",
    "kubectl delete",
    "kubectl debug",
    "kubectl exec",
    "kubectl patch",
    "deploy/roll-out kubernetes",
    "bench/roll-outs kubernetes",
    // pipeline.rs runs the same.
    "docker run --rm --volume",
    "gitlab-ci-local",
    // Need a published release.
    "cosign verify",
];

const PATIENCE: Duration = Duration::from_mins(2);

/// For one command.
const SECONDS: u64 = 600;

/// Containers that a document names. Removes those that are left.
#[derive(Default)]
struct Containers(Vec<String>);

impl Drop for Containers {
    fn drop(&mut self) {
        let mut remove = Command::new("docker");
        _ = remove
            .args(["rm", "--force", "--volumes"])
            .args(&self.0)
            .output();
    }
}

/// `document` is a path in the repository.
pub fn perform(engine: &mut Engine, document: &str, clone: &Path) {
    let text = fs::read_to_string(Path::new(ROOT).join(document)).unwrap();
    let mut watches: Vec<(String, JoinHandle<String>)> = Vec::new();
    let mut containers = Containers::default();
    let steps = console::steps(&text);
    assert!(steps.len() > 15, "{document} has few commands");
    for Step {
        command, mut shown, ..
    } in steps
    {
        let is_start = |start: &&str| command.starts_with(*start);
        if NOT_TYPED.iter().any(&is_start) || command.contains("imagetools inspect") {
            assert_eq!(
                shown, "",
                "output of a command that no test typed: {command}"
            );
            continue;
        }
        println!("$ {command}");
        if command.starts_with("cargo workshop watch") {
            let command = format!("{command} 2>/dev/null");
            let clone = clone.to_owned();
            let watch = thread::spawn(move || console::run(&command, &clone, SECONDS).0);
            watches.push((shown, watch));
            thread::sleep(Duration::from_secs(3));
            continue;
        }
        if command.starts_with("docker stack rm") {
            engine.drop_mesh();
        }
        if command.starts_with("docker run")
            && let Some((_, rest)) = command.split_once("--name ")
        {
            let name = rest.split(' ').next().unwrap();
            containers.0.push(name.to_owned());
        }
        let expected = i32::from(shown.contains("roll-out: taken back"));
        let end = Instant::now() + PATIENCE;
        let only_looks = LOOK.iter().any(is_start);
        loop {
            let (printed, status) = console::run(&command, clone, SECONDS);
            if status.code() == Some(expected) && console::is_shown(&printed, &shown) {
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
                "$ {command}\n{printed}({status})\n{document} shows:\n{shown}"
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
                    "{printed}\n{document} shows:\n{shown}"
                );
            }
        }
    }
    assert!(
        watches.is_empty(),
        "after a watch, {document} has to look at the end of the update"
    );
}
