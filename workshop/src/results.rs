//! What a comparison found: the one source of the table, the report and every other output.
//!
//! Sizes are bytes, times seconds, memory bytes. The file is JSON, see [`Results::read`].

use std::{fs, path::Path};

use anyhow::{Context, Result, ensure};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// How a moment is written for people, in UTC.
pub const DATE: &str = "%-d %B %Y, %H:%M UTC";

/// Of the file's format. A change that an older reader would misunderstand raises it.
pub const FORMAT: u32 = 1;

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Results {
    pub format: u32,
    pub begun: Timestamp,
    /// As it was typed.
    pub command: String,
    pub settings: Settings,
    pub machine: Machine,
    pub engine: Engine,
    /// In the order of the command line.
    pub images: Vec<Image>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Settings {
    /// Starts and stops of each image.
    pub runs: u32,
    /// Of the load on each image, after a warm-up.
    pub load_seconds: f64,
    /// Connections of the closed loop: each waits for its answer before it asks again.
    pub connections: u32,
}

/// The one that runs the containers, as its engine tells; with Docker Desktop that is a virtual one.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Machine {
    pub architecture: String,
    pub cpus: u64,
    /// Not of the engine, but of this machine, where the engine is on it.
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
    /// What it is called in tables and charts.
    pub label: String,
    /// `sha256:…`
    pub id: String,
    /// What a reader has to know about it, such as that its base is a stand-in.
    pub notes: Vec<String>,
    /// Why measuring ended early. What was measured before stands.
    pub failure: Option<String>,
    pub size: Size,
    pub start: Start,
    pub stop: Stop,
    pub memory: Memory,
    pub work: Work,
}

/// A figure, or why there is none.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Figure<T> {
    Value(T),
    NotAvailable(String),
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Size {
    /// What `docker images` says.
    pub engine_bytes: Figure<u64>,
    /// Of the files that a container sees.
    pub unpacked_bytes: Figure<u64>,
    /// Of the layers, gzipped, which a pull moves.
    pub compressed_bytes: Figure<u64>,
    pub layers: Figure<u64>,
    pub files: Figure<u64>,
    pub executables: Figure<u64>,
    /// Its path, where there is one.
    pub shell: Figure<Option<String>>,
    /// Their names.
    pub package_managers: Figure<Vec<String>>,
    /// Paths of files that run with their owner's or group's rights.
    pub setuid: Figure<Vec<String>>,
    /// As the image names it; `root` where it names none.
    pub user: Figure<String>,
    /// os-release's `PRETTY_NAME`, where there is one.
    pub base: Figure<Option<String>>,
    /// Packages that a scanner could see, by kind: dpkg, apk, pip, crate.
    pub packages: Figure<Vec<Packages>>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Packages {
    pub kind: String,
    pub count: u64,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Start {
    /// From the call that creates the container to the end of the first answer with status 200.
    pub create_to_answer: Figure<Spread>,
    /// From the start of the process, as the engine tells it, to the same moment.
    pub process_to_answer: Figure<Spread>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Stop {
    /// What `docker stop` would take.
    pub seconds: Figure<Spread>,
    /// Of the last run; where others differed, a note says so.
    pub exit_code: Figure<i64>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Memory {
    pub idle: Figure<InUse>,
    /// Right after the load.
    pub loaded: Figure<InUse>,
}

/// Of all the container's processes together. Page cache that is not mapped into one of them is not counted.
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
    /// Requests that got no answer, or not 200.
    pub errors: Figure<u64>,
    pub cpu_seconds_per_request: Figure<f64>,
    /// How many of the machine's processors the load generator itself kept busy.
    pub generator_cpus: Figure<f64>,
    /// Set when the image could have done more than the generator asked of it, with the numbers that tell.
    pub generator_was_the_bottleneck: Option<String>,
}

/// Of repeated measurements: what the middle one says, and how far the others are from it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Spread {
    /// In the order in which they were measured.
    pub samples: Vec<f64>,
}

impl Results {
    /// A file that [`Results::write`] wrote.
    pub fn read(file: &Path) -> Result<Self> {
        let text = fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
        let results: Results = serde_json::from_slice(&text).with_context(|| {
            format!("{} is not the results file of a comparison", file.display())
        })?;
        ensure!(
            results.format == FORMAT,
            "{} has format {}, this timber-workshop reads {FORMAT}",
            file.display(),
            results.format
        );
        Ok(results)
    }

    pub fn write(&self, file: &Path) -> Result<()> {
        let text = serde_json::to_string_pretty(self)? + "\n";
        fs::write(file, text).with_context(|| format!("cannot write {}", file.display()))
    }
}

impl Image {
    /// With nothing known yet.
    pub fn unmeasured(name: &str, label: &str) -> Self {
        fn none<T>() -> Figure<T> {
            Figure::NotAvailable("the image failed before this was measured".to_owned())
        }
        Image {
            name: name.to_owned(),
            label: label.to_owned(),
            id: String::new(),
            notes: Vec::new(),
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
                create_to_answer: none(),
                process_to_answer: none(),
            },
            stop: Stop {
                seconds: none(),
                exit_code: none(),
            },
            memory: Memory {
                idle: none(),
                loaded: none(),
            },
            work: Work {
                requests_per_second: none(),
                p50_seconds: none(),
                p99_seconds: none(),
                requests: none(),
                errors: none(),
                cpu_seconds_per_request: none(),
                generator_cpus: none(),
                generator_was_the_bottleneck: None,
            },
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
    /// None of no samples.
    pub fn new(samples: Vec<f64>) -> Option<Self> {
        (!samples.is_empty()).then_some(Spread { samples })
    }

    /// Of an even number of samples, the mean of the two in the middle.
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

/// What the tests show: one image that failed, figures that are not available, a label that is markup.
#[cfg(test)]
pub fn example() -> Results {
    serde_json::from_str(include_str!("../tests/results.json")).unwrap()
}

#[cfg(test)]
mod tests {
    use super::Spread;

    #[expect(clippy::float_cmp, reason = "whole numbers are exact")]
    #[test]
    fn the_median_is_in_the_middle() {
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
