//! Table, Markdown, JSON, files and exit codes.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    path::Path,
    process::{Command, Stdio},
};

use serde_json::Value;

use crate::{RESULTS, changed, show, stderr, stdout};

const REASON: &str = "the image failed";

/// Returns the results without the failed image.
fn sound(directory: &Path) -> std::path::PathBuf {
    changed(directory, |results| {
        drop(results["images"].as_array_mut().unwrap().pop());
    })
}

#[test]
fn the_table_contains_figures_and_reasons() {
    let output = show(Path::new(RESULTS), &["--all"]);
    let text = stdout(&output);
    for part in [
        "882 kB",
        "79.7 MB",
        "1.02 GB",
        "0.348 s (0.328 – 0.412)",
        "31 (crate 31)",
        "47,731/s (47,307 – 48,961)",
        "n/a [1]",
    ] {
        assert!(text.contains(part), "missing {part} in\n{text}");
    }
    assert!(
        text.contains(&format!("] not available: {REASON}")),
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
fn json_is_the_format_of_the_results_file() {
    let read = |text: &[u8]| serde_json::from_slice::<Value>(text).unwrap();
    let output = show(Path::new(RESULTS), &["--format", "json"]);
    assert_eq!(read(&output.stdout), read(&fs::read(RESULTS).unwrap()));
}

/// Figures in the README's table, in its order.
const README_FIGURES: [&str; 6] = [
    "pulled size",
    "files",
    "shell",
    "process to first response",
    "idle memory",
    "CPU per request",
];

/// Returns the cells of a Markdown table, line by line.
fn cells(markdown: &str) -> Vec<Vec<&str>> {
    let rows = markdown.lines().filter_map(|line| {
        let line = line.strip_prefix('|')?.strip_suffix('|')?;
        Some(line.split('|').map(str::trim).collect())
    });
    rows.collect()
}

#[test]
fn the_readme_has_the_figures_of_its_picture() {
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/..");
    let file = format!("{root}/docs/comparison/results.json");
    let printed = stdout(&show(Path::new(&file), &["--all", "--format", "markdown"]));
    let readme = fs::read_to_string(format!("{root}/README.md")).unwrap();
    let mut rows = cells(&readme);
    rows.retain(|cells| README_FIGURES.contains(&cells[0]));
    let names: Vec<_> = rows.iter().map(|cells| cells[0]).collect();
    assert_eq!(names, README_FIGURES, "figures in the table of README.md");
    // The tool prints one line for each image, below the names and a rule.
    let printed_cells = cells(&printed);
    for row in rows {
        let column = printed_cells[0].iter().position(|name| *name == row[0]);
        let column = column.unwrap_or_else(|| panic!("no {} in {printed}", row[0]));
        let figures: Vec<_> = printed_cells[2..].iter().map(|line| line[column]).collect();
        // The last column of the README says what the figure does not show.
        assert_eq!(row[1..row.len() - 1], figures, "{} in README.md", row[0]);
        assert!(row[row.len() - 1].len() > 10, "{row:?}");
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
        stdout(&show(&file, &["--format", "github"])),
        "the default"
    );
    let rows: Vec<_> = text.lines().filter(|line| line.starts_with('|')).collect();
    assert_eq!(rows.len(), 8, "{text}");
    for row in &rows {
        assert_eq!(row.chars().count(), rows[0].chars().count(), "{text}");
    }
    assert!(rows[0].contains(" pulled size "), "{text}");
    assert!(rows[4].starts_with("| timber-tutorial:2 † "), "{text}");
    assert!(
        text.contains(&format!("- [1] not available: {REASON}")),
        "{text}"
    );
    let table = stdout(&show(&file, &["--format", "table", "--all"]));
    assert!(table.contains("setuid files"), "{table}");
}

#[test]
fn without_a_load_its_figures_are_omitted() {
    let directory = tempfile::tempdir().unwrap();
    let file = changed(directory.path(), |results| {
        results["settings"]["load_seconds"] = 0.0.into();
    });
    let directory = directory.path().to_str().unwrap();
    let shown = |format| {
        let arguments = ["--all", "--format", format, "--output", directory];
        stdout(&show(&file, &arguments))
    };
    let [table, markdown] = ["table", "markdown"].map(shown);
    let page = fs::read_to_string(format!("{directory}/report.html")).unwrap();
    // The page ends with the results file.
    let page = page.split("results.json, with all").next().unwrap();
    for text in [&table, &markdown, page] {
        assert!(text.contains("idle memory"), "{text}");
        assert!(!text.contains("CPU per request"), "{text}");
        assert!(!text.contains("memory after the load"), "{text}");
    }
    assert!(page.contains("<dt>Settings<dd>10 rounds"), "{page}");
    assert!(!page.contains("Load over"), "{page}");
}

#[test]
fn by_default_six_figures_are_shown() {
    let rows = |arguments: &[&str]| {
        let arguments = [&["--format", "markdown"], arguments].concat();
        let text = stdout(&show(Path::new(RESULTS), &arguments));
        cells(&text)[0].len() - 1
    };
    assert_eq!(rows(&[]), 6);
    assert!(rows(&["--all"]) > 25);
    let table = stdout(&show(Path::new(RESULTS), &[]));
    assert!(table.contains("--all shows the other figures"), "{table}");
}

#[test]
fn markdown_escapes_names() {
    let directory = tempfile::tempdir().unwrap();
    let file = changed(directory.path(), |results| {
        results["images"][1]["label"] = "a|b\n`c`".into();
    });
    let text = stdout(&show(&file, &["--format", "markdown"]));
    let rows: Vec<_> = text.lines().filter(|line| line.starts_with('|')).collect();
    assert_eq!(rows.len(), 6, "names, a rule, and four images");
    for row in &rows {
        assert_eq!(row.replace("\\|", "").matches('|').count(), 8, "{row}");
    }
    assert!(rows[5].contains("\\<b\\>"), "{}", rows[5]);
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
            "timber-tutorial:0 (Python): stop 10.2 s (9.97 – 10.4) exceeds the limit of 1 s",
        ]
    );
}

#[test]
fn a_baseline_shows_changes() {
    let directory = tempfile::tempdir().unwrap();
    let earlier = changed(directory.path(), |results| {
        results["images"].as_array_mut().unwrap().truncate(3);
        let figures = &mut results["images"][2]["figures"];
        figures["unpacked"]["count"] = 883_066.into();
        figures["start"]["samples"][0] = 0.5.into();
    });
    let same = sound(directory.path());
    let compared = |file: &Path, earlier: &Path| {
        let earlier = earlier.to_str().unwrap();
        show(file, &["--all", "--baseline", earlier])
    };
    let output = compared(&same, &earlier);
    let text = stdout(&output);
    assert!(text.contains("882 kB, -0.1 %"), "{text}");
    assert!(text.contains(", ≈"), "{text}");
    assert!(
        text.contains("≈ means that the change may be chance"),
        "{text}"
    );
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));

    let output = compared(&earlier, &same);
    assert_eq!(
        (output.status.code(), stderr(&output).as_str()),
        (
            Some(1),
            "timber-tutorial:2: unpacked is worse than in the baseline: 883 kB, before 882 kB\n"
        )
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
