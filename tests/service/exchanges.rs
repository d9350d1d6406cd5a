//! Several requests on one connection: keep-alive, pipelined, in pieces, and with bodies, which the
//! service does not read.

use std::net::Shutdown;

use super::*;

const OK: &str = r#"{"timber": "so delicious"}"#;

/// Returns the statuses of all responses until the server closes the connection. A reset is an
/// error, because it can discard responses.
fn remaining_statuses(stream: &mut TcpStream) -> Vec<u16> {
    let mut statuses = Vec::new();
    loop {
        match Response::try_read(stream, false) {
            Ok(response) => statuses.push(response.status),
            Err(end) if end == "Ok(0) after \"\"" => return statuses,
            Err(end) => panic!("{end} after {statuses:?}"),
        }
    }
}

fn post(body: &str) -> String {
    format!(
        "POST /index HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
}

fn chunked(body: &str) -> String {
    let chunks = body.as_bytes().chunks(1000).map(|chunk| {
        format!(
            "{:x}\r\n{}\r\n",
            chunk.len(),
            str::from_utf8(chunk).unwrap()
        )
    });
    let head = "POST /index HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n".to_owned();
    chunks.fold(head, |head, chunk| head + &chunk) + "0\r\n\r\n"
}

/// RFC 9112 section 9.3.
#[test]
fn connections_are_kept_alive() {
    let service = Timber::start(&[]);
    for request in [
        get("/index"),
        "GET /index HTTP/1.0\r\nConnection: keep-alive\r\n\r\n".to_owned(),
    ] {
        let mut stream = service.connect();
        for _ in 0..3 {
            let response = exchange(&mut stream, &request);
            let connection = request.contains("HTTP/1.0").then_some("keep-alive");
            assert_eq!(
                (response.status, response.header("connection")),
                (200, connection),
                "{request}"
            );
        }
    }
}

/// RFC 9112 section 9.3.2.
#[test]
fn pipelined_requests_get_responses_in_order() {
    let service = Timber::start(&[]);
    let mut stream = service.connect();
    let request = |number| format!("GET /nope HTTP/1.1\r\nHost: host-{number}\r\n\r\n");
    stream
        .write_all((0..100).map(request).collect::<String>().as_bytes())
        .unwrap();
    for number in 0..100 {
        let response = Response::read(&mut stream, false);
        assert!(
            response
                .text()
                .contains(&format!("\"http://host-{number}/index\"")),
            "{number}: {response:?}"
        );
    }
    assert_eq!(exchange(&mut stream, get("/index")).status, 200);
}

#[test]
fn valid_requests_before_a_malformed_one_are_served() {
    let service = Timber::start(&[]);
    for malformed in [
        "GARBAGE\r\n\r\n",
        "\0\x01\x02\r\n",
        "GET /index HTTP/1.1\r\nHost : a\r\n\r\n",
    ] {
        let mut stream = service.connect();
        stream
            .write_all((get("/index").repeat(10) + malformed).as_bytes())
            .unwrap();
        let expected = [[200; 10].as_slice(), &[400]].concat();
        assert_eq!(remaining_statuses(&mut stream), expected, "{malformed:?}");
    }
}

#[test]
fn requests_sent_byte_by_byte_are_served() {
    let service = Timber::start(&[]);
    let mut stream = service.connect();
    stream.set_nodelay(true).unwrap();
    for byte in (get("/index") + &get("/nope") + &post("hello")).as_bytes() {
        stream.write_all(&[*byte]).unwrap();
        thread::sleep(Duration::from_millis(1));
    }
    assert_eq!(remaining_statuses(&mut stream), [200, 404, 405]);
}

/// After a quiet tick, here 100 ms, timber takes hyper's connection apart and gives the unread
/// bytes to the next one. Fails if hyper no longer returns them from a connection before its end.
#[test]
fn head_that_pauses_longer_than_a_tick_is_served() {
    let service = Timber::start(&["--idle-timeout", "400ms", "--header-timeout", "20s"]);
    let mut stream = service.connect();
    let requests = [get("/index"), get("/nope")].concat();
    for part in requests.as_bytes().chunks(20) {
        stream.write_all(part).unwrap();
        thread::sleep(Duration::from_millis(250));
    }
    for status in [200, 404] {
        assert_eq!(Response::read(&mut stream, false).status, status);
    }
}

/// RFC 9112 section 9.6: a client that closes its sending side can still receive.
#[test]
fn half_closed_connection_gets_its_responses() {
    let service = Timber::start(&[]);
    let half_closed = |requests: &str| {
        let mut stream = service.connect();
        stream.write_all(requests.as_bytes()).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        remaining_statuses(&mut stream)
    };
    for _ in 0..200 {
        assert_eq!(half_closed(&get("/index")), [200]);
    }
    assert_eq!(half_closed(&get("/index").repeat(50)), [200; 50]);
    assert_eq!(half_closed(&(get("/index") + &post("hello"))), [200, 405]);
    assert_eq!(half_closed(&chunked("hello")), [405]);
    let incomplete_body = "POST /index HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\nhell";
    assert_eq!(half_closed(incomplete_body), [405]);
    for half in ["", "GET /index HTTP/1.1\r\nHost"] {
        let responses = half_closed(half);
        assert!(
            responses.is_empty() || responses == [400],
            "{half:?}: {responses:?}"
        );
    }
}

/// RFC 9110 section 9.3.2, and section 8.6 for Content-Length.
#[test]
fn head_response_equals_get_without_the_body() {
    let service = Timber::start(&[]);
    for path in ["/index", "/healthz", "/readyz", "/openapi.json", "/nope"] {
        let without_date = |mut response: Response| {
            response.headers.retain(|(name, _)| name != "date");
            (response.status, response.headers)
        };
        let mut stream = service.connect();
        let head = exchange(&mut stream, get(path).replacen("GET", "HEAD", 1));
        assert_eq!(
            without_date(head),
            without_date(service.get(path)),
            "{path}"
        );
        // If the response to HEAD had a body, it would be read as the start of this one.
        assert_eq!(
            exchange(&mut stream, get("/index")).text(),
            OK,
            "after HEAD {path}"
        );
    }
}

/// RFC 9112 section 9.6: a reset must not discard the response to a client that sends its whole
/// body before it reads.
#[test]
fn unread_body_closes_the_connection_after_the_response() {
    let service = Timber::start(&[]);
    for request in [post, chunked] {
        for length in [1, 5_000, 64 * 1024, 1_000_000, 10_000_000] {
            let mut stream = service.connect();
            let sent = stream.write_all(request(&"x".repeat(length)).as_bytes());
            sent.unwrap_or_else(|error| panic!("cannot send a body of {length} bytes: {error}"));
            let response = Response::read(&mut stream, false);
            assert_eq!(
                (response.status, response.header("connection")),
                (405, Some("close")),
                "{length} bytes"
            );
            assert!(is_closed(&mut stream), "{length} bytes");
        }
    }
    // A body that the client does not send.
    let response =
        service.exchange("POST /index HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000000\r\n\r\n");
    assert_eq!(
        (response.status, response.header("connection")),
        (405, Some("close"))
    );
}

/// Responses that wait for the client to read are sent whole, even if the requests between them
/// have bodies.
#[test]
fn pending_responses_are_sent_whole() {
    let service = Timber::start(&[]);
    let document = service.get("/openapi.json").text();
    for rest in ["\r\n", "Content-Length: 1\r\n\r\nx"] {
        let request = format!("GET /openapi.json HTTP/1.1\r\nHost: a\r\n{rest}");
        let stream = service.connect();
        let mut writer = stream.try_clone().unwrap();
        writer
            .set_write_timeout(Some(Duration::from_millis(500)))
            .unwrap();
        let requests = request.repeat(20_000);
        let (mut sent, mut reader) = (0, std::io::BufReader::new(stream));
        while sent < requests.len() {
            match writer.write(&requests.as_bytes()[sent..]) {
                Ok(length) => sent += length,
                Err(_) => break, // the service has stopped reading, or has closed
            }
        }
        let mut responses = 0;
        while let Ok(response) = Response::try_read(&mut reader, false) {
            assert_eq!(response.text(), document, "response {responses}");
            responses += 1;
            if response.header("connection") == Some("close") || responses == sent / request.len() {
                break;
            }
        }
        assert!(responses > 0, "{rest:?}");
    }
}
