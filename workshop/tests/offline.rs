//! Types the commands in the section "Offline" of docs/workshop.md in a copy of the repository. The
//! commands for the offline machine run without a network, with an empty cargo home, and after the
//! images were removed.

use std::{
    collections::BTreeSet,
    fs,
    path::Path,
    process::{Command, Output, Stdio},
};

use tempfile::TempDir;

const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");
const IMAGES: [&str; 3] = [
    "timber-workshop:hug",
    "timber-tutorial:1",
    "timber-tutorial:2",
];

/// Returns the commands of each console block in the section, with the output that it shows.
fn blocks() -> Vec<Vec<(String, String)>> {
    let document = fs::read_to_string(format!("{ROOT}/docs/workshop.md")).unwrap();
    let section = document.split("\n## Offline\n").nth(1).unwrap();
    let section = section.split("\n## ").next().unwrap();
    let blocks = section.split("```console\n").skip(1);
    let commands = |block: &str| {
        let block = block.split("```").next().unwrap();
        let steps = block.split("$ ").skip(1);
        steps
            .map(|step| {
                let (command, shown) = step.split_once('\n').unwrap();
                (command.to_owned(), shown.to_owned())
            })
            .collect()
    };
    blocks.map(commands).collect()
}

/// A copy of the files that git knows, and a cargo home without any download.
struct Machine {
    clone: TempDir,
    cargo_home: TempDir,
}

impl Machine {
    fn new() -> Self {
        let clone = tempfile::tempdir().unwrap();
        let copy = format!(
            "cd {ROOT} && git ls-files -z --cached --others --exclude-standard | \
             xargs -0 ls -d 2>/dev/null | tar -c -T - | tar -x -C {}",
            clone.path().display()
        );
        let output = Command::new("bash").args(["-c", &copy]).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        Machine {
            clone,
            cargo_home: tempfile::tempdir().unwrap(),
        }
    }

    /// Runs a command in the copy, as printed.
    fn run(&self, command: &str, is_offline: bool) -> Output {
        println!("$ {command}");
        let mut bash = Command::new(if is_offline { "unshare" } else { "bash" });
        if is_offline {
            bash.args(["--net", "bash"])
                .env("CARGO_HOME", self.cargo_home.path());
        }
        bash.args(["-c", &format!("exec 2>&1; {command}")])
            .current_dir(self.clone.path())
            .env_remove("CARGO_TARGET_DIR")
            // The tool compiles in half the time.
            .env("CARGO_PROFILE_WORKSHOP_OPT_LEVEL", "0")
            .env("CARGO_INCREMENTAL", "0")
            .stdin(Stdio::null())
            .output()
            .unwrap()
    }

    /// Runs a command, and compares its output with the document.
    fn perform(&self, command: &str, shown: &str, is_offline: bool) {
        let output = self.run(command, is_offline);
        let mut printed = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "$ {command}\n{printed}");
        if command.starts_with("docker load") {
            // The engine names the images in any order, the document in alphabetical order.
            let mut lines: Vec<_> = printed.lines().collect();
            lines.sort_unstable();
            printed = lines.join("\n");
        }
        let mut rest = &*printed;
        for part in shown.split(['…', '\n']).map(str::trim) {
            let at = rest
                .find(part)
                .unwrap_or_else(|| panic!("$ {command}\nmissing {part:?} in\n{printed}"));
            rest = &rest[at + part.len()..];
        }
    }
}

impl Drop for Machine {
    /// Other tests need the images.
    fn drop(&mut self) {
        let archive = self.clone.path().join("images.tar");
        if archive.exists() && images().len() < IMAGES.len() {
            self.run("docker load --quiet -i images.tar", false);
        }
    }
}

/// Returns names and ids of those images that the engine has.
fn images() -> BTreeSet<(&'static str, String)> {
    let id = |image: &'static str| {
        let mut docker = Command::new("docker");
        docker.args(["image", "inspect", "--format", "{{.Id}}", image]);
        let output = docker.output().unwrap();
        let id = String::from_utf8(output.stdout).unwrap();
        output.status.success().then_some((image, id))
    };
    IMAGES.into_iter().filter_map(id).collect()
}

#[test]
#[ignore = "needs Docker Engine and root"]
fn the_section_offline_works_without_a_network() {
    let [at_home, offline] = blocks().try_into().expect("two blocks of commands");
    let machine = Machine::new();
    for (command, shown) in &at_home {
        machine.perform(command, shown, false);
    }
    let built = images();
    assert_eq!(built.len(), IMAGES.len(), "{built:?}");

    let rmi = format!("docker rmi {}", IMAGES.join(" "));
    assert!(machine.run(&rmi, false).status.success());
    assert_eq!(images(), BTreeSet::new());
    // The namespace has no network, so a download would fail.
    let download = machine.run("curl --silent --show-error http://127.0.0.1:2375", true);
    assert!(!download.status.success());
    assert!(is_empty(machine.cargo_home.path()));
    for (command, shown) in &offline {
        machine.perform(command, shown, true);
        if command.starts_with("docker load") {
            assert_eq!(images(), built);
        }
    }
    assert!(machine.clone.path().join("target/debug/timber").exists());
}

fn is_empty(directory: &Path) -> bool {
    directory.read_dir().unwrap().next().is_none()
}
