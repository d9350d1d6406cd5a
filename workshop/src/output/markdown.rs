//! A Markdown table with one line for each image: for pull requests, and for many images.

use super::{
    table::{Footnotes, notes, text_of},
    view::View,
};
use crate::terminal::clean;

/// Returns a table with aligned columns, which can also be read in a terminal.
pub fn markdown(view: &View) -> String {
    let mut footnotes = Footnotes::default();
    let images = &view.results.images;
    let labels = images.iter().map(|image| escape(&image.marked_label()));
    let mut columns: Vec<Vec<String>> = vec![[String::new()].into_iter().chain(labels).collect()];
    for row in view.rows() {
        let mut column = vec![row.title.to_owned()];
        for cell in view.cells(row) {
            column.push(escape(&text_of(&cell, &mut footnotes)));
        }
        columns.push(column);
    }
    let width = |column: &Vec<String>| column.iter().map(|cell| cell.chars().count()).max();
    let widths: Vec<usize> = columns.iter().filter_map(width).collect();
    let line = |index: usize| {
        let cells = columns.iter().zip(&widths).enumerate();
        let cells = cells.map(|(number, (column, width))| match number {
            0 => format!("{:<width$}", column[index]),
            _ => format!("{:>width$}", column[index]),
        });
        format!("| {} |", cells.collect::<Vec<_>>().join(" | "))
    };
    let rules = widths.iter().enumerate().map(|(column, width)| {
        let end = if column == 0 { '-' } else { ':' };
        format!("{}{end}", "-".repeat(width + 1))
    });
    let mut text: Vec<String> = (0..=images.len()).map(line).collect();
    text.insert(1, format!("|{}|", rules.collect::<Vec<_>>().join("|")));
    text.push(String::new());
    let notes = notes(view, &footnotes, escape);
    text.extend(notes.iter().map(|note| format!("- {note}")));
    text.join("\n").replace('\u{a0}', " ") + "\n"
}

/// Escapes markup and the separators of cells.
fn escape(text: &str) -> String {
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
