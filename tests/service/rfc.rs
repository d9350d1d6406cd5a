//! Single requests, and the responses that RFC 9110 and RFC 9112 permit. Where the RFCs leave a
//! choice, the table accepts every sensible status. A refusal must not let a smuggled second
//! request through.

use std::time::SystemTime;

use Expect::{Closed, Either, KeepAlive};

use super::*;

/// The permitted statuses of the response, and the state of the connection after it.
#[derive(Clone, Copy, Debug)]
enum Expect {
    KeepAlive(&'static [u16]),
    Closed(&'static [u16]),
    Either(&'static [u16]),
}

const OK: &[u16] = &[200];
const BAD: &[u16] = &[400];
const BAD_OR_NOT_FOUND: &[u16] = &[400, 404];
const BAD_OR_NOT_IMPLEMENTED: &[u16] = &[400, 501];
const OK_OR_BAD: &[u16] = &[200, 400];
const OK_OR_NOT_IMPLEMENTED: &[u16] = &[200, 501];
const BAD_OR_VERSION: &[u16] = &[400, 505];
const VERSION_NOT_SUPPORTED: &[u16] = &[505];

/// The section of the RFC, a part of the request, and the expected outcome.
type Row<'a> = (&'a str, &'a [u8], Expect);

/// Sends `before`, the row's bytes and `after` for each row, on a new connection each.
///
/// # Panics
/// If a row fails, with a list of all that do.
fn check(before: &str, rows: &[Row], after: &str) {
    let service = Timber::start(&["--header-timeout", "2s", "--write-timeout", "2s"]);
    let address = service.address;
    let failures: Vec<String> = thread::scope(|scope| {
        let rows = rows.iter().map(|&(section, part, expect)| {
            let request = [before.as_bytes(), part, after.as_bytes()].concat();
            scope.spawn(move || {
                let failure = check_row(address, &request, expect).err()?;
                let part = part[..part.len().min(80)].escape_ascii();
                Some(format!(
                    "RFC {section}: {part}: {failure}, expected {expect:?}"
                ))
            })
        });
        let rows: Vec<_> = rows.collect();
        rows.into_iter()
            .filter_map(|row| row.join().unwrap())
            .collect()
    });
    assert!(
        failures.is_empty(),
        "{} of {} rows fail:\n{}",
        failures.len(),
        rows.len(),
        failures.join("\n")
    );
    assert_eq!(service.get("/index").status, 200);
}

fn check_row(address: SocketAddr, request: &[u8], expect: Expect) -> Result<(), String> {
    let (KeepAlive(statuses) | Closed(statuses) | Either(statuses)) = expect;
    let mut stream = connect(address);
    _ = stream.write_all(request); // the service may refuse the request before its end
    let response = Response::try_read(&mut stream, request.starts_with(b"HEAD "))?;
    if !statuses.contains(&response.status) {
        return Err(response.status.to_string());
    }
    check_response(&response, request.starts_with(b"HEAD "))
        .map_err(|error| format!("{} {error}", response.status))?;
    if let Closed(_) = expect {
        let is_old = request.windows(10).any(|part| part == b" HTTP/1.0\r");
        if !is_old && response.header("connection") != Some("close") {
            return Err(format!("{} without Connection: close", response.status));
        }
        return if is_closed(&mut stream) {
            Ok(())
        } else {
            Err(format!("{} and then more bytes", response.status))
        };
    }
    _ = stream.write_all(get("/healthz").as_bytes());
    match Response::try_read(&mut stream, false) {
        Ok(next) if next.body == br#"{"status": "ok"}"# => Ok(()),
        Ok(next) => Err(format!("{} and then {}", response.status, next.status)),
        Err(_) if matches!(expect, Either(_)) => Ok(()),
        Err(end) => Err(format!("{} and then {end}", response.status)),
    }
}

/// Checks the requirements for every response.
fn check_response(response: &Response, is_head: bool) -> Result<(), String> {
    let count = |name| response.headers.iter().filter(|(n, _)| n == name).count();
    let date = response
        .header("date")
        .and_then(|date| httpdate::parse_http_date(date).ok());
    let age = date.and_then(|date| SystemTime::now().duration_since(date).ok());
    if count("date") != 1 || age.is_none_or(|age| age > TEST_TIMEOUT) {
        return Err(format!("with the date {date:?} (RFC 9110 section 6.6.1)"));
    }
    let length = response
        .header("content-length")
        .and_then(|length| length.parse::<usize>().ok());
    if count("content-length") != 1 || count("transfer-encoding") != 0 || length.is_none() {
        return Err("without exactly one length (RFC 9110 section 8.6)".to_owned());
    }
    if response.status == 405 && response.header("allow").is_none() {
        return Err("without Allow (RFC 9110 section 15.5.6)".to_owned());
    }
    // The original's 404 documents its API, and its 405 is empty.
    if response.status < 400 || [404, 405].contains(&response.status) || is_head {
        return Ok(());
    }
    let errors: Value = serde_json::from_slice(&response.body).unwrap_or_default();
    let has_error = errors["errors"]
        .as_object()
        .is_some_and(|errors| errors.len() == 1 && errors.values().all(Value::is_string));
    let is_json = response.header("content-type") == Some(JSON);
    if has_error && is_json {
        Ok(())
    } else {
        Err(format!("with the body {:?}", response.text()))
    }
}

const AMBIGUOUS_FRAMING: &[Row] = &[
    (
        "9112 6.1",
        b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        Closed(OK_OR_BAD),
    ),
    (
        "9112 6.1",
        b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n",
        Closed(OK_OR_BAD),
    ),
    (
        "9112 6.1",
        b"Transfer-Encoding: chunked\r\nContent-Length: x\r\n\r\n0\r\n\r\n",
        Closed(OK_OR_BAD),
    ),
    (
        "9112 6.3",
        b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
        Closed(BAD),
    ),
    (
        "9112 6.3",
        b"Content-Length: 0\r\nContent-Length: 5\r\n\r\nhello",
        Closed(BAD),
    ),
    (
        "9112 6.3",
        b"Content-Length: 5, 6\r\n\r\nhello",
        Closed(BAD),
    ),
    ("9110 8.6", b"Content-Length: +5\r\n\r\nhello", Closed(BAD)),
    ("9110 8.6", b"Content-Length: -5\r\n\r\nhello", Closed(BAD)),
    ("9110 8.6", b"Content-Length: 5 5\r\n\r\nhello", Closed(BAD)),
    ("9110 8.6", b"Content-Length: 0x5\r\n\r\nhello", Closed(BAD)),
    ("9110 8.6", b"Content-Length: 5.0\r\n\r\nhello", Closed(BAD)),
    (
        "9110 8.6",
        b"Content-Length: \"5\"\r\n\r\nhello",
        Closed(BAD),
    ),
    (
        "9110 8.6",
        b"Content-Length: five\r\n\r\nhello",
        Closed(BAD),
    ),
    ("9110 8.6", b"Content-Length:\r\n\r\nhello", Closed(BAD)),
    (
        "9110 8.6",
        b"Content-Length: 18446744073709551615\r\n\r\n",
        Closed(BAD),
    ),
    (
        "9110 8.6",
        b"Content-Length: 18446744073709551616\r\n\r\n",
        Closed(BAD),
    ),
    (
        "9110 8.6",
        b"Content-Length: 36893488147419103237\r\n\r\nhello",
        Closed(BAD),
    ),
    (
        "9112 6.3",
        b"Transfer-Encoding: identity\r\n\r\n",
        Closed(BAD_OR_NOT_IMPLEMENTED),
    ),
    (
        "9112 6.3",
        b"Transfer-Encoding: gzip\r\n\r\n",
        Closed(BAD_OR_NOT_IMPLEMENTED),
    ),
    (
        "9112 6.3",
        b"Transfer-Encoding: chunked, gzip\r\n\r\n0\r\n\r\n",
        Closed(BAD_OR_NOT_IMPLEMENTED),
    ),
    (
        "9112 6.3",
        b"Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
        Closed(BAD_OR_NOT_IMPLEMENTED),
    ),
    (
        "9112 6.3",
        b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
        Closed(BAD_OR_NOT_IMPLEMENTED),
    ),
    (
        "9112 6.3",
        b"Transfer-Encoding: chunked;q=1\r\n\r\n0\r\n\r\n",
        Closed(BAD_OR_NOT_IMPLEMENTED),
    ),
    (
        "9112 6.3",
        b"Transfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n",
        Closed(BAD_OR_NOT_IMPLEMENTED),
    ),
    (
        "9112 6.3",
        b"Transfer-Encoding:\r\n\r\n0\r\n\r\n",
        Closed(BAD_OR_NOT_IMPLEMENTED),
    ),
    (
        "9112 6.3",
        b"Transfer-Encoding: chunked\r\nTransfer-Encoding: gzip\r\n\r\n0\r\n\r\n",
        Closed(BAD_OR_NOT_IMPLEMENTED),
    ),
    (
        "9112 5.1",
        b"Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
        Closed(BAD),
    ),
    ("9112 5.1", b"Content-Length : 5\r\n\r\nhello", Closed(BAD)),
];

/// The end of a request is the start of the next one: if a proxy and the service disagree about it,
/// a request can be smuggled.
#[test]
fn ambiguous_framing_closes_the_connection() {
    let request = "GET /index HTTP/1.1\r\nHost: a\r\n";
    check(request, AMBIGUOUS_FRAMING, &get("/smuggled"));
}

#[test]
fn valid_framing_is_served() {
    let request = "GET /index HTTP/1.1\r\nHost: a\r\n";
    let rows: &[Row] = &[
        ("9112 6.3", b"Content-Length: 5\r\n\r\nhello", Closed(OK)),
        (
            "9112 6.3",
            b"Content-Length: 5\r\nContent-Length: 5\r\n\r\nhello",
            Either(OK),
        ),
        (
            "9112 6.3",
            b"Content-Length: 5, 5\r\n\r\nhello",
            Either(OK_OR_BAD),
        ),
        (
            "9112 5.1",
            b"Content-Length:\t 5 \t\r\n\r\nhello",
            Closed(OK),
        ),
        ("9110 8.6", b"content-length: 005\r\n\r\nhello", Closed(OK)),
        (
            "9112 7",
            b"transfer-encoding: CHUNKED\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
            Either(OK),
        ),
        // The last encoding is chunked, so the end of the body is known.
        (
            "9112 6.1",
            b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
            Either(OK_OR_NOT_IMPLEMENTED),
        ),
        (
            "9112 6.1",
            b"Transfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n",
            Either(OK_OR_BAD),
        ),
    ];
    check(request, rows, "");
}

#[test]
fn http_1_0_request_with_transfer_encoding_closes_the_connection() {
    // RFC 9112 section 6.1: invalid, even with a Content-Length.
    let rows: &[Row] = &[
        (
            "9112 6.1",
            b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            Closed(OK_OR_BAD),
        ),
        (
            "9112 6.1",
            b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            Closed(OK_OR_BAD),
        ),
        (
            "9112 6.1",
            b"Connection: keep-alive\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            Closed(OK_OR_BAD),
        ),
    ];
    check("GET /index HTTP/1.0\r\n", rows, &get("/smuggled"));
}

/// The service responds before it reads a body, so a malformed one shows only in the close of the
/// connection.
#[test]
fn malformed_chunks_close_the_connection() {
    let request = "GET /index HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";
    let malformed: &[&[u8]] = &[
        b"x\r\nhello\r\n0\r\n\r\n",
        b"-5\r\nhello\r\n0\r\n\r\n",
        b"+5\r\nhello\r\n0\r\n\r\n",
        b"0x5\r\nhello\r\n0\r\n\r\n",
        b"\r\nhello\r\n0\r\n\r\n",
        b"5 5\r\nhello\r\n0\r\n\r\n",
        b" 5\r\nhello\r\n0\r\n\r\n",
        b"5\nhello\n0\n\n",
        b"5\rhello\r\n0\r\n\r\n",
        b"5\r\nhello0\r\n\r\n",
        b"5\r\nhello world\r\n0\r\n\r\n",
        b"5;a\nb\r\nhello\r\n0\r\n\r\n",
        b"7fffffffffffffff\r\nhello\r\n0\r\n\r\n",
        b"ffffffffffffffff\r\nhello\r\n0\r\n\r\n",
        b"10000000000000005\r\nhello\r\n0\r\n\r\n",
        b"0\r\nX : y\r\n\r\n",
        b"0\r\nX\r\n\r\n",
    ];
    let rows: Vec<Row> = malformed
        .iter()
        .map(|part| ("9112 7.1", *part, Closed(OK_OR_BAD)))
        .collect();
    check(request, &rows, &get("/smuggled"));
    let extension = [
        b"5;",
        "a".repeat(1000).as_bytes(),
        b"\r\nhello\r\n0\r\n\r\n",
    ]
    .concat();
    let rows: &[Row] = &[
        ("9112 7.1", b"0\r\n\r\n", Either(OK)),
        ("9112 7.1", b"5\r\nhello\r\n1\r\n!\r\n0\r\n\r\n", Either(OK)),
        ("9112 7.1", b"0005\r\nhello\r\n000\r\n\r\n", Either(OK)),
        (
            "9112 7.1.1",
            b"5;a=b;c=\"d\"\r\nhello\r\n0;e\r\n\r\n",
            Either(OK),
        ),
        ("9112 7.1.1", &extension, Either(OK)),
        (
            "9112 7.1.2",
            b"5\r\nhello\r\n0\r\nX: y\r\nZ:\r\n\r\n",
            Either(OK),
        ),
        (
            "9110 6.5.1",
            b"0\r\nContent-Length: 40\r\nHost: b\r\n\r\n",
            Either(OK),
        ),
    ];
    check(request, rows, "");
}

#[test]
fn malformed_header_fields_are_refused() {
    let rows: &[Row] = &[
        ("9112 5.2", b"Host: a\r\nX: b\r\n c\r\n\r\n", Closed(BAD)),
        ("9112 5.2", b"Host: a\r\nX: b\r\n\tc\r\n\r\n", Closed(BAD)),
        ("9112 2.2", b"Host: a\r\nX: b\rc\r\n\r\n", Closed(BAD)),
        ("9112 2.2", b"Host: a\r\nX: b\r\r\n\r\n", Closed(BAD)),
        ("9112 2.2", b" Host: a\r\n\r\n", Closed(BAD)),
        ("9112 2.2", b"\tX: b\r\nHost: a\r\n\r\n", Closed(BAD)),
        ("9110 5.5", b"Host: a\r\nX: b\0c\r\n\r\n", Closed(BAD)),
        (
            "9110 5.5",
            b"Host: a\r\nX: b\x7fc\r\n\r\n",
            Either(OK_OR_BAD),
        ),
        ("9110 5.1", b"Host: a\r\nX\0: b\r\n\r\n", Closed(BAD)),
        ("9110 5.1", b"Host: a\r\n: b\r\n\r\n", Closed(BAD)),
        ("9110 5.1", b"Host: a\r\nX Y: b\r\n\r\n", Closed(BAD)),
        ("9110 5.1", b"Host: a\r\nX(Y): b\r\n\r\n", Closed(BAD)),
        ("9110 5.1", b"Host: a\r\n\xe9: b\r\n\r\n", Closed(BAD)),
        ("9112 5", b"Host: a\r\nX\r\n\r\n", Closed(BAD)),
        ("9112 5.1", b"Host : a\r\n\r\n", Closed(BAD)),
        ("9112 5.1", b"Host: a\r\nX\t: b\r\n\r\n", Closed(BAD)),
        ("9112 2.2", b"Host: a\nX: b\n\n", KeepAlive(OK)),
        (
            "9110 5.5",
            b"Host: a\r\nX: \xe9\xff\r\n\r\n",
            Either(OK_OR_BAD),
        ),
        (
            "9110 5.5",
            b"Host: a\r\nX:\r\nX: \t \r\n\r\n",
            KeepAlive(OK),
        ),
        ("9110 5.1", b"hOST: a\r\n\r\n", KeepAlive(OK)),
    ];
    check("GET /index HTTP/1.1\r\n", rows, "");
}

#[test]
fn request_needs_exactly_one_valid_host() {
    let rows: &[Row] = &[
        ("9112 3.2", b"", KeepAlive(BAD)),
        ("9112 3.2", b"Host: a\r\nHost: b\r\n", KeepAlive(BAD)),
        ("9112 3.2", b"Host: a\r\nHost: a\r\n", KeepAlive(BAD)),
        ("9112 3.2", b"Host: a b\r\n", KeepAlive(BAD)),
        ("9112 3.2", b"Host: a/b\r\n", KeepAlive(BAD)),
        ("9112 3.2", b"Host: b@a\r\n", KeepAlive(BAD)),
        ("9112 3.2", b"Host: http://a\r\n", KeepAlive(BAD)),
        ("9112 3.2", b"Host: a\"b\r\n", KeepAlive(BAD)),
        ("9112 3.2", b"Host: \xff\r\n", KeepAlive(BAD)),
        ("9112 3.2", b"Host: a:b\r\n", KeepAlive(BAD)),
        ("9112 3.2", b"Host: a:1:2\r\n", KeepAlive(BAD)),
        ("9112 3.2", b"Host: [::1\r\n", KeepAlive(BAD)),
        ("9112 3.2", b"Host: %zz\r\n", KeepAlive(BAD)),
        ("9112 3.2", b"Host:\r\n", KeepAlive(OK)),
        ("9110 7.2", b"Host: a:\r\n", KeepAlive(OK)),
        ("9110 7.2", b"Host: [::1]:8000\r\n", KeepAlive(OK)),
    ];
    check("GET /index HTTP/1.1\r\n", rows, "\r\n");
}

/// The four forms of a target (RFC 9112 section 3.2), and invalid targets.
#[test]
fn targets_in_each_form_are_served_and_others_refused() {
    let rows: &[Row] = &[
        ("9112 3.2.1", b"GET /index", KeepAlive(OK)),
        ("9112 3.2.2", b"GET http://b/index", KeepAlive(OK)),
        ("9112 3.2.2", b"GET HTTP://b:80/index", KeepAlive(OK)),
        ("9110 7.4", b"GET https://b/index", Either(&[200, 400, 421])),
        ("9110 4.2.4", b"GET http://me@b/index", Either(OK_OR_BAD)),
        ("9112 3.2.4", b"OPTIONS *", KeepAlive(OK)),
        ("9112 3.2.4", b"GET *", Either(BAD_OR_NOT_FOUND)),
        ("9112 3.2.3", b"GET b:80", Either(BAD)),
        ("9112 3.2.3", b"GET index", Either(BAD)),
        ("9112 3.2.3", b"CONNECT /index", KeepAlive(BAD)),
        ("9112 3.2.3", b"CONNECT b", Either(BAD_OR_NOT_IMPLEMENTED)),
        ("9110 9.3.6", b"CONNECT b:443", KeepAlive(&[501])),
        ("9110 4.2.1", b"GET http:///index", Either(BAD)),
        ("9112 3.2", b"GET ?index", Either(BAD_OR_NOT_FOUND)),
        ("9112 3.2.1", b"GET /index#x", Either(&[200, 400, 404])),
        ("9112 3.2", b"GET /\xe9", Either(BAD_OR_NOT_FOUND)),
        ("9112 3.2", b"GET /\xc3\xa9", Either(BAD_OR_NOT_FOUND)),
        ("9112 3.2", b"GET /in\0dex", Closed(BAD)),
        ("9112 3.2", b"GET /in\x7fdex", Closed(BAD)),
        ("9112 3.2", b"GET /in dex", Closed(BAD)),
        ("9112 3", b"GET  /index", Closed(BAD)),
        ("9112 3", b"GET\t/index", Closed(BAD)),
        ("9112 3", b"GET /index ", Closed(BAD)),
        ("9112 3", b" GET /index", Closed(BAD)),
        ("9112 3", b"GET", Closed(BAD)),
    ];
    check("", rows, " HTTP/1.1\r\nHost: a\r\n\r\n");
    let absolute_without_host: &[Row] = &[("9112 3.2", b"", Either(BAD))];
    check(
        "GET http://b/index HTTP/1.1\r\n",
        absolute_without_host,
        "\r\n",
    );
}

#[test]
fn unsupported_http_versions_are_refused() {
    let rows: &[Row] = &[
        ("9110 6.2", b"GET /index HTTP/1.2", Either(&[200, 505])),
        (
            "9110 15.6.6",
            b"GET /index HTTP/2.0",
            Closed(VERSION_NOT_SUPPORTED),
        ),
        (
            "9110 15.6.6",
            b"GET /index HTTP/3.0",
            Closed(VERSION_NOT_SUPPORTED),
        ),
        (
            "9110 15.6.6",
            b"GET /index HTTP/9.9",
            Closed(VERSION_NOT_SUPPORTED),
        ),
        (
            "9110 15.6.6",
            b"GET /index HTTP/0.9",
            Closed(BAD_OR_VERSION),
        ),
        ("9112 2.3", b"GET /index HTP/1.1", Closed(BAD_OR_VERSION)),
        ("9112 2.3", b"GET /index http/1.1", Closed(BAD_OR_VERSION)),
        ("9112 2.3", b"GET /index HTTP/1", Closed(BAD_OR_VERSION)),
        ("9112 2.3", b"GET /index HTTP/1.10", Closed(BAD_OR_VERSION)),
        ("9112 2.3", b"GET /index HTTP/11.1", Closed(BAD_OR_VERSION)),
        ("9112 2.3", b"GET /index", Closed(BAD_OR_VERSION)),
        (
            "9113 3.4",
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
            Closed(VERSION_NOT_SUPPORTED),
        ),
        ("9112 9.3", b"GET /index HTTP/1.0", Closed(OK)),
    ];
    check("", rows, "\r\nHost: a\r\n\r\n");
    let rows: &[Row] = &[
        ("9112 3.2", b"\r\n", Closed(OK)),
        ("9112 3.2", b"Host: a\r\nHost: b\r\n\r\n", Closed(BAD)),
        ("9112 9.3", b"Connection: keep-alive\r\n\r\n", KeepAlive(OK)),
        (
            "9112 9.3",
            b"Connection: Keep-Alive, TE\r\n\r\n",
            KeepAlive(OK),
        ),
        (
            "9112 9.3",
            b"Connection: keep-alive\r\nConnection: close\r\n\r\n",
            Closed(OK),
        ),
        (
            "9110 10.1.1",
            b"Expect: 100-continue\r\nContent-Length: 5\r\n\r\nhello",
            Closed(OK),
        ),
    ];
    check("GET /index HTTP/1.0\r\n", rows, "");
}

#[test]
fn unknown_methods_are_refused() {
    let long = ["M".repeat(1000).as_bytes(), b" /index"].concat();
    let rows: &[Row] = &[
        ("9110 9.3.2", b"HEAD /index", KeepAlive(OK)),
        ("9110 9.3.2", b"HEAD /nope", KeepAlive(&[404])),
        ("9110 9.3.7", b"OPTIONS /index", KeepAlive(OK)),
        ("9110 15.5.6", b"POST /index", KeepAlive(&[405])),
        ("9110 9.3.8", b"TRACE /index", KeepAlive(&[405])),
        ("9110 9.1", b"get /index", KeepAlive(&[501])),
        ("9110 9.1", b"GETT /index", KeepAlive(&[501])),
        ("9110 15.6.2", b"PROPFIND /index", KeepAlive(&[501])),
        (
            "9110 15.6.2",
            b"!#$%&'*+-.^_`|~09az /index",
            KeepAlive(&[501]),
        ),
        ("9110 9.1", b"PROPFIND /nope", KeepAlive(&[404])),
        ("9112 3", &long, KeepAlive(&[501])),
        ("9110 5.6.2", b"G(T /index", Closed(BAD)),
        ("9110 5.6.2", b"G\xe9T /index", Closed(BAD)),
        ("9110 5.6.2", b"G\0T /index", Closed(BAD)),
        ("9112 2.2", b"\r\nGET /index", KeepAlive(OK)),
        ("9112 2.2", b"\r\n\r\nGET /index", Either(OK_OR_BAD)),
        ("9112 2.2", b"\nGET /index", Either(OK_OR_BAD)),
        ("9112 2.2", b"\rGET /index", Closed(BAD)),
    ];
    check("", rows, " HTTP/1.1\r\nHost: a\r\n\r\n");
}

const CONNECTION_AND_EXPECT: &[Row] = &[
    ("9112 9.6", b"Connection: close\r\n\r\n", Closed(OK)),
    ("9110 7.6.1", b"Connection: CLOSE\r\n\r\n", Closed(OK)),
    ("9110 7.6.1", b"Connection: foo,, close\r\n\r\n", Closed(OK)),
    (
        "9110 7.6.1",
        b"Connection: keep-alive, close\r\n\r\n",
        Closed(OK),
    ),
    (
        "9110 7.6.1",
        b"Connection: close\r\nConnection: keep-alive\r\n\r\n",
        Closed(OK),
    ),
    (
        "9112 9.6",
        b"Connection: close\r\n\r\nGET /nope HTTP/1.1\r\nHost: a\r\n\r\n",
        Closed(OK),
    ),
    ("9112 9.3", b"Connection: keep-alive\r\n\r\n", KeepAlive(OK)),
    (
        "9110 7.6.1",
        b"Connection: foo, closed\r\n\r\n",
        KeepAlive(OK),
    ),
    ("9110 7.6.1", b"Connection: Host\r\n\r\n", KeepAlive(OK)),
    (
        "9110 7.8",
        b"Connection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
        KeepAlive(OK),
    ),
    (
        "9110 7.8",
        b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n\r\n",
        KeepAlive(OK),
    ),
    ("9110 7.8", b"Upgrade: TLS/1.0\r\n\r\n", KeepAlive(OK)),
    (
        "9110 10.1.1",
        b"Expect: 100-continue\r\n\r\n",
        KeepAlive(OK),
    ),
    (
        "9110 10.1.1",
        b"Expect: 100-continue\r\nContent-Length: 0\r\n\r\n",
        KeepAlive(OK),
    ),
    (
        "9110 10.1.1",
        b"Expect: 100-continue\r\nContent-Length: 5\r\n\r\n",
        Closed(OK),
    ),
    (
        "9110 10.1.1",
        b"Expect: 100-continue\r\nContent-Length: 5\r\n\r\nhello",
        Closed(OK),
    ),
    (
        "9110 10.1.1",
        b"expect: 100-Continue\r\nTransfer-Encoding: chunked\r\n\r\n",
        Closed(OK),
    ),
    (
        "9110 10.1.1",
        b"Expect: the worst\r\n\r\n",
        Either(&[200, 417]),
    ),
];

#[test]
fn connection_and_expect_headers_are_obeyed() {
    let request = "GET /index HTTP/1.1\r\nHost: a\r\n";
    check(request, CONNECTION_AND_EXPECT, "");
}

/// The limits of a head are 8 KiB and 100 fields.
#[test]
fn oversized_heads_are_refused() {
    let target = |length| {
        [
            b"GET /index?",
            "x".repeat(length).as_bytes(),
            b" HTTP/1.1\r\nHost: a\r\n\r\n",
        ]
        .concat()
    };
    let field = |length| {
        format!(
            "GET /index HTTP/1.1\r\nHost: a\r\nX: {}\r\n\r\n",
            "x".repeat(length)
        )
        .into_bytes()
    };
    let fields = |count: usize| {
        format!(
            "GET /index HTTP/1.1\r\nHost: a\r\n{}\r\n",
            "X: y\r\n".repeat(count - 1)
        )
        .into_bytes()
    };
    let rows: &[Row] = &[
        ("9112 3", &target(8_000), KeepAlive(OK)),
        ("9112 3", &target(8_150), KeepAlive(OK)),
        ("9110 15.5.15", &target(10_000), Closed(&[414])),
        ("9110 15.5.15", &target(70_000), Closed(&[414])),
        ("9110 15.5.15", &target(1_000_000), Closed(&[414])),
        ("9110 5.4", &field(8_140), KeepAlive(OK)),
        ("6585 5", &field(10_000), Closed(&[431])),
        ("6585 5", &field(1_000_000), Closed(&[431])),
        ("9110 5.4", &fields(100), KeepAlive(OK)),
        ("6585 5", &fields(101), Closed(&[431])),
        ("6585 5", &fields(2_000), Closed(&[431])),
        ("9112 3", &vec![b'M'; 20_000], Closed(&[400, 414, 431, 501])),
    ];
    check("", rows, "");
}
