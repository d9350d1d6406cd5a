//! What a page leaves behind: containers, networks, volumes, images, a swarm, files and processes.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use rustix::process::{Pid, Signal, kill_process};

use crate::page::{Page, Step};
use crate::shell::{LABEL, RUN};

/// What to list in a clone, and how.
const CLONE: [(&str, &str); 2] = [
    ("commit", "git rev-parse HEAD"),
    // The hash shows a further change of a file that had changes before.
    (
        "file",
        "git status --porcelain && git diff HEAD | sha256sum",
    ),
];

/// The same in an engine.
const ENGINE: [(&str, &str); 5] = [
    (
        "container",
        "docker ps --all --no-trunc --format '{{.ID}} {{.Names}}'",
    ),
    // Docker never removes the bridge of its swarms.
    (
        "network",
        "docker network ls --format '{{.Name}}' | grep -vx docker_gwbridge",
    ),
    ("volume", "docker volume ls --quiet"),
    (
        "image",
        "docker images --filter dangling=false --format '{{.Repository}}:{{.Tag}}'",
    ),
    ("swarm", "docker info --format '{{.Swarm.LocalNodeState}}'"),
];

/// All that a page can leave behind, each as a line.
pub struct Snapshot(BTreeSet<String>);

impl Snapshot {
    /// `clone` is the directory in which the page is typed, a git clone. `shell` is the process of its shell.
    pub fn take(clone: &Path, run: &str, shell: Option<i32>, has_engine: bool) -> Self {
        let mut all = BTreeSet::new();
        let engine = if has_engine { &ENGINE[..] } else { &[] };
        for (kind, list) in CLONE.iter().chain(engine) {
            let lines = lines(list, clone).unwrap_or_else(|output| panic!("{list}: {output:?}"));
            all.extend(lines.into_iter().map(|line| format!("{kind} {line}")));
        }
        let processes = processes(run).filter(|(pid, _)| Some(*pid) != shell);
        all.extend(processes.map(|(pid, command)| format!("process {pid} {command}")));
        Snapshot(all)
    }

    /// Returns what was added and removed since another snapshot. The images that the page names may stay, and
    /// as many containers as comments say.
    pub fn since(&self, earlier: &Snapshot, page: &Page) -> Vec<String> {
        let built = built(page);
        let is_left = |step: &&Step| step.how.leaves_container;
        let mut containers = page.steps.iter().filter(is_left).count();
        let is_unexpected = |line: &&String| match line.split_once(' ') {
            Some(("image", name)) => !built.contains(name),
            Some(("container", _)) if containers > 0 => {
                containers -= 1;
                false
            }
            _ => true,
        };
        let left = self.0.difference(&earlier.0).filter(is_unexpected);
        let gone = earlier.0.difference(&self.0);
        left.map(|line| format!("left behind: {line}"))
            .chain(gone.map(|line| format!("gone: {line}")))
            .collect()
    }
}

/// The images that the commands of a page name with `-t` or `--tag`.
fn built(page: &Page) -> BTreeSet<String> {
    let words = page
        .steps
        .iter()
        .flat_map(|step| step.command.split_whitespace());
    let words: Vec<_> = words.collect();
    let names = words
        .windows(2)
        .filter(|pair| ["-t", "--tag"].contains(&pair[0]));
    names
        .map(|pair| match pair[1] {
            name if name.contains(':') => name.to_owned(),
            name => format!("{name}:latest"),
        })
        .collect()
}

/// Returns the lines that a command prints, or everything about it if it fails.
fn lines(command: &str, directory: &Path) -> Result<Vec<String>, Output> {
    let output = Command::new("bash")
        .args(["-o", "pipefail", "-c", command])
        .current_dir(directory)
        .output()
        .expect("bash exists");
    if !output.status.success() {
        return Err(output);
    }
    let text = String::from_utf8_lossy(&output.stdout);
    Ok(text.lines().map(str::to_owned).collect())
}

/// The processes of a run, by an environment variable that they have inherited.
fn processes(run: &str) -> impl Iterator<Item = (i32, String)> {
    let variable = format!("{RUN}={run}");
    let all = fs::read_dir("/proc").expect("this is Linux");
    all.filter_map(move |process| {
        let path = process.ok()?.path();
        let pid = path.file_name()?.to_str()?.parse().ok()?;
        let environment = fs::read(path.join("environ")).ok()?;
        environment
            .split(|byte| *byte == 0)
            .any(|entry| entry == variable.as_bytes())
            .then_some(())?;
        let command = fs::read(path.join("cmdline")).ok()?;
        let command = String::from_utf8_lossy(&command).replace('\0', " ");
        Some((pid, command.trim().to_owned()))
    })
}

/// Removes containers and processes of a run, and nothing else.
pub fn remove(run: &str) {
    let containers = format!(
        "docker ps --all --quiet --filter label={LABEL}={run} | xargs -r docker rm --force --volumes"
    );
    _ = lines(&containers, Path::new("/"));
    for (pid, _) in processes(run) {
        _ = Pid::from_raw(pid).map(|pid| kill_process(pid, Signal::KILL));
    }
}
