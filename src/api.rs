//! The API: the route table and its handlers. A request's head goes in, a response comes out; no
//! sockets here. A new endpoint is one row of [`ROUTES`] with its handler, and one entry of
//! openapi.json.

use std::net::IpAddr;
use std::process;

use hyper::http::request::Parts;
use hyper::{Method, StatusCode};
use serde::Serialize;

use crate::container;
use crate::context::Context;
use crate::request;
use crate::response::{Failure, JSON, PAGE, PROMETHEUS, Response, SAMPLE};
use crate::text::{Timestamp, escape_html, to_json};

pub const VERSION: &str = env!("CARGO_PKG_VERSION");
/// The commit that an image was built from, if its builder passed it.
const REVISION: Option<&str> = match option_env!("BUILD_REVISION") {
    Some(revision) if !revision.is_empty() => Some(revision),
    _ => None,
};
const TARGET: &str = env!("BUILD_TARGET");
/// musl or gnu.
const LIBC: &str = env!("BUILD_LIBC");

type Handler = fn(&Context) -> Response;

/// An endpoint: its response to GET. HEAD, OPTIONS and the 405 for other methods follow from it.
pub struct Route {
    pub path: &'static str,
    /// Requested by machines every few seconds. By default the access log leaves such requests out.
    pub is_polled: bool,
    /// Answered even at the connection limit.
    pub is_probe: bool,
    /// What the page says about it.
    pub summary: &'static str,
    handler: Handler,
}

pub static ROUTES: &[Route] = &[
    Route::get("/index", "The tutorial's endpoint", index),
    Route::probe("/healthz", "Liveness: the process works", healthz),
    Route::probe("/readyz", "Readiness: send traffic", readyz),
    Route::get("/version", "Build, release and host", version),
    Route::polled("/sample", "The same, then the connection closes", sample),
    Route::probe("/metrics", "Counters for Prometheus", metrics),
    Route::get("/openapi.json", "This API in OpenAPI 3.1", openapi),
    Route::get("/", "This page, for browsers", page),
];

impl Route {
    const fn get(path: &'static str, summary: &'static str, handler: Handler) -> Self {
        Route {
            path,
            is_polled: false,
            is_probe: false,
            summary,
            handler,
        }
    }

    const fn polled(path: &'static str, summary: &'static str, handler: Handler) -> Self {
        Route {
            is_polled: true,
            ..Route::get(path, summary, handler)
        }
    }

    const fn probe(path: &'static str, summary: &'static str, handler: Handler) -> Self {
        Route {
            is_probe: true,
            ..Route::polled(path, summary, handler)
        }
    }
}

/// Returns the response to one request, and the index of its route if it has one.
pub fn respond(context: &Context, head: &Parts, client: IpAddr) -> (Option<usize>, Response) {
    if let Err(failure) = request::check(head) {
        return (None, failure.into());
    }
    if head.method == Method::OPTIONS && head.uri.path() == "*" {
        // About the server as a whole (RFC 9110 section 9.3.7).
        return (None, Response::with_methods(StatusCode::OK));
    }
    let Some(index) = find_route(head) else {
        return (None, not_found(context, head, client));
    };
    let response = match head.method {
        Method::GET | Method::HEAD => (ROUTES[index].handler)(context),
        Method::OPTIONS => Response::with_methods(StatusCode::OK),
        Method::POST | Method::PUT | Method::DELETE | Method::PATCH | Method::TRACE => {
            Response::with_methods(StatusCode::METHOD_NOT_ALLOWED)
        }
        ref method if method == "QUERY" => Response::with_methods(StatusCode::METHOD_NOT_ALLOWED),
        _ => Failure::new(StatusCode::NOT_IMPLEMENTED, "Invalid HTTP method").into(),
    };
    (Some(index), response)
}

/// Returns the index of the route that the target names.
fn find_route(head: &Parts) -> Option<usize> {
    let path = head.uri.path();
    let position = |path: &str| ROUTES.iter().position(|route| route.path == path);
    let index = position(path).or_else(|| position(&request::normalize(path)?))?;
    let is_page_request =
        || matches!(head.method, Method::GET | Method::HEAD) && request::accepts_html(head);
    (ROUTES[index].path != "/" || is_page_request()).then_some(index)
}

/// The 404 that documents the API, byte for byte the original's. It knows `/index` alone; the
/// document that its Link header points to has the other endpoints.
fn not_found(context: &Context, head: &Parts, client: IpAddr) -> Response {
    let example = to_json(&request::url_of(head, client, context.port, "/index"));
    let body = include_str!("not-found.json")
        .trim_end()
        .replace(r#""{{example}}""#, &example);
    Response::not_found(body)
}

fn index(_: &Context) -> Response {
    Response::ok(&JSON, r#"{"timber": "so delicious"}"#)
}

fn healthz(_: &Context) -> Response {
    Response::ok(&JSON, r#"{"status": "ok"}"#)
}

fn readyz(context: &Context) -> Response {
    if context.lifecycle.is_draining() {
        let description = "Shutting down: send no more traffic";
        return Failure::new(StatusCode::SERVICE_UNAVAILABLE, description).into();
    }
    Response::ok(&JSON, r#"{"status": "ready"}"#)
}

fn version(context: &Context) -> Response {
    Response::ok(&JSON, version_json(context))
}

fn sample(context: &Context) -> Response {
    Response::ok(&SAMPLE, version_json(context))
}

fn version_json(context: &Context) -> String {
    #[derive(Serialize)]
    struct Document<'a> {
        name: &'static str,
        version: &'static str,
        revision: Option<&'static str>,
        release: &'a str,
        libc: &'static str,
        target: &'static str,
        hostname: String,
        pid: u32,
        started: String,
        binary_bytes: Option<u64>,
        uptime_seconds: u64,
    }
    to_json(&Document {
        name: "timber",
        version: VERSION,
        revision: REVISION,
        release: &context.config.release,
        libc: LIBC,
        target: TARGET,
        hostname: container::hostname(),
        pid: process::id(),
        started: Timestamp::at(context.start_epoch_seconds).rfc3339(),
        binary_bytes: container::binary_bytes(),
        uptime_seconds: context.start.elapsed().as_secs(),
    })
}

fn metrics(context: &Context) -> Response {
    let build = [
        ("version", VERSION),
        ("revision", REVISION.unwrap_or("unknown")),
        ("release", &context.config.release),
        ("target", TARGET),
    ];
    let memory = container::resident_memory();
    let text = context
        .metrics
        .render(&build, context.start_epoch_seconds, memory);
    Response::ok(&PROMETHEUS, text)
}

fn openapi(_: &Context) -> Response {
    Response::ok(&JSON, include_str!("openapi.json"))
}

fn page(context: &Context) -> Response {
    let row = |Route { path, summary, .. }: &Route| {
        format!("<tr><td><a href=\"{path}\">{path}</a><td>{summary}\n")
    };
    let binary = container::binary_bytes().map_or("unknown".to_owned(), |bytes| {
        format!("{} kB", (bytes + 500) / 1000)
    });
    let uptime = context.start.elapsed().as_secs();
    let page = include_str!("page.html")
        .replace("{{version}}", VERSION)
        .replace("{{libc}}", LIBC)
        .replace("{{binary}}", &binary)
        .replace("{{host}}", &escape_html(&container::hostname()))
        .replace("{{pid}}", &process::id().to_string())
        .replace("{{uptime}}", &uptime.to_string())
        .replace("{{api}}", &ROUTES.iter().map(row).collect::<String>())
        // Last, so that nothing is filled in within a label.
        .replace("{{release}}", &escape_html(&context.config.release));
    Response::ok(&PAGE, page)
}
