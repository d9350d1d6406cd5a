//! `cargo workshop show` with an invented results file, tests/results.json.

mod browser;
mod outputs;

use std::{
    path::{Path, PathBuf},
    process::{Command, Output},
};

const RESULTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/results.json");

/// Runs `show` with a pipe as standard output.
fn show(file: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_timber-workshop"));
    command
        .arg("show")
        .arg(file)
        .args(arguments)
        .env_remove("NO_COLOR")
        .output()
        .unwrap()
}

/// Writes changed results to a file.
fn changed(directory: &Path, change: impl FnOnce(&mut serde_json::Value)) -> PathBuf {
    let mut results = serde_json::from_slice(&std::fs::read(RESULTS).unwrap()).unwrap();
    change(&mut results);
    let file = tempfile::Builder::new()
        .suffix(".json")
        .tempfile_in(directory);
    let (_, file) = file.unwrap().keep().unwrap();
    std::fs::write(&file, results.to_string()).unwrap();
    file
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}
