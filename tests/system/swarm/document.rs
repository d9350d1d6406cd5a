//! Runs the commands of docs/cluster.md: each command of a `console` block, in a shell in the root of
//! the repository. Compares the output with the lines below the command.
//!
//! The comparison ignores the number of spaces, numbers of two or more digits, and IDs (12 or more
//! lower-case letters and digits). Single digits count, because they are numbers of replicas and names
//! of releases. `…` matches any text within a line; alone on a line it matches any lines. Commands that
//! only read are repeated until the output matches. `cargo workshop watch` runs in the background, as
//! in another terminal, and its output is compared when it ends. Commands that need a Kubernetes
//! cluster are skipped, and must not claim an output.

use std::{
    fs,
    path::Path,
    process::{Command, Output, Stdio},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use crate::docker::ROOT;
use crate::swarm::Engine;

/// Commands that only read.
const READS: [&str; 6] = [
    "docker service inspect",
    "docker service ps",
    "docker stack services",
    "docker ps",
    "docker-compose -f deploy/compose.yaml ps",
    "curl ",
];

/// Commands that are skipped.
const NEED_A_CLUSTER: [&str; 5] = [
    "kubectl apply",
    "kubectl rollout",
    "kubectl port-forward",
    "kubectl set",
    "kubectl delete",
];

const PATIENCE: Duration = Duration::from_mins(2);

pub fn perform(mut engine: Engine) {
    let text = fs::read_to_string(Path::new(ROOT).join("docs/cluster.md")).unwrap();
    let mut watches: Vec<(String, JoinHandle<String>)> = Vec::new();
    let steps = steps(&text);
    assert!(
        steps.len() > 15,
        "too few commands found in docs/cluster.md"
    );
    for (command, shown) in steps {
        if NEED_A_CLUSTER
            .iter()
            .any(|start| command.starts_with(start))
        {
            assert_eq!(shown, "", "unverified output of {command}");
            continue;
        }
        println!("$ {command}");
        if command.starts_with("cargo workshop watch") {
            let line = command.clone();
            watches.push((
                shown,
                thread::spawn(move || shell(&format!("{line} 2>/dev/null"))),
            ));
            thread::sleep(Duration::from_secs(3));
            continue;
        }
        if command.starts_with("docker stack rm") {
            engine.drop_mesh();
        }
        let end = Instant::now() + PATIENCE;
        let is_read = READS.iter().any(|start| command.starts_with(start));
        loop {
            let printed = shell(&command);
            if is_shown(&printed, &shown) {
                break;
            }
            let may_retry = is_read && Instant::now() < end;
            assert!(
                may_retry,
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
                    is_shown(&printed, &shown),
                    "{printed}\ndocs/cluster.md shows:\n{shown}"
                );
            }
        }
    }
    assert!(
        watches.is_empty(),
        "after a watch, the document has to inspect the end of the update"
    );
}

/// Returns the commands, each with the output below it.
fn steps(text: &str) -> Vec<(String, String)> {
    let mut steps: Vec<(String, String)> = Vec::new();
    let mut in_block = false;
    for line in text.lines() {
        match (in_block, line) {
            (false, "```console") => in_block = true,
            (true, "```") => in_block = false,
            (true, line) => {
                if let Some(command) = line.strip_prefix("$ ") {
                    steps.push((command.to_owned(), String::new()));
                } else {
                    let (_, shown) = steps.last_mut().expect("a block starts with a command");
                    *shown += line;
                    shown.push('\n');
                }
            }
            _ => {}
        }
    }
    steps
}

/// Runs a command and returns standard output and standard error as a terminal shows them.
fn shell(line: &str) -> String {
    let mut command = Command::new("timeout");
    command
        .args(["300", "bash", "-c", &format!("exec 2>&1; {line}")])
        .current_dir(ROOT)
        .stdin(Stdio::null());
    let Output { status, stdout, .. } = command.output().expect("bash starts");
    let printed = String::from_utf8(stdout).expect("the output is text");
    if status.success() {
        printed
    } else {
        format!("{printed}({status})\n")
    }
}

fn is_shown(printed: &str, shown: &str) -> bool {
    let lines = |text: &str| text.trim_end().lines().map(normal).collect::<Vec<_>>();
    let (printed, shown) = (lines(printed), lines(shown));
    matches(
        &printed,
        &shown,
        |shown| shown == "…",
        |printed, shown| {
            let (printed, shown): (Vec<_>, Vec<_>) =
                (printed.chars().collect(), shown.chars().collect());
            matches(
                &printed,
                &shown,
                |shown| *shown == '…',
                |printed, shown| printed == shown,
            )
        },
    )
}

/// Matches a text against a pattern in which `is_any` elements match any number of elements.
fn matches<T>(text: &[T], pattern: &[T], is_any: fn(&T) -> bool, fits: fn(&T, &T) -> bool) -> bool {
    match pattern.split_first() {
        None => text.is_empty(),
        Some((first, rest)) if is_any(first) => {
            (0..=text.len()).any(|skipped| matches(&text[skipped..], rest, is_any, fits))
        }
        Some((first, rest)) => text
            .split_first()
            .is_some_and(|(head, tail)| fits(head, first) && matches(tail, rest, is_any, fits)),
    }
}

fn normal(line: &str) -> String {
    let spaced = line.split_whitespace().collect::<Vec<_>>().join(" ");
    let mut normal = String::new();
    for part in spaced.split_inclusive(|c: char| !c.is_ascii_alphanumeric() && c != '.') {
        let word = part.trim_end_matches(|c: char| !c.is_ascii_alphanumeric());
        let [has_digits, has_letters] =
            [char::is_numeric, char::is_alphabetic].map(|kind| word.contains(kind));
        let is_id = word.len() >= 12
            && has_digits
            && !word.contains(|c: char| c == '.' || c.is_uppercase());
        normal += match () {
            () if is_id => "ID",
            () if word.len() > 1 && has_digits && !has_letters => "#",
            () => word,
        };
        normal += &part[word.len()..];
    }
    normal
}

#[test]
fn comparison_ignores_ids_and_large_numbers() {
    for (printed, shown, same) in [
        ("a  b", "a b", true),
        ("asked 7502, 0 lost", "asked 31, 0 lost", true),
        ("asked 7502, 1 lost", "asked 31, 0 lost", false),
        ("timber-tutorial:1", "timber-tutorial:2", false),
        ("3/3", "2/3", false),
        ("kc8pr9oyvnfi timber.1", "na0byuaplkkc timber.1", true),
        (
            "node (na70fggpi4vn2do21i3trhu1e)",
            "node (5mqnqz6ixcqhxgzkjbvmqx1yl)",
            true,
        ),
        ("from 0.0 to 8.1 s", "from 11.4 to 40.0 s", true),
        ("in 0.09 s", "in 12.5 s", true),
        ("one\ntwo\nthree", "one\n…", true),
        ("one\ntwo\nthree", "…\nthree", true),
        ("one\ntwo\nthree", "…\ntwo", false),
        ("{\"release\": \"1\", \"pid\": 1}", "{…\"1\"…}", true),
        ("{\"release\": \"1\", \"pid\": 1}", "{…\"2\"…}", false),
    ] {
        assert_eq!(is_shown(printed, shown), same, "{printed:?} and {shown:?}");
    }
}
