//! One line for each image, with the most important figures. For comparisons of many images.

use crate::{
    figures::row_of,
    results::Results,
    table::{Footnotes, cell, escape_markdown, notes},
};

/// More images than this are summarized by default.
pub const MANY: usize = 5;

const COLUMNS: [&str; 5] = ["unpacked", "pull", "files", "memory", "process"];

/// Returns a Markdown table with aligned columns, which can also be read in a terminal.
pub fn markdown(results: &Results, baseline: Option<&Results>) -> String {
    let mut footnotes = Footnotes::default();
    let columns = COLUMNS.map(|key| row_of(key).expect("the key is known"));
    let titles = columns.map(|row| format!("{}: {}", row.group, row.title));
    let mut lines = vec![[vec![String::new()], titles.to_vec()].concat()];
    for image in &results.images {
        let mut line = vec![escape_markdown(&image.marked_label())];
        for row in columns {
            line.push(escape_markdown(&cell(row, image, baseline, &mut footnotes)));
        }
        lines.push(line);
    }
    let width = |column: usize| {
        let lengths = lines.iter().map(|line| line[column].chars().count());
        lengths.max().unwrap_or_default()
    };
    let widths: Vec<usize> = (0..=COLUMNS.len()).map(width).collect();
    let aligned = |(column, cell): (usize, &String)| match (column, widths[column]) {
        (0, width) => format!("{cell:<width$}"),
        (_, width) => format!("{cell:>width$}"),
    };
    let row = |line: &Vec<String>| {
        let cells: Vec<_> = line.iter().enumerate().map(aligned).collect();
        format!("| {} |", cells.join(" | "))
    };
    let rules = widths.iter().enumerate().map(|(column, width)| {
        let end = if column == 0 { '-' } else { ':' };
        format!("{}{end}", "-".repeat(width + 1))
    });
    let mut text: Vec<String> = lines.iter().map(row).collect();
    text.insert(1, format!("|{}|", rules.collect::<Vec<_>>().join("|")));
    text.push(String::new());
    let notes = notes(results, baseline, &footnotes, escape_markdown);
    text.extend(notes.iter().map(|note| format!("- {note}")));
    text.join("\n").replace('\u{a0}', " ") + "\n"
}
