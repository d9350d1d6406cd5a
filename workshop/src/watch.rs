//! `cargo workshop watch`: what a client loses while a service is rolled, stopped or scaled.
//!
//! An open loop: each request is due at a time fixed beforehand, however long earlier ones take, so that an outage is
//! met by as many requests as any other second. Every one ends as an [`Event`], and one place counts them.

mod client;
mod tally;

use std::{
    io::{self, IsTerminal, Write},
    process::ExitCode,
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use clap::{Args, ValueEnum};
use console::Term;
use indicatif::{ProgressBar, ProgressStyle};
use jiff::SignedDuration;
use tokio::{
    sync::{Mutex, Semaphore, mpsc},
    time::{self, Instant},
};
use tokio_util::sync::CancellationToken;

use client::{Connection, Progress, Target};
use tally::{Connections, Event, Tally};

use crate::{progress::width, signals::Signals, table::wrap};

const HELP: &str = "\
A request is good if all of an answer with status 200 came in time. Any other is lost. The summary tells them apart by \
cause, and by the release and host that answered, if the answer names them as /version does (JSON with \"release\" \
and \"hostname\").

Requests are due at fixed times, whether or not earlier ones were answered, and in two ways side by side: each on a \
new connection, and on kept ones. The server may close a kept connection between two requests: nothing is lost by \
that. If it does so while a request is on its way, that one is lost. Browsers would ask again unseen, so the summary \
also counts these apart (\"retriable\").

Causes: refused, reset, timed out, status NNN (any but 200), truncated (closed within head or body), closed without an \
answer, unreachable, host name not resolved, not HTTP, other.

Ctrl-C or SIGTERM ends it: what is under way is awaited, then the summary comes, on stdout. All else is on stderr. \
Times in the JSON are seconds, from the beginning where they are moments.

Exit codes: 0 nothing lost; 1 something lost; 2 wrong arguments, or nothing ever answered.";

#[derive(Args)]
#[command(after_help = HELP)]
pub struct Arguments {
    /// As `http://localhost:8080`, no TLS; without a path it asks /version
    url: Target,

    /// New connections a second, 0 for none
    #[arg(long, value_name = "N", default_value = "50", value_parser = rate)]
    rate: f64,

    /// Connections kept alive. When one still waits, the next request that is due on it takes a further connection
    #[arg(long, value_name = "N", default_value_t = 10)]
    kept: u32,

    /// Requests a second on each kept connection
    #[arg(long, value_name = "N", default_value = "5", value_parser = rate)]
    kept_rate: f64,

    /// For one request: name resolution, connection and all of the answer
    #[arg(long, value_name = "TIME", default_value = "5s", value_parser = duration)]
    timeout: Duration,

    /// Ends by itself after this long [default: on Ctrl-C or SIGTERM]
    #[arg(long, value_name = "TIME", value_parser = duration)]
    duration: Option<Duration>,

    /// Requests under way at once. Those due beyond are not sent, and the summary says how many
    // Below the 1,024 files that a process may have open on most machines.
    #[arg(long, value_name = "N", default_value_t = 900)]
    at_once: u32,

    /// Of the summary
    #[arg(long, value_enum, default_value_t = Format::Text)]
    format: Format,
}

#[derive(Clone, Copy, ValueEnum)]
enum Format {
    Text,
    Json,
}

fn rate(text: &str) -> Result<f64> {
    let rate = text
        .parse()
        .ok()
        .filter(|rate| (0.0..=10_000.0).contains(rate));
    rate.context("expected a number from 0 to 10000, requests a second")
}

/// `30`, `30s`, `500ms`, `2m`.
fn duration(text: &str) -> Result<Duration> {
    let seconds = text
        .parse()
        .ok()
        .and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    let parsed = seconds.or_else(|| text.parse::<SignedDuration>().ok()?.try_into().ok());
    parsed
        .filter(|parsed| !parsed.is_zero())
        .context("expected a time, as 30s, 500ms or 2m")
}

/// # Errors
/// Neither kind of connection was asked for; nothing ever answered; a signal while the last requests are awaited.
pub async fn run(arguments: Arguments) -> Result<ExitCode> {
    let kept_rate = f64::from(arguments.kept) * arguments.kept_rate;
    ensure!(
        arguments.rate + kept_rate > 0.0,
        "nothing to ask: --rate or --kept must be above 0"
    );
    let mut signals = Signals::new()?;

    let (events, mut ended) = mpsc::unbounded_channel();
    let at_once = usize::try_from(arguments.at_once)?;
    let open_loop = Arc::new(OpenLoop {
        target: arguments.url.clone(),
        timeout: arguments.timeout,
        begun: Instant::now(),
        stop: CancellationToken::new(),
        under_way: Arc::new(Semaphore::new(at_once)),
    });
    let slots = (0..arguments.kept).map(|_| Slot::default()).collect();
    tokio::spawn(open_loop.clone().run(
        Connections::New,
        arguments.rate,
        Vec::new(),
        events.clone(),
    ));
    tokio::spawn(
        open_loop
            .clone()
            .run(Connections::Kept, kept_rate, slots, events),
    );

    let mut tally = Tally::new(open_loop.target.to_string(), open_loop.begun);
    let view = View::new();
    let mut refresh = time::interval_at(open_loop.begun + view.period(), view.period());
    let end = time::sleep(arguments.duration.unwrap_or(Duration::MAX));
    tokio::pin!(end);
    loop {
        tokio::select! {
            event = ended.recv() => match event {
                Some(event) => if let Some(news) = tally.add(event) {
                    view.line(&format!("{:.1} s: {news}", tally.seconds_at(Instant::now())));
                },
                // Each request has a sender, and so does what sends them: all have ended.
                None => break,
            },
            () = &mut end, if !open_loop.stop.is_cancelled() => open_loop.stop.cancel(),
            _ = signals.next() => {
                ensure!(!open_loop.stop.is_cancelled(), "a second signal ended it before the summary");
                open_loop.stop.cancel();
            }
            _ = refresh.tick() => view.show(&tally.status(at_once - open_loop.under_way.available_permits())),
        }
    }
    view.clear();
    tally.finish();
    report(&tally, arguments.format)
}

fn report(tally: &Tally, format: Format) -> Result<ExitCode> {
    let summary = match format {
        Format::Text => {
            let lines = tally.to_string();
            lines
                .lines()
                .map(|line| wrap(line, width(&Term::stdout())))
                .collect::<Vec<_>>()
                .join("\n")
        }
        Format::Json => serde_json::to_string_pretty(tally)?,
    };
    writeln!(io::stdout(), "{summary}").context("cannot write the summary")?;
    if !tally.ever_answered {
        let first = tally.losses.iter().next();
        let why = first.map_or_else(
            || {
                tally
                    .unsent_reason
                    .clone()
                    .unwrap_or_else(|| "nothing was asked yet".to_owned())
            },
            |(key, row)| format!("{}, {}", key.cause, row.detail),
        );
        bail!("{} never answered: {why}", tally.url);
    }
    Ok(ExitCode::from(u8::from(tally.lost > 0)))
}

/// A kept connection's place.
type Slot = Arc<Mutex<Option<Connection>>>;

struct OpenLoop {
    target: Target,
    timeout: Duration,
    begun: Instant,
    /// Nothing further is sent.
    stop: CancellationToken,
    under_way: Arc<Semaphore>,
}

impl OpenLoop {
    /// Sends `rate` requests a second, on kept connections in turn if there are `slots`.
    async fn run(
        self: Arc<Self>,
        connection: Connections,
        rate: f64,
        slots: Vec<Slot>,
        events: mpsc::UnboundedSender<Event>,
    ) {
        if rate == 0.0 {
            return;
        }
        for n in 0_u32.. {
            // From the beginning each time: neither a late timer nor a rounded period adds up, and what is overdue is
            // sent at once.
            let due = self.begun + Duration::from_secs_f64(f64::from(n) / rate);
            tokio::select! {
                biased;
                () = self.stop.cancelled() => return,
                () = time::sleep_until(due) => {}
            }
            let Ok(permit) = self.under_way.clone().try_acquire_owned() else {
                _ = events.send(Event::Unsent {
                    reason: "--at-once requests were under way".to_owned(),
                });
                continue;
            };
            let (open_loop, events) = (self.clone(), events.clone());
            let slot = slots.get(n as usize % slots.len().max(1)).cloned();
            tokio::spawn(async move {
                let mut progress = Progress::default();
                let result = match slot.map(Mutex::try_lock_owned) {
                    None => {
                        open_loop
                            .target
                            .ask(None, open_loop.timeout, &mut progress)
                            .await
                    }
                    Some(Ok(mut kept)) => {
                        open_loop
                            .target
                            .ask(Some(&mut kept), open_loop.timeout, &mut progress)
                            .await
                    }
                    Some(Err(_)) => {
                        open_loop
                            .target
                            .ask(Some(&mut None), open_loop.timeout, &mut progress)
                            .await
                    }
                };
                let done = Instant::now();
                _ = events.send(Event::Asked {
                    connection,
                    due,
                    done,
                    progress,
                    result,
                });
                drop(permit);
            });
        }
    }
}

/// On a terminal one line that is always up to date; elsewhere one every few seconds. Both on stderr, without colours.
struct View(Option<ProgressBar>);

impl View {
    fn new() -> Self {
        let style =
            ProgressStyle::with_template("{wide_msg}").expect("the template is well-formed");
        View(
            io::stderr()
                .is_terminal()
                .then(|| ProgressBar::new_spinner().with_style(style)),
        )
    }

    fn period(&self) -> Duration {
        if self.0.is_some() {
            Duration::from_millis(200)
        } else {
            Duration::from_secs(5)
        }
    }

    fn show(&self, status: &str) {
        match &self.0 {
            Some(bar) => {
                bar.set_message(status.to_owned());
                bar.tick();
            }
            None => self.line(status),
        }
    }

    /// One that stays.
    fn line(&self, line: &str) {
        match &self.0 {
            Some(bar) => bar.println(wrap(line, width(&Term::stderr()))),
            None => _ = writeln!(io::stderr(), "{line}"),
        }
    }

    fn clear(&self) {
        if let Some(bar) = &self.0 {
            bar.finish_and_clear();
        }
    }
}
