//! The event log and the access log: their formats, and readers that stop reading.

use super::*;

#[test]
fn startup_is_logged() {
    let service = Timber::start(&["--workers", "2"]);
    let pid = service.child.id();
    let line = service.startup_log.first().unwrap();
    assert!(
        line.contains(&format!(
            "[{pid}] [INFO] Starting timber {}",
            env!("CARGO_PKG_VERSION")
        )),
        "{line}"
    );
    assert!(
        line.starts_with("[20") && line[11..].contains(" +0000] ["),
        "{line}"
    );
    let line = service.startup_log.last().unwrap();
    assert!(
        line.ends_with(&format!("Listening at: http://{} ({pid})", service.address)),
        "{line}"
    );
    service.wait_for_event("Using workers: 2");
    let line = service.wait_for_event("User ");
    assert!(
        line.contains("root file system")
            && line.contains("memory limit")
            && line.contains("CPU limit")
    );
    service.wait_for_event(&format!("PID {pid}: "));
}

#[test]
fn access_entries_have_the_format_of_the_original() {
    let service = Timber::start(&[]);
    service.get("/index?a=%22");
    let line = service.wait_for_access_entry("GET");
    let (client, rest) = line.split_once(" - - [").unwrap();
    let (time, rest) = rest.split_once("] ").unwrap();
    assert_eq!(
        (client, rest),
        ("127.0.0.1", r#""GET /index?a=%22 HTTP/1.1" 200 26"#)
    );
    let shape: String = time
        .chars()
        .map(|c| if c.is_ascii_digit() { '9' } else { c })
        .collect();
    assert!(
        shape.starts_with("99/") && shape.ends_with("/9999 99:99:99"),
        "{time}"
    );

    service.get("/healthz");
    service.get("/readyz");
    service.get("/metrics");
    service.exchange("POST /nope HTTP/1.1\r\nHost: a\r\n\r\n");
    assert!(
        service
            .wait_for_access_entry(" ")
            .contains(r#""POST /nope HTTP/1.1" 404 572"#),
        "requests of probes are not logged"
    );
    exchange(
        &mut service.connect(),
        "HEAD /index HTTP/1.1\r\nHost: a\r\n\r\n",
    );
    assert!(
        service
            .wait_for_access_entry(" ")
            .ends_with(r#""HEAD /index HTTP/1.1" 200 0"#)
    );
    // hyper accepts a quote in a target.
    service.get("/a\"b");
    assert!(
        service
            .wait_for_access_entry(" ")
            .contains(r#""GET /a\x22b HTTP/1.1" 404"#)
    );
}

#[test]
fn access_log_setting_selects_the_requests() {
    let service = Timber::start(&["--access-log", "all"]);
    service.get("/healthz");
    service.wait_for_access_entry("GET /healthz HTTP/1.1");
    let mut service = Timber::start(&["--no-access-log"]);
    service.get("/index");
    service.signal(Signal::TERM);
    service.wait();
    assert_eq!(service.remaining_access_entries(), [""; 0]);
}

#[test]
fn json_format_logs_one_object_per_entry() {
    let service = Timber::start(&["--log-format", "json"]);
    let event: Value = serde_json::from_str(service.startup_log.last().unwrap()).unwrap();
    assert_eq!(
        (&event["level"], &event["pid"]),
        (&json!("INFO"), &json!(service.child.id()))
    );
    assert!(
        event["message"]
            .as_str()
            .unwrap()
            .starts_with("Listening at: http://127.0.0.1:"),
        "{event}"
    );
    service.get("/a\"b?c");
    let request: Value = serde_json::from_str(&service.wait_for_access_entry("GET")).unwrap();
    let time = request["time"].as_str().unwrap();
    assert!(
        time.len() == "2026-11-22T17:31:11.042Z".len()
            && time.ends_with('Z')
            && event["time"].as_str().unwrap() <= time,
        "{request}"
    );
    let duration = request["duration_us"].as_u64().unwrap();
    assert!(duration < 1_000_000, "{request}");
    let expected = json!({
        "time": time, "client": "127.0.0.1", "method": "GET", "target": "/a\"b?c",
        "version": "HTTP/1.1",
        "status": 404, "bytes": 585, "duration_us": duration,
    });
    assert_eq!(request, expected);
}

/// Entries that cannot be written are dropped and counted. No request waits for the log.
#[test]
fn closed_or_stalled_log_reader_does_not_delay_requests() {
    let (reader, closed) = std::io::pipe().unwrap();
    drop(reader);
    let (stalled, writer) = std::io::pipe().unwrap();
    for (name, stdout) in [
        ("closed", Stdio::from(closed)),
        ("stalled", Stdio::from(writer)),
    ] {
        let mut service = Timber::spawn(timber().args(["-b", "127.0.0.1:0"]).stdout(stdout));
        let mut stream = service.connect();
        // 400 kB: more than the pipe and the log's buffer hold.
        let path = format!("/{}", "x".repeat(4000));
        let start = Instant::now();
        for _ in 0..100 {
            assert_eq!(exchange(&mut stream, get(&path)).status, 404, "{name}");
        }
        assert!(
            start.elapsed() < Duration::from_secs(10),
            "{name}: {:?}",
            start.elapsed()
        );
        assert!(
            service.metric("timber_log_lines_dropped_total") != "0",
            "{name}"
        );
        service.signal(Signal::TERM);
        let (status, took) = service.wait();
        assert_eq!(status.code(), Some(0), "{name}");
        assert!(took < Duration::from_secs(5), "{name}: {took:?}");
    }
    drop(stalled);
}

#[test]
fn unwritable_standard_output_does_not_stop_the_service() {
    let full = File::options().write(true).open("/dev/full").unwrap();
    let service = Timber::spawn(timber().args(["-b", "127.0.0.1:0"]).stdout(full));
    assert_eq!(service.get("/index").status, 200);
    let deadline = Instant::now() + TEST_TIMEOUT;
    while service.metric("timber_log_lines_dropped_total") == "0" {
        assert!(
            Instant::now() < deadline,
            "the dropped entry is not counted"
        );
    }
    let service = Timber::spawn(&mut shell("exec \"$0\" -b 127.0.0.1:0 >&-"));
    assert_eq!(service.get("/index").status, 200);
}
