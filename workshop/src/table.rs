//! The table in the terminal, and the same figures as Markdown and CSV.

use std::{env, fmt::Write as _, io, io::IsTerminal as _};

use anyhow::Result;
use comfy_table::{
    Attribute, Cell, CellAlignment, Color, ColumnConstraint, ContentArrangement, Table, Width,
    presets,
};
use console::Term;

use crate::{
    baseline,
    figures::{Range, Reading, Row, once, rows},
    progress::width,
    results::{Figure, Image, Results},
};

/// Minimum width of an image's column. If the terminal is too narrow, images are divided into
/// several tables.
const NARROWEST: u16 = 16;
/// Width of the column of names.
const NAMES: u16 = 26;

/// Properties of the terminal.
#[derive(Clone, Copy)]
pub struct Look {
    /// `None`: unlimited.
    pub width: Option<u16>,
    pub has_colors: bool,
}

impl Look {
    /// Uses colors on a terminal, unless `NO_COLOR` (<https://no-color.org>) or `TERM=dumb` is set.
    pub fn of_stdout() -> Self {
        let set = |name| env::var_os(name).filter(|value| !value.is_empty());
        Look {
            width: width(&Term::stdout()),
            has_colors: io::stdout().is_terminal()
                && set("NO_COLOR").is_none()
                && set("TERM").is_none_or(|term| term != "dumb"),
        }
    }
}

/// Reasons to which cells refer by number.
#[derive(Default)]
pub struct Footnotes(Vec<String>);

impl Footnotes {
    fn number(&mut self, text: &str) -> usize {
        let known = self.0.iter().position(|other| other == text);
        1 + known.unwrap_or_else(|| {
            self.0.push(text.to_owned());
            self.0.len() - 1
        })
    }
}

/// Returns the table for a terminal.
pub fn text(results: &Results, baseline: Option<&Results>, look: Look) -> String {
    let mut footnotes = Footnotes::default();
    let mut text = String::new();
    let per_table = look.width.map_or(usize::MAX, |width| {
        usize::from(width.saturating_sub(NAMES + 2) / (NARROWEST + 2)).max(1)
    });
    // Divided evenly.
    let tables = results.images.len().div_ceil(per_table).max(1);
    let per_table = results.images.len().div_ceil(tables).max(1);
    let best: Vec<_> = rows(results).map(|row| row.best(&results.images)).collect();
    for first in (0..results.images.len()).step_by(per_table) {
        let last = results.images.len().min(first.saturating_add(per_table));
        let table = of_images(results, first..last, baseline, &best, look, &mut footnotes);
        // No-break spaces have kept numbers and units on one line.
        text += &table.trim_fmt().replace('\u{a0}', " ");
        text.push('\n');
    }
    if look.has_colors && results.images.len() > 1 {
        text += "Bold green: the best figure, or several if their ranges overlap.\n";
    }
    for note in notes(results, baseline, &footnotes, clean) {
        text += &wrap(&note, look.width);
        text.push('\n');
    }
    text
}

/// Wraps a line between words. Further lines are indented.
pub fn wrap(line: &str, width: Option<u16>) -> String {
    let width = width.map_or(usize::MAX, usize::from);
    let indent = " ".repeat(2 + line.len() - line.trim_start().len());
    textwrap::fill(
        line,
        textwrap::Options::new(width)
            .subsequent_indent(&indent)
            .word_splitter(textwrap::WordSplitter::NoHyphenation),
    )
}

/// Wraps a long image name after punctuation.
fn in_lines(name: &str, width: usize) -> String {
    let parts = name.split_inclusive(['/', ':', '-', '_', '@']);
    let (mut text, mut length) = (String::new(), 0);
    for part in parts {
        let part_length = part.chars().count();
        if length > 0 && length + part_length > width {
            text.push('\n');
            length = 0;
        }
        text += part;
        length += part_length;
    }
    text
}

fn of_images(
    results: &Results,
    which: std::ops::Range<usize>,
    baseline: Option<&Results>,
    best: &[Vec<bool>],
    look: Look,
    footnotes: &mut Footnotes,
) -> Table {
    let images = &results.images[which.clone()];
    let mut table = Table::new();
    table
        .load_style(presets::UTF8_HORIZONTAL_ONLY)
        .set_content_arrangement(ContentArrangement::Dynamic);
    table.force_no_tty();
    if let Some(width) = look.width {
        table.set_width(width);
    }
    if look.has_colors {
        table.enforce_styling();
    }
    table.style_mut().row_separator = comfy_table::LineStyle::none();
    let column = look.width.map_or(usize::MAX, |width| {
        (usize::from(width.saturating_sub(NAMES + 2)) / images.len().max(1)).saturating_sub(2)
    });
    table.set_header(
        std::iter::once(Cell::new("")).chain(images.iter().map(|image| {
            let label = in_lines(&clean(&image.marked_label()), column);
            let cell = Cell::new(label)
                .add_attribute(Attribute::Bold)
                .set_alignment(CellAlignment::Right);
            if image.failure.is_some() {
                cell.fg(Color::Red)
            } else {
                cell
            }
        })),
    );
    let mut group = "";
    for (row, best) in rows(results).zip(best) {
        if row.group != group {
            group = row.group;
            table.add_row([Cell::new(group).add_attribute(Attribute::Bold)]);
        }
        let cells = images
            .iter()
            .zip(&best[which.clone()])
            .map(|(image, best)| {
                let text = clean(&cell(row, image, baseline, footnotes));
                let cell = Cell::new(text).set_alignment(CellAlignment::Right);
                if *best {
                    cell.fg(Color::Green).add_attribute(Attribute::Bold)
                } else {
                    cell
                }
            });
        table.add_row(std::iter::once(Cell::new(format!("\u{a0}{}", row.title))).chain(cells));
    }
    if let Some(column) = table.column_mut(0) {
        column.set_constraint(ColumnConstraint::LowerBoundary(Width::Fixed(NAMES)));
    }
    table
}

/// Returns a figure with the change since the baseline, or a reference to the reason why it is not
/// available.
pub fn cell(
    row: &Row,
    image: &Image,
    baseline: Option<&Results>,
    footnotes: &mut Footnotes,
) -> String {
    match (row.of)(image) {
        Figure::NotAvailable(reason) => format!("n/a\u{a0}[{}]", footnotes.number(&reason)),
        Figure::Value(reading) => {
            let written = unbreakable(&row.write(&reading));
            match change_of(row, image, &reading, baseline) {
                Some(change) => format!("{written}, {}", change.replace(' ', "\u{a0}")),
                None => written,
            }
        }
    }
}

fn change_of(
    row: &Row,
    image: &Image,
    reading: &Reading,
    baseline: Option<&Results>,
) -> Option<String> {
    let before = baseline::same_image(baseline?, image)?;
    baseline::change(row, reading, before)
}

/// Prevents line breaks inside a number with its unit, and inside a range in brackets.
pub fn unbreakable(figure: &str) -> String {
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

/// Returns the lines below the table.
pub fn notes(
    results: &Results,
    baseline: Option<&Results>,
    footnotes: &Footnotes,
    escape: fn(&str) -> String,
) -> Vec<String> {
    let mut lines = Vec::new();
    let mut line = |content: String| lines.push(content);
    let runs = results.settings.runs;
    if runs > 1 {
        line(format!(
            "Medians of {runs} runs, with the lowest and the highest value in brackets."
        ));
    }
    line(once(results));
    if let Some(legend) = results.stand_in_legend() {
        line(escape(&legend));
    }
    if let Some(baseline) = baseline {
        line(baseline::legend(baseline));
    }
    for (index, reason) in footnotes.0.iter().enumerate() {
        line(format!("[{}] not available: {}", index + 1, escape(reason)));
    }
    for image in &results.images {
        let label = escape(&image.label);
        if let Some(failure) = &image.failure {
            line(format!("{label}: FAILED: {}", escape(failure)));
        }
    }
    for (note, labels) in notes_of_images(results) {
        let labels: Vec<_> = labels.into_iter().map(escape).collect();
        line(format!("{}: {}", labels.join(", "), escape(&note)));
    }
    lines
}

/// Returns each note once, with the labels of the images that have it.
fn notes_of_images(results: &Results) -> Vec<(String, Vec<&str>)> {
    let mut notes: Vec<(String, Vec<&str>)> = Vec::new();
    for image in &results.images {
        for note in image.all_notes() {
            match notes.iter_mut().find(|(known, _)| *known == note) {
                Some((_, labels)) => labels.push(&image.label),
                None => notes.push((note, vec![&image.label])),
            }
        }
    }
    notes
}

/// Replaces control characters, because text from an image must not control the terminal.
pub fn clean(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_control() { '\u{fffd}' } else { c })
        .collect()
}

/// Returns the table in Markdown.
pub fn markdown(results: &Results, baseline: Option<&Results>) -> String {
    let mut footnotes = Footnotes::default();
    let mut text = String::from("| |");
    for image in &results.images {
        _ = write!(
            text,
            " {} |",
            escape_markdown(&image.marked_label()).replace('\u{a0}', " ")
        );
    }
    text += "\n|---|";
    text += &"---:|".repeat(results.images.len());
    text.push('\n');
    for row in rows(results) {
        _ = write!(text, "| {}: {} |", row.group, row.title);
        for image in &results.images {
            let cell = cell(row, image, baseline, &mut footnotes).replace('\u{a0}', " ");
            _ = write!(text, " {} |", escape_markdown(&cell));
        }
        text.push('\n');
    }
    text.push('\n');
    for note in notes(results, baseline, &footnotes, escape_markdown) {
        _ = writeln!(text, "- {note}");
    }
    text
}

/// Escapes markup and the separators of cells.
pub fn escape_markdown(text: &str) -> String {
    let mut escaped = String::new();
    for c in clean(text).chars() {
        if matches!(
            c,
            '\\' | '|' | '<' | '>' | '&' | '`' | '*' | '_' | '[' | ']'
        ) {
            escaped.push('\\');
        }
        escaped.push(c);
    }
    escaped
}

/// Returns one line for each figure of each image, with plain numbers in bytes and seconds.
///
/// # Errors
///
/// Does not fail, because the target is in memory.
pub fn csv(results: &Results, baseline: Option<&Results>) -> Result<String> {
    let mut writer = csv::Writer::from_writer(Vec::new());
    let mut header = vec![
        "image",
        "label",
        "figure",
        "unit",
        "value",
        "lowest",
        "highest",
        "not_available",
        "stand_ins",
    ];
    header.extend(baseline.map(|_| "baseline"));
    writer.write_record(header)?;
    for image in &results.images {
        let before = baseline.and_then(|baseline| baseline::same_image(baseline, image));
        let stand_ins: Vec<_> = image.stand_ins.iter().map(|found| &*found.image).collect();
        let stand_ins = stand_ins.join(" ");
        for row in rows(results) {
            let [value, lowest, highest, reason] = fields(&(row.of)(image));
            let mut line = vec![
                &image.name,
                &image.label,
                row.key,
                row.unit.name(),
                &value,
                &lowest,
                &highest,
                &reason,
                &stand_ins,
            ];
            let old = before
                .map(|before| fields(&(row.of)(before))[0].clone())
                .unwrap_or_default();
            line.extend(baseline.map(|_| old.as_str()));
            writer.write_record(line)?;
        }
    }
    Ok(String::from_utf8(writer.into_inner()?)?)
}

fn fields(figure: &Figure<Reading>) -> [String; 4] {
    match figure {
        Figure::NotAvailable(reason) => ["", "", "", reason].map(str::to_owned),
        Figure::Value(Reading::Words(words)) => [words, "", "", ""].map(str::to_owned),
        Figure::Value(Reading::Number { value, range, .. }) => {
            let [lowest, highest] = match range {
                Range::Between(lowest, highest) => [lowest, highest].map(f64::to_string),
                Range::None | Range::Unknown => Default::default(),
            };
            [value.to_string(), lowest, highest, String::new()]
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Look, text};
    use crate::results::{Results, example};

    fn widest(results: &Results, width: u16) -> usize {
        let text = text(
            results,
            None,
            Look {
                width: Some(width),
                has_colors: false,
            },
        );
        // Without the notes below the table.
        let table = text.lines().take_while(|line| !line.starts_with("Medians"));
        table.map(|line| line.chars().count()).max().unwrap()
    }

    #[test]
    fn fits_a_terminal_of_80_columns() {
        let mut results = example();
        assert!(widest(&results, 80) <= 80);
        results.images[1].label =
            "registry.example/a/team/with/a/long/name/timber-tutorial:1.2.3-rc.4".repeat(3);
        // Too narrow, but no panic.
        for width in [1, 20, 23] {
            widest(&results, width);
        }
        for width in [40, 60, 80, 100, 200] {
            assert!(widest(&results, width) <= usize::from(width), "{width}");
        }
    }

    #[test]
    fn shows_any_number_of_images() {
        let mut results = example();
        let image = results.images[2].clone();
        results.images = (0..13)
            .map(|index| {
                let mut image = image.clone();
                image.label = format!("i{index}.");
                image
            })
            .collect();
        assert!(widest(&results, 80) <= 80);
        let text = text(
            &results,
            None,
            Look {
                width: Some(80),
                has_colors: false,
            },
        );
        assert!(
            (0..13).all(|index| text.contains(&format!("i{index}."))),
            "{text}"
        );
    }

    #[test]
    fn figures_are_not_broken_across_lines() {
        let text = text(
            &example(),
            None,
            Look {
                width: Some(80),
                has_colors: false,
            },
        );
        for part in ["0.352 s", "(0.331 – 0.410)", "1.02 GB", "10.2 s"] {
            assert!(text.contains(part), "no {part} in\n{text}");
        }
    }

    #[test]
    fn colors_can_be_switched_off() {
        let with = |has_colors| {
            text(
                &example(),
                None,
                Look {
                    width: Some(120),
                    has_colors,
                },
            )
        };
        assert!(with(true).contains('\u{1b}'));
        assert!(!with(false).contains('\u{1b}'));
    }
}
