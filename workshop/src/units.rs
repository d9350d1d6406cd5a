//! Formats and parses figures. Sizes are in decimal units, as in Docker's output.

/// Unit of a figure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    Bytes,
    Seconds,
    Count,
    PerSecond,
    /// Text instead of a number.
    Words,
}

/// Smallest value, unit, and factor.
const BYTES: [(f64, &str, f64); 4] = [
    (1e9, " GB", 1e9),
    (1e6, " MB", 1e6),
    (1e3, " kB", 1e3),
    (0.0, " B", 1.0),
];
const SECONDS: [(f64, &str, f64); 3] = [(0.1, " s", 1.0), (1e-3, " ms", 1e-3), (0.0, " µs", 1e-6)];
/// Units that [`Unit::parse`] accepts.
const TYPED_BYTES: [(&str, f64); 8] = [
    ("kB", 1e3),
    ("KB", 1e3),
    ("MB", 1e6),
    ("GB", 1e9),
    ("KiB", 1024.0),
    ("MiB", 1024.0 * 1024.0),
    ("GiB", 1024.0 * 1024.0 * 1024.0),
    ("B", 1.0),
];
const TYPED_SECONDS: [(&str, f64); 4] = [("ms", 1e-3), ("us", 1e-6), ("µs", 1e-6), ("s", 1.0)];

impl Unit {
    /// Formats a value with three significant digits: `882 kB`, `0.352 s`, `7.00 ms`.
    pub fn write(self, value: f64) -> String {
        let (scaled, suffix) = self.scaled(value, value);
        format!("{scaled}{suffix}")
    }

    /// Formats a value and its range in the same unit: `0.352 s (0.331 – 0.410)`.
    pub fn write_range(self, value: f64, (lowest, highest): (f64, f64)) -> String {
        let part = |value_of| self.scaled(value_of, value).0;
        format!(
            "{} ({} – {})",
            self.write(value),
            part(lowest),
            part(highest)
        )
    }

    /// Formats a round value, as on a scale: `1 ms`.
    pub fn write_mark(self, value: f64) -> String {
        let (scaled, suffix) = self.scaled(value, value);
        format!("{}{suffix}", without_zeros(&scaled))
    }

    /// Returns `value` in the unit that suits `example`, and that unit.
    fn scaled(self, value: f64, example: f64) -> (String, &'static str) {
        let of = |scales: &[(f64, &'static str, f64)]| {
            // 999.9 kB is rounded to 1 MB and not to 1000 kB.
            let rounded = example.abs() * 1.0005;
            let (_, suffix, scale) = scales
                .iter()
                .find(|(from, ..)| rounded >= *from)
                .unwrap_or(&scales[0]);
            (three_digits(value / scale), *suffix)
        };
        match self {
            // 79 MB and not 79.0 MB, as in Docker's output.
            Unit::Bytes => {
                let (digits, suffix) = of(&BYTES);
                (without_zeros(&digits).to_owned(), suffix)
            }
            Unit::Seconds if example == 0.0 => (three_digits(value), " s"),
            Unit::Seconds => of(&SECONDS),
            Unit::PerSecond => (thousands(value), "/s"),
            // A scale can have marks at fractions.
            Unit::Count if value.fract() != 0.0 && value.abs() < 10.0 => (value.to_string(), ""),
            Unit::Count | Unit::Words => (thousands(value), ""),
        }
    }

    /// Parses a value such as `900kB`, `1.5 MiB`, `200ms` or `12`.
    ///
    /// # Errors
    ///
    /// A message with the invalid part and what is expected.
    pub fn parse(self, text: &str) -> Result<f64, String> {
        let (suffixes, examples): (&[_], _) = match self {
            Unit::Bytes => (
                &TYPED_BYTES,
                "a size such as 900kB, 1.5MB, 2GB, 512KiB or 1MiB",
            ),
            Unit::Seconds => (&TYPED_SECONDS, "a time such as 1s, 0.5s, 200ms or 50us"),
            _ => (&[("", 1.0)], "a number such as 0 or 12"),
        };
        let text = text.trim();
        let digits = text
            .find(|c: char| !c.is_ascii_digit() && c != '.')
            .unwrap_or(text.len());
        let (number, suffix) = (&text[..digits], text[digits..].trim());
        let number: f64 = number
            .parse()
            .map_err(|_| format!("invalid value `{text}`: expected {examples}"))?;
        match suffixes.iter().find(|(known, _)| *known == suffix) {
            Some((_, scale)) => Ok(number * scale),
            None if suffix.is_empty() => {
                Err(format!("missing unit in `{text}`: expected {examples}"))
            }
            None => Err(format!(
                "unknown unit `{suffix}` in `{text}`: expected {examples}"
            )),
        }
    }
}

/// Converts an integer. Values above 2^53 lose digits, but no figure is that large.
#[expect(clippy::cast_precision_loss)]
pub fn number(integer: u64) -> f64 {
    integer as f64
}

fn three_digits(value: f64) -> String {
    let decimals = match value.abs() {
        0.0 => 0,
        size if size >= 99.95 => 0,
        size if size >= 9.995 => 1,
        size if size >= 0.9995 => 2,
        _ => 3,
    };
    format!("{value:.decimals$}")
}

fn without_zeros(digits: &str) -> &str {
    digits
        .strip_suffix(".00")
        .or_else(|| digits.strip_suffix(".0"))
        .unwrap_or(digits)
}

fn thousands(value: f64) -> String {
    let digits = format!("{:.0}", value.abs());
    let mut text = if value < 0.0 {
        "-".to_owned()
    } else {
        String::new()
    };
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::Unit;

    #[test]
    fn sizes_look_like_dockers() {
        let written = [
            (0.0, "0 B"),
            (999.0, "999 B"),
            (999.9, "1 kB"),
            (1_000.0, "1 kB"),
            (882_184.0, "882 kB"),
            (999_900.0, "1 MB"),
            (79_711_247.0, "79.7 MB"),
            (1_018_000_000.0, "1.02 GB"),
        ];
        for (bytes, text) in written {
            assert_eq!(Unit::Bytes.write(bytes), text);
        }
    }

    #[test]
    fn times_have_three_digits() {
        let written = [
            (0.0, "0 s"),
            (0.000_004_2, "4.20 µs"),
            (0.000_42, "420 µs"),
            (0.012_3, "12.3 ms"),
            (0.352, "0.352 s"),
            (1.043, "1.04 s"),
            (10.23, "10.2 s"),
        ];
        for (seconds, text) in written {
            assert_eq!(Unit::Seconds.write(seconds), text);
        }
        assert_eq!(
            Unit::Seconds.write_range(0.35, (0.0931, 1.41)),
            "0.350 s (0.093 – 1.41)"
        );
        assert_eq!(
            Unit::Seconds.write_range(0.0123, (0.0, 0.02)),
            "12.3 ms (0 – 20.0)"
        );
        assert_eq!(Unit::PerSecond.write(48_210.4), "48,210/s");
        assert_eq!(Unit::Count.write(1_234_567.0), "1,234,567");
        assert_eq!(Unit::Count.write(0.1), "0.1");
    }

    #[test]
    fn parses_sizes_and_times() {
        let read = [
            (Unit::Bytes, "900kB", 900_000.0),
            (Unit::Bytes, "1.5 MB", 1_500_000.0),
            (Unit::Bytes, "1MiB", 1_048_576.0),
            (Unit::Bytes, "12B", 12.0),
            (Unit::Seconds, "1s", 1.0),
            (Unit::Seconds, "250ms", 0.25),
            (Unit::Count, "12", 12.0),
        ];
        for (unit, text, value) in read {
            assert_eq!(unit.parse(text), Ok(value), "{text}");
        }
    }

    #[test]
    fn errors_name_the_invalid_part() {
        let wrong = [
            (Unit::Bytes, "900", "missing unit in `900`"),
            (Unit::Bytes, "900qB", "unknown unit `qB`"),
            (Unit::Bytes, "900mb", "unknown unit `mb`"),
            (Unit::Bytes, "kB", "invalid value `kB`: expected a size"),
            (Unit::Bytes, "-1kB", "invalid value `-1kB`"),
            (Unit::Seconds, "1.2.3s", "expected a time"),
            (Unit::Seconds, "1kB", "unknown unit `kB`"),
            (Unit::Count, "1s", "unknown unit `s`"),
            (Unit::Count, "", "expected a number"),
        ];
        for (unit, text, message) in wrong {
            let error = unit.parse(text).unwrap_err();
            assert!(error.contains(message), "{error}");
        }
    }
}
