//! `cargo workshop compare`: the command line, and the steps of a comparison.

use std::{
    collections::BTreeSet,
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow, ensure};
use clap::{Args, value_parser};
use jiff::Timestamp;
use tokio::time;

use crate::{
    comparison::Comparison,
    differences::Differences,
    engine::Engine,
    host, output,
    results::{FORMAT, Image, Results, Settings},
    signals::Signals,
    subject::Subject,
    terminal::{clean, program},
    trial::Plan,
    tutorial::{self, TutorialImage, prepare::prepare},
};

#[derive(Args)]
pub struct Arguments {
    /// Local images of HTTP services, as IMAGE[=LABEL][:KEY=VALUE]…
    ///
    /// What requests the container gets:
    ///   port=[HOST:]PORT   its port, and the port on this machine [default: the exposed port, a free one]
    ///   path=/PATH         of GET requests [default: /, or /index for images of the tutorial]
    ///   status=NUMBER      of a good response [default: 200]
    ///   header=NAME: VALUE repeatable
    ///
    /// How it runs, as with docker run:
    ///   command=WORDS      instead of the image's command, quoted as in a shell
    ///   env=NAME=VALUE     repeatable
    ///   user=USER
    ///   memory=SIZE        limit, such as 64MB
    ///   cpus=NUMBER        limit, such as 0.5
    ///   mount=/FROM:/TO    read-only, repeatable
    ///   network=NETWORK    to join, such as one of Compose with a database
    ///
    /// Default images: the tutorial's Python service, as it is and tuned, and this one in both images.
    /// They are built first if they are missing.
    #[arg(value_name = "IMAGE", verbatim_doc_comment)]
    images: Vec<Subject>,

    /// Compare the steps of docs/from-1-gb-to-nothing.md with timber-tutorial:1, :2 and :3
    #[arg(long, conflicts_with = "images")]
    ladder: bool,

    /// Number of rounds without load. There are twice as many under load. In each round, every image
    /// gets a new container
    ///
    /// With fewer than 9, a difference in start, stop or idle memory may be chance, and with fewer than
    /// 5, a difference under load, too.
    #[arg(long, alias = "runs", value_name = "N", default_value_t = 10, value_parser = value_parser!(u32).range(1..=1000))]
    rounds: u32,

    /// Duration of each of the three kinds of load in a round: kept connections, new connections
    /// and a fixed rate. 0: no load [default: 0.5, or 0 with --ladder]
    #[arg(long, value_name = "SECONDS", hide_default_value = true, default_value = "0.5", default_value_if("ladder", "true", "0"), value_parser = seconds)]
    load: Duration,

    /// Number of connections of the load. Each has one request in flight
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = value_parser!(u32).range(1..=10_000))]
    connections: u32,

    /// Maximum time from the start of a container to its first good response
    #[arg(long, value_name = "SECONDS", default_value_t = 30, value_parser = value_parser!(u32).range(1..=600))]
    ready: u32,

    /// Rebuild the images of the tutorial
    #[arg(long, conflicts_with = "images")]
    rebuild: bool,

    #[command(flatten)]
    output: output::Options,
}

impl Arguments {
    /// Returns the number of rounds under load. There, figures vary more: of the pairs of bench/chance
    /// that differ by 20 %, the first 10 rounds miss half, and all 20 rounds miss none.
    fn load_rounds(&self) -> u32 {
        if self.load.is_zero() {
            0
        } else {
            2 * self.rounds
        }
    }

    /// Returns the settings that are known before the comparison.
    fn settings(&self) -> Settings {
        Settings {
            rounds: self.rounds,
            load_rounds: self.load_rounds(),
            load_seconds: self.load.as_secs_f64(),
            connections: self.connections,
            fixed_rate: None,
            generator_limit: None,
        }
    }

    /// Returns the images to build if they are missing.
    fn tutorial_images(&self) -> &'static [TutorialImage] {
        match self {
            Arguments { ladder: true, .. } => &tutorial::LADDER,
            Arguments { images, .. } if images.is_empty() => &tutorial::IMAGES,
            _ => &[],
        }
    }
}

fn seconds(text: &str) -> Result<Duration> {
    let seconds = text
        .parse()
        .ok()
        .filter(|seconds| (0.0..=3600.0).contains(seconds));
    let seconds = seconds.context("expected a number of seconds from 0 to 3600, such as 0.5")?;
    Ok(Duration::from_secs_f64(seconds))
}

/// Returns exit code 0, or 1 if an image failed, or a figure exceeds its limit or is worse than in
/// the baseline.
///
/// # Errors
/// Nothing can be measured, such as without an engine.
pub async fn run(arguments: Arguments) -> Result<ExitCode> {
    let subjects: Vec<Subject> = if arguments.ladder {
        let steps = tutorial::LADDER.iter();
        steps
            .map(|image| format!("{}={}", image.name, image.label()).parse())
            .collect::<Result<_>>()?
    } else if arguments.images.is_empty() {
        let images = tutorial::COMPARED.iter();
        images.map(|image| image.parse()).collect::<Result<_>>()?
    } else {
        arguments.images.clone()
    };
    let names: Vec<_> = subjects
        .iter()
        .map(|subject| (subject.name.as_str(), subject.label.as_str()))
        .collect();
    arguments.output.check(&names)?;
    // Two for each connection while the load generator is measured with a server of its own.
    host::raise_open_files(u64::from(arguments.connections) * 2 + 100)?;
    let mut labels = BTreeSet::new();
    for Subject { name, label, .. } in &subjects {
        ensure!(
            labels.insert(label),
            "duplicate label {label:?}: add another, as {name}=LABEL"
        );
    }
    let engine = Engine::connect().await?;
    let settings = arguments.settings();
    let reached = engine.description.reached;
    let baseline = arguments.output.baseline_for(reached, &settings)?;
    let fixed_rate = baseline.and_then(|baseline| baseline.settings.fixed_rate);
    let mut signals = Signals::new()?;
    let abandoned = engine.claim().await?;
    if abandoned > 0 {
        eprintln!("Containers of an aborted comparison removed: {abandoned}");
    }
    let results = tokio::select! {
        results = measure(&engine, &arguments, subjects, fixed_rate) => results,
        signal = signals.next() => Err(anyhow!(signal)),
    };
    let cleared = clear(&engine, &mut signals).await;
    if let Err(error) = &cleared {
        eprintln!("cannot remove everything: {error:#}");
    }
    let code = output::present(&results?, &arguments.output)?;
    cleared.map(|()| code)
}

/// Removes everything that this run made. Waits for an engine that restarts.
async fn clear(engine: &Engine, signals: &mut Signals) -> Result<()> {
    const PATIENCE: Duration = Duration::from_mins(1);
    let begin = Instant::now();
    let mut cleared = engine.clear().await;
    if cleared.is_err() && !engine.responds().await {
        eprintln!(
            "The engine does not respond. Waiting for it, to remove the containers (Ctrl-C: do not wait)"
        );
        while cleared.is_err() && begin.elapsed() < PATIENCE {
            tokio::select! {
                () = time::sleep(Duration::from_secs(1)) => cleared = engine.clear().await,
                _ = signals.next() => break,
            }
        }
    }
    cleared
}

async fn measure(
    engine: &Engine,
    arguments: &Arguments,
    subjects: Vec<Subject>,
    fixed_rate: Option<f64>,
) -> Result<Results> {
    let begun = Timestamp::now();
    let plan = Plan {
        timeout: Duration::from_secs(arguments.ready.into()),
        connections: arguments.connections,
        load: arguments.load,
        fixed_rate,
    };
    announce(arguments, subjects.len(), plan);
    prepare(engine, arguments.tutorial_images(), arguments.rebuild).await?;
    let mut comparison = Comparison::new(engine, plan);
    for subject in subjects {
        comparison.add(subject).await;
    }
    comparison.sizes().await?;
    comparison.rehearse().await?;
    // Early, because the measurement takes minutes.
    for Image { label, failure, .. } in comparison.images() {
        if let Some(failure) = failure {
            eprintln!("{}", clean(&format!("{label}: {failure}")));
        }
    }
    comparison.starts(arguments.rounds).await;
    if !plan.load.is_zero() {
        comparison.loads(arguments.load_rounds()).await;
    }
    let others = engine.others().await?;
    if others > 0 {
        comparison.note(&format!(
            "{others} other containers were running: times can be too high, and memory that they share too low"
        ));
    }
    let settings = Settings {
        fixed_rate: comparison.plan.fixed_rate,
        generator_limit: comparison.generator_limit,
        ..arguments.settings()
    };
    let images = comparison.into_images();
    Ok(Results {
        format: FORMAT,
        begun,
        command: command_line(),
        settings,
        machine: engine.machine.clone(),
        engine: engine.description.clone(),
        differences: Differences::among(&images).describe(&images),
        images,
    })
}

/// Says what is going to happen, and how long it takes.
fn announce(arguments: &Arguments, images: usize, plan: Plan) {
    let count = u32::try_from(images).unwrap_or(u32::MAX);
    let (starts, loads) = (arguments.rounds, arguments.load_rounds());
    let each = if plan.load.is_zero() {
        plan.duration(starts + 1, loads) // with the rehearsal
    } else {
        plan.duration(starts, loads + 1)
    };
    let all = each * count;
    let images = match images {
        1 => "1 image".to_owned(),
        _ => format!("{images} images"),
    };
    eprintln!(
        "Comparing {images} in {}: about {} min, and longer if images are missing",
        arguments.settings().describe_rounds(),
        all.as_secs().div_ceil(60)
    );
}

/// Returns the command line, quoted for a shell.
fn command_line() -> String {
    let arguments = std::env::args().skip(1).map(|argument| {
        let plain = argument
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || "-_=:/.,+@".contains(c));
        if plain {
            argument
        } else {
            format!("'{}'", argument.replace('\'', r"'\''"))
        }
    });
    [program().to_owned()]
        .into_iter()
        .chain(arguments)
        .collect::<Vec<_>>()
        .join(" ")
}
