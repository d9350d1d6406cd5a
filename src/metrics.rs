//! Counters and gauges, and their text in the Prometheus exposition format 0.0.4.

use std::fmt::{Display, Write};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// Upper bounds of the duration histogram: in nanoseconds, and in seconds as the label that
/// Prometheus reads. A response takes microseconds; the upper half is there to show when one does
/// not.
const BUCKETS: [(u64, &str); 7] = [
    (5_000, "0.000005"),
    (20_000, "0.00002"),
    (100_000, "0.0001"),
    (1_000_000, "0.001"),
    (10_000_000, "0.01"),
    (100_000_000, "0.1"),
    (u64::MAX, "+Inf"),
];

const STATUS_CLASSES: [&str; 5] = ["1xx", "2xx", "3xx", "4xx", "5xx"];

/// What the service has counted since its start.
#[derive(Debug, Default)]
pub struct Metrics {
    /// Responses by status class, for each route in the order of the route table and, last, for
    /// everything else.
    responses: Vec<(&'static str, [AtomicU64; STATUS_CLASSES.len()])>,
    durations: [AtomicU64; BUCKETS.len()],
    /// Nanoseconds.
    duration_sum: AtomicU64,
    /// Gauge: requests whose response is not yet handed to the kernel.
    pub in_flight: AtomicU64,
    /// Gauge: open connections.
    pub connections: AtomicU64,
    /// Parked connections that were closed at the limit, in favor of new ones.
    pub evicted_connections: AtomicU64,
    /// Connections at the limit that did not get the response they asked for.
    pub refused_connections: AtomicU64,
    /// Log entries that could not be written.
    pub dropped_log_entries: AtomicU64,
}

impl Metrics {
    /// `routes` are the paths of the route table.
    pub fn new(routes: impl Iterator<Item = &'static str>) -> Self {
        let responses = routes
            .chain(["other"])
            .map(|route| (route, Default::default()))
            .collect();
        Metrics {
            responses,
            ..Metrics::default()
        }
    }

    /// Counts one response. `route` is an index of the route table.
    pub fn count_response(&self, route: Option<usize>, status: u16, duration: Duration) {
        let (_, classes) = &self.responses[route.unwrap_or(self.responses.len() - 1)];
        classes[usize::from(status / 100 - 1)].fetch_add(1, Relaxed);
        // A u64 holds 584 years of nanoseconds.
        let nanos = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        let bucket = BUCKETS
            .iter()
            .take_while(|(bound, _)| *bound < nanos)
            .count();
        self.durations[bucket].fetch_add(1, Relaxed);
        self.duration_sum.fetch_add(nanos, Relaxed);
    }

    /// Number of responses of all routes and status classes.
    pub fn responses(&self) -> u64 {
        self.responses
            .iter()
            .flat_map(|(_, classes)| classes)
            .map(|count| count.load(Relaxed))
            .sum()
    }

    /// Returns the text of `/metrics`. `build` has the labels that identify the build, `started_at`
    /// is in seconds since the Unix epoch, `resident_memory` is in bytes, and `None` if it is
    /// unknown.
    pub fn render(
        &self,
        build: &[(&str, &str)],
        started_at: u64,
        resident_memory: Option<u64>,
    ) -> String {
        let mut text = Exposition(String::with_capacity(4096));
        text.family("timber_build_info", "gauge", "The build; always 1.");
        text.sample("timber_build_info", build, 1);

        let name = "http_requests_total";
        text.family(name, "counter", "Requests by route and status class.");
        for (route, classes) in &self.responses {
            for (class, count) in STATUS_CLASSES.iter().zip(classes) {
                let labels = [("route", *route), ("code", *class)];
                text.sample(name, &labels, count.load(Relaxed));
            }
        }

        let name = "http_request_duration_seconds";
        text.family(
            name,
            "histogram",
            "Time from a complete head to its response.",
        );
        let mut total = 0;
        for ((_, bound), count) in BUCKETS.iter().zip(&self.durations) {
            total += count.load(Relaxed);
            text.sample(&format!("{name}_bucket"), &[("le", bound)], total);
        }
        let sum = Duration::from_nanos(self.duration_sum.load(Relaxed));
        let seconds = format_args!("{}.{:09}", sum.as_secs(), sum.subsec_nanos());
        text.sample(&format!("{name}_sum"), &[], seconds);
        text.sample(&format!("{name}_count"), &[], total);

        let load = |value: &AtomicU64| Some(value.load(Relaxed));
        for (name, kind, help, value) in [
            (
                "http_requests_in_flight",
                "gauge",
                "Requests whose response is not yet sent.",
                load(&self.in_flight),
            ),
            (
                "http_connections_open",
                "gauge",
                "Open client connections.",
                load(&self.connections),
            ),
            (
                "timber_connections_evicted_total",
                "counter",
                "Idle connections closed at the connection limit, in favor of new ones.",
                load(&self.evicted_connections),
            ),
            (
                "timber_connections_refused_total",
                "counter",
                "New connections refused at the connection limit.",
                load(&self.refused_connections),
            ),
            (
                "timber_log_lines_dropped_total",
                "counter",
                "Log entries that could not be written.",
                load(&self.dropped_log_entries),
            ),
            (
                "process_start_time_seconds",
                "gauge",
                "Start time in seconds since the Unix epoch.",
                Some(started_at),
            ),
            (
                "process_resident_memory_bytes",
                "gauge",
                "Resident memory size in bytes.",
                resident_memory,
            ),
        ] {
            if let Some(value) = value {
                text.family(name, kind, help);
                text.sample(name, &[], value);
            }
        }
        text.0
    }
}

struct Exposition(String);

impl Exposition {
    fn family(&mut self, name: &str, kind: &str, help: &str) {
        _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    fn sample(&mut self, name: &str, labels: &[(&str, &str)], value: impl Display) {
        let escape = |value: &str| {
            value
                .replace('\\', "\\\\")
                .replace('"', "\\\"")
                .replace('\n', "\\n")
        };
        self.0.push_str(name);
        for (number, (label, value)) in labels.iter().enumerate() {
            let separator = if number == 0 { '{' } else { ',' };
            _ = write!(self.0, "{separator}{label}=\"{}\"", escape(value));
        }
        let end = if labels.is_empty() { "" } else { "}" };
        _ = writeln!(self.0, "{end} {value}");
    }
}
