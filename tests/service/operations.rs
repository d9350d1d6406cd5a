//! Endpoints for operators: health, version, metrics, the `OpenAPI` document.

use std::collections::BTreeSet;
use std::ops::RangeInclusive;

use timber::api::ROUTES;

use super::*;

#[test]
fn healthz_and_readyz_return_200() {
    let service = Timber::start(&[]);
    for path in ["/healthz", "/readyz"] {
        assert_eq!(service.get(path).status, 200);
    }
}

#[test]
fn version_describes_the_running_process() {
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
fn metrics_count_requests_and_describe_the_process() {
    let service = Timber::start(&["--release", "a \"b\"\\"]);
    for path in ["/index", "/index", "/nope", "/healthz"] {
        service.get(path);
    }
    let page = service.get("/metrics");
    assert_eq!(
        page.header("content-type"),
        Some("text/plain; version=0.0.4; charset=utf-8")
    );
    let samples = samples(&page.text());
    let value = |name: &str| {
        let found = samples.iter().find(|(sample, _)| sample == name);
        found
            .unwrap_or_else(|| panic!("no {name} in {samples:#?}"))
            .1
    };
    for (route, code, count) in [
        ("/index", "2xx", 2.0),
        ("other", "4xx", 1.0),
        ("/healthz", "2xx", 1.0),
    ] {
        let name = format!("http_requests_total{{route=\"{route}\",code=\"{code}\"}}");
        assert_in(&name, value(&name), count..=count);
    }
    // A request is counted as finished on another thread, a moment after its client has the
    // response.
    for (name, range) in [
        ("http_requests_in_flight", 1.0..=5.0),
        ("http_connections_open", 1.0..=5.0),
        ("process_resident_memory_bytes", 100e3..=100e6),
    ] {
        assert_in(name, value(name), range);
    }
    let now = std::time::SystemTime::UNIX_EPOCH
        .elapsed()
        .unwrap()
        .as_secs_f64();
    let start = "process_start_time_seconds";
    assert_in(start, value(start), now - 60.0..=now);

    let build = samples
        .iter()
        .find(|(name, _)| name.starts_with("timber_build_info{"));
    let (build, _) = build.expect("a sample that identifies the build");
    assert!(build.contains(r#"release="a \"b\"\\""#), "{build}");

    let buckets: Vec<_> = samples
        .iter()
        .filter_map(|(name, count)| {
            let bound = name.strip_prefix("http_request_duration_seconds_bucket{le=\"")?;
            let bound = bound.strip_suffix("\"}").unwrap().replace("+Inf", "inf");
            Some((bound.parse::<f64>().unwrap(), *count))
        })
        .collect();
    assert!(
        buckets.is_sorted_by(|a, b| a.0 < b.0 && a.1 <= b.1),
        "{buckets:?}"
    );
    assert_eq!(buckets.last(), Some(&(f64::INFINITY, 4.0)));
}

fn assert_in(name: &str, value: f64, range: RangeInclusive<f64>) {
    assert!(range.contains(&value), "{name} {value}: expected {range:?}");
}

/// Returns the samples in Prometheus text, each once and each of a declared type. CI reads the same
/// text with a parser of Prometheus.
fn samples(text: &str) -> Vec<(String, f64)> {
    let mut samples: Vec<(String, f64)> = Vec::new();
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let (sample, value) = line.rsplit_once(' ').unwrap();
        let name = sample.split('{').next().unwrap();
        let is_declared = ["", "_bucket", "_sum", "_count"].iter().any(|suffix| {
            name.strip_suffix(suffix)
                .is_some_and(|family| text.contains(&format!("# TYPE {family} ")))
        });
        assert!(is_declared, "{name} has no type in {text}");
        assert!(
            samples.iter().all(|(other, _)| other != sample),
            "duplicate {sample}"
        );
        samples.push((sample.to_owned(), value.parse().unwrap()));
    }
    samples
}

/// CI validates the same document against the schema of `OpenAPI`.
#[test]
fn openapi_document_describes_every_route() {
    let service = Timber::start(&[]);
    let document = service.get("/openapi.json").json();
    assert!(document["openapi"].as_str().unwrap().starts_with("3."));
    assert_eq!(document["info"]["version"], env!("CARGO_PKG_VERSION"));
    let paths = document["paths"].as_object().unwrap();
    let described: BTreeSet<_> = paths.keys().map(String::as_str).collect();
    let routes: BTreeSet<_> = ROUTES.iter().map(|route| route.path).collect();
    assert_eq!(described, routes, "left: src/openapi.json, right: ROUTES");
    for (path, item) in paths {
        let response = service.exchange(format!(
            "GET {path} HTTP/1.1\r\nHost: a\r\nAccept: text/html\r\n\r\n"
        ));
        let content = &item["get"]["responses"][response.status.to_string()]["content"];
        let content_type = response
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
