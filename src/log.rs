//! Lines about the service on standard error, and one for each request on standard output.
//!
//! A reader that has gone away or stopped reading must not stop or slow the service. So lines go into a bounded
//! buffer that a thread of its own writes out; what does not fit, or cannot be written, is counted and dropped.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError, atomic::Ordering::Relaxed};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use std::{borrow::Cow, fmt::Write as _, io, io::Write, iter, mem, process, thread};

use hyper::{Method, Version, http::request::Parts};

use crate::config::{AccessLog, Config};
use crate::{api::Answer, metrics::Metrics};

/// For more lines to come before the first is written: to wake the writer for each took as long as a request.
const GATHER: Duration = Duration::from_millis(5);

/// Bytes that wait to be written at most: some 700 requests, which a reader that keeps up takes at one go.
const BUFFER: usize = 64 * 1024;

/// Both logs of the service.
pub struct Log {
    events: Stream,
    requests: Option<Stream>,
    with_probes: bool,
    json: bool,
}

impl Log {
    /// Lines wait until [`Log::start`].
    pub fn new(config: &Config, metrics: &'static Metrics) -> Self {
        let stream = |name, write| {
            let state = State {
                waiting: String::new(),
                writing: false,
                has_writer: true,
                now: Utc::at(0),
            };
            Stream {
                name,
                state: Mutex::new(state),
                changed: Condvar::new(),
                write,
                metrics,
            }
        };
        let requests = || stream("access-log", |lines| io::stdout().write_all(lines));
        Log {
            events: stream("log", |lines| io::stderr().write_all(lines)),
            requests: (config.access_log != AccessLog::Off).then(requests),
            with_probes: config.access_log == AccessLog::All,
            json: config.json_log,
        }
    }

    fn streams(&self) -> impl Iterator<Item = &Stream> {
        iter::once(&self.events).chain(&self.requests)
    }

    /// Starts the writers.
    pub fn start(&'static self) {
        for stream in self.streams() {
            let name = stream.name;
            let started = thread::Builder::new()
                .name(name.to_owned())
                .spawn(move || stream.write_out());
            if let Err(error) = started {
                // A worker that wrote the lines could be held by their reader, so none does.
                let error =
                    format_args!("cannot start a thread for the {name}, so there is none: {error}");
                _ = writeln!(io::stderr(), "timber: {error}");
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

    fn event(&self, level: &str, message: &str) {
        self.events
            .line(|line, now| event_line(line, now, self.json, level, process::id(), message));
    }

    /// Writes the line of one request, unless it is one that is left out.
    pub fn access(&self, client: &str, head: &Parts, answer: &Answer, is_probe: bool) {
        let Some(stream) = self
            .requests
            .as_ref()
            .filter(|_| self.with_probes || !is_probe)
        else {
            return;
        };
        stream.line(|line, now| access_line(line, now, self.json, client, head, answer));
    }

    /// Waits until all lines are written, but no longer than `most` for each stream: its reader may have stopped.
    pub fn flush(&self, most: Duration) {
        for stream in self.streams() {
            let busy = |state: &mut State| state.writing || !state.waiting.is_empty();
            drop(stream.changed.wait_timeout_while(stream.lock(), most, busy));
        }
    }
}

/// The text of an event, without the line's end.
pub fn event_line(line: &mut String, now: &Utc, json: bool, level: &str, pid: u32, message: &str) {
    let Utc { date, time, .. } = now;
    _ = if json {
        let message = quote(message);
        write!(
            line,
            r#"{{"time":"{date}T{time}Z","level":"{level}","pid":{pid},"message":{message}}}"#
        )
    } else {
        let message = message.replace(char::is_control, " ");
        write!(line, "[{date} {time} +0000] [{pid}] [{level}] {message}")
    };
}

/// The text about a request, without the line's end.
pub fn access_line(
    line: &mut String,
    now: &Utc,
    json: bool,
    client: &str,
    head: &Parts,
    answer: &Answer,
) {
    let Utc {
        date,
        common_date,
        time,
        ..
    } = now;
    let target = match (head.uri.scheme(), head.uri.path_and_query()) {
        (None, Some(target)) => Cow::Borrowed(target.as_str()),
        _ => Cow::Owned(head.uri.to_string()),
    };
    let (method, status) = (head.method.as_str(), answer.status.as_str());
    let version = if head.version == Version::HTTP_10 {
        "HTTP/1.0"
    } else {
        "HTTP/1.1"
    };
    let bytes = if method == Method::HEAD {
        0
    } else {
        answer.body.len()
    };
    if json {
        let (method, target) = (quote(method), quote(&target));
        _ = write!(
            line,
            r#"{{"time":"{date}T{time}Z","client":"{client}","method":{method},"#
        );
        _ = write!(
            line,
            r#""target":{target},"version":"{version}","status":{status},"bytes":{bytes}}}"#
        );
        return;
    }
    // Put together by hand: one format for all costs a good part of a request.
    for part in [
        client,
        " - - [",
        common_date,
        " ",
        time,
        "] \"",
        method,
        " ",
    ] {
        line.push_str(part);
    }
    escape(line, &target);
    for part in [" ", version, "\" ", status, " "] {
        line.push_str(part);
    }
    _ = write!(line, "{bytes}");
}

/// A stream with the lines that wait for it.
struct Stream {
    name: &'static str,
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
            state = self
                .changed
                .wait_while(state, idle)
                .unwrap_or_else(PoisonError::into_inner);
            state.writing = true;
            drop(state);
            thread::sleep(GATHER);
            mem::swap(&mut lines, &mut self.lock().waiting);
            if (self.write)(lines.as_bytes()).is_err() {
                self.metrics
                    .dropped_lines
                    .fetch_add(lines.lines().count() as u64, Relaxed);
            }
            lines.clear();
        }
    }
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
        const MONTHS: [&str; 12] = [
            "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec", "Jan", "Feb",
        ];
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
            common_date: format!(
                "{day:02}/{}/{year:04}",
                MONTHS[usize::try_from(month).unwrap_or(0)]
            ),
            time: format!("{hour:02}:{minute:02}:{:02}", second % 60),
        }
    }
}

/// Now; a clock that is set before the epoch counts as the epoch.
pub fn epoch_seconds() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}

/// The text as a JSON string. `serde_json::Value` would be handier, and larger: it can print floats.
pub fn quote(text: &str) -> String {
    serde_json::to_string(text).unwrap_or_default()
}

/// Escapes what could end a line, close its quotes or drive a terminal.
fn escape(line: &mut String, text: &str) {
    let is_plain = |byte: u8| matches!(byte, b' '..=b'~') && byte != b'"' && byte != b'\\';
    if text.bytes().all(is_plain) {
        return line.push_str(text);
    }
    for byte in text.bytes() {
        _ = if is_plain(byte) {
            line.write_char(char::from(byte))
        } else {
            write!(line, "\\x{byte:02x}")
        };
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
            let rendered = (
                utc.date.as_str(),
                utc.common_date.as_str(),
                utc.time.as_str(),
            );
            assert_eq!(
                rendered,
                (date, common_date, time),
                "{second} seconds after the epoch"
            );
        }
    }

    #[test]
    fn a_client_cannot_forge_a_line() {
        let mut line = String::new();
        escape(&mut line, "/a\"\n\\\x1b[2J\u{9b}é");
        assert_eq!(line, r"/a\x22\x0a\x5c\x1b[2J\xc2\x9b\xc3\xa9");
    }
}
