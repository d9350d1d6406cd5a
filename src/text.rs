//! Text forms that several modules share: UTC timestamps, JSON, escaping.

use std::fmt::Write;
use std::io;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::Serialize;
use serde_json::ser::{Formatter, Serializer};

/// 9999-12-31T23:59:59Z, the last second that `httpdate` can format.
const LAST_SECOND: u64 = 253_402_300_799;

/// A second in Coordinated Universal Time, in the forms that log entries use.
pub struct Timestamp {
    /// Seconds since the Unix epoch.
    pub second: u64,
    /// `2026-11-22`
    pub date: String,
    /// `22/Nov/2026`, the date of the Common Log Format.
    pub log_date: String,
    /// `17:31:11`
    pub time: String,
    /// Milliseconds since the beginning of the second.
    pub millisecond: u32,
}

impl Timestamp {
    /// `second` counts from the Unix epoch.
    pub fn at(second: u64) -> Self {
        const MONTHS: [&str; 12] = [
            "Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec",
        ];
        let second = second.min(LAST_SECOND);
        // `Sun, 22 Nov 2026 17:31:11 GMT`: every part has its fixed place (RFC 9110 section 5.6.7).
        let text = httpdate::fmt_http_date(UNIX_EPOCH + Duration::from_secs(second));
        let (day, month, year, time) = (&text[5..7], &text[8..11], &text[12..16], &text[17..25]);
        let number = 1 + MONTHS.iter().position(|name| *name == month).unwrap_or(0);
        Timestamp {
            second,
            date: format!("{year}-{number:02}-{day}"),
            log_date: format!("{day}/{month}/{year}"),
            time: time.to_owned(),
            millisecond: 0,
        }
    }

    /// RFC 3339: `2026-11-22T17:31:11Z`.
    pub fn rfc3339(&self) -> String {
        format!("{}T{}Z", self.date, self.time)
    }

    /// RFC 3339 with milliseconds: `2026-11-22T17:31:11.042Z`.
    pub fn rfc3339_millis(&self) -> String {
        format!("{}T{}.{:03}Z", self.date, self.time, self.millisecond)
    }
}

/// Returns the time since the Unix epoch; zero if the clock is set before it.
pub fn since_epoch(time: SystemTime) -> Duration {
    time.duration_since(UNIX_EPOCH).unwrap_or_default()
}

/// Returns `value` as JSON with a space after each colon and comma, as Python's `json.dumps` writes
/// it: the original's responses have this form.
pub fn to_json(value: &impl Serialize) -> String {
    let mut json = Vec::with_capacity(256);
    let result = value.serialize(&mut Serializer::with_formatter(&mut json, Spaced));
    debug_assert!(result.is_ok(), "{result:?}");
    String::from_utf8(json).unwrap_or_default()
}

struct Spaced;

impl Formatter for Spaced {
    fn begin_object_key<W: ?Sized + io::Write>(
        &mut self,
        out: &mut W,
        first: bool,
    ) -> io::Result<()> {
        out.write_all(if first { b"" } else { b", " })
    }

    fn begin_array_value<W: ?Sized + io::Write>(
        &mut self,
        out: &mut W,
        first: bool,
    ) -> io::Result<()> {
        self.begin_object_key(out, first)
    }

    fn begin_object_value<W: ?Sized + io::Write>(&mut self, out: &mut W) -> io::Result<()> {
        out.write_all(b": ")
    }
}

/// Appends `text`, with `\xNN` for each byte that could end a log entry, close its quotes or
/// control a terminal.
pub fn push_escaped(line: &mut String, text: &str) {
    let is_plain = |byte: u8| matches!(byte, b' '..=b'~') && byte != b'"' && byte != b'\\';
    if text.bytes().all(is_plain) {
        return line.push_str(text);
    }
    for byte in text.bytes() {
        if is_plain(byte) {
            line.push(char::from(byte));
        } else {
            _ = write!(line, "\\x{byte:02x}");
        }
    }
}

/// Escapes `text` for HTML, as an element's content or a quoted attribute.
pub fn escape_html(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats_timestamps() {
        for (second, date, log_date, time) in [
            (0, "1970-01-01", "01/Jan/1970", "00:00:00"),
            (951_782_400, "2000-02-29", "29/Feb/2000", "00:00:00"),
            (1_767_225_599, "2025-12-31", "31/Dec/2025", "23:59:59"),
            (1_795_368_671, "2026-11-22", "22/Nov/2026", "17:31:11"),
            (u64::MAX, "9999-12-31", "31/Dec/9999", "23:59:59"),
        ] {
            let timestamp = Timestamp::at(second);
            let formatted = (
                timestamp.date.as_str(),
                timestamp.log_date.as_str(),
                timestamp.time.as_str(),
            );
            assert_eq!(formatted, (date, log_date, time), "second {second}");
        }
    }

    #[test]
    fn clients_cannot_forge_log_entries() {
        let mut line = String::new();
        push_escaped(&mut line, "/a\"\n\\\x1b[2J\u{9b}é");
        assert_eq!(line, r"/a\x22\x0a\x5c\x1b[2J\xc2\x9b\xc3\xa9");
    }

    #[test]
    fn json_has_the_spaces_of_the_original() {
        #[derive(Serialize)]
        struct Document {
            timber: &'static str,
            rings: u8,
        }
        let document = Document {
            timber: "so delicious",
            rings: 7,
        };
        assert_eq!(
            to_json(&document),
            r#"{"timber": "so delicious", "rings": 7}"#
        );
    }
}
