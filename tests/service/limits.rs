//! Clients that hold a connection, and how long they can.

use super::*;

#[test]
fn a_client_that_sends_no_head_or_half_of_one_is_closed() {
    let service = Timber::start(&["--header-timeout", "300ms", "--idle-timeout", "60s"]);
    for beginning in ["", "GET /index HT", "GET /index HTTP/1.1\r\nHost: a\r\n"] {
        let mut stream = service.connect();
        let start = Instant::now();
        if !beginning.is_empty() {
            let answer = ask(&mut stream, beginning);
            assert_eq!((answer.status, answer.header("connection")), (408, Some("close")), "{beginning:?}");
        }
        assert!(is_closed(&mut stream), "{beginning:?}");
        assert!(start.elapsed() < Duration::from_secs(3), "{beginning:?} held it for {:?}", start.elapsed());
    }
    // One byte at a time does not help.
    let mut slow = service.connect();
    let start = Instant::now();
    while slow.write_all(b"G").is_ok() {
        assert!(start.elapsed() < Duration::from_secs(5), "a slow client holds it");
        thread::sleep(Duration::from_millis(50));
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
    let held = start.elapsed();
    assert!((Duration::from_millis(300)..Duration::from_secs(3)).contains(&held), "held for {held:?}");
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
