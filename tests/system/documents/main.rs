//! Types the commands of the documents, and compares the output with what the documents show. Run
//! `.ci/install`, then, as root,
//! `cargo test --manifest-path tests/system/Cargo.toml --test documents -- --ignored`. The ports 8000,
//! 8080 to 8082 and 8090 must be free, and the engine must not be in a swarm. The talk in presenterm needs what
//! `FULL=yes .ci/install` installs. Without `--ignored`, the tests only check that every command is accounted
//! for.
//!
//! With `UPDATE=1`, the documents get the outputs of this run where these differ by more than what varies by
//! nature. Exit codes are not updated.

#[allow(dead_code, reason = "the browser tests use the rest")]
#[path = "../../support/mod.rs"]
mod support;

#[allow(dead_code, reason = "the image tests use the rest")]
#[path = "../image/docker.rs"]
mod docker;

#[allow(dead_code, reason = "the swarm tests use the rest")]
#[path = "../swarm/swarm.rs"]
mod swarm;

mod clone;
mod leaks;
mod matching;
mod merging;
mod offline;
mod page;
mod runner;
mod runner_tests;
mod shell;
mod stage;

use std::path::Path;
use std::time::Duration;
use std::{env, fs};

use clone::Clone;
use docker::ROOT;
use page::Page;
use swarm::{Engine, ready};

/// Documents whose commands are typed. In the others, each command needs a comment that says why not.
const TYPED: [&str; 8] = [
    "README.md",
    "docs/cluster.md",
    "docs/from-1-gb-to-nothing.md",
    "docs/lessons.md",
    "docs/pipeline.md",
    "docs/talk.md",
    "docs/tutorial.md",
    "docs/why-scratch.md",
];

#[test]
fn every_command_of_the_documents_is_accounted_for() {
    let mut unknown = Vec::new();
    for document in documents() {
        let page = read_page(&document);
        let steps = page.steps.iter();
        let is_unknown =
            |step: &&page::Step| step.how.skipped.is_none() && !TYPED.contains(&document.as_str());
        unknown.extend(
            steps
                .clone()
                .filter(is_unknown)
                .map(|step| format!("{document}:{}: $ {}", step.line, step.command)),
        );
        for step in steps.filter(|step| step.how.needs_cluster) {
            assert_eq!(
                step.shown, "",
                "{document}:{}: output of a command that no test types",
                step.line
            );
        }
    }
    assert!(
        unknown.is_empty(),
        "no test types these commands; type them, or say why not in a comment above (see page.rs):\n{}",
        unknown.join("\n")
    );
}

/// The tutorial explains the Dockerfile line by line.
#[test]
fn the_tutorial_quotes_the_repository() {
    let tutorial = read("docs/tutorial.md");
    for (language, file, min_blocks) in [
        ("dockerfile", "Dockerfile.musl", 1),
        ("rust", "src/api.rs", 2),
        ("python", "workshop/hug/app.py", 1),
    ] {
        let source = without_comments(language, &read(file));
        let blocks: Vec<_> = tutorial
            .split(&format!("\n```{language}\n"))
            .skip(1)
            .map(|rest| rest.split("```").next().unwrap())
            .collect();
        assert!(
            blocks.len() >= min_blocks,
            "{} blocks of {language}",
            blocks.len()
        );
        for block in blocks {
            assert!(
                source.contains(block),
                "{file} does not contain this:\n{block}"
            );
        }
    }
    assert!(tutorial.contains(&format!("```dockerfile\n{}```", read("Dockerfile.musl"))));
}

#[test]
#[ignore = "needs Docker Engine"]
fn readme_prints_what_it_shows() {
    perform("README.md", Clone::new().path());
}

#[test]
#[ignore = "needs Docker Engine"]
fn tutorial_prints_what_it_shows() {
    perform("docs/tutorial.md", Clone::new().path());
}

#[test]
#[ignore = "needs Docker Engine; takes minutes"]
fn from_1_gb_to_nothing_prints_what_it_shows() {
    perform("docs/from-1-gb-to-nothing.md", Clone::new().path());
}

#[test]
#[ignore = "needs Docker Engine, root, nsenter and trivy"]
fn why_scratch_prints_what_it_shows() {
    perform("docs/why-scratch.md", Clone::new().path());
}

#[test]
#[ignore = "needs Docker Engine, Compose 2 and kubectl"]
fn cluster_prints_what_it_shows() {
    perform("docs/cluster.md", Path::new(ROOT));
}

#[test]
#[ignore = "needs Docker Engine"]
fn lessons_print_what_they_show() {
    perform("docs/lessons.md", Path::new(ROOT));
}

#[test]
#[ignore = "needs Docker Engine"]
fn pipeline_prints_what_it_shows() {
    perform("docs/pipeline.md", Clone::new().path());
}

#[test]
#[ignore = "needs Docker Engine"]
fn talk_prints_what_it_shows() {
    perform("docs/talk.md", Path::new(ROOT));
}

#[test]
#[ignore = "needs Docker Engine, presenterm and tmux"]
fn talk_fits_on_its_slides() {
    let page = read_page("docs/talk.md");
    let mut engine = Engine::claim();
    check_ports();
    prepare_talk();
    swarm::compile_watch();
    let mut wrong = stage::show(&page, &mut engine, 80, 24);
    wrong.extend(stage::show(&page, &mut engine, 120, 40));
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Panics if a port of the pages is in use.
fn check_ports() {
    for port in [8000, 8080, 8081, 8082, 8090] {
        let listener = std::net::TcpListener::bind(("::", port));
        listener.unwrap_or_else(|error| panic!("port {port}: {error}"));
    }
}

/// Builds the images that the presenter builds the day before.
fn prepare_talk() {
    let page = read_page("docs/talk.md");
    let commands = page.steps.iter().map(|step| &step.command);
    for build in commands.filter(|command| command.starts_with("docker build ")) {
        docker::build(build, ROOT);
    }
}

/// Types the commands of a document. `clone` is a clone of the repository, or the repository itself, where the
/// tool is compiled already.
fn perform(document: &str, clone: &Path) {
    assert!(TYPED.contains(&document), "{document} is not in TYPED");
    let page = read_page(document);
    let mut engine = Engine::claim();
    check_ports();
    let mut _hidden = None;
    match document {
        "README.md" => {}
        "docs/talk.md" => prepare_talk(),
        "docs/tutorial.md" => {
            _hidden = Some(OtherTags::hide());
        }
        _ => _ = (ready(1), ready(2)),
    }
    if page
        .steps
        .iter()
        .any(|step| step.how.skipped.is_none() && step.command.contains("cargo workshop"))
    {
        // Before the page, or the rollout is over before the watch starts.
        swarm::compile_watch();
    }
    let updates = env::var("UPDATE").is_ok_and(|update| update == "1");
    let report = runner::perform(&page, clone, Some(&mut engine), updates)
        .unwrap_or_else(|failure| panic!("{failure}"));
    for (section, duration) in &report.durations {
        println!("{:>5} s  {section}", duration.as_secs());
    }
    let all: Duration = report.durations.iter().map(|(_, duration)| *duration).sum();
    println!("{:>5} s  {document}", all.as_secs());
    if !report.outputs.is_empty() {
        assert!(
            read(document) == page.text,
            "{document} has been edited meanwhile, so its outputs are not updated"
        );
        fs::write(
            Path::new(ROOT).join(document),
            page.with_outputs(&report.outputs),
        )
        .unwrap();
        let places = report
            .outputs
            .keys()
            .map(|step| page.steps[*step].line.to_string());
        println!(
            "{document}: new outputs at lines {}: see git diff",
            places.collect::<Vec<_>>().join(", ")
        );
    }
}

/// Hides the images named timber-tutorial that the tutorial does not show. They get their names back when
/// dropped.
struct OtherTags;

impl OtherTags {
    fn hide() -> Self {
        // Of a test that was killed.
        rename("timber-hidden", "timber-tutorial", |_| true);
        rename("timber-tutorial", "timber-hidden", |tag| {
            !["1", "2"].contains(&tag)
        });
        OtherTags
    }
}

impl Drop for OtherTags {
    fn drop(&mut self) {
        rename("timber-hidden", "timber-tutorial", |_| true);
    }
}

fn rename(from: &str, to: &str, is_meant: impl Fn(&str) -> bool) {
    let tags = docker::docker(&format!("images --format {{{{.Tag}}}} {from}"));
    for tag in tags.lines().filter(|tag| is_meant(tag)) {
        docker::docker(&format!("tag {from}:{tag} {to}:{tag}"));
        docker::docker(&format!("rmi --no-prune {from}:{tag}"));
    }
}

/// README.md and all documents in docs.
fn documents() -> Vec<String> {
    let files = fs::read_dir(Path::new(ROOT).join("docs")).unwrap();
    let names = files.map(|file| file.unwrap().file_name().into_string().unwrap());
    let mut documents: Vec<_> = names
        .filter_map(|name| Some(format!("docs/{}.md", name.strip_suffix(".md")?)))
        .collect();
    documents.push("README.md".to_owned());
    documents.sort();
    documents
}

fn read(file: &str) -> String {
    fs::read_to_string(Path::new(ROOT).join(file)).unwrap_or_else(|error| panic!("{file}: {error}"))
}

fn read_page(document: &str) -> Page {
    Page::parse(document, &read(document))
}

/// The tutorial's Python omits a comment that is there for the maintainers.
fn without_comments(language: &str, source: &str) -> String {
    let is_kept = |line: &&str| language != "python" || !line.starts_with('#');
    let lines: Vec<_> = source.lines().filter(is_kept).collect();
    lines.join("\n") + "\n"
}
