//! Responses, and the prepared header tables that they refer to. `connection` adds the headers of
//! the connection.

use std::time::SystemTime;

use hyper::StatusCode;
use hyper::body::Bytes;
use hyper::header::{self, HeaderName, HeaderValue};
use serde::{Serialize, Serializer};

use crate::text::to_json;

/// A response. Its headers are prepared, so that none has to be built, checked and dropped per
/// request.
pub struct Response {
    pub status: StatusCode,
    pub headers: Headers,
    pub body: Bytes,
}

impl Response {
    pub fn ok(headers: Headers, body: impl Into<Bytes>) -> Self {
        Response {
            status: StatusCode::OK,
            headers,
            body: body.into(),
        }
    }

    /// A response that lists the methods of an endpoint. Its body is empty, as the original's is.
    pub fn with_methods(status: StatusCode) -> Self {
        Response {
            status,
            headers: &METHODS,
            body: Bytes::new(),
        }
    }

    /// A refusal because of the connection limit.
    pub fn at_the_limit() -> Self {
        let status = StatusCode::SERVICE_UNAVAILABLE;
        let failure = Failure::new(status, "Too many connections: try again later");
        Response {
            headers: &AT_THE_LIMIT,
            ..failure.into()
        }
    }

    pub fn not_found(body: String) -> Self {
        Response {
            status: StatusCode::NOT_FOUND,
            headers: &NOT_FOUND,
            body: body.into(),
        }
    }
}

/// An error response. Its body has the original's shape for errors, `{"errors": {title:
/// description}}`.
#[derive(Clone, Copy)]
pub struct Failure {
    pub status: StatusCode,
    pub description: &'static str,
}

/// A JSON object with one member, whose name is known only at run time.
struct Member<T>(&'static str, T);

impl<T: Serialize> Serialize for Member<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map([(self.0, &self.1)])
    }
}

impl Failure {
    /// A head that is not complete in time.
    pub const REQUEST_TIMEOUT: Self = Failure::new(
        StatusCode::REQUEST_TIMEOUT,
        "The request head took too long",
    );

    pub const fn new(status: StatusCode, description: &'static str) -> Self {
        Failure {
            status,
            description,
        }
    }

    pub const fn bad_request(description: &'static str) -> Self {
        Failure::new(StatusCode::BAD_REQUEST, description)
    }

    fn body(self) -> String {
        let title = self.status.canonical_reason().unwrap_or("Error");
        to_json(&Member("errors", Member(title, self.description)))
    }

    /// Returns the whole response as bytes, for a request that hyper cannot serve. It closes the
    /// connection.
    pub fn to_http(self) -> Vec<u8> {
        let status = self.status;
        let body = self.body();
        let date = httpdate::fmt_http_date(SystemTime::now());
        let length = body.len();
        format!(
            "HTTP/1.1 {status}\r\n\
             content-type: {JSON_TYPE}\r\n\
             connection: close\r\n\
             content-length: {length}\r\n\
             date: {date}\r\n\
             \r\n\
             {body}"
        )
        .into_bytes()
    }
}

impl From<Failure> for Response {
    fn from(failure: Failure) -> Self {
        Response {
            status: failure.status,
            headers: &JSON,
            body: failure.body().into(),
        }
    }
}

type Header = (HeaderName, HeaderValue);

/// A prepared table of headers.
pub type Headers = &'static [Header];

const fn header(name: HeaderName, value: &'static str) -> Header {
    (name, HeaderValue::from_static(value))
}

const JSON_TYPE: &str = "application/json; charset=utf-8";

pub static JSON: [Header; 1] = [header(header::CONTENT_TYPE, JSON_TYPE)];

/// Connections come and go within seconds.
static AT_THE_LIMIT: [Header; 2] = [
    header(header::CONTENT_TYPE, JSON_TYPE),
    header(header::RETRY_AFTER, "1"),
];

/// The connection closes after each response, so that a load balancer chooses a replica anew.
pub static SAMPLE: [Header; 3] = [
    header(header::CONTENT_TYPE, JSON_TYPE),
    header(header::CONNECTION, "close"),
    header(header::CACHE_CONTROL, "no-store"),
];

pub static PROMETHEUS: [Header; 1] = [header(
    header::CONTENT_TYPE,
    "text/plain; version=0.0.4; charset=utf-8",
)];

/// The page runs its own script and style, connects to its own origin, and does nothing else. A
/// test holds the hashes to page.html.
const PAGE_POLICY: &str = "default-src 'none'; \
    script-src 'sha256-/TzFimyldJySI31rOcai0KBSe5a7G4cQyXAtqBYt0qA='; \
    style-src 'sha256-ejJy5tOEdyq+SgPeKG03OEw+1Wd1R94VFImciFLM0l0='; \
    img-src data:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; \
    require-trusted-types-for 'script'; trusted-types 'none'";

pub static PAGE: [Header; 8] = [
    header(header::CONTENT_TYPE, "text/html; charset=utf-8"),
    header(header::VARY, "accept"),
    header(header::CACHE_CONTROL, "no-store"),
    header(header::CONTENT_SECURITY_POLICY, PAGE_POLICY),
    header(header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    header(header::REFERRER_POLICY, "no-referrer"),
    header(
        HeaderName::from_static("cross-origin-resource-policy"),
        "same-origin",
    ),
    header(
        HeaderName::from_static("permissions-policy"),
        "camera=(), geolocation=(), microphone=()",
    ),
];

static METHODS: [Header; 2] = [
    header(header::CONTENT_TYPE, JSON_TYPE),
    header(header::ALLOW, "GET, HEAD, OPTIONS"),
];

/// At `/`, browsers get a page and other clients this 404, so caches must keep them apart.
static NOT_FOUND: [Header; 3] = [
    header(header::CONTENT_TYPE, JSON_TYPE),
    header(header::LINK, r#"</openapi.json>; rel="service-desc""#),
    header(header::VARY, "accept"),
];
