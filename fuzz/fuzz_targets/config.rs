//! Fuzzes the configuration. The input has one line per variable, as NAME=VALUE, an empty line, and
//! one line per argument.
#![no_main]

#[allow(dead_code, reason = "the other targets use the rest")]
#[path = "../../tests/support/invariants.rs"]
mod invariants;

use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    let (variables, arguments) = text.split_once("\n\n").unwrap_or((text, ""));
    let variables: Vec<_> = variables
        .split('\n')
        .filter_map(|line| line.split_once('='))
        .collect();
    let variables: Vec<_> = variables
        .iter()
        .map(|(name, value)| (name.to_string(), value.to_string()))
        .collect();
    let arguments: Vec<_> = arguments.split('\n').map(str::to_owned).collect();
    invariants::configuration(&arguments, &variables);
});
