//! `cargo workshop ready`: each line, and what is wrong when it says so.

use std::{
    fs,
    net::TcpListener,
    os::unix::fs::PermissionsExt as _,
    path::Path,
    process::{Command, Stdio},
};

use tempfile::TempDir;

use crate::engine;

const TOOL: &str = env!("CARGO_BIN_EXE_timber-workshop");

/// A directory with a program that looks like presenterm.
fn presenterm() -> TempDir {
    let directory = tempfile::tempdir().unwrap();
    let program = directory.path().join("presenterm");
    fs::write(&program, "#!/bin/sh\necho presenterm 0.16.1\n").unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    directory
}

/// Returns the exit code and what is printed.
fn ready(first_on_path: &Path, variables: &[(&str, &str)]) -> (i32, String) {
    let path = format!(
        "{}:{}",
        first_on_path.display(),
        std::env::var("PATH").unwrap()
    );
    let output = Command::new(TOOL)
        .arg("ready")
        .env("PATH", path)
        .envs(variables.iter().copied())
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    println!("{text}{}", String::from_utf8_lossy(&output.stderr));
    (output.status.code().unwrap(), text)
}

fn docker(line: &str) -> String {
    let output = Command::new("docker")
        .args(line.split(' '))
        .output()
        .unwrap();
    assert!(output.status.success(), "docker {line}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// Changes that make a machine not ready. Undone when dropped.
struct Changes {
    bridge_was_there: bool,
}

impl Changes {
    fn make() -> Self {
        // If these were there before, they would be removed.
        let state = docker("info --format {{.Swarm.LocalNodeState}}");
        assert_eq!(state, "inactive\n", "this test creates a swarm");
        let names = docker("ps --all --format {{.Names}}");
        let has_rust = names.lines().any(|name| name == "rust");
        assert!(!has_rust, "this test creates a container named rust");
        docker("tag timber-tutorial:2 timber-ready:kept");
        let networks = docker("network ls --format {{.Name}}");
        let changes = Changes {
            bridge_was_there: networks.lines().any(|name| name == "docker_gwbridge"),
        };
        docker("rmi --no-prune timber-tutorial:2");
        docker("create --label timber.test=true --name rust timber-ready:kept");
        docker("swarm init --advertise-addr 127.0.0.1");
        changes
    }
}

impl Drop for Changes {
    fn drop(&mut self) {
        let mut undo = vec![
            "swarm leave --force",
            "rm --force rust",
            "tag timber-ready:kept timber-tutorial:2",
            "rmi --no-prune timber-ready:kept",
        ];
        if !self.bridge_was_there {
            undo.push("network rm docker_gwbridge");
        }
        for line in undo {
            _ = Command::new("docker").args(line.split(' ')).output();
        }
    }
}

fn assert_lines(text: &str, lines: &[&str]) {
    for line in lines {
        assert!(text.contains(line), "{line:?} is not in:\n{text}");
    }
}

#[test]
#[ignore = "needs Docker Engine"]
fn a_prepared_machine_is_ready() {
    let _engine = engine();
    let before = docker("ps --all --quiet");
    let (code, text) = ready(presenterm().path(), &[]);
    let lines = [
        "?     terminal: the output is not a terminal",
        "ok    presenterm: 0.16.1",
        "ok    swarm: none yet",
        "ok    timber-workshop:hug on port 8080: responds ",
        "ok    timber-tutorial:1 on port 8081: responds ",
        "ok    timber-tutorial:2 on port 8082: responds ",
    ];
    assert_lines(&text, &lines);
    assert_eq!((code, docker("ps --all --quiet")), (0, before));
}

#[test]
#[ignore = "needs Docker Engine"]
fn a_port_in_use_a_missing_image_and_a_swarm_are_named() {
    let _engine = engine();
    // docker run -p needs it on all addresses.
    let _port = TcpListener::bind("[::1]:8080").unwrap();
    let _port = TcpListener::bind("127.0.0.1:8081").unwrap();
    let changes = Changes::make();
    let (code, text) = ready(presenterm().path(), &[]);
    drop(changes);
    let lines = [
        "FAIL  port: 8080 is in use\n      to see what uses it: docker ps, or ss ",
        "FAIL  port: 8081 is in use\n",
        "FAIL  timber-tutorial:1 on port 8081: port 8081 of this machine is in use",
        "FAIL  timber-tutorial:2 on port 8082: missing\n      docker build -f Dockerfile.musl -t timber-tutorial:2 .\n",
        "FAIL  swarm: this engine is in a swarm (active)\n      the talk creates its own.",
        "FAIL  container: rust exists\n      the talk needs this name: docker rm --force rust\n",
        "ok    timber-workshop:hug on port 8080: responds ",
    ];
    assert_lines(&text, &lines);
    assert_eq!(code, 1);
}

#[test]
fn a_missing_engine_and_an_old_presenterm_are_named() {
    let directory = presenterm();
    let old = "#!/bin/sh\necho presenterm 0.9.0\n";
    fs::write(directory.path().join("presenterm"), old).unwrap();
    let (code, text) = ready(directory.path(), &[("DOCKER_HOST", "unix:///no/socket")]);
    let lines = [
        "FAIL  presenterm: \"presenterm 0.9.0\", expected 0.16 or later\n      cargo install presenterm --locked\n",
        "FAIL  engine: no container engine responds at unix:///no/socket",
    ];
    assert_lines(&text, &lines);
    assert_eq!(code, 1);
}

#[test]
fn a_small_terminal_is_named() {
    for (size, line) in [
        ("cols 79 rows 24", "FAIL  terminal: 79 columns, 24 lines"),
        ("cols 80 rows 24", "ok    terminal: 80 columns, 24 lines"),
    ] {
        let output = Command::new("script")
            .args([
                "--quiet",
                "--command",
                &format!("stty {size}; {TOOL} ready"),
                "/dev/null",
            ])
            .env("DOCKER_HOST", "unix:///no/socket")
            .stdin(Stdio::null())
            .output()
            .expect("this test needs script of util-linux");
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(text.contains(line), "{line:?} is not in:\n{text}");
    }
}
