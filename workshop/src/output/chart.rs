//! Bar charts: lengths and marks on a linear and on a logarithmic scale.

use serde::Serialize;

use super::view::View;
use crate::{
    figures::{Row, rows},
    results::{Figure, Image},
    units::Unit,
};

/// Number of colors with their patterns. The ninth image has the first one again.
const INKS: usize = 8;
/// Bars shorter than this, in percent of the longest, are marked and labeled with their percentage.
const SMALL: f64 = 5.0;

#[derive(Serialize)]
pub struct Chart {
    pub key: &'static str,
    /// Starts with a capital letter.
    pub title: String,
    pub meaning: &'static str,
    pub bars: Vec<Bar>,
    pub linear: Vec<Mark>,
    pub log: Vec<Mark>,
}

/// Lengths and positions are in percent of the chart.
#[derive(Serialize)]
pub struct Bar {
    pub label: String,
    /// The image's name, if the label is another.
    pub name: Option<String>,
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

/// Returns a chart of each figure that carries the argument, and that at least one image has.
pub fn charts(view: &View) -> Vec<Chart> {
    let results = view.results;
    rows(results, false)
        .map(|row| chart(&results.images, row))
        .filter(|chart| chart.bars.iter().any(|bar| bar.reason.is_none()))
        .collect()
}

pub fn ink(index: usize) -> usize {
    index % INKS
}

fn chart(images: &[Image], row: &'static Row) -> Chart {
    let figures: Vec<_> = images.iter().map(|image| row.of(image)).collect();
    let extents: Vec<_> = figures.iter().filter_map(Figure::extent).collect();
    let longest = extents.iter().map(|extent| extent.1).fold(0.0, f64::max);
    let lowest = extents.iter().map(|extent| extent.0);
    let scale = Scale::new(longest, lowest.filter(|lowest| *lowest > 0.0));
    let bars = images.iter().zip(&figures).enumerate();
    let bars = bars.map(|(index, (image, figure))| Bar {
        label: image.marked_label(),
        name: image.name_below().map(str::to_owned),
        ink: ink(index),
        ..Bar::new(row, figure, &scale)
    });
    let mut title = row.title.to_owned();
    title[..1].make_ascii_uppercase();
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
    fn new(row: &Row, figure: &Figure, scale: &Scale) -> Self {
        let mut bar = Bar {
            label: String::new(),
            name: None,
            ink: 0,
            value: String::new(),
            detail: String::new(),
            reason: figure.reason().map(str::to_owned),
            linear: 0.0,
            log: 0.0,
            whisker: None,
            part: None,
        };
        if let (Some(value), Some((lowest, highest))) = (figure.value(), figure.extent()) {
            let written = row.write(figure);
            let (written, detail) = written.split_once(" (").unwrap_or((&written, ""));
            written.clone_into(&mut bar.value);
            if !detail.is_empty() {
                bar.detail = format!("({detail}");
            }
            bar.linear = scale.linear(value);
            bar.log = scale.log(value);
            bar.part = (value > 0.0 && bar.linear < SMALL).then(|| part(bar.linear));
            bar.whisker =
                matches!(figure, Figure::Samples(samples) if samples.len() > 1).then(|| Whisker {
                    linear: [lowest, highest].map(|end| scale.linear(end)),
                    log: [lowest, highest].map(|end| scale.log(end)),
                });
        }
        bar
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
    use super::{Scale, View, charts};
    use crate::{results::example, units::Unit};

    #[test]
    fn bars_are_to_scale() {
        let results = example();
        let charts = charts(&View::new(&results, None, false));
        let pull = &charts[0];
        assert_eq!((pull.key, pull.title.as_str()), ("pull", "Pulled size"));
        let lengths: Vec<_> = pull.bars.iter().map(|bar| bar.linear).collect();
        // 371,920,441; 29,120,331; 421,337 and 80,911,223 bytes.
        assert_eq!(lengths, [100.0, 7.8297, 0.1133, 21.7550]);
        assert_eq!(pull.bars[2].part.as_deref(), Some("0.11 %"));
        assert_eq!(pull.bars[0].part, None);
        // From 100 kB to 1 GB: of these four powers of ten, log10(421,337) - 5 = 0.6246.
        let marks: Vec<_> = pull.log.iter().map(|mark| mark.text.as_str()).collect();
        assert_eq!(marks, ["100 kB", "10 MB", "1 GB"]);
        assert!((pull.bars[2].log - 15.6157).abs() < 1e-9);
    }

    #[test]
    fn unavailable_figures_have_a_reason_and_no_bar() {
        let results = example();
        let charts = charts(&View::new(&results, None, false));
        let start = charts.iter().find(|chart| chart.key == "start").unwrap();
        let bar = &start.bars[3];
        assert_eq!((bar.linear, bar.log, bar.value.as_str()), (0.0, 0.0, ""));
        assert!(bar.reason.as_ref().unwrap().contains("the image failed"));
        assert!(start.bars[0].whisker.is_some());
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
