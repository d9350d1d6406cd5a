//! The page, as far as it goes without a browser, and the samples that it takes.
//! tests/system/browser has the rest.

use super::*;

fn page(service: &Timber) -> Answer {
    service.ask("GET / HTTP/1.1\r\nHost: a\r\nAccept: text/html\r\n\r\n")
}

#[test]
fn a_browser_gets_a_page_at_the_root() {
    let service = Timber::start(&[]);
    let at_root = |accept: &str| {
        service.ask(format!(
            "GET / HTTP/1.1\r\nHost: a\r\nAccept: {accept}\r\n\r\n"
        ))
    };
    for accept in [
        "text/html",
        "text/html,application/xhtml+xml,*/*;q=0.8",
        "image/webp, TEXT/HTML; q=0.5",
    ] {
        let page = at_root(accept);
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
        let answer = at_root(accept);
        assert_eq!(
            (answer.status, answer.header("vary")),
            (404, Some("accept")),
            "{accept}"
        );
    }
    assert_eq!(
        service
            .ask("POST / HTTP/1.1\r\nHost: a\r\nAccept: text/html\r\n\r\n")
            .status,
        404
    );
}

#[test]
fn the_table_has_what_version_has() {
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
    assert!(!page.contains("<b>&"), "the label is markup: {page}");
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
fn the_page_trusts_nobody() {
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
        "browsers would ask for /favicon.ico"
    );
    for other in ["://", "\"//", "'//", "`//", "url(", "@import"] {
        assert!(
            !text.contains(other),
            "the page names another host: {other} is in {text}"
        );
    }
}

#[test]
fn the_page_is_small() {
    let bytes = include_bytes!("../../src/page.html").len();
    assert!(bytes <= 8_000, "{bytes} bytes");
}

/// So that whatever balances connections chooses anew for each.
#[test]
fn a_sample_is_version_on_a_connection_that_is_not_kept() {
    let service = Timber::start(&[]);
    let without_uptime = |answer: Answer| {
        let mut json = answer.json();
        json.as_object_mut()
            .unwrap()
            .remove("uptime_seconds")
            .expect("an uptime");
        json
    };
    let mut stream = service.connect();
    let version = ask(&mut stream, get("/version"));
    assert_eq!(version.header("connection"), None);
    let sample = ask(&mut stream, get("/sample"));
    assert_eq!(
        (sample.status, sample.header("connection")),
        (200, Some("close"))
    );
    assert_eq!(sample.header("cache-control"), Some("no-store"));
    assert_eq!(without_uptime(sample), without_uptime(version));
    assert!(is_closed(&mut stream));
    let head = service.ask("HEAD /sample HTTP/1.1\r\nHost: a\r\n\r\n");
    assert_eq!(head.header("connection"), Some("close"));
}

/// A page takes four of them a second.
#[test]
fn samples_are_not_in_the_log() {
    let service = Timber::start(&[]);
    for path in ["/version", "/sample", "/index"] {
        service.get(path);
    }
    service.request("/version");
    assert!(service.request("GET").contains("/index"));
}
