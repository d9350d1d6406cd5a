//! Types the commands of the documents in a fresh copy of the repository, and compares the output with
//! what the documents show. Run `.ci/install`, then, as root,
//! `cargo test --manifest-path tests/system/Cargo.toml --test documents -- --ignored`. The ports 8000
//! and 8080 must be free. Without `--ignored`, the tests only check that every command is accounted
//! for. docs/cluster.md has its own test in `swarm`.

mod console;

use std::collections::BTreeSet;
use std::fs;
use std::io::Read;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use console::Step;
use rustix::process::{Pid, Signal, kill_process_group};
use tempfile::TempDir;

const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../..");

/// Documents whose commands this file types.
const TYPED_HERE: [&str; 3] = ["README.md", "docs/tutorial.md", "docs/why-scratch.md"];
/// Documents whose commands another test types.
const TYPED_ELSEWHERE: [&str; 4] = [
    "docs/cluster.md",              // swarm/document.rs, which lists its exceptions
    "docs/lessons.md",              // the same
    "docs/pipeline.md",             // the same
    "docs/from-1-gb-to-nothing.md", // workshop/tests/ladder.rs
];

/// Commands that no test types as printed: document, start of the command, reason.
const NOT_TYPED: &[(&str, &str, &str)] = &[
    (
        "README.md",
        "git clone",
        "the repository has no public address; the test copies it instead",
    ),
    ("README.md", "cd timber", "the test starts in the copy"),
    (
        "README.md",
        "cargo test",
        "`.ci/run` types it, after a check that README.md has it",
    ),
    ("docs/tutorial.md", "git clone", "as in README.md"),
    (
        "docs/tutorial.md",
        "cd timber",
        "the test starts in the copy",
    ),
    (
        "docs/tutorial.md",
        "docker rmi timber-tutorial:1",
        "other tests use the images",
    ),
    (
        "docs/why-scratch.md",
        "kubectl debug",
        "needs a cluster, and the document says so",
    ),
    (
        "docs/why-scratch.md",
        ".ci/release",
        "takes minutes; image/builds.rs runs it with another name",
    ),
    (
        "docs/why-scratch.md",
        "trivy image --quiet --format cyclonedx timber-release:2",
        "image/builds.rs reads the list of crates of such an image",
    ),
    ("docs/development.md", "cargo test", "`.ci/run` types it"),
    (
        "docs/development.md",
        "cargo workshop compare",
        "takes ten minutes; workshop/tests/compare.rs runs it on smaller images",
    ),
    (
        "docs/development.md",
        ".ci/release",
        "image/builds.rs runs it with another name",
    ),
    (
        "docs/engines.md",
        ".ci/engine run bookworm",
        "`.ci/run` runs .ci/check-engines, which runs it",
    ),
    (
        "docs/engines.md",
        "cargo build --manifest-path workshop/Cargo.toml",
        "workshop/tests run the same build",
    ),
    ("docs/engines.md", ".ci/check-engines", "`.ci/run` runs it"),
    (
        "docs/workshop.md",
        "cargo workshop compare",
        "takes ten minutes; workshop/tests/compare.rs runs it on smaller images",
    ),
    (
        "docs/from-1-gb-to-nothing.md",
        "cargo workshop compare",
        "takes twenty minutes; workshop/tests/ladder.rs runs it with one start of each image",
    ),
    (
        "docs/development.md",
        "docker build --platform linux/arm64",
        "takes a quarter of an hour with qemu; .ci/arm64 runs it",
    ),
    (
        "docs/development.md",
        "rustup target add",
        "`.ci/install` runs it",
    ),
    (
        "docs/development.md",
        "cargo musl aarch64-unknown-linux-musl",
        "image/arm64.rs runs it",
    ),
    (
        "docs/development.md",
        "docker buildx build --platform linux/amd64,linux/arm64",
        "needs the containerd image store; .ci/arm64 runs it",
    ),
    ("docs/workshop.md", "docker pull", "needs an image registry"),
    (
        "docs/workshop.md",
        "docker run",
        "workshop/tests/boxed.rs runs it with other images",
    ),
    (
        "docs/workshop.md",
        "cargo workshop watch",
        "runs until Ctrl-C; swarm/document.rs types it with a duration",
    ),
    (
        "docs/workshop.md",
        "docker build",
        "workshop/tests/offline.rs types it, and boxed.rs the one without Rust",
    ),
    (
        "docs/workshop.md",
        "docker save",
        "workshop/tests/offline.rs types it",
    ),
    (
        "docs/workshop.md",
        "cargo vendor",
        "workshop/tests/offline.rs types it",
    ),
    (
        "docs/workshop.md",
        "docker load",
        "workshop/tests/offline.rs types it",
    ),
    (
        "docs/workshop.md",
        "cargo build --locked --offline",
        "workshop/tests/offline.rs types it",
    ),
    (
        "docs/workshop.md",
        "cargo workshop show",
        "workshop/tests/offline.rs types it",
    ),
];

/// Commands that fail, as their documents show: start of the command, exit code.
const FAIL: &[(&str, i32)] = &[
    ("docker exec timber sh", 126),
    ("docker run --rm --user nobody", 125),
    ("docker run --rm debian:trixie-slim ls /etc/ssl/certs", 2),
];

/// Commands that only look are repeated until they print what the document shows, as a reader would.
const LOOK: [&str; 6] = [
    "curl ",
    "docker ps",
    "docker logs",
    "docker top",
    "docker exec",
    "nsenter ",
];

/// Time for a command that looks to show what the document shows.
const PATIENCE: Duration = Duration::from_mins(1);

/// Time for a service in the foreground, which may have to be compiled, to do that.
const START: Duration = Duration::from_mins(10);

/// Time for any other command.
const SECONDS: u64 = 900;

/// One document at a time: they use the same ports and names.
static MACHINE: Mutex<()> = Mutex::new(());

#[test]
fn every_command_of_the_documents_is_accounted_for() {
    let mut unused: BTreeSet<_> = NOT_TYPED.iter().collect();
    let mut unknown = Vec::new();
    for document in documents() {
        let is_typed =
            |document: &str| TYPED_HERE.contains(&document) || TYPED_ELSEWHERE.contains(&document);
        for Step { line, command, .. } in console::steps(&read(&document)) {
            match exception(&document, &command) {
                Some(exception) => _ = unused.remove(exception),
                None if is_typed(&document) => {}
                None => unknown.push(format!("{document}:{line}: $ {command}")),
            }
        }
    }
    assert!(
        unknown.is_empty(),
        "no test types these commands; type them, or add them to NOT_TYPED with a reason:\n{}",
        unknown.join("\n")
    );
    assert!(
        unused.is_empty(),
        "no document has these commands: {unused:#?}"
    );
}

/// The tutorial explains the Dockerfile line by line.
#[test]
fn the_tutorial_quotes_the_repository() {
    let tutorial = read("docs/tutorial.md");
    for (language, file, min_blocks) in [
        ("dockerfile", "Dockerfile.musl", 1),
        ("rust", "src/api.rs", 2),
        ("python", "workshop/hug/app.py", 1),
    ] {
        let source = without_comments(language, &read(file));
        let blocks: Vec<_> = tutorial
            .split(&format!("\n```{language}\n"))
            .skip(1)
            .map(|rest| rest.split("```").next().unwrap())
            .collect();
        assert!(
            blocks.len() >= min_blocks,
            "{} blocks of {language}",
            blocks.len()
        );
        for block in blocks {
            assert!(
                source.contains(block),
                "{file} does not contain this:\n{block}"
            );
        }
    }
    assert!(tutorial.contains(&format!("```dockerfile\n{}```", read("Dockerfile.musl"))));
}

#[test]
#[ignore = "needs Docker Engine"]
fn the_readme_works_as_printed() {
    let mut session = Session::start();
    session.perform("README.md");
    // In the text, not in a console block.
    assert!(read("README.md").contains("`curl localhost:8080/index`"));
    session.type_in(
        "curl --silent localhost:8080/index",
        "{\"timber\": \"so delicious\"}\n",
    );
}

#[test]
#[ignore = "needs Docker Engine"]
fn the_tutorial_works_as_printed() {
    let mut session = Session::start();
    // `docker images` shows the two images of the tutorial, not those of other tests and documents.
    for tag in docker("images --format {{.Tag}} timber-tutorial").lines() {
        if !["1", "2"].contains(&tag) {
            docker(&format!("rmi --no-prune timber-tutorial:{tag}"));
        }
    }
    session.perform("docs/tutorial.md");
}

#[test]
#[ignore = "needs Docker Engine, root, nsenter and trivy"]
fn why_scratch_works_as_printed() {
    let mut session = Session::start();
    session.perform_only("README.md", "docker build");
    session.perform("docs/why-scratch.md");
}

/// README.md and all documents in docs.
fn documents() -> Vec<String> {
    let files = fs::read_dir(Path::new(ROOT).join("docs")).unwrap();
    let names = files.map(|file| file.unwrap().file_name().into_string().unwrap());
    let mut documents: Vec<_> = names
        .filter_map(|name| Some(format!("docs/{}.md", name.strip_suffix(".md")?)))
        .collect();
    documents.push("README.md".to_owned());
    documents.sort();
    documents
}

fn read(file: &str) -> String {
    fs::read_to_string(Path::new(ROOT).join(file)).unwrap_or_else(|error| panic!("{file}: {error}"))
}

fn exception(
    document: &str,
    command: &str,
) -> Option<&'static (&'static str, &'static str, &'static str)> {
    NOT_TYPED
        .iter()
        .find(|(file, start, _)| *file == document && command.starts_with(start))
}

/// The tutorial's Python omits a comment that is there for the maintainers.
fn without_comments(language: &str, source: &str) -> String {
    let is_kept = |line: &&str| language != "python" || !line.starts_with('#');
    let lines: Vec<_> = source.lines().filter(is_kept).collect();
    lines.join("\n") + "\n"
}

/// A copy of the repository and the terminals in which its documents are tried.
struct Session {
    _machine: std::sync::MutexGuard<'static, ()>,
    directory: TempDir,
    foreground: Vec<Foreground>,
    /// Containers and images that the documents name and that were not there before.
    names: BTreeSet<String>,
}

impl Session {
    fn start() -> Self {
        let machine = MACHINE.lock().unwrap_or_else(PoisonError::into_inner);
        for port in [8000, 8080] {
            assert!(
                std::net::TcpListener::bind(("::", port)).is_ok(),
                "port {port} is in use"
            );
        }
        let directory = tempfile::tempdir().unwrap();
        copy_repository(directory.path());
        Session {
            _machine: machine,
            directory,
            foreground: Vec::new(),
            names: BTreeSet::new(),
        }
    }

    /// Types all commands of a document.
    fn perform(&mut self, document: &str) {
        self.perform_only(document, "");
    }

    /// Types the commands of a document that start like this.
    fn perform_only(&mut self, document: &str, start: &str) {
        let steps = console::steps(&read(document));
        assert!(
            steps.len() > 4,
            "{document} has only {} commands",
            steps.len()
        );
        for Step {
            line,
            command,
            shown,
        } in steps
        {
            if exception(document, &command).is_some() || !command.starts_with(start) {
                continue;
            }
            println!("{document}:{line}: $ {command}");
            // For brevity, the README omits most output.
            let shown = match shown.as_str() {
                "" if document == "README.md" && !stays_in_foreground(&command) => "…",
                shown => shown,
            };
            self.type_in(&command, shown);
        }
    }

    /// Types one command, or `^C` if there is none, and compares.
    fn type_in(&mut self, command: &str, shown: &str) {
        if command.is_empty() {
            let foreground = self.foreground.pop().expect("a command in the foreground");
            return foreground.interrupt(shown);
        }
        self.remember_names(command);
        if stays_in_foreground(command) {
            let foreground = Foreground::start(command, shown, self.directory.path());
            return self.foreground.push(foreground);
        }
        let expected = FAIL.iter().find(|(start, _)| command.starts_with(start));
        let expected = expected.map_or(0, |(_, code)| *code);
        let looks = LOOK.iter().any(|start| command.starts_with(start));
        let end = Instant::now() + PATIENCE;
        loop {
            let (printed, status) = console::run(command, self.directory.path(), SECONDS);
            if status.code() == Some(expected) && console::is_shown(&printed, shown) {
                return;
            }
            assert!(
                looks && Instant::now() < end,
                "$ {command}\n{printed}{status}, expected exit code {expected} and this:\n{shown}"
            );
            thread::sleep(Duration::from_millis(500));
        }
    }

    /// Remembers what the command creates, in order to remove it if the document does not get that far.
    fn remember_names(&mut self, command: &str) {
        let mut words = command.split_whitespace();
        while let Some(word) = words.next() {
            if word == "--name" {
                let name = words.next().unwrap();
                let names = match name.strip_suffix("$n") {
                    Some(start) => (1..=10).map(|n| format!("{start}{n}")).collect(),
                    None => vec![name.to_owned()],
                };
                self.names.extend(names);
            }
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.foreground.clear();
        for name in &self.names {
            docker(&format!("rm --force --volumes {name}"));
        }
        if self.names.contains("one") {
            for n in 1..=10 {
                docker(&format!("rmi service-debian:{n} service-scratch:{n}"));
            }
        }
    }
}

/// Copies what `git clone` would bring, with the changes that are not committed yet.
fn copy_repository(to: &Path) {
    let list = "git ls-files -z --cached --others --exclude-standard --deduplicate";
    let (files, status) = console::run(list, Path::new(ROOT), 60);
    assert!(status.success(), "this test needs a git clone: {files}");
    for file in files.split_terminator('\0') {
        let (from, to) = (Path::new(ROOT).join(file), to.join(file));
        if from.is_file() {
            fs::create_dir_all(to.parent().unwrap()).unwrap();
            fs::copy(from, to).unwrap();
        }
    }
}

/// Returns the output of a command that may fail.
fn docker(arguments: &str) -> String {
    let output = Command::new("docker")
        .args(arguments.split_whitespace())
        .output();
    output.map_or(String::new(), |output| {
        String::from_utf8_lossy(&output.stdout).into_owned()
    })
}

/// Services run until they are stopped.
fn stays_in_foreground(command: &str) -> bool {
    let is_service = command.starts_with("docker run") && command.contains(" -p ");
    command.starts_with("cargo run") || is_service && !command.contains("--detach")
}

/// A service in a terminal.
struct Foreground {
    child: Child,
    command: String,
    shown: String,
    printed: Arc<Mutex<String>>,
}

impl Foreground {
    /// Starts it and waits until it has printed what the document shows.
    fn start(command: &str, shown: &str, directory: &Path) -> Self {
        // A group of its own gets Ctrl-C as if it had a terminal.
        let mut child = console::bash(command, directory)
            .process_group(0)
            .spawn()
            .unwrap();
        let mut output = child.stdout.take().unwrap();
        let printed = Arc::new(Mutex::new(String::new()));
        let writer = Arc::clone(&printed);
        thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(length @ 1..) = output.read(&mut buffer) {
                *writer.lock().unwrap() += &String::from_utf8_lossy(&buffer[..length]);
            }
        });
        let (command, shown) = (command.to_owned(), shown.to_owned());
        let foreground = Foreground {
            child,
            command,
            shown,
            printed,
        };
        if !foreground.shown.is_empty() {
            foreground.wait_for("", START);
        }
        foreground
    }

    fn wait_for(&self, more: &str, patience: Duration) {
        let shown = format!("{}…\n{more}", self.shown);
        let end = Instant::now() + patience;
        loop {
            let printed = self.printed.lock().unwrap().clone();
            if console::is_shown(&printed, &shown) {
                return;
            }
            assert!(
                Instant::now() < end,
                "$ {}\n{printed}\nexpected this:\n{shown}",
                self.command
            );
            thread::sleep(Duration::from_millis(200));
        }
    }

    /// Presses Ctrl-C where the document shows it, and compares the whole output.
    fn interrupt(mut self, shown: &str) {
        let (before, after) = shown.split_once("^C").expect("the document shows ^C");
        self.wait_for(before, PATIENCE);
        self.signal();
        self.wait_for(&format!("{before}{after}"), PATIENCE);
        let status = self.child.wait().unwrap();
        assert_eq!(status.code(), Some(0), "$ {}", self.command);
    }

    fn signal(&self) {
        _ = kill_process_group(Pid::from_child(&self.child), Signal::INT);
    }
}

impl Drop for Foreground {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            let containers = docker("ps --quiet --filter publish=8080");
            self.signal();
            _ = self.child.wait();
            // `docker run` without --rm leaves the container.
            if self.command.starts_with("docker run") {
                docker(&format!("rm --force --volumes {containers}"));
            }
        }
    }
}
