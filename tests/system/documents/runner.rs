//! Types the commands of a page, in order and in one shell, and compares what they print with what the page
//! shows. At the end, nothing may be left behind.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::leaks::{self, Snapshot};
use crate::matching::is_shown;
use crate::merging::merged;
use crate::page::{Page, Step};
use crate::shell::{Background, Outcome, Shell};
use crate::swarm::Engine;

/// Commands that only look are repeated until they print what the page shows, as a reader would.
const LOOK: [&str; 14] = [
    "curl ",
    "docker compose -f deploy/compose.yaml ps",
    "docker events",
    "docker exec",
    "docker inspect",
    "docker logs",
    "docker ps",
    "docker service inspect",
    "docker service ls",
    "docker service ps",
    "docker stack services",
    "docker top",
    "docker wait",
    "nsenter ",
];

/// Time for such a command to print what the page shows, and for a service to be compiled first.
const PATIENCE: Duration = Duration::from_mins(5);

/// Time for any command, which may have to compile.
const TIMEOUT: Duration = Duration::from_mins(15);

/// Time that a command in the background gets before the next one is typed, if the page shows nothing to
/// wait for.
const HEAD_START: Duration = Duration::from_secs(3);

/// What a run has found.
#[derive(Default)]
pub struct Report {
    /// Other outputs than the page shows, by the index of the step.
    pub outputs: BTreeMap<usize, String>,
    /// Sections of the page with commands, and how long these took.
    pub durations: Vec<(String, Duration)>,
}

/// Types the commands of a page in `clone`. With `accepts_outputs`, an output that the page does not show
/// goes to the report. Without an engine, only the clone and the processes are checked for what is left
/// behind.
///
/// # Errors
/// Says which command printed something else or had another exit code, and what is left behind.
pub fn perform(
    page: &Page,
    clone: &Path,
    engine: Option<&mut Engine>,
    accepts_outputs: bool,
) -> Result<Report, String> {
    let run = name_of_run();
    let has_engine = engine.is_some();
    leaks::remove(|run| !is_alive(run));
    if has_engine && let Some(refusal) = leaks::refusal(page, clone) {
        return Err(refusal);
    }
    let before = Snapshot::take(clone, &run, None, has_engine);
    let mut session = Session::start(page, clone, &run, engine);
    session.accepts_outputs = accepts_outputs;
    let result = session.type_or_clean_up();
    let report = std::mem::take(&mut session.report);
    let left = Snapshot::take(clone, &run, Some(session.shell.pid()), has_engine);
    let left = left.since(&before, page);
    drop(session);
    match (result, &*left) {
        (Ok(()), []) => Ok(report),
        (Ok(()), _) => Err(format!("{}:\n{}", page.name, left.join("\n"))),
        (Err(failure), _) => Err(failure),
    }
}

/// Types the commands of a part of a page, which may leave something behind for the next part.
///
/// # Errors
/// Says which command printed something else or had another exit code.
pub fn type_in_order(page: &Page, clone: &Path, engine: Option<&mut Engine>) -> Result<(), String> {
    Session::start(page, clone, &name_of_run(), engine).type_or_clean_up()
}

/// Returns the value of [`crate::shell::RUN`] for a run.
fn name_of_run() -> String {
    static RUNS: AtomicU32 = AtomicU32::new(0);
    let run = RUNS.fetch_add(1, Ordering::Relaxed);
    format!("{}-{run}", std::process::id())
}

/// Returns whether the test of a run has not been killed.
fn is_alive(run: &str) -> bool {
    let pid = run.split('-').next().unwrap_or_default();
    Path::new("/proc").join(pid).exists()
}

struct Session<'a> {
    page: &'a Page,
    clone: PathBuf,
    run: &'a str,
    shell: Shell,
    /// Commands that are running, by the index of their step.
    backgrounds: Vec<(usize, Background)>,
    engine: Option<&'a mut Engine>,
    accepts_outputs: bool,
    report: Report,
}

impl Drop for Session<'_> {
    fn drop(&mut self) {
        leaks::remove(|run| run == self.run);
    }
}

impl<'a> Session<'a> {
    fn start(page: &'a Page, clone: &Path, run: &'a str, engine: Option<&'a mut Engine>) -> Self {
        Session {
            page,
            clone: clone.to_owned(),
            run,
            shell: Shell::start(clone, run),
            backgrounds: Vec::new(),
            engine,
            accepts_outputs: false,
            report: Report::default(),
        }
    }

    fn type_or_clean_up(&mut self) -> Result<(), String> {
        let mut next = 0;
        let result = self.type_all(&mut next);
        if result.is_err() {
            self.clean_up(next);
        }
        result
    }

    /// `next` is the index of the step after the one that was typed last.
    fn type_all(&mut self, next: &mut usize) -> Result<(), String> {
        let mut section = String::new();
        let mut begin = Instant::now();
        for (index, step) in self.page.steps.iter().enumerate() {
            if step.section != section {
                self.end_section(&section, begin)?;
                section.clone_from(&step.section);
                begin = Instant::now();
            }
            if let Some(reason) = &step.how.skipped {
                println!("{}: not typed, {reason}", self.place(index));
                continue;
            }
            *next = index + 1;
            self.type_in(index)?;
        }
        self.end_section(&section, begin)
    }

    /// Waits for the commands in the background.
    fn end_section(&mut self, section: &str, begin: Instant) -> Result<(), String> {
        while let Some((index, mut background)) = self.backgrounds.pop() {
            let step = &self.page.steps[index];
            if step.shown.is_empty() {
                background.interrupt();
            }
            let (printed, status) = background.end(TIMEOUT);
            let printed = if step.shown.is_empty() {
                String::new()
            } else {
                printed
            };
            println!("{}, at its end:\n{printed}", self.place(index));
            self.check(
                index,
                &printed,
                status.and_then(|status| status.code()),
                &step.shown,
            )?;
        }
        if self.page.steps.iter().any(|step| step.section == section) {
            self.report
                .durations
                .push((section.to_owned(), begin.elapsed()));
        }
        Ok(())
    }

    fn type_in(&mut self, index: usize) -> Result<(), String> {
        let step = &self.page.steps[index];
        println!("{}", self.place(index));
        if step.command.is_empty() {
            return self.interrupt(index);
        }
        if step.how.is_background {
            return self.start_in_background(index);
        }
        if step.command.contains("docker stack rm")
            && let Some(engine) = &mut self.engine
        {
            engine.drop_mesh();
        }
        let looks = step.how.is_retried || LOOK.iter().any(|look| step.command.starts_with(look));
        let deadline = Instant::now() + PATIENCE;
        loop {
            let Outcome { printed, exit } = self.shell.type_in(&step.command, TIMEOUT);
            let is_good = exit == Some(step.how.exit) && is_shown(&printed, &step.shown);
            if !is_good && looks && exit.is_some() && Instant::now() < deadline {
                thread::sleep(Duration::from_millis(500));
                continue;
            }
            self.check(index, &printed, exit, &step.shown)?;
            break;
        }
        if step.command.contains("docker stack deploy")
            && let Some(engine) = &mut self.engine
        {
            engine.need_mesh();
        }
        Ok(())
    }

    /// Starts a command in a terminal of its own, and waits until it has printed what the page shows.
    fn start_in_background(&mut self, index: usize) -> Result<(), String> {
        let step = &self.page.steps[index];
        let directory = self.shell.type_in("pwd", TIMEOUT).printed;
        let mut background =
            Background::start(&step.command, Path::new(directory.trim_end()), self.run);
        if self.is_stopped_by_page(index) && !step.shown.is_empty() {
            let shown = format!("{}…\n", step.shown);
            background
                .wait_for(|printed| is_shown(printed, &shown), TIMEOUT)
                .map_err(|printed| self.difference(index, &printed, &shown))?;
        } else {
            thread::sleep(HEAD_START);
        }
        self.backgrounds.push((index, background));
        Ok(())
    }

    fn is_stopped_by_page(&self, index: usize) -> bool {
        let later = &self.page.steps[index + 1..];
        later.iter().any(|step| step.command.is_empty())
    }

    /// Presses Ctrl-C where the page shows it.
    fn interrupt(&mut self, index: usize) -> Result<(), String> {
        let (start, mut background) = self
            .backgrounds
            .pop()
            .ok_or_else(|| format!("{}: no command in the background", self.place(index)))?;
        let shown_before = &self.page.steps[start].shown;
        let shown = &self.page.steps[index].shown;
        let (before, after) = shown.split_once("^C").ok_or_else(|| {
            format!(
                "{}: output without a command, and without ^C",
                self.place(index)
            )
        })?;
        let expected = format!("{shown_before}…\n{before}…\n");
        background
            .wait_for(|printed| is_shown(printed, &expected), PATIENCE)
            .map_err(|printed| self.difference(index, &printed, &expected))?;
        background.interrupt();
        let (printed, status) = background.end(PATIENCE);
        let expected = format!("{shown_before}…\n{before}{after}");
        let exit = status.and_then(|status| status.code());
        if exit == Some(0) && is_shown(&printed, &expected) {
            return Ok(());
        }
        Err(self.difference(index, &format!("{printed}(exit code {exit:?})"), &expected))
    }

    /// Compares a command's outcome with the page.
    fn check(
        &mut self,
        index: usize,
        printed: &str,
        exit: Option<i32>,
        shown: &str,
    ) -> Result<(), String> {
        let expected = self.page.steps[index].how.exit;
        match exit {
            Some(exit) if exit == expected => {}
            Some(exit) => {
                let difference = self.difference(index, printed, shown);
                return Err(format!(
                    "{difference}\nexit code {exit}, expected {expected}"
                ));
            }
            None => {
                let difference = self.difference(index, printed, shown);
                return Err(format!(
                    "{difference}\nno end after {TIMEOUT:?}, or the command has ended the shell"
                ));
            }
        }
        if is_shown(printed, shown) {
            return Ok(());
        }
        let difference = self.difference(index, printed, shown);
        if !self.accepts_outputs {
            return Err(difference);
        }
        let merged = merged(printed, shown)
            .ok_or_else(|| format!("{difference}\nUPDATE=1 would lose a …: edit the page"))?;
        println!("{difference}");
        self.report.outputs.insert(index, merged);
        Ok(())
    }

    fn difference(&self, index: usize, printed: &str, shown: &str) -> String {
        format!(
            "{}\nprinted:\n{printed}\n{} shows:\n{shown}",
            self.place(index),
            self.page.name
        )
    }

    fn place(&self, index: usize) -> String {
        let Step { line, command, .. } = &self.page.steps[index];
        let command = if command.is_empty() { "^C" } else { command };
        format!("{}:{line}: $ {command}", self.page.name)
    }

    /// After a failure, types the commands that clean up. Whether they succeed does not matter: there may
    /// be nothing to clean up yet.
    fn clean_up(&mut self, from: usize) {
        self.backgrounds.clear();
        // The command that failed may still occupy the shell.
        self.shell = Shell::start(&self.clone, self.run);
        if let Some(engine) = &mut self.engine {
            engine.drop_mesh();
        }
        let steps = self.page.steps[from..].iter();
        for step in steps.filter(|step| step.how.cleans_up && step.how.skipped.is_none()) {
            let Outcome { printed, .. } = self.shell.type_in(&step.command, PATIENCE);
            println!("after the failure: $ {}\n{printed}", step.command);
        }
    }
}
