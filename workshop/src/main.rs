//! The presenter's tool. See `cargo workshop --help`.

mod compare;
mod comparison;
mod contents;
mod differences;
mod engine;
mod figures;
mod host;
mod output;
mod ready;
mod results;
mod signals;
mod statistics;
mod subject;
mod terminal;
mod trial;
mod tutorial;
mod units;
mod watch;

use std::process::ExitCode;

use anyhow::Result;
use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};
use tokio::runtime::Runtime;

/// Compare container images of HTTP services, and count the requests that a rollout loses
#[derive(Parser)]
#[command(name = "cargo workshop", version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Measure size, contents, start, stop, memory and throughput of images
    Compare(compare::Arguments),
    /// Print the results of an earlier comparison, or write its report again
    Show(output::Arguments),
    /// Send requests to a service during a rollout, and count lost requests
    Watch(watch::Arguments),
    /// Check whether this machine is ready for the talk in docs/talk.md, and say how to fix it
    Ready,
}

/// Exit codes: 0 success; 1 a request was lost, an image failed, a figure exceeds its limit or is
/// worse than in the baseline, or the machine is not ready; 2 error.
fn main() -> ExitCode {
    let runtime = Runtime::new().expect("the runtime starts");
    let arguments = Arguments::command().bin_name(terminal::program());
    let arguments =
        Arguments::from_arg_matches(&arguments.get_matches()).unwrap_or_else(|error| error.exit());
    let result = runtime.block_on(run(arguments.command));
    // Does not wait for the thread that compresses layers.
    runtime.shutdown_background();
    result.unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::from(2)
    })
}

async fn run(command: Command) -> Result<ExitCode> {
    match command {
        Command::Compare(arguments) => compare::run(arguments).await,
        Command::Show(arguments) => output::run(&arguments),
        Command::Watch(arguments) => watch::run(arguments).await,
        Command::Ready => ready::run().await,
    }
}
