//! `timber healthcheck`: which address it probes, its exit code and its output.

use super::*;

/// Runs `timber healthcheck`. Returns the exit code and the line that it prints.
fn probe(arguments: &[&str], variables: &BTreeMap<&str, String>) -> (Option<i32>, String) {
    let output = run_to_completion(timber().arg("healthcheck").args(arguments).envs(variables));
    let text = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
    assert_eq!(text.lines().count(), 1, "{text}");
    (output.status.code(), text)
}

#[test]
fn probes_the_configured_address() {
    let service = Timber::spawn(timber().args(["-b", ":0"]));
    let port = service.address.port();
    for variables in [
        BTreeMap::from([("PORT", port.to_string())]),
        BTreeMap::from([("TIMBER_BIND", format!(":{port}"))]),
        BTreeMap::from([("TIMBER_BIND", format!("0.0.0.0:{port}"))]),
        BTreeMap::from([
            ("TIMBER_BIND", format!("127.0.0.1:{port}")),
            ("PORT", "1".to_owned()),
        ]),
        BTreeMap::from([("TIMBER_BIND", format!("localhost:{port}"))]),
    ] {
        let (code, line) = probe(&[], &variables);
        assert_eq!(code, Some(0), "{variables:?}: {line}");
        assert!(
            line.starts_with("healthy: http://") && line.contains("/healthz returned 200"),
            "{line}"
        );
    }
    let unset = BTreeMap::new();
    assert_eq!(probe(&["-b", &format!(":{port}")], &unset).0, Some(0));
    let url = |path| format!("http://127.0.0.1:{port}{path}");
    assert_eq!(probe(&[&url("/readyz")], &unset).0, Some(0));
    let (code, line) = probe(&[&url("/nope")], &unset);
    assert_eq!(code, Some(1));
    assert!(line.contains("returned 404, expected 200"), "{line}");
}

#[test]
fn reports_why_the_probe_failed() {
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let unset = BTreeMap::new();
    let address = silent.local_addr().unwrap();
    let start = Instant::now();
    let (code, line) = probe(&["-b", &address.to_string()], &unset);
    assert_eq!(code, Some(1));
    assert!(line.contains("no response within 2s"), "{line}");
    assert!(
        start.elapsed() < Duration::from_secs(6),
        "{:?}",
        start.elapsed()
    );
    drop(silent);

    let refused = format!("http://{address}");
    for (url, part) in [
        (refused.as_str(), "refused"),
        ("https://localhost", "expected http://ADDRESS"),
        ("localhost:8000", "expected http://ADDRESS"),
        ("http://", "expected http://ADDRESS"),
        ("http://::1/", "expected http://ADDRESS"),
        ("http://::1:8000/healthz", "expected http://ADDRESS"),
        ("http://a\r\nb", "expected http://ADDRESS"),
    ] {
        let (code, line) = probe(&[url], &unset);
        assert_eq!(code, Some(1), "{url}: {line}");
        assert!(line.contains(part), "{url}: {line}");
    }
    let (code, line) = probe(&[], &BTreeMap::from([("PORT", "http".to_owned())]));
    assert_eq!(
        (code, line.contains("invalid PORT \"http\"")),
        (Some(1), true),
        "{line}"
    );
}
