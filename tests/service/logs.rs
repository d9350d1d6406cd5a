//! Lines, and streams that do not take them.

use super::*;

#[test]
fn start_up_lines() {
    let service = Timber::start(&["--workers", "2"]);
    let pid = service.child.id();
    let line = service.start.first().unwrap();
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
    let line = service.start.last().unwrap();
    assert!(
        line.ends_with(&format!("Listening at: http://{} ({pid})", service.address)),
        "{line}"
    );
    service.event("Using workers: 2");
    let line = service.event("User ");
    assert!(
        line.contains("root file system")
            && line.contains("memory limit")
            && line.contains("CPU limit")
    );
    service.event(&format!("PID {pid}: "));
}

#[test]
fn access_lines_have_the_original_s_form() {
    let service = Timber::start(&[]);
    service.get("/index?a=%22");
    let line = service.request("GET");
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
    service.ask("POST /nope HTTP/1.1\r\nHost: a\r\n\r\n");
    assert!(
        service
            .request(" ")
            .contains(r#""POST /nope HTTP/1.1" 404 572"#),
        "probes are left out"
    );
    ask(
        &mut service.connect(),
        "HEAD /index HTTP/1.1\r\nHost: a\r\n\r\n",
    );
    assert!(
        service
            .request(" ")
            .ends_with(r#""HEAD /index HTTP/1.1" 200 0"#)
    );
    // A quote is allowed in hyper's eyes.
    service.get("/a\"b");
    assert!(
        service
            .request(" ")
            .contains(r#""GET /a\x22b HTTP/1.1" 404"#)
    );
}

#[test]
fn which_requests_are_logged() {
    let service = Timber::start(&["--access-log", "all"]);
    service.get("/healthz");
    service.request("GET /healthz HTTP/1.1");
    let mut service = Timber::start(&["--no-access-log"]);
    service.get("/index");
    service.signal(Signal::TERM);
    service.wait();
    assert_eq!(service.remaining_requests(), [""; 0]);
}

#[test]
fn lines_in_json() {
    let service = Timber::start(&["--log-format", "json"]);
    let event: Value = serde_json::from_str(service.start.last().unwrap()).unwrap();
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
    let request: Value = serde_json::from_str(&service.request("GET")).unwrap();
    let time = request["time"].as_str().unwrap();
    assert!(
        time.len() == 20 && time.ends_with('Z') && event["time"].as_str().unwrap() <= time,
        "{request}"
    );
    let expected = json!({
        "time": time, "client": "127.0.0.1", "method": "GET", "target": "/a\"b?c", "version": "HTTP/1.1",
        "status": 404, "bytes": 585,
    });
    assert_eq!(request, expected);
}

/// What cannot be written is counted, and nobody waits for it.
#[test]
fn a_reader_that_has_gone_or_stopped_reading_does_not_matter() {
    let (reader, gone) = std::io::pipe().unwrap();
    drop(reader);
    let (stalled, writer) = std::io::pipe().unwrap();
    for (name, stdout) in [
        ("gone", Stdio::from(gone)),
        ("stalled", Stdio::from(writer)),
    ] {
        let mut service = Timber::spawn(timber().args(["-b", "127.0.0.1:0"]).stdout(stdout));
        let mut stream = service.connect();
        // Twice the pipe and the buffer together.
        let path = format!("/{}", "x".repeat(4000));
        let start = Instant::now();
        for _ in 0..100 {
            assert_eq!(ask(&mut stream, get(&path)).status, 404, "{name}");
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
fn an_unwritable_standard_output_does_not_matter() {
    let full = File::options().write(true).open("/dev/full").unwrap();
    let service = Timber::spawn(timber().args(["-b", "127.0.0.1:0"]).stdout(full));
    assert_eq!(service.get("/index").status, 200);
    let deadline = Instant::now() + SOON;
    while service.metric("timber_log_lines_dropped_total") == "0" {
        assert!(Instant::now() < deadline, "the line is not counted");
    }
    let service = Timber::spawn(&mut shell("exec \"$0\" -b 127.0.0.1:0 >&-"));
    assert_eq!(service.get("/index").status, 200);
}
