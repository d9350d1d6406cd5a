//! The API: a table of routes, and the answer to each request. No sockets here: a request head goes in, a
//! response comes out. This is the only file that a new endpoint touches.

use std::net::{IpAddr, Ipv6Addr};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::{borrow::Cow, process, time::Instant};

use hyper::header::{self, HeaderName, HeaderValue};
use hyper::{Method, StatusCode, Version, body::Bytes, http::request::Parts};

use crate::log::{Utc, quote};
use crate::{host, metrics::Metrics};

/// What the answers depend on besides the request: who is answering, and whether it is about to stop.
pub struct App {
    pub release: String,
    /// The port in the 404's example where the client has sent no Host, as HTTP/1.0 allows.
    pub port: u16,
    pub started: Instant,
    /// In seconds since the Unix epoch.
    pub started_at: u64,
    pub draining: AtomicBool,
    pub metrics: &'static Metrics,
}

/// A response without its connection's part. Its headers are known beforehand, so that none has to be made, checked
/// and thrown away for a request.
pub struct Answer {
    pub status: StatusCode,
    pub headers: Headers,
    pub body: Bytes,
}

type Header = (HeaderName, HeaderValue);
/// The type of the content comes first.
pub type Headers = &'static [Header];

type Handler = fn(&App) -> Result<Bytes, Failure>;

/// An endpoint. What it answers to GET is all that differs: HEAD, OPTIONS and the refusal of other methods
/// follow from that.
pub struct Route {
    pub path: &'static str,
    /// Asked every few seconds by machines, so left out of the access log.
    pub is_probe: bool,
    headers: Headers,
    summary: &'static str,
    answer: Handler,
    /// For `/openapi.json`: what it can answer besides 200.
    failure: Option<Failure>,
}

/// An answer in the original's shape for errors: `{"errors": {title: description}}`.
#[derive(Clone, Copy)]
pub struct Failure(pub StatusCode, pub &'static str);

const fn field(name: HeaderName, value: &'static str) -> Header {
    (name, HeaderValue::from_static(value))
}

const JSON_TYPE: &str = "application/json; charset=utf-8";
static JSON: [Header; 1] = [field(header::CONTENT_TYPE, JSON_TYPE)];
/// Closed after each, so that whatever balances connections chooses anew for the next.
static SAMPLE: [Header; 3] = [
    field(header::CONTENT_TYPE, JSON_TYPE),
    field(header::CONNECTION, "close"),
    field(header::CACHE_CONTROL, "no-store"),
];
/// The page runs the script and the style that it came with, asks the host that it came from, and nothing else.
const POLICY: &str = "default-src 'none'; \
    script-src 'sha256-LuEOSY3zaZoUk01BmCJj3nhcbZwQjakHgq4uxzuJoHU='; \
    style-src 'sha256-TVhWa6uZS2lz7dwCIQFqigS4S97DYjnciaWCYX5ftU4='; \
    img-src data:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; \
    require-trusted-types-for 'script'; trusted-types 'none'";
static HTML: [Header; 8] = [
    field(header::CONTENT_TYPE, "text/html; charset=utf-8"),
    field(header::VARY, "accept"),
    field(header::CACHE_CONTROL, "no-store"),
    field(header::CONTENT_SECURITY_POLICY, POLICY),
    field(header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    field(header::REFERRER_POLICY, "no-referrer"),
    field(
        HeaderName::from_static("cross-origin-resource-policy"),
        "same-origin",
    ),
    field(
        HeaderName::from_static("permissions-policy"),
        "camera=(), geolocation=(), microphone=()",
    ),
];
static PROMETHEUS: [Header; 1] = [field(
    header::CONTENT_TYPE,
    "text/plain; version=0.0.4; charset=utf-8",
)];
static ALLOWED: [Header; 2] = [
    field(header::CONTENT_TYPE, JSON_TYPE),
    field(header::ALLOW, "GET, HEAD, OPTIONS"),
];
/// What is at `/` depends on who asks: a cache must not give one's answer to the other.
static UNDEFINED_HEADERS: [Header; 3] = [
    field(header::CONTENT_TYPE, JSON_TYPE),
    field(header::LINK, r#"</openapi.json>; rel="service-desc""#),
    field(header::VARY, "accept"),
];

const DRAINING: Failure = Failure(
    StatusCode::SERVICE_UNAVAILABLE,
    "Shutting down: send no more traffic",
);
const UNDEFINED: Failure = Failure(
    StatusCode::NOT_FOUND,
    "The definition of the API, to all but browsers",
);

pub static ROUTES: [Route; 8] = [
    Route::get("/index", &JSON, "How timber is", |_| {
        Ok(r#"{"timber": "so delicious"}"#.into())
    }),
    Route::probe("/healthz", &JSON, "Liveness: the process works", |_| {
        Ok(r#"{"status": "ok"}"#.into())
    }),
    Route::probe("/readyz", &JSON, "Readiness: send traffic", |app| {
        if app.draining.load(Relaxed) {
            Err(DRAINING)
        } else {
            Ok(r#"{"status": "ready"}"#.into())
        }
    })
    .documents(DRAINING),
    Route::get("/version", &JSON, "What is running, and where", |app| {
        Ok(version(app).into())
    }),
    Route::probe(
        "/sample",
        &SAMPLE,
        "What is running, on a connection that is not kept",
        |app| Ok(version(app).into()),
    ),
    Route::probe("/metrics", &PROMETHEUS, "Counters for Prometheus", |app| {
        Ok(metrics(app).into())
    }),
    Route::get("/openapi.json", &JSON, "This API in OpenAPI 3.1", |_| {
        Ok(openapi().into())
    }),
    Route::get("/", &HTML, "A page, to browsers alone", |app| {
        Ok(page(app).into())
    })
    .documents(UNDEFINED),
];

impl Route {
    const fn get(
        path: &'static str,
        headers: Headers,
        summary: &'static str,
        answer: Handler,
    ) -> Self {
        Route {
            path,
            is_probe: false,
            headers,
            summary,
            answer,
            failure: None,
        }
    }

    const fn probe(
        path: &'static str,
        headers: Headers,
        summary: &'static str,
        answer: Handler,
    ) -> Self {
        Route {
            is_probe: true,
            ..Route::get(path, headers, summary, answer)
        }
    }

    const fn documents(self, failure: Failure) -> Self {
        Route {
            failure: Some(failure),
            ..self
        }
    }
}

pub const VERSION: &str = env!("CARGO_PKG_VERSION");
/// The commit that an image was built from, where its builder said.
const REVISION: Option<&str> = match option_env!("BUILD_REVISION") {
    Some(revision) if !revision.is_empty() => Some(revision),
    _ => None,
};
const TARGET: &str = env!("BUILD_TARGET");
/// musl or gnu.
const LIBC: &str = env!("BUILD_LIBC");

/// The answer to one request, and the index of its route, if it has one.
pub fn answer(app: &App, head: &Parts, client: IpAddr) -> (Option<usize>, Answer) {
    if let Err(failure) = check(head) {
        return (None, failure.into());
    }
    let allowed = |status| Answer {
        status,
        headers: &ALLOWED,
        body: Bytes::new(),
    };
    if head.method == Method::OPTIONS && head.uri.path() == "*" {
        return (None, allowed(StatusCode::OK)); // RFC 9110 section 9.3.7: about the server as a whole
    }
    let Some(index) = find(head) else {
        return (None, not_found(app, head, client));
    };
    let Route {
        headers, answer, ..
    } = &ROUTES[index];
    let answer = match head.method {
        Method::GET | Method::HEAD => answer(app).map_or_else(Answer::from, |body| Answer {
            status: StatusCode::OK,
            headers,
            body,
        }),
        Method::OPTIONS => allowed(StatusCode::OK),
        // The body is empty as in the original.
        Method::POST | Method::PUT | Method::DELETE | Method::PATCH | Method::TRACE => {
            allowed(StatusCode::METHOD_NOT_ALLOWED)
        }
        _ => Failure(StatusCode::NOT_IMPLEMENTED, "Invalid HTTP method").into(),
    };
    (Some(index), answer)
}

/// What hyper leaves unchecked: the form of the target, and Host.
fn check(head: &Parts) -> Result<(), Failure> {
    let bad = |description| Err(Failure(StatusCode::BAD_REQUEST, description));
    let is_authority = head.uri.scheme().is_none() && head.uri.authority().is_some();
    match (head.method == Method::CONNECT, is_authority) {
        (true, false) => {
            return bad("CONNECT takes HOST:PORT as its target (RFC 9112 section 3.2.3)");
        }
        (true, true) => {
            return Err(Failure(
                StatusCode::NOT_IMPLEMENTED,
                "This server is not a proxy",
            ));
        }
        (false, true) => {
            return bad("The target has to start with a slash (RFC 9112 section 3.2.1)");
        }
        (false, false) => {}
    }
    // Fewer keys than headers: only then is it worth the while to look for a second Host.
    let is_repeated = head.headers.len() > head.headers.keys_len();
    match head.headers.get(header::HOST) {
        _ if is_repeated && head.headers.get_all(header::HOST).iter().count() > 1 => {
            bad("Host is there twice (RFC 9112 section 3.2)")
        }
        None if head.version >= Version::HTTP_11 => bad("Host is missing (RFC 9112 section 3.2)"),
        Some(host) if !is_host(host) => bad("Host is none (RFC 3986 section 3.2.2)"),
        _ => Ok(()),
    }
}

/// `HOST[:PORT]` as in RFC 3986 section 3.2.2, which allows an empty one.
fn is_host(value: &HeaderValue) -> bool {
    let is_port =
        |rest: &[u8]| matches!(rest, [b':', port @ ..] if port.iter().all(u8::is_ascii_digit));
    let is_mark = |byte: u8| b"-.~_!$&'()*+,;=".contains(&byte);
    let mut rest = value.as_bytes();
    if let [b'[', literal @ ..] = rest {
        let Some(end) = literal.iter().position(|byte| *byte == b']') else {
            return false;
        };
        let ip = str::from_utf8(&literal[..end])
            .ok()
            .and_then(|ip| ip.parse::<Ipv6Addr>().ok());
        rest = &literal[end + 1..];
        return ip.is_some() && (rest.is_empty() || is_port(rest));
    }
    loop {
        rest = match rest {
            [] => return true,
            [b':', ..] => return is_port(rest),
            [b'%', high, low, rest @ ..] if high.is_ascii_hexdigit() && low.is_ascii_hexdigit() => {
                rest
            }
            [byte, rest @ ..] if byte.is_ascii_alphanumeric() || is_mark(*byte) => rest,
            _ => return false,
        };
    }
}

/// The index of the route that the target names.
fn find(head: &Parts) -> Option<usize> {
    let path = head.uri.path();
    let exact = |path: &str| ROUTES.iter().position(|route| route.path == path);
    let index = exact(path).or_else(|| exact(&normalize(path)?))?;
    (ROUTES[index].path != "/" || is_browser(head)).then_some(index)
}

/// The path as the original compares it: percent-decoded, slashes in front of it as one, one slash behind it
/// as none, and `/v1/index`, with anything behind the v, as `/index`. None if it is not text.
pub fn normalize(path: &str) -> Option<String> {
    let decoded = String::from_utf8(percent_decode(path)).ok()?;
    let trimmed = decoded
        .strip_suffix('/')
        .unwrap_or(&decoded)
        .trim_start_matches('/');
    let name = match trimmed.split_once('/') {
        Some((version, "index")) if version.len() > 1 && version.starts_with('v') => "index",
        _ => trimmed,
    };
    Some(format!("/{name}"))
}

/// A percent sign without two hexadecimal digits behind it stands for itself, as in the original.
fn percent_decode(path: &str) -> Vec<u8> {
    let mut decoded = Vec::with_capacity(path.len());
    let mut bytes = path.as_bytes();
    while let [first, rest @ ..] = bytes {
        let hex = rest
            .get(..2)
            .filter(|hex| *first == b'%' && hex.iter().all(u8::is_ascii_hexdigit));
        let value = hex.and_then(|hex| u8::from_str_radix(str::from_utf8(hex).ok()?, 16).ok());
        decoded.push(value.unwrap_or(*first));
        bytes = if value.is_some() { &rest[2..] } else { rest };
    }
    decoded
}

/// Browsers name text/html when they open a page; curl and the rest of the world do not.
fn is_browser(head: &Parts) -> bool {
    let ranges = head
        .headers
        .get_all(header::ACCEPT)
        .iter()
        .filter_map(|value| value.to_str().ok());
    let html = ranges.flat_map(|value| value.split(',')).any(|range| {
        let mut parts = range.split(';').map(str::trim);
        let refused = |part: &str| {
            part.strip_prefix("q=")
                .is_some_and(|q| !q.contains(|c| matches!(c, '1'..='9')))
        };
        parts
            .next()
            .is_some_and(|media| media.eq_ignore_ascii_case("text/html"))
            && !parts.any(refused)
    });
    html && matches!(head.method, Method::GET | Method::HEAD)
}

impl From<Failure> for Answer {
    fn from(Failure(status, description): Failure) -> Self {
        let title = status.canonical_reason().unwrap_or("Error");
        let body = format!(r#"{{"errors": {{"{title}": "{description}"}}}}"#).into();
        Answer {
            status,
            headers: &JSON,
            body,
        }
    }
}

/// The 404 that documents the API, byte for byte the original's. It knows `/index` alone; what a machine asks
/// for beside it stands in the document that Link points to.
fn not_found(app: &App, head: &Parts, client: IpAddr) -> Answer {
    let host = match (head.uri.authority(), head.headers.get(header::HOST)) {
        (Some(authority), _) => Cow::Borrowed(authority.as_str()),
        (None, Some(host)) => String::from_utf8_lossy(host.as_bytes()),
        (None, None) => Cow::Owned(format!("localhost:{}", app.port)),
    };
    // As in the original, a proxy on this machine is believed.
    let tls = client.is_loopback()
        && head
            .headers
            .get("x-forwarded-proto")
            .is_some_and(|p| p == "https");
    let scheme = if tls { "https" } else { "http" };
    let example = quote(&format!("{scheme}://{host}/index"));
    let body = include_str!("not-found.json")
        .trim_end()
        .replace(r#""{{example}}""#, &example);
    Answer {
        status: StatusCode::NOT_FOUND,
        headers: &UNDEFINED_HEADERS,
        body: body.into(),
    }
}

fn version(app: &App) -> String {
    let started = Utc::at(app.started_at);
    let fields = [
        ("name", quote("timber")),
        ("version", quote(VERSION)),
        ("revision", REVISION.map_or("null".to_owned(), quote)),
        ("release", quote(&app.release)),
        ("libc", quote(LIBC)),
        ("target", quote(TARGET)),
        ("hostname", quote(&host::name())),
        ("pid", process::id().to_string()),
        (
            "started",
            quote(&format!("{}T{}Z", started.date, started.time)),
        ),
        (
            "binary_bytes",
            host::binary_bytes().map_or("null".to_owned(), |bytes| bytes.to_string()),
        ),
        (
            "uptime_seconds",
            app.started.elapsed().as_secs().to_string(),
        ),
    ];
    format!(
        "{{{}}}",
        fields
            .map(|(name, value)| format!(r#""{name}": {value}"#))
            .join(", ")
    )
}

fn metrics(app: &App) -> String {
    let revision = REVISION.unwrap_or("unknown");
    let build = [
        ("version", VERSION),
        ("revision", revision),
        ("release", &app.release),
        ("target", TARGET),
    ];
    app.metrics
        .render(&build, app.started_at, host::resident_memory())
}

fn page(app: &App) -> String {
    let row = |route: &Route| {
        format!(
            "<tr><td><a href=\"{0}\">{0}</a><td>{1}\n",
            route.path, route.summary
        )
    };
    let binary = host::binary_bytes().map_or("unknown".to_owned(), |bytes| {
        format!("{} kB", (bytes + 500) / 1000)
    });
    include_str!("page.html")
        .replace("{{version}}", VERSION)
        .replace("{{libc}}", LIBC)
        .replace("{{binary}}", &binary)
        .replace("{{host}}", &html(&host::name()))
        .replace("{{pid}}", &process::id().to_string())
        .replace("{{uptime}}", &app.started.elapsed().as_secs().to_string())
        .replace("{{api}}", &ROUTES.iter().map(row).collect::<String>())
        .replace("{{release}}", &html(&app.release)) // last: nothing is filled in within a label
}

fn html(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
}

fn openapi() -> String {
    let response = |status: StatusCode, description, headers: Headers| {
        let content_type = headers[0].1.to_str().unwrap_or_default();
        let media = content_type.split(';').next().unwrap_or_default();
        let schema = if media == "application/json" {
            "object"
        } else {
            "string"
        };
        let content = format!(r#"{{"{media}": {{"schema": {{"type": "{schema}"}}}}}}"#);
        format!(
            r#""{}": {{"description": "{description}", "content": {content}}}"#,
            status.as_str()
        )
    };
    let path = |Route {
                    path,
                    headers,
                    summary,
                    failure,
                    ..
                }: &Route| {
        let mut responses = vec![response(StatusCode::OK, "OK", headers)];
        responses.extend(
            failure.map(|Failure(status, description)| response(status, description, &JSON)),
        );
        let responses = responses.join(", ");
        format!(r#""{path}": {{"get": {{"summary": "{summary}", "responses": {{{responses}}}}}}}"#)
    };
    let paths = ROUTES.iter().map(path).collect::<Vec<_>>().join(", ");
    let license = r#"{"name": "MIT OR Apache-2.0", "identifier": "MIT OR Apache-2.0"}"#;
    let info = format!(r#"{{"title": "timber", "version": "{VERSION}", "license": {license}}}"#);
    format!(r#"{{"openapi": "3.1.0", "info": {info}, "paths": {{{paths}}}}}"#)
}
