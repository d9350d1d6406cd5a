//! The list of all figures: name, meaning, unit, and place in the results. Every output uses it.

use crate::{
    results::{Figure, Image, InUse, Packages, Results, Spread},
    units::{Unit, number},
};

/// A row of the table.
pub struct Row {
    /// Name in `--fail-over` and in data formats.
    pub key: &'static str,
    pub group: &'static str,
    pub title: &'static str,
    /// What is measured, in a few words.
    pub meaning: &'static str,
    pub unit: Unit,
    /// Whether lower or higher values are better.
    pub better: Better,
    pub of: fn(&Image) -> Figure<Reading>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Better {
    Lower,
    Higher,
    Neither,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Reading {
    Number {
        value: f64,
        range: Range,
        /// The parts of the number, in words.
        detail: Option<String>,
    },
    Words(String),
}

/// The uncertainty of a number.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Range {
    /// Counted: always the same for the same image.
    None,
    /// Measured once.
    Unknown,
    /// Lowest and highest of several measurements. The number is their median.
    Between(f64, f64),
}

/// Assumed uncertainty of a figure that was measured once. The ranges of two figures touch if one
/// is twice the other.
///
/// `compare` of the same image twice on two shared cores differed by up to 9 % in memory, 22 % in
/// throughput and CPU, and 75 % in the 99 % latency.
const CHANCE: f64 = 1.0 / 3.0;

/// Returns the note about figures that were measured once.
pub fn once(results: &Results) -> String {
    let which = match results.settings.runs {
        1 => "All figures but sizes and contents",
        _ if results.has_load() => "Memory and load",
        _ => "Memory",
    };
    format!("{which}: measured once, so differences below a factor of two may be chance.")
}

const SIZE: &str = "Size";
const CONTENTS: &str = "Contents";
const START: &str = "Start";
const STOP: &str = "Stop";
const MEMORY: &str = "Memory";
const LOAD: &str = "Load";

const fn row(
    key: &'static str,
    (group, title, meaning): (&'static str, &'static str, &'static str),
    (unit, better): (Unit, Better),
    of: fn(&Image) -> Figure<Reading>,
) -> Row {
    Row {
        key,
        group,
        title,
        meaning,
        unit,
        better,
        of,
    }
}

const BYTES: (Unit, Better) = (Unit::Bytes, Better::Lower);
const SECONDS: (Unit, Better) = (Unit::Seconds, Better::Lower);
const COUNT: (Unit, Better) = (Unit::Count, Better::Lower);
const FACT: (Unit, Better) = (Unit::Count, Better::Neither);
const WORDS: (Unit, Better) = (Unit::Words, Better::Neither);

/// All figures, in the order of the table.
pub const ROWS: &[Row] = &[
    row(
        "size",
        (SIZE, "in the engine", "as docker images shows it"),
        BYTES,
        |i| of_count(&i.size.engine_bytes),
    ),
    row(
        "unpacked",
        (SIZE, "unpacked", "files that a container sees"),
        BYTES,
        |i| of_count(&i.size.unpacked_bytes),
    ),
    row(
        "pull",
        (
            SIZE,
            "pulled",
            "compressed layers, as a pull transfers them",
        ),
        BYTES,
        |i| of_count(&i.size.compressed_bytes),
    ),
    row("layers", (SIZE, "layers", "of the image"), FACT, |i| {
        of_count(&i.size.layers)
    }),
    row(
        "files",
        (CONTENTS, "files", "that a container sees"),
        COUNT,
        |i| of_count(&i.size.files),
    ),
    row(
        "executables",
        (CONTENTS, "executables", "files with an execute permission"),
        COUNT,
        |i| of_count(&i.size.executables),
    ),
    row(
        "packages",
        (CONTENTS, "packages", "that scanners can find"),
        COUNT,
        |i| packages(&i.size.packages),
    ),
    row(
        "shell",
        (CONTENTS, "shell", "that an intruder could use"),
        WORDS,
        |i| or_none(&i.size.shell),
    ),
    row(
        "package-managers",
        (
            CONTENTS,
            "package managers",
            "programs that install packages",
        ),
        COUNT,
        |i| names(&i.size.package_managers),
    ),
    row(
        "setuid",
        (
            CONTENTS,
            "setuid files",
            "that run with the rights of their owner or group",
        ),
        COUNT,
        |i| {
            i.size
                .setuid
                .map(|paths| Reading::number(number(paths.len() as u64)))
        },
    ),
    row(
        "user",
        (CONTENTS, "user", "that runs the process"),
        WORDS,
        |i| i.size.user.map(|user| words(user)),
    ),
    row(
        "base",
        (CONTENTS, "distribution", "PRETTY_NAME in os-release"),
        WORDS,
        |i| or_none(&i.size.base),
    ),
    row(
        "start",
        (
            START,
            "create to first response",
            "from the create call, with status 200",
        ),
        SECONDS,
        |i| spread(&i.start.create_to_response),
    ),
    row(
        "process",
        (
            START,
            "process to first response",
            "from the start of the process, with status 200",
        ),
        SECONDS,
        |i| spread(&i.start.process_to_response),
    ),
    row(
        "stop",
        (STOP, "time to stop", "duration of docker stop"),
        SECONDS,
        |i| spread(&i.stop.seconds),
    ),
    row(
        "exit-code",
        (STOP, "exit code", "after the last stop"),
        (Unit::Code, Better::Lower),
        |i| {
            // An exit code has 8 bits.
            i.stop
                .exit_code
                .map(|code| Reading::number(i32::try_from(*code).map_or(f64::MAX, f64::from)))
        },
    ),
    row(
        "memory",
        (
            MEMORY,
            "idle",
            "of all processes, with the page cache that they map",
        ),
        BYTES,
        |i| in_use(&i.memory.idle),
    ),
    row(
        "memory-anonymous",
        (
            MEMORY,
            "idle, anonymous",
            "without page cache, which can be read again",
        ),
        BYTES,
        |i| anonymous(&i.memory.idle),
    ),
    row(
        "loaded",
        (
            MEMORY,
            "after the load",
            "the same, immediately after the load",
        ),
        BYTES,
        |i| in_use(&i.memory.loaded),
    ),
    row(
        "loaded-anonymous",
        (
            MEMORY,
            "after, anonymous",
            "without page cache, which can be read again",
        ),
        BYTES,
        |i| anonymous(&i.memory.loaded),
    ),
    row(
        "rate",
        (LOAD, "throughput", "responses with status 200, closed loop"),
        (Unit::PerSecond, Better::Higher),
        |i| measured(&i.work.requests_per_second),
    ),
    row(
        "p50",
        (LOAD, "latency, median", "half of the responses took longer"),
        SECONDS,
        |i| measured(&i.work.p50_seconds),
    ),
    row(
        "p99",
        (LOAD, "latency, 99 %", "1 response in 100 took longer"),
        SECONDS,
        |i| measured(&i.work.p99_seconds),
    ),
    row(
        "cpu",
        (LOAD, "CPU per request", "CPU time of the container"),
        SECONDS,
        |i| measured(&i.work.cpu_seconds_per_request),
    ),
    row(
        "requests",
        (LOAD, "requests", "sent by the load generator"),
        FACT,
        |i| {
            i.work
                .requests
                .map(|count| Reading::measured_once(number(*count)))
        },
    ),
    row(
        "errors",
        (
            LOAD,
            "errors",
            "requests without a response with status 200",
        ),
        COUNT,
        |i| of_count(&i.work.errors),
    ),
    row(
        "generator",
        (LOAD, "load generator CPUs", "that it used"),
        (Unit::Cpus, Better::Neither),
        |i| measured(&i.work.generator_cpus),
    ),
];

/// Returns the rows of a comparison: without those about the load if there was none.
pub fn rows(results: &Results) -> impl Iterator<Item = &'static Row> {
    let needs_load = |row: &Row| row.group == LOAD || row.key.starts_with("loaded");
    let has_load = results.has_load();
    ROWS.iter().filter(move |row| has_load || !needs_load(row))
}

/// Finds a row by its key.
pub fn row_of(key: &str) -> Option<&'static Row> {
    ROWS.iter().find(|row| row.key == key)
}

impl Row {
    /// Formats a figure: `0.352 s (0.331 – 0.410)`, `88 (dpkg 88)`, `/bin/sh`.
    pub fn write(&self, reading: &Reading) -> String {
        match reading {
            Reading::Number {
                value,
                range: Range::Between(lowest, highest),
                ..
            } => self.unit.write_range(*value, (*lowest, *highest)),
            Reading::Number {
                value,
                detail: Some(detail),
                ..
            } => {
                format!("{} ({detail})", self.unit.write(*value))
            }
            Reading::Number { value, .. } => self.unit.write(*value),
            Reading::Words(words) => words.clone(),
        }
    }

    /// Returns whether each image has the best figure. Several have it if their ranges overlap, and
    /// none has it if all are equal.
    pub fn best(&self, images: &[Image]) -> Vec<bool> {
        let ranges: Vec<_> = images
            .iter()
            .map(|image| (self.of)(image).value().and_then(Reading::plausible))
            .collect();
        let ends = ranges.iter().flatten();
        // The other end of the best range. Ranges that reach it are as good.
        let reach = match self.better {
            Better::Neither => None,
            Better::Lower => ends.min_by(|a, b| a.0.total_cmp(&b.0)).map(|best| best.1),
            Better::Higher => ends.max_by(|a, b| a.1.total_cmp(&b.1)).map(|best| best.0),
        };
        let best: Vec<_> = ranges
            .iter()
            .map(|range| match (range, reach, self.better) {
                (Some(range), Some(reach), Better::Lower) => range.0 <= reach,
                (Some(range), Some(reach), _) => range.1 >= reach,
                _ => false,
            })
            .collect();
        let distinct = ranges
            .iter()
            .zip(&best)
            .any(|(range, best)| range.is_some() && !best);
        if distinct {
            best
        } else {
            vec![false; images.len()]
        }
    }
}

impl Reading {
    pub fn number(value: f64) -> Self {
        Reading::Number {
            value,
            range: Range::None,
            detail: None,
        }
    }

    fn measured_once(value: f64) -> Self {
        Reading::Number {
            value,
            range: Range::Unknown,
            detail: None,
        }
    }

    pub fn value(&self) -> Option<f64> {
        match self {
            Reading::Number { value, .. } => Some(*value),
            Reading::Words(_) => None,
        }
    }

    /// Returns the lowest and the highest measured value.
    pub fn extent(&self) -> Option<(f64, f64)> {
        match *self {
            Reading::Number {
                range: Range::Between(lowest, highest),
                ..
            } => Some((lowest, highest)),
            Reading::Number { value, .. } => Some((value, value)),
            Reading::Words(_) => None,
        }
    }

    /// Returns the lowest and the highest value that another measurement could have.
    pub fn plausible(&self) -> Option<(f64, f64)> {
        match *self {
            Reading::Number {
                value,
                range: Range::Unknown,
                ..
            } => Some((value * (1.0 - CHANCE), value * (1.0 + CHANCE))),
            _ => self.extent(),
        }
    }
}

fn words(text: impl Into<String>) -> Reading {
    Reading::Words(text.into())
}

fn of_count(figure: &Figure<u64>) -> Figure<Reading> {
    figure.map(|count| Reading::number(number(*count)))
}

fn measured(figure: &Figure<f64>) -> Figure<Reading> {
    figure.map(|value| Reading::measured_once(*value))
}

fn or_none(figure: &Figure<Option<String>>) -> Figure<Reading> {
    figure.map(|text| words(text.as_deref().unwrap_or("none")))
}

fn names(figure: &Figure<Vec<String>>) -> Figure<Reading> {
    figure.map(|names| with_detail(number(names.len() as u64), &names.join(", ")))
}

fn packages(figure: &Figure<Vec<Packages>>) -> Figure<Reading> {
    figure.map(|packages| {
        let kinds: Vec<_> = packages
            .iter()
            .map(|kind| format!("{} {}", kind.kind, kind.count))
            .collect();
        with_detail(
            packages.iter().map(|kind| number(kind.count)).sum(),
            &kinds.join(", "),
        )
    })
}

fn with_detail(value: f64, detail: &str) -> Reading {
    Reading::Number {
        value,
        range: Range::None,
        detail: (!detail.is_empty()).then(|| detail.to_owned()),
    }
}

/// A results file can contain an empty spread.
fn spread(figure: &Figure<Spread>) -> Figure<Reading> {
    match figure {
        Figure::Value(spread) if spread.samples.is_empty() => {
            Figure::NotAvailable("no run was completed".to_owned())
        }
        Figure::Value(spread) => Figure::Value(Reading::Number {
            value: spread.median(),
            range: match spread.samples.len() {
                1 => Range::Unknown,
                _ => Range::Between(spread.lowest(), spread.highest()),
            },
            detail: None,
        }),
        Figure::NotAvailable(reason) => Figure::NotAvailable(reason.clone()),
    }
}

fn in_use(figure: &Figure<InUse>) -> Figure<Reading> {
    figure.map(|memory| {
        Reading::measured_once(number(memory.anonymous_bytes) + number(memory.file_bytes))
    })
}

fn anonymous(figure: &Figure<InUse>) -> Figure<Reading> {
    figure.map(|memory| Reading::measured_once(number(memory.anonymous_bytes)))
}

#[cfg(test)]
mod tests {
    use super::{ROWS, row_of};
    use crate::results::{Figure, Spread, example};

    #[test]
    fn overlapping_ranges_share_the_best_place() {
        let best = |key| row_of(key).unwrap().best(&example().images);
        assert_eq!(best("pull"), [false, false, true, false]);
        assert_eq!(best("start"), [false, true, true, false]);
        // Measured once: 48,210/s and 44,120/s may be chance, but 1.1 MB and 2.9 MB are not.
        assert_eq!(best("rate"), [false, true, true, false]);
        assert_eq!(best("memory"), [false, false, true, false]);
        assert_eq!(best("shell"), [false; 4]);
        // All equal.
        assert_eq!(best("errors"), [false; 4]);
    }

    #[test]
    fn keys_are_unique() {
        assert!(
            ROWS.iter()
                .enumerate()
                .all(|(at, row)| ROWS.iter().position(|other| other.key == row.key) == Some(at))
        );
    }

    #[test]
    fn an_empty_spread_is_not_available() {
        let mut image = example().images.remove(0);
        image.stop.seconds = Figure::Value(Spread {
            samples: Vec::new(),
        });
        assert!((row_of("stop").unwrap().of)(&image).value().is_none());
    }
}
