//! What all outputs show of a comparison: rows, cells, notes, and changes since a baseline.

use std::collections::BTreeSet;

use serde::Serialize;

use crate::{
    differences::{Differences, ENOUGH, differing},
    figures::{Better, Row, rows},
    results::{DATE, Figure, Image, Results},
    statistics::LEVEL,
};

pub struct View<'a> {
    pub results: &'a Results,
    baseline: Option<&'a Results>,
    /// Whether all figures are shown, and not only those that carry the argument.
    pub all: bool,
    pub differences: Differences,
    /// For each image, the same one in the baseline, and the figures that have changed.
    before: Vec<Option<Before<'a>>>,
}

type Before<'a> = (&'a Image, BTreeSet<&'static str>);

/// A figure of an image, for a reader.
#[derive(Serialize)]
pub struct Cell {
    /// With no-break spaces inside a number with its unit, and inside a range.
    pub text: String,
    /// Why the figure is not available.
    pub reason: Option<String>,
    /// The change since the baseline, with no-break spaces.
    pub change: Option<String>,
    pub is_best: bool,
}

impl<'a> View<'a> {
    pub fn new(results: &'a Results, baseline: Option<&'a Results>, all: bool) -> Self {
        let before = |image: &Image| {
            let before = same_image(baseline?, image)?;
            let mut changed = differing(image, before);
            if baseline?.settings.fixed_rate != results.settings.fixed_rate {
                changed.retain(|key| !key.starts_with("fixed-"));
            }
            Some((before, changed))
        };
        View {
            results,
            baseline,
            all,
            differences: Differences::among(&results.images),
            before: results.images.iter().map(before).collect(),
        }
    }

    pub fn title(&self) -> String {
        match self.results.images.len() {
            1 => "1 image".to_owned(),
            count => format!("{count} images, side by side"),
        }
    }

    pub fn rows(&self) -> impl Iterator<Item = &'static Row> {
        rows(self.results, self.all)
    }

    /// Returns the figures of all images.
    pub fn cells(&self, row: &Row) -> Vec<Cell> {
        let best = self.differences.best(row, &self.results.images);
        let images = self.results.images.iter().zip(&self.before).zip(best);
        let cell = |((image, before), is_best): ((&Image, &Option<Before>), bool)| {
            let figure = row.of(image);
            let change = before
                .as_ref()
                .and_then(|(before, changed)| change(row, image, before, changed));
            let written = row.write(&figure);
            Cell {
                text: match figure {
                    Figure::Words(_) => written,
                    _ => unbreakable(&written),
                },
                reason: figure.reason().map(str::to_owned),
                change: change.map(|change| change.replace(' ', "\u{a0}")),
                is_best,
            }
        };
        images.map(cell).collect()
    }

    /// Returns a message for each figure that is worse than in the baseline by more than chance.
    pub fn regressions(&self) -> Vec<String> {
        let mut regressions = Vec::new();
        for (image, before) in self.results.images.iter().zip(&self.before) {
            let Some((before, changed)) = before else {
                continue;
            };
            for row in rows(self.results, true).filter(|row| changed.contains(row.key)) {
                let (now, then) = (row.of(image), row.of(before));
                let is_worse = match row.better {
                    Better::Lower => now.value() > then.value(),
                    Better::Higher => now.value() < then.value(),
                    Better::Neither => false,
                };
                if is_worse {
                    regressions.push(format!(
                        "{}: {} is worse than in the baseline: {}, before {}",
                        image.label,
                        row.key,
                        row.write(&now),
                        row.write(&then)
                    ));
                }
            }
        }
        regressions
    }

    /// Returns the sentences that explain the figures.
    pub fn legend(&self) -> Vec<String> {
        let mut lines = Vec::new();
        if self.results.images.len() > 1 {
            lines.push(
                "★ marks the best figure, or several if their differences may be chance."
                    .to_owned(),
            );
        }
        let settings = &self.results.settings;
        if settings.rounds.max(settings.load_rounds) > 1 {
            lines.push(format!(
                "Medians of {}, with the lowest and the highest value in brackets.",
                settings.describe_rounds()
            ));
        }
        lines.push(self.chance());
        if let Some(baseline) = self.baseline {
            lines.push(format!(
                "After the comma: the change since the baseline of {}. ≈ means that the change may be chance.",
                baseline.begun.strftime(DATE)
            ));
        }
        lines.extend(self.results.stand_in_legend());
        lines
    }

    /// Returns the sentence about differences that may be chance.
    fn chance(&self) -> String {
        let settings = &self.results.settings;
        if (settings.rounds.max(settings.load_rounds) as usize) < ENOUGH {
            return format!(
                "With fewer than {ENOUGH} rounds, any difference in time, memory or load may be chance."
            );
        }
        let few = if (settings.rounds as usize) < ENOUGH {
            format!(
                "With fewer than {ENOUGH} rounds without load, a difference in start, stop or idle memory may be chance. "
            )
        } else {
            String::new()
        };
        format!(
            "{few}A Mann–Whitney U test with Holm's correction over the figures decides whether a difference is more than \
             chance. It is wrong for at most {:.0} in 100 pairs of images.",
            LEVEL * 100.0
        )
    }

    /// Returns each note once, with the labels of the images that have it.
    pub fn notes(&self) -> Vec<(String, Vec<&str>)> {
        let mut notes: Vec<(String, Vec<&str>)> = Vec::new();
        for image in &self.results.images {
            for note in image.all_notes() {
                match notes.iter_mut().find(|(known, _)| *known == note) {
                    Some((_, labels)) => labels.push(&image.label),
                    None => notes.push((note, vec![&image.label])),
                }
            }
        }
        notes
    }
}

/// Finds the same image in an earlier file, by name or else by label.
fn same_image<'a>(baseline: &'a Results, image: &Image) -> Option<&'a Image> {
    let find = |is_same: &dyn Fn(&Image) -> bool| baseline.images.iter().find(|i| is_same(i));
    find(&|other| other.name == image.name && other.label == image.label)
        .or_else(|| find(&|other| other.name == image.name))
        .or_else(|| find(&|other| other.label == image.label))
}

/// Returns a change such as `+0.1 %`, or `≈` if it may be chance. `None` if one of the two is not a
/// number.
fn change(
    row: &Row,
    image: &Image,
    before: &Image,
    changed: &BTreeSet<&'static str>,
) -> Option<String> {
    let (new, old) = (row.of(image).value()?, row.of(before).value()?);
    Some(if new.total_cmp(&old).is_eq() {
        "±0".to_owned()
    } else if row.is_comparable() && !changed.contains(row.key) {
        "≈".to_owned()
    } else if old == 0.0 {
        format!("was {}", row.unit.write(old))
    } else {
        match (new - old) / old * 100.0 {
            // Would be rounded to +0.0 %.
            percent if percent.abs() < 0.05 => {
                let sign = if new < old { '-' } else { '+' };
                format!("{sign}{}", row.unit.write((new - old).abs()))
            }
            percent if percent.abs() >= 100.0 => format!("{percent:+.0} %"),
            percent => format!("{percent:+.1} %"),
        }
    })
}

/// Prevents line breaks inside a number with its unit, and inside a range in brackets.
fn unbreakable(figure: &str) -> String {
    match figure.split_once(" (") {
        Some((value, range)) if range.contains('–') => {
            format!(
                "{} ({}",
                value.replace(' ', "\u{a0}"),
                range.replace(' ', "\u{a0}")
            )
        }
        None if figure.starts_with(|c: char| c.is_ascii_digit()) => figure.replace(' ', "\u{a0}"),
        _ => figure.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::View;
    use crate::{
        figures::row_of,
        results::{Figure, Results, example},
    };

    fn with(key: &str, figure: Figure) -> Results {
        let mut results = example();
        results.images.truncate(1);
        results.images[0].figures.insert(key.to_owned(), figure);
        results
    }

    fn change(key: &str, old: Figure, new: Figure) -> Option<String> {
        let (before, now) = (with(key, old), with(key, new));
        let cell = View::new(&now, Some(&before), true).cells(row_of(key).unwrap());
        cell[0]
            .change
            .as_ref()
            .map(|change| change.replace('\u{a0}', " "))
    }

    #[test]
    fn a_change_that_may_be_chance_has_no_number() {
        let samples =
            |first: f64| Figure::Samples((0..10).map(|n| first + f64::from(n) / 100.0).collect());
        let change = |old, new| change("start", samples(old), samples(new)).unwrap();
        assert_eq!(change(0.4, 0.41), "≈");
        assert_eq!(change(0.4, 0.5), "+22.5 %");
        assert_eq!(change(0.5, 0.4), "-18.3 %");
        assert_eq!(change(0.4, 0.4), "±0");
    }

    #[test]
    fn a_change_of_one_byte_is_shown() {
        let change_of = |old, new| change("size", Figure::Count(old), Figure::Count(new)).unwrap();
        assert_eq!(change_of(882_184, 883_066), "+0.1 %");
        assert_eq!(change_of(882_184, 882_185), "+1 B");
        assert_eq!(change_of(882_184, 882_183), "-1 B");
        assert_eq!(change_of(882_184, 882_184), "±0");
        assert_eq!(change_of(0, 12), "was 0 B");
        let unknown = Figure::NotAvailable("unknown".to_owned());
        assert_eq!(change("size", unknown, Figure::Count(1)), None);
    }

    #[test]
    fn what_is_worse_is_a_regression() {
        let (before, now) = (
            with("files", Figure::Count(1)),
            with("files", Figure::Count(3)),
        );
        let regressions = |now, before| View::new(now, Some(before), false).regressions();
        assert_eq!(
            regressions(&now, &before),
            [format!(
                "{}: files is worse than in the baseline: 3, before 1",
                now.images[0].label
            )]
        );
        assert_eq!(regressions(&before, &now), [""; 0]);
    }
}
