//! The event log on standard error, and the access log on standard output.
//!
//! If a reader stops or disappears, the service must neither stop nor slow down. Entries therefore
//! go into a bounded buffer, and a separate thread writes them. Entries that do not fit, or that
//! cannot be written, are dropped and counted.

use std::fmt::Write as _;
use std::io::{self, Write};
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};
use std::{iter, mem, process, thread};

use serde::Serialize;

use crate::metrics::Metrics;
use crate::text::{Timestamp, push_escaped, since_epoch};
use crate::threads;

/// The writer waits this long for more entries, because waking it for each one costs as much as a
/// request.
const BATCH_DELAY: Duration = Duration::from_millis(5);

/// While this many bytes wait to be written, some 700 requests, new entries are dropped.
const MAX_PENDING_BYTES: usize = 64 * 1024;

/// Both logs of the service.
pub struct Log {
    events: Stream,
    requests: Option<Stream>,
    json: bool,
}

/// One request in the access log.
pub struct AccessEntry<'a> {
    pub client: &'a str,
    pub method: &'a str,
    pub target: &'a str,
    pub version: &'a str,
    pub status: u16,
    /// Length of the response's body as sent.
    pub bytes: usize,
    /// Time from the complete head to the response.
    pub duration: Duration,
}

impl Log {
    /// Entries wait until [`Log::start`]. Without `access_log`, requests are not logged.
    pub fn new(access_log: bool, json: bool, metrics: &'static Metrics) -> Self {
        let stdout: Output = |entries| io::stdout().write_all(entries);
        let stderr: Output = |entries| io::stderr().write_all(entries);
        Log {
            events: Stream::new("event log", stderr, metrics),
            requests: access_log.then(|| Stream::new("access log", stdout, metrics)),
            json,
        }
    }

    /// Starts the writer threads.
    pub fn start(&'static self) {
        for stream in self.streams() {
            let name = stream.name.replace(' ', "-");
            if let Err(error) = threads::spawn(name, Box::new(|| stream.write_out())) {
                // A worker must not write the entries instead, because their reader could block it.
                let name = stream.name;
                _ = writeln!(
                    io::stderr(),
                    "timber: cannot start the writer thread of the {name}: {error}"
                );
                stream.lock().has_writer = false;
            }
        }
    }

    pub fn info(&self, message: &str) {
        self.event("INFO", message);
    }

    pub fn warning(&self, message: &str) {
        self.event("WARNING", message);
    }

    pub fn error(&self, message: &str) {
        self.event("ERROR", message);
    }

    fn event(&self, level: &'static str, message: &str) {
        self.events.append(SystemTime::now(), |line, now| {
            push_event(line, now, self.json, level, message);
        });
    }

    /// Logs one request, whose response was ready at `now`.
    pub fn access(&self, now: SystemTime, entry: &AccessEntry) {
        if let Some(requests) = &self.requests {
            requests.append(now, |line, now| push_access(line, now, self.json, entry));
        }
    }

    /// Waits until all entries are written, but at most `limit` for each stream: its reader may
    /// have stopped.
    pub fn flush(&self, limit: Duration) {
        for stream in self.streams() {
            let is_pending = |state: &mut State| {
                state.has_writer && (state.is_writing || !state.waiting.is_empty())
            };
            drop(
                stream
                    .changed
                    .wait_timeout_while(stream.lock(), limit, is_pending),
            );
        }
    }

    fn streams(&self) -> impl Iterator<Item = &Stream> {
        iter::once(&self.events).chain(&self.requests)
    }
}

/// Appends an event without the newline. The text form is gunicorn's.
pub fn push_event(line: &mut String, now: &Timestamp, json: bool, level: &str, message: &str) {
    #[derive(Serialize)]
    struct Event<'a> {
        time: String,
        level: &'a str,
        pid: u32,
        message: &'a str,
    }
    let pid = process::id();
    if json {
        push_json(
            line,
            &Event {
                time: now.rfc3339_millis(),
                level,
                pid,
                message,
            },
        );
    } else {
        let Timestamp { date, time, .. } = now;
        let message = message.replace(char::is_control, " ");
        _ = write!(line, "[{date} {time} +0000] [{pid}] [{level}] {message}");
    }
}

/// Appends a request without the newline. The text form is the Common Log Format.
pub fn push_access(line: &mut String, now: &Timestamp, json: bool, entry: &AccessEntry) {
    #[derive(Serialize)]
    struct Request<'a> {
        time: String,
        client: &'a str,
        method: &'a str,
        target: &'a str,
        version: &'a str,
        status: u16,
        bytes: usize,
        duration_us: u64,
    }
    let &AccessEntry {
        client,
        method,
        target,
        version,
        status,
        bytes,
        duration,
    } = entry;
    if json {
        let time = now.rfc3339_millis();
        return push_json(
            line,
            &Request {
                time,
                client,
                method,
                target,
                version,
                status,
                bytes,
                // 584,542 years fit
                duration_us: u64::try_from(duration.as_micros()).unwrap_or(u64::MAX),
            },
        );
    }
    // Joined by hand: one `write!` for all parts costs a good part of a request.
    for part in [
        client,
        " - - [",
        &now.log_date,
        " ",
        &now.time,
        "] \"",
        method,
        " ",
    ] {
        line.push_str(part);
    }
    push_escaped(line, target);
    for part in [" ", version, "\" "] {
        line.push_str(part);
    }
    _ = write!(line, "{status} {bytes}");
}

fn push_json(line: &mut String, value: &impl Serialize) {
    line.push_str(&serde_json::to_string(value).unwrap_or_default());
}

type Output = fn(&[u8]) -> io::Result<()>;

/// One output, with the entries that wait for it.
struct Stream {
    name: &'static str,
    state: Mutex<State>,
    changed: Condvar,
    output: Output,
    metrics: &'static Metrics,
}

struct State {
    waiting: String,
    /// The writer has taken entries that it has not yet written.
    is_writing: bool,
    has_writer: bool,
    /// Time of the last entry: most entries come in the same second as the one before.
    now: Timestamp,
}

impl Stream {
    fn new(name: &'static str, output: Output, metrics: &'static Metrics) -> Self {
        let state = State {
            waiting: String::new(),
            is_writing: false,
            has_writer: true,
            now: Timestamp::at(0),
        };
        Stream {
            name,
            state: Mutex::new(state),
            changed: Condvar::new(),
            output,
            metrics,
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // A thread that panicked while it logged left at worst half an entry.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn append(&self, now: SystemTime, push: impl FnOnce(&mut String, &Timestamp)) {
        let state = &mut *self.lock();
        if state.waiting.len() >= MAX_PENDING_BYTES || !state.has_writer {
            self.metrics.dropped_log_entries.fetch_add(1, Relaxed);
            return;
        }
        let now = since_epoch(now);
        if state.now.second != now.as_secs() {
            state.now = Timestamp::at(now.as_secs());
        }
        state.now.millisecond = now.subsec_millis();
        push(&mut state.waiting, &state.now);
        state.waiting.push('\n');
        if !state.is_writing {
            self.changed.notify_all();
        }
    }

    /// The writer thread.
    fn write_out(&self) {
        let mut entries = String::new();
        loop {
            let mut state = self.lock();
            state.is_writing = false;
            self.changed.notify_all();
            let is_idle = |state: &mut State| state.waiting.is_empty();
            state = self
                .changed
                .wait_while(state, is_idle)
                .unwrap_or_else(PoisonError::into_inner);
            state.is_writing = true;
            drop(state);
            thread::sleep(BATCH_DELAY);
            mem::swap(&mut entries, &mut self.lock().waiting);
            if (self.output)(entries.as_bytes()).is_err() {
                let dropped = entries.lines().count() as u64;
                self.metrics.dropped_log_entries.fetch_add(dropped, Relaxed);
            }
            entries.clear();
        }
    }
}
