//! Compares the output of a command with what a page shows.
//!
//! Output is compared token by token. Some differences say nothing about whether a page is true:
//!
//! - Spaces, numbers of two digits and more, identifiers (12 and more lowercase letters and digits),
//!   months, and ages such as "4 seconds ago" are ignored.
//! - Sizes, such as "79.7MB" and numbers of six digits and more, may differ by [`SIZE_TOLERANCE`].
//! - Times, such as "0m0.354s" and "20ms", may differ as [`is_similar_time`] says.
//!
//! Numbers of one digit, HTTP statuses and exit codes must be equal, because they count replicas, name
//! releases and tell errors. `…` stands for any text within a line, and alone on a line for any lines.

/// Relative difference of sizes that does not matter. The tests in `image` hold the images to exact
/// budgets; memory differs a little from run to run.
const SIZE_TOLERANCE: f64 = 0.1;

const MONTHS: [&str; 12] = [
    "Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec",
];
/// The number behind these is an HTTP status or an exit code.
const STATUS_AFTER: [&str; 5] = ["\"", "returned", "code", "status", "exit"];
const TIME_UNITS: [&str; 5] = ["second", "minute", "hour", "day", "week"];
const SIZE_UNITS: [(&str, f64); 7] = [
    ("B", 1.0),
    ("kB", 1e3),
    ("MB", 1e6),
    ("GB", 1e9),
    ("KiB", 1024.0),
    ("MiB", 1_048_576.0),
    ("GiB", 1_073_741_824.0),
];

/// Returns whether the output is what the page shows.
pub fn is_shown(printed: &str, shown: &str) -> bool {
    let lines = |text: &str| text.trim_end().lines().map(tokens).collect::<Vec<_>>();
    matches(
        &lines(printed),
        &lines(shown),
        &|line| *line == [Token::Any],
        &|printed, shown| {
            matches(
                printed,
                shown,
                &|token| *token == Token::Any,
                &|printed, shown| is_similar(printed, shown),
            )
        },
    )
}

#[derive(Clone, Debug, PartialEq)]
enum Token {
    /// `…`
    Any,
    Space,
    Id,
    Number,
    Month,
    Age,
    /// Bytes.
    Size(f64),
    /// Seconds.
    Time(f64),
    Text(String),
}

fn is_similar(printed: &Token, shown: &Token) -> bool {
    match (printed, shown) {
        (Token::Size(printed), Token::Size(shown)) => {
            (printed - shown).abs() <= shown * SIZE_TOLERANCE
        }
        (Token::Time(printed), Token::Time(shown)) => is_similar_time(*printed, *shown),
        _ => printed == shown,
    }
}

/// Returns whether a time tells the same story as the one in the page. A busy machine may be five
/// times slower. Waits of several seconds that only one of the two shows are a difference.
fn is_similar_time(printed: f64, shown: f64) -> bool {
    let (short, long) = (printed.min(shown), printed.max(shown));
    long <= (short * 5.0).max(short + 1.0)
}

/// Returns whether the text fits the pattern, some of whose members stand for any number of members.
fn matches<T>(
    text: &[T],
    pattern: &[T],
    is_any: &dyn Fn(&T) -> bool,
    fits: &dyn Fn(&T, &T) -> bool,
) -> bool {
    match pattern.split_first() {
        None => text.is_empty(),
        Some((first, rest)) if is_any(first) => {
            (0..=text.len()).any(|skipped| matches(&text[skipped..], rest, is_any, fits))
        }
        Some((first, rest)) => text
            .split_first()
            .is_some_and(|(head, tail)| fits(head, first) && matches(tail, rest, is_any, fits)),
    }
}

fn tokens(line: &str) -> Vec<Token> {
    let mut tokens: Vec<Token> = Vec::new();
    let mut words: Vec<&str> = Vec::new(); // the text of each token
    let mut rest = line.trim();
    while let Some(first) = rest.chars().next() {
        let length = match first {
            '…' => first.len_utf8(),
            _ if first.is_whitespace() => rest.len() - rest.trim_start().len(),
            _ => match rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '.') {
                Some(0) => first.len_utf8(),
                end => end.unwrap_or(rest.len()),
            },
        };
        let (word, behind) = rest.split_at(length);
        rest = behind;
        let back = if words.last() == Some(&"(") { 3 } else { 2 };
        let before = words.len().checked_sub(back).map(|index| words[index]);
        let token = token(word, before);
        words.push(word);
        let is_unit = !word.contains(|c: char| c.is_ascii_digit());
        match token {
            // A unit belongs to the number before it.
            Token::Age | Token::Size(_) if is_unit => {
                tokens.truncate(tokens.len() - 2);
                let is_less = tokens.ends_with(&[Token::Text("than".to_owned()), Token::Space]);
                let is_about = tokens.ends_with(&[Token::Text("About".to_owned()), Token::Space]);
                let extra = if is_less {
                    4
                } else {
                    usize::from(is_about) * 2
                };
                tokens.truncate(tokens.len() - extra);
                tokens.push(token);
                words = vec![word];
            }
            Token::Space if tokens.last() == Some(&Token::Any) => {}
            Token::Any if tokens.last() == Some(&Token::Space) => {
                tokens.pop();
                tokens.push(token);
            }
            _ => tokens.push(token),
        }
    }
    tokens
}

/// Classifies a word. `before` is the word before it, if only one token, or one and a parenthesis, are between them.
fn token(word: &str, before: Option<&str>) -> Token {
    let has_digits = word.contains(|c: char| c.is_ascii_digit());
    let has_letters = word.contains(|c: char| c.is_ascii_alphabetic());
    let is_month = |word: &str| MONTHS.contains(&word);
    let is_id = word.len() >= 12
        && has_digits
        && !word.contains(|c: char| c == '.' || c.is_ascii_uppercase());
    if word == "…" {
        Token::Any
    } else if word.trim().is_empty() {
        Token::Space
    } else if is_id {
        Token::Id
    } else if before.is_some_and(|before| STATUS_AFTER.contains(&before)) {
        Token::Text(word.to_owned())
    } else if let Some(bytes) = size(word, before) {
        Token::Size(bytes)
    } else if has_digits && !has_letters && (word.len() > 1 || before.is_some_and(is_month)) {
        Token::Number
    } else if is_month(word) {
        Token::Month
    } else if before.is_some_and(is_amount)
        && TIME_UNITS
            .iter()
            .any(|unit| word.trim_end_matches('s') == *unit)
    {
        Token::Age
    } else if let Some(seconds) = time(word) {
        Token::Time(seconds)
    } else {
        Token::Text(word.to_owned())
    }
}

/// Returns whether the word can stand before a unit.
fn is_amount(word: &str) -> bool {
    word == "a" || word == "an" || word.parse::<f64>().is_ok()
}

/// The bytes of `915kB`, of `kB` behind `915`, or of `915424`.
fn size(word: &str, before: Option<&str>) -> Option<f64> {
    if word.len() >= 6 && word.bytes().all(|byte| byte.is_ascii_digit()) {
        return word.parse().ok();
    }
    let digits = word.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let factor = SIZE_UNITS
        .iter()
        .find_map(|(unit, factor)| (*unit == &word[digits.len()..]).then_some(*factor))?;
    let amount = if digits.is_empty() { before? } else { digits };
    Some(amount.parse::<f64>().ok()? * factor)
}

/// The seconds of `0m0.354s`, as `time` of bash prints them, or of `20ms`.
fn time(word: &str) -> Option<f64> {
    if let Some(milliseconds) = word.strip_suffix("ms") {
        return milliseconds.parse().ok().map(|ms: f64| ms / 1000.0);
    }
    let (minutes, seconds) = word.strip_suffix('s')?.split_once('m')?;
    Some(minutes.parse::<f64>().ok()? * 60.0 + seconds.parse::<f64>().ok()?)
}

#[test]
fn ignores_only_irrelevant_differences() {
    for (printed, shown, is_same) in [
        ("a  b", "a b", true),
        ("asked 7502, 0 lost", "asked 31, 0 lost", true),
        ("asked 7502, 1 lost", "asked 31, 0 lost", false),
        ("timber-tutorial:1", "timber-tutorial:2", false),
        ("3/3", "2/3", false),
        ("kc8pr9oyvnfi timber.1", "na0byuaplkkc timber.1", true),
        (
            "node (na70fggpi4vn2do21i3trhu1e)",
            "node (5mqnqz6ixcqhxgzkjbvmqx1yl)",
            true,
        ),
        ("from 0.0 to 8.1 s", "from 11.4 to 40.0 s", true),
        ("one\ntwo\nthree", "one\n…", true),
        ("one\ntwo\nthree", "…\nthree", true),
        ("one\ntwo\nthree", "…\ntwo", false),
        ("one", "one …", true),
        ("one two three", "one … three", true),
        ("one two three", "one …", true),
        ("one two three", "one … two", false),
        ("{\"release\": \"1\", \"pid\": 1}", "{…\"1\"…}", true),
        ("{\"release\": \"1\", \"pid\": 1}", "{…\"2\"…}", false),
        ("915kB", "882kB", true),
        ("915kB", "79.7MB", false),
        ("0B 915.4kB", "0B 920kB", true),
        ("919520", "915424", true),
        ("919520", "452206", false),
        ("78.9MB 915.4kB", "0B 915.4kB", false),
        ("rss 968 kB", "rss 1012 kB", true),
        ("rss 968 kB", "rss 2012 kB", false),
        ("real 0m0.354s", "real 0m0.212s", true),
        ("real 0m10.23s", "real 0m0.354s", false),
        ("aborted in 24ms", "aborted in 20ms", true),
        ("aborted in 8s", "aborted in 20ms", false),
        ("x 4 seconds ago", "x About a minute ago", true),
        ("x Less than a second ago", "x 12 minutes ago", true),
        ("Up 12 seconds (healthy)", "Up 9 seconds (healthy)", true),
        ("Up 9 seconds (unhealthy)", "Up 9 seconds (healthy)", false),
        (
            "[01/Dec/2026 17:03:19] 200 26",
            "[28/Nov/2026 9:03:19] 200 26",
            false,
        ),
        (
            "[01/Dec/2026 17:03:19] 200 26",
            "[28/Nov/2026 19:03:19] 200 26",
            true,
        ),
        ("Dec  1 17:03 etc", "Nov 28 16:45 etc", true),
        (
            "\"GET / HTTP/1.1\" 404 26",
            "\"GET / HTTP/1.1\" 200 26",
            false,
        ),
        ("returned 503", "returned 200", false),
        ("non-zero exit (137)", "non-zero exit (143)", false),
        ("91 status 404", "90 status 200", false),
        ("91 status 200", "90 status 200", true),
        ("a 1 915.4kB", "a 1 915.4kB", true),
        ("a 2 915.4kB", "a 1 915.4kB", false),
    ] {
        assert_eq!(
            is_shown(printed, shown),
            is_same,
            "{printed:?} and {shown:?}"
        );
    }
}
