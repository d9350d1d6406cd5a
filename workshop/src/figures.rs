//! All figures, one row each: name, unit, how it is read from a measurement, and which value is
//! better. Every output uses this table, so a new figure is a new row.

use timber_load::Load;

use crate::{
    contents::{Contents, Sharing},
    engine::Inspected,
    results::{Figure, Image, Results},
    trial::{Loads, Start},
    units::{Unit, number},
};

pub struct Row {
    /// Name in `--fail-over` and in results files.
    pub key: &'static str,
    pub group: &'static str,
    pub title: &'static str,
    /// What is measured, in a few words.
    pub meaning: &'static str,
    pub unit: Unit,
    pub better: Better,
    /// Whether it is shown without `--all`.
    pub is_headline: bool,
    /// Whether it also depends on other images, on the engine's store, or on luck.
    is_incidental: bool,
    source: Source,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Better {
    Lower,
    Higher,
    Neither,
}

/// The measurement that a figure is read from.
enum Source {
    Engine(fn(&Inspected) -> Figure),
    Contents(fn(&Contents) -> Figure),
    Starts(fn(&[Start]) -> Figure),
    Load(fn(&[Loads]) -> Figure),
    /// Computed from other figures.
    Figures(fn(&Image) -> Figure),
}

use Source::{Contents as Inside, Engine, Figures, Load as UnderLoad, Starts};

const SIZE: &str = "Size";
const CONTENTS: &str = "Contents";
const START: &str = "Start";
const STOP: &str = "Stop";
const MEMORY: &str = "Memory";
const WORK: &str = "Work";

const BYTES: (Unit, Better) = (Unit::Bytes, Better::Lower);
const SECONDS: (Unit, Better) = (Unit::Seconds, Better::Lower);
const COUNT: (Unit, Better) = (Unit::Count, Better::Lower);
const PER_SECOND: (Unit, Better) = (Unit::PerSecond, Better::Higher);
const WORDS: (Unit, Better) = (Unit::Words, Better::Neither);

const fn row(
    key: &'static str,
    group: &'static str,
    title: &'static str,
    meaning: &'static str,
    (unit, better): (Unit, Better),
    source: Source,
) -> Row {
    Row {
        key,
        group,
        title,
        meaning,
        unit,
        better,
        is_headline: false,
        is_incidental: false,
        source,
    }
}

impl Row {
    const fn headline(mut self) -> Self {
        self.is_headline = true;
        self
    }

    const fn incidental(mut self) -> Self {
        self.is_incidental = true;
        self
    }
}

/// In the order of the table. Six figures carry the argument, and are shown without `--all`.
#[rustfmt::skip] // a row is a line, or two
pub const ROWS: &[Row] = &[
    row("pull", SIZE, "pulled size", "what a pull transfers: compressed layers", BYTES,
        Inside(|contents| Figure::Count(contents.compressed_bytes))).headline(),
    row("pull-5-mbit", SIZE, "pull at 5 Mbit/s", "computed from the pulled size", SECONDS,
        Figures(|image| pull_seconds(image, 5e6))).incidental(),
    row("pull-50-mbit", SIZE, "pull at 50 Mbit/s", "computed from the pulled size", SECONDS,
        Figures(|image| pull_seconds(image, 50e6))).incidental(),
    row("pull-1-gbit", SIZE, "pull at 1 Gbit/s", "computed from the pulled size", SECONDS,
        Figures(|image| pull_seconds(image, 1e9))).incidental(),
    row("unpacked", SIZE, "unpacked size", "on disk, after the pull", BYTES,
        Inside(|contents| Figure::Count(contents.unpacked_bytes))).headline(),
    row("size", SIZE, "size in the engine", "as docker images shows it", BYTES,
        Engine(|image| image.bytes.map_or_else(
            || Figure::NotAvailable("the engine reports no size".to_owned()), Figure::Count))).incidental(),
    row("layers", SIZE, "layers", "of the image", (Unit::Count, Better::Neither),
        Inside(|contents| Figure::Count(contents.layers))),
    row("shared", SIZE, "shared layers", "the first ones, with which another image on this engine begins, too", WORDS,
        Inside(|contents| sharing(contents, |layers| Figure::Words(layers.with.as_ref().map_or_else(
            || "none".to_owned(),
            |with| format!("{}, with {with}", Unit::Bytes.write(number(layers.shared_bytes)))))))),
    row("own", SIZE, "own layers", "files in the other layers, which only this image and its copies have", BYTES,
        Inside(|contents| sharing(contents, |layers| Figure::Count(layers.own_bytes)))).incidental(),
    row("ten", SIZE, "ten such services", "computed: shared layers once, own layers ten times", BYTES,
        Inside(|contents| sharing(contents, |layers| Figure::Count(layers.ten_services())))).incidental(),

    row("files", CONTENTS, "files", "that a container sees", COUNT,
        Inside(|contents| Figure::Count(contents.files))).headline(),
    row("executables", CONTENTS, "executables", "files with an execute permission", COUNT,
        Inside(|contents| Figure::Count(contents.executables))),
    row("packages", CONTENTS, "packages", "that scanners can find", COUNT,
        Inside(|contents| contents.packages.clone().map_or_else(Figure::NotAvailable, Figure::Kinds))),
    row("shell", CONTENTS, "shell", "that an intruder could use", WORDS,
        Inside(|contents| or_none(contents.shell.as_ref()))),
    row("interpreters", CONTENTS, "interpreters", "programs that run scripts or bytecode", COUNT,
        Inside(|contents| Figure::Names(contents.interpreters.clone()))),
    row("package-managers", CONTENTS, "package managers", "programs that install packages", COUNT,
        Inside(|contents| Figure::Names(contents.package_managers.clone()))),
    row("setuid", CONTENTS, "setuid files", "that run with the rights of their owner or group", COUNT,
        Inside(|contents| Figure::Names(contents.setuid.clone()))),
    row("writable", CONTENTS, "writable paths", "files and directories that the user may write: all as root", COUNT,
        Inside(|contents| contents.writable.clone().map_or_else(Figure::NotAvailable, Figure::Kinds))),
    row("user", CONTENTS, "user", "that runs the process", WORDS,
        Engine(|image| Figure::Words(if image.user.is_empty() { "root".into() } else { image.user.clone() }))),
    row("base", CONTENTS, "distribution", "PRETTY_NAME in os-release", WORDS,
        Inside(|contents| or_none(contents.base.as_ref()))),

    row("start", START, "start to first response", "from docker run to the first response", SECONDS,
        Starts(|starts| each(starts, |start| Ok(start.create_to_response)))).headline(),
    row("process", START, "process to first response", "without the engine: from the start of the process", SECONDS,
        Starts(|starts| each(starts, |start| start.process_to_response.clone()))),

    row("stop", STOP, "time to stop", "duration of docker stop", SECONDS,
        Starts(|starts| each(starts, |start| Ok(start.stop)))),
    row("stop-signal", STOP, "at the stop signal", "SIGTERM, or what the image names, in the last round", WORDS,
        Starts(|starts| starts.last().map_or_else(none_completed, at_stop_signal))),

    row("memory", MEMORY, "idle memory", "of all its processes, 1 s after the first response", BYTES,
        Starts(|starts| each(starts, |start| start.idle_memory.clone()))).headline(),
    row("loaded", MEMORY, "memory after the load", "of all its processes, right after the load", BYTES,
        UnderLoad(|loads| each(loads, |load| load.memory.clone()))),

    row("connections", WORK, "connections", "after a response", WORDS,
        UnderLoad(|loads| Figure::Words(
            if loads.iter().any(|load| load.kept.is_kept()) { "kept" } else { "closed" }.to_owned()))),
    row("tasks", WORK, "processes and threads", "at work, in the last round", WORDS,
        UnderLoad(|loads| loads.last().map_or_else(none_completed, |load| match &load.tasks {
            Ok(tasks) => Figure::Words(tasks.to_string()),
            Err(reason) => Figure::NotAvailable(reason.clone()),
        }))),
    row("cpus", WORK, "CPUs", "that the container may use", (Unit::Count, Better::Neither),
        UnderLoad(|loads| loads.last().map_or_else(none_completed, |load| Figure::Computed(load.cpus)))),
    row("rate", WORK, "throughput", "responses, connections kept if possible", PER_SECOND,
        UnderLoad(|loads| each(loads, |load| Ok(load.kept.rate())))),
    row("p50", WORK, "latency at full load, median", "half of the responses took longer", SECONDS,
        UnderLoad(|loads| each(loads, |load| load.kept.latency(0.5)))),
    row("p99", WORK, "latency at full load, 99 %", "1 response in 100 took longer", SECONDS,
        UnderLoad(|loads| each(loads, |load| load.kept.latency(0.99)))),
    row("cpu", WORK, "CPU per request", "CPU time of the container under load", SECONDS,
        UnderLoad(|loads| each(loads, |load| load.kept.cpu_per_request()))).headline(),
    row("rate-new", WORK, "throughput, new connections", "one connection for each request", PER_SECOND,
        UnderLoad(|loads| each(loads, |load| Ok(load.new.rate())))),
    row("cpu-new", WORK, "CPU per new connection", "with one request, CPU time of the container", SECONDS,
        UnderLoad(|loads| each(loads, |load| load.new.cpu_per_request()))),
    row("fixed-p50", WORK, "latency at a fixed rate, median", "from the time at which a request was due", SECONDS,
        UnderLoad(|loads| each(loads, |load| fixed(load)?.latency(0.5)))),
    row("fixed-p99", WORK, "latency at a fixed rate, 99 %", "from the time at which a request was due", SECONDS,
        UnderLoad(|loads| each(loads, |load| fixed(load)?.latency(0.99)))),
    row("errors", WORK, "errors", "requests without the expected response, in all rounds", COUNT,
        UnderLoad(|loads| Figure::Count(loads.iter().map(Loads::errors).sum()))).incidental(),
];

/// Returns the rows of a comparison: without those about the load if there was none.
pub fn rows(results: &Results, all: bool) -> impl Iterator<Item = &'static Row> {
    let has_load = results.has_load();
    ROWS.iter()
        .filter(move |row| all || row.is_headline)
        .filter(move |row| has_load || !matches!(row.source, UnderLoad(_)))
}

/// Finds a row by its key.
pub fn row_of(key: &str) -> Option<&'static Row> {
    ROWS.iter().find(|row| row.key == key)
}

impl Image {
    /// Reads all figures that come from the engine's description.
    pub fn read_description(&mut self, image: &Inspected) {
        self.fill(|source| match source {
            Engine(read) => Some(read(image)),
            _ => None,
        });
    }

    pub fn read_contents(&mut self, contents: &Result<Contents, String>) {
        self.fill(|source| match (source, contents) {
            (Inside(read), Ok(contents)) => Some(read(contents)),
            (Inside(_), Err(reason)) => Some(Figure::NotAvailable(reason.clone())),
            _ => None,
        });
    }

    pub fn read_starts(&mut self, starts: &[Start]) {
        if starts.is_empty() {
            return; // the failure says why
        }
        self.fill(|source| match source {
            Starts(read) => Some(read(starts)),
            _ => None,
        });
    }

    pub fn read_loads(&mut self, loads: &[Loads]) {
        if loads.is_empty() {
            return;
        }
        self.fill(|source| match source {
            UnderLoad(read) => Some(read(loads)),
            _ => None,
        });
    }

    fn fill(&mut self, read: impl Fn(&Source) -> Option<Figure>) {
        for row in ROWS {
            let figure = read(&row.source).map(|figure| (row.key.to_owned(), figure));
            self.figures.extend(figure);
        }
    }
}

impl Row {
    /// Returns whether an image can be better or worse than another in this figure.
    pub fn is_comparable(&self) -> bool {
        self.better != Better::Neither && !self.is_incidental
    }

    pub fn of(&self, image: &Image) -> Figure {
        match self.source {
            Figures(compute) => compute(image),
            _ => image.figure(self.key),
        }
    }

    /// Formats a figure: `0.352 s (0.331 – 0.410)`, `88 (dpkg 88)`, `/bin/sh`.
    pub fn write(&self, figure: &Figure) -> String {
        let value = figure.value().unwrap_or_default();
        let detail = match figure {
            Figure::Words(words) => return words.clone(),
            Figure::NotAvailable(_) => return "not available".to_owned(),
            Figure::Samples(samples) if samples.len() > 1 => {
                let extent = figure.extent().expect("there are samples");
                return self.unit.write_range(value, extent);
            }
            Figure::Samples(_) | Figure::Count(_) | Figure::Computed(_) => String::new(),
            Figure::Kinds(kinds) => {
                let kinds = kinds.iter().map(|(kind, count)| format!("{kind} {count}"));
                kinds.collect::<Vec<_>>().join(", ")
            }
            // More would be a column of its own.
            Figure::Names(names) if names.len() > 4 => format!("{}, …", names[..3].join(", ")),
            Figure::Names(names) => names.join(", "),
        };
        let written = self.unit.write(value);
        if detail.is_empty() {
            written
        } else {
            format!("{written} ({detail})")
        }
    }
}

/// Reads a sample from each measurement. If one is missing, so is the figure.
fn each<M>(measurements: &[M], read: impl Fn(&M) -> Result<f64, String>) -> Figure {
    let samples: Result<Vec<_>, _> = measurements.iter().map(read).collect();
    samples.map_or_else(Figure::NotAvailable, Figure::Samples)
}

fn none_completed() -> Figure {
    Figure::NotAvailable("no round was completed".to_owned())
}

fn or_none(text: Option<&String>) -> Figure {
    Figure::Words(text.map_or_else(|| "none".to_owned(), Clone::clone))
}

fn sharing(contents: &Contents, read: impl Fn(&Sharing) -> Figure) -> Figure {
    let layers = contents.sharing.as_ref();
    layers.map_or_else(|reason| Figure::NotAvailable(reason.clone()), read)
}

fn pull_seconds(image: &Image, bits_per_second: f64) -> Figure {
    match image.figure("pull") {
        Figure::Count(bytes) => Figure::Computed(number(bytes) * 8.0 / bits_per_second),
        other => other,
    }
}

/// `docker stop` kills a process that does not end within 10 s.
fn at_stop_signal(last: &Start) -> Figure {
    let code = last.exit_code;
    Figure::Words(if last.stop < 10.0 {
        format!("ends, exit code {code}")
    } else {
        format!("goes on, killed after 10 s, exit code {code}")
    })
}

fn fixed(loads: &Loads) -> Result<&Load, String> {
    loads
        .fixed
        .as_ref()
        .ok_or_else(|| "no common rate: an image had no response".to_owned())
}

#[cfg(test)]
mod tests {
    use super::{ROWS, row_of};
    use crate::results::example;

    #[test]
    fn keys_are_unique() {
        for (at, row) in ROWS.iter().enumerate() {
            let first = ROWS.iter().position(|other| other.key == row.key);
            assert_eq!(first, Some(at), "{}", row.key);
        }
    }

    #[test]
    fn six_figures_carry_the_argument() {
        assert_eq!(ROWS.iter().filter(|row| row.is_headline).count(), 6);
    }

    #[test]
    fn pull_times_are_computed() {
        let image = &example().images[0]; // 371,920,441 bytes
        let seconds = |key| row_of(key).unwrap().of(image).value().unwrap();
        assert!((seconds("pull-5-mbit") - 595.07).abs() < 0.01);
        assert!((seconds("pull-1-gbit") - 2.975).abs() < 0.001);
        let failed = row_of("pull-1-gbit").unwrap().of(&example().images[3]);
        assert_eq!(
            failed.value().is_some(),
            example().images[3].figure("pull").value().is_some()
        );
    }
}
