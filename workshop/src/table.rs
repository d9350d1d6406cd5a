//! The table: in the terminal, as Markdown, and as lines of CSV.

use std::{env, fmt::Write as _, io, io::IsTerminal as _};

use anyhow::Result;
use comfy_table::{
    Attribute, Cell, CellAlignment, Color, ColumnConstraint, ContentArrangement, Table, Width,
    presets,
};
use console::Term;

use crate::{
    baseline,
    figures::{ROWS, Range, Reading, Row, once},
    progress::width,
    results::{Figure, Image, Results},
};

/// Where the terminal's width leaves less than this for an image, the next ones go into a table below.
const NARROWEST: u16 = 16;
/// Of the column that names the figures.
const NAMES: u16 = 20;

/// How the terminal wants it.
#[derive(Clone, Copy)]
pub struct Look {
    /// None is as wide as it takes.
    pub width: Option<u16>,
    pub colours: bool,
}

impl Look {
    /// Colours only on a terminal that takes them, and not against `NO_COLOR` (<https://no-color.org>).
    pub fn of_stdout() -> Self {
        let says = |name| env::var_os(name).filter(|value| !value.is_empty());
        Look {
            width: width(&Term::stdout()),
            colours: io::stdout().is_terminal()
                && says("NO_COLOR").is_none()
                && says("TERM").is_none_or(|term| term != "dumb"),
        }
    }
}

/// Reasons and notes that cells refer to by number.
#[derive(Default)]
struct Footnotes(Vec<String>);

impl Footnotes {
    fn number(&mut self, text: &str) -> usize {
        let known = self.0.iter().position(|other| other == text);
        1 + known.unwrap_or_else(|| {
            self.0.push(text.to_owned());
            self.0.len() - 1
        })
    }
}

/// For a terminal.
pub fn text(results: &Results, baseline: Option<&Results>, look: Look) -> String {
    let mut footnotes = Footnotes::default();
    let mut text = String::new();
    let per_table = look.width.map_or(usize::MAX, |width| {
        usize::from(width.saturating_sub(NAMES + 2) / (NARROWEST + 2)).max(1)
    });
    // As many in each as in the others, or one less.
    let tables = results.images.len().div_ceil(per_table).max(1);
    let per_table = results.images.len().div_ceil(tables).max(1);
    let best: Vec<_> = ROWS.iter().map(|row| row.best(&results.images)).collect();
    for first in (0..results.images.len()).step_by(per_table) {
        let last = results.images.len().min(first.saturating_add(per_table));
        let table = of_images(results, first..last, baseline, &best, look, &mut footnotes);
        // Wrapped only where a line has room for it: the spaces that do not break have done their work.
        text += &table.trim_fmt().replace('\u{a0}', " ");
        text.push('\n');
    }
    if look.colours && results.images.len() > 1 {
        text += "Bold green is the best; several are where their ranges overlap.\n";
    }
    for note in notes(results, baseline, &footnotes, clean) {
        text += &wrap(&note, look.width);
        text.push('\n');
    }
    text
}

/// Between words, as wide as the terminal; what follows a line's first is indented.
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

/// A name that is longer than a column, in lines that end where a reader would take a breath.
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
    if look.colours {
        table.enforce_styling();
    }
    table.style_mut().row_separator = comfy_table::LineStyle::none();
    let column = look.width.map_or(usize::MAX, |width| {
        (usize::from(width.saturating_sub(NAMES + 2)) / images.len().max(1)).saturating_sub(2)
    });
    table.set_header(
        std::iter::once(Cell::new("")).chain(images.iter().map(|image| {
            let label = in_lines(&clean(&image.label), column);
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
    for (row, best) in ROWS.iter().zip(best) {
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

/// A figure, the change since the baseline, or a reference to the reason why there is none.
fn cell(row: &Row, image: &Image, baseline: Option<&Results>, footnotes: &mut Footnotes) -> String {
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

/// A number stays with its unit, and a bracket whole; between the two a line may break.
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

/// A line each.
fn notes(
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
            "Medians of {runs} runs, the lowest and the highest in brackets."
        ));
    }
    line(once(runs));
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
        for note in image
            .notes
            .iter()
            .chain(&image.work.generator_was_the_bottleneck)
        {
            line(format!("{label}: {}", escape(note)));
        }
    }
    lines
}

/// What comes from an image is not to steer the terminal.
pub fn clean(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_control() { '\u{fffd}' } else { c })
        .collect()
}

/// For a README.
pub fn markdown(results: &Results, baseline: Option<&Results>) -> String {
    let mut footnotes = Footnotes::default();
    let mut text = String::from("| |");
    for image in &results.images {
        _ = write!(text, " {} |", escape_markdown(&image.label));
    }
    text += "\n|---|";
    text += &"---:|".repeat(results.images.len());
    text.push('\n');
    for row in ROWS {
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

/// Neither markup nor a cell's end.
fn escape_markdown(text: &str) -> String {
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

/// One line for each figure of each image: plain numbers, in bytes and seconds.
///
/// # Errors
///
/// None that a string as a target could make.
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
    ];
    header.extend(baseline.map(|_| "baseline"));
    writer.write_record(header)?;
    for image in &results.images {
        let before = baseline.and_then(|baseline| baseline::same_image(baseline, image));
        for row in ROWS {
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
                colours: false,
            },
        );
        // The notes below are the terminal's to wrap.
        let table = text.lines().take_while(|line| !line.starts_with("Medians"));
        table.map(|line| line.chars().count()).max().unwrap()
    }

    #[test]
    fn it_fits_a_terminal_of_80_columns() {
        let mut results = example();
        assert!(widest(&results, 80) <= 80);
        results.images[1].label =
            "registry.example/a/team/with/a/long/name/timber-tutorial:1.2.3-rc.4".repeat(3);
        // Narrower, it only has to come.
        for width in [1, 20, 23] {
            widest(&results, width);
        }
        for width in [40, 60, 80, 100, 200] {
            assert!(widest(&results, width) <= usize::from(width), "{width}");
        }
    }

    #[test]
    fn every_image_is_there_however_many_there_are() {
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
                colours: false,
            },
        );
        assert!(
            (0..13).all(|index| text.contains(&format!("i{index}."))),
            "{text}"
        );
    }

    #[test]
    fn a_figure_is_not_broken_inside() {
        let text = text(
            &example(),
            None,
            Look {
                width: Some(80),
                colours: false,
            },
        );
        for part in ["0.352 s", "(0.331 – 0.410)", "1.02 GB", "10.2 s"] {
            assert!(text.contains(part), "no {part} in\n{text}");
        }
    }

    #[test]
    fn colours_only_where_they_are_wanted() {
        let with = |colours| {
            text(
                &example(),
                None,
                Look {
                    width: Some(120),
                    colours,
                },
            )
        };
        assert!(with(true).contains('\u{1b}'));
        assert!(!with(false).contains('\u{1b}'));
    }
}
