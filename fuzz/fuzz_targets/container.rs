//! Fuzzes the detection of container limits. The input has the texts of the kernel's files, in the
//! order of `CONTAINER_FILES`, separated by lines of `--`.
#![no_main]

#[allow(dead_code, reason = "the other targets use the rest")]
#[path = "../../tests/support/invariants.rs"]
mod invariants;

use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    let texts: Vec<_> = text
        .split("--\n")
        .chain([""].into_iter().cycle())
        .take(invariants::CONTAINER_FILES.len())
        .collect();
    invariants::container_facts(&texts);
});
