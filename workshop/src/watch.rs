//! `cargo workshop watch`: sends requests during a rollout, and counts the lost ones.
//!
//! The load is an open loop: each request has a fixed time, however long earlier ones take. Each
//! ends as an [`Event`], and [`Tally`] counts them.

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

use crate::{
    signals::Signals,
    terminal::{width, wrap},
};

const HELP: &str = "\
Requests are sent at fixed times, even if earlier ones have not finished, so that the rate stays \
the same during an outage. Some requests use new connections, the others keep-alive connections.

A request is good if it gets a complete response with status 200 within the timeout. Any other \
request is lost. If the server closes a keep-alive connection between two requests, nothing is \
lost. If the server closes or resets the connection before the response, the request is lost. \
Browsers would retry such requests, so the summary also counts them (\"retriable\").

The summary groups requests by cause of loss, and by the release and host that responded. It takes \
the latter from \"release\" and \"hostname\" in JSON responses such as those of /version. Causes: \
refused, reset, timed out, status NNN (other than 200), truncated (closed during the response), \
closed without a response, unreachable, host name not resolved, not HTTP, other.

At Ctrl-C or SIGTERM, the command waits for in-flight requests and prints the summary on standard \
output. Progress and warnings go to standard error. In JSON, times are in seconds, and points in \
time are relative to the start.

Exit codes: 0 no request lost; 1 a request lost; 2 invalid arguments, or no response at all.";

#[derive(Args)]
#[command(after_help = HELP)]
pub struct Arguments {
    /// URL of the service, with the scheme http [default path: /version]
    url: Target,

    /// Requests per second on new connections
    #[arg(long, value_name = "N", default_value = "50", value_parser = rate)]
    rate: f64,

    /// Number of keep-alive connections. If one is busy, its next request opens another connection
    #[arg(long, alias = "kept", value_name = "N", default_value_t = 10)]
    keep_alive: u32,

    /// Requests per second on each keep-alive connection
    #[arg(long, alias = "kept-rate", value_name = "N", default_value = "5", value_parser = rate)]
    keep_alive_rate: f64,

    /// Timeout of a request, from name resolution to the end of the response
    #[arg(long, value_name = "TIME", default_value = "5s", value_parser = duration)]
    timeout: Duration,

    /// Stop after this time [default: at Ctrl-C or SIGTERM]
    #[arg(long, value_name = "TIME", value_parser = duration)]
    duration: Option<Duration>,

    /// Maximum number of in-flight requests. Further ones are skipped and counted
    // Below the usual file-descriptor limit of 1,024.
    #[arg(long, alias = "at-once", value_name = "N", default_value_t = 900)]
    max_in_flight: u32,

    /// Format of the summary
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
    rate.context("expected a number of requests per second from 0 to 10000")
}

/// Parses `30`, `30s`, `500ms` or `2m`.
fn duration(text: &str) -> Result<Duration> {
    let seconds = text
        .parse()
        .ok()
        .and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    let parsed = seconds.or_else(|| text.parse::<SignedDuration>().ok()?.try_into().ok());
    parsed
        .filter(|parsed| !parsed.is_zero())
        .context("expected a time, such as 30s, 500ms or 2m")
}

/// # Errors
/// Both rates are zero, no response came at all, or a second signal came.
pub async fn run(arguments: Arguments) -> Result<ExitCode> {
    let keep_alive_rate = f64::from(arguments.keep_alive) * arguments.keep_alive_rate;
    ensure!(
        arguments.rate + keep_alive_rate > 0.0,
        "no requests to send: --rate or --keep-alive must be greater than 0"
    );
    let mut signals = Signals::new()?;

    let (events, mut ended) = mpsc::unbounded_channel();
    let max_in_flight = usize::try_from(arguments.max_in_flight)?;
    let open_loop = Arc::new(OpenLoop {
        target: arguments.url.clone(),
        timeout: arguments.timeout,
        begun: Instant::now(),
        stop: CancellationToken::new(),
        permits: Arc::new(Semaphore::new(max_in_flight)),
    });
    let slots = (0..arguments.keep_alive).map(|_| Slot::default()).collect();
    tokio::spawn(open_loop.clone().run(
        Connections::New,
        arguments.rate,
        Vec::new(),
        events.clone(),
    ));
    tokio::spawn(
        open_loop
            .clone()
            .run(Connections::Kept, keep_alive_rate, slots, events),
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
                // All senders are dropped, so all requests have ended.
                None => break,
            },
            () = &mut end, if !open_loop.stop.is_cancelled() => open_loop.stop.cancel(),
            _ = signals.next() => {
                ensure!(!open_loop.stop.is_cancelled(), "a second signal came before the summary");
                open_loop.stop.cancel();
            }
            _ = refresh.tick() => view.show(&tally.status(max_in_flight - open_loop.permits.available_permits())),
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
    if !tally.ever_responded {
        let first = tally.losses.iter().next();
        let why = first.map_or_else(
            || {
                tally
                    .unsent_reason
                    .clone()
                    .unwrap_or_else(|| "no request was sent".to_owned())
            },
            |(key, row)| format!("{}, {}", key.cause, row.detail),
        );
        bail!("no response from {}: {why}", tally.url);
    }
    Ok(ExitCode::from(u8::from(tally.lost > 0)))
}

/// Place of a keep-alive connection.
type Slot = Arc<Mutex<Option<Connection>>>;

struct OpenLoop {
    target: Target,
    timeout: Duration,
    begun: Instant,
    /// Cancelled when no further requests are to be sent.
    stop: CancellationToken,
    permits: Arc<Semaphore>,
}

impl OpenLoop {
    /// Sends `rate` requests per second: in turn on the connections in `slots`, or else on new
    /// ones.
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
            // Calculated from the beginning, so that delays and rounding errors do not add up.
            let due = self.begun + Duration::from_secs_f64(f64::from(n) / rate);
            tokio::select! {
                biased;
                () = self.stop.cancelled() => return,
                () = time::sleep_until(due) => {}
            }
            let Ok(permit) = self.permits.clone().try_acquire_owned() else {
                _ = events.send(Event::Unsent {
                    reason: "--max-in-flight was reached".to_owned(),
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
                            .send(None, open_loop.timeout, &mut progress)
                            .await
                    }
                    Some(Ok(mut connection)) => {
                        open_loop
                            .target
                            .send(Some(&mut connection), open_loop.timeout, &mut progress)
                            .await
                    }
                    Some(Err(_)) => {
                        open_loop
                            .target
                            .send(Some(&mut None), open_loop.timeout, &mut progress)
                            .await
                    }
                };
                let done = Instant::now();
                _ = events.send(Event::Sent {
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

/// Progress on standard error: one line that changes on a terminal, or else a line every few
/// seconds.
struct View(Option<ProgressBar>);

impl View {
    fn new() -> Self {
        let style = ProgressStyle::with_template("{wide_msg}").expect("the template is valid");
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

    /// Prints a line that stays.
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
