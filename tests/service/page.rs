//! The samples that the page takes.

use super::*;

/// So that whatever balances connections chooses anew for each.
#[test]
fn a_sample_is_version_on_a_connection_that_is_not_kept() {
    let service = Timber::start(&[]);
    let without_uptime = |answer: Answer| {
        let mut json = answer.json();
        json.as_object_mut().unwrap().remove("uptime_seconds").expect("an uptime");
        json
    };
    let mut stream = service.connect();
    let version = ask(&mut stream, get("/version"));
    assert_eq!(version.header("connection"), None);
    let sample = ask(&mut stream, get("/sample"));
    assert_eq!((sample.status, sample.header("connection")), (200, Some("close")));
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
