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
    // The hash shows a further change of a file that had changes before. What cargo compiles may stay.
    (
        "file",
        "git status --porcelain --ignored=matching --untracked-files=all | { grep -vE '^!! (.*/)?target/' || true; }
         git diff HEAD | sha256sum",
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
        let processes = processes().filter(|p| p.run == run && Some(p.pid) != shell);
        all.extend(
            processes.map(|Started { pid, command, .. }| format!("process {pid} {command}")),
        );
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

/// The images that the commands of a page name with `-t` or `--tag`, and do not remove.
fn built(page: &Page) -> BTreeSet<String> {
    let removed = arguments(page, "docker rmi ");
    let names = values(page, &["-t", "--tag"]).filter(|name| !removed.contains(name));
    names
        .map(|name| match name {
            name if name.contains(':') => name.to_owned(),
            name => format!("{name}:latest"),
        })
        .collect()
}

/// The lines of all commands that are typed.
fn typed(page: &Page) -> impl Iterator<Item = &str> {
    let steps = page.steps.iter().filter(|step| step.how.skipped.is_none());
    steps.flat_map(|step| step.command.lines())
}

/// The words that follow one of these options in the commands of a page.
fn values<'a>(page: &'a Page, options: &[&str]) -> impl Iterator<Item = &'a str> {
    let words: Vec<_> = typed(page).flat_map(str::split_whitespace).collect();
    let pairs = words.windows(2);
    let values = pairs.filter_map(|pair| options.contains(&pair[0]).then_some(pair[1]));
    values.collect::<Vec<_>>().into_iter()
}

/// The words that follow a command in its lines, and options.
fn arguments<'a>(page: &'a Page, command: &str) -> Vec<&'a str> {
    let lines = typed(page).filter_map(|line| match line.split_once(command) {
        Some(("" | "sleep 10 && ", arguments)) => Some(arguments),
        _ => None,
    });
    lines.flat_map(str::split_whitespace).collect()
}

/// Returns why the page cannot be typed in this directory: something exists that its commands make, and that those
/// that clean up would remove.
pub fn refusal(page: &Page, directory: &Path) -> Option<String> {
    let list = |kind: &str, format: &str| {
        let command = format!("docker {kind} --format '{format}'");
        lines(&command, directory).unwrap_or_else(|output| panic!("{command}: {output:?}"))
    };
    let mut names: Vec<_> = values(page, &["--name"]).collect();
    if typed(page).any(|line| line.starts_with("docker compose ")) {
        names.push("deploy-timber-$n"); // Compose names them
    }
    let containers = list("ps --all", "{{.Names}}");
    // `debian-$n` stands for several names.
    let container = containers.iter().find(|other| {
        names.iter().any(|name| match name.split_once('$') {
            Some((start, _)) => other.starts_with(start),
            None => name == other,
        })
    });
    let images = list("images", "{{.Repository}}:{{.Tag}}");
    let removed = arguments(page, "docker rmi ");
    let image = images
        .iter()
        .find(|image| removed.contains(&image.as_str()));
    let files = arguments(page, "rm ");
    let file = files.iter().find(|file| directory.join(file).exists());
    let what = container
        .map(|name| format!("container {name}"))
        .or(image.map(|name| format!("image {name}")))
        .or(file.map(|name| format!("file {name} in {}", directory.display())))?;
    Some(format!(
        "{}: there is a {what} already, which this page would make and remove",
        page.name
    ))
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

/// A process that a run has started.
struct Started {
    pid: i32,
    run: String,
    command: String,
}

/// The processes of all runs, by an environment variable that they have inherited.
fn processes() -> impl Iterator<Item = Started> {
    let all = fs::read_dir("/proc").expect("this is Linux");
    all.filter_map(|process| {
        let path = process.ok()?.path();
        let pid = path.file_name()?.to_str()?.parse().ok()?;
        let environment = fs::read(path.join("environ")).ok()?;
        let run = environment.split(|byte| *byte == 0).find_map(|entry| {
            let entry = std::str::from_utf8(entry).ok()?;
            entry.strip_prefix(RUN)?.strip_prefix('=')
        })?;
        let command = fs::read(path.join("cmdline")).ok()?;
        let command = String::from_utf8_lossy(&command).replace('\0', " ");
        Some(Started {
            pid,
            run: run.to_owned(),
            command: command.trim().to_owned(),
        })
    })
}

/// Removes containers and processes of these runs, and nothing else.
pub fn remove(is_meant: impl Fn(&str) -> bool) {
    let list = format!(
        "docker ps --all --filter label={LABEL} --format '{{{{.ID}}}} {{{{.Label \"{LABEL}\"}}}}'"
    );
    // Without an engine, there are none.
    for line in lines(&list, Path::new("/")).unwrap_or_default() {
        if let Some((id, run)) = line.split_once(' ')
            && is_meant(run)
        {
            _ = lines(&format!("docker rm --force --volumes {id}"), Path::new("/"));
        }
    }
    for started in processes().filter(|started| is_meant(&started.run)) {
        _ = Pid::from_raw(started.pid).map(|pid| kill_process(pid, Signal::KILL));
    }
}
