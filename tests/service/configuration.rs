//! Flags, variables, addresses and limits, valid and invalid.

use timber::config::{SETTINGS, Setting};

use super::*;

/// Returns the exit code, standard output and standard error.
fn run(arguments: &[&str], variables: &[(&str, &str)]) -> (Option<i32>, String, String) {
    let Output {
        status,
        stdout,
        stderr,
    } = run_to_completion(timber().args(arguments).envs(variables.iter().copied()));
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (status.code(), text(stdout), text(stderr))
}

#[test]
fn version_and_help_are_printed() {
    let version = concat!("timber ", env!("CARGO_PKG_VERSION"), "\n");
    assert_eq!(
        run(&["--version"], &[]),
        (Some(0), version.to_owned(), String::new())
    );
    let (code, help, _) = run(&["--help"], &[]);
    assert_eq!(code, Some(0));
    for part in [
        "-b, --bind HOST:PORT",
        "TIMBER_BIND",
        "healthcheck",
        "[env: TIMBER_BIND] [default: :8000]",
        "[default: 75s]",
        "2  Invalid configuration",
    ] {
        assert!(help.contains(part), "{part} is not in {help}");
    }
}

#[test]
fn docs_list_every_setting_as_the_help_text_does() {
    let docs = include_str!("../../docs/settings.md");
    let rows: Vec<_> = docs.lines().filter(|line| line.contains("` | ")).collect();
    let is_listed = |setting: &&Setting| !setting.flag.starts_with("--fault"); // docs/lessons.md has these
    let expected: Vec<_> = SETTINGS
        .iter()
        .filter(is_listed)
        .map(settings_row)
        .collect();
    assert_eq!(rows, expected, "docs/settings.md");
}

/// Returns the row of a setting in the table of docs/settings.md.
fn settings_row(setting: &Setting) -> String {
    let Setting {
        flag,
        value,
        variable,
        default,
        help,
        ..
    } = setting;
    let flag = match *flag {
        "" => "(none)".to_owned(),
        "--bind" => format!("`-b`, `--bind {value}`"),
        flag => format!("`{flag} {value}`"),
    };
    format!("| {flag} | `{variable}` | {default} | {help} |")
}

#[test]
fn all_configuration_errors_are_reported_at_once() {
    let (code, stdout, stderr) = run(
        &[
            "--workers",
            "none",
            "--frobnicate",
            "--release LABEL", // one argument, copied from the help text
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
        r#"invalid --workers "none": expected a whole number"#,
        "unknown flag --frobnicate: expected one that",
        "unknown flag --release LABEL: expected one that",
        r#"invalid -b "127.0.0.1:http": expected HOST:PORT"#,
        "unknown argument serve: expected one that",
        r#"invalid --idle-timeout "0": expected seconds or milliseconds above 0"#,
        r#"invalid --log-format "": expected text or json"#,
        r#"invalid TIMBER_DRAIN_DELAY "soon": expected seconds"#,
        r#"invalid PORT "70000": expected a port number"#,
        "unknown variable TIMBER_COLOUR: expected one that",
        r#"invalid TIMBER_RELEASE "": expected a label"#,
    ] {
        assert!(
            stderr
                .lines()
                .any(|line| line.starts_with(&format!("timber: {part}"))),
            "{part}: {stderr}"
        );
    }
    assert_eq!(stderr.lines().count(), 11, "{stderr}");
}

#[test]
fn flag_overrides_variable_and_variable_overrides_default() {
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
fn bind_address_overrides_the_port_variable() {
    let free_port = || {
        TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap()
            .port()
            .to_string()
    };
    let (port, other) = (free_port(), free_port());
    let service = Timber::spawn(timber().env("PORT", &port));
    assert_eq!(service.address.port().to_string(), port);
    assert_eq!(service.get("/index").status, 200);
    let bind = format!("127.0.0.1:{other}");
    let service = Timber::spawn(timber().env("PORT", &port).env("TIMBER_BIND", &bind));
    assert_eq!(service.address.port().to_string(), other);
}

#[test]
fn kubernetes_service_variables_are_ignored() {
    let variables = [
        ("TIMBER_PORT", "tcp://10.96.0.7:80"),
        ("TIMBER_SERVICE_HOST", "10.96.0.7"),
        ("TIMBER_SERVICE_PORT", "80"),
        ("TIMBER_PORT_80_TCP_ADDR", "10.96.0.7"),
        ("TIMBER_TUTORIAL_SERVICE_PORT_HTTP", "80"),
    ];
    Timber::spawn(timber().args(["-b", "127.0.0.1:0"]).envs(variables));
    assert_eq!(
        run(&[], &[("TIMBER_PORT", "9000")]).0,
        Some(2),
        "TIMBER_PORT with a port number is a mistake, not a Kubernetes variable"
    );
}

#[test]
fn default_address_serves_ipv4_and_ipv6() {
    let service = Timber::spawn(timber().args(["-b", ":0"]));
    let port = service.address.port();
    assert_eq!(
        exchange(&mut connect(([127, 0, 0, 1], port).into()), get("/index")).status,
        200
    );
    let line = service.startup_log.last().unwrap();
    if TcpListener::bind((Ipv6Addr::LOCALHOST, 0)).is_ok() {
        assert!(line.contains("http://[::]:"), "{line}");
        assert_eq!(
            exchange(
                &mut connect((Ipv6Addr::LOCALHOST, port).into()),
                get("/index")
            )
            .status,
            200
        );
    } else {
        assert!(line.contains("http://0.0.0.0:"), "{line}");
    }
}

#[test]
fn bind_error_is_one_line_with_the_address_and_the_reason() {
    let first = Timber::start(&[]);
    let occupied = first.address.to_string();
    for (bind, part) in [
        (occupied.as_str(), "another process is listening there"),
        (
            "300.1.2.3:8000",
            "expected an IPv4 or IPv6 address, or localhost",
        ),
        (
            "192.0.2.1:8000",
            "no interface of this host has that address",
        ),
    ] {
        let (code, stdout, stderr) = run(&["-b", bind], &[]);
        assert_eq!(
            (code, stdout.as_str(), stderr.lines().count()),
            (Some(1), "", 1),
            "{bind}: {stderr}"
        );
        assert!(
            stderr.contains(part) && stderr.contains(bind.rsplit_once(':').unwrap().0),
            "{bind}: {stderr}"
        );
    }
    assert_eq!(first.get("/index").status, 200);
}

#[test]
fn file_descriptor_limit_lowers_the_connection_limit() {
    let service = Timber::spawn(&mut shell(
        "ulimit -n 43; exec \"$0\" -b 127.0.0.1:0 --workers 1",
    ));
    let warning = service
        .startup_log
        .iter()
        .find(|line| line.contains("[WARNING]"))
        .expect("the startup log has a warning");
    assert!(
        warning.contains("Limiting connections to 8: file-descriptor limit"),
        "{warning}"
    );
    let mut keep_alive: Vec<_> = (0..8).map(|_| service.connect()).collect();
    for stream in &mut keep_alive {
        assert_eq!(exchange(stream, get("/index")).status, 200);
    }
    // None of them is parked yet.
    assert_eq!(service.get("/index").status, 503);
    drop(keep_alive.pop());
    assert_eq!(service.get("/index").status, 200);

    for files in [8, 12, 35] {
        let output = run_to_completion(&mut shell(&format!(
            "ulimit -n {files}; exec \"$0\" -b 127.0.0.1:0 --workers 1"
        )));
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(
            (output.status.code(), stderr.lines().count()),
            (Some(1), 1),
            "{stderr}"
        );
        let reasons = ["Too many open files", "expected more than 35"];
        assert!(reasons.iter().any(|part| stderr.contains(part)), "{stderr}");
    }
}
