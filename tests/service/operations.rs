//! What machines ask: health, version, metrics, the `OpenAPI` document.

use super::*;
use prometheus_parse::{Scrape, Value as Sample};
use roas::{v3_1::spec::Spec, validation::Validate};

#[test]
fn health_and_readiness() {
    let service = Timber::start(&[]);
    for path in ["/healthz", "/readyz"] {
        assert_eq!(service.get(path).status, 200);
    }
}

#[test]
fn version_tells_what_is_running() {
    let service = Timber::spawn(
        timber()
            .args(["-b", "127.0.0.1:0"])
            .env("TIMBER_RELEASE", "blue"),
    );
    let version = service.get("/version").json();
    assert_eq!(version["name"], "timber");
    assert_eq!(version["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(version["release"], "blue");
    assert_eq!(version["pid"], service.child.id());
    let libc = version["libc"].as_str().unwrap();
    assert!(
        version["target"].as_str().unwrap().contains(libc),
        "{version}"
    );
    let host_name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
    assert_eq!(version["hostname"], host_name.trim());
    let binary = std::fs::metadata(env!("CARGO_BIN_EXE_timber")).unwrap();
    assert_eq!(version["binary_bytes"], binary.len());
    assert!(
        version["uptime_seconds"].is_u64() && version["started"].as_str().unwrap().ends_with('Z')
    );
    assert!(version["revision"].is_null() || version["revision"].is_string());
}

#[test]
fn a_prometheus_parser_reads_the_metrics() {
    let service = Timber::start(&["--release", "a \"b\"\\"]);
    for path in ["/index", "/index", "/nope", "/healthz"] {
        service.get(path);
    }
    let page = service.get("/metrics");
    assert_eq!(
        page.header("content-type"),
        Some("text/plain; version=0.0.4; charset=utf-8")
    );
    let scrape = Scrape::parse(page.text().lines().map(|line| Ok(line.to_owned()))).unwrap();
    let value = |name: &str, labels: &[(&str, &str)]| {
        let mut found = scrape.samples.iter().filter(|s| {
            s.metric == name
                && labels
                    .iter()
                    .all(|(label, value)| s.labels.get(label) == Some(*value))
        });
        let sample = found
            .next()
            .unwrap_or_else(|| panic!("no {name} {labels:?}"))
            .value
            .clone();
        assert!(found.next().is_none(), "{name} {labels:?} is there twice");
        sample
    };
    let count = |route, code| value("http_requests_total", &[("route", route), ("code", code)]);
    assert_eq!(count("/index", "2xx"), Sample::Counter(2.0));
    assert_eq!(count("other", "4xx"), Sample::Counter(1.0));
    assert_eq!(count("/healthz", "2xx"), Sample::Counter(1.0));
    // An answer counts as sent a moment after its client has it, on another thread.
    let Sample::Gauge(in_flight) = value("http_requests_in_flight", &[]) else {
        panic!("no gauge")
    };
    assert!(
        (1.0..=5.0).contains(&in_flight),
        "{in_flight} requests in flight"
    );
    let Sample::Gauge(open) = value("http_connections_open", &[]) else {
        panic!("no gauge")
    };
    assert!(open >= 1.0);
    let Sample::Histogram(buckets) = value("http_request_duration_seconds", &[]) else {
        panic!("no histogram")
    };
    assert!(
        buckets.is_sorted_by(|a, b| a.less_than < b.less_than && a.count <= b.count),
        "{buckets:?}"
    );
    assert_eq!(
        buckets.last().map(|b| (b.less_than, b.count)),
        Some((f64::INFINITY, 4.0))
    );
    let Sample::Gauge(memory) = value("process_resident_memory_bytes", &[]) else {
        panic!("no gauge")
    };
    assert!((100e3..100e6).contains(&memory), "{memory} bytes resident");
    let Sample::Gauge(start) = value("process_start_time_seconds", &[]) else {
        panic!("no gauge")
    };
    let now = std::time::SystemTime::UNIX_EPOCH
        .elapsed()
        .unwrap()
        .as_secs_f64();
    assert!(
        (now - 60.0..=now).contains(&start),
        "started at {start}, now is {now}"
    );
}

#[test]
fn the_openapi_document_is_valid_and_lists_what_is_served() {
    let service = Timber::start(&[]);
    let document = service.get("/openapi.json");
    let spec: Spec = serde_json::from_slice(&document.body).unwrap();
    spec.validate(roas::validation::Options::new(), None)
        .unwrap();

    let document = document.json();
    let paths = document["paths"].as_object().unwrap();
    assert_eq!(paths.len(), 8);
    for (path, item) in paths {
        let answer = service.ask(format!(
            "GET {path} HTTP/1.1\r\nHost: a\r\nAccept: text/html\r\n\r\n"
        ));
        let content = &item["get"]["responses"][answer.status.to_string()]["content"];
        let content_type = answer
            .header("content-type")
            .unwrap()
            .split(';')
            .next()
            .unwrap();
        assert!(
            content[content_type].is_object(),
            "{path}: {content_type} is not in {content}"
        );
    }
}
