//! `cargo workshop compare`: measures images phase by phase, so that all of them meet the same
//! conditions.

use std::{process::ExitCode, time::Duration};

use anyhow::{Context, Result, anyhow};
use clap::{Args, value_parser};
use indicatif::ProgressBar;
use jiff::Timestamp;
use tokio::{task, time};

use crate::{
    build, contents,
    engine::Engine,
    official, output, progress,
    results::{Figure, Image, Results, Settings, Size, Spread},
    signals::Signals,
    subject::Subject,
    table,
    trial::{Run, SETTLE, Trial, WARM_UP, Worked},
    tutorial::{self, TutorialImage},
};

#[derive(Args)]
pub struct Arguments {
    /// Local images of HTTP services, as IMAGE[=LABEL][:port=[HOST:]PORT][:path=/PATH]
    ///
    /// PORT is the port inside the container [default: the one that the image exposes]. HOST is the
    /// port on this machine [default: a free one]. GET /PATH must return status 200 [default: /, or
    /// /index for images of the tutorial]. Default images: the three images of the tutorial, which
    /// are built first if they are missing.
    #[arg(value_name = "IMAGE")]
    images: Vec<Subject>,

    /// Compare the steps of docs/from-1-gb-to-nothing.md with timber-tutorial:1, :2 and :3
    #[arg(long, conflicts_with = "images")]
    ladder: bool,

    /// Number of starts and stops of each image
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = value_parser!(u32).range(1..=1000))]
    runs: u32,

    /// Duration of the load on each image. 0: no load [default: 10, or 0 with --ladder]
    #[arg(long, value_name = "SECONDS", hide_default_value = true, default_value_t = 10, default_value_if("ladder", "true", "0"), value_parser = value_parser!(u32).range(0..=3600))]
    load: u32,

    /// Number of connections under load. Each has one request in flight
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = value_parser!(u32).range(1..=10_000))]
    connections: u32,

    /// Maximum time from the start of a container to its first response with status 200
    #[arg(long, value_name = "SECONDS", default_value_t = 30, value_parser = value_parser!(u32).range(1..=600))]
    ready: u32,

    /// Rebuild the images of the tutorial
    #[arg(long, conflicts_with = "images")]
    rebuild: bool,

    #[command(flatten)]
    output: output::Options,
}

impl Arguments {
    /// Returns the images to build if they are missing.
    fn tutorial_images(&self) -> &'static [TutorialImage] {
        match self {
            Arguments { ladder: true, .. } => &tutorial::LADDER,
            Arguments { images, .. } if images.is_empty() => &tutorial::IMAGES,
            _ => &[],
        }
    }
}

/// Returns exit code 0, or 1 if an image failed or a figure exceeds its limit.
///
/// # Errors
/// Nothing can be measured, such as without an engine.
pub async fn run(arguments: Arguments) -> Result<ExitCode> {
    let subjects = if arguments.images.is_empty() {
        let images = arguments.tutorial_images().iter();
        images
            .map(|image| format!("{}={}", image.name, image.label()).parse())
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
        eprintln!("Containers of an aborted comparison removed: {abandoned}");
    }
    let mut signals = Signals::new()?;
    let results = tokio::select! {
        results = measure(&engine, &arguments, subjects) => results,
        signal = signals.next() => Err(anyhow!(signal)),
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
    let images = arguments.tutorial_images();
    official::replace_stand_ins(&engine.docker, images).await?;
    build::build_missing(&engine.docker, images, arguments.rebuild).await?;
    let mut comparison = Comparison {
        engine,
        arguments,
        rows: Vec::new(),
    };
    for subject in subjects {
        comparison.add(subject).await;
    }
    // Early, because the measurement takes minutes.
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
            "{others} other containers were running: times are too high, and memory that they share is too low"
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
        Trial {
            engine,
            subject: &self.subject,
            port: self.port,
            timeout: Duration::from_secs(arguments.ready.into()),
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
                image.notes.extend(tutorial::note(&subject.name));
                match tutorial::stand_ins(&self.engine.docker, &subject.name, &found).await {
                    Ok(stand_ins) => image.stand_ins = stand_ins,
                    Err(error) => image.notes.push(format!("stand-ins unknown: {error:#}")),
                }
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
                image.size.engine_bytes = Figure::from(bytes.context("the engine reports no size"));
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

    /// Measures sizes, also of images that do not start.
    async fn sizes(&mut self) {
        let present = || self.rows.iter().filter(|row| !row.image.id.is_empty());
        // Each byte is written once and read once.
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
        // In turns, so that a slow phase of the machine affects all images.
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
        let (each, what) = match self.arguments.load {
            0 => (SETTLE.as_secs() + 1, "memory"),
            load => (
                u64::from(load) + WARM_UP.as_secs() + SETTLE.as_secs() + 1,
                "memory and load",
            ),
        };
        let bar = progress::bar(what, each * self.rows.len() as u64, "{pos} of {len} s");
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
                    () = seconds => unreachable!("the loop does not end"),
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
        // The engine can take a while before it sends the first byte.
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
        let spread = |of: fn(&Run) -> f64| {
            Spread::new(runs.iter().map(of).collect()).expect("there is a last run")
        };
        self.start.create_to_response = Figure::Value(spread(|run| run.create_to_response));
        self.stop.seconds = Figure::Value(spread(|run| run.stop));
        self.stop.exit_code = Figure::Value(last.exit_code);
        let process: Result<Vec<f64>, &String> = runs
            .iter()
            .map(|run| match &run.process_to_response {
                Figure::Value(seconds) => Ok(*seconds),
                Figure::NotAvailable(reason) => Err(reason),
            })
            .collect();
        self.start.process_to_response = match process {
            Ok(samples) => Figure::Value(Spread { samples }),
            Err(reason) => Figure::NotAvailable(reason.clone()),
        };
        let codes: Vec<_> = runs.iter().map(|run| run.exit_code).collect();
        if codes.iter().any(|code| *code != last.exit_code) {
            self.notes.push(format!("exit codes differ: {codes:?}"));
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
