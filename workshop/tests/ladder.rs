//! docs/from-1-gb-to-nothing.md has the figures and the Dockerfiles of its steps. tests/system/documents types
//! its commands.

use std::{
    fs,
    path::Path,
    process::{Command, Output},
};

use serde_json::Value;

const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");
const DOCUMENT: &str = "docs/from-1-gb-to-nothing.md";
const DIRECTORY: &str = "docs/from-1-gb-to-nothing";
/// Builds all steps again, measures them, and writes what the document shows.
const MEASURE: &str =
    "cargo workshop compare --ladder --rebuild --output docs/from-1-gb-to-nothing";
const PRINT: &str = "cargo workshop show docs/from-1-gb-to-nothing/results.json";

fn read(file: &str) -> String {
    fs::read_to_string(Path::new(ROOT).join(file)).unwrap_or_else(|error| panic!("{file}: {error}"))
}

fn results() -> Value {
    serde_json::from_str(&read(&format!("{DIRECTORY}/results.json"))).unwrap()
}

/// The directories of the steps, in order.
fn steps() -> Vec<String> {
    let entries = fs::read_dir(Path::new(ROOT).join(DIRECTORY)).unwrap();
    let directories = entries.map(Result::unwrap).filter(|e| e.path().is_dir());
    let mut steps: Vec<_> = directories
        .map(|directory| directory.file_name().into_string().unwrap())
        .collect();
    steps.sort();
    steps
}

fn workshop(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_timber-workshop"))
        .args(arguments)
        .current_dir(ROOT)
        .output()
        .unwrap()
}

/// Returns the content of /timber in an image.
fn program(image: &str) -> Vec<u8> {
    let copy = format!(
        "set -e; c=$(docker create --label timber.test=true {image}); docker cp $c:/timber - | tar -xO; docker rm $c >&2"
    );
    let output = Command::new("bash").args(["-c", &copy]).output().unwrap();
    assert!(
        output.status.success() && !output.stdout.is_empty(),
        "{output:?}"
    );
    output.stdout
}

/// Returns a counted figure of an image.
fn count(results: &Value, label: &str, key: &str) -> f64 {
    let images = results["images"].as_array().unwrap();
    let image = images.iter().find(|image| image["label"] == label);
    let image = image.unwrap_or_else(|| panic!("no {label} in the results: run {MEASURE}"));
    image["figures"][key]["count"].as_f64().unwrap()
}

/// Formats bytes with three digits, as the tool does.
fn bytes(bytes: f64) -> String {
    let (value, unit) = match bytes {
        b if b >= 999.5e6 => (b / 1e9, "GB"),
        b if b >= 999.5e3 => (b / 1e6, "MB"),
        b => (b / 1e3, "kB"),
    };
    let digits = if value < 9.995 {
        2
    } else {
        usize::from(value < 99.95)
    };
    format!("{value:.digits$} {unit}")
}

#[test]
fn the_document_has_the_measured_figures() {
    let document = read(DOCUMENT);
    let file = format!("{DIRECTORY}/results.json");
    let results = results();
    let printed = workshop(&["show", &file]).stdout;
    let printed = String::from_utf8(printed).unwrap();
    let (table, notes) = printed.split_once("\n\n").unwrap();
    assert!(
        document.contains(table),
        "{DOCUMENT} has other figures than {file}: copy this table, which {PRINT} prints\n{table}"
    );
    let text = document.split_whitespace().collect::<Vec<_>>().join(" ");
    if let Some(legend) = notes.lines().find_map(|line| line.strip_prefix("- †")) {
        assert!(text.contains(legend), "missing in {DOCUMENT}: †{legend}");
    }

    let command = results["command"].as_str().unwrap();
    let command = command.replace(" --rebuild", "");
    assert_eq!(command, MEASURE.replace(" --rebuild", ""), "in {file}");
    assert!(document.contains(&format!("$ {command}\n")), "{command}");
    let headings = document.lines().filter(|line| line.starts_with("## Step"));
    let found: Vec<_> = headings.collect();
    let mut before = None;
    for (step, found) in steps().iter().zip(&found) {
        let now = count(&results, step, "unpacked");
        let end = match before {
            None => format!(": {}", bytes(now)),
            Some(before) => format!(": −{}", bytes(before - now)),
        };
        assert!(
            found.ends_with(&end),
            "{DOCUMENT}: {found:?} does not end in {end:?}, as in {file}"
        );
        before = Some(now);
    }
    assert_eq!(found.len(), steps().len(), "{found:?}");
}

/// The document shows a Dockerfile, or the lines that differ from the one before, and the command that builds it.
#[test]
fn the_document_shows_what_each_step_changes() {
    let document = read(DOCUMENT);
    let mut before = String::new();
    for (number, step) in (1..).zip(steps()) {
        let dockerfile = format!("{DIRECTORY}/{step}/Dockerfile");
        let build = format!("\n$ docker build -f {dockerfile} -t timber-step:{number} ");
        assert!(document.contains(&build), "missing in {DOCUMENT}: {build}");
        let dockerfile = read(&dockerfile);
        let missing = |lines: &str, other: &str, sign: char| -> Vec<String> {
            let lines = lines.lines().filter(|line| !line.is_empty());
            lines
                .filter(|line| !other.lines().any(|known| known == *line))
                .map(|line| format!("{sign}{line}"))
                .collect()
        };
        let mut changes = missing(&before, &dockerfile, '-');
        changes.extend(missing(&dockerfile, &before, '+'));
        changes.sort();
        let is_shown = document
            .split("```diff\n")
            .skip(1)
            .map(|block| block.split("```").next().unwrap())
            .any(|block| {
                let mut lines: Vec<_> = block.lines().map(str::to_owned).collect();
                lines.sort();
                lines == changes
            });
        assert!(
            is_shown || document.contains(&format!("```dockerfile\n{dockerfile}```")),
            "{DOCUMENT} shows neither the Dockerfile of {step} nor its changes:\n{}",
            changes.join("\n")
        );
        before = dockerfile;
    }
}

/// Without a cache, the builds take up to ten minutes.
#[test]
#[ignore = "needs Docker Engine"]
fn each_step_has_its_figures() {
    let directory = tempfile::tempdir().unwrap();
    let output = directory.path().to_str().unwrap();
    let output = workshop(&[
        "compare",
        "--ladder",
        "--rebuild",
        "--rounds",
        "1",
        "--output",
        output,
    ]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    let now = fs::read(directory.path().join("results.json")).unwrap();
    let now: Value = serde_json::from_slice(&now).unwrap();
    for (step, image) in [
        ("timber-step:6", "timber-tutorial:2"),
        ("timber-step:7", "timber-tutorial:3"),
    ] {
        assert!(
            program(step) == program(image),
            "{step} and {image} contain different programs"
        );
    }
    let (committed, mut wrong) = (results(), Vec::new());
    for step in steps() {
        // The static steps differ by little. The others contain a distribution, which may be a
        // stand-in here or there.
        let is_static = count(&now, &step, "files") <= 1.0;
        let tolerance = if is_static { 0.02 } else { 0.15 };
        for figure in ["unpacked", "pull", "files"] {
            let [now, then] = [&now, &committed].map(|results| count(results, &step, figure));
            println!("{step}, {figure}: {now}, committed {then}");
            if (now - then).abs() > then * tolerance {
                wrong.push(format!("{step}, {figure}: {now}, committed {then}"));
            }
        }
    }
    assert!(
        wrong.is_empty(),
        "other figures than in {DIRECTORY}/results.json: run {MEASURE} on an otherwise idle machine, \
         then the tests of the document, which print what it must show\n{}",
        wrong.join("\n")
    );
}
