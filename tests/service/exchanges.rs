//! Requests in a row on one connection, in pieces, with bodies that nobody wants, and how that
//! ends.

use std::net::Shutdown;

use super::*;

const OK: &str = r#"{"timber": "so delicious"}"#;

/// The statuses of what a connection still answers before it closes. A reset is no end: it can cost
/// answers.
fn remaining(stream: &mut TcpStream) -> Vec<u16> {
    let mut statuses = Vec::new();
    loop {
        match Answer::try_read(stream, false) {
            Ok(answer) => statuses.push(answer.status),
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
fn connections_are_kept() {
    let service = Timber::start(&[]);
    for request in [
        get("/index"),
        "GET /index HTTP/1.0\r\nConnection: keep-alive\r\n\r\n".to_owned(),
    ] {
        let mut stream = service.connect();
        for _ in 0..3 {
            let answer = ask(&mut stream, &request);
            let connection = request.contains("HTTP/1.0").then_some("keep-alive");
            assert_eq!(
                (answer.status, answer.header("connection")),
                (200, connection),
                "{request}"
            );
        }
    }
}

/// RFC 9112 section 9.3.2.
#[test]
fn pipelined_requests_are_answered_in_order() {
    let service = Timber::start(&[]);
    let mut stream = service.connect();
    let request = |number| format!("GET /nope HTTP/1.1\r\nHost: host-{number}\r\n\r\n");
    stream
        .write_all((0..100).map(request).collect::<String>().as_bytes())
        .unwrap();
    for number in 0..100 {
        let answer = Answer::read(&mut stream, false);
        assert!(
            answer
                .text()
                .contains(&format!("\"http://host-{number}/index\"")),
            "{number}: {answer:?}"
        );
    }
    assert_eq!(ask(&mut stream, get("/index")).status, 200);
}

#[test]
fn what_is_well_formed_is_answered_before_what_is_not_is_refused() {
    let service = Timber::start(&[]);
    for garbage in [
        "GARBAGE\r\n\r\n",
        "\0\x01\x02\r\n",
        "GET /index HTTP/1.1\r\nHost : a\r\n\r\n",
    ] {
        let mut stream = service.connect();
        stream
            .write_all((get("/index").repeat(10) + garbage).as_bytes())
            .unwrap();
        let expected = [[200; 10].as_slice(), &[400]].concat();
        assert_eq!(remaining(&mut stream), expected, "{garbage:?}");
    }
}

#[test]
fn requests_in_pieces_are_whole() {
    let service = Timber::start(&[]);
    let mut stream = service.connect();
    stream.set_nodelay(true).unwrap();
    for byte in (get("/index") + &get("/nope") + &post("hello")).as_bytes() {
        stream.write_all(&[*byte]).unwrap();
        thread::sleep(Duration::from_millis(1));
    }
    assert_eq!(remaining(&mut stream), [200, 404, 405]);
}

/// After a quiet tick, here 100 ms, timber takes hyper's connection apart and gives what hyper had read
/// to the next one. Fails if hyper no longer returns unread bytes from a connection before its end.
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
        assert_eq!(Answer::read(&mut stream, false).status, status);
    }
}

/// RFC 9112 section 9.6: to send no more is not to have left.
#[test]
fn who_has_nothing_more_to_send_is_still_answered() {
    let service = Timber::start(&[]);
    let half_closed = |requests: &str| {
        let mut stream = service.connect();
        stream.write_all(requests.as_bytes()).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        remaining(&mut stream)
    };
    for _ in 0..200 {
        assert_eq!(half_closed(&get("/index")), [200]);
    }
    assert_eq!(half_closed(&get("/index").repeat(50)), [200; 50]);
    assert_eq!(half_closed(&(get("/index") + &post("hello"))), [200, 405]);
    assert_eq!(half_closed(&chunked("hello")), [405]);
    let announced = "POST /index HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\nhell";
    assert_eq!(half_closed(announced), [405]);
    for half in ["", "GET /index HTTP/1.1\r\nHost"] {
        let answers = half_closed(half);
        assert!(
            answers.is_empty() || answers == [400],
            "{half:?}: {answers:?}"
        );
    }
}

/// RFC 9110 section 9.3.2, and section 8.6 for the length.
#[test]
fn head_is_get_without_the_body() {
    let service = Timber::start(&[]);
    for path in ["/index", "/healthz", "/readyz", "/openapi.json", "/nope"] {
        let without_date = |mut answer: Answer| {
            answer.headers.retain(|(name, _)| name != "date");
            (answer.status, answer.headers)
        };
        let mut stream = service.connect();
        let head = ask(&mut stream, get(path).replacen("GET", "HEAD", 1));
        assert_eq!(
            without_date(head),
            without_date(service.get(path)),
            "{path}"
        );
        // Had there been a body, it would be read as the start of this answer.
        assert_eq!(
            ask(&mut stream, get("/index")).text(),
            OK,
            "after HEAD {path}"
        );
    }
}

/// RFC 9112 section 9.6: whoever sends all before reading must not lose the answer to a reset.
#[test]
fn a_body_that_nobody_wants_costs_the_connection_but_not_the_answer() {
    let service = Timber::start(&[]);
    for request in [post, chunked] {
        for length in [1, 5_000, 64 * 1024, 1_000_000, 10_000_000] {
            let mut stream = service.connect();
            let sent = stream.write_all(request(&"x".repeat(length)).as_bytes());
            sent.unwrap_or_else(|error| panic!("of {length} bytes not all are taken: {error}"));
            let answer = Answer::read(&mut stream, false);
            assert_eq!(
                (answer.status, answer.header("connection")),
                (405, Some("close")),
                "{length} bytes"
            );
            assert!(is_closed(&mut stream), "{length} bytes");
        }
    }
    // Announced and held back.
    let answer =
        service.ask("POST /index HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000000\r\n\r\n");
    assert_eq!(
        (answer.status, answer.header("connection")),
        (405, Some("close"))
    );
}

/// Answers that wait for a client to read are sent whole, even when bodies of requests lie between
/// them.
#[test]
fn answers_that_wait_are_whole() {
    let service = Timber::start(&[]);
    let whole = service.get("/openapi.json").body;
    for body in ["", "Content-Length: 1\r\n\r\nx"] {
        let head = "GET /openapi.json HTTP/1.1\r\nHost: a\r\n";
        let request = if body.is_empty() {
            format!("{head}\r\n")
        } else {
            format!("{head}{body}")
        };
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
                Err(_) => break, // the service waits for its answers to be read, or has closed
            }
        }
        let mut answers = 0;
        while let Ok(answer) = Answer::try_read(&mut reader, false) {
            assert_eq!(answer.body, whole, "answer {answers}");
            answers += 1;
            if answer.header("connection") == Some("close") || answers == sent / request.len() {
                break;
            }
        }
        assert!(answers > 0, "{body:?}");
    }
}
