//! What becomes of a comparison's results: a table, data, a report, and an exit code.

use std::{
    fs,
    io::{ErrorKind, Write as _},
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context as _, Result, ensure};
use clap::{Args, ValueEnum};

use crate::{
    limits::{self, Limit},
    report,
    results::Results,
    slide, table,
};

/// Of `cargo workshop show`.
#[derive(Args)]
pub struct Arguments {
    /// Results file of a comparison
    file: PathBuf,

    #[command(flatten)]
    options: Options,
}

/// What every command that ends with results has.
#[derive(Args)]
pub struct Options {
    /// What goes to standard output; json is the results file itself
    #[arg(long, value_enum, default_value_t = Format::Table)]
    pub format: Format,

    /// Where results.json, report.html, report.svg and report.png go [default: comparison for `compare`, nowhere for `show`]
    #[arg(long, value_name = "DIR")]
    pub output: Option<PathBuf>,

    /// Results file of an earlier comparison, to show the changes since
    #[arg(long, value_name = "FILE")]
    pub baseline: Option<PathBuf>,

    /// Exit with code 1 where a figure is over its limit, or not available
    ///
    /// FIGURE=LIMIT holds for every image, IMAGE/FIGURE=LIMIT for the one of that name or label:
    /// size=100MB,timber-tutorial:2/size=900kB,stop=1s. Sizes end in B, kB, MB, GB, KiB, MiB or GiB, times in us, ms or
    /// s. Of repeated measurements the median counts.
    #[arg(long, value_name = "LIMITS", value_delimiter = ',', value_parser = limits::parse)]
    pub fail_over: Vec<Limit>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    Table,
    Json,
    Csv,
    Markdown,
}

/// `cargo workshop show`.
///
/// # Errors
///
/// As [`present`] has them, and a file that cannot be read.
pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    let results = Results::read(&arguments.file)?;
    emit(
        &results,
        &arguments.options,
        arguments.options.output.as_deref(),
    )
}

/// The end of a comparison: writes its files, to `comparison` unless told otherwise, prints it, and tells whether every
/// image was measured and kept to the limits.
///
/// # Errors
///
/// A baseline that cannot be read, a file that cannot be written, a picture without letters. What can be written and
/// printed all the same, is.
pub fn present(results: &Results, options: &Options) -> Result<ExitCode> {
    emit(results, options, Some(options.directory()))
}

impl Options {
    /// Finds before an hour's measuring what would spoil its end. The images are those that are measured, by name and
    /// label.
    ///
    /// # Errors
    ///
    /// A baseline that cannot be read, a directory that cannot be written to, a limit of an image that is none of these.
    pub fn check(&self, images: &[(&str, &str)]) -> Result<()> {
        self.read_baseline()?;
        let directory = self.directory();
        let parents = || directory.ancestors().skip(1).find(|parent| parent.exists());
        let existing = if directory.exists() {
            directory
        } else {
            parents().unwrap_or(Path::new(""))
        };
        let here = if existing.as_os_str().is_empty() {
            Path::new(".")
        } else {
            existing
        };
        tempfile::tempfile_in(here)
            .with_context(|| format!("--output: cannot write to {}", directory.display()))?;
        let unknown = limits::unknown(&self.fail_over, images);
        ensure!(unknown.is_empty(), "--fail-over: {}", unknown.join("; "));
        Ok(())
    }

    /// Of a comparison.
    fn directory(&self) -> &Path {
        self.output.as_deref().unwrap_or(Path::new("comparison"))
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
    let baseline = options.read_baseline();
    let before = baseline.as_ref().ok().and_then(Option::as_ref);
    // Measuring took long, printing does not: what is wrong with a file is told at the end.
    let files = directory.map_or(Ok(()), |directory| write_files(results, before, directory));
    print(&match options.format {
        Format::Table => table::text(results, before, table::Look::of_stdout()),
        Format::Json => serde_json::to_string_pretty(results)? + "\n",
        Format::Csv => table::csv(results, before)?,
        Format::Markdown => table::markdown(results, before),
    })?;
    let failures = limits::check(&options.fail_over, &results.images);
    for failure in &failures {
        eprintln!("{}", table::clean(failure));
    }
    baseline?;
    files?;
    if let Some(directory) = directory {
        eprintln!(
            "wrote results.json, report.html, report.svg and report.png to {}",
            directory.display()
        );
    }
    Ok(if failures.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(1)
    })
}

/// results.json first: with it `show` can make the others again.
fn write_files(results: &Results, baseline: Option<&Results>, directory: &Path) -> Result<()> {
    fs::create_dir_all(directory)
        .with_context(|| format!("cannot make {}", directory.display()))?;
    results.write(&directory.join("results.json"))?;
    let write = |name: &str, content: &[u8]| {
        let file = directory.join(name);
        fs::write(&file, content).with_context(|| format!("cannot write {}", file.display()))
    };
    write("report.html", report::html(results, baseline)?.as_bytes())?;
    let picture = slide::svg(results)?;
    write("report.svg", picture.as_bytes())?;
    write(
        "report.png",
        &slide::png(&picture).context("report.png was not written; the other files were")?,
    )
}

/// A reader that has seen enough, such as `head`, is no error.
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
