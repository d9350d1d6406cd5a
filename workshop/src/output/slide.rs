//! report.svg and report.png: the charts on a slide.

use std::sync::Arc;

use anyhow::{Context as _, Result};
use minijinja::{context, value::Serde};
use resvg::{tiny_skia, usvg};
use serde::Serialize;

use super::{
    chart::{self, Bar, Chart},
    report::{facts, render},
    view::View,
};
use crate::{results::Results, units::number};

const SLIDE: &str = include_str!("report.svg");

/// Returns the slide as an SVG of 1920 by 1080 units.
///
/// # Errors
///
/// The template is invalid.
pub fn svg(view: &View) -> Result<String> {
    let results = view.results;
    let charts = chart::charts(view);
    let height = Panel::TOTAL_HEIGHT / number(charts.len().div_ceil(2).max(1) as u64);
    let panels: Vec<_> = charts
        .iter()
        .enumerate()
        .map(|(index, chart)| Panel::new(index, height, chart))
        .collect();
    let facts = facts(results);
    render(
        "report.svg",
        SLIDE,
        context! {
            panels => Serde(panels),
            title => view.title(),
            failed => results.images.iter().filter(|image| image.failure.is_some()).count(),
            stand_ins => results.stand_in_legend().map(|legend| cut(&legend, 160)),
            note => cut(&most_common_note(results).unwrap_or_default(), 160),
            machine => cut(&facts.machine, 150),
            made => cut(&format!("{} · {} · medians of {}", facts.engine, facts.date, results.settings.describe_rounds()), 150),
            command => cut(&results.command, 150),
        },
    )
}

/// Returns the note that applies to most images, with their labels. There is room for only one.
fn most_common_note(results: &Results) -> Option<String> {
    let holders = |note: &String| -> Vec<&str> {
        let images = results
            .images
            .iter()
            .filter(|image| image.notes.contains(note));
        images.map(|image| image.label.as_str()).collect()
    };
    let notes = results.images.iter().flat_map(|image| &image.notes);
    let note = notes.rev().max_by_key(|note| holders(note).len())?;
    Some(format!("{}: {note}", holders(note).join(" / ")))
}

/// Renders the slide as PNG.
///
/// # Errors
///
/// No font is installed, or the SVG is invalid.
pub fn png(slide: &str) -> Result<Vec<u8>> {
    let mut fonts = usvg::fontdb::Database::new();
    for font in EMBEDDED {
        fonts.load_font_data(font.to_vec());
    }
    fonts.load_system_fonts();
    png_with(slide, fonts)
}

/// The fonts that the slide names, for an image without fonts.
#[cfg(feature = "embedded-fonts")]
const EMBEDDED: [&[u8]; 3] = [
    include_bytes!(concat!(env!("WORKSHOP_FONTS"), "/DejaVuSans.ttf")),
    include_bytes!(concat!(env!("WORKSHOP_FONTS"), "/DejaVuSans-Bold.ttf")),
    include_bytes!(concat!(env!("WORKSHOP_FONTS"), "/DejaVuSansMono.ttf")),
];
#[cfg(not(feature = "embedded-fonts"))]
const EMBEDDED: [&[u8]; 0] = [];

fn png_with(slide: &str, mut fonts: usvg::fontdb::Database) -> Result<Vec<u8>> {
    // The first font is the fallback if none of the slide's font families is installed.
    let family = fonts
        .faces()
        .find_map(|face| face.families.first())
        .map(|(name, _)| name.clone());
    let family = family.context(
        "missing fonts: install one, such as Debian's fonts-dejavu-core or Fedora's dejavu-sans-fonts",
    )?;
    fonts.set_sans_serif_family(family);
    let options = usvg::Options {
        fontdb: Arc::new(fonts),
        ..usvg::Options::default()
    };
    let tree = usvg::Tree::from_str(slide, &options)?;
    let size = tree.size().to_int_size();
    let mut pixels =
        tiny_skia::Pixmap::new(size.width(), size.height()).context("invalid size of the slide")?;
    resvg::render(
        &tree,
        tiny_skia::Transform::identity(),
        &mut pixels.as_mut(),
    );
    pixels.encode_png().context("cannot encode the slide")
}

/// A chart on the slide. Positions and lengths are in units of the SVG.
#[derive(Serialize)]
struct Panel {
    x: f64,
    y: f64,
    title: String,
    meaning: &'static str,
    bars: Vec<Strip>,
    /// Font sizes of values and of names.
    letters: f64,
    names: f64,
    thickness: f64,
    height: f64,
    track: f64,
    start: f64,
}

#[derive(Serialize)]
struct Strip {
    label: String,
    name: Option<String>,
    ink: usize,
    y: f64,
    middle: f64,
    /// Distance from the middle to the baseline.
    below: f64,
    names_below: f64,
    length: f64,
    whisker: Option<[f64; 2]>,
    /// Start of the text after the bar.
    after: f64,
    part: Option<String>,
    value: String,
    range: String,
    reason: Option<String>,
}

impl Panel {
    const WIDTH: f64 = 900.0;
    /// Height of all panels in a column, with the gaps between them.
    const TOTAL_HEIGHT: f64 = 834.0;
    const GAP: f64 = 16.0;
    const LABELS: f64 = 310.0;
    const TRACK: f64 = 300.0;

    /// Returns the panel at an index. `height` includes the gap below the panel.
    fn new(index: usize, height: f64, chart: &Chart) -> Self {
        let place = |index: usize| number(index as u64);
        let (column, line) = (place(index % 2), place(index / 2));
        let pitch = ((height - Self::GAP - 62.0) / place(chart.bars.len())).min(56.0);
        let thickness = pitch * 0.66;
        let letters = (pitch * 0.56).clamp(9.0, 24.0);
        // Long names have smaller letters.
        let longest = chart
            .bars
            .iter()
            .map(|bar| bar.label.chars().count())
            .max()
            .unwrap_or_default()
            .max(1);
        let room = Self::LABELS - 16.0;
        let names = (room / (place(longest) * WIDTH_OF_LETTER)).clamp(letters * 0.75, letters);
        let strip = |(index, bar): (usize, &Bar)| {
            let y = 48.0 + place(index) * pitch;
            let on_track = |percent: f64| percent / 100.0 * Self::TRACK;
            let length = on_track(bar.linear);
            let whisker = bar
                .whisker
                .as_ref()
                .map(|whisker| whisker.linear.map(on_track));
            Strip {
                label: shortened(&bar.label, fitting(room, names)),
                name: bar
                    .name
                    .as_ref()
                    .map(|name| shortened(name, fitting(room, names * SMALLER))),
                ink: bar.ink,
                y,
                middle: y + thickness / 2.0,
                below: letters * 0.36,
                names_below: names * 0.36,
                length,
                after: whisker.map_or(length, |whisker| whisker[1].max(length)) + 8.0,
                whisker,
                part: bar.part.clone(),
                value: bar.value.clone(),
                range: bar.detail.clone(),
                reason: bar.reason.as_ref().map(|reason| {
                    cut(
                        &format!("not available: {reason}"),
                        fitting(Self::WIDTH - Self::LABELS - 10.0, letters),
                    )
                }),
            }
        };
        Panel {
            x: 40.0 + column * (Self::WIDTH + 40.0),
            y: 118.0 + line * height,
            title: chart.title.clone(),
            meaning: chart.meaning,
            letters,
            names,
            thickness,
            height: place(chart.bars.len()) * pitch,
            track: Self::TRACK,
            start: Self::LABELS,
            bars: chart.bars.iter().enumerate().map(strip).collect(),
        }
    }
}

/// Size of an image's name below its label, relative to the label's.
const SMALLER: f64 = 0.7;

/// Average width of a letter in a wide font, relative to its height.
const WIDTH_OF_LETTER: f64 = 0.58;

/// Returns the number of letters that fit.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
fn fitting(width: f64, letters: f64) -> usize {
    (width / (letters * WIDTH_OF_LETTER)) as usize
}

/// Shortens a text at its end.
fn cut(text: &str, most: usize) -> String {
    if text.chars().count() <= most {
        return text.to_owned();
    }
    text.chars()
        .take(most.saturating_sub(1))
        .chain(['…'])
        .collect()
}

/// Shortens a name in its middle, because the end of an image name matters most.
fn shortened(text: &str, most: usize) -> String {
    let length = text.chars().count();
    if length <= most {
        return text.to_owned();
    }
    let kept = most.saturating_sub(1);
    let head: String = text.chars().take(kept / 2).collect();
    let tail: String = text.chars().skip(length - (kept - kept / 2)).collect();
    format!("{head}…{tail}")
}

#[cfg(test)]
mod tests {
    use resvg::usvg::fontdb::Database;

    use super::{View, png_with, shortened, svg};
    use crate::results::example;

    #[test]
    fn a_machine_without_fonts_is_told_what_to_install() {
        let results = example();
        let slide = svg(&View::new(&results, None, false)).unwrap();
        let error = png_with(&slide, Database::new()).unwrap_err();
        assert!(error.to_string().contains("fonts-dejavu-core"), "{error}");
    }

    #[test]
    fn a_long_name_keeps_its_start_and_end() {
        assert_eq!(shortened("timber-tutorial:2", 17), "timber-tutorial:2");
        assert_eq!(
            shortened("registry.example/team/timber:2", 17),
            "registry…timber:2"
        );
        assert_eq!(shortened("äöüß", 3), "ä…ß");
    }
}
