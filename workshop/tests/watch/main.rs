//! `cargo workshop watch` against servers that count what they do with its requests.

mod server;

use std::{
    collections::BTreeMap,
    io,
    process::{Child, Command, Output, Stdio},
    thread,
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use server::{Act, ONE, Script, Server};

const TWO: &str = r#"{"release": "2", "hostname": "b"}"#;

fn watch(arguments: &[&str]) -> Child {
    let mut command = Command::new(env!("CARGO_BIN_EXE_timber-workshop"));
    command
        .arg("watch")
        .args(arguments)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command.spawn().unwrap()
}

fn run(arguments: &[&str]) -> Output {
    watch(arguments).wait_with_output().unwrap()
}

/// Returns the exit code and the JSON.
fn summary(output: &Output) -> (i32, Value) {
    let parsed = serde_json::from_slice(&output.stdout);
    let stderr = String::from_utf8_lossy(&output.stderr);
    let summary = parsed.unwrap_or_else(|error| panic!("{error}; on stderr: {stderr}"));
    (output.status.code().unwrap(), summary)
}

fn run_json(url: &str, arguments: &[&str]) -> (i32, Value) {
    summary(&run(&[&[url, "--format", "json"], arguments].concat()))
}

/// Returns counts by kind of connection and cause.
fn losses(summary: &Value) -> BTreeMap<(String, String), u64> {
    let mut losses = BTreeMap::new();
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    for row in summary["losses"].as_array().unwrap() {
        let count = row["count"].as_u64().unwrap();
        *losses
            .entry((text(&row["connection"]), text(&row["cause"])))
            .or_default() += count;
    }
    losses
}

#[test]
fn every_loss_is_counted_once_and_by_its_cause() {
    let server = Server::start(|_, n| match n % 23 {
        2 => Act::Unavailable("busy"),
        4 => Act::Reset,
        6 => Act::Close,
        8 => Act::HalfHead,
        10 => Act::HalfBody,
        12 => Act::HalfChunks,
        14 => Act::ResetBody,
        16 => Act::Silence,
        18 => Act::Garbage,
        _ => Act::Good(ONE),
    });
    let (code, summary) = run_json(
        &server.url(),
        &[
            "--duration",
            "2s",
            "--rate",
            "100",
            "--keep-alive-rate",
            "10",
            "--timeout",
            "1500ms",
        ],
    );
    assert_eq!(code, 1);
    assert_eq!(losses(&summary), server.losses(), "{summary:#}");
    assert_eq!(
        server.losses().len(),
        12,
        "six causes on two kinds of connection"
    );
    let lost: u64 = server.losses().values().sum();
    let requests = server.requests();
    assert_eq!(
        (&summary["asked"], &summary["lost"]),
        (&requests.into(), &lost.into())
    );
    assert_eq!(summary["good"], requests - lost);
    assert_eq!(summary["unsent"], 0);
    let retriable = server.seen.lock().unwrap().retriable;
    assert!(retriable > 0);
    assert_eq!(summary["retriable"], retriable);
}

#[test]
fn a_reset_before_the_request_is_a_loss() {
    let every_fifth = |n: usize| n.is_multiple_of(5);
    let server = Server::at(
        "127.0.0.1:0".parse().unwrap(),
        |_, _| Act::LastGood,
        every_fifth,
    );
    let (code, summary) = run_json(
        &server.url(),
        &["--duration", "2s", "--rate", "50", "--keep-alive", "5"],
    );
    let connections = server.seen.lock().unwrap().connections as u64;
    assert_eq!(code, 1);
    assert_eq!(summary["lost"], connections / 5, "{summary:#}");
    assert!(
        losses(&summary)
            .into_keys()
            .all(|(_, cause)| cause == "reset"),
        "{summary:#}"
    );
    assert_eq!(
        summary["retriable"], 0,
        "there was no response on these connections before"
    );
}

#[test]
fn a_close_between_requests_is_not_a_loss() {
    let server = Server::start(|_, n| match n % 7 {
        2 => Act::LastGood,
        5 => Act::GoodAndClose,
        _ => Act::Good(ONE),
    });
    let (code, summary) = run_json(&server.url(), &["--duration", "2s", "--rate", "0"]);
    let connections = server.seen.lock().unwrap().connections;
    assert!(
        (20..60).contains(&connections),
        "{connections} connections instead of 10, and one for each that was closed"
    );
    assert_eq!(summary["asked"], server.requests());
    assert_eq!(
        (code, &summary["lost"], &summary["good"]),
        (0, &0.into(), &summary["asked"]),
        "{summary:#}"
    );
    assert_eq!(summary["kept"]["asked"], summary["asked"]);
}

#[test]
fn responses_and_losses_are_grouped_by_release_and_host() {
    // Few enough that the keep-alive connection is never busy.
    let server = Server::start(|kind, n| match (kind, n) {
        ("kept", 1..=4) | ("new", 1..=20) => Act::Good(ONE),
        ("kept", 7) | ("new", 30) => Act::Unavailable("busy"),
        ("kept", 10) | ("new", 40) => Act::Unavailable(ONE),
        ("kept", 13) | ("new", 50) => Act::Reset,
        ("kept", 15) | ("new", 60..) => Act::Good("ok"),
        _ => Act::Good(TWO),
    });
    let (code, summary) = run_json(
        &server.url(),
        &[
            "--duration",
            "2s",
            "--keep-alive",
            "1",
            "--keep-alive-rate",
            "10",
        ],
    );
    assert_eq!(code, 1);
    let rows = |list: &str, fields: &[&str]| -> Vec<String> {
        let row = |row: &Value| {
            fields
                .iter()
                .map(|field| row[field].to_string())
                .collect::<Vec<_>>()
                .join(" ")
        };
        summary[list].as_array().unwrap().iter().map(row).collect()
    };
    // A keep-alive connection belongs to its last known host, even if the next response names none.
    let requests = server.seen.lock().unwrap().requests.clone();
    let (unknown, of_two) = (requests["new"] - 59, 36 + requests["kept"] - 7);
    assert_eq!(
        rows("answers", &["release", "host", "good"]),
        [
            format!("null null {unknown}"),
            r#""1" "a" 24"#.to_owned(),
            format!(r#""2" "b" {of_two}"#)
        ]
    );
    assert_eq!(
        rows(
            "losses",
            &["connection", "cause", "release", "host", "count"]
        ),
        [
            r#""new" "reset" null null 1"#,
            r#""new" "status 503" null null 1"#,
            r#""new" "status 503" "1" "a" 1"#,
            r#""kept" "reset" "2" "b" 1"#,
            r#""kept" "status 503" "1" "a" 1"#,
            r#""kept" "status 503" "2" "b" 1"#,
        ]
    );
    let second = &summary["answers"][2]["first_seconds"];
    assert!(
        (0.2..1.5).contains(&second.as_f64().unwrap()),
        "the 21st of 50 requests per second came at {second} s"
    );
}

#[test]
fn an_outage_shows_as_refused_requests_and_a_gap() {
    let good: Script = |_, _| Act::Good(ONE);
    let server = Server::start(good);
    let address = server.address;
    let child = watch(&[&server.url(), "--duration", "4s", "--format", "json"]);
    wait_for(|| server.requests() > 50);
    drop(server);
    let outage = Instant::now();
    thread::sleep(Duration::from_secs(1));
    let _server = Server::at(address, good, |_| false);
    let outage = outage.elapsed().as_secs_f64();
    let (code, summary) = summary(&child.wait_with_output().unwrap());
    assert_eq!(code, 1);
    let refused = |kind: &str| losses(&summary)[&(kind.to_owned(), "refused".to_owned())];
    // 50 per second on new connections, and as many on keep-alive connections.
    assert!((25..250).contains(&refused("new")), "{summary:#}");
    assert!((25..250).contains(&refused("kept")), "{summary:#}");
    let seconds = |value: &Value| value.as_f64().unwrap();
    let gap = seconds(&summary["longest_gap"]["seconds"]);
    assert!(
        gap > outage - 0.1 && gap < 3.0 * outage,
        "a gap of {gap} s for an outage of {outage} s"
    );
    let lost_for = seconds(&summary["last_loss_seconds"]) - seconds(&summary["first_loss_seconds"]);
    assert!(
        lost_for > outage / 2.0 && lost_for <= gap,
        "lost for {lost_for} s in a gap of {gap} s"
    );
}

#[test]
fn an_outage_does_not_reduce_the_rate_of_requests() {
    let hangs: Script = |_, n| if n > 10 { Act::Silence } else { Act::Good(ONE) };
    for arguments in [
        ["--rate", "50", "--keep-alive", "0"],
        ["--rate", "0", "--keep-alive-rate", "5"],
    ] {
        let server = Server::start(hangs);
        let (_, summary) = run_json(
            &server.url(),
            &[&["--duration", "2s", "--timeout", "1s"], &arguments[..]].concat(),
        );
        assert_eq!(summary["asked"], server.requests());
        assert!(
            (98..=101).contains(&server.requests()),
            "expected 50 per second: {summary:#}"
        );
        assert_eq!(losses(&summary), server.losses());
        // One after the other on each keep-alive connection, they would take 9 s.
        assert!(summary["seconds"].as_f64().unwrap() < 7.0, "{summary:#}");
    }

    let server = Server::start(hangs);
    let limited = [
        "--duration",
        "2s",
        "--timeout",
        "1s",
        "--keep-alive",
        "0",
        "--max-in-flight",
        "20",
    ];
    let (_, summary) = run_json(&server.url(), &limited);
    let unsent = summary["unsent"].as_u64().unwrap();
    assert!((30..80).contains(&unsent), "{summary:#}");
    assert_eq!(
        summary["asked"],
        server.requests(),
        "skipped requests do not count as sent"
    );
    assert_eq!(summary["lost"], server.requests() - 10);
    assert!(
        (98..=101).contains(&(server.requests() + unsent)),
        "expected 50 per second: {summary:#}"
    );
}

#[test]
fn a_signal_ends_the_watch_after_in_flight_requests() {
    for signal in [Signal::INT, Signal::TERM] {
        let server = Server::start(|_, _| Act::Late);
        let child = watch(&[&server.url(), "--format", "json"]);
        wait_for(|| server.requests() > 60);
        kill_process(Pid::from_child(&child), signal).unwrap();
        let output = child.wait_with_output().unwrap();
        let (code, summary) = summary(&output);
        assert_eq!((code, &summary["lost"]), (0, &0.into()), "{summary:#}");
        assert_eq!(summary["good"], server.requests());
        let latency = summary["latency_seconds"]["p50"].as_f64().unwrap();
        assert!(
            (0.49..3.0).contains(&latency),
            "responses take 500 ms, not {latency} s"
        );
    }
}

#[test]
fn no_response_at_all_is_an_error() {
    let silent = Server::start(|_, _| Act::Silence);
    let closing = Server::start(|_, _| Act::Close);
    let gone = Server::start(|_, _| Act::Close);
    let url = gone.url();
    drop(gone);
    for (url, why) in [
        (silent.url(), "timed out"),
        (closing.url(), "closed without a response"),
        (url, "refused"),
    ] {
        let output = run(&[&url, "--duration", "500ms", "--timeout", "500ms"]);
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{stderr}");
        assert!(
            stderr.contains(&format!("error: no response from {url}/version: {why}")),
            "{stderr}"
        );
    }
    let failing = Server::start(|_, _| Act::Unavailable(""));
    assert_eq!(
        run(&[&failing.url(), "--duration", "500ms"]).status.code(),
        Some(1),
        "an error status is a response"
    );
}

#[test]
fn the_summary_is_on_stdout() {
    let server = Server::start(|kind, n| {
        if (kind, n) == ("new", 5) {
            Act::Unavailable("busy")
        } else {
            Act::Good(ONE)
        }
    });
    let output = run(&[&server.url(), "--duration", "1s"]);
    let stdout = String::from_utf8(output.stdout).unwrap();
    assert!(
        stdout.contains("lost: 1 status 503 on a new connection, at 0."),
        "{stdout}"
    );
    assert!(stdout.contains("from release 1 on host a"), "{stdout}");
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(
        stderr.contains("first response from release 1 on host a"),
        "{stderr}"
    );
    assert!(
        !(stdout + &stderr).contains('\x1b'),
        "escape sequences without a terminal"
    );
}

#[test]
fn responses_cannot_control_the_terminal() {
    let server = Server::start(|_, n| match n {
        5 => Act::Unavailable("busy\x1b[2J"),
        _ => Act::Good(r#"{"release": "1\u001b[2J", "hostname": "a\nb"}"#),
    });
    let output = run(&[&server.url(), "--duration", "500ms"]);
    let said = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
    assert!(
        said.contains("release 1\u{fffd}[2J on host a\u{fffd}b"),
        "{said}"
    );
    assert!(said.contains("busy\u{fffd}[2J"), "{said}");
    assert!(!said.contains('\x1b') && !said.contains("a\nb"), "{said:?}");
}

#[test]
fn errors_say_what_is_expected() {
    for (arguments, said) in [
        (&["https://localhost"][..], "unsupported scheme https"),
        (&["localhost:8080"], "expected http://HOST[:PORT][/PATH]"),
        (
            &["http://localhost:port"],
            "expected http://HOST[:PORT][/PATH]",
        ),
        (
            &["http://localhost:99999"],
            "expected http://HOST[:PORT][/PATH]",
        ),
        (&["http://me@localhost"], "unsupported user name"),
        (&["http://localhost", "--rate=-1"], "0 to 10000"),
        (&["http://localhost", "--rate=NaN"], "0 to 10000"),
        (
            &["http://localhost", "--duration", "soon"],
            "30s, 500ms or 2m",
        ),
        (&["http://localhost", "--timeout", "0s"], "30s, 500ms or 2m"),
        (
            &["http://localhost", "--rate", "0", "--keep-alive", "0"],
            "--rate or --keep-alive must be greater than 0",
        ),
    ] {
        let output = run(arguments);
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        assert!(stderr.contains(said), "{arguments:?}: {stderr}");
    }
}

#[test]
fn the_default_path_is_version() {
    for (path, requested) in [
        ("", "/version"),
        ("/", "/"),
        ("/index?a=b", "/index?a=b"),
        ("?a=b", "/?a=b"),
    ] {
        let listener = std::net::TcpListener::bind("[::1]:0").unwrap();
        let url = format!("http://{}{path}", listener.local_addr().unwrap());
        let mut child = watch(&[&url, "--keep-alive", "0"]);
        listener.set_nonblocking(true).unwrap();
        let mut accepted = None;
        wait_for(|| {
            accepted = listener.accept().ok();
            accepted.is_some()
        });
        let (mut stream, _) = accepted.unwrap();
        stream.set_nonblocking(false).unwrap();
        stream
            .set_read_timeout(Some(Duration::from_secs(30)))
            .unwrap();
        let mut start = vec![0; requested.len() + 5];
        io::Read::read_exact(&mut stream, &mut start).unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(
            String::from_utf8(start).unwrap(),
            format!("GET {requested} ")
        );
    }
}

fn wait_for(mut condition: impl FnMut() -> bool) {
    let limit = Instant::now() + Duration::from_secs(30);
    while !condition() {
        assert!(Instant::now() < limit, "timeout after 30 s");
        thread::sleep(Duration::from_millis(10));
    }
}
