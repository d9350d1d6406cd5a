//! A comparison in progress. The images are measured in turns, so that a slow phase of the machine
//! affects all of them: first without load, then under load, so that no start suffers from the load
//! before it.

use std::{collections::HashMap, sync::Arc, time::Duration};

use anyhow::Result;
use indicatif::ProgressBar;
use tokio::task;

use crate::{
    contents::{self, Contents},
    engine::{Engine, Layered},
    results::Image,
    subject::Subject,
    terminal::Bar,
    trial::{Loads, Plan, Trial, bottleneck},
    tutorial,
    units::number,
};

pub struct Comparison<'a> {
    engine: &'a Engine,
    pub plan: Plan,
    /// Requests per second of the load generator alone.
    pub generator_limit: Option<f64>,
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

impl<'a> Comparison<'a> {
    pub fn new(engine: &'a Engine, plan: Plan) -> Self {
        Comparison {
            engine,
            plan,
            generator_limit: None,
            rows: Vec::new(),
        }
    }

    /// Adds an image. A missing or invalid one is recorded as failed.
    pub async fn add(&mut self, subject: Subject) {
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
    pub async fn sizes(&mut self) -> Result<()> {
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
    pub async fn rehearse(&mut self) -> Result<()> {
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

    /// Measures each image without load, `count` times.
    pub async fn starts(&mut self, count: u32) {
        let starts = self
            .rounds("starts", count, async |trial| trial.start().await)
            .await;
        for (row, starts) in self.rows.iter_mut().zip(starts) {
            row.image.read_starts(&starts);
            let note = starts.iter().find_map(|start| start.note);
            row.image.notes.extend(note.map(str::to_owned));
        }
    }

    /// Measures each image under load, `count` times.
    pub async fn loads(&mut self, count: u32) {
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

    /// Adds a note to each image.
    pub fn note(&mut self, note: &str) {
        for row in &mut self.rows {
            row.image.notes.push(note.to_owned());
        }
    }

    pub fn images(&self) -> impl Iterator<Item = &Image> {
        self.rows.iter().map(|row| &row.image)
    }

    pub fn into_images(self) -> Vec<Image> {
        self.rows.into_iter().map(|row| row.image).collect()
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
