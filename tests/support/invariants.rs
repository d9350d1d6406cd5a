//! Properties that hold for any input. tests/system/properties.rs tries 500 random inputs of each
//! kind, and fuzz/ tries inputs until it is stopped.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;
use std::sync::LazyLock;
use std::time::Duration;

use hyper::header::{ALLOW, CONTENT_TYPE, HOST, HeaderName, HeaderValue};
use hyper::{Method, Request, StatusCode, Uri, Version, http::request::Parts};
use serde_json::{Value, json};
use timber::api::{self, ROUTES};
use timber::config::Config;
use timber::context::Context;
use timber::log::{self, AccessEntry, Log};
use timber::metrics::Metrics;
use timber::response::Response;
use timber::text::Timestamp;
use timber::timers::Timers;
use timber::{cli, container, request};
use tokio::runtime::{Builder, Runtime};

const LOCAL: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

/// [`Context`] needs a runtime for its timers, although no timer is used here.
static RUNTIME: LazyLock<Runtime> =
    LazyLock::new(|| Builder::new_current_thread().enable_time().build().unwrap());

static CONTEXT: LazyLock<Context> = LazyLock::new(|| {
    let routes = ROUTES.iter().map(|route| route.path);
    let metrics: &Metrics = Box::leak(Box::new(Metrics::new(routes)));
    let log: &Log = Box::leak(Box::new(Log::new(false, false, metrics)));
    let timers = Timers::of(RUNTIME.handle().clone());
    Context::new(Config::default(), 8000, timers, metrics, log)
});

/// Returns the head of a request as hyper would pass it to the service, or `None` if hyper would
/// refuse it.
pub fn head(method: &[u8], target: &[u8], headers: &[(HeaderName, &[u8])]) -> Option<Parts> {
    let mut request = Request::new(());
    *request.method_mut() = Method::from_bytes(method).ok()?;
    *request.uri_mut() = Uri::try_from(target).ok()?;
    for (name, value) in headers {
        request
            .headers_mut()
            .append(name, HeaderValue::from_bytes(value).ok()?);
    }
    // Only HTTP/1.0 permits a request without Host.
    if !request.headers().contains_key(HOST) {
        *request.version_mut() = Version::HTTP_10;
    }
    Some(request.into_parts().0)
}

/// Returns the path of the route, and the response.
///
/// # Panics
/// If the response is of an unknown kind, or repeats the client's input anywhere except in the
/// example URL of the 404.
pub fn respond(head: &Parts) -> (Option<&'static str>, Response) {
    let (index, response) = api::respond(&CONTEXT, head, LOCAL);
    let route = index.map(|index| ROUTES[index].path);
    let body = str::from_utf8(&response.body).expect("the body is text");
    let is_read = matches!(head.method, Method::GET | Method::HEAD);
    let content_type = match route {
        Some("/metrics") if is_read => "text/plain; version=0.0.4; charset=utf-8",
        Some("/") if is_read => "text/html; charset=utf-8",
        _ => "application/json; charset=utf-8",
    };
    let header = |name| {
        response
            .headers
            .iter()
            .find(|(known, _)| *known == name)
            .map(|(_, value)| value)
    };
    assert_eq!(header(CONTENT_TYPE).unwrap(), content_type);
    if header(ALLOW).is_some() {
        assert_eq!(body, "");
    } else if content_type.starts_with("application/json") {
        let value: Value =
            serde_json::from_str(body).unwrap_or_else(|error| panic!("{error}: {body}"));
        match (route, response.status) {
            (Some(_), StatusCode::OK) => {}
            (None, StatusCode::NOT_FOUND) => assert_documents_the_api(head, body, &value),
            (_, status) => {
                assert!([400, 501].contains(&status.as_u16()), "{status}: {body}");
                let title = value["errors"]
                    .as_object()
                    .and_then(|errors| errors.keys().next());
                assert_eq!(title.map(String::as_str), status.canonical_reason());
            }
        }
    }
    (route, response)
}

fn assert_documents_the_api(head: &Parts, body: &str, value: &Value) {
    let header = |name| {
        head.headers
            .get(name)
            .map(|value: &HeaderValue| value.as_bytes())
    };
    let scheme = if header("x-forwarded-proto") == Some(b"https") {
        "https"
    } else {
        "http"
    };
    let host = match (head.uri.authority(), header("host")) {
        (Some(authority), _) => authority.to_string(),
        (None, Some(host)) => String::from_utf8_lossy(host).into_owned(),
        (None, None) => "localhost:8000".to_owned(),
    };
    let example = format!("{scheme}://{host}/index");
    assert_eq!(
        value["documentation"]["handlers"]["/index"]["GET"]["examples"],
        json!([example])
    );
    // Apart from the example URL, the document is the same for every client.
    let plain = self::head(b"GET", b"/nope", &[(HOST, b"a")])
        .map(|head| api::respond(&CONTEXT, &head, LOCAL).1)
        .unwrap();
    let plain = str::from_utf8(&plain.body)
        .unwrap()
        .replace(r#""http://a/index""#, &json!(example).to_string());
    assert_eq!(body, plain);
}

/// Normalizing is idempotent, unless the result still has a percent-encoding or a trailing slash.
pub fn normal_path(path: &str) {
    if let Some(normal) = request::normalize(path) {
        assert!(normal.starts_with('/'), "{path:?} became {normal:?}");
        if !normal.contains('%') && !normal.ends_with('/') {
            assert_eq!(
                request::normalize(&normal).as_deref(),
                Some(normal.as_str()),
                "{path:?}"
            );
        }
    }
}

/// A request has exactly one log entry. No input of the client forges an entry or hides a part of
/// one.
pub fn access_entries(second: u64, client: &str, head: &Parts, response: &Response) {
    let now = Timestamp::at(second);
    let (method, target) = (head.method.as_str(), request::target(head));
    let entry = AccessEntry {
        client,
        method,
        target: &target,
        version: request::version(head),
        status: response.status.as_u16(),
        bytes: response.body.len(),
        duration: Duration::from_micros(7),
    };
    let access = |json| {
        let mut line = String::new();
        log::push_access(&mut line, &now, json, &entry);
        line
    };
    let line = access(false);
    assert!(
        line.bytes().all(|byte| matches!(byte, b' '..=b'~')),
        "{line:?}"
    );
    let [before, request, after] = line.split('"').collect::<Vec<_>>()[..] else {
        panic!("expected two quotes in {line:?}")
    };
    assert!(before.ends_with("] ") && after.starts_with(' '), "{line:?}");
    let [logged, escaped, version] = request.split(' ').collect::<Vec<_>>()[..] else {
        panic!("{line:?}")
    };
    assert_eq!(
        (logged, unescape(escaped).as_slice(), version),
        (
            method,
            head.uri.to_string().as_bytes(),
            format!("{:?}", head.version).as_str()
        ),
        "{line:?}"
    );

    let object = json_line(&access(true));
    assert_eq!(
        (&object["method"], &object["target"]),
        (&json!(method), &json!(head.uri.to_string()))
    );
    assert_eq!(object["status"], response.status.as_u16());
    assert_eq!(
        object.as_object().map(serde_json::Map::len),
        Some(8),
        "{object}"
    );
}

/// An event has exactly one log entry, whatever its message contains.
pub fn event_entries(second: u64, message: &str) {
    let event = |json| {
        let mut line = String::new();
        log::push_event(&mut line, &Timestamp::at(second), json, "INFO", message);
        line
    };
    let line = event(false);
    assert!(!line.contains(char::is_control), "{line:?}");
    assert_eq!(json_line(&event(true))["message"], message);
}

fn json_line(line: &str) -> Value {
    assert!(!line.contains('\n'), "{line}");
    let value: Value = serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
    assert!(value.is_object(), "{line}");
    value
}

/// Decodes escapes such as `\x22`.
fn unescape(text: &str) -> Vec<u8> {
    let mut parts = text.split("\\x");
    let mut bytes = parts.next().unwrap_or_default().as_bytes().to_vec();
    for part in parts {
        let (digits, rest) = part.split_at(2);
        bytes.push(u8::from_str_radix(digits, 16).unwrap_or_else(|_| panic!("{text:?}")));
        bytes.extend(rest.bytes());
    }
    bytes
}

/// Settings are within the ranges that the error messages state, or each mistake is reported in one
/// line that names the setting.
pub fn configuration(arguments: &[String], variables: &[(String, String)]) {
    match cli::parse(arguments, variables) {
        Ok((_, config)) => assert_in_range(&config),
        Err(mistakes) => {
            assert!(!mistakes.is_empty());
            let flags = arguments
                .iter()
                .map(|argument| match argument.split_once('=') {
                    Some((name, _)) if name.starts_with('-') => name,
                    _ => argument,
                });
            let names: Vec<_> = flags
                .chain(variables.iter().map(|(name, _)| name.as_str()))
                .collect();
            for line in mistakes {
                assert!(!line.contains(char::is_control), "{line:?}");
                let is_named = |name: &&str| line.contains(&name.escape_debug().to_string());
                let kinds = ["invalid ", "unknown "];
                assert!(
                    names.iter().any(is_named) && kinds.iter().any(|kind| line.starts_with(kind)),
                    "{line:?}"
                );
            }
        }
    }
}

fn assert_in_range(config: &Config) {
    let day = Duration::from_hours(24);
    let count = 1..=1_000_000;
    assert!(
        count.contains(&config.max_connections)
            && config.workers.is_none_or(|n| count.contains(&n)),
        "{config:?}"
    );
    assert!(
        config.drain_delay <= day && config.drain_deadline <= day,
        "{config:?}"
    );
    for timeout in [
        config.idle_timeout,
        config.header_timeout,
        config.write_timeout,
    ] {
        assert!(timeout > Duration::ZERO && timeout <= day, "{config:?}");
    }
    assert!(
        (1..=64).contains(&config.release.chars().count()),
        "{config:?}"
    );
    if let Some(host) = &config.host {
        let is_v6 = host.parse::<Ipv6Addr>().is_ok();
        assert!(
            !host.is_empty() && (is_v6 || !host.contains(['[', ']', ':'])),
            "{config:?}"
        );
    }
}

/// The files that [`container_facts`] replaces, in the order of its `texts`.
pub const CONTAINER_FILES: [&str; 6] = [
    "/proc/self/cgroup",
    "/sys/fs/cgroup/memory.max",
    "/sys/fs/cgroup/cpu.max",
    "/sys/fs/cgroup/pids.max",
    "/proc/self/mounts",
    "/proc/self/status",
];

/// There is at least one worker, and each limit is a number from the files, whatever they contain.
pub fn container_facts(texts: &[&str]) {
    let facts = container::facts_from(|path| {
        let mut files = CONTAINER_FILES.iter().zip(texts);
        let (_, text) = files.find(|(file, _)| Path::new(file) == path)?;
        Some((*text).to_owned())
    });
    assert!(facts.workers() >= 1);
    assert!(!facts.to_string().contains(char::is_control), "{facts}");
    for limit in [facts.memory_limit, facts.process_limit]
        .into_iter()
        .flatten()
    {
        let mut words = texts.iter().flat_map(|text| text.split_whitespace());
        assert!(
            words.any(|word| word.parse() == Ok(limit)),
            "limit {limit} is in no file"
        );
    }
    if let Some((quota, period)) = texts.get(2).and_then(|text| text.trim().split_once(' '))
        && let (Ok(quota), Ok(period), Some(limit)) =
            (quota.parse::<u64>(), period.parse::<u64>(), facts.cpu_limit)
    {
        assert_eq!(
            u128::from(limit),
            u128::from(quota) * 1000 / u128::from(period)
        );
    }
}
