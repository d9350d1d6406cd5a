//! What became of all requests: counted as they end, told as a summary. Times are seconds since the watch began.

use std::{
    collections::{BTreeMap, btree_map::Entry},
    fmt,
    time::Duration,
};

use hdrhistogram::Histogram;
use serde::Serialize;
use tokio::time::Instant;

use super::client::{Answerer, Cause, Loss, Progress};
use crate::table::clean;

/// A request that has ended, or one that was due and could not be sent.
pub enum Event {
    Asked {
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
    /// Of the lost ones, those that were closed or reset before any answer on a kept connection that had answered
    /// before: a browser would have asked again, unseen.
    pub retriable: u64,
    /// Due, but never sent: too many were under way, or this machine had no port or file left. Neither good nor lost.
    pub unsent: u64,
    pub unsent_reason: Option<String>,
    /// Whether anything ever answered, if only with an error.
    pub ever_answered: bool,
    pub first_loss_seconds: Option<f64>,
    pub last_loss_seconds: Option<f64>,
    /// Between two good answers, or one and the beginning or end.
    pub longest_gap: Gap,
    /// From when a request was due to the end of its good answer.
    pub latency_seconds: Option<Latency>,
    pub new: Counts,
    pub kept: Counts,
    #[serde(serialize_with = "rows")]
    pub losses: BTreeMap<LossKey, LossRow>,
    #[serde(serialize_with = "rows")]
    pub answers: BTreeMap<Answerer, AnswerRow>,
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
    /// Who answered, or had answered last on a kept connection.
    #[serde(flatten)]
    pub answerer: Answerer,
}

#[derive(Serialize)]
pub struct LossRow {
    pub count: u64,
    /// When they were due.
    pub first_seconds: f64,
    pub last_seconds: f64,
    /// Of the first one.
    pub detail: String,
}

#[derive(Serialize)]
pub struct AnswerRow {
    pub good: u64,
    pub first_seconds: f64,
    pub last_seconds: f64,
}

/// A map as a list of objects, each of a key's fields and a value's.
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
            ever_answered: false,
            first_loss_seconds: None,
            last_loss_seconds: None,
            longest_gap: Gap::default(),
            latency_seconds: None,
            new: Counts::default(),
            kept: Counts::default(),
            losses: BTreeMap::new(),
            answers: BTreeMap::new(),
            histogram: Histogram::new(3).expect("3 is a number of digits that it takes"),
            last_good: begun,
            last_due: begun,
        }
    }

    /// Returns what is worth a line of its own: the first of its kind.
    pub fn add(&mut self, event: Event) -> Option<String> {
        let (connection, due, done, progress, result) = match event {
            Event::Asked {
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
        self.ever_answered |= progress.answered;
        self.last_due = self.last_due.max(due);
        self.asked += 1;
        let counts = match connection {
            Connections::New => &mut self.new,
            Connections::Kept => &mut self.kept,
        };
        counts.asked += 1;
        let answerer = progress.answerer.unwrap_or_default();
        match result {
            Ok(()) => {
                counts.good += 1;
                self.add_good(due, done, answerer)
            }
            Err(loss) => {
                counts.lost += 1;
                let early =
                    matches!(loss.cause, Cause::Reset | Cause::Closed) && !progress.answered;
                self.retriable += u64::from(early && progress.reused);
                self.add_loss(
                    due,
                    LossKey {
                        connection,
                        cause: loss.cause,
                        answerer,
                    },
                    loss.detail,
                )
            }
        }
    }

    fn add_unsent(&mut self, reason: String) -> Option<String> {
        self.unsent += 1;
        let news = (self.unsent == 1).then(|| format!("not sent: {reason}"));
        self.unsent_reason.get_or_insert(reason);
        news
    }

    fn add_good(&mut self, due: Instant, done: Instant, answerer: Answerer) -> Option<String> {
        self.good += 1;
        self.end_gap(done);
        self.last_good = self.last_good.max(done);
        let micros = done.saturating_duration_since(due).as_micros();
        _ = self.histogram.record(micros.try_into().unwrap_or(u64::MAX)); // it fails at 2^64 microseconds
        let seconds = self.seconds_at(done);
        match self.answers.entry(answerer) {
            Entry::Occupied(mut row) => {
                row.get_mut().good += 1;
                row.get_mut().last_seconds = seconds;
                None
            }
            Entry::Vacant(entry) => {
                let news = format!("first answer of {}", entry.key());
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
        // They come as they end, and those that timed out were due before others.
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
                let news = format!("first loss of its kind: {} ({detail})", entry.key());
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

    /// To be called when all have ended.
    pub fn finish(&mut self) {
        self.seconds = self.seconds_at(Instant::now());
        self.end_gap(self.last_due); // what is awaited after the last request is no gap
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

    /// For the live view, in one line.
    pub fn status(&self, under_way: usize) -> String {
        let now = self.seconds_at(Instant::now());
        let recent = self
            .answers
            .iter()
            .filter(|(_, row)| row.last_seconds > now - 1.0);
        let mut releases: BTreeMap<String, u32> = BTreeMap::new();
        for (answerer, _) in recent {
            *releases
                .entry(or_unknown(answerer.release.as_deref()))
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
            "nobody".to_owned()
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
        let under_way = if under_way > 0 {
            format!(", {under_way} under way")
        } else {
            String::new()
        };
        format!("{now:.1} s: {good} good, {lost} lost{under_way}; answering: {releases}{causes}")
    }

    pub fn seconds_at(&self, instant: Instant) -> f64 {
        seconds(instant.saturating_duration_since(self.begun))
    }
}

/// To the millisecond: more is noise, and none of it is nice to read.
fn seconds(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1e3).round() / 1e3
}

fn or_unknown(name: Option<&str>) -> String {
    name.map_or("unknown".to_owned(), clean)
}

impl fmt::Display for Answerer {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        if *self == Answerer::default() {
            return f.write_str("a service that names neither release nor host");
        }
        let [release, host] = [&self.release, &self.host].map(|name| or_unknown(name.as_deref()));
        write!(f, "release {release} on host {host}")
    }
}

impl fmt::Display for LossKey {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let connection = match self.connection {
            Connections::New => "new",
            Connections::Kept => "kept",
        };
        write!(f, "{} on a {connection} connection", self.cause)?;
        if self.answerer == Answerer::default() {
            Ok(())
        } else {
            write!(f, ", {}", self.answerer)
        }
    }
}

/// The summary for people.
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
            "{url}, {seconds:.1} s: {asked} asked, {good} good, {lost} lost"
        )?;
        for (name, counts) in [("new", new), ("kept", kept)] {
            if counts.asked > 0 {
                let Counts { asked, good, lost } = counts;
                writeln!(
                    f,
                    "  on {name} connections: {asked} asked, {good} good, {lost} lost"
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
            writeln!(
                f,
                "  {count} of the lost ones would be asked again, unseen, by a browser"
            )?;
        }
        if let Some(reason) = &self.unsent_reason {
            writeln!(
                f,
                "  not sent, so neither good nor lost: {} ({reason})",
                self.unsent
            )?;
        }
        for (
            answerer,
            AnswerRow {
                good,
                first_seconds,
                last_seconds,
            },
        ) in &self.answers
        {
            writeln!(
                f,
                "  good: {good} from {answerer}, from {first_seconds:.1} to {last_seconds:.1} s"
            )?;
        }
        if let Some(Latency { p50, p99, max }) = &self.latency_seconds {
            let [p50, p99, max] = [p50, p99, max].map(|seconds| seconds * 1e3);
            writeln!(
                f,
                "  latency: {p50:.0} ms in the middle, {p99:.0} ms at 99 %, {max:.0} ms at most"
            )?;
        }
        let Gap {
            seconds,
            from_seconds,
        } = self.longest_gap;
        write!(
            f,
            "  longest time without a good answer: {seconds:.2} s, from {from_seconds:.1} s"
        )
    }
}
