//! report.html: charts, a race of the starts, and every figure with its origin.

use anyhow::{Context as _, Result};
use base64::{Engine as _, prelude::BASE64_STANDARD};
use minijinja::{
    AutoEscape, Environment, UndefinedBehavior, context, syntax::SyntaxConfig, value::Serde,
};
use serde::Serialize;
use sha2::{Digest as _, Sha256};

use super::{
    chart,
    view::{Cell, View},
};
use crate::{
    figures::{Row, row_of, rows},
    results::{DATE, Image, Results},
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
pub fn html(view: &View) -> Result<String> {
    let results = view.results;
    let hash = BASE64_STANDARD.encode(Sha256::digest(SCRIPT));
    render(
        "report.html",
        PAGE,
        context! {
            style => STYLE,
            script => SCRIPT,
            policy => format!("default-src 'none'; base-uri 'none'; form-action 'none'; style-src 'unsafe-inline'; script-src 'sha256-{hash}'"),
            charts => Serde(chart::charts(view)),
            lanes => Serde(lanes(view)),
            lines => Serde(lines(view)),
            all => view.all,
            title => view.title(),
            here => here(view),
            rounds => results.settings.describe_rounds(),
            stand_ins => results.stand_in_legend(),
            images => Serde(results.images.iter().map(Described::from).collect::<Vec<_>>()),
            legend => view.legend(),
            notes => Serde(view.notes()),
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

fn lines(view: &View) -> Vec<Line> {
    let mut group = "";
    let line = |row: &'static Row| {
        let first = row.group != group;
        group = row.group;
        let mut cells = view.cells(row);
        for cell in &mut cells {
            // A word joiner, because a no-break space after a dash can break (UAX 14, rule LB12a).
            cell.text = cell.text.replace('–', "–\u{2060}");
        }
        Line {
            group,
            first,
            title: row.title,
            meaning: row.meaning,
            cells,
        }
    };
    rows(view.results, true).map(line).collect()
}

fn lanes(view: &View) -> Vec<Lane> {
    let row = |key| row_of(key).expect("the key is known");
    let (start, process) = (row("start"), row("process"));
    let lane = |(index, image): (usize, &Image)| {
        let figure = start.of(image);
        let seconds = figure.value();
        let running = process.of(image).value();
        Lane {
            label: image.marked_label(),
            ink: chart::ink(index),
            seconds,
            figure: start.write(&figure),
            engine: seconds
                .zip(running)
                .map(|(all, running)| ((all - running) / all * 100.0).clamp(0.0, 100.0)),
            place: place(view, start, index),
            reason: figure.reason().map(str::to_owned),
        }
    };
    view.results.images.iter().enumerate().map(lane).collect()
}

/// An image, for the places that name it.
#[derive(Serialize)]
struct Described<'a> {
    label: String,
    name: &'a str,
    name_below: Option<&'a str>,
    id: &'a str,
    failure: Option<&'a str>,
}

impl<'a> From<&'a Image> for Described<'a> {
    fn from(image: &'a Image) -> Self {
        Described {
            label: image.marked_label(),
            name: &image.name,
            name_below: image.name_below(),
            id: &image.id,
            failure: image.failure.as_deref(),
        }
    }
}

/// Returns the place in the race. Images whose difference may be chance share the better place.
fn place(view: &View, start: &Row, index: usize) -> String {
    let times: Vec<_> = view
        .results
        .images
        .iter()
        .map(|i| start.of(i).value())
        .collect();
    let Some(own) = times[index] else {
        return String::new();
    };
    let others = || (0..times.len()).filter(|other| *other != index);
    let is_real = |other: &usize| view.differences.is_real(start, index, *other);
    let before = others().filter(|other| is_real(other) && times[*other] < Some(own));
    let before = before.filter(|other| times[*other].is_some()).count();
    let tied = others().any(|other| times[other].is_some() && !is_real(&other));
    format!("{}{}", before + 1, if tied { "=" } else { "" })
}

/// Returns a sentence about size and start time in this comparison.
fn here(view: &View) -> Option<String> {
    let (pull, start) = (row_of("pull")?, row_of("start")?);
    let images = &view.results.images;
    let both = images.iter().enumerate().filter_map(|(index, image)| {
        Some((pull.of(image).value()?, start.of(image).value()?, index))
    });
    let mut both: Vec<_> = both.collect();
    both.sort_by(|a, b| a.0.total_cmp(&b.0));
    let (&(small, fast, smallest), &(large, slow, largest)) = (both.first()?, both.last()?);
    if both.len() < 2 || small <= 0.0 || fast <= 0.0 {
        return None;
    }
    let times = |ratio: f64| {
        if ratio >= 10.0 {
            Unit::Count.write(ratio)
        } else {
            format!("{ratio:.2}")
        }
    };
    Some(format!(
        "Here, a pull of {} transfers {} times as many bytes as one of {}, and its start takes {} times as long{}.",
        images[largest].label,
        times(large / small),
        images[smallest].label,
        times(slow / fast),
        if view.differences.is_real(start, smallest, largest) {
            ", which is more than chance. The size is not the only difference: the programs differ, too"
        } else {
            ", which may be chance"
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
    let model = machine.cpu_model.as_deref().unwrap_or("CPU model unknown");
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
            "{} {}, {}, cgroup {}{}, requests over {}",
            engine.name,
            engine.version,
            engine.storage_driver,
            engine.cgroup_version,
            if engine.rootless { ", rootless" } else { "" },
            engine.reached
        ),
        date: results.begun.strftime(DATE).to_string(),
    }
}
