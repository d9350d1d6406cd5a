//! report.html: charts, a race of the starts, and every figure with its origin.

use anyhow::{Context as _, Result};
use base64::{Engine as _, prelude::BASE64_STANDARD};
use minijinja::{
    AutoEscape, Environment, UndefinedBehavior, context, syntax::SyntaxConfig, value::Serde,
};
use serde::Serialize;
use sha2::{Digest as _, Sha256};

use crate::{
    baseline, chart,
    figures::{Reading, Row, once, row_of, rows},
    results::{DATE, Figure, Image, Results},
    table::unbreakable,
    units::{Unit, number},
};

const PAGE: &str = include_str!("report.html");
const STYLE: &str = include_str!("report.css");
const SCRIPT: &str = include_str!("report.js");

/// A row of the full table.
#[derive(Serialize)]
struct Line {
    group: &'static str,
    /// Whether it is the first of its group.
    first: bool,
    title: &'static str,
    meaning: &'static str,
    cells: Vec<Cell>,
}

#[derive(Serialize)]
struct Cell {
    figure: String,
    reason: Option<String>,
    change: Option<String>,
    best: bool,
}

/// An image in the race.
#[derive(Serialize)]
struct Lane {
    label: String,
    ink: usize,
    /// `None`: no figure, so it does not take part.
    seconds: Option<f64>,
    figure: String,
    reason: Option<String>,
    /// Percentage of the time before the process starts.
    engine: Option<f64>,
    place: String,
}

/// Returns the page. It is self-contained, and its security policy blocks all requests.
///
/// # Errors
///
/// The template is invalid.
pub fn html(results: &Results, baseline: Option<&Results>) -> Result<String> {
    let hash = BASE64_STANDARD.encode(Sha256::digest(SCRIPT));
    render(
        "report.html",
        PAGE,
        context! {
            style => STYLE,
            script => SCRIPT,
            policy => format!("default-src 'none'; base-uri 'none'; form-action 'none'; style-src 'unsafe-inline'; script-src 'sha256-{hash}'"),
            charts => Serde(chart::charts(results, &chart::PAGE)),
            lanes => Serde(lanes(results)),
            lines => Serde(lines(results, baseline)),
            here => here(results),
            stand_ins => results.stand_in_legend(),
            images => Serde(results.images.iter().map(Described::from).collect::<Vec<_>>()),
            legend => baseline.map(baseline::legend),
            once => once(results),
            results => Serde(results),
            facts => Serde(facts(results)),
            file => serde_json::to_string_pretty(results)?,
        },
    )
}

/// Renders a template. Escapes all values, because labels can contain markup.
pub fn render(name: &str, template: &str, values: minijinja::Value) -> Result<String> {
    let mut environment = Environment::new();
    environment.set_auto_escape_callback(|_| AutoEscape::Html);
    environment.set_undefined_behavior(UndefinedBehavior::Strict);
    let syntax = SyntaxConfig::builder()
        .trim_blocks(true)
        .lstrip_blocks(true)
        .keep_trailing_newline(true)
        .build()?;
    environment.set_syntax(syntax);
    environment
        .render_named_str(name, template, values)
        .with_context(|| format!("cannot render {name}"))
}

fn lines(results: &Results, baseline: Option<&Results>) -> Vec<Line> {
    let mut group = "";
    let line = |row: &'static Row| {
        let first = row.group != group;
        group = row.group;
        let best = row.best(&results.images);
        let cells = results
            .images
            .iter()
            .zip(best)
            .map(|(image, best)| cell(row, image, best, baseline))
            .collect();
        Line {
            group,
            first,
            title: row.title,
            meaning: row.meaning,
            cells,
        }
    };
    rows(results).map(line).collect()
}

fn cell(row: &Row, image: &Image, best: bool, baseline: Option<&Results>) -> Cell {
    match (row.of)(image) {
        Figure::NotAvailable(reason) => Cell {
            figure: "not available".to_owned(),
            reason: Some(reason),
            change: None,
            best: false,
        },
        Figure::Value(reading) => Cell {
            // A word joiner, because a no-break space after a dash can break (UAX 14, rule LB12a).
            figure: unbreakable(&row.write(&reading)).replace('–', "–\u{2060}"),
            reason: None,
            change: baseline
                .and_then(|baseline| baseline::same_image(baseline, image))
                .and_then(|before| baseline::change(row, &reading, before))
                .map(|change| change.replace(' ', "\u{a0}")),
            best,
        },
    }
}

fn lanes(results: &Results) -> Vec<Lane> {
    let row = |key| row_of(key).expect("the key is known");
    let (start, process) = (row("start"), row("process"));
    let extents: Vec<_> = results
        .images
        .iter()
        .map(|image| (start.of)(image).value().and_then(Reading::plausible))
        .collect();
    let lane = |(index, image): (usize, &Image)| {
        let figure = (start.of)(image);
        let seconds = figure.value().and_then(Reading::value);
        let running = (process.of)(image).value().and_then(Reading::value);
        Lane {
            label: image.marked_label(),
            ink: chart::ink(index),
            seconds,
            figure: figure.value().map_or_else(
                || "not available".to_owned(),
                |reading| start.write(reading),
            ),
            engine: seconds
                .zip(running)
                .map(|(all, running)| ((all - running) / all * 100.0).clamp(0.0, 100.0)),
            place: place(index, &extents),
            reason: match figure {
                Figure::NotAvailable(reason) => Some(reason),
                Figure::Value(_) => None,
            },
        }
    };
    results.images.iter().enumerate().map(lane).collect()
}

/// An image with its notes.
#[derive(Serialize)]
struct Described<'a> {
    label: String,
    name: &'a str,
    id: &'a str,
    failure: Option<&'a str>,
    notes: Vec<String>,
}

impl<'a> From<&'a Image> for Described<'a> {
    fn from(image: &'a Image) -> Self {
        Described {
            label: image.marked_label(),
            name: &image.name,
            id: &image.id,
            failure: image.failure.as_deref(),
            notes: image.all_notes().collect(),
        }
    }
}

/// Returns the place in the race. Images whose ranges overlap share the better place.
fn place(index: usize, extents: &[Option<(f64, f64)>]) -> String {
    let Some((lowest, highest)) = extents[index] else {
        return String::new();
    };
    let others = || {
        extents
            .iter()
            .enumerate()
            .filter(|(other, _)| *other != index)
            .filter_map(|(_, extent)| *extent)
    };
    let before = others().filter(|other| other.1 < lowest).count();
    let tied = others().any(|other| other.0 <= highest && lowest <= other.1);
    format!("{}{}", before + 1, if tied { "=" } else { "" })
}

/// Returns a sentence about size and start time in this comparison.
fn here(results: &Results) -> Option<String> {
    let (pull, start) = (row_of("pull")?, row_of("start")?);
    let both = results.images.iter().filter_map(|image| {
        let (pull, start) = ((pull.of)(image), (start.of)(image));
        Some((
            pull.value()?.value()?,
            start.value()?.value()?,
            start.value()?.plausible()?,
            &image.label,
        ))
    });
    let mut both: Vec<_> = both.collect();
    both.sort_by(|a, b| a.0.total_cmp(&b.0));
    let ((small, fast, fast_range, smallest), (large, slow, slow_range, largest)) =
        (both.first()?, both.last()?);
    if both.len() < 2 || *small <= 0.0 || *fast <= 0.0 {
        return None;
    }
    let overlap = fast_range.0 <= slow_range.1 && slow_range.0 <= fast_range.1;
    let times = |ratio: f64| {
        if ratio >= 10.0 {
            Unit::Count.write(ratio)
        } else {
            format!("{ratio:.2}")
        }
    };
    Some(format!(
        "Here, a pull of {largest} transfers {} times as many bytes as one of {smallest}, and its start takes {} times as long{}.",
        times(large / small),
        times(slow / fast),
        if overlap {
            ", which is within the spread"
        } else {
            ", which is beyond the spread. The size is not the only difference: the programs differ, too"
        }
    ))
}

/// Where and when the figures were measured.
#[derive(Serialize)]
pub struct Facts {
    pub machine: String,
    pub engine: String,
    pub date: String,
}

pub fn facts(results: &Results) -> Facts {
    let (machine, engine) = (&results.machine, &results.engine);
    let model = match &machine.cpu_model {
        Figure::Value(model) => model.clone(),
        Figure::NotAvailable(reason) => format!("CPU model not available: {reason}"),
    };
    Facts {
        machine: format!(
            "{} × {} ({model}), {} memory, Linux {}, {}",
            machine.cpus,
            machine.architecture,
            Unit::Bytes.write(number(machine.memory_bytes)),
            machine.kernel,
            machine.operating_system
        ),
        engine: format!(
            "{} {}, {}, cgroup {}{}",
            engine.name,
            engine.version,
            engine.storage_driver,
            engine.cgroup_version,
            if engine.rootless { ", rootless" } else { "" }
        ),
        date: results.begun.strftime(DATE).to_string(),
    }
}
