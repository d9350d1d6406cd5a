//! The results of a comparison, from which all outputs are made.
//!
//! Sizes are in bytes and times in seconds. The file is JSON: see [`Results::read`].

mod older;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt, fs,
    path::Path,
};

use anyhow::{Context, Result, ensure};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::{statistics, units::number};

/// Format of dates in reports, in UTC.
pub const DATE: &str = "%-d %B %Y, %H:%M UTC";

/// Version of the file's format. A change that older versions of the tool cannot read increases it.
pub const FORMAT: u32 = 3;

/// Follows the label of an image that was built with a stand-in, in every output.
const STAND_IN_MARK: &str = "†";

/// Value of [`StandIn::image`] if only the Docker label is known, which an image inherits.
pub const BASE_IMAGE: &str = "its base image";

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Results {
    pub format: u32,
    pub begun: Timestamp,
    /// The command line, which repeats the comparison.
    pub command: String,
    pub settings: Settings,
    pub machine: Machine,
    pub engine: Engine,
    /// In the order of the command line.
    pub images: Vec<Image>,
    /// Of all pairs of images. For readers of the file: outputs are made from the figures.
    #[serde(default)]
    pub differences: Vec<Difference>,
}

/// The figures in which two images differ by more than chance.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Difference {
    /// Labels.
    pub images: [String; 2],
    pub figures: Vec<String>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Settings {
    /// Number of rounds without a load. In each of them, each image gets a new container.
    pub rounds: u32,
    /// Number of rounds with a load. Zero: no load, or an older file.
    #[serde(default)]
    pub load_rounds: u32,
    /// Duration of each kind of load in a round. Zero: no load.
    pub load_seconds: f64,
    /// Number of connections of the load.
    pub connections: u32,
    /// Requests per second of the load at a fixed rate, the same for all images.
    pub fixed_rate: Option<f64>,
    /// Requests per second that the load generator reaches with a server that does nothing.
    pub generator_limit: Option<f64>,
}

/// The machine that runs the containers, as the engine describes it. With Docker Desktop it is a
/// virtual one.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Machine {
    pub architecture: String,
    pub cpus: u64,
    /// Read from this machine. `None`: the engine runs on another kernel.
    pub cpu_model: Option<String>,
    pub memory_bytes: u64,
    pub kernel: String,
    pub operating_system: String,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Engine {
    /// `Docker Engine` or `Podman`.
    pub name: String,
    pub version: String,
    pub storage_driver: String,
    pub cgroup_version: String,
    pub rootless: bool,
    /// How requests reached the containers.
    #[serde(default)]
    pub reached: Reached,
}

/// How requests reach the containers. Figures of different ways cannot be compared.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reached {
    /// Over a port that the engine forwards.
    #[default]
    #[serde(rename = "published ports")]
    PublishedPorts,
    /// From a container, directly.
    #[serde(rename = "container network")]
    ContainerNetwork,
}

impl fmt::Display for Reached {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(match self {
            Reached::PublishedPorts => "published ports",
            Reached::ContainerNetwork => "a container network",
        })
    }
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Image {
    pub name: String,
    /// Its name in tables and charts.
    pub label: String,
    /// `sha256:…`
    pub id: String,
    /// Facts without which its figures would be misunderstood.
    pub notes: Vec<String>,
    /// Images that stood in for official ones when it was built.
    #[serde(default)]
    pub stand_ins: Vec<StandIn>,
    /// Why its measurement ended early. Earlier figures remain valid.
    pub failure: Option<String>,
    /// By the key of their rows in `figures.rs`.
    pub figures: BTreeMap<String, Figure>,
}

/// A local image under the name of an official one, for hosts without an image registry.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StandIn {
    /// Name of the official image.
    pub image: String,
    pub made_from: String,
}

/// A figure of an image, or the reason why it is not available.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Figure {
    /// Counted: always the same for the same image.
    Count(u64),
    /// Counted by kind.
    Kinds(BTreeMap<String, u64>),
    /// Counted by name.
    Names(Vec<String>),
    /// Measured, in the order of the rounds.
    Samples(Vec<f64>),
    /// Computed from counts, so as exact as they are.
    Computed(f64),
    Words(String),
    NotAvailable(String),
}

impl Results {
    /// Reads a file that this or an older version of the tool wrote.
    ///
    /// # Errors
    /// The file cannot be read, is not a results file, or was written by a newer version.
    pub fn read(file: &Path) -> Result<Self> {
        let invalid = || {
            format!(
                "invalid results file {}: expected a results.json of cargo workshop compare",
                file.display()
            )
        };
        let text = fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
        let value: serde_json::Value = serde_json::from_slice(&text).with_context(invalid)?;
        let format = value["format"].as_u64().with_context(invalid)?;
        ensure!(
            (1..=FORMAT.into()).contains(&format),
            "unsupported format {format} of {}: this version of the tool reads formats up to {FORMAT}",
            file.display()
        );
        let value = if format < FORMAT.into() {
            older::upgrade(value)
        } else {
            value
        };
        serde_json::from_value(value).with_context(invalid)
    }

    pub fn write(&self, file: &Path) -> Result<()> {
        let text = serde_json::to_string_pretty(self)? + "\n";
        fs::write(file, text).with_context(|| format!("cannot write {}", file.display()))
    }

    pub fn has_load(&self) -> bool {
        self.settings.load_seconds > 0.0
    }

    /// Returns what [`Image::marked_label`] means, if an image was built with a stand-in.
    pub fn stand_in_legend(&self) -> Option<String> {
        let mut names = BTreeSet::new();
        for image in &self.images {
            names.extend(
                image
                    .stand_ins
                    .iter()
                    .map(|stand_in| match &*stand_in.image {
                        BASE_IMAGE => format!("the base image of {}", image.label),
                        known => known.to_owned(),
                    }),
            );
        }
        let names = Vec::from_iter(names).join(", ");
        (!names.is_empty()).then(|| {
            format!("{STAND_IN_MARK} Built with local stand-ins for official images: {names}.")
        })
    }
}

impl Settings {
    /// Returns the number of rounds: `10 rounds without load and 20 under load`.
    pub fn describe_rounds(&self) -> String {
        let rounds = match self.rounds {
            1 => "1 round".to_owned(),
            rounds => format!("{rounds} rounds"),
        };
        match self.load_rounds {
            0 => rounds,
            load => format!("{rounds} without load and {load} under load"),
        }
    }
}

impl Image {
    /// Returns an image without any figure.
    pub fn unmeasured(name: &str, label: &str) -> Self {
        Image {
            name: name.to_owned(),
            label: label.to_owned(),
            id: String::new(),
            notes: Vec::new(),
            stand_ins: Vec::new(),
            failure: None,
            figures: BTreeMap::new(),
        }
    }

    /// Returns the label, marked if the image was built with a stand-in.
    pub fn marked_label(&self) -> String {
        if self.stand_ins.is_empty() {
            self.label.clone()
        } else {
            format!("{}\u{a0}{STAND_IN_MARK}", self.label)
        }
    }

    /// Returns its name, if the label is another.
    pub fn name_below(&self) -> Option<&str> {
        (self.name != self.label).then_some(&self.name)
    }

    /// Returns all notes, those about stand-ins first.
    pub fn all_notes(&self) -> impl Iterator<Item = String> {
        let stand_ins = self.stand_ins.iter().map(|StandIn { image, made_from }| {
            format!("built with a stand-in for {image}, made from {made_from}")
        });
        stand_ins.chain(self.notes.iter().cloned())
    }

    /// Returns the figure of a key, or why there is none.
    pub fn figure(&self, key: &str) -> Figure {
        self.figures.get(key).cloned().unwrap_or_else(|| {
            let reason = match self.failure {
                Some(_) => "the image failed",
                None => "not measured",
            };
            Figure::NotAvailable(reason.to_owned())
        })
    }
}

impl Figure {
    /// Returns the count, or the median of the samples.
    pub fn value(&self) -> Option<f64> {
        match self {
            Figure::Count(count) => Some(number(*count)),
            Figure::Kinds(kinds) => Some(number(kinds.values().sum())),
            Figure::Names(names) => Some(number(names.len() as u64)),
            Figure::Samples(samples) => statistics::median(samples),
            Figure::Computed(value) => Some(*value),
            Figure::Words(_) | Figure::NotAvailable(_) => None,
        }
    }

    /// Returns the lowest and the highest value.
    pub fn extent(&self) -> Option<(f64, f64)> {
        match self {
            Figure::Samples(samples) => statistics::range(samples),
            _ => self.value().map(|value| (value, value)),
        }
    }

    /// Returns why the figure is not available.
    pub fn reason(&self) -> Option<&str> {
        match self {
            Figure::NotAvailable(reason) => Some(reason),
            Figure::Samples(samples) if samples.is_empty() => Some("no round was completed"),
            _ => None,
        }
    }
}

impl From<Result<Figure>> for Figure {
    fn from(result: Result<Figure>) -> Self {
        result.unwrap_or_else(|error| Figure::NotAvailable(format!("{error:#}")))
    }
}

/// Returns results with an image that failed, figures that are not available, and a label that is
/// markup.
#[cfg(test)]
pub fn example() -> Results {
    serde_json::from_str(include_str!("../tests/results.json")).unwrap()
}

#[cfg(test)]
mod tests {
    use super::{BASE_IMAGE, FORMAT, Figure, Results, example};

    #[test]
    fn rejects_results_of_newer_versions_and_other_files() {
        let error = |text: &str| {
            let file = tempfile::NamedTempFile::new().unwrap();
            std::fs::write(file.path(), text).unwrap();
            Results::read(file.path()).unwrap_err().to_string()
        };
        let mut results = serde_json::to_value(example()).unwrap();
        results["format"] = (FORMAT + 1).into();
        let newer = error(&results.to_string());
        assert!(newer.contains("unsupported format 4"), "{newer}");
        for text in ["{}", "[]", "{\"format\": 3}", "no JSON"] {
            let invalid = error(text);
            assert!(
                invalid.contains("invalid results file"),
                "{text}: {invalid}"
            );
        }
    }

    #[test]
    fn stand_ins_are_marked_and_named() {
        let results = example();
        assert_eq!(
            results.stand_in_legend().unwrap(),
            "† Built with local stand-ins for official images: python:3.11, rust:1.95-alpine."
        );
        assert_eq!(results.images[2].marked_label(), "timber-tutorial:2\u{a0}†");
        assert_eq!(results.images[1].marked_label(), "timber-tutorial:1");
        assert_eq!(
            results.images[2].all_notes().next().unwrap(),
            "built with a stand-in for rust:1.95-alpine, made from Debian packages and the official \
             Rust toolchain"
        );
    }

    #[test]
    fn an_unknown_base_image_is_named_after_its_image() {
        let mut results = example();
        results.images[2].stand_ins[0].image = BASE_IMAGE.to_owned();
        let legend = results.stand_in_legend().unwrap();
        assert!(
            legend.ends_with(": python:3.11, the base image of timber-tutorial:2."),
            "{legend}"
        );
    }

    #[test]
    fn rounds_are_counted_by_kind() {
        let mut settings = example().settings;
        let mut describe = |rounds, load_rounds| {
            (settings.rounds, settings.load_rounds) = (rounds, load_rounds);
            settings.describe_rounds()
        };
        assert_eq!(describe(1, 0), "1 round");
        assert_eq!(describe(10, 20), "10 rounds without load and 20 under load");
    }

    #[test]
    fn figures_have_a_value_or_a_reason() {
        let samples = Figure::Samples(vec![0.3, 0.1, 0.2]);
        assert_eq!(
            (samples.value(), samples.extent()),
            (Some(0.2), Some((0.1, 0.3)))
        );
        assert_eq!(Figure::Names(vec!["apt".into()]).value(), Some(1.0));
        assert_eq!(
            Figure::Samples(Vec::new()).reason(),
            Some("no round was completed")
        );
        assert_eq!(
            example().images[3].figure("stop").reason(),
            Some("the image failed")
        );
    }
}
