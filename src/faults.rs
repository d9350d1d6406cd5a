//! Faults for teaching: what a first deployment gets wrong, one at a time and on request. Only the
//! feature `faults` compiles this file, for the image `timber-tutorial:faulty` of docs/lessons.md.
//!
//! Faults are settings. No request can start, change or stop one.

use std::fmt::Write;
use std::process;
use std::str::FromStr;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use hyper::StatusCode;
use tokio::runtime::{Builder, Runtime};
use tokio::select;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::sleep;

use crate::log::Log;
use crate::response::{Failure, Response};
use crate::text::{escape_html, to_json};

/// Exit code of a process that SIGTERM ends.
const EXIT_TERMINATED: i32 = 128 + 15;

const MB: u64 = 1_000_000;

/// A leak ends here unless its setting says otherwise: containers without a memory limit exist.
const LEAK_LIMIT: u64 = 256 * MB;

/// The leak grows ten times per second.
const LEAK_STEPS: u32 = 10;

/// Time for the last log entries before an exit.
const FLUSH_TIMEOUT: Duration = Duration::from_millis(500);

type ParseDuration = fn(&str) -> Result<Duration, &'static str>;

/// The faults of the process.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Faults {
    /// As they are written in the setting.
    names: Vec<String>,
    seed: u64,
    ignore_sigterm: bool,
    no_drain: bool,
    unready: Option<Unready>,
    slow_start: Duration,
    /// Percentage of the requests that fail.
    errors: u64,
    leak: Option<Leak>,
    exit: Option<Exit>,
}

/// Not ready for the last `off` of each `period`. Always, if they are equal.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Unready {
    off: Duration,
    period: Duration,
}

/// Both in bytes, the rate per second.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Leak {
    rate: u64,
    limit: u64,
}

#[derive(Clone, Copy, Debug, PartialEq)]
struct Exit {
    code: u8,
    after: Duration,
}

impl Faults {
    /// Adds the faults of a setting, `name=value,name`. A fault that is there already gets the new
    /// value.
    ///
    /// # Errors
    /// Which form is expected.
    pub fn add(&mut self, setting: &str, parse: ParseDuration) -> Result<(), &'static str> {
        setting
            .split(',')
            .try_for_each(|fault| self.add_one(fault, parse))
    }

    fn add_one(&mut self, fault: &str, parse: ParseDuration) -> Result<(), &'static str> {
        let (name, value) = match fault.split_once('=') {
            Some((name, value)) => (name, Some(value)),
            None => (fault, None),
        };
        match (name, value) {
            ("ignore-sigterm", None) => self.ignore_sigterm = true,
            ("no-drain", None) => self.no_drain = true,
            ("unready", None) => {
                let (off, period) = (Duration::MAX, Duration::MAX);
                self.unready = Some(Unready { off, period });
            }
            ("unready", Some(value)) => {
                const FORM: &str =
                    "unready or unready=OFF/PERIOD, such as unready=10s/30s, with OFF up to PERIOD";
                self.unready = Some(parse_unready(value, parse).ok_or(FORM)?);
            }
            ("slow-start", Some(value)) => {
                const FORM: &str = "slow-start=TIME, such as slow-start=20s";
                self.slow_start = parse(value).map_err(|_| FORM)?;
            }
            ("errors", Some(value)) => {
                const FORM: &str = "errors=PERCENT, such as errors=10%, from 0% to 100%";
                self.errors = parse_errors(value).ok_or(FORM)?;
            }
            ("leak", Some(value)) => {
                const FORM: &str =
                    "leak=RATE or leak=RATE/LIMIT, such as leak=1MB/s or leak=1MB/s/64MB";
                self.leak = Some(parse_leak(value).ok_or(FORM)?);
            }
            ("exit", Some(value)) => {
                const FORM: &str = "exit=CODE@TIME, such as exit=3@30s";
                self.exit = Some(parse_exit(value, parse).ok_or(FORM)?);
            }
            _ => {
                return Err(
                    "ignore-sigterm, no-drain, unready, unready=10s/30s, slow-start=20s, errors=10%, \
                     leak=1MB/s or exit=3@30s",
                );
            }
        }
        self.names
            .retain(|known| known.split('=').next() != Some(name));
        self.names.push(fault.to_owned());
        Ok(())
    }

    /// Sets the seed on which the choice of requests that fail depends.
    ///
    /// # Errors
    /// Which form is expected.
    pub fn set_seed(&mut self, value: &str) -> Result<(), &'static str> {
        self.seed = value
            .parse()
            .map_err(|_| "a whole number from 0 to 18446744073709551615")?;
        Ok(())
    }

    /// Returns the signal that is to start a graceful shutdown in place of SIGTERM.
    pub fn signal_instead_of(&self, terminate: SignalKind) -> SignalKind {
        if self.ignore_sigterm || self.no_drain {
            SignalKind::child() // never arrives: the service has no child processes
        } else {
            terminate
        }
    }

    /// Returns whether SIGTERM has no handler. The kernel then discards it for process 1 of a container.
    pub fn ignores_sigterm(&self) -> bool {
        self.ignore_sigterm
    }

    /// Blocks while the service is to be slow to start. SIGTERM ends the process.
    ///
    /// # Panics
    /// If the system provides no timer or signal handler.
    pub fn delay_start(&self) {
        if self.slow_start.is_zero() {
            return;
        }
        runtime().block_on(async {
            select! {
                () = sleep(self.slow_start) => {}
                () = sigterm(), if !self.ignore_sigterm => process::exit(EXIT_TERMINATED),
            }
        });
    }

    /// Announces the faults in the log, and starts those that need no request. Call this once.
    ///
    /// # Panics
    /// If the system provides no thread.
    pub fn start(&'static self, log: &'static Log) {
        for name in &self.names {
            log.warning(&format!("Fault for teaching: {name}"));
        }
        if self.errors > 0 {
            log.warning(&format!("Seed of the faults: {}", self.seed));
        }
        if self.no_drain && !self.ignore_sigterm {
            thread::spawn(|| {
                runtime().block_on(sigterm());
                process::exit(EXIT_TERMINATED)
            });
        }
        if let Some(Leak { rate, limit }) = self.leak {
            thread::spawn(move || leak(rate, limit));
        }
        if let Some(Exit { code, after }) = self.exit {
            thread::spawn(move || {
                thread::sleep(after);
                log.error(&format!("Fault for teaching: exit with code {code}"));
                log.flush(FLUSH_TIMEOUT);
                process::exit(code.into())
            });
        }
    }

    /// Returns what the client gets in place of this response to a request for `path`, which is
    /// `None` outside of the route table. `start` is the start of the process.
    pub fn apply(&self, path: Option<&str>, start: Instant, response: Response) -> Response {
        match path {
            Some("/readyz") if self.is_unready(start.elapsed()) => {
                let description = "Fault for teaching: not ready";
                Failure::new(StatusCode::SERVICE_UNAVAILABLE, description).into()
            }
            Some("/healthz" | "/readyz") => response,
            Some("/metrics") => edit(response, |text| self.append_metrics(text)),
            Some("/version" | "/sample") => {
                edit(self.fail_some(response), |text| self.append_member(text))
            }
            Some("/") => edit(self.fail_some(response), |text| self.insert_banner(text)),
            _ => self.fail_some(response),
        }
    }

    fn is_unready(&self, uptime: Duration) -> bool {
        self.unready.is_some_and(|Unready { off, period }| {
            let on = period.saturating_sub(off);
            on.is_zero() || uptime.as_nanos() % period.as_nanos() >= on.as_nanos()
        })
    }

    fn fail_some(&self, response: Response) -> Response {
        static REQUESTS: AtomicU64 = AtomicU64::new(0);
        if self.errors == 0 {
            return response;
        }
        let number = REQUESTS.fetch_add(1, Relaxed);
        if fails(self.seed, number, self.errors) {
            let description = "Fault for teaching: this request was chosen to fail";
            return Failure::new(StatusCode::INTERNAL_SERVER_ERROR, description).into();
        }
        response
    }

    fn append_metrics(&self, text: &mut String) {
        if self.names.is_empty() {
            return;
        }
        text.push_str(
            "# HELP timber_fault_active A fault for teaching; always 1.\n\
             # TYPE timber_fault_active gauge\n",
        );
        for name in &self.names {
            // No name has a character that the format escapes.
            _ = writeln!(text, "timber_fault_active{{fault=\"{name}\"}} 1");
        }
    }

    /// Adds the member `faults` to a JSON object.
    fn append_member(&self, text: &mut String) {
        let end = text.rfind('}').expect("a JSON object");
        text.insert_str(end, &format!(", \"faults\": {}", to_json(&self.names)));
    }

    fn insert_banner(&self, text: &mut String) {
        if self.names.is_empty() {
            return;
        }
        let names = escape_html(&self.names.join(", "));
        let end_of_title = text.find("</h1>").expect("a page with a title") + "</h1>".len();
        let banner = format!("\n<p role=\"alert\"><b>Faults for teaching:</b> {names}</p>");
        text.insert_str(end_of_title, &banner);
    }
}

/// Returns a runtime for a thread that waits. Those of the service are for its own work.
fn runtime() -> Runtime {
    let runtime = Builder::new_current_thread().enable_all().build();
    runtime.expect("the system provides timers and signals")
}

async fn sigterm() {
    let mut terminate = signal(SignalKind::terminate()).expect("a handler for SIGTERM");
    terminate.recv().await;
}

/// Edits the body of a successful GET. Others have none, or describe an error.
fn edit(response: Response, edit: impl FnOnce(&mut String)) -> Response {
    if response.status != StatusCode::OK || response.body.is_empty() {
        return response;
    }
    let mut text = String::from_utf8(response.body.into()).expect("bodies are text");
    edit(&mut text);
    Response {
        body: text.into(),
        ..response
    }
}

/// Returns whether the request of this number fails, from 0. Of many requests, `percent` percent do.
fn fails(seed: u64, number: u64, percent: u64) -> bool {
    // SplitMix64 (Steele, Lea, Flood 2014): each number of the sequence can be computed by itself.
    let mut z = seed.wrapping_add((number + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15));
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    (z ^ (z >> 31)) % 100 < percent
}

/// Allocates memory up to the limit, and keeps it.
fn leak(rate: u64, limit: u64) {
    let mut kept = Vec::new();
    let mut size = 0;
    while size < limit {
        let step = (rate / u64::from(LEAK_STEPS)).clamp(1, limit - size);
        let length = usize::try_from(step).expect("the limit is below 1 TB");
        // Written to, because the kernel gives no memory to a page that is only reserved.
        kept.push(vec![1_u8; length]);
        size += step;
        thread::sleep(Duration::from_secs(1) / LEAK_STEPS);
    }
    loop {
        thread::park();
    }
}

fn parse_unready(value: &str, parse: ParseDuration) -> Option<Unready> {
    let (off, period) = value.split_once('/')?;
    let (off, period) = (parse(off).ok()?, parse(period).ok()?);
    (!off.is_zero() && off <= period).then_some(Unready { off, period })
}

fn parse_errors(value: &str) -> Option<u64> {
    let percent = parse_number(value.strip_suffix('%')?)?;
    (percent <= 100).then_some(percent)
}

fn parse_leak(value: &str) -> Option<Leak> {
    let (rate, limit) = match value.split_once("/s/") {
        Some((rate, limit)) => (rate, parse_megabytes(limit)?),
        None => (value.strip_suffix("/s")?, LEAK_LIMIT),
    };
    let rate = parse_megabytes(rate)?;
    Some(Leak { rate, limit })
}

/// Up to 1,000,000 MB.
fn parse_megabytes(value: &str) -> Option<u64> {
    let megabytes: u64 = parse_number(value.strip_suffix("MB")?)?;
    (1..=1_000_000).contains(&megabytes).then(|| megabytes * MB)
}

fn parse_exit(value: &str, parse: ParseDuration) -> Option<Exit> {
    let (code, after) = value.split_once('@')?;
    Some(Exit {
        code: parse_number(code)?,
        after: parse(after).ok()?,
    })
}

fn parse_number<T: FromStr>(value: &str) -> Option<T> {
    value.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_seed_alone_chooses_the_requests_that_fail() {
        let chosen = |seed| {
            (0..10_000)
                .filter(|number| fails(seed, *number, 10))
                .count()
        };
        for seed in [0, 1, 42, u64::MAX] {
            let of = |seed| (0..100).map(move |number| fails(seed, number, 10));
            assert!(of(seed).eq(of(seed)));
            assert!(of(seed).ne(of(seed ^ 1)), "{seed}");
            // Four standard deviations of 10,000 draws at 10 % are 120.
            assert!((880..=1120).contains(&chosen(seed)), "{}", chosen(seed));
        }
        assert!((0..100).all(|number| fails(7, number, 100)));
        assert!(!(0..100).any(|number| fails(7, number, 0)));
    }

    #[test]
    fn readiness_is_off_for_the_last_part_of_each_period() {
        let mut faults = Faults::default();
        let seconds = |value: &str| {
            let digits = value.strip_suffix('s').ok_or("")?;
            digits.parse().map(Duration::from_secs).map_err(|_| "")
        };
        faults.add("unready=10s/30s", seconds).unwrap();
        let is_unready = |second| faults.is_unready(Duration::from_secs(second));
        let unready: Vec<_> = (0..60).filter(|second| is_unready(*second)).collect();
        assert_eq!(unready, (20..30).chain(50..60).collect::<Vec<_>>());
    }
}
