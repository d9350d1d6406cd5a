//! Lines about the service on standard error, and one for each request on standard output.
//!
//! A reader that has gone away or stopped reading must not stop or slow the service. So lines go into a bounded
//! buffer that a thread of its own writes out; what does not fit, or cannot be written, is counted and dropped.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, atomic::Ordering::Relaxed};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use std::{fmt, fmt::Write as _, io, io::Write, net::IpAddr, process, thread};

use hyper::{Method, http::request::Parts};

use crate::config::{AccessLog, Config};
use crate::{api::Answer, metrics::Metrics};

/// Bytes that wait to be written at most: some 700 requests, which a reader that keeps up takes at one go.
const BUFFER: usize = 64 * 1024;

/// Both logs of the service. Clones write to the same.
#[derive(Clone)]
pub struct Log {
    events: Arc<Stream>,
    requests: Option<Arc<Stream>>,
    with_probes: bool,
    json: bool,
}

impl Log {
    pub fn new(config: &Config, metrics: &'static Metrics) -> Self {
        let stream = |name, write| Stream::start(name, write, metrics);
        Log {
            events: stream("log", |lines| write(io::stderr(), lines)),
            requests: (config.access_log != AccessLog::Off)
                .then(|| stream("access-log", |lines| write(io::stdout(), lines))),
            with_probes: config.access_log == AccessLog::All,
            json: config.json_log,
        }
    }

    pub fn info(&self, message: fmt::Arguments) {
        self.event("INFO", message);
    }

    pub fn warning(&self, message: fmt::Arguments) {
        self.event("WARNING", message);
    }

    pub fn error(&self, message: fmt::Arguments) {
        self.event("ERROR", message);
    }

    fn event(&self, level: &str, message: fmt::Arguments) {
        let (pid, message) = (process::id(), message.to_string());
        self.events.line(|line, Utc { date, time, .. }| {
            _ = if self.json {
                write!(line, r#"{{"time":"{date}T{time}Z","level":"{level}","pid":{pid},"#)
                    .and_then(|()| write!(line, r#""message":{}}}"#, quote(&message)))
            } else {
                let message = message.replace(char::is_control, " ");
                write!(line, "[{date} {time} +0000] [{pid}] [{level}] {message}")
            };
        });
    }

    /// Writes the line of one request, unless it is one that is left out.
    pub fn access(&self, client: IpAddr, head: &Parts, answer: &Answer, is_probe: bool) {
        let Some(stream) = self.requests.as_ref().filter(|_| self.with_probes || !is_probe) else { return };
        // IPv4 clients of a socket for both families look like ::ffff:127.0.0.1.
        let client = client.to_canonical();
        let (method, target, version) = (&head.method, head.uri.to_string(), head.version);
        let status = answer.status.as_u16();
        let bytes = if method == Method::HEAD { 0 } else { answer.body.len() };
        stream.line(|line, Utc { date, common_date, time, .. }| {
            if self.json {
                let (method, target) = (quote(method.as_str()), quote(&target));
                _ = write!(line, r#"{{"time":"{date}T{time}Z","client":"{client}","method":{method},"#);
                _ = write!(line, r#""target":{target},"version":"{version:?}","status":{status},"#);
                _ = write!(line, r#""bytes":{bytes}}}"#);
            } else {
                _ = write!(line, "{client} - - [{common_date} {time}] \"{method} ");
                escape(line, &target);
                _ = write!(line, " {version:?}\" {status} {bytes}");
            }
        });
    }

    /// Waits until all lines are written, but no longer than `most` for each stream: its reader may have stopped.
    pub fn flush(&self, most: Duration) {
        for stream in [Some(&self.events), self.requests.as_ref()].into_iter().flatten() {
            let busy = |state: &mut State| state.writing || !state.waiting.is_empty();
            drop(stream.changed.wait_timeout_while(stream.lock(), most, busy));
        }
    }
}

/// A stream with the lines that wait for it.
struct Stream {
    state: Mutex<State>,
    changed: Condvar,
    write: fn(&[u8]) -> io::Result<()>,
    metrics: &'static Metrics,
}

struct State {
    waiting: String,
    /// The writer has taken lines that it has not yet written.
    writing: bool,
    has_writer: bool,
    /// Of the last line: most lines come in the same second as the one before.
    now: Utc,
}

impl Stream {
    /// Where no thread can be started the lines are dropped, once that is said: a worker that wrote them could be
    /// held by their reader.
    fn start(name: &str, write: fn(&[u8]) -> io::Result<()>, metrics: &'static Metrics) -> Arc<Self> {
        let state = State { waiting: String::new(), writing: false, has_writer: true, now: Utc::at(0) };
        let stream = Arc::new(Stream { state: Mutex::new(state), changed: Condvar::new(), write, metrics });
        let shared = Arc::clone(&stream);
        let writer = thread::Builder::new().name(name.to_owned()).spawn(move || shared.write_out());
        if let Err(error) = writer {
            let mut stderr = io::stderr();
            _ = writeln!(stderr, "timber: cannot start a thread for the {name}, so there is none: {error}");
            stream.lock().has_writer = false;
        }
        stream
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // A thread that panicked while it logged left at worst half a line.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn line(&self, render: impl FnOnce(&mut String, &Utc)) {
        let state = &mut *self.lock();
        if state.waiting.len() >= BUFFER || !state.has_writer {
            self.metrics.dropped_lines.fetch_add(1, Relaxed);
            return;
        }
        let second = epoch_seconds();
        if state.now.second != second {
            state.now = Utc::at(second);
        }
        render(&mut state.waiting, &state.now);
        state.waiting.push('\n');
        if !state.writing {
            self.changed.notify_all();
        }
    }

    fn write_out(&self) {
        let mut lines = String::new();
        loop {
            let mut state = self.lock();
            state.writing = false;
            self.changed.notify_all();
            let idle = |state: &mut State| state.waiting.is_empty();
            state = self.changed.wait_while(state, idle).unwrap_or_else(PoisonError::into_inner);
            state.writing = true;
            std::mem::swap(&mut lines, &mut state.waiting);
            drop(state);
            if (self.write)(lines.as_bytes()).is_err() {
                self.metrics.dropped_lines.fetch_add(lines.lines().count() as u64, Relaxed);
            }
            lines.clear();
        }
    }
}

fn write(mut stream: impl Write, lines: &[u8]) -> io::Result<()> {
    stream.write_all(lines)?;
    stream.flush()
}

/// A second in Coordinated Universal Time, in the words that lines use.
pub struct Utc {
    second: u64,
    /// `2026-11-22`
    pub date: String,
    /// `22/Nov/2026`
    common_date: String,
    /// `17:31:11`
    pub time: String,
}

impl Utc {
    /// `second` counts from the Unix epoch.
    pub fn at(second: u64) -> Self {
        const MONTHS: [&str; 12] =
            ["Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec", "Jan", "Feb"];
        // Years that begin in March have their leap day at the end, so months from there begin at a straight
        // line's whole numbers; 719,468 days lie between 0000-03-01 and the epoch.
        let days = second / 86_400 + 719_468;
        let (era, day) = (days / 146_097, days % 146_097);
        let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
        let day = day - (365 * year + year / 4 - year / 100);
        let month = (5 * day + 2) / 153;
        let day = day - (153 * month + 2) / 5 + 1;
        let year = era * 400 + year + u64::from(month >= 10);
        let (hour, minute) = (second / 3600 % 24, second / 60 % 60);
        Utc {
            second,
            date: format!("{year:04}-{:02}-{day:02}", (month + 2) % 12 + 1),
            common_date: format!("{day:02}/{}/{year:04}", MONTHS[usize::try_from(month).unwrap_or(0)]),
            time: format!("{hour:02}:{minute:02}:{:02}", second % 60),
        }
    }
}

/// Now; a clock that is set before the epoch counts as the epoch.
pub fn epoch_seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// The text as a JSON string. `serde_json::Value` would be handier, and larger: it can print floats.
pub fn quote(text: &str) -> String {
    serde_json::to_string(text).unwrap_or_default()
}

/// Escapes what could end a line, close its quotes or drive a terminal.
fn escape(line: &mut String, text: &str) {
    for byte in text.bytes() {
        match byte {
            b'"' | b'\\' | 0..=0x1f | 0x7f.. => _ = write!(line, "\\x{byte:02x}"),
            _ => line.push(char::from(byte)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates() {
        for (second, date, common_date, time) in [
            (0, "1970-01-01", "01/Jan/1970", "00:00:00"),
            (951_782_399, "2000-02-28", "28/Feb/2000", "23:59:59"),
            (951_782_400, "2000-02-29", "29/Feb/2000", "00:00:00"),
            (1_709_251_199, "2024-02-29", "29/Feb/2024", "23:59:59"),
            (1_767_225_599, "2025-12-31", "31/Dec/2025", "23:59:59"),
            (1_795_368_671, "2026-11-22", "22/Nov/2026", "17:31:11"),
            (4_107_542_400, "2100-03-01", "01/Mar/2100", "00:00:00"),
        ] {
            let utc = Utc::at(second);
            let rendered = (utc.date.as_str(), utc.common_date.as_str(), utc.time.as_str());
            assert_eq!(rendered, (date, common_date, time), "{second} seconds after the epoch");
        }
    }

    #[test]
    fn a_client_cannot_forge_a_line() {
        let mut line = String::new();
        escape(&mut line, "/a\"\n\\\x1b[2J\u{9b}é");
        assert_eq!(line, r"/a\x22\x0a\x5c\x1b[2J\xc2\x9b\xc3\xa9");
    }
}
