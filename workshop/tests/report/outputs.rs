//! Table, CSV, Markdown, JSON, files and exit codes.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    path::Path,
    process::{Command, Stdio},
};

use serde_json::Value;

use crate::{RESULTS, changed, show, stderr, stdout};

const REASON: &str = "the measurement ended early: no response with status 200 within 30 s";

/// Returns the results without the failed image.
fn sound(directory: &Path) -> std::path::PathBuf {
    changed(directory, |results| {
        drop(results["images"].as_array_mut().unwrap().pop());
    })
}

#[test]
fn the_table_contains_figures_and_reasons() {
    let output = show(Path::new(RESULTS), &[]);
    let text = stdout(&output);
    for part in [
        "882 kB",
        "79.7 MB",
        "1.02 GB",
        "0.352 s (0.331 – 0.410)",
        "31 (crate 31)",
        "48,210/s",
        "n/a [1]",
    ] {
        assert!(text.contains(part), "missing {part} in\n{text}");
    }
    assert!(
        text.contains(&format!("[1] not available: {REASON}")),
        "{text}"
    );
    assert!(
        text.contains("FAILED: no response with status 200 within 30 s"),
        "{text}"
    );
    assert!(!text.contains('\u{1b}'), "colors in a pipe:\n{text}");
    // One image failed.
    assert_eq!(output.status.code(), Some(1));
}

#[test]
fn names_cannot_control_the_terminal() {
    let directory = tempfile::tempdir().unwrap();
    let file = changed(directory.path(), |results| {
        results["images"][0]["label"] = "\u{1b}]0;title\u{7}\u{1b}[2J".into();
        results["images"][3]["failure"] = "\u{1b}[2J".into();
    });
    let output = show(&file, &["--fail-over", "size=1B"]);
    assert!(!stdout(&output).contains(['\u{1b}', '\u{7}']));
    assert!(!stderr(&output).contains(['\u{1b}', '\u{7}']));
}

#[test]
fn csv_contains_one_line_per_figure() {
    let output = stdout(&show(Path::new(RESULTS), &["--format", "csv"]));
    let mut reader = csv::Reader::from_reader(output.as_bytes());
    let columns = [
        "image",
        "label",
        "figure",
        "unit",
        "value",
        "lowest",
        "highest",
        "not_available",
        "stand_ins",
    ];
    assert_eq!(reader.headers().unwrap(), &columns[..]);
    let records: Vec<_> = reader.records().map(Result::unwrap).collect();
    let of = |image: &str, figure: &str| -> Vec<String> {
        let mut found = records
            .iter()
            .filter(|record| &record[0] == image && &record[2] == figure);
        let record = found
            .next()
            .unwrap_or_else(|| panic!("missing {figure} of {image}"));
        assert!(found.next().is_none());
        record.iter().skip(3).map(str::to_owned).collect()
    };
    assert_eq!(
        of("timber-tutorial:2", "size"),
        ["bytes", "882184", "", "", "", "rust:1.95-alpine"]
    );
    assert_eq!(
        of("timber-tutorial:2", "stop"),
        ["seconds", "0.192", "0.187", "0.205", "", "rust:1.95-alpine"]
    );
    assert_eq!(
        of("timber-tutorial:2", "errors"),
        ["count", "0", "", "", "", "rust:1.95-alpine"]
    );
    let broken = "registry.example/team/broken:latest";
    assert_eq!(of(broken, "errors"), ["count", "", "", "", REASON, ""]);
    assert!(
        records
            .iter()
            .any(|record| &record[1] == "broken <b>&\"</script>")
    );
}

#[test]
fn json_is_the_format_of_the_results_file() {
    let read = |text: &[u8]| serde_json::from_slice::<Value>(text).unwrap();
    let output = show(Path::new(RESULTS), &["--format", "json"]);
    assert_eq!(read(&output.stdout), read(&fs::read(RESULTS).unwrap()));
}

/// Figures in the README's table, in its order.
const README_FIGURES: [&str; 6] = [
    "Size: pulled",
    "Contents: files",
    "Contents: shell",
    "Start: process to first response",
    "Memory: idle",
    "Load: CPU per request",
];

/// Returns the cells of the table rows that begin with one of the README's figures.
fn figure_rows(markdown: &str) -> Vec<Vec<&str>> {
    let rows = markdown.lines().filter_map(|line| {
        let line = line.strip_prefix('|')?.strip_suffix('|')?;
        Some(line.split('|').map(str::trim).collect::<Vec<_>>())
    });
    rows.filter(|cells| README_FIGURES.contains(&cells[0]))
        .collect()
}

#[test]
fn the_readme_has_the_figures_of_its_picture() {
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/..");
    let file = format!("{root}/docs/comparison/results.json");
    let printed = stdout(&show(Path::new(&file), &["--format", "markdown"]));
    let readme = fs::read_to_string(format!("{root}/README.md")).unwrap();
    let rows = figure_rows(&readme);
    let names: Vec<_> = rows.iter().map(|cells| cells[0]).collect();
    assert_eq!(names, README_FIGURES, "figures in the table of README.md");
    for (row, printed) in rows.iter().zip(figure_rows(&printed)) {
        // The last column of the README says what the figure does not show.
        assert_eq!(row.len(), printed.len() + 1, "{row:?}");
        assert_eq!(row[..printed.len()], printed, "README.md");
        assert!(row[printed.len()].len() > 10, "{row:?}");
    }

    // The README may wrap the sentence about stand-ins.
    let readme = readme.split_whitespace().collect::<Vec<_>>().join(" ");
    let legend = printed.lines().find_map(|line| line.strip_prefix("- †"));
    if let Some(legend) = legend {
        let legend = format!("†{legend}");
        assert!(readme.contains(&legend), "missing in README.md: {legend}");
    } else {
        assert!(!readme.contains('†'), "README.md marks stand-ins");
    }
}

#[test]
fn more_than_five_images_have_one_line_each() {
    let directory = tempfile::tempdir().unwrap();
    let file = changed(directory.path(), |results| {
        let images = results["images"].as_array_mut().unwrap();
        images.extend_from_within(1..3);
        assert_eq!(images.len(), 6);
    });
    let text = stdout(&show(&file, &[]));
    assert_eq!(
        text,
        stdout(&show(&file, &["--format", "summary"])),
        "the default"
    );
    let rows: Vec<_> = text.lines().filter(|line| line.starts_with('|')).collect();
    assert_eq!(rows.len(), 8, "{text}");
    for row in &rows {
        assert_eq!(row.chars().count(), rows[0].chars().count(), "{text}");
    }
    assert!(rows[0].contains(" Size: pulled "), "{text}");
    assert!(rows[4].starts_with("| timber-tutorial:2 † "), "{text}");
    assert!(
        text.contains(&format!("- [2] not available: {REASON}")),
        "{text}"
    );
    let table = stdout(&show(&file, &["--format", "table"]));
    assert!(table.contains("CPU per request"), "{table}");
}

#[test]
fn without_a_load_its_figures_are_omitted() {
    let directory = tempfile::tempdir().unwrap();
    let file = changed(directory.path(), |results| {
        results["settings"]["load_seconds"] = 0.0.into();
    });
    let directory = directory.path().to_str().unwrap();
    let shown = |format| stdout(&show(&file, &["--format", format, "--output", directory]));
    let [table, markdown, csv] = ["table", "markdown", "csv"].map(shown);
    let page = fs::read_to_string(format!("{directory}/report.html")).unwrap();
    // The page ends with the results file.
    let page = page.split("results.json, with all").next().unwrap();
    for text in [&table, &markdown, page] {
        assert!(text.contains("idle, anonymous"), "{text}");
        assert!(!text.contains("CPU per request"), "{text}");
        assert!(!text.contains("after, anonymous"), "{text}");
    }
    assert!(csv.contains(",memory,") && !csv.contains(",cpu,"), "{csv}");
    assert!(table.contains("Memory: measured once"), "{table}");
    assert!(page.contains("without a load"), "{page}");
}

#[test]
fn markdown_escapes_names() {
    let directory = tempfile::tempdir().unwrap();
    let file = changed(directory.path(), |results| {
        results["images"][1]["label"] = "a|b\n`c`".into();
    });
    let text = stdout(&show(&file, &["--format", "markdown"]));
    let rows: Vec<_> = text.lines().filter(|line| line.starts_with('|')).collect();
    assert!(rows.len() > 20);
    for row in &rows {
        assert_eq!(row.replace("\\|", "").matches('|').count(), 6, "{row}");
    }
    assert!(rows[0].contains("\\<b\\>"), "{}", rows[0]);
}

#[test]
fn exceeded_limits_set_the_exit_code() {
    let directory = tempfile::tempdir().unwrap();
    let file = sound(directory.path());
    let code = |limits| show(&file, &["--fail-over", limits]).status.code();
    assert_eq!(show(&file, &[]).status.code(), Some(0));
    assert_eq!(
        code("size=2GB,timber-tutorial:2/size=900kB,stop=11s,start=2s,errors=0"),
        Some(0)
    );
    assert_eq!(code("timber-tutorial:2/size=882kB"), Some(1));
    assert_eq!(
        code("process=1s"),
        Some(1),
        "an unavailable figure meets no limit"
    );
    assert_eq!(code("size=900"), Some(2));

    let output = show(&file, &["--fail-over", "size=900kB,stop=1s"]);
    assert_eq!(
        stderr(&output).lines().collect::<Vec<_>>(),
        [
            "timber-tutorial:0 (Python): size 1.02 GB, 1,018,437,122 bytes, exceeds the limit of 900 kB",
            "timber-tutorial:1: size 79.7 MB, 79,711,247 bytes, exceeds the limit of 900 kB",
            "timber-tutorial:0 (Python): stop 10.2 s (10.2 – 10.2) exceeds the limit of 1 s",
        ]
    );
}

#[test]
fn a_baseline_shows_changes() {
    let directory = tempfile::tempdir().unwrap();
    let earlier = changed(directory.path(), |results| {
        results["images"][2]["size"]["engine_bytes"]["value"] = 881_302.into();
        results["images"][2]["stop"]["seconds"]["value"]["samples"] = serde_json::json!([0.1, 0.2]);
    });
    let earlier = earlier.to_str().unwrap();
    let text = stdout(&show(Path::new(RESULTS), &["--baseline", earlier]));
    assert!(text.contains("882 kB, +0.1 %"), "{text}");
    assert!(text.contains("0.192 s (0.187 – 0.205), ≈"), "{text}");
    assert!(text.contains("≈ means that the ranges overlap"), "{text}");

    let csv = stdout(&show(
        Path::new(RESULTS),
        &["--baseline", earlier, "--format", "csv"],
    ));
    assert!(
        csv.contains(
            "timber-tutorial:2,timber-tutorial:2,size,bytes,882184,,,,rust:1.95-alpine,881302"
        ),
        "{csv}"
    );

    let output = show(Path::new(RESULTS), &["--baseline", "/no/such/file"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(
        stderr(&output).contains("--baseline: cannot read /no/such/file"),
        "{}",
        stderr(&output)
    );
}

#[test]
fn a_closed_pipe_is_not_an_error() {
    let directory = tempfile::tempdir().unwrap();
    let file = sound(directory.path());
    // More than fits into a pipe.
    let file = {
        let mut results: Value = serde_json::from_slice(&fs::read(file).unwrap()).unwrap();
        let image = results["images"][2].clone();
        results["images"] = std::iter::repeat_n(image, 200).collect();
        let file = directory.path().join("many.json");
        fs::write(&file, results.to_string()).unwrap();
        file
    };
    let mut child = Command::new(env!("CARGO_BIN_EXE_timber-workshop"))
        .arg("show")
        .arg(file)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::with_capacity(16, child.stdout.take().unwrap())
        .read_line(&mut line)
        .unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(
        (stderr(&output).as_str(), output.status.code()),
        ("", Some(0))
    );
}

#[test]
fn files_are_written_to_the_directory() {
    let directory = tempfile::tempdir().unwrap();
    let output = show(
        Path::new(RESULTS),
        &["--output", directory.path().join("new").to_str().unwrap()],
    );
    assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
    let read = |name: &str| fs::read(directory.path().join("new").join(name)).unwrap();
    serde_json::from_slice::<Value>(&read("results.json")).unwrap();
    // The signature, and width and height in the header.
    let png = read("report.png");
    assert_eq!(
        (&png[..8], &png[16..24]),
        (&b"\x89PNG\r\n\x1a\n"[..], &[0, 0, 7, 128, 0, 0, 4, 56][..])
    );

    for name in ["report.html", "report.svg"] {
        let text = String::from_utf8(read(name)).unwrap();
        assert!(text.contains("broken &lt;b&gt;&amp;&quot;"), "{name}");
        assert!(!text.contains("<b>&\""), "{name}");
        // The namespace of SVG is the only URL. Browsers do not fetch it.
        assert_eq!(
            text.replace("http://www.w3.org/2000/svg", "")
                .matches("://")
                .count(),
            0,
            "{name}"
        );
        for fact in [
            "Docker Engine 20.10.24",
            "6.1.0-25-amd64",
            "22 November 2026",
            "cargo workshop compare",
            "2602.15214",
            "timber-tutorial:2\u{a0}†",
            "† Built with local stand-ins for official images: python:3.11, rust:1.95-alpine.",
        ] {
            assert!(text.contains(fact), "missing {fact} in {name}");
        }
    }
}
