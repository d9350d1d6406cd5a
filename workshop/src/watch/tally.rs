//! Counts requests and their outcomes, and prints the summary. Times are in seconds since the
//! start.

use std::{
    collections::{BTreeMap, btree_map::Entry},
    fmt,
    time::Duration,
};

use hdrhistogram::Histogram;
use serde::Serialize;
use tokio::time::Instant;

use super::client::{Cause, Loss, Progress, Responder};
use crate::terminal::clean;

/// A finished or a skipped request.
pub enum Event {
    Sent {
        connection: Connections,
        due: Instant,
        done: Instant,
        progress: Progress,
        result: Result<(), Loss>,
    },
    Unsent {
        reason: String,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Connections {
    New,
    Kept,
}

/// The JSON of `--format json`.
#[derive(Serialize)]
pub struct Tally {
    pub url: String,
    #[serde(skip)]
    begun: Instant,
    pub seconds: f64,
    pub asked: u64,
    pub good: u64,
    pub lost: u64,
    /// Lost requests on a reused connection that was closed or reset before the response. Browsers
    /// would retry them.
    pub retriable: u64,
    /// Skipped requests: too many in flight, or no port or file descriptor left. Neither good nor
    /// lost.
    pub unsent: u64,
    pub unsent_reason: Option<String>,
    /// Whether there was any response, also one with an error status.
    #[serde(rename = "ever_answered")]
    pub ever_responded: bool,
    pub first_loss_seconds: Option<f64>,
    pub last_loss_seconds: Option<f64>,
    /// Longest time between two good responses, or one and the start or end.
    pub longest_gap: Gap,
    /// From the scheduled time of a request to the end of its good response.
    pub latency_seconds: Option<Latency>,
    pub new: Counts,
    pub kept: Counts,
    #[serde(serialize_with = "rows")]
    pub losses: BTreeMap<LossKey, LossRow>,
    #[serde(serialize_with = "rows")]
    pub answers: BTreeMap<Responder, AnswerRow>,
    #[serde(skip)]
    histogram: Histogram<u64>,
    #[serde(skip)]
    last_good: Instant,
    #[serde(skip)]
    last_due: Instant,
}

#[derive(Default, Serialize)]
pub struct Gap {
    pub seconds: f64,
    pub from_seconds: f64,
}

#[derive(Serialize)]
pub struct Latency {
    pub p50: f64,
    pub p99: f64,
    pub max: f64,
}

#[derive(Default, Serialize)]
pub struct Counts {
    pub asked: u64,
    pub good: u64,
    pub lost: u64,
}

#[derive(PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct LossKey {
    pub connection: Connections,
    pub cause: Cause,
    /// Sender of the response, or of the last one on the same connection.
    #[serde(flatten)]
    pub responder: Responder,
}

#[derive(Serialize)]
pub struct LossRow {
    pub count: u64,
    /// Scheduled times.
    pub first_seconds: f64,
    pub last_seconds: f64,
    /// Error message of the first one.
    pub detail: String,
}

#[derive(Serialize)]
pub struct AnswerRow {
    pub good: u64,
    pub first_seconds: f64,
    pub last_seconds: f64,
}

/// Serializes a map as a list of objects with the fields of key and value.
fn rows<K: Serialize, V: Serialize, S: serde::Serializer>(
    map: &BTreeMap<K, V>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    #[derive(Serialize)]
    struct Row<'a, K, V> {
        #[serde(flatten)]
        key: &'a K,
        #[serde(flatten)]
        value: &'a V,
    }
    serializer.collect_seq(map.iter().map(|(key, value)| Row { key, value }))
}

impl Tally {
    pub fn new(url: String, begun: Instant) -> Self {
        Tally {
            url,
            begun,
            seconds: 0.0,
            asked: 0,
            good: 0,
            lost: 0,
            retriable: 0,
            unsent: 0,
            unsent_reason: None,
            ever_responded: false,
            first_loss_seconds: None,
            last_loss_seconds: None,
            longest_gap: Gap::default(),
            latency_seconds: None,
            new: Counts::default(),
            kept: Counts::default(),
            losses: BTreeMap::new(),
            answers: BTreeMap::new(),
            histogram: Histogram::new(3).expect("three digits are valid"),
            last_good: begun,
            last_due: begun,
        }
    }

    /// Counts an event. Returns a message for the first event of its kind.
    pub fn add(&mut self, event: Event) -> Option<String> {
        let (connection, due, done, progress, result) = match event {
            Event::Sent {
                connection,
                due,
                done,
                progress,
                result,
            } => (connection, due, done, progress, result),
            Event::Unsent { reason } => return self.add_unsent(reason),
        };
        if let Err(Loss {
            cause: Cause::Exhausted,
            detail,
        }) = result
        {
            return self.add_unsent(detail);
        }
        self.ever_responded |= progress.responded;
        self.last_due = self.last_due.max(due);
        self.asked += 1;
        let counts = match connection {
            Connections::New => &mut self.new,
            Connections::Kept => &mut self.kept,
        };
        counts.asked += 1;
        let responder = progress.responder.unwrap_or_default();
        match result {
            Ok(()) => {
                counts.good += 1;
                self.add_good(due, done, responder)
            }
            Err(loss) => {
                counts.lost += 1;
                let early =
                    matches!(loss.cause, Cause::Reset | Cause::Closed) && !progress.responded;
                self.retriable += u64::from(early && progress.reused);
                self.add_loss(
                    due,
                    LossKey {
                        connection,
                        cause: loss.cause,
                        responder,
                    },
                    loss.detail,
                )
            }
        }
    }

    fn add_unsent(&mut self, reason: String) -> Option<String> {
        self.unsent += 1;
        let news = (self.unsent == 1).then(|| format!("request skipped: {reason}"));
        self.unsent_reason.get_or_insert(reason);
        news
    }

    fn add_good(&mut self, due: Instant, done: Instant, responder: Responder) -> Option<String> {
        self.good += 1;
        self.end_gap(done);
        self.last_good = self.last_good.max(done);
        let micros = done.saturating_duration_since(due).as_micros();
        _ = self.histogram.record(micros.try_into().unwrap_or(u64::MAX)); // fails only at 2^64 µs
        let seconds = self.seconds_at(done);
        match self.answers.entry(responder) {
            Entry::Occupied(mut row) => {
                row.get_mut().good += 1;
                row.get_mut().last_seconds = seconds;
                None
            }
            Entry::Vacant(entry) => {
                let news = format!("first response from {}", entry.key());
                entry.insert(AnswerRow {
                    good: 1,
                    first_seconds: seconds,
                    last_seconds: seconds,
                });
                Some(news)
            }
        }
    }

    fn add_loss(&mut self, due: Instant, key: LossKey, detail: String) -> Option<String> {
        self.lost += 1;
        let seconds = self.seconds_at(due);
        // Events come in order of their ends, which differs from the scheduled order after
        // timeouts.
        let earlier = |first: &mut f64| *first = first.min(seconds);
        let later = |last: &mut f64| *last = last.max(seconds);
        earlier(self.first_loss_seconds.get_or_insert(seconds));
        later(self.last_loss_seconds.get_or_insert(seconds));
        match self.losses.entry(key) {
            Entry::Occupied(mut row) => {
                let row = row.get_mut();
                row.count += 1;
                earlier(&mut row.first_seconds);
                later(&mut row.last_seconds);
                None
            }
            Entry::Vacant(entry) => {
                let news = format!("lost for the first time: {} ({detail})", entry.key());
                entry.insert(LossRow {
                    count: 1,
                    first_seconds: seconds,
                    last_seconds: seconds,
                    detail,
                });
                Some(news)
            }
        }
    }

    fn end_gap(&mut self, at: Instant) {
        let seconds = at.saturating_duration_since(self.last_good).as_secs_f64();
        if seconds > self.longest_gap.seconds {
            self.longest_gap = Gap {
                seconds,
                from_seconds: self.seconds_at(self.last_good),
            };
        }
    }

    /// Calculates the totals after the last event.
    pub fn finish(&mut self) {
        self.seconds = self.seconds_at(Instant::now());
        self.end_gap(self.last_due); // the wait for the last responses is not a gap
        let at = |quantile| {
            seconds(Duration::from_micros(
                self.histogram.value_at_quantile(quantile),
            ))
        };
        let latency = || Latency {
            p50: at(0.5),
            p99: at(0.99),
            max: at(1.0),
        };
        self.latency_seconds = (self.good > 0).then(latency);
    }

    /// Returns one line for the live view.
    pub fn status(&self, in_flight: usize) -> String {
        let now = self.seconds_at(Instant::now());
        let recent = self
            .answers
            .iter()
            .filter(|(_, row)| row.last_seconds > now - 1.0);
        let mut releases: BTreeMap<String, u32> = BTreeMap::new();
        for (responder, _) in recent {
            *releases
                .entry(or_unknown(responder.release.as_deref()))
                .or_default() += 1;
        }
        let hosts = |count| {
            if count == 1 {
                "1 host".to_owned()
            } else {
                format!("{count} hosts")
            }
        };
        let releases: Vec<_> = releases
            .iter()
            .map(|(release, count)| format!("release {release} on {}", hosts(*count)))
            .collect();
        let releases = if releases.is_empty() {
            "none".to_owned()
        } else {
            releases.join(", ")
        };
        let mut causes: BTreeMap<Cause, u64> = BTreeMap::new();
        for (key, row) in &self.losses {
            *causes.entry(key.cause).or_default() += row.count;
        }
        let causes: Vec<_> = causes
            .iter()
            .map(|(cause, count)| format!("{count} {cause}"))
            .collect();
        let causes = if causes.is_empty() {
            String::new()
        } else {
            format!("; lost: {}", causes.join(", "))
        };
        let Tally { good, lost, .. } = self;
        let in_flight = if in_flight > 0 {
            format!(", {in_flight} in flight")
        } else {
            String::new()
        };
        format!("{now:.1} s: {good} good, {lost} lost{in_flight}; responding: {releases}{causes}")
    }

    pub fn seconds_at(&self, instant: Instant) -> f64 {
        seconds(instant.saturating_duration_since(self.begun))
    }
}

/// Rounds to milliseconds.
fn seconds(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1e3).round() / 1e3
}

fn or_unknown(name: Option<&str>) -> String {
    name.map_or("unknown".to_owned(), clean)
}

impl fmt::Display for Responder {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        if *self == Responder::default() {
            return f.write_str("an unknown release and host");
        }
        let [release, host] = [&self.release, &self.host].map(|name| or_unknown(name.as_deref()));
        write!(f, "release {release} on host {host}")
    }
}

impl fmt::Display for LossKey {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let connection = match self.connection {
            Connections::New => "new",
            Connections::Kept => "keep-alive",
        };
        write!(f, "{} on a {connection} connection", self.cause)?;
        if self.responder == Responder::default() {
            Ok(())
        } else {
            write!(f, ", {}", self.responder)
        }
    }
}

/// The summary as text.
impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let Tally {
            url,
            seconds,
            asked,
            good,
            lost,
            new,
            kept,
            ..
        } = self;
        writeln!(
            f,
            "{url}, {seconds:.1} s: {asked} sent, {good} good, {lost} lost"
        )?;
        for (name, counts) in [("new", new), ("keep-alive", kept)] {
            if counts.asked > 0 {
                let Counts { asked, good, lost } = counts;
                writeln!(
                    f,
                    "  on {name} connections: {asked} sent, {good} good, {lost} lost"
                )?;
            }
        }
        for (
            key,
            LossRow {
                count,
                first_seconds,
                last_seconds,
                detail,
            },
        ) in &self.losses
        {
            let when = if count == &1 {
                format!("at {first_seconds:.1} s")
            } else {
                format!("from {first_seconds:.1} to {last_seconds:.1} s")
            };
            writeln!(f, "  lost: {count} {key}, {when} ({detail})")?;
        }
        if self.retriable > 0 {
            let count = self.retriable;
            writeln!(f, "  of these, a browser would retry: {count}")?;
        }
        if let Some(reason) = &self.unsent_reason {
            writeln!(
                f,
                "  skipped, neither good nor lost: {} ({reason})",
                self.unsent
            )?;
        }
        for (
            responder,
            AnswerRow {
                good,
                first_seconds,
                last_seconds,
            },
        ) in &self.answers
        {
            writeln!(
                f,
                "  good: {good} from {responder}, from {first_seconds:.1} to {last_seconds:.1} s"
            )?;
        }
        if let Some(Latency { p50, p99, max }) = &self.latency_seconds {
            let [p50, p99, max] = [p50, p99, max].map(|seconds| seconds * 1e3);
            writeln!(
                f,
                "  latency: median {p50:.0} ms, 99 % {p99:.0} ms, maximum {max:.0} ms"
            )?;
        }
        let Gap {
            seconds,
            from_seconds,
        } = self.longest_gap;
        write!(
            f,
            "  longest time without a good response: {seconds:.2} s, from {from_seconds:.1} s"
        )
    }
}
