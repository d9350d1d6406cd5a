//! The graceful shutdown: exit codes, deadlines, and what clients receive.

use std::io::ErrorKind;

use super::*;

/// Stops an idle service. Returns its exit code and the time that it took.
fn stop(arguments: &[&str], signal: Signal) -> (Option<i32>, Duration) {
    let mut service = Timber::start(arguments);
    assert_eq!(service.get("/index").status, 200);
    service.signal(signal);
    let (status, took) = service.wait();
    (status.code(), took)
}

#[test]
fn idle_service_exits_at_once_on_sigterm_sigint_and_sigquit() {
    for signal in [Signal::TERM, Signal::INT, Signal::QUIT] {
        let (code, took) = stop(&[], signal);
        assert_eq!(code, Some(0), "{signal:?}");
        assert!(took < Duration::from_secs(1), "{signal:?} took {took:?}");
    }
}

#[test]
fn sighup_is_ignored() {
    let service = Timber::start(&[]);
    service.signal(Signal::HUP);
    service.signal(Signal::HUP);
    thread::sleep(Duration::from_millis(200));
    assert_eq!(service.get("/index").status, 200);
}

#[test]
fn idle_connections_do_not_delay_the_exit() {
    let mut service = Timber::start(&[]);
    let mut keep_alive: Vec<_> = (0..10).map(|_| service.connect()).collect();
    for stream in &mut keep_alive {
        assert_eq!(exchange(stream, get("/index")).status, 200);
    }
    let silent = service.connect();
    service.signal(Signal::TERM);
    let (status, took) = service.wait();
    assert_eq!(status.code(), Some(0));
    assert!(took < Duration::from_secs(1), "{took:?}");
    drop(silent);
}

/// Each head is half sent at the signal, on a new, an idle and a pipelining connection. The
/// original drains them on SIGTERM, too.
#[test]
fn drains_in_flight_requests_on_sigterm() {
    let mut service = Timber::start(&[]);
    let request = get("/index");
    let (first, second) = request.split_at(20);
    let mut new = service.connect();
    new.write_all(first.as_bytes()).unwrap();
    let mut keep_alive = service.connect();
    assert_eq!(exchange(&mut keep_alive, get("/index")).status, 200);
    keep_alive.write_all(first.as_bytes()).unwrap();
    let mut pipelined = service.connect();
    assert_eq!(exchange(&mut pipelined, get("/index") + first).status, 200);
    thread::sleep(Duration::from_millis(100)); // until the service has read the halves
    service.signal(Signal::TERM);
    service.wait_for_event("Handling signal: term");
    thread::sleep(Duration::from_millis(500));
    for stream in [&mut new, &mut keep_alive, &mut pipelined] {
        let response = exchange(stream, second);
        assert_eq!(
            (response.status, response.header("connection")),
            (200, Some("close"))
        );
        assert!(is_closed(stream));
    }
    assert_eq!(service.wait().0.code(), Some(0));
    assert!(
        service
            .wait_for_event("Shutting down")
            .contains("3 requests finished")
    );
}

#[test]
fn drain_deadline_aborts_an_incomplete_request() {
    let mut service = Timber::start(&["--drain-deadline", "500ms"]);
    let mut stream = service.connect();
    stream.write_all(b"GET /index HTTP").unwrap();
    thread::sleep(Duration::from_millis(100));
    service.signal(Signal::TERM);
    let (status, took) = service.wait();
    assert_eq!(status.code(), Some(1));
    assert!(
        (Duration::from_millis(400)..Duration::from_secs(3)).contains(&took),
        "{took:?}"
    );
    assert!(
        service
            .wait_for_event("Shutting down")
            .contains("1 connections aborted")
    );
}

#[test]
fn drain_deadline_aborts_a_client_that_does_not_read() {
    let mut service = Timber::start(&["--drain-deadline", "500ms", "--no-access-log"]);
    let mut stream = service.connect();
    stream
        .set_write_timeout(Some(Duration::from_millis(300)))
        .unwrap();
    let requests = get("/index").repeat(1000);
    while stream.write_all(requests.as_bytes()).is_ok() {} // until the service stops reading
    service.signal(Signal::TERM);
    assert_eq!(service.wait().0.code(), Some(1));
    assert!(
        service
            .wait_for_event("Shutting down")
            .contains("1 connections aborted")
    );
}

#[test]
fn second_signal_exits_at_once() {
    let mut service = Timber::start(&["--drain-delay", "30s"]);
    service.signal(Signal::TERM);
    service.wait_for_event("Handling signal: term");
    service.signal(Signal::INT);
    let (status, took) = service.wait();
    assert_eq!(status.code(), Some(1));
    assert!(took < Duration::from_secs(2), "{took:?}");
}

#[test]
fn drain_delay_serves_requests_with_readiness_off() {
    let mut service = Timber::start(&["--drain-delay", "1s"]);
    let mut keep_alive = service.connect();
    let response = exchange(&mut keep_alive, get("/index"));
    assert_eq!(response.header("connection"), None);
    service.signal(Signal::TERM);
    service.wait_for_event("Handling signal: term");
    let readiness = service.get("/readyz");
    assert_eq!(readiness.status, 503);
    assert!(readiness.json()["errors"]["Service Unavailable"].is_string());
    assert_eq!(service.get("/healthz").status, 200);
    for response in [
        exchange(&mut keep_alive, get("/index")),
        service.get("/index"),
    ] {
        assert_eq!(
            (response.status, response.header("connection")),
            (200, Some("close"))
        );
    }
    let (status, took) = service.wait();
    assert_eq!(status.code(), Some(0));
    assert!(
        (Duration::from_millis(500)..Duration::from_secs(4)).contains(&took),
        "{took:?}"
    );
    assert!(
        TcpStream::connect(service.address).is_err(),
        "the port is still open"
    );
}

/// How the clients of the shutdowns have fared.
#[derive(Debug, Default)]
struct Outcome {
    /// Refused at the connection limit.
    refused: u64,
    on_new_connections: usize,
    on_keep_alive: usize,
    /// Sent on a keep-alive connection later than any server can serve it.
    sent_too_late: usize,
}

/// At the signal, 100 clients open a connection for each request, and 100 use keep-alive
/// connections. Every established connection gets its response: the listener's backlog is served,
/// too. The variable SHUTDOWNS sets the number of shutdowns.
///
/// # Panics
/// If a request is lost.
fn check_shutdowns(arguments: &[&str]) -> Outcome {
    const CLIENTS: usize = 200;
    let shutdowns = std::env::var("SHUTDOWNS").map_or(2, |count| count.parse().unwrap());
    let mut total = Outcome::default();
    for _ in 0..shutdowns {
        let mut service = Timber::start(&[&["--no-access-log"], arguments].concat());
        let address = service.address;
        let clients = (0..CLIENTS).map(|number| {
            thread::spawn(move || {
                if number % 2 == 0 {
                    connection_per_request(address)
                } else {
                    keep_alive_connections(address)
                }
            })
        });
        let clients: Vec<_> = clients.collect();
        thread::sleep(Duration::from_millis(300));
        let refused = service.metric("timber_connections_refused_total");
        total.refused += refused.parse::<u64>().unwrap();
        let signal = Instant::now();
        service.signal(Signal::TERM);
        assert_eq!(service.wait().0.code(), Some(0));
        for (number, client) in clients.into_iter().enumerate() {
            // The service closes idle connections 120 ms after the signal. A request that is sent
            // later can cross that close, which no server can prevent (RFC 9112 section 9.5). Such a
            // request means that the client's thread did not run in time.
            match client.join().unwrap() {
                Ok(()) => {}
                Err(_) if number % 2 == 0 => total.on_new_connections += 1,
                Err(sent) if sent < signal + Duration::from_millis(100) => {
                    total.on_keep_alive += 1;
                }
                Err(_) => total.sent_too_late += 1,
            }
        }
    }
    println!("{shutdowns} shutdowns with {arguments:?}: {total:?}");
    let lost = total.on_new_connections + total.on_keep_alive;
    assert_eq!(lost, 0, "{arguments:?}: {total:?}");
    total
}

#[test]
fn shutdown_loses_no_request_under_load() {
    check_shutdowns(&["--workers", "2"]);
}

#[test]
fn shutdown_of_eight_workers_loses_no_request() {
    check_shutdowns(&["--workers", "8"]);
}

/// At the limit, a 503 is a response.
#[test]
fn shutdown_at_the_connection_limit_loses_no_request() {
    let outcome = check_shutdowns(&["--workers", "8", "--max-connections", "50"]);
    assert!(outcome.refused > 0, "{outcome:?}");
}

/// Starts a service whose two connections have half a head, and 40 clients that have sent a
/// request. Then sends SIGTERM. The service has accepted none of the 40 before that, because
/// SIGSTOP has paused it.
fn shut_down_with_a_backlog(deadline: &str) -> (Timber, Vec<TcpStream>, Vec<TcpStream>) {
    let arguments = ["--max-connections", "2", "--drain-deadline", deadline];
    let service = Timber::start(&arguments);
    let mut active: Vec<_> = (0..2).map(|_| service.connect()).collect();
    for client in &mut active {
        client.write_all(b"GET /index HTTP/1.1\r\n").unwrap();
    }
    thread::sleep(Duration::from_millis(200)); // until the service has read them
    service.signal(Signal::STOP);
    let mut waiting: Vec<_> = (0..40).map(|_| service.connect()).collect();
    for client in &mut waiting {
        client.write_all(get("/index").as_bytes()).unwrap();
    }
    service.signal(Signal::TERM);
    service.signal(Signal::CONT);
    service.wait_for_event("Handling signal");
    (service, active, waiting)
}

/// Until accepting ends, the reserve takes up to 16 of the clients, and refuses them. The others are
/// served as soon as one of the first two has finished.
#[test]
fn backlog_is_served_once_connections_have_finished() {
    let (mut service, mut active, mut waiting) = shut_down_with_a_backlog("8s");
    thread::sleep(Duration::from_millis(500));
    let is_waiting = waiting.iter().filter(|client| is_open(client)).count();
    assert!(is_waiting >= 24, "{is_waiting}");
    for client in &mut active {
        assert_eq!(exchange(client, "Host: a\r\n\r\n").status, 200);
    }
    let statuses = waiting.iter_mut().map(|client| {
        let response = Response::read(client, false);
        assert_eq!(response.header("connection"), Some("close"));
        response.status
    });
    let (served, refused): (Vec<_>, Vec<_>) = statuses.partition(|status| *status == 200);
    assert_eq!(served.len(), is_waiting);
    assert!(refused.iter().all(|status| *status == 503), "{refused:?}");
    assert_eq!(service.wait().0.code(), Some(0));
}

#[test]
fn connections_in_the_backlog_count_as_aborted_at_the_deadline() {
    // Without time to drain, one connection may be on its way from the backlog to a worker.
    for (deadline, in_transit) in [("0s", 1), ("1s", 0)] {
        let (mut service, active, mut waiting) = shut_down_with_a_backlog(deadline);
        assert_eq!(service.wait().0.code(), Some(1));
        let responses = waiting.iter_mut().filter_map(|client| {
            let response = Response::try_read(client, false).ok()?;
            Some(response.status)
        });
        // While the process exits, the first two return their permits, so a few others may be served.
        let (refused, served): (Vec<_>, Vec<_>) = responses.partition(|status| *status == 503);
        assert!(served.iter().all(|status| *status == 200), "{served:?}");
        let most = active.len() + waiting.len() - refused.len();
        let least = most - served.len() - in_transit;
        let event = service.wait_for_event("Shutting down");
        let mut counts = (least..=most).map(|count| format!(" {count} connections aborted"));
        assert!(
            counts.any(|count| event.contains(&count)),
            "{event}, {least} to {most}"
        );
    }
}

/// A handshake that completes between the last accept and the close of the listener would be reset.
/// So the service drops its first segment. The client sends it again after a second and is refused.
/// Some kernels permit that only with `CAP_NET_ADMIN`, which containers do not have.
#[cfg(target_os = "linux")]
#[test]
fn late_handshakes_are_refused_instead_of_reset() {
    use socket2::{SockFilter, SockRef};

    let refused_after = || {
        let service = Timber::start(&[]);
        service.signal(Signal::TERM);
        loop {
            let start = Instant::now();
            if let Err(error) = TcpStream::connect(service.address) {
                // On a busy machine, a handshake can take longer than the service waits for it.
                let kinds = [ErrorKind::ConnectionRefused, ErrorKind::ConnectionReset];
                assert!(kinds.contains(&error.kind()), "{error}");
                return start.elapsed();
            }
            // Without a pause, the backlog would overflow, and the kernel would drop handshakes, too.
            thread::sleep(Duration::from_millis(1));
        }
    };
    // The listener closes within 20 ms. If this thread does not run in time, try again.
    let is_retried = (0..10).any(|_| refused_after() > Duration::from_millis(900));
    let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let take_all = [SockFilter::new(0x06, 0, 0, u32::MAX)];
    let is_permitted = SockRef::from(&socket).attach_filter(&take_all).is_ok();
    assert_eq!(is_retried, is_permitted, "the first segment is dropped");
}

/// SIGSTOP pauses the process after the end of accepting, until idle connections are due to close.
/// Meanwhile a request arrives on each of them.
#[test]
fn serves_requests_that_arrived_before_idle_connections_are_closed() {
    const PARKED: Duration = Duration::from_millis(2500);
    for idle in [Duration::ZERO, Duration::ZERO, PARKED] {
        let (mut service, mut clients) = loop {
            let service = Timber::start(&["--workers", "1"]);
            let mut clients: Vec<_> = (0..200).map(|_| service.connect()).collect();
            for client in &mut clients {
                let response = exchange(client, get("/index"));
                assert_eq!(response.header("connection"), None);
            }
            thread::sleep(idle);
            service.signal(Signal::TERM);
            // Idle connections close 100 ms after the listener. If this thread did not run in time,
            // try again.
            while !is_refused(service.address) {}
            service.signal(Signal::STOP);
            if clients.iter().all(is_open) {
                break (service, clients);
            }
        };
        for client in &mut clients {
            client.write_all(get("/index").as_bytes()).unwrap();
        }
        thread::sleep(Duration::from_millis(200));
        service.signal(Signal::CONT);
        for client in &mut clients {
            let response = Response::read(client, false);
            let connection = response.header("connection");
            assert_eq!((response.status, connection), (200, Some("close")));
        }
        drop(clients);
        assert_eq!(service.wait().0.code(), Some(0));
    }
}

/// Returns true once the listener is closed.
fn is_refused(address: SocketAddr) -> bool {
    let connection = TcpStream::connect_timeout(&address, Duration::from_millis(5));
    connection.is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused)
}

/// Sends a request, and returns its response: the document, or a refusal at the connection limit.
///
/// # Errors
/// The time at which the request was sent, if the response is missing or incomplete.
fn ask(stream: &mut TcpStream, request: &str) -> Result<String, Instant> {
    stream.set_read_timeout(Some(TEST_TIMEOUT)).unwrap();
    let written = stream.write_all(request.as_bytes());
    let sent = Instant::now();
    let mut response = [0; 1024];
    let read = written.and_then(|()| stream.read(&mut response));
    let length = read.map_err(|_| sent)?;
    let response = String::from_utf8_lossy(&response[..length]).into_owned();
    let end = if response.starts_with("HTTP/1.1 503 ") {
        "try again later\"}}"
    } else {
        "\r\n\r\n{\"timber\": \"so delicious\"}"
    };
    if response.ends_with(end) {
        Ok(response)
    } else {
        Err(sent)
    }
}

/// Opens a connection, unless the port is closed. During the shutdown the kernel first drops
/// handshakes, then refuses them.
fn try_connect(address: SocketAddr) -> Option<TcpStream> {
    TcpStream::connect_timeout(&address, Duration::from_millis(200)).ok()
}

/// Sends requests until the port is closed, each on a new connection.
///
/// # Errors
/// The time of the first lost request.
fn connection_per_request(address: SocketAddr) -> Result<(), Instant> {
    let request = "GET /index HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
    while let Some(mut stream) = try_connect(address) {
        ask(&mut stream, request)?;
        assert!(is_closed(&mut stream));
    }
    Ok(())
}

/// Sends requests until the port is closed, on one connection until a response announces its end.
///
/// # Errors
/// The time of the first lost request.
fn keep_alive_connections(address: SocketAddr) -> Result<(), Instant> {
    while let Some(mut stream) = try_connect(address) {
        while !ask(&mut stream, &get("/index"))?.contains("connection: close") {}
    }
    Ok(())
}

/// Responses that the client has not read at the signal are sent whole, up to the last one, which
/// closes the connection. Fails if hyper's connection is taken apart before its last flush.
#[test]
fn late_reader_gets_whole_responses() {
    let mut service = Timber::start(&[]);
    let document = service.get("/openapi.json").text();
    let stream = service.connect();
    let mut writer = stream.try_clone().unwrap();
    writer
        .set_write_timeout(Some(Duration::from_millis(500)))
        .unwrap();
    let requests = get("/openapi.json").repeat(200_000);
    writer
        .write_all(requests.as_bytes())
        .expect_err("the service waits until the client reads");
    service.signal(Signal::TERM);
    thread::sleep(Duration::from_millis(500));
    let mut reader = std::io::BufReader::new(stream);
    loop {
        let response = Response::try_read(&mut reader, false).expect("the response is whole");
        assert_eq!(response.text(), document);
        if response.header("connection") == Some("close") {
            break;
        }
    }
    assert_eq!(service.wait().0.code(), Some(0));
}
