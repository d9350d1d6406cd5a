//! The results of a comparison, from which all outputs are made.
//!
//! Sizes are in bytes and times in seconds. The file is JSON: see [`Results::read`].

use std::{collections::BTreeSet, fs, path::Path};

use anyhow::{Context, Result, ensure};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// Format of dates in reports, in UTC.
pub const DATE: &str = "%-d %B %Y, %H:%M UTC";

/// Version of the file's format. A change that older versions of the tool cannot read increases it.
///
/// Version 1 had `create_to_answer` and `process_to_answer`, and no `stand_ins`.
pub const FORMAT: u32 = 2;

/// Follows the label of an image that was built with a stand-in, in every output.
const STAND_IN_MARK: &str = "†";

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
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Settings {
    /// Number of starts and stops of each image.
    pub runs: u32,
    /// Duration of the load on each image, after the warm-up. Zero: no load.
    pub load_seconds: f64,
    /// Number of connections of the load. Each waits for its response before it sends the next
    /// request.
    pub connections: u32,
}

/// The machine that runs the containers, as the engine describes it. With Docker Desktop it is a
/// virtual one.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Machine {
    pub architecture: String,
    pub cpus: u64,
    /// Read from this machine, if the engine runs on it.
    pub cpu_model: Figure<String>,
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
    pub size: Size,
    pub start: Start,
    pub stop: Stop,
    pub memory: Memory,
    pub work: Work,
}

/// A local image under the name of an official one, for hosts without an image registry.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StandIn {
    /// Name of the official image.
    pub image: String,
    pub made_from: String,
}

/// A figure, or the reason why it is not available.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Figure<T> {
    Value(T),
    NotAvailable(String),
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Size {
    /// Size that `docker images` shows.
    pub engine_bytes: Figure<u64>,
    /// Size of the files that a container sees.
    pub unpacked_bytes: Figure<u64>,
    /// Size of the compressed layers, which a pull transfers.
    pub compressed_bytes: Figure<u64>,
    pub layers: Figure<u64>,
    pub files: Figure<u64>,
    pub executables: Figure<u64>,
    /// Path of a shell, if there is one.
    pub shell: Figure<Option<String>>,
    /// Names of package managers.
    pub package_managers: Figure<Vec<String>>,
    /// Paths of files that run with the rights of their owner or group.
    pub setuid: Figure<Vec<String>>,
    /// The user that the image names, or `root`.
    pub user: Figure<String>,
    /// `PRETTY_NAME` in os-release, if there is one.
    pub base: Figure<Option<String>>,
    /// Packages that scanners find, by kind: dpkg, apk, pip, crate.
    pub packages: Figure<Vec<Packages>>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Packages {
    pub kind: String,
    pub count: u64,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Start {
    /// From the create call to the end of the first response with status 200.
    #[serde(alias = "create_to_answer")]
    pub create_to_response: Figure<Spread>,
    /// From the start of the process, as the engine reports it, to the end of the same response.
    #[serde(alias = "process_to_answer")]
    pub process_to_response: Figure<Spread>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Stop {
    /// Duration of `docker stop`.
    pub seconds: Figure<Spread>,
    /// Exit code of the last run. If others differed, there is a note.
    pub exit_code: Figure<i64>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Memory {
    pub idle: Figure<InUse>,
    /// Immediately after the load.
    pub loaded: Figure<InUse>,
}

/// Memory of all processes of a container. Page cache counts only if a process maps it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct InUse {
    pub anonymous_bytes: u64,
    pub file_bytes: u64,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Work {
    pub requests_per_second: Figure<f64>,
    pub p50_seconds: Figure<f64>,
    pub p99_seconds: Figure<f64>,
    pub requests: Figure<u64>,
    /// Requests without a response, or with another status than 200.
    pub errors: Figure<u64>,
    pub cpu_seconds_per_request: Figure<f64>,
    /// Number of processors that the load generator used.
    pub generator_cpus: Figure<f64>,
    /// Set if the image was not the bottleneck: the reason, with the numbers that show it.
    pub generator_was_the_bottleneck: Option<String>,
}

/// The samples of a repeated measurement.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Spread {
    /// In order of measurement, never empty if made by [`Spread::new`].
    pub samples: Vec<f64>,
}

impl Results {
    /// Reads a file that this or an older version of the tool wrote.
    ///
    /// # Errors
    /// The file cannot be read, is not a results file, or was written by a newer version.
    pub fn read(file: &Path) -> Result<Self> {
        let text = fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
        let mut results: Results = serde_json::from_slice(&text).with_context(|| {
            format!(
                "invalid results file {}: expected a results.json of cargo workshop compare",
                file.display()
            )
        })?;
        ensure!(
            (1..=FORMAT).contains(&results.format),
            "unsupported format {} of {}: this version of the tool reads formats up to {FORMAT}",
            results.format,
            file.display()
        );
        results.format = FORMAT;
        Ok(results)
    }

    pub fn write(&self, file: &Path) -> Result<()> {
        let text = serde_json::to_string_pretty(self)? + "\n";
        fs::write(file, text).with_context(|| format!("cannot write {}", file.display()))
    }
}

impl Results {
    pub fn has_load(&self) -> bool {
        self.settings.load_seconds > 0.0
    }

    /// Returns what [`Image::marked_label`] means, if an image was built with a stand-in.
    pub fn stand_in_legend(&self) -> Option<String> {
        let stand_ins = self.images.iter().flat_map(|image| &image.stand_ins);
        let names: BTreeSet<&str> = stand_ins.map(|stand_in| &*stand_in.image).collect();
        let names = Vec::from_iter(names).join(", ");
        (!names.is_empty()).then(|| {
            format!("{STAND_IN_MARK} Built with local stand-ins for official images: {names}.")
        })
    }
}

impl Image {
    /// Returns the label, marked if the image was built with a stand-in.
    pub fn marked_label(&self) -> String {
        if self.stand_ins.is_empty() {
            self.label.clone()
        } else {
            format!("{}\u{a0}{STAND_IN_MARK}", self.label)
        }
    }

    /// Returns all notes, those about stand-ins first.
    pub fn all_notes(&self) -> impl Iterator<Item = String> {
        let stand_ins = self.stand_ins.iter().map(|StandIn { image, made_from }| {
            format!("built with a stand-in for {image}, made from {made_from}")
        });
        let bottleneck = self.work.generator_was_the_bottleneck.iter();
        stand_ins
            .chain(self.notes.iter().cloned())
            .chain(bottleneck.cloned())
    }

    /// Returns an image without any figure.
    pub fn unmeasured(name: &str, label: &str) -> Self {
        const TOO_EARLY: &str = "the image failed before this measurement";
        fn none<T>() -> Figure<T> {
            Figure::NotAvailable(TOO_EARLY.to_owned())
        }
        Image {
            name: name.to_owned(),
            label: label.to_owned(),
            id: String::new(),
            notes: Vec::new(),
            stand_ins: Vec::new(),
            failure: None,
            size: Size {
                engine_bytes: none(),
                unpacked_bytes: none(),
                compressed_bytes: none(),
                layers: none(),
                files: none(),
                executables: none(),
                shell: none(),
                package_managers: none(),
                setuid: none(),
                user: none(),
                base: none(),
                packages: none(),
            },
            start: Start {
                create_to_response: none(),
                process_to_response: none(),
            },
            stop: Stop {
                seconds: none(),
                exit_code: none(),
            },
            memory: Memory {
                idle: none(),
                loaded: none(),
            },
            work: Work::unmeasured(TOO_EARLY),
        }
    }
}

impl Work {
    /// Returns a load without any figure.
    pub fn unmeasured(reason: &str) -> Self {
        let none = || Figure::NotAvailable(reason.to_owned());
        Work {
            requests_per_second: none(),
            p50_seconds: none(),
            p99_seconds: none(),
            requests: Figure::NotAvailable(reason.to_owned()),
            errors: Figure::NotAvailable(reason.to_owned()),
            cpu_seconds_per_request: none(),
            generator_cpus: none(),
            generator_was_the_bottleneck: None,
        }
    }
}

impl<T> Figure<T> {
    pub fn value(&self) -> Option<&T> {
        match self {
            Figure::Value(value) => Some(value),
            Figure::NotAvailable(_) => None,
        }
    }

    pub fn map<U>(&self, f: impl FnOnce(&T) -> U) -> Figure<U> {
        match self {
            Figure::Value(value) => Figure::Value(f(value)),
            Figure::NotAvailable(reason) => Figure::NotAvailable(reason.clone()),
        }
    }
}

impl<T> From<Result<T>> for Figure<T> {
    fn from(result: Result<T>) -> Self {
        match result {
            Ok(value) => Figure::Value(value),
            Err(error) => Figure::NotAvailable(format!("{error:#}")),
        }
    }
}

impl Spread {
    /// Returns `None` if there are no samples.
    pub fn new(samples: Vec<f64>) -> Option<Self> {
        (!samples.is_empty()).then_some(Spread { samples })
    }

    /// Returns the median: of an even number of samples, the mean of the two in the middle.
    pub fn median(&self) -> f64 {
        let sorted = self.sorted();
        let middle = sorted.len() / 2;
        if sorted.len() % 2 == 1 {
            sorted[middle]
        } else {
            f64::midpoint(sorted[middle - 1], sorted[middle])
        }
    }

    pub fn lowest(&self) -> f64 {
        self.sorted()[0]
    }

    pub fn highest(&self) -> f64 {
        self.sorted()[self.samples.len() - 1]
    }

    fn sorted(&self) -> Vec<f64> {
        let mut sorted = self.samples.clone();
        sorted.sort_by(f64::total_cmp);
        sorted
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
    use super::{FORMAT, Results, Spread, example};

    #[test]
    fn reads_results_of_older_versions_and_rejects_newer_ones() {
        let read = |text: &str| {
            let file = tempfile::NamedTempFile::new().unwrap();
            std::fs::write(file.path(), text).unwrap();
            Results::read(file.path())
        };
        let mut results = serde_json::to_value(example()).unwrap();
        results["format"] = 1.into();
        for image in results["images"].as_array_mut().unwrap() {
            image.as_object_mut().unwrap().remove("stand_ins").unwrap();
        }
        let old = results.to_string().replace("_to_response", "_to_answer");
        let old = read(&old).unwrap();
        assert_eq!(old.format, FORMAT);
        assert_eq!(old.stand_in_legend(), None);
        assert!(old.images[0].start.process_to_response.value().is_some());

        results["format"] = (FORMAT + 1).into();
        let error = read(&results.to_string()).unwrap_err().to_string();
        assert!(error.contains("unsupported format 3"), "{error}");
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

    #[expect(clippy::float_cmp, reason = "whole numbers are exact")]
    #[test]
    fn median_lowest_and_highest() {
        let spread = |samples: &[f64]| Spread::new(samples.to_vec()).unwrap();
        assert_eq!(spread(&[3.0]).median(), 3.0);
        assert_eq!(spread(&[9.0, 1.0, 2.0]).median(), 2.0);
        assert_eq!(spread(&[9.0, 1.0, 2.0, 4.0]).median(), 3.0);
        assert_eq!(
            (
                spread(&[9.0, 1.0, 2.0]).lowest(),
                spread(&[9.0, 1.0, 2.0]).highest()
            ),
            (1.0, 9.0)
        );
        assert_eq!(Spread::new(Vec::new()), None);
    }
}
