//! Measures images side by side, one phase after the other, so that each image meets the same machine.

use std::{process::ExitCode, time::Duration};

use anyhow::{Context, Result, anyhow};
use clap::{Args, value_parser};
use indicatif::ProgressBar;
use jiff::Timestamp;
use tokio::{task, time};

use crate::{
    contents,
    engine::Engine,
    ladder, output, progress,
    results::{Figure, Image, Results, Settings, Size, Spread},
    signals::Signals,
    subject::Subject,
    table,
    trial::{Run, SETTLE, Trial, WARM_UP, Worked},
};

#[derive(Args)]
pub struct Arguments {
    /// Local images of HTTP services: IMAGE[=LABEL][:port=[HOST:]PORT][:path=/PATH]. PORT is the container's, by
    /// default the one that the image exposes; HOST, by default any free one, this machine's; PATH is to answer with
    /// status 200. Without images, the tutorial's three, which are built if they are not there
    #[arg(value_name = "IMAGE")]
    images: Vec<Subject>,

    /// Starts and stops of each image
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = value_parser!(u32).range(1..=1000))]
    runs: u32,

    /// Seconds of load on each image
    #[arg(long, value_name = "SECONDS", default_value_t = 10, value_parser = value_parser!(u32).range(1..=3600))]
    load: u32,

    /// Connections of the load: each asks again as soon as it has its answer
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = value_parser!(u32).range(1..=10_000))]
    connections: u32,

    /// Seconds that an image may take until it answers with status 200
    #[arg(long, value_name = "SECONDS", default_value_t = 30, value_parser = value_parser!(u32).range(1..=600))]
    ready: u32,

    /// Build the tutorial's images anew
    #[arg(long, conflicts_with = "images")]
    rebuild: bool,

    #[command(flatten)]
    output: output::Options,
}

/// Exit code 0, or 1 when an image failed or a figure is over its limit.
///
/// # Errors
/// When nothing can be measured: no engine, no image.
pub async fn run(arguments: Arguments) -> Result<ExitCode> {
    let subjects = if arguments.images.is_empty() {
        ladder::LADDER
            .iter()
            .map(|rung| rung.image.parse())
            .collect::<Result<_>>()?
    } else {
        arguments.images.clone()
    };
    let names: Vec<_> = subjects
        .iter()
        .map(|subject| (subject.name.as_str(), subject.label.as_str()))
        .collect();
    arguments.output.check(&names)?;
    let engine = Engine::connect().await?;
    let abandoned = engine.clear_abandoned().await?;
    if abandoned > 0 {
        eprintln!("removed {abandoned} containers of a run that did not end well");
    }
    let mut signals = Signals::new()?;
    let results = tokio::select! {
        results = measure(&engine, &arguments, subjects) => results,
        stopped = signals.next() => Err(anyhow!(stopped)),
    };
    let cleared = engine.clear().await;
    let code = output::present(&results?, &arguments.output)?;
    cleared?;
    Ok(code)
}

async fn measure(
    engine: &Engine,
    arguments: &Arguments,
    subjects: Vec<Subject>,
) -> Result<Results> {
    let begun = Timestamp::now();
    if arguments.images.is_empty() {
        ladder::build_missing(&engine.docker, arguments.rebuild).await?;
    }
    let mut comparison = Comparison {
        engine,
        arguments,
        rows: Vec::new(),
    };
    for subject in subjects {
        comparison.add(subject).await;
    }
    // What is known to be wrong is not told only at the end.
    for Image { label, failure, .. } in comparison.rows.iter().map(|row| &row.image) {
        if let Some(failure) = failure {
            eprintln!("{}", table::clean(&format!("{label}: {failure}")));
        }
    }
    comparison.sizes().await;
    comparison.starts().await;
    comparison.work().await;
    let others = engine.others().await?;
    if others > 0 {
        let note = format!(
            "{others} other containers ran on this engine: times suffer by that, and memory is too low where they have it in common"
        );
        comparison
            .rows
            .iter_mut()
            .for_each(|row| row.image.notes.push(note.clone()));
    }
    Ok(Results {
        format: crate::results::FORMAT,
        begun,
        command: command_line(),
        settings: Settings {
            runs: arguments.runs,
            load_seconds: arguments.load.into(),
            connections: arguments.connections,
        },
        machine: engine.machine.clone(),
        engine: engine.description.clone(),
        images: comparison.rows.into_iter().map(|row| row.image).collect(),
    })
}

/// What was typed, as it would have to be typed again.
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
    ["cargo".to_owned(), "workshop".to_owned()]
        .into_iter()
        .chain(arguments)
        .collect::<Vec<_>>()
        .join(" ")
}

struct Comparison<'a> {
    engine: &'a Engine,
    arguments: &'a Arguments,
    rows: Vec<Row>,
}

struct Row {
    subject: Subject,
    port: u16,
    image: Image,
}

impl Row {
    fn trial<'a>(&'a self, engine: &'a Engine, arguments: &Arguments) -> Trial<'a> {
        let patience = Duration::from_secs(arguments.ready.into());
        Trial {
            engine,
            subject: &self.subject,
            port: self.port,
            patience,
        }
    }
}

impl Comparison<'_> {
    async fn add(&mut self, subject: Subject) {
        let mut image = Image::unmeasured(&subject.name, &subject.label);
        let mut port = 0;
        match self.engine.image(&subject.name).await {
            Ok(found) => {
                match subject.port(&found) {
                    Ok(known) => port = known,
                    Err(error) => image.failure = Some(format!("{error:#}")),
                }
                image.notes.extend(ladder::notes(&subject.name, &found));
                let user = found
                    .config
                    .as_ref()
                    .and_then(|config| config.user.clone())
                    .unwrap_or_default();
                image.size.user = Figure::Value(if user.is_empty() {
                    "root".to_owned()
                } else {
                    user
                });
                let bytes = found.size.and_then(|size| size.try_into().ok());
                image.size.engine_bytes = Figure::from(bytes.context("the engine tells no size"));
                image.id = found.id.unwrap_or_default();
            }
            Err(error) => image.failure = Some(format!("{error:#}")),
        }
        self.rows.push(Row {
            subject,
            port,
            image,
        });
    }

    /// An image that does not start has a size nevertheless.
    async fn sizes(&mut self) {
        let present = || self.rows.iter().filter(|row| !row.image.id.is_empty());
        // Each byte is saved, and then read.
        let bytes: u64 = present()
            .filter_map(|row| row.image.size.engine_bytes.value())
            .sum();
        let bar = progress::bar("sizes", bytes * 2, "{percent} %");
        for row in self.rows.iter_mut().filter(|row| !row.image.id.is_empty()) {
            progress::say(&bar, &row.subject.label);
            let contents = contents(self.engine, &row.subject.name, &bar).await;
            row.image
                .size
                .fill(contents.map_err(|error| format!("{error:#}")));
        }
    }

    async fn starts(&mut self) {
        let runs = self.arguments.runs;
        let bar = progress::bar(
            "starts and stops",
            u64::from(runs) * self.rows.len() as u64,
            "{pos} of {len}",
        );
        let mut samples: Vec<Vec<Run>> = self.rows.iter().map(|_| Vec::new()).collect();
        // One of each in turn: what makes the machine slow for a while makes it slow for all.
        for _ in 0..runs {
            for (row, samples) in self.rows.iter_mut().zip(&mut samples) {
                progress::say(&bar, &row.subject.label);
                if row.image.failure.is_none() {
                    match row
                        .trial(self.engine, self.arguments)
                        .start_and_stop()
                        .await
                    {
                        Ok(run) => samples.push(run),
                        Err(error) => row.image.failure = Some(format!("{error:#}")),
                    }
                }
                bar.inc(1);
            }
        }
        for (row, samples) in self.rows.iter_mut().zip(samples) {
            row.image.fill_starts(&samples);
        }
    }

    async fn work(&mut self) {
        let each = u64::from(self.arguments.load) + WARM_UP.as_secs() + SETTLE.as_secs() + 1;
        let bar = progress::bar(
            "memory and load",
            each * self.rows.len() as u64,
            "{pos} of {len} s",
        );
        for (row, end) in self.rows.iter_mut().zip(1..) {
            progress::say(&bar, &row.subject.label);
            if row.image.failure.is_none() {
                let seconds = async {
                    loop {
                        time::sleep(Duration::from_secs(1)).await;
                        bar.inc(1);
                    }
                };
                let trial = row.trial(self.engine, self.arguments);
                let duration = Duration::from_secs(self.arguments.load.into());
                let worked = tokio::select! {
                    worked = trial.work(self.arguments.connections, duration) => worked,
                    () = seconds => unreachable!("seconds do not end"),
                };
                match worked {
                    Ok(Worked { memory, work, note }) => {
                        (row.image.memory, row.image.work) = (memory, work);
                        row.image.notes.extend(note.map(str::to_owned));
                    }
                    Err(error) => row.image.failure = Some(format!("{error:#}")),
                }
            }
            bar.set_position(each * end);
        }
    }
}

async fn contents(engine: &Engine, image: &str, bar: &ProgressBar) -> Result<contents::Contents> {
    let directory = tempfile::tempdir()?;
    let file = directory.path().join("image.tar");
    let saved = |bytes| {
        // The engine may prepare itself for a while before it sends anything.
        if bar.position() == 0 {
            bar.reset_elapsed();
        }
        bar.inc(bytes);
    };
    engine.save(image, &file, saved).await?;
    let bar = bar.clone();
    task::spawn_blocking(move || contents::read(&file, &|bytes| bar.inc(bytes))).await?
}

impl Image {
    fn fill_starts(&mut self, runs: &[Run]) {
        let Some(last) = runs.last() else { return };
        let spread =
            |of: fn(&Run) -> f64| Spread::new(runs.iter().map(of).collect()).expect("there is one");
        self.start.create_to_answer = Figure::Value(spread(|run| run.create_to_answer));
        self.stop.seconds = Figure::Value(spread(|run| run.stop));
        self.stop.exit_code = Figure::Value(last.exit_code);
        let process: Result<Vec<f64>, &String> = runs
            .iter()
            .map(|run| match &run.process_to_answer {
                Figure::Value(seconds) => Ok(*seconds),
                Figure::NotAvailable(reason) => Err(reason),
            })
            .collect();
        self.start.process_to_answer = match process {
            Ok(samples) => Figure::Value(Spread { samples }),
            Err(reason) => Figure::NotAvailable(reason.clone()),
        };
        let codes: Vec<_> = runs.iter().map(|run| run.exit_code).collect();
        if codes.iter().any(|code| *code != last.exit_code) {
            self.notes
                .push(format!("the exit codes of its stops differ: {codes:?}"));
        }
    }
}

impl Size {
    fn fill(&mut self, contents: Result<contents::Contents, String>) {
        let contents = match contents {
            Ok(contents) => Figure::Value(contents),
            Err(reason) => Figure::NotAvailable(reason),
        };
        self.unpacked_bytes = contents.map(|contents| contents.unpacked_bytes);
        self.compressed_bytes = contents.map(|contents| contents.compressed_bytes);
        self.layers = contents.map(|contents| contents.layers);
        self.files = contents.map(|contents| contents.files);
        self.executables = contents.map(|contents| contents.executables);
        self.shell = contents.map(|contents| contents.shell.clone());
        self.package_managers = contents.map(|contents| contents.package_managers.clone());
        self.setuid = contents.map(|contents| contents.setuid.clone());
        self.base = contents.map(|contents| contents.base.clone());
        self.packages = match contents {
            Figure::Value(contents) => contents.packages,
            Figure::NotAvailable(reason) => Figure::NotAvailable(reason),
        };
    }
}
