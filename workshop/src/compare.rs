//! `cargo workshop compare`: measures images in turn, first without load, then under load, so that no
//! start suffers from the load before it.

use std::{
    collections::{BTreeSet, HashMap},
    process::ExitCode,
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, Result, anyhow, ensure};
use clap::{Args, value_parser};
use indicatif::ProgressBar;
use jiff::Timestamp;
use tokio::task;

use crate::{
    contents::{self, Contents},
    differences::Differences,
    engine::{Engine, Layered},
    host, output,
    results::{FORMAT, Image, Results, Settings},
    signals::Signals,
    subject::Subject,
    terminal::{Bar, clean, program},
    trial::{Loads, Plan, Trial, bottleneck},
    tutorial::{self, TutorialImage, prepare::prepare},
    units::number,
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
    /// With fewer than 9 rounds, any difference in time, memory or load may be chance.
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
    /// Returns the number of rounds under load. Throughput and CPU time vary more than starts: with 10
    /// rounds, the rank test misses a difference of 20 % in most comparisons (bench/chance).
    fn load_rounds(&self) -> u32 {
        if self.load.is_zero() {
            0
        } else {
            2 * self.rounds
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
    let settings = Settings {
        rounds: arguments.rounds,
        load_rounds: arguments.load_rounds(),
        load_seconds: arguments.load.as_secs_f64(),
        connections: arguments.connections,
        fixed_rate: None,
        generator_limit: None,
    };
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
    let cleared = engine.clear().await;
    if let Err(error) = &cleared {
        eprintln!("cannot remove everything: {error:#}");
    }
    let code = output::present(&results?, &arguments.output)?;
    cleared.map(|()| code)
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
    let mut comparison = Comparison {
        engine,
        plan,
        generator_limit: None,
        rows: Vec::new(),
    };
    for subject in subjects {
        comparison.add(subject).await;
    }
    comparison.sizes().await?;
    comparison.rehearse().await?;
    // Early, because the measurement takes minutes.
    for Image { label, failure, .. } in comparison.rows.iter().map(|row| &row.image) {
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
        let note = format!(
            "{others} other containers were running: times can be too high, and memory that they share too low"
        );
        for row in &mut comparison.rows {
            row.image.notes.push(note.clone());
        }
    }
    let images: Vec<_> = comparison.rows.into_iter().map(|row| row.image).collect();
    Ok(Results {
        format: FORMAT,
        begun,
        command: command_line(),
        settings: Settings {
            rounds: arguments.rounds,
            load_rounds: arguments.load_rounds(),
            load_seconds: arguments.load.as_secs_f64(),
            connections: arguments.connections,
            fixed_rate: comparison.plan.fixed_rate,
            generator_limit: comparison.generator_limit,
        },
        machine: engine.machine.clone(),
        engine: engine.description.clone(),
        differences: Differences::among(&images).describe(&images),
        images,
    })
}

/// Says what is going to happen, and how long it takes.
fn announce(arguments: &Arguments, images: usize, plan: Plan) {
    let count = u32::try_from(images).unwrap_or(u32::MAX);
    let starts = plan.start_duration() * arguments.rounds;
    let loads = plan.load_duration() * (arguments.load_rounds() + 1);
    let all = (starts + loads) * count;
    let number = |count: usize, one: &str| match count {
        1 => format!("1 {one}"),
        _ => format!("{count} {one}s"),
    };
    eprintln!(
        "Comparing {} in {}: about {} min, and longer if images are missing",
        number(images, "image"),
        number(arguments.rounds as usize, "round"),
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

/// A comparison in progress. The images are measured in turns, so that a slow phase of the machine
/// affects all of them.
struct Comparison<'a> {
    engine: &'a Engine,
    plan: Plan,
    /// Requests per second of the load generator alone.
    generator_limit: Option<f64>,
    rows: Vec<Row>,
}

struct Row {
    subject: Subject,
    port: u16,
    image: Image,
}

impl Row {
    /// Measures a container, unless an earlier one failed. A failure ends the measurement of this
    /// image.
    async fn measure<T>(
        &mut self,
        engine: &Engine,
        plan: Plan,
        bar: &Bar,
        run: impl AsyncFnOnce(Trial) -> Result<T>,
    ) -> Option<T> {
        if self.image.failure.is_some() {
            return None;
        }
        bar.say(&self.subject.label);
        let trial = Trial {
            engine,
            subject: &self.subject,
            port: self.port,
            plan,
        };
        let measured = run(trial).await;
        measured
            .map_err(|error| self.image.failure = Some(format!("{error:#}")))
            .ok()
    }
}

impl Comparison<'_> {
    async fn add(&mut self, subject: Subject) {
        let mut image = Image::unmeasured(&subject.name, &subject.label);
        let mut port = 0;
        match self.engine.image(&subject.name).await {
            Ok(mut found) => {
                found.user = subject.run.user.clone().unwrap_or(found.user);
                match subject.port(&found) {
                    Ok(known) => port = known,
                    Err(error) => image.failure = Some(format!("{error:#}")),
                }
                image.notes.extend(tutorial::note(&subject.name));
                if !subject.options.is_empty() {
                    image
                        .notes
                        .push(format!("run with {}", subject.options.join(", ")));
                }
                match tutorial::stand_ins(self.engine, &subject.name, &found).await {
                    Ok(stand_ins) => image.stand_ins = stand_ins,
                    Err(error) => image.notes.push(format!("stand-ins unknown: {error:#}")),
                }
                image.read_description(&found);
                image.id = found.id;
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
    async fn sizes(&mut self) -> Result<()> {
        let present = || self.rows.iter().filter(|row| !row.image.id.is_empty());
        // Each byte is written once and read once.
        let bytes: f64 = present()
            .filter_map(|row| row.image.figure("size").value())
            .sum();
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        let bar = Bar::new("sizes", bytes as u64 * 2, "{percent} %");
        let names: Vec<_> = self.rows.iter().map(|row| &*row.subject.name).collect();
        let others = Arc::new(self.engine.layered(&names).await?);
        // An image can run in several ways, but what it contains depends only on the user.
        let mut known = HashMap::new();
        for row in self.rows.iter_mut().filter(|row| !row.image.id.is_empty()) {
            bar.say(&row.subject.label);
            let key = (row.image.id.clone(), row.subject.run.user.clone());
            if !known.contains_key(&key) {
                let contents = contents(self.engine, &row.subject, &others, &bar).await;
                let contents = contents.map_err(|error| format!("{error:#}"));
                known.insert(key.clone(), contents);
            }
            row.image.read_contents(&known[&key]);
        }
        Ok(())
    }

    /// Measures each image once. This does not count, but finds images that do not work, and the rate
    /// that all images can serve: half of what the slowest one does.
    async fn rehearse(&mut self) -> Result<()> {
        let bar = Bar::new("rehearsal", self.rows.len() as u64, "{pos} of {len}");
        let mut slowest = f64::INFINITY;
        for row in &mut self.rows {
            if self.plan.load.is_zero() {
                row.measure(self.engine, self.plan, &bar, async |trial| {
                    trial.start().await
                })
                .await;
            } else {
                let loads = row
                    .measure(self.engine, self.plan, &bar, async |trial| {
                        trial.load().await
                    })
                    .await;
                slowest = loads.map_or(slowest, |loads| slowest.min(loads.kept.rate()));
            }
            bar.inc(1);
        }
        let rate = two_digits(slowest / 2.0);
        let rate = (rate.is_finite() && rate > 0.0).then_some(rate);
        // That of the baseline, so that the latencies can be compared.
        self.plan.fixed_rate = self.plan.fixed_rate.or(rate);
        if !self.plan.load.is_zero() {
            let duration = Duration::from_secs(1);
            self.generator_limit =
                Some(timber_load::own_limit(self.plan.connections, duration).await?);
        }
        Ok(())
    }

    /// Takes turns among the images, and calls `run` for each of them in each round.
    async fn rounds<T>(
        &mut self,
        name: &'static str,
        count: u32,
        run: impl AsyncFn(Trial) -> Result<T>,
    ) -> Vec<Vec<T>> {
        let steps = u64::from(count) * self.rows.len() as u64;
        let bar = Bar::new(name, steps, "{pos} of {len}");
        let mut samples: Vec<Vec<T>> = self.rows.iter().map(|_| Vec::new()).collect();
        for _ in 0..count {
            for (row, samples) in self.rows.iter_mut().zip(&mut samples) {
                samples.extend(row.measure(self.engine, self.plan, &bar, &run).await);
                bar.inc(1);
            }
        }
        samples
    }

    async fn starts(&mut self, count: u32) {
        let starts = self
            .rounds("starts", count, async |trial| trial.start().await)
            .await;
        for (row, starts) in self.rows.iter_mut().zip(starts) {
            row.image.read_starts(&starts);
            let note = starts.iter().find_map(|start| start.note);
            row.image.notes.extend(note.map(str::to_owned));
        }
    }

    async fn loads(&mut self, count: u32) {
        let loads = self
            .rounds("loads", count, async |trial| trial.load().await)
            .await;
        let limit = self.generator_limit;
        let cpus = number(self.engine.machine.cpus);
        for (row, loads) in self.rows.iter_mut().zip(loads) {
            row.image.read_loads(&loads);
            let notes = &mut row.image.notes;
            notes.extend(limit.and_then(|limit| bottleneck(&loads, limit, cpus)));
            let errors: u64 = loads.iter().map(Loads::errors).sum();
            if errors > 0 {
                notes.push(format!(
                    "{errors} requests had no good response: latencies are those of the others"
                ));
            }
        }
    }
}

/// Rounds down to two significant digits.
fn two_digits(value: f64) -> f64 {
    let unit = 10_f64.powf(value.log10().floor() - 1.0);
    (value / unit).floor() * unit
}

async fn contents(
    engine: &Engine,
    subject: &Subject,
    others: &Arc<Vec<Layered>>,
    bar: &ProgressBar,
) -> Result<Contents> {
    let directory = tempfile::tempdir()?;
    let file = directory.path().join("image.tar");
    let saved = |bytes| {
        // The engine can take a while before it sends the first byte.
        if bar.position() == 0 {
            bar.reset_elapsed();
        }
        bar.inc(bytes);
    };
    engine.save(&subject.name, &file, saved).await?;
    let (user, others, bar) = (subject.run.user.clone(), Arc::clone(others), bar.clone());
    task::spawn_blocking(move || {
        contents::read(&file, user.as_deref(), &others, &|bytes| bar.inc(bytes))
    })
    .await?
}
