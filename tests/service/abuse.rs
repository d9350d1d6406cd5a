//! Hostile clients: each resource that they take (time, memory, connections, file descriptors) has
//! a bound, and other clients are served as before.

use std::{fs, io::ErrorKind};

use rustix::process::{Pid, Resource, Rlimit, prlimit};
use socket2::SockRef;

use super::process::*;
use super::*;

/// Kilobytes that the service's memory may grow by, whatever the number of hostile clients.
const MAX_GROWTH: u64 = 10_000;

/// Sends the pieces repeatedly, one every 50 ms, until the service responds or closes. Returns the
/// time that it took.
fn trickle(stream: &mut TcpStream, pieces: &[&str]) -> Duration {
    stream
        .set_read_timeout(Some(Duration::from_millis(50)))
        .unwrap();
    let start = Instant::now();
    for piece in pieces.iter().cycle() {
        _ = stream.write_all(piece.as_bytes());
        match stream.peek(&mut [0]) {
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            _ => break,
        }
        assert!(
            start.elapsed() < Duration::from_secs(8),
            "{pieces:?} keep the connection open"
        );
    }
    stream.set_read_timeout(Some(TEST_TIMEOUT)).unwrap();
    start.elapsed()
}

/// The service may exceed a time limit by a few ticks.
fn assert_about(limit: Duration, took: Duration, name: &str) {
    assert!(
        (limit * 3 / 4..limit + Duration::from_secs(3)).contains(&took),
        "{name:?} took {took:?}, expected about {limit:?}"
    );
}

#[test]
fn header_timeout_closes_silent_connections_and_refuses_partial_heads() {
    let service = Timber::start(&["--header-timeout", "400ms", "--idle-timeout", "60s"]);
    let limit = Duration::from_millis(400);
    let mut silent = service.connect();
    let start = Instant::now();
    assert_eq!(silent.read(&mut [0]).unwrap(), 0, "no request was sent");
    assert_about(limit, start.elapsed(), "silence");
    for (before, status) in [("", None), (get("/index").as_str(), Some(200))] {
        for half in ["G", "GET /index HT", "GET /index HTTP/1.1\r\nHost: a\r\n"] {
            let mut stream = service.connect();
            let start = Instant::now();
            stream
                .write_all([before, half].concat().as_bytes())
                .unwrap();
            if let Some(status) = status {
                assert_eq!(Response::read(&mut stream, false).status, status);
            }
            let response = Response::read(&mut stream, false);
            assert_eq!(
                (response.status, response.header("connection")),
                (408, Some("close")),
                "{half:?}"
            );
            assert!(
                response.json()["errors"]["Request Timeout"].is_string(),
                "{half:?}"
            );
            assert!(is_closed(&mut stream), "{half:?}");
            assert_about(limit, start.elapsed(), half);
        }
    }
}

/// The timeout is for the whole head: further bytes do not extend it.
#[test]
fn head_sent_byte_by_byte_hits_the_header_timeout() {
    let service = Timber::start(&["--header-timeout", "1s", "--idle-timeout", "60s"]);
    assert_about(
        Duration::from_secs(1),
        trickle(&mut service.connect(), &["G"]),
        "a byte at a time",
    );
    let mut keep_alive = service.connect();
    let request = get("/index") + "GET /index HTTP/1.1\r\n";
    assert_eq!(exchange(&mut keep_alive, request).status, 200);
    assert_about(
        Duration::from_secs(1),
        trickle(&mut keep_alive, &["X: y\r\n", "Z", ": y\r\n"]),
        "headers",
    );
}

/// A server ignores empty lines before a request (RFC 9112 section 2.2), but they do not start one.
#[test]
fn empty_lines_do_not_extend_the_header_timeout() {
    let service = Timber::start(&["--header-timeout", "1s", "--idle-timeout", "1s"]);
    for pieces in [["\r\n"].as_slice(), &["\r", "\n"], &["\n"]] {
        let took = trickle(&mut service.connect(), pieces);
        assert_about(Duration::from_secs(1), took, &pieces.concat());
    }
}

#[test]
fn idle_connection_is_closed_after_the_idle_timeout() {
    let service = Timber::start(&["--header-timeout", "60s", "--idle-timeout", "400ms"]);
    let mut stream = service.connect();
    // Before the first request, the header timeout applies.
    thread::sleep(Duration::from_millis(700));
    assert_eq!(exchange(&mut stream, get("/index")).status, 200);
    let start = Instant::now();
    assert!(is_closed(&mut stream));
    assert_about(
        Duration::from_millis(400),
        start.elapsed(),
        "an idle connection",
    );
}

#[test]
fn endless_head_is_refused_with_431() {
    let service = Timber::start(&["--header-timeout", "60s"]);
    service.get("/metrics");
    let before = resident_memory(&service);
    let mut clients: Vec<_> = (0..40).map(|_| service.connect()).collect();
    let line = format!("X: {}\r\n", "x".repeat(1000));
    for (number, client) in clients.iter_mut().enumerate() {
        let part = if number % 2 == 0 { "x" } else { &line };
        _ = client.write_all(
            format!(
                "GET /index HTTP/1.1\r\nHost: a\r\nX: {}",
                part.repeat(100_000 / part.len())
            )
            .as_bytes(),
        );
    }
    for mut client in clients {
        assert_eq!(Response::read(&mut client, false).status, 431);
        assert!(is_closed(&mut client));
    }
    let grown = resident_memory(&service).saturating_sub(before);
    assert!(grown < MAX_GROWTH, "grown by {grown} kB");
}

#[test]
fn connection_with_an_endless_body_is_closed() {
    let service = Timber::start(&["--write-timeout", "60s"]);
    service.get("/metrics");
    let before = resident_memory(&service);
    let chunk = format!("10000\r\n{}\r\n", "x".repeat(0x10000));
    for framing in [
        "Transfer-Encoding: chunked",
        "Content-Length: 1000000000000",
    ] {
        let mut stream = service.connect();
        let start = Instant::now();
        stream
            .write_all(format!("POST /index HTTP/1.1\r\nHost: a\r\n{framing}\r\n\r\n").as_bytes())
            .unwrap();
        while stream.write_all(chunk.as_bytes()).is_ok() {
            assert!(
                start.elapsed() < Duration::from_secs(5),
                "{framing}: the service still reads"
            );
        }
        assert_eq!(Response::read(&mut stream, false).status, 405, "{framing}");
    }
    let grown = resident_memory(&service).saturating_sub(before);
    assert!(grown < MAX_GROWTH, "grown by {grown} kB");
}

#[test]
fn connection_with_a_missing_or_slow_body_is_closed() {
    let service = Timber::start(&["--write-timeout", "1s"]);
    let request = "POST /index HTTP/1.1\r\nHost: a\r\nContent-Length: 1000\r\n\r\n";
    let mut silent = service.connect();
    let start = Instant::now();
    assert_eq!(exchange(&mut silent, request).status, 405);
    assert!(is_closed(&mut silent));
    assert!(
        start.elapsed() < Duration::from_secs(4),
        "{:?}",
        start.elapsed()
    );
    let mut slow = service.connect();
    assert_eq!(exchange(&mut slow, request).status, 405);
    let start = Instant::now();
    while slow.write_all(b"x").is_ok() {
        assert!(
            start.elapsed() < Duration::from_secs(6),
            "the service still reads"
        );
        thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn write_timeout_closes_connections_whose_client_does_not_read() {
    let service = Timber::start(&["--write-timeout", "1s", "--no-access-log"]);
    service.get("/metrics");
    let before = resident_memory(&service);
    let requests = get("/openapi.json").repeat(1000);
    let clients: Vec<_> = (0..8)
        .map(|_| connect_with_small_buffers(service.address))
        .collect();
    let clients = clients.into_iter().map(|mut client| {
        let requests = requests.clone();
        thread::spawn(move || {
            client
                .set_write_timeout(Some(Duration::from_secs(8)))
                .unwrap();
            loop {
                if let Err(error) = client.write_all(requests.as_bytes()) {
                    return error.kind();
                }
            }
        })
    });
    let clients: Vec<_> = clients.collect();
    let mut grown = 0;
    while clients.iter().any(|client| !client.is_finished()) {
        grown = grown.max(resident_memory(&service).saturating_sub(before));
        thread::sleep(Duration::from_millis(20));
    }
    for client in clients {
        let end = client.join().unwrap();
        assert!(
            [ErrorKind::ConnectionReset, ErrorKind::BrokenPipe].contains(&end),
            "{end}"
        );
    }
    assert!(grown < MAX_GROWTH, "grown by {grown} kB");
    wait_until_idle(&service);
}

/// The socket buffers of a connection are small, so the kernel does not hold megabytes of responses
/// and requests for it. Linux may exceed the send buffer of 16 KiB by the last response.
#[test]
fn client_that_never_reads_takes_little_memory() {
    const CLIENTS: usize = 20;
    let service = Timber::start(&["--no-access-log"]);
    let mut warm_up = service.connect();
    stop_reading(&mut warm_up);
    let before = resident_memory(&service);
    let mut clients: Vec<_> = (0..CLIENTS).map(|_| service.connect()).collect();
    clients.iter_mut().for_each(stop_reading);
    let grown = resident_memory(&service).saturating_sub(before);
    let sockets = kernel_sockets(&service);
    assert_eq!(sockets.len(), CLIENTS + 1, "{sockets:?}");
    let send = sockets
        .iter()
        .map(|socket| socket.send_queue)
        .max()
        .unwrap();
    let receive = sockets
        .iter()
        .map(|socket| socket.receive_queue)
        .max()
        .unwrap();
    println!(
        "send queue {send} bytes, receive queue {receive} bytes, resident memory {} kB per client",
        grown / CLIENTS as u64
    );
    assert!(send > 0 && receive > 0, "{sockets:?}");
    assert!(send <= 24 * 1024 && receive <= 16 * 1024, "{sockets:?}");
    assert!(grown < 60 * CLIENTS as u64, "grown by {grown} kB");
}

/// The write timeout is for the time without progress. The kernel asks for more once a third of its
/// send buffer is free. That buffer is small, so here it takes half a second.
#[test]
fn slow_but_steady_reader_is_not_closed() {
    let service = Timber::start(&["--write-timeout", "1s", "--no-access-log"]);
    let mut client = connect_with_small_buffers(service.address);
    stop_reading(&mut client);
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(6) {
        let read = client.read_exact(&mut [0; 600]);
        read.unwrap_or_else(|error| panic!("{error} after {:?}", start.elapsed()));
        thread::sleep(Duration::from_millis(50));
    }
    assert_eq!(service.metric("http_connections_open"), "2");
}

#[test]
fn client_that_stops_reading_is_closed_after_the_write_timeout() {
    let service = Timber::start(&["--write-timeout", "1s", "--no-access-log"]);
    let mut client = connect_with_small_buffers(service.address);
    let start = Instant::now();
    stop_reading(&mut client);
    while service.metric("http_connections_open") == "2" {
        assert!(start.elapsed() < TEST_TIMEOUT);
        thread::sleep(Duration::from_millis(20));
    }
    let took = start.elapsed();
    let expected = Duration::from_millis(900)..Duration::from_millis(2500);
    assert!(expected.contains(&took), "closed after {took:?}");
}

#[test]
fn slow_reader_gets_every_response() {
    let service = Timber::start(&["--no-access-log"]);
    let mut stream = connect_with_small_buffers(service.address);
    let last = "GET /openapi.json HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
    let requests = get("/openapi.json").repeat(99) + last;
    stream.write_all(requests.as_bytes()).unwrap();
    let document = service.get("/openapi.json").text();
    let (mut bytes, mut byte) = (Vec::new(), [0]);
    while stream.read(&mut byte).expect("no reset before the end") == 1 {
        bytes.push(byte[0]);
    }
    let responses = String::from_utf8(bytes).unwrap();
    assert_eq!(responses.matches(&document).count(), 100);
    assert!(responses.ends_with(&document));
}

#[test]
fn thousands_of_idle_connections_do_not_delay_a_request() {
    let count = raise_file_limit().min(2500) - 500;
    let service = Timber::start(&["--header-timeout", "60s"]);
    let mut idle: Vec<_> = (0..count).map(|_| service.connect()).collect();
    for client in idle.iter_mut().step_by(2) {
        assert_eq!(exchange(client, get("/index")).status, 200);
    }
    let start = Instant::now();
    assert_eq!(
        service.metric("http_connections_open"),
        (count + 1).to_string()
    );
    assert!(
        start.elapsed() < Duration::from_secs(1),
        "{:?}",
        start.elapsed()
    );
    drop(idle);
    wait_until_idle(&service);
}

/// The test lowers the limit of the running service, because a limit at the start would lower the
/// connection limit instead.
#[test]
fn accepting_resumes_after_file_descriptors_run_out() {
    let service = Timber::spawn(&mut shell("ulimit -n 64; exec \"$0\" -b 127.0.0.1:0"));
    let mut keep_alive = service.connect();
    assert_eq!(exchange(&mut keep_alive, get("/index")).status, 200);
    let open = fs::read_dir(format!("/proc/{}/fd", service.child.id()))
        .unwrap()
        .count() as u64;
    let files = Rlimit {
        current: Some(open),
        maximum: Some(open),
    };
    prlimit(
        Some(Pid::from_child(&service.child)),
        Resource::Nofile,
        files,
    )
    .unwrap();

    let mut waiting: Vec<_> = (0..4).map(|_| service.connect()).collect();
    for client in &mut waiting {
        client.write_all(get("/index").as_bytes()).unwrap();
    }
    assert!(
        service
            .wait_for_event("Cannot accept")
            .contains("Too many open files")
    );
    let before = cpu_time(&service);
    thread::sleep(Duration::from_secs(2));
    let used = cpu_time(&service) - before;
    assert!(used < 20, "busy loop: {used} of 200 hundredths of a second");
    assert_eq!(
        exchange(&mut keep_alive, get("/index")).status,
        200,
        "open connections are served as before"
    );
    drop(keep_alive);
    for mut client in waiting {
        assert_eq!(Response::read(&mut client, false).status, 200);
    }
}

#[test]
fn floods_of_reset_and_closed_connections_do_not_grow_memory() {
    let service = Timber::start(&["--no-access-log", "--header-timeout", "60s"]);
    let address = service.address;
    let flood = |count: usize, request: String| {
        let clients = (0..4).map(|client| {
            let request = request.clone();
            thread::spawn(move || {
                for _ in 0..count / 4 {
                    let mut stream = connect(address);
                    if client % 2 == 0 {
                        SockRef::from(&stream)
                            .set_linger(Some(Duration::ZERO))
                            .unwrap();
                    }
                    _ = stream.write_all(request.as_bytes());
                }
            })
        });
        clients
            .collect::<Vec<_>>()
            .into_iter()
            .for_each(|client| client.join().unwrap());
    };
    let all_floods = |connections| {
        flood(connections, String::new());
        let body = "POST /index HTTP/1.1\r\nContent-Length: 9\r\n\r\nhell";
        for request in ["GET /in", &get("/openapi.json"), body] {
            flood(2000, request.to_owned());
        }
        wait_until_idle(&service);
    };
    // The process keeps the memory of the first, smaller flood for later connections.
    all_floods(2000);
    let before = resident_memory(&service);
    all_floods(20_000);
    let grown = resident_memory(&service).saturating_sub(before);
    assert!(grown < MAX_GROWTH, "grown by {grown} kB");
    assert_eq!(service.get("/index").status, 200);
}
