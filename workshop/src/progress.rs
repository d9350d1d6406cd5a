//! What is under way, on standard error: a bar where there is a terminal, else a line.

use std::{fmt, ops::Deref, time::Duration};

use console::Term;
use indicatif::{ProgressBar, ProgressState, ProgressStyle};

use crate::units::number;

/// Cleared when it is dropped, even if a thread that is not yet told to end has a clone of what is in it.
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

/// `count` says in indicatif's words how far it is.
pub fn bar(phase: &str, length: u64, count: &str) -> Bar {
    let template = format!("{{spinner}} {{prefix}} {{bar:16}} {count}{{left}}{{wide_msg}}");
    start(ProgressBar::new(length), phase, &template)
}

/// Of what moves about this many bytes.
pub fn bytes(phase: &str, bytes: u64) -> Bar {
    bar(phase, bytes, "{decimal_bytes} of {decimal_total_bytes}")
}

/// Of what takes as long as it takes.
pub fn spinner(phase: &str) -> Bar {
    start(
        ProgressBar::new_spinner(),
        phase,
        "{spinner} {prefix} {elapsed}{wide_msg}",
    )
}

fn start(bar: ProgressBar, phase: &str, template: &str) -> Bar {
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

/// From when a fiftieth is done: before that it would be a guess.
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

/// Tells in the bar what it is at.
pub fn say(bar: &ProgressBar, what: &str) {
    bar.set_message(format!(": {what}"));
}

/// None is as wide as it takes.
pub fn width(terminal: &Term) -> Option<u16> {
    terminal.size_checked().map(|(_, columns)| columns)
}
