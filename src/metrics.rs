//! Counters, and their text in the Prometheus exposition format 0.0.4.

use std::fmt::{Display, Write};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// Upper bounds of the duration histogram, in nanoseconds with the label that Prometheus is shown in seconds.
/// An answer takes microseconds; the upper half is there to show when one does not.
const BUCKETS: [(u64, &str); 7] = [
    (5_000, "0.000005"),
    (20_000, "0.00002"),
    (100_000, "0.0001"),
    (1_000_000, "0.001"),
    (10_000_000, "0.01"),
    (100_000_000, "0.1"),
    (u64::MAX, "+Inf"),
];

const CLASSES: [&str; 5] = ["1xx", "2xx", "3xx", "4xx", "5xx"];

/// What the service has counted since it started. All counters are monotonic but the two gauges.
#[derive(Debug, Default)]
pub struct Metrics {
    /// By route, in the order of the route table with one more for everything else, and by status class.
    requests: Vec<(&'static str, [AtomicU64; CLASSES.len()])>,
    durations: [AtomicU64; BUCKETS.len()],
    duration_sum: AtomicU64,
    /// Gauge: requests whose heads are read and that are not wholly answered.
    pub in_flight: AtomicU64,
    /// Gauge: open connections.
    pub connections: AtomicU64,
    /// Log lines that could not be written.
    pub dropped_lines: AtomicU64,
}

impl Metrics {
    pub fn new(routes: impl Iterator<Item = &'static str>) -> Self {
        let requests = routes
            .chain(["other"])
            .map(|route| (route, Default::default()))
            .collect();
        Metrics {
            requests,
            ..Metrics::default()
        }
    }

    /// Counts one answer. `route` is its index in the route table.
    pub fn count(&self, route: Option<usize>, status: u16, duration: Duration) {
        let (_, classes) = &self.requests[route.unwrap_or(self.requests.len() - 1)];
        classes[usize::from(status / 100 - 1)].fetch_add(1, Relaxed);
        // A u64 of nanoseconds lasts 584 years.
        let nanos = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        let bucket = BUCKETS
            .iter()
            .take_while(|(bound, _)| *bound < nanos)
            .count();
        self.durations[bucket].fetch_add(1, Relaxed);
        self.duration_sum.fetch_add(nanos, Relaxed);
    }

    /// Answers of all routes and classes.
    pub fn answered(&self) -> u64 {
        self.requests
            .iter()
            .flat_map(|(_, classes)| classes)
            .map(|n| n.load(Relaxed))
            .sum()
    }

    /// The page of `/metrics`. `build` has the label and value pairs that identify the build, `start` is in
    /// seconds since the Unix epoch, `resident` in bytes and none where the system does not tell.
    pub fn render(&self, build: &[(&str, &str)], start: u64, resident: Option<u64>) -> String {
        let mut page = Page(String::with_capacity(4096));
        page.family("timber_build_info", "gauge", "What is running; always 1.");
        page.sample("timber_build_info", build, 1);

        page.family(
            "http_requests_total",
            "counter",
            "Requests answered, by route and class of status.",
        );
        for (route, classes) in &self.requests {
            for (class, count) in CLASSES.iter().zip(classes) {
                page.sample(
                    "http_requests_total",
                    &[("route", route), ("code", class)],
                    count.load(Relaxed),
                );
            }
        }
        let name = "http_request_duration_seconds";
        page.family(
            name,
            "histogram",
            "From the end of a request's head until its answer is ready.",
        );
        let mut total = 0;
        for ((_, bound), count) in BUCKETS.iter().zip(&self.durations) {
            total += count.load(Relaxed);
            page.sample(&format!("{name}_bucket"), &[("le", bound)], total);
        }
        let sum = Duration::from_nanos(self.duration_sum.load(Relaxed));
        let sum = format_args!("{}.{:09}", sum.as_secs(), sum.subsec_nanos());
        page.sample(&format!("{name}_sum"), &[], sum);
        page.sample(&format!("{name}_count"), &[], total);

        let now = |gauge: &AtomicU64| Some(gauge.load(Relaxed));
        let dropped = now(&self.dropped_lines);
        for (name, kind, help, value) in [
            (
                "http_requests_in_flight",
                "gauge",
                "Requests not wholly answered.",
                now(&self.in_flight),
            ),
            (
                "http_connections_open",
                "gauge",
                "Client connections.",
                now(&self.connections),
            ),
            (
                "timber_log_lines_dropped_total",
                "counter",
                "Log lines that could not be written.",
                dropped,
            ),
            (
                "process_start_time_seconds",
                "gauge",
                "Start since the Unix epoch in seconds.",
                Some(start),
            ),
            (
                "process_resident_memory_bytes",
                "gauge",
                "Resident memory size in bytes.",
                resident,
            ),
        ] {
            let Some(value) = value else { continue };
            page.family(name, kind, help);
            page.sample(name, &[], value);
        }
        page.0
    }
}

struct Page(String);

impl Page {
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
        let labels: Vec<_> = labels
            .iter()
            .map(|(label, value)| format!("{label}=\"{}\"", escape(value)))
            .collect();
        let labels = if labels.is_empty() {
            String::new()
        } else {
            format!("{{{}}}", labels.join(","))
        };
        _ = writeln!(self.0, "{name}{labels} {value}");
    }
}
