//! The catalogue of figures: what each is called, what it counts and where in an image's results it stands. Every output
//! walks this one list.

use crate::{
    results::{Figure, Image, InUse, Packages, Spread},
    units::{Unit, number},
};

/// One line of the table.
pub struct Row {
    /// As `--fail-over` and the data formats name it.
    pub key: &'static str,
    pub group: &'static str,
    pub title: &'static str,
    /// How it was measured, in a sentence's length.
    pub meaning: &'static str,
    pub unit: Unit,
    /// Which end an audience would want.
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
        /// What the number is made of.
        detail: Option<String>,
    },
    Words(String),
}

/// What the number could have come out as instead.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Range {
    /// Counted: the same image has the same again.
    None,
    /// Measured once.
    Unknown,
    /// The lowest and the highest of several; the number is their median.
    Between(f64, f64),
}

/// Of a figure that was measured once: which part of it may be chance, so that two of them touch where one is twice the
/// other. `compare` of the same image twice, on two shared cores: up to 9 % in memory, 22 % in requests and CPU, 75 % in the
/// 99 % latency.
const CHANCE: f64 = 1.0 / 3.0;

/// For below a table.
pub fn once(runs: u32) -> String {
    let which = if runs == 1 {
        "All but sizes and contents"
    } else {
        "Memory and work"
    };
    format!(
        "{which}: measured once, so where one is less than twice the other, that may be chance."
    )
}

const SIZE: &str = "Size";
const INSIDE: &str = "What is inside";
const START: &str = "Start";
const STOP: &str = "Stop";
const MEMORY: &str = "Memory";
const WORK: &str = "Work";

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

/// In the order in which they are shown.
pub const ROWS: &[Row] = &[
    row(
        "size",
        (SIZE, "on the engine", "what docker images says"),
        BYTES,
        |i| of_count(&i.size.engine_bytes),
    ),
    row(
        "unpacked",
        (SIZE, "unpacked", "of the files that a container sees"),
        BYTES,
        |i| of_count(&i.size.unpacked_bytes),
    ),
    row(
        "pull",
        (
            SIZE,
            "pulled",
            "of the layers, gzipped, as a pull moves them",
        ),
        BYTES,
        |i| of_count(&i.size.compressed_bytes),
    ),
    row(
        "layers",
        (SIZE, "layers", "that the image is made of"),
        FACT,
        |i| of_count(&i.size.layers),
    ),
    row(
        "files",
        (INSIDE, "files", "that a container sees"),
        COUNT,
        |i| of_count(&i.size.files),
    ),
    row(
        "executables",
        (INSIDE, "executables", "files that may be run"),
        COUNT,
        |i| of_count(&i.size.executables),
    ),
    row(
        "packages",
        (INSIDE, "packages", "that a scanner could see"),
        COUNT,
        |i| packages(&i.size.packages),
    ),
    row(
        "shell",
        (INSIDE, "shell", "what an intruder could type into"),
        WORDS,
        |i| or_none(&i.size.shell),
    ),
    row(
        "package-managers",
        (INSIDE, "package managers", "by name"),
        COUNT,
        |i| names(&i.size.package_managers),
    ),
    row(
        "setuid",
        (
            INSIDE,
            "setuid files",
            "that run with their owner's or group's rights",
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
        (INSIDE, "user", "that the image runs as"),
        WORDS,
        |i| i.size.user.map(|user| words(user)),
    ),
    row(
        "base",
        (INSIDE, "base", "as its os-release names itself"),
        WORDS,
        |i| or_none(&i.size.base),
    ),
    row(
        "start",
        (
            START,
            "create to answer",
            "from the create call to the first answer with 200",
        ),
        SECONDS,
        |i| spread(&i.start.create_to_answer),
    ),
    row(
        "process",
        (
            START,
            "process to answer",
            "from its first moment to the same answer",
        ),
        SECONDS,
        |i| spread(&i.start.process_to_answer),
    ),
    row(
        "stop",
        (STOP, "time to stop", "what docker stop takes"),
        SECONDS,
        |i| spread(&i.stop.seconds),
    ),
    row(
        "exit-code",
        (STOP, "exit code", "of the last stop"),
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
            "of all its processes; page cache where one maps it",
        ),
        BYTES,
        |i| in_use(&i.memory.idle),
    ),
    row(
        "memory-anonymous",
        (
            MEMORY,
            "idle, anonymous",
            "the part that no file could be read again for",
        ),
        BYTES,
        |i| anonymous(&i.memory.idle),
    ),
    row(
        "loaded",
        (MEMORY, "after the load", "the same, right after the load"),
        BYTES,
        |i| in_use(&i.memory.loaded),
    ),
    row(
        "loaded-anonymous",
        (
            MEMORY,
            "after, anonymous",
            "the part that no file could be read again for",
        ),
        BYTES,
        |i| anonymous(&i.memory.loaded),
    ),
    row(
        "rate",
        (
            WORK,
            "requests",
            "answered 200 in a second, by a closed loop",
        ),
        (Unit::PerSecond, Better::Higher),
        |i| measured(&i.work.requests_per_second),
    ),
    row(
        "p50",
        (WORK, "latency, median", "half of the answers took longer"),
        SECONDS,
        |i| measured(&i.work.p50_seconds),
    ),
    row(
        "p99",
        (WORK, "latency, 99 %", "1 answer in 100 took longer"),
        SECONDS,
        |i| measured(&i.work.p99_seconds),
    ),
    row(
        "cpu",
        (WORK, "CPU per request", "processor time of the container"),
        SECONDS,
        |i| measured(&i.work.cpu_seconds_per_request),
    ),
    row(
        "asked",
        (WORK, "requests asked", "by the load generator"),
        FACT,
        |i| {
            i.work
                .requests
                .map(|count| Reading::measured_once(number(*count)))
        },
    ),
    row(
        "errors",
        (WORK, "errors", "requests without an answer, or not 200"),
        COUNT,
        |i| of_count(&i.work.errors),
    ),
    row(
        "generator",
        (
            WORK,
            "generator's CPUs",
            "processors that the load generator itself kept busy",
        ),
        (Unit::Cpus, Better::Neither),
        |i| measured(&i.work.generator_cpus),
    ),
];

/// The row of that key.
pub fn row_of(key: &str) -> Option<&'static Row> {
    ROWS.iter().find(|row| row.key == key)
}

impl Row {
    /// A figure as text: `0.352 s (0.331 – 0.410)`, `88 (dpkg 88)`, `/bin/sh`.
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

    /// Which of the images have the best figure: none where there is nothing to choose, several where their ranges overlap.
    pub fn best(&self, images: &[Image]) -> Vec<bool> {
        let ranges: Vec<_> = images
            .iter()
            .map(|image| (self.of)(image).value().and_then(Reading::plausible))
            .collect();
        let ends = ranges.iter().flatten();
        // The best one's other end: whoever reaches it is not worse.
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

    /// From the lowest to the highest that was measured.
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

    /// From the lowest to the highest that it may come out as another time.
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

/// A file may hold a spread of nothing; that is no figure.
fn spread(figure: &Figure<Spread>) -> Figure<Reading> {
    match figure {
        Figure::Value(spread) if spread.samples.is_empty() => {
            Figure::NotAvailable("no run was measured".to_owned())
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
    fn the_best_share_their_place_where_ranges_overlap() {
        let best = |key| row_of(key).unwrap().best(&example().images);
        assert_eq!(best("pull"), [false, false, true, false]);
        assert_eq!(best("start"), [false, true, true, false]);
        // Measured once: 48,210 and 44,120 a second may be chance, 1.1 MB and 2.9 MB are not.
        assert_eq!(best("rate"), [false, true, true, false]);
        assert_eq!(best("memory"), [false, false, true, false]);
        assert_eq!(best("shell"), [false; 4]);
        // All the same: nothing to choose.
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
    fn a_spread_of_nothing_is_no_figure() {
        let mut image = example().images.remove(0);
        image.stop.seconds = Figure::Value(Spread {
            samples: Vec::new(),
        });
        assert!((row_of("stop").unwrap().of)(&image).value().is_none());
    }
}
