//! The presenter's tool: `cargo workshop --help`.

mod baseline;
mod chart;
mod client;
mod compare;
mod contents;
mod engine;
mod figures;
mod host;
mod ladder;
mod limits;
mod output;
mod progress;
mod report;
mod results;
mod signals;
mod slide;
mod subject;
mod table;
mod trial;
mod units;
mod watch;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};
use tokio::runtime::Runtime;

/// Puts images of HTTP services side by side, and counts what a roll-out loses.
#[derive(Parser)]
#[command(name = "cargo workshop", bin_name = "cargo workshop", version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Measure images of HTTP services: size, start, stop, memory, work
    Compare(compare::Arguments),
    /// Show an earlier comparison again, in any format
    Show(output::Arguments),
    /// Count what a client loses while a service is rolled, stopped or scaled
    Watch(watch::Arguments),
}

/// Exit codes: 0 done, and nothing lost or over its limit; 1 something was; 2 wrong arguments, or it could not be done.
fn main() -> ExitCode {
    let runtime = Runtime::new().expect("threads can be started");
    let done = runtime.block_on(run(Arguments::parse().command));
    // After Ctrl-C a thread may still compress a layer.
    runtime.shutdown_background();
    done.unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::from(2)
    })
}

async fn run(command: Command) -> Result<ExitCode> {
    match command {
        Command::Compare(arguments) => compare::run(arguments).await,
        Command::Show(arguments) => output::run(&arguments),
        Command::Watch(arguments) => watch::run(arguments).await,
    }
}
