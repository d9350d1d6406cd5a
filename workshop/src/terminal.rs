//! Text for the terminal, and progress on standard error: a bar on a terminal, or else a line.

use std::{env, fmt, ops::Deref, time::Duration};

use console::Term;
use indicatif::{ProgressBar, ProgressState, ProgressStyle};

use crate::units::number;

/// Returns the width of the terminal. Without one, the variable `COLUMNS` can set it.
pub fn width(terminal: &Term) -> Option<u16> {
    let columns = || env::var("COLUMNS").ok()?.parse().ok();
    let size = terminal.size_checked().map(|(_, columns)| columns);
    size.or_else(columns).filter(|columns| *columns > 0)
}

/// Returns how the tool was called: through cargo, or as a program in a container.
pub fn program() -> &'static str {
    match env::var_os("CARGO") {
        Some(_) => "cargo workshop",
        None => "timber-workshop",
    }
}

/// Replaces control characters, because text from an image must not control the terminal.
pub fn clean(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_control() { '\u{fffd}' } else { c })
        .collect()
}

/// Wraps a line between words. Further lines are indented.
pub fn wrap(line: &str, width: Option<u16>) -> String {
    let width = width.map_or(usize::MAX, usize::from);
    let indent = " ".repeat(2 + line.len() - line.trim_start().len());
    textwrap::fill(
        line,
        textwrap::Options::new(width)
            .subsequent_indent(&indent)
            .word_splitter(textwrap::WordSplitter::NoHyphenation),
    )
}

/// A bar that is cleared when dropped, even if another thread has a clone of its content.
pub struct Bar(ProgressBar);

impl Deref for Bar {
    type Target = ProgressBar;

    fn deref(&self) -> &ProgressBar {
        &self.0
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}

impl Bar {
    /// Starts a bar. `count` is a template of indicatif.
    pub fn new(phase: &str, length: u64, count: &str) -> Self {
        let template = format!("{{spinner}} {{prefix}} {{bar:16}} {count}{{left}}{{wide_msg}}");
        Self::start(ProgressBar::new(length), phase, &template)
    }

    /// Starts a spinner, for work of unknown duration.
    pub fn spinner(phase: &str) -> Self {
        let template = "{spinner} {prefix} {elapsed}{wide_msg}";
        Self::start(ProgressBar::new_spinner(), phase, template)
    }

    fn start(bar: ProgressBar, phase: &str, template: &str) -> Self {
        let style = ProgressStyle::with_template(template).expect("the template is valid");
        let bar = bar
            .with_style(style.with_key("left", left))
            .with_prefix(phase.to_owned());
        bar.enable_steady_tick(Duration::from_millis(200));
        if bar.is_hidden() {
            eprintln!("{phase}");
        }
        Bar(bar)
    }

    /// Shows the current step.
    pub fn say(&self, step: &str) {
        self.0.set_message(format!(": {}", clean(step)));
    }
}

/// Writes the estimated time left, as soon as 2 % are done.
fn left(state: &ProgressState, line: &mut dyn fmt::Write) {
    let (done, all) = (number(state.pos()), number(state.len().unwrap_or_default()));
    if done * 50.0 < all || done >= all {
        return;
    }
    let seconds = state.elapsed().as_secs_f64() * (all - done) / done;
    _ = if seconds < 100.0 {
        write!(line, ", {seconds:.0} s left")
    } else {
        write!(line, ", {:.0} min left", seconds / 60.0)
    };
}
