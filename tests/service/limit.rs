//! The connection limit: parked connections give way to new ones, a small reserve responds to
//! probes and refuses everything else, and no request is lost.

use std::io::ErrorKind;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};

use timber::admission::RESERVE;

use super::process::*;
use super::*;

/// With this write timeout a tick takes 100 ms, so connections are parked 100 to 200 ms after their
/// last response.
const SHORT_TICK: &[&str] = &["--write-timeout", "400ms"];

/// Time after which a quiet connection is parked, on a busy machine, too.
const PARKED: Duration = Duration::from_millis(500);

/// Beginning of a request. A connection that has sent it is active.
const HALF_HEAD: &str = "GET /index HTTP/1.1\r\nHost: a\r\n";

fn start(limit: usize, arguments: &[&str]) -> Timber {
    let limit = limit.to_string();
    let service = Timber::start(&[&["--max-connections", &limit], arguments].concat());
    // The last entry of the start. Before it, the limit may be lower.
    service.wait_for_event("SIGTERM");
    service
}

/// Opens `count` connections, one after the other, and waits until each is parked before it opens
/// the next one.
fn park_in_order(service: &Timber, count: usize) -> Vec<TcpStream> {
    let clients = (0..count).map(|_| {
        let mut client = service.connect();
        assert_eq!(exchange(&mut client, get("/index")).status, 200);
        thread::sleep(PARKED);
        client
    });
    clients.collect()
}

/// Opens `count` connections that stay active.
fn hold(service: &Timber, count: usize) -> Vec<TcpStream> {
    let mut clients: Vec<_> = (0..count).map(|_| service.connect()).collect();
    for client in &mut clients {
        client.write_all(HALF_HEAD.as_bytes()).unwrap();
    }
    thread::sleep(Duration::from_millis(200)); // until the service has read them
    clients
}

/// Completes the request of an active connection.
fn finish(client: &mut TcpStream) {
    assert_eq!(exchange(client, "\r\n").status, 200);
}

/// Returns a metric, read on an open connection, because a new one could close another.
fn metric(client: &mut TcpStream, name: &str) -> String {
    exchange(client, get("/metrics")).metric(name)
}

const EVICTED: &str = "timber_connections_evicted_total";
const REFUSED: &str = "timber_connections_refused_total";

/// Checks that as many connections can be open as the limit says, neither more nor fewer, and that
/// the reserve is complete. Call this when no other connection is open.
fn assert_limit_is_intact(service: &Timber, limit: usize) {
    let start = Instant::now();
    while service.metric("http_connections_open") != "1" {
        assert!(start.elapsed() < TEST_TIMEOUT, "connections stay open");
        thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(service.metric("http_requests_in_flight"), "1");
    let mut active = hold(service, limit);
    // All of them are refused at once, so each has its place in the reserve.
    let start = Instant::now();
    let mut refused: Vec<_> = (0..RESERVE).map(|_| service.connect()).collect();
    for client in &mut refused {
        client.write_all(get("/index").as_bytes()).unwrap();
    }
    for client in &mut refused {
        assert_eq!(Response::read(client, false).status, 503);
    }
    let took = start.elapsed();
    assert!(took < Duration::from_secs(1), "{took:?}");
    active.iter_mut().for_each(finish);
}

#[test]
fn longest_parked_connection_gives_way_to_a_new_client() {
    let service = start(4, SHORT_TICK);
    let mut clients = park_in_order(&service, 4);
    // The first one asks again, so the second one has been parked longest.
    assert_eq!(exchange(&mut clients[0], get("/index")).status, 200);
    thread::sleep(PARKED);
    let mut newcomers = Vec::new();
    for (evicted, longest_parked) in [1, 2].into_iter().enumerate() {
        let mut newcomer = service.connect();
        let start = Instant::now();
        let response = exchange(&mut newcomer, get("/index"));
        let took = start.elapsed();
        assert_eq!(
            (response.status, response.header("connection")),
            (200, None)
        );
        assert!(took < Duration::from_secs(1), "{took:?}");
        assert!(is_closed(&mut clients[longest_parked]));
        assert!(is_open(&clients[0]) && is_open(&clients[3]));
        assert_eq!(metric(&mut newcomer, EVICTED), (evicted + 1).to_string());
        newcomers.push(newcomer);
    }
    assert_eq!(metric(&mut newcomers[0], REFUSED), "0");
    assert_eq!(metric(&mut newcomers[0], "http_connections_open"), "4");
    for client in newcomers.iter_mut().chain([&mut clients[0]]) {
        assert_eq!(exchange(client, get("/index")).status, 200);
    }
    drop((clients, newcomers));
    assert_limit_is_intact(&service, 4);
}

/// More clients than the reserve holds come at once, before any of them has asked for a permit.
#[test]
fn burst_of_new_clients_takes_the_place_of_parked_ones() {
    const LIMIT: usize = 32;
    const NEWCOMERS: usize = RESERVE + 4;
    for workers in ["1", "2"] {
        let service = start(LIMIT, &[SHORT_TICK, &["--workers", workers]].concat());
        for _ in 0..5 {
            let mut clients: Vec<_> = (0..LIMIT).map(|_| service.connect()).collect();
            for client in &mut clients {
                assert_eq!(exchange(client, get("/index")).status, 200);
            }
            thread::sleep(PARKED);
            let mut newcomers: Vec<_> = (0..NEWCOMERS).map(|_| service.connect()).collect();
            for newcomer in &mut newcomers {
                newcomer.write_all(get("/index").as_bytes()).unwrap();
            }
            for newcomer in &mut newcomers {
                assert_eq!(Response::read(newcomer, false).status, 200);
            }
            drop((clients, newcomers));
            assert_limit_is_intact(&service, LIMIT);
        }
    }
}

/// Each refused client asks for a parked connection. If there is none, tokio stores that
/// notification for the next connection that parks.
#[test]
fn no_connection_is_closed_below_the_limit() {
    let service = start(4, SHORT_TICK);
    let mut clients = hold(&service, 4);
    for _ in 0..3 {
        assert_eq!(service.get("/index").status, 503);
    }
    clients.truncate(3);
    clients.iter_mut().for_each(finish);
    thread::sleep(PARKED);
    let mut newcomer = service.connect();
    assert_eq!(exchange(&mut newcomer, get("/index")).status, 200);
    thread::sleep(PARKED);
    assert!(clients.iter().all(is_open));
    assert_eq!(metric(&mut newcomer, EVICTED), "0");
    assert_eq!(metric(&mut newcomer, REFUSED), "3");
    for client in &mut clients {
        assert_eq!(exchange(client, get("/index")).status, 200);
    }
}

/// SIGSTOP pauses the service while requests arrive on some of its parked connections, and
/// afterwards new clients connect.
#[test]
fn parked_connections_with_an_unread_request_are_served() {
    const ROUNDS: usize = 6;
    const LIMIT: usize = 30;
    let service = start(LIMIT, &[SHORT_TICK, &["--workers", "2"]].concat());
    let mut evicted = 0;
    for round in 0..ROUNDS {
        let mut clients: Vec<_> = (0..LIMIT).map(|_| service.connect()).collect();
        for client in &mut clients {
            assert_eq!(exchange(client, get("/index")).status, 200);
        }
        thread::sleep(PARKED);
        service.signal(Signal::STOP);
        // As many parked connections remain as there are new clients.
        let is_asking = |number: usize| (number + round).is_multiple_of(2);
        for (number, client) in clients.iter_mut().enumerate() {
            assert!(is_open(client));
            if is_asking(number) {
                client.write_all(get("/index").as_bytes()).unwrap();
            }
        }
        let mut newcomers: Vec<_> = (0..LIMIT / 2).map(|_| service.connect()).collect();
        for newcomer in &mut newcomers {
            newcomer.write_all(get("/index").as_bytes()).unwrap();
        }
        service.signal(Signal::CONT);
        for (number, client) in clients.iter_mut().enumerate() {
            if is_asking(number) {
                assert_eq!(Response::read(client, false).status, 200, "round {round}");
            } else {
                assert!(is_closed(client), "round {round}, client {number}");
            }
        }
        for newcomer in &mut newcomers {
            assert_eq!(Response::read(newcomer, false).status, 200, "round {round}");
        }
        evicted += LIMIT / 2;
        assert_eq!(metric(&mut newcomers[0], EVICTED), evicted.to_string());
        assert_eq!(metric(&mut newcomers[0], REFUSED), "0");
        drop((clients, newcomers));
        let start = Instant::now();
        while service.metric("http_connections_open") != "1" {
            assert!(start.elapsed() < TEST_TIMEOUT);
        }
    }
    assert_limit_is_intact(&service, LIMIT);
}

/// What became of the requests of one client.
#[derive(Debug, Default)]
struct Fates {
    served: usize,
    refused: usize,
    /// The service had closed the connection before the request arrived: then its kernel sends an
    /// end of file first.
    too_late: usize,
    /// The request arrived, and the service closed the connection without a response: then its
    /// kernel sends nothing but a reset.
    lost: usize,
}

/// More clients than the limit send requests at random times, and connect anew if their connection
/// has given way.
#[test]
fn clients_that_push_in_lose_no_request() {
    const LIMIT: usize = 16;
    let service = start(
        LIMIT,
        &[
            "--workers",
            "2",
            "--write-timeout",
            "16ms",
            "--no-access-log",
        ],
    );
    let address = service.address;
    let is_over = AtomicBool::new(false);
    let fates: Vec<Fates> = thread::scope(|scope| {
        let clients: Vec<_> = (0..24u64)
            .map(|seed| {
                let is_over = &is_over;
                scope.spawn(move || push_in(address, seed, is_over))
            })
            .collect();
        thread::sleep(Duration::from_secs(5));
        is_over.store(true, Relaxed);
        clients
            .into_iter()
            .map(|client| client.join().unwrap())
            .collect()
    });
    let sum = |figure: fn(&Fates) -> usize| fates.iter().map(figure).sum::<usize>();
    let total = Fates {
        served: sum(|fates| fates.served),
        refused: sum(|fates| fates.refused),
        too_late: sum(|fates| fates.too_late),
        lost: sum(|fates| fates.lost),
    };
    let evicted = service.metric(EVICTED);
    println!("{total:?}, evicted {evicted}");
    // The service's thread may be interrupted between its last look and the end of the stream.
    assert!(total.lost <= 1, "{total:?}");
    assert!(total.too_late > 100, "{total:?}");
    assert_limit_is_intact(&service, LIMIT);
}

/// Sends requests with pauses in which the connection may be parked, until `is_over`.
fn push_in(address: SocketAddr, seed: u64, is_over: &AtomicBool) -> Fates {
    let mut fates = Fates::default();
    let mut connection = None;
    let mut random = seed + 1;
    while !is_over.load(Relaxed) {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        thread::sleep(Duration::from_micros(random % 20_000));
        let mut stream = connection.take().unwrap_or_else(|| connect(address));
        let sent = stream.write_all(get("/index").as_bytes());
        let mut response = [0; 1024];
        match sent.and_then(|()| stream.read(&mut response)) {
            Ok(0) => fates.too_late += 1,
            Ok(length) if response[..length].starts_with(b"HTTP/1.1 200 ") => {
                fates.served += 1;
                connection = Some(stream);
            }
            Ok(length) => {
                assert!(response[..length].starts_with(b"HTTP/1.1 503 "));
                fates.refused += 1;
            }
            Err(error) if error.kind() == ErrorKind::BrokenPipe => fates.too_late += 1,
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::ConnectionReset);
                fates.lost += 1;
            }
        }
    }
    fates
}

/// Kinds of clients that reach the limit.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    Idle,
    HalfHead,
    NeverReading,
}

#[test]
fn probes_are_answered_at_the_limit() {
    const LIMIT: usize = 8;
    for kind in [Kind::Idle, Kind::HalfHead, Kind::NeverReading] {
        let service = start(LIMIT, &[]);
        let mut clients: Vec<_> = (0..LIMIT)
            .map(|_| connect_with_small_buffers(service.address))
            .collect();
        for client in &mut clients {
            match kind {
                Kind::Idle => assert_eq!(exchange(client, get("/index")).status, 200),
                Kind::HalfHead => client.write_all(HALF_HEAD.as_bytes()).unwrap(),
                Kind::NeverReading => stop_reading(client),
            }
        }
        for _ in 0..3 {
            assert_healthy(&service, kind);
            for path in ["/healthz", "/readyz", "/metrics"] {
                let response = service.get(path);
                assert_eq!(response.status, 200, "{kind:?} {path}");
                // From the reserve, because none is parked yet.
                assert_eq!(response.header("connection"), Some("close"), "{kind:?}");
            }
        }
        if kind == Kind::Idle {
            // Later, probes are ordinary clients, and those parked longest give way.
            thread::sleep(Duration::from_millis(2500));
            assert_healthy(&service, kind);
            assert_eq!(service.get("/readyz").header("connection"), None);
        } else {
            assert_eq!(service.get("/index").status, 503, "{kind:?}");
            assert_eq!(service.metric(EVICTED), "0", "{kind:?}");
        }
        // A probe is not a refusal.
        let refused = if kind == Kind::Idle { "0" } else { "1" };
        assert_eq!(service.metric(REFUSED), refused, "{kind:?}");
        drop(clients);
        assert_limit_is_intact(&service, LIMIT);
    }
}

/// Runs `timber healthcheck`. Returns its exit code and its error message.
fn healthcheck(service: &Timber) -> (Option<i32>, String) {
    let address = service.address.to_string();
    let output = run_to_completion(timber().args(["healthcheck", "-b", &address]));
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    (output.status.code(), stderr)
}

fn assert_healthy(service: &Timber, kind: Kind) {
    let (code, text) = healthcheck(service);
    assert_eq!(code, Some(0), "{kind:?}: {text}");
}

#[test]
fn refusal_at_the_limit_says_when_to_try_again() {
    let service = start(1, &[]);
    let mut active = hold(&service, 1);
    let mut client = service.connect();
    let start = Instant::now();
    let refusal = exchange(&mut client, get("/index"));
    let took = start.elapsed();
    assert_eq!(refusal.status, 503);
    assert!(took < Duration::from_millis(500), "{took:?}");
    assert_eq!(refusal.header("retry-after"), Some("1"));
    assert_eq!(refusal.header("connection"), Some("close"));
    assert_eq!(refusal.header("content-type"), Some(JSON));
    assert!(refusal.header("date").is_some());
    let description = "Too many connections: try again later";
    let body = json!({"errors": {"Service Unavailable": description}});
    assert_eq!(refusal.json(), body);
    assert!(is_closed(&mut client));

    assert_eq!(
        service
            .exchange("HEAD /index HTTP/1.1\r\nHost: a\r\n\r\n")
            .status,
        503
    );
    assert_eq!(service.get("/nope").status, 503);
    // Without a complete request there is nothing to respond to.
    let mut silent = service.connect();
    assert!(is_closed(&mut silent));
    let mut slow = service.connect();
    slow.write_all(HALF_HEAD.as_bytes()).unwrap();
    assert!(is_closed(&mut slow));

    let page = service.get("/metrics");
    assert_eq!(page.metric(REFUSED), "5");
    for (route, count) in [("/index", 2), ("other", 1)] {
        let name = format!("http_requests_total{{route=\"{route}\",code=\"5xx\"}}");
        assert_eq!(page.metric(&name), count.to_string());
    }
    active.iter_mut().for_each(finish);
    for _ in 0..3 {
        service.wait_for_access_entry(" 503 ");
    }
}

/// Clients beyond the limit and the reserve wait in the backlog, so a probe has to wait its turn.
#[test]
fn probe_passes_while_hostile_clients_reconnect() {
    const LIMIT: usize = 16;
    const HOSTILE: usize = 48;
    let service = start(LIMIT, &["--header-timeout", "60s", "--no-access-log"]);
    let address = service.address;
    let active = hold(&service, LIMIT);
    let (is_over, refusals) = (AtomicBool::new(false), AtomicUsize::new(0));
    let until_refused = || {
        while !is_over.load(Relaxed) {
            let mut stream = connect(address);
            stream.write_all(HALF_HEAD.as_bytes()).unwrap();
            assert!(is_closed(&mut stream));
            refusals.fetch_add(1, Relaxed);
        }
    };
    let probes = thread::scope(|scope| {
        for _ in 0..HOSTILE {
            scope.spawn(until_refused);
        }
        thread::sleep(Duration::from_secs(1));
        let before = resident_memory(&service);
        let probes: Vec<_> = (0..5).map(|_| healthcheck(&service)).collect();
        let grown = resident_memory(&service).saturating_sub(before);
        is_over.store(true, Relaxed);
        assert!(grown < 1000, "grown by {grown} kB");
        probes
    });
    for (code, text) in probes {
        assert_eq!(code, Some(0), "{text}");
    }
    let refusals = refusals.into_inner();
    assert!(refusals > HOSTILE * 2, "{refusals} refusals");
    assert_eq!(service.metric(REFUSED), refusals.to_string());
    drop(active);
    assert_limit_is_intact(&service, LIMIT);
    assert_eq!(service.metric(EVICTED), "0");
}
