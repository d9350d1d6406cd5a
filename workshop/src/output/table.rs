//! The table in the terminal.

use std::{env, io, io::IsTerminal as _, ops::Range};

use comfy_table::{
    Attribute, CellAlignment, Color, ColumnConstraint, ContentArrangement, Table, Width, presets,
};
use console::Term;

use super::view::{Cell, View};
use crate::terminal::{clean, width, wrap};

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
pub fn text(view: &View, look: Look) -> String {
    let mut footnotes = Footnotes::default();
    let mut text = String::new();
    let per_table = look.width.map_or(usize::MAX, |width| {
        usize::from(width.saturating_sub(NAMES + 2) / (NARROWEST + 2)).max(1)
    });
    // Divided evenly.
    let images = view.results.images.len();
    let tables = images.div_ceil(per_table).max(1);
    let per_table = images.div_ceil(tables).max(1);
    for first in (0..images).step_by(per_table) {
        let last = images.min(first.saturating_add(per_table));
        let table = of_images(view, first..last, look, &mut footnotes);
        // No-break spaces have kept numbers and units on one line.
        text += &table.trim_fmt().replace('\u{a0}', " ");
        text.push('\n');
    }
    if !view.all {
        text += "--all shows the other figures.\n";
    }
    for note in notes(view, &footnotes, clean) {
        text += &wrap(&note, look.width);
        text.push('\n');
    }
    text
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

fn of_images(view: &View, which: Range<usize>, look: Look, footnotes: &mut Footnotes) -> Table {
    use comfy_table::Cell;

    let images = &view.results.images[which.clone()];
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
    let header = images.iter().map(|image| {
        let mut label = in_lines(&clean(&image.marked_label()), column);
        if let Some(name) = image.name_below() {
            label += "\n";
            label += &in_lines(&clean(name), column);
        }
        let cell = Cell::new(label)
            .add_attribute(Attribute::Bold)
            .set_alignment(CellAlignment::Right);
        if image.failure.is_some() {
            cell.fg(Color::Red)
        } else {
            cell
        }
    });
    table.set_header([Cell::new("")].into_iter().chain(header));
    let mut group = "";
    for row in view.rows() {
        if row.group != group {
            group = row.group;
            table.add_row([Cell::new(group).add_attribute(Attribute::Bold)]);
        }
        let mut line = vec![Cell::new(format!("\u{a0}{}", row.title))];
        for cell in &view.cells(row)[which.clone()] {
            let text = clean(&text_of(cell, footnotes));
            let text = Cell::new(text).set_alignment(CellAlignment::Right);
            line.push(if cell.is_best {
                text.fg(Color::Green).add_attribute(Attribute::Bold)
            } else {
                text
            });
        }
        table.add_row(line);
    }
    if let Some(column) = table.column_mut(0) {
        column.set_constraint(ColumnConstraint::LowerBoundary(Width::Fixed(NAMES)));
    }
    table
}

/// Returns a figure with its mark and its change, or a reference to the reason why it is not available.
pub fn text_of(cell: &Cell, footnotes: &mut Footnotes) -> String {
    let best = if cell.is_best { "★\u{a0}" } else { "" };
    match (&cell.reason, &cell.change) {
        (Some(reason), _) => format!("n/a\u{a0}[{}]", footnotes.number(reason)),
        (None, Some(change)) => format!("{best}{}, {change}", cell.text),
        (None, None) => format!("{best}{}", cell.text),
    }
}

/// Returns the lines below the table.
pub fn notes(view: &View, footnotes: &Footnotes, escape: fn(&str) -> String) -> Vec<String> {
    let mut lines: Vec<_> = view.legend().iter().map(|line| escape(line)).collect();
    for (index, reason) in footnotes.0.iter().enumerate() {
        lines.push(format!("[{}] not available: {}", index + 1, escape(reason)));
    }
    for image in &view.results.images {
        if let Some(failure) = &image.failure {
            lines.push(format!(
                "{}: FAILED: {}",
                escape(&image.label),
                escape(failure)
            ));
        }
    }
    for (note, labels) in view.notes() {
        let labels: Vec<_> = labels.into_iter().map(escape).collect();
        lines.push(format!("{}: {}", labels.join(" / "), escape(&note)));
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::{Look, View, text};
    use crate::results::{Results, example};

    fn at_width(results: &Results, width: u16, has_colors: bool) -> String {
        let look = Look {
            width: Some(width),
            has_colors,
        };
        text(&View::new(results, None, true), look)
    }

    fn widest(results: &Results, width: u16) -> usize {
        let text = at_width(results, width, false);
        // Without the notes below the table.
        let table = text.lines().take_while(|line| !line.starts_with("★ marks"));
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
        let text = at_width(&results, 80, false);
        assert!(
            (0..13).all(|index| text.contains(&format!("i{index}."))),
            "{text}"
        );
    }

    #[test]
    fn figures_are_not_broken_across_lines() {
        let text = at_width(&example(), 80, false);
        for part in ["0.348 s", "(0.328 – 0.412)", "1.02 GB", "10.2 s"] {
            assert!(text.contains(part), "no {part} in\n{text}");
        }
    }

    #[test]
    fn colors_can_be_switched_off() {
        let with = |has_colors| at_width(&example(), 120, has_colors);
        assert!(with(true).contains('\u{1b}'));
        assert!(!with(false).contains('\u{1b}'));
    }
}
