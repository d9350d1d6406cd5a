//! The kernel's files about a container, in the order of `HOST_FILES`, with a line of `--` between each two.
#![no_main]

#[allow(dead_code, reason = "the other targets use the rest")]
#[path = "../../tests/support/invariants.rs"]
mod invariants;

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use tempfile::TempDir;

/// Where TMPDIR is in memory there are ten times as many runs as on a disk.
static ROOT: LazyLock<TempDir> =
    LazyLock::new(|| tempfile::tempdir().expect("a directory for the files"));

fuzz_target!(|text: &str| {
    let texts: Vec<_> = text
        .split("--\n")
        .chain([""].into_iter().cycle())
        .take(invariants::HOST_FILES.len())
        .collect();
    invariants::host_facts(ROOT.path(), &texts);
});
