//! The connection limit: parked connections give way to new ones, a small reserve answers probes
//! and refuses everything else, and no request is lost.

use std::io::ErrorKind;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};

use super::process::*;
use super::*;

/// With this write timeout a tick takes 100 ms, so connections are parked 100 to 200 ms after their
/// last response.
const SHORT_TICK: &[&str] = &["--write-timeout", "400ms"];

/// Time after which a quiet connection is parked, on a busy machine, too.
const PARKED: Duration = Duration::from_millis(500);

/// Beginning of a request. A connection that has sent it is active.
const HALF_HEAD: &str = "GET /index HTTP/1.1\r\nHost: a\r\n";

/// Connections that the reserve of the service holds, as documented in docs/http.md.
const RESERVE: usize = 16;

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

/// Returns true if the service has neither sent anything nor closed the connection.
fn is_open(client: &TcpStream) -> bool {
    client.set_nonblocking(true).unwrap();
    let peeked = client.peek(&mut [0]);
    client.set_nonblocking(false).unwrap();
    peeked.is_err_and(|error| error.kind() == ErrorKind::WouldBlock)
}

/// Returns a metric, read on an open connection, because a new one could close another.
fn metric(client: &mut TcpStream, name: &str) -> String {
    exchange(client, get("/metrics")).metric(name)
}

const EVICTED: &str = "timber_connections_evicted_total";
const REFUSED: &str = "timber_connections_refused_total";

/// Checks that as many connections can be open as the limit says, neither more nor fewer, and that
/// the reserve is complete. To be called when no other connection is open.
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
        assert_eq!((response.status, response.header("connection")), (200, None));
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
    const ROUNDS: usize = 20;
    const LIMIT: usize = 20;
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
        let is_asking = |number: usize| (number + round) % 2 == 0;
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
    let service = start(LIMIT, &["--workers", "2", "--write-timeout", "40ms", "--no-access-log"]);
    let address = service.address;
    let is_over = AtomicBool::new(false);
    let fates: Vec<Fates> = thread::scope(|scope| {
        let clients: Vec<_> = (0..24u64)
            .map(|seed| scope.spawn({ let is_over = &is_over; move || push_in(address, seed, is_over)}))
            .collect();
        thread::sleep(Duration::from_secs(5));
        is_over.store(true, Relaxed);
        clients.into_iter().map(|client| client.join().unwrap()).collect()
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
    assert_eq!(total.lost, 0, "{total:?}");
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
        thread::sleep(Duration::from_micros(random % 60_000));
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
