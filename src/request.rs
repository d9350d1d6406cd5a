//! Checks of a request's head that hyper leaves to the service, and the normal form of its parts.

use std::borrow::Cow;
use std::net::{IpAddr, Ipv6Addr};

use hyper::header::{self, HeaderValue};
use hyper::http::request::Parts;
use hyper::{Method, StatusCode, Version};
use percent_encoding::percent_decode_str;

use crate::response::Failure;

/// Maximum number of bytes of a head, and of what is pipelined behind it, that are buffered at
/// once: what the original accepted, and hyper's minimum.
pub const MAX_HEAD: usize = 8 * 1024;

/// Checks the form of the target and the Host header.
///
/// # Errors
/// The response to a request that does not pass.
pub fn check(head: &Parts) -> Result<(), Failure> {
    let bad_request = |description| Err(Failure::bad_request(description));
    let is_authority = head.uri.scheme().is_none() && head.uri.authority().is_some();
    match (head.method == Method::CONNECT, is_authority) {
        (true, false) => {
            return bad_request("The target of CONNECT must be HOST:PORT (RFC 9112 section 3.2.3)");
        }
        (true, true) => {
            let description = "This server is not a proxy";
            return Err(Failure::new(StatusCode::NOT_IMPLEMENTED, description));
        }
        (false, true) => {
            return bad_request("The target must start with a slash (RFC 9112 section 3.2.1)");
        }
        (false, false) => {}
    }
    // One pass over the few headers takes fewer instructions than looking one up by its hash.
    let mut hosts = head
        .headers
        .iter()
        .filter_map(|(name, value)| (name == header::HOST).then_some(value));
    match (hosts.next(), hosts.next()) {
        (_, Some(_)) => bad_request("Duplicate Host header (RFC 9112 section 3.2)"),
        (None, _) if head.version >= Version::HTTP_11 => {
            bad_request("Missing Host header (RFC 9112 section 3.2)")
        }
        (Some(host), _) if !is_host(host) => {
            bad_request("Invalid Host header (RFC 9110 section 7.2)")
        }
        _ => Ok(()),
    }
}

/// The bytes that a host name may contain by RFC 3986 section 3.2.2, except the percent sign.
const IS_HOST_BYTE: [bool; 256] = {
    let marks = b"-.~_!$&'()*+,;=";
    let mut table = [false; 256];
    let mut byte = 0_u8;
    while byte < u8::MAX {
        table[byte as usize] = byte.is_ascii_alphanumeric();
        byte += 1;
    }
    let mut index = 0;
    while index < marks.len() {
        table[marks[index] as usize] = true;
        index += 1;
    }
    table
};

/// `HOST[:PORT]` of RFC 3986 section 3.2.2, which allows an empty host. Written as one pass over
/// the bytes because `str` functions cost 483 instructions per request more (docs/performance.md).
fn is_host(value: &HeaderValue) -> bool {
    let is_port =
        |rest: &[u8]| matches!(rest, [b':', port @ ..] if port.iter().all(u8::is_ascii_digit));
    let mut rest = value.as_bytes();
    if let [b'[', literal @ ..] = rest {
        let Some(end) = literal.iter().position(|byte| *byte == b']') else {
            return false;
        };
        let address = str::from_utf8(&literal[..end]).unwrap_or_default();
        rest = &literal[end + 1..];
        return address.parse::<Ipv6Addr>().is_ok() && (rest.is_empty() || is_port(rest));
    }
    loop {
        rest = match rest {
            [] => return true,
            [b':', ..] => return is_port(rest),
            [b'%', high, low, rest @ ..] if high.is_ascii_hexdigit() && low.is_ascii_hexdigit() => {
                rest
            }
            [byte, rest @ ..] if IS_HOST_BYTE[usize::from(*byte)] => rest,
            _ => return false,
        };
    }
}

/// Returns the path as the original compares it: percent-decoded, with one leading slash and
/// without one trailing slash, and `/index` for `/v1/index` with any text after the v. `None` if it
/// is not UTF-8.
pub fn normalize(path: &str) -> Option<String> {
    // A percent sign without two hexadecimal digits stands for itself, as in the original.
    let decoded = percent_decode_str(path).decode_utf8().ok()?;
    let trimmed = decoded.strip_suffix('/').unwrap_or(&decoded);
    let name = trimmed.trim_start_matches('/');
    Some(if is_versioned_index(name) {
        "/index".to_owned()
    } else {
        format!("/{name}")
    })
}

fn is_versioned_index(name: &str) -> bool {
    name.strip_suffix("/index")
        .and_then(|version| version.strip_prefix('v'))
        .is_some_and(|version| !version.is_empty() && !version.contains('/'))
}

/// Returns true if Accept names text/html, as that of a browser that opens a page does. curl's does
/// not.
pub fn accepts_html(head: &Parts) -> bool {
    let is_zero = |parameter: &str| {
        parameter
            .strip_prefix("q=")
            .is_some_and(|weight| !weight.contains(|c| matches!(c, '1'..='9')))
    };
    head.headers
        .get_all(header::ACCEPT)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .any(|range| {
            let mut parts = range.split(';').map(str::trim);
            let media_type = parts.next().unwrap_or_default();
            media_type.eq_ignore_ascii_case("text/html") && !parts.any(is_zero)
        })
}

/// Returns the URL that a client at `client` would use for `path`. `port` is for HTTP/1.0 clients,
/// which may leave out Host.
pub fn url_of(head: &Parts, client: IpAddr, port: u16, path: &str) -> String {
    let host = match (head.uri.authority(), head.headers.get(header::HOST)) {
        (Some(authority), _) => Cow::Borrowed(authority.as_str()), // RFC 9112 section 3.2.2
        (None, Some(host)) => String::from_utf8_lossy(host.as_bytes()),
        (None, None) => Cow::Owned(format!("localhost:{port}")),
    };
    // As in the original, a proxy on this machine is trusted.
    let is_https = client.is_loopback()
        && head
            .headers
            .get("x-forwarded-proto")
            .is_some_and(|scheme| scheme == "https");
    let scheme = if is_https { "https" } else { "http" };
    format!("{scheme}://{host}{path}")
}

/// Returns the target as the client sent it.
pub fn target(head: &Parts) -> Cow<'_, str> {
    match (head.uri.scheme(), head.uri.path_and_query()) {
        (None, Some(target)) => Cow::Borrowed(target.as_str()),
        _ => Cow::Owned(head.uri.to_string()),
    }
}

/// Returns the protocol version as the request line names it.
pub fn version(head: &Parts) -> &'static str {
    match head.version {
        Version::HTTP_10 => "HTTP/1.0",
        _ => "HTTP/1.1",
    }
}

/// Returns the response to a head that hyper cannot parse. `unread` begins with that head, unless
/// hyper found the error in its target or its body headers: then hyper has consumed the head.
pub fn explain(error: &hyper::Error, unread: &[u8]) -> Failure {
    let mut lines = unread
        .split(|byte| *byte == b'\n')
        .map(<[u8]>::trim_ascii_end);
    let line = lines.find(|line| !line.is_empty()).unwrap_or_default();
    let version = line.rsplit(|byte| *byte == b' ').next().unwrap_or_default();
    if let [
        b'H',
        b'T',
        b'T',
        b'P',
        b'/',
        major @ b'0'..=b'9',
        b'.',
        minor @ b'0'..=b'9',
    ] = version
        && !matches!((major, minor), (b'1', b'0' | b'1'))
    {
        let status = StatusCode::HTTP_VERSION_NOT_SUPPORTED;
        return Failure::new(status, "This server supports HTTP/1.1 and HTTP/1.0");
    }
    let more_lines = lines.count();
    // hyper also reports a Content-Length near the limit of 64 bits as too large.
    if !error.is_parse_too_large() || unread.len() < MAX_HEAD && more_lines <= 100 {
        Failure::bad_request("Malformed HTTP request (RFC 9112)")
    } else if more_lines > 0 {
        let status = StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE;
        Failure::new(
            status,
            "The request head exceeds 8 KiB or 100 header fields",
        )
    } else {
        Failure::new(StatusCode::URI_TOO_LONG, "The target exceeds 8 KiB")
    }
}
