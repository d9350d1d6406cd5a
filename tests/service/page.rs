//! The page, as far as it can be tested without a browser, and `/sample`, which it requests.
//! tests/system/browser tests it in Chromium.

use super::*;

/// Requests the page as a browser does.
fn page(service: &Timber) -> Response {
    service.exchange("GET / HTTP/1.1\r\nHost: a\r\nAccept: text/html\r\n\r\n")
}

#[test]
fn root_returns_the_page_if_html_is_accepted() {
    let service = Timber::start(&[]);
    let request_root = |accept: &str| {
        service.exchange(format!(
            "GET / HTTP/1.1\r\nHost: a\r\nAccept: {accept}\r\n\r\n"
        ))
    };
    for accept in [
        "text/html",
        "text/html,application/xhtml+xml,*/*;q=0.8",
        "image/webp, TEXT/HTML; q=0.5",
    ] {
        let page = request_root(accept);
        assert_eq!(
            (page.status, page.header("content-type")),
            (200, Some("text/html; charset=utf-8"))
        );
    }
    for accept in [
        "*/*",
        "application/json",
        "text/html;q=0",
        "text/html; q=0.00",
        "text/plain",
    ] {
        let response = request_root(accept);
        assert_eq!(
            (response.status, response.header("vary")),
            (404, Some("accept")),
            "{accept}"
        );
    }
    assert_eq!(
        service
            .exchange("POST / HTTP/1.1\r\nHost: a\r\nAccept: text/html\r\n\r\n")
            .status,
        404
    );
}

#[test]
fn page_table_shows_the_values_of_version() {
    let service = Timber::start(&["--release", "<b>&\"{{host}}"]);
    let (version, page) = (service.get("/version").json(), page(&service).text());
    let text = |key: &str| version[key].as_str().unwrap().to_owned();
    let binary = format!(
        "{:.0} kB",
        version["binary_bytes"].as_f64().unwrap() / 1000.0
    );
    for (name, value) in [
        ("release", "&lt;b&gt;&amp;&quot;{{host}}".to_owned()),
        ("version", text("version")),
        ("libc", text("libc")),
        ("binary", binary),
        ("host", text("hostname")),
        ("pid", version["pid"].to_string()),
    ] {
        let row = format!("<tr><th>{name}<td>{value}\n");
        assert!(page.contains(&row), "{row} is not in {page}");
    }
    assert!(page.contains("<tr><th>up for<td>"), "{page}");
    assert!(!page.contains("<b>&"), "the label is not escaped: {page}");
    for path in service.get("/openapi.json").json()["paths"]
        .as_object()
        .unwrap()
        .keys()
    {
        assert!(
            page.contains(&format!("<a href=\"{path}\">")),
            "{path} is not in {page}"
        );
    }
}

#[test]
fn page_allows_no_other_origin() {
    let service = Timber::start(&[]);
    let page = page(&service);
    let policy: BTreeMap<_, _> = page
        .header("content-security-policy")
        .unwrap()
        .split("; ")
        .map(|directive| directive.split_once(' ').unwrap())
        .filter(|(name, _)| !["script-src", "style-src"].contains(name))
        .collect();
    let expected = [
        ("base-uri", "'none'"),
        ("connect-src", "'self'"),
        ("default-src", "'none'"),
        ("form-action", "'none'"),
        ("frame-ancestors", "'none'"),
        ("img-src", "data:"),
        ("require-trusted-types-for", "'script'"),
        ("trusted-types", "'none'"),
    ];
    assert_eq!(policy, BTreeMap::from(expected));
    for (name, value) in [
        ("cache-control", "no-store"),
        ("vary", "accept"),
        ("x-content-type-options", "nosniff"),
        ("referrer-policy", "no-referrer"),
        ("cross-origin-resource-policy", "same-origin"),
        (
            "permissions-policy",
            "camera=(), geolocation=(), microphone=()",
        ),
    ] {
        assert_eq!(page.header(name), Some(value), "{name}");
    }
    let text = page.text();
    assert!(
        text.contains(r#"<link rel="icon" href="data:,">"#),
        "browsers would request /favicon.ico"
    );
    for other in ["://", "\"//", "'//", "`//", "url(", "@import"] {
        assert!(
            !text.contains(other),
            "the page refers to another host: {other} is in {text}"
        );
    }
}

#[test]
fn page_is_at_most_8000_bytes() {
    let bytes = include_bytes!("../../src/page.html").len();
    assert!(bytes <= 8_000, "{bytes} bytes");
}

/// A load balancer of connections then chooses a replica for each sample.
#[test]
fn sample_returns_version_and_closes_the_connection() {
    let service = Timber::start(&[]);
    let without_uptime = |response: Response| {
        let mut json = response.json();
        json.as_object_mut()
            .unwrap()
            .remove("uptime_seconds")
            .expect("uptime_seconds");
        json
    };
    let mut stream = service.connect();
    let version = exchange(&mut stream, get("/version"));
    assert_eq!(version.header("connection"), None);
    let sample = exchange(&mut stream, get("/sample"));
    assert_eq!(
        (sample.status, sample.header("connection")),
        (200, Some("close"))
    );
    assert_eq!(sample.header("cache-control"), Some("no-store"));
    assert_eq!(without_uptime(sample), without_uptime(version));
    assert!(is_closed(&mut stream));
    let head = service.exchange("HEAD /sample HTTP/1.1\r\nHost: a\r\n\r\n");
    assert_eq!(head.header("connection"), Some("close"));
}

/// A page requests four samples per second.
#[test]
fn samples_are_not_logged() {
    let service = Timber::start(&[]);
    for path in ["/version", "/sample", "/index"] {
        service.get(path);
    }
    service.wait_for_access_entry("/version");
    assert!(service.wait_for_access_entry("GET").contains("/index"));
}
