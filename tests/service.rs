//! The real process over real sockets.

mod support;

use std::{
    collections::BTreeMap,
    fs::File,
    io::{Read, Write},
    net::{Ipv6Addr, SocketAddr, TcpListener, TcpStream},
    process::{Command, Output, Stdio},
    thread,
    time::{Duration, Instant},
};

use base64::{Engine, prelude::BASE64_STANDARD};
use rustix::process::Signal;
use serde_json::{Value, json};
use support::{Answer, SOON, Timber, ask, connect, get, is_closed, run_to_end, timber};

const JSON: &str = "application/json; charset=utf-8";

/// A connection that is one too many is not served before `leave`, and then it is.
fn waits_for(service: &Timber, leave: impl FnOnce()) {
    let mut extra = service.connect();
    extra.write_all(get("/index").as_bytes()).unwrap();
    extra.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    assert!(extra.read(&mut [0]).is_err(), "it is served beside the others");
    leave();
    extra.set_read_timeout(Some(SOON)).unwrap();
    assert_eq!(Answer::read(&mut extra, false).status, 200);
}

mod api {
    use super::*;

    /// Recorded from the tutorial's own service, hug 2.4.0 behind gunicorn 19.8.1.
    #[test]
    fn answers_as_the_original_did() {
        let service = Timber::start(&[]);
        let cases: Vec<Value> = serde_json::from_str(include_str!("parity.json")).unwrap();
        assert_eq!(cases.len(), 25);
        for case in cases {
            let bytes = |key: &str| BASE64_STANDARD.decode(case[key].as_str()?).ok();
            let answer = service.ask(bytes("request_base64").unwrap());
            let name = &case["name"];
            assert_eq!(json!(answer.status), case["status"], "{name}");
            if let Some(content_type) = case["content_type"].as_str() {
                assert_eq!(answer.header("content-type"), Some(content_type), "{name}");
            }
            if let Some(body) = bytes("body_base64") {
                assert_eq!(answer.text(), String::from_utf8(body).unwrap(), "{name}");
            }
            for method in case["allow_contains"].as_array().into_iter().flatten() {
                let allow = answer.header("allow").unwrap_or_default();
                assert!(allow.split(", ").any(|m| m == method), "{name}: {allow} has no {method}");
            }
        }
    }

    #[test]
    fn the_original_s_path_rules() {
        let service = Timber::start(&[]);
        for path in
            ["/index", "/index/", "//index", "///index/", "/%69ndex", "/index%2F", "/%2Findex", "/index?"]
        {
            assert_eq!(service.get(path).text(), r#"{"timber": "so delicious"}"#, "{path}");
        }
        for path in
            ["/v1/index", "/v2/index/", "/vabc/index", "http://localhost:8000/index", "/index?a=%00&b"]
        {
            assert_eq!(service.get(path).status, 200, "{path}");
        }
        for path in
            ["/INDEX", "/index//", "/indexx", "/index/x", "/../index", "/", "/v/index", "/x1/index", "/%"]
        {
            assert_eq!(service.get(path).status, 404, "{path}");
        }
        for path in
            ["/index%2F%2F", "/index%", "/index%6", "/index%zz", "/%ff", "/index%00", "/.", "/healthzz"]
        {
            assert_eq!(service.get(path).status, 404, "{path}");
        }
        for path in ["/healthz/", "//version", "/%6detrics"] {
            assert_eq!(service.get(path).status, 200, "{path}");
        }
    }

    #[test]
    fn the_404_is_the_same_for_every_method_and_grows_with_host() {
        let service = Timber::start(&[]);
        for method in ["GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "BREW"] {
            for host in ["localhost:8000", "", "a", "timber.test", "[::1]:8080"] {
                let answer = service.ask(format!("{method} /nope HTTP/1.1\r\nHost: {host}\r\n\r\n"));
                assert_eq!((answer.status, answer.body.len()), (404, 571 + host.len()), "{method} {host}");
                assert_eq!(answer.header("content-type"), Some(JSON));
                assert_eq!(answer.header("link"), Some(r#"</openapi.json>; rel="service-desc""#));
                let example = &answer.json()["documentation"]["handlers"]["/index"]["GET"]["examples"][0];
                assert_eq!(example, &json!(format!("http://{host}/index")));
            }
        }
    }

    #[test]
    fn the_404_s_example_leads_back_to_the_server() {
        let service = Timber::start(&[]);
        let example = |request: &str| {
            let answer = service.ask(request);
            answer.json()["documentation"]["handlers"]["/index"]["GET"]["examples"][0].clone()
        };
        assert_eq!(
            example("GET /nope HTTP/1.0\r\n\r\n"),
            json!(format!("http://localhost:{}/index", service.address.port()))
        );
        // RFC 9112 section 3.2.2: the target's authority stands in for Host.
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
    fn methods() {
        let service = Timber::start(&[]);
        let method = |method: &str, path: &str| {
            service.ask(format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\n\r\n"))
        };
        for path in ["/index", "/healthz", "/readyz", "/version", "/metrics", "/openapi.json"] {
            for name in ["POST", "PUT", "DELETE", "PATCH", "TRACE"] {
                let answer = method(name, path);
                assert_eq!((answer.status, answer.text().as_str()), (405, ""), "{name} {path}");
                assert_eq!(answer.header("allow"), Some("GET, HEAD, OPTIONS"), "{name} {path}");
            }
            let options = method("OPTIONS", path);
            assert_eq!((options.status, options.text().as_str()), (200, ""), "OPTIONS {path}");
            assert_eq!(options.header("allow"), Some("GET, HEAD, OPTIONS"), "OPTIONS {path}");
            let unknown = method("BREW", path);
            assert_eq!(unknown.status, 501, "BREW {path}");
            assert_eq!(unknown.text(), r#"{"errors": {"Not Implemented": "Invalid HTTP method"}}"#);
        }
        assert_eq!(method("OPTIONS", "*").header("allow"), Some("GET, HEAD, OPTIONS"));
    }

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
            assert_eq!(without_date(head), without_date(service.get(path)), "{path}");
            // Had there been a body, it would be read as the start of this answer.
            assert_eq!(ask(&mut stream, get("/index")).status, 200, "after HEAD {path}");
        }
    }

    #[test]
    fn refuses_what_is_no_request_for_it_in_the_original_s_shape() {
        let service = Timber::start(&[]);
        for (status, request) in [
            (400, "GET /index HTTP/1.1\r\n\r\n"),
            (400, "GET /index HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n"),
            (400, "GET /index HTTP/1.1\r\nHost: a b\r\n\r\n"),
            (400, "GET /index HTTP/1.1\r\nHost: a\"b\r\n\r\n"),
            (400, "GET index HTTP/1.1\r\nHost: a\r\n\r\n"),
            (400, "CONNECT /index HTTP/1.1\r\nHost: a\r\n\r\n"),
            (501, "CONNECT oak.test:443 HTTP/1.1\r\nHost: oak.test:443\r\n\r\n"),
        ] {
            let answer = service.ask(request);
            assert_eq!(answer.status, status, "{request}");
            assert_eq!(answer.header("content-type"), Some(JSON), "{request}");
            let errors = answer.json();
            let errors = errors["errors"].as_object().unwrap();
            assert!(errors.len() == 1 && errors.values().all(Value::is_string), "{request}: {errors:?}");
        }
    }

    #[test]
    fn what_hyper_refuses_by_itself_is_counted_and_logged() {
        let service = Timber::start(&[]);
        for (status, request) in [
            (400, "GET /index HTTP/1.1\r\nHost : a\r\n\r\n".to_owned()),
            (400, "GET /index HTTP/3.1\r\nHost: a\r\n\r\n".to_owned()),
            (431, format!("GET /index HTTP/1.1\r\nHost: a\r\nX: {}\r\n\r\n", "x".repeat(20_000))),
        ] {
            assert_eq!(service.ask(&request).status, status, "{request}");
            let line = service.event("Refused");
            assert!(line.contains(&format!("127.0.0.1 sent with {status}: ")), "{line}");
        }
        assert!(
            service.get("/metrics").text().contains("http_requests_total{route=\"other\",code=\"4xx\"} 3\n")
        );
    }

    #[test]
    fn persistence_and_pipelining() {
        let service = Timber::start(&[]);
        let mut kept = service.connect();
        for _ in 0..3 {
            assert_eq!(ask(&mut kept, get("/index")).status, 200);
        }
        kept.write_all((get("/index") + &get("/nope") + &get("/healthz")).as_bytes()).unwrap();
        let answers = [(); 3].map(|()| Answer::read(&mut kept, false).status);
        assert_eq!(answers, [200, 404, 200]);

        let mut old = service.connect();
        assert_eq!(ask(&mut old, "GET /index HTTP/1.0\r\n\r\n").status, 200);
        assert!(is_closed(&mut old));
        let mut old = service.connect();
        for _ in 0..2 {
            let answer = ask(&mut old, "GET /index HTTP/1.0\r\nConnection: keep-alive\r\n\r\n");
            assert_eq!((answer.status, answer.header("connection")), (200, Some("keep-alive")));
        }
        let mut last = service.connect();
        let answer = ask(&mut last, "GET /index HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
        assert_eq!((answer.status, answer.header("connection")), (200, Some("close")));
        assert!(is_closed(&mut last));
    }

    #[test]
    fn a_body_that_nobody_wants_costs_no_answer() {
        let service = Timber::start(&[]);
        let mut stream = service.connect();
        let body = "x".repeat(20_000);
        for _ in 0..2 {
            let request =
                format!("POST /nope HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n{body}", body.len());
            assert_eq!(ask(&mut stream, request).status, 404);
        }
        // Bodies in a row, each read while the next request is already being answered.
        let pair =
            format!("POST /nope HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\n123456789{}", get("/index"));
        stream.write_all(pair.repeat(5).as_bytes()).unwrap();
        for _ in 0..5 {
            assert_eq!([(); 2].map(|()| Answer::read(&mut stream, false).status), [404, 200]);
        }
        assert_eq!(service.metric("http_requests_in_flight"), "1", "the scrape itself");
        // Announced but not sent: the answer does not wait for it.
        let request = "GET /index HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\n";
        assert_eq!(service.ask(request).status, 200);
        // Too long to be read for nothing: the answer says that the connection ends.
        let request = "POST /index HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000000\r\n\r\n";
        let answer = service.ask(request);
        assert_eq!((answer.status, answer.header("connection")), (405, Some("close")));
        // Offered and declined: a final answer instead of 100 Continue (RFC 9110 section 10.1.1).
        let request = "POST /index HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\nExpect: 100-continue\r\n\r\n";
        let answer = service.ask(request);
        assert_eq!((answer.status, answer.header("connection")), (405, Some("close")));
    }

    #[test]
    fn a_browser_gets_a_page_at_the_root() {
        let service = Timber::start(&["--release", "<7>"]);
        let at_root =
            |accept: &str| service.ask(format!("GET / HTTP/1.1\r\nHost: a\r\nAccept: {accept}\r\n\r\n"));
        for accept in
            ["text/html", "text/html,application/xhtml+xml,*/*;q=0.8", "image/webp, TEXT/HTML; q=0.5"]
        {
            let page = at_root(accept);
            assert_eq!((page.status, page.header("content-type")), (200, Some("text/html; charset=utf-8")));
            let text = page.text();
            for part in [
                "release &lt;7&gt;",
                env!("CARGO_PKG_VERSION"),
                &service.child.id().to_string(),
                "\"/index\"",
            ] {
                assert!(text.contains(part), "{part} is not in {text}");
            }
            assert!(!text.contains('{') || !text.contains("{release}"), "{text}");
            assert!(!text.contains("//"), "the page names another host: {text}");
        }
        for accept in ["*/*", "application/json", "text/html;q=0", "text/html; q=0.00", "text/plain"] {
            let answer = at_root(accept);
            assert_eq!((answer.status, answer.header("vary")), (404, Some("accept")), "{accept}");
        }
        assert_eq!(service.ask("POST / HTTP/1.1\r\nHost: a\r\nAccept: text/html\r\n\r\n").status, 404);
    }
}

mod operations {
    use super::*;
    use prometheus_parse::{Scrape, Value as Sample};
    use roas::{v3_1::spec::Spec, validation::Validate};

    #[test]
    fn health_and_readiness() {
        let service = Timber::start(&[]);
        for path in ["/healthz", "/readyz"] {
            assert_eq!(service.get(path).status, 200);
        }
    }

    #[test]
    fn version_tells_what_is_running() {
        let service = Timber::spawn(timber().args(["-b", "127.0.0.1:0"]).env("TIMBER_RELEASE", "blue"));
        let version = service.get("/version").json();
        assert_eq!(version["name"], "timber");
        assert_eq!(version["version"], env!("CARGO_PKG_VERSION"));
        assert_eq!(version["release"], "blue");
        assert_eq!(version["pid"], service.child.id());
        let libc = version["libc"].as_str().unwrap();
        assert!(version["target"].as_str().unwrap().contains(libc), "{version}");
        let host_name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
        assert_eq!(version["hostname"], host_name.trim());
        assert!(version["uptime_seconds"].is_u64() && version["started"].as_str().unwrap().ends_with('Z'));
        assert!(version["revision"].is_null() || version["revision"].is_string());
    }

    #[test]
    fn a_prometheus_parser_reads_the_metrics() {
        let service = Timber::start(&["--release", "a \"b\"\\"]);
        for path in ["/index", "/index", "/nope", "/healthz"] {
            service.get(path);
        }
        let page = service.get("/metrics");
        assert_eq!(page.header("content-type"), Some("text/plain; version=0.0.4; charset=utf-8"));
        let scrape = Scrape::parse(page.text().lines().map(|line| Ok(line.to_owned()))).unwrap();
        let value = |name: &str, labels: &[(&str, &str)]| {
            let mut found = scrape.samples.iter().filter(|s| {
                s.metric == name && labels.iter().all(|(label, value)| s.labels.get(label) == Some(*value))
            });
            let sample = found.next().unwrap_or_else(|| panic!("no {name} {labels:?}")).value.clone();
            assert!(found.next().is_none(), "{name} {labels:?} is there twice");
            sample
        };
        let count = |route, code| value("http_requests_total", &[("route", route), ("code", code)]);
        assert_eq!(count("/index", "2xx"), Sample::Counter(2.0));
        assert_eq!(count("other", "4xx"), Sample::Counter(1.0));
        assert_eq!(count("/healthz", "2xx"), Sample::Counter(1.0));
        assert_eq!(value("http_requests_in_flight", &[]), Sample::Gauge(1.0));
        let Sample::Gauge(open) = value("http_connections_open", &[]) else { panic!("no gauge") };
        assert!(open >= 1.0);
        let Sample::Histogram(buckets) = value("http_request_duration_seconds", &[]) else {
            panic!("no histogram")
        };
        assert!(buckets.is_sorted_by(|a, b| a.less_than < b.less_than && a.count <= b.count), "{buckets:?}");
        assert_eq!(buckets.last().map(|b| (b.less_than, b.count)), Some((f64::INFINITY, 4.0)));
        let Sample::Gauge(memory) = value("process_resident_memory_bytes", &[]) else { panic!("no gauge") };
        assert!((100e3..100e6).contains(&memory), "{memory} bytes resident");
        let Sample::Gauge(start) = value("process_start_time_seconds", &[]) else { panic!("no gauge") };
        let now = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs_f64();
        assert!((now - 60.0..=now).contains(&start), "started at {start}, now is {now}");
    }

    #[test]
    fn the_openapi_document_is_valid_and_lists_what_is_served() {
        let service = Timber::start(&[]);
        let document = service.get("/openapi.json");
        let spec: Spec = serde_json::from_slice(&document.body).unwrap();
        spec.validate(roas::validation::Options::new(), None).unwrap();

        let document = document.json();
        let paths = document["paths"].as_object().unwrap();
        assert_eq!(paths.len(), 7);
        for (path, item) in paths {
            let answer = service.ask(format!("GET {path} HTTP/1.1\r\nHost: a\r\nAccept: text/html\r\n\r\n"));
            let content = &item["get"]["responses"][answer.status.to_string()]["content"];
            let content_type = answer.header("content-type").unwrap().split(';').next().unwrap();
            assert!(content[content_type].is_object(), "{path}: {content_type} is not in {content}");
        }
    }
}

mod configuration {
    use super::*;

    fn run(arguments: &[&str], variables: &[(&str, &str)]) -> (Option<i32>, String, String) {
        let Output { status, stdout, stderr } =
            run_to_end(timber().args(arguments).envs(variables.iter().copied()));
        let text = |bytes| String::from_utf8(bytes).unwrap();
        (status.code(), text(stdout), text(stderr))
    }

    #[test]
    fn version_and_help() {
        let version = concat!("timber ", env!("CARGO_PKG_VERSION"), "\n");
        assert_eq!(run(&["--version"], &[]), (Some(0), version.to_owned(), String::new()));
        let (code, help, _) = run(&["--help"], &[]);
        assert_eq!(code, Some(0));
        for part in
            ["-b, --bind HOST:PORT", "TIMBER_BIND", "healthcheck", "[:8000]", "[75s]", "2 bad configuration"]
        {
            assert!(help.contains(part), "{part} is not in {help}");
        }
    }

    /// The table is for people, the help text is the truth.
    #[test]
    fn the_readme_lists_the_settings_of_the_help_text() {
        let (_, help, _) = run(&["--help"], &[]);
        let readme = include_str!("../README.md");
        for line in help.lines().filter(|line| line.contains("TIMBER_") || line.contains(" PORT ")) {
            let words: Vec<_> = line.split_whitespace().collect();
            let variable = words.iter().find(|word| word.starts_with("TIMBER_") || **word == "PORT").unwrap();
            let row =
                readme.lines().find(|row| row.starts_with('|') && row.contains(&format!("`{variable}`")));
            let row = row.unwrap_or_else(|| panic!("README.md has no row for {variable}"));
            for flag in words.iter().filter(|word| word.starts_with("--")) {
                assert!(row.contains(*flag), "{flag} is not in {row}");
            }
            let default = line.rsplit_once('[').unwrap().1.trim_end_matches(']');
            assert!(row.contains(default), "the default {default} is not in {row}");
        }
    }

    #[test]
    fn all_mistakes_are_told_at_once() {
        let (code, stdout, stderr) = run(
            &[
                "--workers",
                "none",
                "--frobnicate",
                "-b",
                "127.0.0.1:http",
                "serve",
                "--idle-timeout=0",
                "--log-format",
            ],
            &[
                ("TIMBER_DRAIN_DELAY", "soon"),
                ("PORT", "70000"),
                ("TIMBER_COLOUR", "blue"),
                ("TIMBER_RELEASE", ""),
            ],
        );
        assert_eq!((code, stdout.as_str()), (Some(2), ""));
        for part in [
            r#"--workers "none": expected a whole number"#,
            r#"--frobnicate "": expected one of the settings"#,
            r#"-b "127.0.0.1:http": expected HOST:PORT"#,
            r#"serve "": expected one of the settings"#,
            r#"--idle-timeout "0": expected seconds or milliseconds above 0"#,
            r#"--log-format "": expected text or json"#,
            r#"TIMBER_DRAIN_DELAY "soon": expected seconds"#,
            r#"PORT "70000": expected a port number"#,
            r#"TIMBER_COLOUR "blue": expected one of the settings"#,
            r#"TIMBER_RELEASE "": expected a label"#,
        ] {
            assert!(
                stderr.lines().any(|line| line.starts_with(&format!("timber: {part}"))),
                "{part}: {stderr}"
            );
        }
        assert_eq!(stderr.lines().count(), 10, "{stderr}");
    }

    #[test]
    fn a_flag_beats_its_variable_which_beats_the_default() {
        let release = |arguments: &[&str], variable: Option<&str>| {
            let mut command = timber();
            command.args(["-b", "127.0.0.1:0"]).args(arguments);
            command.envs(variable.map(|value| ("TIMBER_RELEASE", value)));
            Timber::spawn(&mut command).get("/version").json()["release"].clone()
        };
        assert_eq!(release(&[], None), "dev");
        assert_eq!(release(&[], Some("variable")), "variable");
        assert_eq!(release(&["--release", "flag"], Some("variable")), "flag");
    }

    #[test]
    fn the_platform_s_port_yields_to_the_address_s() {
        let free = || TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port().to_string();
        let (port, other) = (free(), free());
        let service = Timber::spawn(timber().env("PORT", &port));
        assert_eq!(service.address.port().to_string(), port);
        assert_eq!(service.get("/index").status, 200);
        let bind = format!("127.0.0.1:{other}");
        let service = Timber::spawn(timber().env("PORT", &port).env("TIMBER_BIND", &bind));
        assert_eq!(service.address.port().to_string(), other);
    }

    #[test]
    fn variables_that_a_cluster_adds_are_no_mistakes() {
        let variables = [
            ("TIMBER_PORT", "tcp://10.96.0.7:80"),
            ("TIMBER_SERVICE_HOST", "10.96.0.7"),
            ("TIMBER_SERVICE_PORT", "80"),
            ("TIMBER_PORT_80_TCP_ADDR", "10.96.0.7"),
            ("TIMBER_TUTORIAL_SERVICE_PORT_HTTP", "80"),
        ];
        Timber::spawn(timber().args(["-b", "127.0.0.1:0"]).envs(variables));
        assert_eq!(run(&[], &[("TIMBER_PORT", "9000")]).0, Some(2), "a port that someone meant");
    }

    #[test]
    fn all_interfaces_means_both_families_where_there_are_two() {
        let service = Timber::spawn(timber().args(["-b", ":0"]));
        let port = service.address.port();
        assert_eq!(ask(&mut connect(([127, 0, 0, 1], port).into()), get("/index")).status, 200);
        let line = service.start.last().unwrap();
        if TcpListener::bind((Ipv6Addr::LOCALHOST, 0)).is_ok() {
            assert!(line.contains("http://[::]:"), "{line}");
            assert_eq!(ask(&mut connect((Ipv6Addr::LOCALHOST, port).into()), get("/index")).status, 200);
        } else {
            assert!(line.contains("http://0.0.0.0:"), "{line}");
        }
    }

    #[test]
    fn what_cannot_be_listened_at_is_one_clear_line() {
        let first = Timber::start(&[]);
        let taken = first.address.to_string();
        for (bind, part) in [
            (taken.as_str(), "another process listens there"),
            ("300.1.2.3:8000", "expected an IPv4 or IPv6 address, or localhost"),
            ("192.0.2.1:8000", "no interface of this host has that address"),
        ] {
            let (code, stdout, stderr) = run(&["-b", bind], &[]);
            assert_eq!((code, stdout.as_str(), stderr.lines().count()), (Some(1), "", 1), "{bind}: {stderr}");
            assert!(
                stderr.contains(part) && stderr.contains(bind.rsplit_once(':').unwrap().0),
                "{bind}: {stderr}"
            );
        }
        assert_eq!(first.get("/index").status, 200);
    }

    #[test]
    fn a_low_limit_of_open_files_lowers_the_connection_limit() {
        let mut command = Command::new("sh");
        command.args([
            "-c",
            "ulimit -n 28; exec \"$0\" -b 127.0.0.1:0 --workers 1",
            env!("CARGO_BIN_EXE_timber"),
        ]);
        let service = Timber::spawn(command.stdout(Stdio::piped()).stderr(Stdio::piped()));
        let warning = service.start.iter().find(|line| line.contains("[WARNING]")).expect("a warning");
        assert!(warning.contains("Serving 8 connections at once, not 10000"), "{warning}");
        let mut kept: Vec<_> = (0..8).map(|_| service.connect()).collect();
        for stream in &mut kept {
            assert_eq!(ask(stream, get("/index")).status, 200);
        }
        waits_for(&service, || drop(kept.pop()));

        for files in [8, 12, 20] {
            let mut command = Command::new("sh");
            let script = format!("ulimit -n {files}; exec \"$0\" -b 127.0.0.1:0 --workers 1");
            command.args(["-c", &script, env!("CARGO_BIN_EXE_timber")]);
            let output = run_to_end(command.stdout(Stdio::piped()).stderr(Stdio::piped()));
            let stderr = String::from_utf8(output.stderr).unwrap();
            assert_eq!((output.status.code(), stderr.lines().count()), (Some(1), 1), "{stderr}");
            let explained = ["Too many open files", "files (ulimit -n), and needs more than 20"];
            assert!(explained.iter().any(|part| stderr.contains(part)), "{stderr}");
        }
    }
}

mod limits {
    use super::*;

    #[test]
    fn a_client_that_sends_no_head_or_half_of_one_is_closed() {
        let service = Timber::start(&["--header-timeout", "300ms", "--idle-timeout", "60s"]);
        for beginning in ["", "GET /index HT", "GET /index HTTP/1.1\r\nHost: a\r\n"] {
            let mut stream = service.connect();
            stream.write_all(beginning.as_bytes()).unwrap();
            let start = Instant::now();
            assert!(is_closed(&mut stream), "{beginning:?} is answered");
            assert!(
                start.elapsed() < Duration::from_secs(3),
                "{beginning:?} held it for {:?}",
                start.elapsed()
            );
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
}

mod logs {
    use super::*;

    #[test]
    fn start_up_lines() {
        let service = Timber::start(&["--workers", "2"]);
        let pid = service.child.id();
        let line = service.start.first().unwrap();
        assert!(
            line.contains(&format!("[{pid}] [INFO] Starting timber {}", env!("CARGO_PKG_VERSION"))),
            "{line}"
        );
        assert!(line.starts_with("[20") && line[11..].contains(" +0000] ["), "{line}");
        let line = service.start.last().unwrap();
        assert!(line.ends_with(&format!("Listening at: http://{} ({pid})", service.address)), "{line}");
        service.event("Using workers: 2");
        let line = service.event("User ");
        assert!(
            line.contains("root file system") && line.contains("memory limit") && line.contains("CPU limit")
        );
        service.event(&format!("Process {pid}"));
    }

    #[test]
    fn access_lines_have_the_original_s_form() {
        let service = Timber::start(&[]);
        service.get("/index?a=%22");
        let line = service.request("GET");
        let (client, rest) = line.split_once(" - - [").unwrap();
        let (time, rest) = rest.split_once("] ").unwrap();
        assert_eq!((client, rest), ("127.0.0.1", r#""GET /index?a=%22 HTTP/1.1" 200 26"#));
        let shape: String = time.chars().map(|c| if c.is_ascii_digit() { '9' } else { c }).collect();
        assert!(shape.starts_with("99/") && shape.ends_with("/9999 99:99:99"), "{time}");

        service.get("/healthz");
        service.get("/readyz");
        service.get("/metrics");
        service.ask("POST /nope HTTP/1.1\r\nHost: a\r\n\r\n");
        assert!(service.request(" ").contains(r#""POST /nope HTTP/1.1" 404 572"#), "probes are left out");
        ask(&mut service.connect(), "HEAD /index HTTP/1.1\r\nHost: a\r\n\r\n");
        assert!(service.request(" ").ends_with(r#""HEAD /index HTTP/1.1" 200 0"#));
        // A quote is allowed in hyper's eyes.
        service.get("/a\"b");
        assert!(service.request(" ").contains(r#""GET /a\x22b HTTP/1.1" 404"#));
    }

    #[test]
    fn which_requests_are_logged() {
        let service = Timber::start(&["--access-log", "all"]);
        service.get("/healthz");
        service.request("GET /healthz HTTP/1.1");
        let mut service = Timber::start(&["--no-access-log"]);
        service.get("/index");
        service.signal(Signal::TERM);
        service.wait();
        assert_eq!(service.remaining_requests(), [""; 0]);
    }

    #[test]
    fn lines_in_json() {
        let service = Timber::start(&["--log-format", "json"]);
        let event: Value = serde_json::from_str(service.start.last().unwrap()).unwrap();
        assert_eq!((&event["level"], &event["pid"]), (&json!("INFO"), &json!(service.child.id())));
        assert!(event["message"].as_str().unwrap().starts_with("Listening at: http://127.0.0.1:"), "{event}");
        service.get("/a\"b?c");
        let request: Value = serde_json::from_str(&service.request("GET")).unwrap();
        let time = request["time"].as_str().unwrap();
        assert!(
            time.len() == 20 && time.ends_with('Z') && event["time"].as_str().unwrap() <= time,
            "{request}"
        );
        let expected = json!({
            "time": time, "client": "127.0.0.1", "method": "GET", "target": "/a\"b?c", "version": "HTTP/1.1",
            "status": 404, "bytes": 585,
        });
        assert_eq!(request, expected);
    }

    /// What cannot be written is counted, and nobody waits for it.
    #[test]
    fn a_reader_that_has_gone_or_stopped_reading_does_not_matter() {
        let (reader, gone) = std::io::pipe().unwrap();
        drop(reader);
        let (stalled, writer) = std::io::pipe().unwrap();
        for (name, stdout) in [("gone", Stdio::from(gone)), ("stalled", Stdio::from(writer))] {
            let mut service = Timber::spawn(timber().args(["-b", "127.0.0.1:0"]).stdout(stdout));
            let mut stream = service.connect();
            // Twice the pipe and the buffer together.
            let path = format!("/{}", "x".repeat(4000));
            let start = Instant::now();
            for _ in 0..100 {
                assert_eq!(ask(&mut stream, get(&path)).status, 404, "{name}");
            }
            assert!(start.elapsed() < Duration::from_secs(10), "{name}: {:?}", start.elapsed());
            assert!(service.metric("timber_log_lines_dropped_total") != "0", "{name}");
            service.signal(Signal::TERM);
            let (status, took) = service.wait();
            assert_eq!(status.code(), Some(0), "{name}");
            assert!(took < Duration::from_secs(5), "{name}: {took:?}");
        }
        drop(stalled);
    }

    #[test]
    fn an_unwritable_standard_output_does_not_matter() {
        let full = File::options().write(true).open("/dev/full").unwrap();
        let service = Timber::spawn(timber().args(["-b", "127.0.0.1:0"]).stdout(full));
        assert_eq!(service.get("/index").status, 200);
        let deadline = Instant::now() + SOON;
        while service.metric("timber_log_lines_dropped_total") == "0" {
            assert!(Instant::now() < deadline, "the line is not counted");
        }
        let mut command = Command::new("sh");
        command.args(["-c", "exec \"$0\" -b 127.0.0.1:0 >&-", env!("CARGO_BIN_EXE_timber")]);
        let service = Timber::spawn(command.stderr(Stdio::piped()));
        assert_eq!(service.get("/index").status, 200);
    }
}

mod shut_down {
    use super::*;

    fn stop(arguments: &[&str], signal: Signal) -> (Option<i32>, Duration) {
        let mut service = Timber::start(arguments);
        assert_eq!(service.get("/index").status, 200);
        service.signal(signal);
        let (status, took) = service.wait();
        (status.code(), took)
    }

    #[test]
    fn each_signal_that_means_stop_stops_an_idle_service_at_once() {
        for signal in [Signal::TERM, Signal::INT, Signal::QUIT] {
            let (code, took) = stop(&[], signal);
            assert_eq!(code, Some(0), "{signal:?}");
            assert!(took < Duration::from_secs(1), "{signal:?} took {took:?}");
        }
    }

    #[test]
    fn a_hangup_does_not_stop_it() {
        let service = Timber::start(&[]);
        service.signal(Signal::HUP);
        service.signal(Signal::HUP);
        thread::sleep(Duration::from_millis(200));
        assert_eq!(service.get("/index").status, 200);
    }

    #[test]
    fn kept_connections_do_not_delay_it() {
        let mut service = Timber::start(&[]);
        let mut kept: Vec<_> = (0..10).map(|_| service.connect()).collect();
        for stream in &mut kept {
            assert_eq!(ask(stream, get("/index")).status, 200);
        }
        let silent = service.connect();
        service.signal(Signal::TERM);
        let (status, took) = service.wait();
        assert_eq!(status.code(), Some(0));
        assert!(took < Duration::from_secs(1), "{took:?}");
        drop(silent);
    }

    /// The original did that too, if it was asked with SIGTERM.
    #[test]
    fn a_request_half_sent_is_still_answered() {
        let mut service = Timber::start(&[]);
        let request = get("/index");
        let (first, second) = request.split_at(20);
        let mut new = service.connect();
        new.write_all(first.as_bytes()).unwrap();
        let mut kept = service.connect();
        assert_eq!(ask(&mut kept, get("/index")).status, 200);
        kept.write_all(first.as_bytes()).unwrap();
        let mut pipelined = service.connect();
        assert_eq!(ask(&mut pipelined, get("/index") + first).status, 200);
        thread::sleep(Duration::from_millis(100)); // the first halves have to be read before the signal
        service.signal(Signal::TERM);
        service.event("Handling signal: term");
        thread::sleep(Duration::from_millis(500));
        for stream in [&mut new, &mut kept, &mut pipelined] {
            let answer = ask(stream, second);
            assert_eq!((answer.status, answer.header("connection")), (200, Some("close")));
            assert!(is_closed(stream));
        }
        assert_eq!(service.wait().0.code(), Some(0));
        assert!(service.event("Shutting down").contains("3 requests finished"));
    }

    #[test]
    fn the_deadline_cuts_what_does_not_end() {
        let mut service = Timber::start(&["--drain-deadline", "500ms"]);
        let mut stream = service.connect();
        stream.write_all(b"GET /index HTTP").unwrap();
        thread::sleep(Duration::from_millis(100));
        service.signal(Signal::TERM);
        let (status, took) = service.wait();
        assert_eq!(status.code(), Some(1));
        assert!((Duration::from_millis(400)..Duration::from_secs(3)).contains(&took), "{took:?}");
        assert!(service.event("Shutting down").contains("1 connections cut"));
    }

    #[test]
    fn a_second_signal_ends_it_at_once() {
        let mut service = Timber::start(&["--drain-delay", "30s"]);
        service.signal(Signal::TERM);
        service.event("Handling signal: term");
        service.signal(Signal::INT);
        let (status, took) = service.wait();
        assert_eq!(status.code(), Some(1));
        assert!(took < Duration::from_secs(2), "{took:?}");
    }

    #[test]
    fn during_the_delay_it_serves_but_is_not_ready() {
        let mut service = Timber::start(&["--drain-delay", "1s"]);
        let mut kept = service.connect();
        assert_eq!(ask(&mut kept, get("/index")).header("connection"), None);
        service.signal(Signal::TERM);
        service.event("Handling signal: term");
        let unready = service.get("/readyz");
        assert_eq!(unready.status, 503);
        assert!(unready.json()["errors"]["Service Unavailable"].is_string());
        assert_eq!(service.get("/healthz").status, 200);
        for answer in [ask(&mut kept, get("/index")), service.get("/index")] {
            assert_eq!((answer.status, answer.header("connection")), (200, Some("close")));
        }
        let (status, took) = service.wait();
        assert_eq!(status.code(), Some(0));
        assert!((Duration::from_millis(500)..Duration::from_secs(4)).contains(&took), "{took:?}");
        assert!(TcpStream::connect(service.address).is_err(), "the port is still open");
    }

    /// 200 clients that open a connection for each request, and 200 that keep theirs, are at it when the signal
    /// comes. A connection that was made is answered: its handshake was in the accept queue if nowhere else.
    #[test]
    fn nothing_is_lost_under_load() {
        const STOPS: usize = 20;
        let (mut lost, mut kept_lost) = (0, 0);
        for _ in 0..STOPS {
            let mut service = Timber::start(&["--no-access-log"]);
            let address = service.address;
            let new = (0..200).map(|_| thread::spawn(move || connection_per_request(address)));
            let new: Vec<_> = new.collect();
            let kept: Vec<_> = (0..200).map(|_| thread::spawn(move || connection_kept(address))).collect();
            thread::sleep(Duration::from_millis(300));
            service.signal(Signal::TERM);
            assert_eq!(service.wait().0.code(), Some(0));
            lost += new.into_iter().map(|client| client.join().unwrap()).sum::<usize>();
            kept_lost += kept.into_iter().map(|client| client.join().unwrap()).sum::<usize>();
        }
        println!("{STOPS} stops: {lost} lost on new connections, {kept_lost} on kept ones");
        assert_eq!(lost, 0, "requests on new connections");
        assert!(kept_lost <= STOPS / 4, "{kept_lost} requests on kept connections");
    }

    /// Requests that were not answered, until the port is closed.
    fn connection_per_request(address: SocketAddr) -> usize {
        // Once the stop has begun, the kernel ignores who wants to connect, and then refuses it.
        while let Ok(mut stream) = TcpStream::connect_timeout(&address, Duration::from_millis(200)) {
            stream.set_read_timeout(Some(SOON)).unwrap();
            let mut answer = Vec::new();
            let request = "GET /index HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
            let asked = stream.write_all(request.as_bytes()).and_then(|()| stream.read_to_end(&mut answer));
            if asked.is_err() || !answer.ends_with(b"\r\n\r\n{\"timber\": \"so delicious\"}") {
                return 1;
            }
        }
        0
    }

    /// One when the connection was closed on a request that was sent, and no answer before had announced that.
    fn connection_kept(address: SocketAddr) -> usize {
        let Ok(mut stream) = TcpStream::connect(address) else { return 0 };
        stream.set_read_timeout(Some(SOON)).unwrap();
        let request = get("/index");
        loop {
            let mut answer = [0; 1024];
            match stream.write_all(request.as_bytes()).and_then(|()| stream.read(&mut answer)) {
                Ok(n) if answer[..n].ends_with(b"so delicious\"}") => {
                    if answer[..n].windows(17).any(|part| part == b"connection: close") {
                        return 0;
                    }
                }
                _ => return 1,
            }
        }
    }
}

mod healthcheck {
    use super::*;

    fn probe(arguments: &[&str], variables: &BTreeMap<&str, String>) -> (Option<i32>, String) {
        let output = run_to_end(timber().arg("healthcheck").args(arguments).envs(variables));
        let text = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
        assert_eq!(text.lines().count(), 1, "{text}");
        (output.status.code(), text)
    }

    #[test]
    fn probes_what_the_same_configuration_would_serve() {
        let service = Timber::spawn(timber().args(["-b", ":0"]));
        let port = service.address.port();
        for variables in [
            BTreeMap::from([("PORT", port.to_string())]),
            BTreeMap::from([("TIMBER_BIND", format!(":{port}"))]),
            BTreeMap::from([("TIMBER_BIND", format!("0.0.0.0:{port}"))]),
            BTreeMap::from([("TIMBER_BIND", format!("127.0.0.1:{port}")), ("PORT", "1".to_owned())]),
            BTreeMap::from([("TIMBER_BIND", format!("localhost:{port}"))]),
        ] {
            let (code, line) = probe(&[], &variables);
            assert_eq!(code, Some(0), "{variables:?}: {line}");
            assert!(line.starts_with("healthy: http://") && line.contains("/healthz answered 200"), "{line}");
        }
        let none = BTreeMap::new();
        assert_eq!(probe(&["-b", &format!(":{port}")], &none).0, Some(0));
        assert_eq!(probe(&[&format!("http://127.0.0.1:{port}/readyz")], &none).0, Some(0));
        let (code, line) = probe(&[&format!("http://127.0.0.1:{port}/nope")], &none);
        assert_eq!(code, Some(1));
        assert!(line.contains("answered 404, expected 200"), "{line}");
    }

    #[test]
    fn says_why_it_is_not_healthy() {
        let silent = TcpListener::bind("127.0.0.1:0").unwrap();
        let none = BTreeMap::new();
        let address = silent.local_addr().unwrap();
        let start = Instant::now();
        let (code, line) = probe(&["-b", &address.to_string()], &none);
        assert_eq!(code, Some(1));
        assert!(line.contains("no answer within 2s"), "{line}");
        assert!(start.elapsed() < Duration::from_secs(6), "{:?}", start.elapsed());
        drop(silent);

        let refused = format!("http://{address}");
        for (url, part) in [
            (refused.as_str(), "refused"),
            ("https://localhost", "expected http://ADDRESS"),
            ("localhost:8000", "expected http://ADDRESS"),
            ("http://", "expected http://ADDRESS"),
            ("http://a\r\nb", "expected http://ADDRESS"),
        ] {
            let (code, line) = probe(&[url], &none);
            assert_eq!(code, Some(1), "{url}: {line}");
            assert!(line.contains(part), "{url}: {line}");
        }
        let (code, line) = probe(&[], &BTreeMap::from([("PORT", "http".to_owned())]));
        assert_eq!((code, line.contains("PORT \"http\"")), (Some(1), true), "{line}");
    }
}
