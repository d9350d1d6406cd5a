//! Output of results: the table, data formats, the report and the exit code. `cargo workshop show`.

mod chart;
mod limits;
mod markdown;
mod report;
mod slide;
mod table;
mod view;

use std::{
    fs,
    io::{ErrorKind, Write as _},
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context as _, Result, ensure};
use clap::{Args, ValueEnum};

use self::{limits::Limit, view::View};
use crate::{
    results::{Reached, Results, Settings},
    terminal::clean,
};

/// For more images than this, the default format has one line for each.
const MANY: usize = 5;

/// Arguments of `cargo workshop show`.
#[derive(Args)]
pub struct Arguments {
    /// Results file of a comparison, such as comparison/results.json
    file: PathBuf,

    #[command(flatten)]
    options: Options,
}

/// Options of all commands that print results.
#[derive(Args)]
pub struct Options {
    /// Show all figures, and not only those that carry the argument
    #[arg(long)]
    pub all: bool,

    /// Format of the output [default: table, or markdown for more than 5 images]
    #[arg(long, value_enum)]
    pub format: Option<Format>,

    /// Directory for results.json, report.html, report.svg and report.png [default: comparison for
    /// `compare`, none for `show`]
    #[arg(long, value_name = "DIR")]
    pub output: Option<PathBuf>,

    /// Results file of an earlier comparison: show the changes since then, and exit with code 1 if
    /// a figure is worse by more than chance
    #[arg(long, value_name = "FILE")]
    pub baseline: Option<PathBuf>,

    /// Exit with code 1 if a figure exceeds its limit or is not available
    ///
    /// FIGURE=LIMIT applies to every image, IMAGE/FIGURE=LIMIT only to the image with that name or
    /// label. Example: size=100MB,timber-tutorial:2/size=930kB,stop=1s. Units of size: B, kB, MB,
    /// GB, KiB, MiB, GiB. Units of time: us, ms, s. The median of repeated measurements is
    /// compared.
    #[arg(long, value_name = "LIMITS", value_delimiter = ',', value_parser = limits::parse)]
    pub fail_over: Vec<Limit>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// A table for the terminal, with one column for each image
    Table,
    /// A Markdown table with one line for each image, such as for a pull request
    #[value(alias = "github")]
    Markdown,
    /// The results file
    Json,
}

/// Runs `cargo workshop show`.
///
/// # Errors
///
/// Those of [`present`], and a results file that cannot be read.
pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    let results = Results::read(&arguments.file)?;
    emit(
        &results,
        &arguments.options,
        arguments.options.output.as_deref(),
    )
}

/// Writes and prints the results of a comparison. Returns exit code 1 if an image failed or exceeds
/// a limit.
///
/// # Errors
///
/// The baseline cannot be read, a file cannot be written, or no font is installed. All other output
/// is still made.
pub fn present(results: &Results, options: &Options) -> Result<ExitCode> {
    emit(results, options, Some(options.directory()))
}

impl Options {
    /// Checks the options before the measurement, which takes minutes. `images` are names and
    /// labels.
    ///
    /// # Errors
    ///
    /// The baseline cannot be read, the directory is not writable, or a limit has an unknown image.
    pub fn check(&self, images: &[(&str, &str)]) -> Result<()> {
        self.read_baseline()?;
        let directory = self.directory();
        let existing = directory.ancestors().find(|parent| parent.exists());
        let here = existing.unwrap_or(Path::new("."));
        tempfile::tempfile_in(here)
            .with_context(|| format!("--output: cannot write to {}", directory.display()))?;
        let unknown = limits::unknown(&self.fail_over, images);
        ensure!(unknown.is_empty(), "--fail-over: {}", unknown.join("; "));
        Ok(())
    }

    /// Returns the output directory of a comparison.
    fn directory(&self) -> &Path {
        self.output.as_deref().unwrap_or(Path::new("comparison"))
    }

    /// Returns the baseline.
    ///
    /// # Errors
    ///
    /// It cannot be read, or is not comparable: requests reached its containers in another way, or
    /// the load was another one.
    pub fn baseline_for(&self, now: Reached, settings: &Settings) -> Result<Option<Results>> {
        let Some(baseline) = self.read_baseline()? else {
            return Ok(None);
        };
        let before = baseline.engine.reached;
        ensure!(
            before == now,
            "--baseline: not comparable: requests went over {before} then, and over {now} now, whose cost differs"
        );
        let load = |settings: &Settings| {
            format!(
                "{} connections and {} s of load",
                settings.connections, settings.load_seconds
            )
        };
        let (then, now) = (load(&baseline.settings), load(settings));
        ensure!(
            then == now,
            "--baseline: not comparable: {then} then, and {now} now. Use --connections {} --load {}",
            baseline.settings.connections,
            baseline.settings.load_seconds
        );
        Ok(Some(baseline))
    }

    fn read_baseline(&self) -> Result<Option<Results>> {
        self.baseline
            .as_deref()
            .map(Results::read)
            .transpose()
            .context("--baseline")
    }
}

fn emit(results: &Results, options: &Options, directory: Option<&Path>) -> Result<ExitCode> {
    let baseline = options.baseline_for(results.engine.reached, &results.settings);
    let before = baseline.as_ref().ok().and_then(Option::as_ref);
    let view = View::new(results, before, options.all);
    // Errors are returned at the end, so that no result is lost.
    let files = directory.map_or(Ok(()), |directory| write_files(&view, directory));
    let default = if results.images.len() > MANY {
        Format::Markdown
    } else {
        Format::Table
    };
    print(&match options.format.unwrap_or(default) {
        Format::Table => table::text(&view, table::Look::of_stdout()),
        Format::Markdown => markdown::markdown(&view),
        Format::Json => serde_json::to_string_pretty(results)? + "\n",
    })?;
    let mut failures = limits::check(&options.fail_over, &results.images);
    failures.extend(view.regressions());
    for failure in &failures {
        eprintln!("{}", clean(failure));
    }
    baseline?;
    files?;
    if let Some(directory) = directory {
        eprintln!(
            "Written to {}: results.json, report.html, report.svg, report.png",
            directory.display()
        );
    }
    Ok(if failures.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(1)
    })
}

/// Writes results.json first, because `show` can make the other files from it.
fn write_files(view: &View, directory: &Path) -> Result<()> {
    fs::create_dir_all(directory)
        .with_context(|| format!("cannot create {}", directory.display()))?;
    view.results.write(&directory.join("results.json"))?;
    let write = |name: &str, content: &[u8]| {
        let file = directory.join(name);
        fs::write(&file, content).with_context(|| format!("cannot write {}", file.display()))
    };
    write("report.html", report::html(view)?.as_bytes())?;
    let picture = slide::svg(view)?;
    write("report.svg", picture.as_bytes())?;
    write(
        "report.png",
        &slide::png(&picture).context("cannot write report.png (the other files are complete)")?,
    )
}

/// Prints to standard output. A closed pipe, as with `head`, is not an error.
fn print(text: &str) -> Result<()> {
    let mut stdout = std::io::stdout().lock();
    match stdout
        .write_all(text.as_bytes())
        .and_then(|()| stdout.flush())
    {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        written => written.context("cannot write to standard output"),
    }
}
