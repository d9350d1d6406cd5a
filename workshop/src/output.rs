use anyhow::{Result, bail};
use clap::Args;
use std::process::ExitCode;
#[derive(Args)]
pub struct Options {}
#[derive(Args)]
pub struct Arguments {}
pub fn run(_arguments: &Arguments) -> Result<ExitCode> {
    bail!("not there yet")
}
pub fn present(r: &crate::results::Results, _: &Options) -> Result<ExitCode> {
    println!("{}", serde_json::to_string_pretty(r)?);
    Ok(ExitCode::SUCCESS)
}
