//! Routes, methods and error responses, compared with those recorded from the original.

use super::*;

#[test]
fn responses_match_the_original() {
    let service = Timber::start(&[]);
    parity::assert_matches_original(|request| service.exchange(request));
}

#[test]
fn paths_are_matched_as_by_the_original() {
    let service = Timber::start(&[]);
    for path in [
        "/index",
        "/index/",
        "//index",
        "///index/",
        "/%69ndex",
        "/index%2F",
        "/%2Findex",
        "/index?",
    ] {
        assert_eq!(
            service.get(path).text(),
            r#"{"timber": "so delicious"}"#,
            "{path}"
        );
    }
    for path in [
        "/v1/index",
        "/v2/index/",
        "/vabc/index",
        "http://localhost:8000/index",
        "/index?a=%00&b",
    ] {
        assert_eq!(service.get(path).status, 200, "{path}");
    }
    for path in [
        "/INDEX",
        "/index//",
        "/indexx",
        "/index/x",
        "/../index",
        "/",
        "/v/index",
        "/x1/index",
        "/%",
    ] {
        assert_eq!(service.get(path).status, 404, "{path}");
    }
    for path in [
        "/index%2F%2F",
        "/index%",
        "/index%6",
        "/index%zz",
        "/%ff",
        "/index%00",
        "/.",
        "/healthzz",
    ] {
        assert_eq!(service.get(path).status, 404, "{path}");
    }
    for path in ["/healthz/", "//version", "/%6detrics"] {
        assert_eq!(service.get(path).status, 200, "{path}");
    }
}

#[test]
fn not_found_response_varies_with_the_host_only() {
    let service = Timber::start(&[]);
    for method in [
        "GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "BREW",
    ] {
        for host in ["localhost:8000", "", "a", "timber.test", "[::1]:8080"] {
            let response =
                service.exchange(format!("{method} /nope HTTP/1.1\r\nHost: {host}\r\n\r\n"));
            assert_eq!(
                (response.status, response.body.len()),
                (404, 571 + host.len()),
                "{method} {host}"
            );
            assert_eq!(response.header("content-type"), Some(JSON));
            assert_eq!(
                response.header("link"),
                Some(r#"</openapi.json>; rel="service-desc""#)
            );
            let example =
                &response.json()["documentation"]["handlers"]["/index"]["GET"]["examples"][0];
            assert_eq!(example, &json!(format!("http://{host}/index")));
        }
    }
}

#[test]
fn not_found_example_url_points_to_the_server() {
    let service = Timber::start(&[]);
    let example = |request: &str| {
        let response = service.exchange(request);
        response.json()["documentation"]["handlers"]["/index"]["GET"]["examples"][0].clone()
    };
    assert_eq!(
        example("GET /nope HTTP/1.0\r\n\r\n"),
        json!(format!("http://localhost:{}/index", service.address.port()))
    );
    // RFC 9112 section 3.2.2: the target's authority replaces Host.
    assert_eq!(
        example("GET http://oak.test:81/nope HTTP/1.1\r\nHost: elm.test\r\n\r\n"),
        json!("http://oak.test:81/index")
    );
    assert_eq!(
        example("GET /nope HTTP/1.1\r\nHost: oak.test\r\nX-Forwarded-Proto: https\r\n\r\n"),
        json!("https://oak.test/index")
    );
}

#[test]
fn each_route_allows_get_head_and_options_only() {
    let service = Timber::start(&[]);
    let method = |method: &str, path: &str| {
        service.exchange(format!(
            "{method} {path} HTTP/1.1\r\nHost: localhost\r\n\r\n"
        ))
    };
    for path in [
        "/index",
        "/healthz",
        "/readyz",
        "/version",
        "/sample",
        "/metrics",
        "/openapi.json",
    ] {
        for name in ["POST", "PUT", "DELETE", "PATCH", "TRACE", "QUERY"] {
            let response = method(name, path);
            assert_eq!(
                (response.status, response.text().as_str()),
                (405, ""),
                "{name} {path}"
            );
            assert_eq!(
                response.header("allow"),
                Some("GET, HEAD, OPTIONS"),
                "{name} {path}"
            );
        }
        let options = method("OPTIONS", path);
        assert_eq!(
            (options.status, options.text().as_str()),
            (200, ""),
            "OPTIONS {path}"
        );
        assert_eq!(
            options.header("allow"),
            Some("GET, HEAD, OPTIONS"),
            "OPTIONS {path}"
        );
        let unknown = method("BREW", path);
        assert_eq!(unknown.status, 501, "BREW {path}");
        assert_eq!(
            unknown.text(),
            r#"{"errors": {"Not Implemented": "Invalid HTTP method"}}"#
        );
    }
    assert_eq!(
        method("OPTIONS", "*").header("allow"),
        Some("GET, HEAD, OPTIONS")
    );
}

#[test]
fn requests_that_hyper_cannot_parse_are_counted_and_logged() {
    let service = Timber::start(&[]);
    for (status, request) in [
        (400, "GET /index HTTP/1.1\r\nHost : a\r\n\r\n".to_owned()),
        (505, "GET /index HTTP/3.1\r\nHost: a\r\n\r\n".to_owned()),
        (
            431,
            format!(
                "GET /index HTTP/1.1\r\nHost: a\r\nX: {}\r\n\r\n",
                "x".repeat(20_000)
            ),
        ),
    ] {
        assert_eq!(service.exchange(&request).status, status, "{request}");
        let line = service.wait_for_event("Refused");
        assert!(
            line.contains(&format!("Refused 127.0.0.1: {status} ")),
            "{line}"
        );
    }
    assert!(
        service
            .get("/metrics")
            .text()
            .contains("http_requests_total{route=\"other\",code=\"4xx\"} 2\n")
    );
}
