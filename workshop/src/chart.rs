//! Bar charts: lengths and marks on a linear and on a logarithmic scale.

use serde::Serialize;

use crate::{
    figures::{Range, Reading, Row, row_of},
    results::{Figure, Results},
    units::Unit,
};

/// Key of a figure, and the title of its chart.
type Titled = (&'static str, &'static str);

/// Charts of the page, in order.
pub const PAGE: [Titled; 8] = [
    PULL,
    UNPACKED,
    FILES,
    ("packages", "Packages"),
    MEMORY,
    STOP,
    START,
    PROCESS,
];
/// Charts of the slide, which has room for six.
pub const SLIDE: [Titled; 6] = [PULL, UNPACKED, FILES, MEMORY, START, STOP];
/// Charts of a slide with many images, whose charts are higher.
pub const CROWDED_SLIDE: [Titled; 4] = [UNPACKED, FILES, MEMORY, PROCESS];

const PULL: Titled = ("pull", "Pulled size");
const UNPACKED: Titled = ("unpacked", "Unpacked size");
const FILES: Titled = ("files", "Files");
const MEMORY: Titled = ("memory", "Idle memory");
const START: Titled = ("start", "Create to first response");
const PROCESS: Titled = ("process", "Process to first response");
const STOP: Titled = ("stop", "Time to stop");

/// Number of colors with their patterns. The ninth image has the first one again.
const INKS: usize = 8;
/// Bars shorter than this, in percent of the longest, are marked and labeled with their percentage.
const SMALL: f64 = 5.0;

#[derive(Serialize)]
pub struct Chart {
    pub key: &'static str,
    pub title: &'static str,
    pub meaning: &'static str,
    pub bars: Vec<Bar>,
    pub linear: Vec<Mark>,
    pub log: Vec<Mark>,
}

/// Lengths and positions are in percent of the chart.
#[derive(Serialize)]
pub struct Bar {
    pub label: String,
    pub ink: usize,
    /// Text beside the bar, and text in brackets after it.
    pub value: String,
    pub detail: String,
    /// Why the figure is not available.
    pub reason: Option<String>,
    pub linear: f64,
    pub log: f64,
    pub whisker: Option<Whisker>,
    /// Percentage of the longest bar, such as `0.08 %`, if this one is hard to see.
    pub part: Option<String>,
}

/// Line from the lowest to the highest value.
#[derive(Serialize)]
pub struct Whisker {
    pub linear: [f64; 2],
    pub log: [f64; 2],
}

#[derive(Debug, PartialEq, Serialize)]
pub struct Mark {
    pub at: f64,
    pub text: String,
}

/// Returns the charts of figures that at least one image has.
pub fn charts(results: &Results, titled: &[Titled]) -> Vec<Chart> {
    let rows = titled
        .iter()
        .filter_map(|(key, title)| Some((row_of(key)?, *title)));
    rows.map(|(row, title)| chart(results, row, title))
        .filter(|chart| chart.bars.iter().any(|bar| bar.reason.is_none()))
        .collect()
}

pub fn ink(index: usize) -> usize {
    index % INKS
}

fn chart(results: &Results, row: &'static Row, title: &'static str) -> Chart {
    let figures: Vec<_> = results.images.iter().map(row.of).collect();
    let extents: Vec<_> = figures
        .iter()
        .filter_map(|figure| figure.value().and_then(Reading::extent))
        .collect();
    let longest = extents.iter().map(|extent| extent.1).fold(0.0, f64::max);
    let scale = Scale::new(
        longest,
        extents
            .iter()
            .map(|extent| extent.0)
            .filter(|lowest| *lowest > 0.0),
    );
    let bars = results
        .images
        .iter()
        .zip(figures)
        .enumerate()
        .map(|(index, (image, figure))| {
            let label = image.marked_label();
            match figure {
                Figure::NotAvailable(reason) => Bar {
                    label,
                    ink: ink(index),
                    ..Bar::missing(reason)
                },
                Figure::Value(reading) => Bar {
                    label,
                    ink: ink(index),
                    ..Bar::new(row, &reading, &scale)
                },
            }
        });
    Chart {
        key: row.key,
        title,
        meaning: row.meaning,
        bars: bars.collect(),
        linear: scale.linear_marks(row.unit),
        log: scale.log_marks(row.unit),
    }
}

impl Bar {
    fn missing(reason: String) -> Self {
        Bar {
            label: String::new(),
            ink: 0,
            value: String::new(),
            detail: String::new(),
            reason: Some(reason),
            linear: 0.0,
            log: 0.0,
            whisker: None,
            part: None,
        }
    }

    fn new(row: &Row, reading: &Reading, scale: &Scale) -> Self {
        let value = reading.value().unwrap_or_default();
        let figure = row.write(reading);
        let (written, detail) = figure.split_once(" (").unwrap_or((&figure, ""));
        let linear = scale.linear(value);
        let whisker = match reading {
            Reading::Number {
                range: Range::Between(lowest, highest),
                ..
            } => Some(Whisker {
                linear: [*lowest, *highest].map(|end| scale.linear(end)),
                log: [*lowest, *highest].map(|end| scale.log(end)),
            }),
            _ => None,
        };
        Bar {
            label: String::new(),
            ink: 0,
            value: written.to_owned(),
            detail: if detail.is_empty() {
                String::new()
            } else {
                format!("({detail}")
            },
            reason: None,
            linear,
            log: scale.log(value),
            whisker,
            part: (value > 0.0 && linear < SMALL).then(|| part(linear)),
        }
    }
}

/// Formats a percentage with enough digits not to be zero.
fn part(percent: f64) -> String {
    match percent {
        p if p >= 0.995 => format!("{p:.1} %"),
        p if p >= 0.0095 => format!("{p:.2} %"),
        _ => "<0.01 %".to_owned(),
    }
}

/// Linear scale from zero to the longest bar, and logarithmic scale between two powers of ten.
struct Scale {
    longest: f64,
    /// Exponents of ten.
    low: f64,
    high: f64,
}

impl Scale {
    fn new(longest: f64, lowest: impl Iterator<Item = f64>) -> Self {
        let shortest = lowest.fold(longest, f64::min);
        // Below the shortest bar, so that it has a visible length.
        let low = (shortest / 1.5).log10().floor();
        let high = longest.log10().ceil().max(low + 1.0);
        if longest > 0.0 {
            Scale { longest, low, high }
        } else {
            Scale {
                longest: 1.0,
                low: 0.0,
                high: 1.0,
            }
        }
    }

    fn linear(&self, value: f64) -> f64 {
        rounded(value / self.longest * 100.0)
    }

    /// Zero has no place on a logarithmic scale, and so no bar.
    fn log(&self, value: f64) -> f64 {
        if value <= 0.0 {
            0.0
        } else {
            rounded((value.log10() - self.low) / (self.high - self.low) * 100.0).max(0.0)
        }
    }

    /// Returns two to four marks at round numbers.
    fn linear_marks(&self, unit: Unit) -> Vec<Mark> {
        let power = 10_f64.powf(self.longest.log10().floor());
        let step = [0.25, 0.5, 1.0, 2.5]
            .map(|part| part * power)
            .into_iter()
            .find(|step| self.longest / step < 4.0);
        let step = step.unwrap_or(power * 5.0);
        let mut marks = vec![Mark {
            at: 0.0,
            text: "0".to_owned(),
        }];
        let mut value = step;
        while value <= self.longest {
            marks.push(Mark {
                at: self.linear(value),
                text: unit.write_mark(value),
            });
            value += step;
        }
        marks
    }

    /// Returns marks at powers of ten, with enough space between them.
    fn log_marks(&self, unit: Unit) -> Vec<Mark> {
        let every = ((self.high - self.low) / 3.0).ceil();
        let mut marks = Vec::new();
        let mut exponent = self.low;
        while exponent <= self.high {
            let value = 10_f64.powf(exponent);
            marks.push(Mark {
                at: self.log(value),
                text: unit.write_mark(value),
            });
            exponent += every;
        }
        marks
    }
}

/// Rounds to a ten-thousandth of a percent, which keeps the file readable.
fn rounded(percent: f64) -> f64 {
    (percent * 1e4).round() / 1e4
}

#[cfg(test)]
mod tests {
    use super::{PAGE, SLIDE, START, Scale, charts};
    use crate::{figures::row_of, results::example, units::Unit};

    #[test]
    fn bars_are_to_scale() {
        let charts = charts(&example(), &PAGE);
        let pull = &charts[0];
        assert_eq!(pull.key, "pull");
        let lengths: Vec<_> = pull.bars.iter().map(|bar| bar.linear).collect();
        // 371,920,441; 29,120,331; 421,337 and 80,911,223 bytes.
        assert_eq!(lengths, [100.0, 7.8297, 0.1133, 21.7550]);
        assert_eq!(pull.bars[2].part.as_deref(), Some("0.11 %"));
        assert_eq!(pull.bars[0].part, None);
        // From 100 kB to 1 GB: of these four powers of ten, log10(421,337) - 5 = 0.6246.
        assert_eq!(
            pull.log
                .iter()
                .map(|mark| mark.text.as_str())
                .collect::<Vec<_>>(),
            ["100 kB", "10 MB", "1 GB"]
        );
        assert!((pull.bars[2].log - 15.6157).abs() < 1e-9);
    }

    #[test]
    fn unavailable_figures_have_a_reason_and_no_bar() {
        let charts = charts(&example(), &[START]);
        let bar = &charts[0].bars[3];
        assert_eq!((bar.linear, bar.log, bar.value.as_str()), (0.0, 0.0, ""));
        assert!(bar.reason.as_ref().unwrap().contains("within 30 s"));
        assert!(charts[0].bars[0].whisker.is_some());
    }

    #[test]
    fn every_chart_shows_a_known_figure() {
        assert!(
            PAGE.iter()
                .chain(&SLIDE)
                .all(|(key, _)| row_of(key).is_some())
        );
    }

    #[test]
    fn marks_are_at_round_numbers() {
        let texts = |longest: f64, unit| {
            let scale = Scale::new(longest, std::iter::once(longest / 3.0));
            scale
                .linear_marks(unit)
                .into_iter()
                .map(|mark| mark.text)
                .collect::<Vec<_>>()
        };
        assert_eq!(
            texts(997.5e6, Unit::Bytes),
            ["0", "250 MB", "500 MB", "750 MB"]
        );
        assert_eq!(texts(1.4, Unit::Seconds), ["0", "0.500 s", "1 s"]);
        assert_eq!(texts(1000.0, Unit::Count), ["0", "500", "1,000"]);
        // No division by zero.
        assert_eq!(texts(0.0, Unit::Count)[0], "0");
    }
}
