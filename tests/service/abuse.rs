//! Clients that take what they can get: time, memory, connections, file descriptors. Each has its
//! bound, and costs the others nothing.

use std::{fs, io::ErrorKind};

use rustix::process::{Pid, Resource, Rlimit, getrlimit, prlimit, setrlimit};
use socket2::{Domain, SockRef, Socket, Type};

use super::*;

/// Kilobytes that any number of such clients may add to what the service holds.
const MEMORY: u64 = 10_000;

fn proc(service: &Timber, file: &str) -> String {
    fs::read_to_string(format!("/proc/{}/{file}", service.child.id()))
        .expect("the service runs on Linux")
}

/// Kilobytes of memory that are resident.
fn memory(service: &Timber) -> u64 {
    let status = proc(service, "status");
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .expect("it has memory");
    line.trim_end_matches("kB").trim().parse().unwrap()
}

/// CPU time used so far, in hundredths of a second.
fn cpu_time(service: &Timber) -> u64 {
    let stat = proc(service, "stat");
    let fields = stat
        .rsplit_once(") ")
        .unwrap()
        .1
        .split(' ')
        .skip(11)
        .take(2);
    fields.map(|ticks| ticks.parse::<u64>().unwrap()).sum()
}

/// Waits until the service has nothing left to do but to tell that.
fn settles(service: &Timber) {
    let start = Instant::now();
    let figures =
        || ["http_connections_open", "http_requests_in_flight"].map(|name| service.metric(name));
    while figures() != ["1", "1"] {
        assert!(start.elapsed() < SOON, "{:?}", figures());
        thread::sleep(Duration::from_millis(20));
    }
}

/// Sends this again and again, a piece each 50 ms, until something comes back, and returns after
/// how long.
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
            "{pieces:?} hold it"
        );
    }
    stream.set_read_timeout(Some(SOON)).unwrap();
    start.elapsed()
}

/// A client on a path of small packets that has room for few, so that the service's own kernel
/// takes few as well.
fn narrow(address: SocketAddr) -> TcpStream {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None).unwrap();
    socket.set_tcp_mss(536).unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    socket.set_read_timeout(Some(SOON)).unwrap();
    socket.connect(&address.into()).unwrap();
    socket.into()
}

fn assert_about(limit: Duration, took: Duration, name: &str) {
    assert!(
        (limit * 3 / 4..limit + Duration::from_secs(3)).contains(&took),
        "{name:?} took {took:?}"
    );
}

#[test]
fn a_client_that_sends_no_head_or_half_of_one_is_closed() {
    let service = Timber::start(&["--header-timeout", "400ms", "--idle-timeout", "60s"]);
    let limit = Duration::from_millis(400);
    let mut silent = service.connect();
    let start = Instant::now();
    assert_eq!(silent.read(&mut [0]).unwrap(), 0, "nothing was asked");
    assert_about(limit, start.elapsed(), "silence");
    for (before, status) in [("", None), (get("/index").as_str(), Some(200))] {
        for half in ["G", "GET /index HT", "GET /index HTTP/1.1\r\nHost: a\r\n"] {
            let mut stream = service.connect();
            let start = Instant::now();
            stream
                .write_all([before, half].concat().as_bytes())
                .unwrap();
            if let Some(status) = status {
                assert_eq!(Answer::read(&mut stream, false).status, status);
            }
            let answer = Answer::read(&mut stream, false);
            assert_eq!(
                (answer.status, answer.header("connection")),
                (408, Some("close")),
                "{half:?}"
            );
            assert!(
                answer.json()["errors"]["Request Timeout"].is_string(),
                "{half:?}"
            );
            assert!(is_closed(&mut stream), "{half:?}");
            assert_about(limit, start.elapsed(), half);
        }
    }
}

/// What counts is the time of the whole head, not that something comes.
#[test]
fn a_head_byte_by_byte_is_cut() {
    let service = Timber::start(&["--header-timeout", "1s", "--idle-timeout", "60s"]);
    assert_about(
        Duration::from_secs(1),
        trickle(&mut service.connect(), &["G"]),
        "a byte at a time",
    );
    let mut kept = service.connect();
    assert_eq!(
        ask(&mut kept, get("/index") + "GET /index HTTP/1.1\r\n").status,
        200
    );
    assert_about(
        Duration::from_secs(1),
        trickle(&mut kept, &["X: y\r\n", "Z", ": y\r\n"]),
        "headers",
    );
}

/// A server ignores them before a request (RFC 9112 section 2.2), but they are none.
#[test]
fn empty_lines_hold_no_connection() {
    let service = Timber::start(&["--header-timeout", "1s", "--idle-timeout", "1s"]);
    for pieces in [["\r\n"].as_slice(), &["\r", "\n"], &["\n"]] {
        let took = trickle(&mut service.connect(), pieces);
        assert_about(Duration::from_secs(1), took, &pieces.concat());
    }
}

#[test]
fn an_idle_connection_is_closed_at_its_own_time() {
    let service = Timber::start(&["--header-timeout", "60s", "--idle-timeout", "400ms"]);
    let mut stream = service.connect();
    thread::sleep(Duration::from_millis(700)); // a new one has the header's time
    assert_eq!(ask(&mut stream, get("/index")).status, 200);
    let start = Instant::now();
    assert!(is_closed(&mut stream));
    assert_about(Duration::from_millis(400), start.elapsed(), "idleness");
}

#[test]
fn a_head_without_end_is_cut() {
    let service = Timber::start(&["--header-timeout", "60s"]);
    service.get("/metrics");
    let before = memory(&service);
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
        assert_eq!(Answer::read(&mut client, false).status, 431);
        assert!(is_closed(&mut client));
    }
    let grown = memory(&service).saturating_sub(before);
    assert!(grown < MEMORY, "{grown} kB");
}

#[test]
fn a_body_without_end_is_cut() {
    let service = Timber::start(&["--write-timeout", "60s"]);
    service.get("/metrics");
    let before = memory(&service);
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
                "{framing}: it reads on and on"
            );
        }
        assert_eq!(Answer::read(&mut stream, false).status, 405, "{framing}");
    }
    let grown = memory(&service).saturating_sub(before);
    assert!(grown < MEMORY, "{grown} kB");
}

#[test]
fn a_body_that_does_not_come_or_byte_by_byte_is_not_waited_for() {
    let service = Timber::start(&["--write-timeout", "1s"]);
    let request = "POST /index HTTP/1.1\r\nHost: a\r\nContent-Length: 1000\r\n\r\n";
    let mut silent = service.connect();
    let start = Instant::now();
    assert_eq!(ask(&mut silent, request).status, 405);
    assert!(is_closed(&mut silent));
    assert!(
        start.elapsed() < Duration::from_secs(4),
        "{:?}",
        start.elapsed()
    );
    let mut slow = service.connect();
    assert_eq!(ask(&mut slow, request).status, 405);
    let start = Instant::now();
    while slow.write_all(b"x").is_ok() {
        assert!(
            start.elapsed() < Duration::from_secs(6),
            "it reads on and on"
        );
        thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn a_client_that_asks_and_does_not_read_is_cut() {
    let service = Timber::start(&["--write-timeout", "1s", "--no-access-log"]);
    service.get("/metrics");
    let before = memory(&service);
    let requests = get("/openapi.json").repeat(1000);
    let clients: Vec<_> = (0..8).map(|_| narrow(service.address)).collect();
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
        grown = grown.max(memory(&service).saturating_sub(before));
        thread::sleep(Duration::from_millis(20));
    }
    for client in clients {
        let end = client.join().unwrap();
        assert!(
            [ErrorKind::ConnectionReset, ErrorKind::BrokenPipe].contains(&end),
            "{end}"
        );
    }
    assert!(grown < MEMORY, "{grown} kB");
    settles(&service);
}

#[test]
fn who_reads_a_byte_at_a_time_still_gets_everything() {
    let service = Timber::start(&["--no-access-log"]);
    let mut stream = narrow(service.address);
    let last = "GET /openapi.json HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
    let requests = get("/openapi.json").repeat(99) + last;
    stream.write_all(requests.as_bytes()).unwrap();
    let document = service.get("/openapi.json").text();
    let (mut bytes, mut byte) = (Vec::new(), [0]);
    while stream.read(&mut byte).expect("the answers are whole") == 1 {
        bytes.push(byte[0]);
    }
    let answers = String::from_utf8(bytes).unwrap();
    assert_eq!(answers.matches(&document).count(), 100);
    assert!(answers.ends_with(&document));
}

#[test]
fn thousands_of_connections_hinder_nobody() {
    let files = getrlimit(Resource::Nofile);
    setrlimit(
        Resource::Nofile,
        Rlimit {
            current: files.maximum,
            ..files
        },
    )
    .unwrap();
    let count = files
        .maximum
        .map_or(2000, |files| files.saturating_sub(500).min(2000));
    let service = Timber::start(&["--header-timeout", "60s"]);
    let mut idle: Vec<_> = (0..count).map(|_| service.connect()).collect();
    for client in idle.iter_mut().step_by(2) {
        assert_eq!(ask(client, get("/index")).status, 200);
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
    settles(&service);
}

#[test]
fn at_the_connection_limit_clients_wait_until_one_leaves() {
    let service = Timber::start(&["--max-connections", "2"]);
    let mut first = service.connect();
    let mut second = service.connect();
    for stream in [&mut first, &mut second] {
        assert_eq!(ask(stream, get("/index")).status, 200);
    }
    waits_for(&service, || drop(first));
}

/// The limit is lowered while it runs: what it finds at the start it keeps below.
#[test]
fn out_of_file_descriptors_it_waits_for_some() {
    let service = Timber::spawn(&mut shell("ulimit -n 64; exec \"$0\" -b 127.0.0.1:0"));
    let mut served = service.connect();
    assert_eq!(ask(&mut served, get("/index")).status, 200);
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
            .event("Cannot accept")
            .contains("Too many open files")
    );
    let before = cpu_time(&service);
    thread::sleep(Duration::from_secs(2));
    let used = cpu_time(&service) - before;
    assert!(used < 20, "it spins: {used} of 200 hundredths of a second");
    assert_eq!(
        ask(&mut served, get("/index")).status,
        200,
        "who is served stays served"
    );
    drop(served);
    for mut client in waiting {
        assert_eq!(Answer::read(&mut client, false).status, 200);
    }
}

#[test]
fn floods_of_connections_that_are_reset_or_closed_leave_nothing_behind() {
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
    let all_kinds = |connections| {
        flood(connections, String::new());
        let body = "POST /index HTTP/1.1\r\nContent-Length: 9\r\n\r\nhell";
        for request in ["GET /in", &get("/openapi.json"), body] {
            flood(2000, request.to_owned());
        }
        settles(&service);
    };
    // The first ones show what as many at once take, which is kept for the next.
    all_kinds(2000);
    let before = memory(&service);
    all_kinds(20_000);
    let grown = memory(&service).saturating_sub(before);
    assert!(grown < MEMORY, "{grown} kB");
    assert_eq!(service.get("/index").status, 200);
}
