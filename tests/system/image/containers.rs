//! Containers of the images, as users see them.

use super::*;

/// Maximum time from the command to the end of the container. Usually it takes 0.2 s.
const AT_ONCE: Duration = Duration::from_secs(1);

const HARDENED: &str = "--read-only --cap-drop ALL --security-opt no-new-privileges --user 12345 --pids-limit 16 \
                        --cpus 0.5";

#[test]
#[ignore = "needs Docker Engine"]
fn the_api_is_served_through_a_published_port() {
    for release in RELEASES {
        let container = Container::serve(&image(release), "", "");
        let index = container.get("/index");
        assert_eq!(
            (index.status, index.text().as_str()),
            (200, r#"{"timber": "so delicious"}"#)
        );
        let version = container.get("/version").json();
        let libc = if release == 1 { "gnu" } else { "musl" };
        for (key, value) in [
            ("release", json!(release.to_string())),
            ("libc", json!(libc)),
            ("pid", json!(1)),
        ] {
            assert_eq!(version[key], value, "{key} of image {release}");
        }
    }
}

#[test]
#[ignore = "needs Docker Engine"]
fn docker_reports_the_health_of_the_service() {
    for release in RELEASES {
        is_healthy_if_it_serves(&image(release));
    }
}

pub fn is_healthy_if_it_serves(image: &str) {
    let served = Container::serve(image, "", "");
    // The health check uses the PORT of the image and does not know this flag.
    let lost = Container::serve(image, "--health-interval 1s", "--bind 127.0.0.1:9999");
    for (container, expected) in [(served, "healthy"), (lost, "unhealthy")] {
        let health = eventually("the first health checks", || {
            let health = inspect(&container.0, "State")["Health"].take();
            (health["Status"] != "starting").then_some(health)
        });
        assert_eq!(health["Status"], expected, "{health}");
    }
}

#[test]
#[ignore = "needs Docker Engine"]
fn stop_signals_stop_process_1_at_once() {
    for release in RELEASES {
        for how in ["stop", "kill --signal INT", "kill --signal QUIT"] {
            let container = Container::serve(&image(release), "", "");
            assert_eq!(container.get("/index").status, 200);
            let quiet = undisturbed();
            let start = Instant::now();
            docker(&format!("{how} {container}"));
            let code = container.exit_code();
            let took = start.elapsed();
            drop(quiet);
            println!("image {release}, docker {how}: exit code {code} after {took:?}");
            assert_eq!(code, 0, "{how}: {}", container.log());
            assert!(
                took < AT_ONCE,
                "image {release}, docker {how} took {took:?}"
            );
        }
    }
}

#[test]
#[ignore = "needs Docker Engine"]
fn ctrl_c_stops_a_container_in_the_foreground() {
    for release in RELEASES {
        let container = Container(format!("timber-test-{}-{release}", process::id()));
        let mut client = Command::new("docker");
        client.args([
            "run",
            "--label",
            "timber.test=true",
            "--name",
            &container.0,
            &image(release),
        ]);
        let mut client = Timber::spawn(
            client
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::piped()),
        );
        client.wait_for_event("PID 1");
        let quiet = undisturbed();
        client.signal(Signal::INT);
        let (status, took) = client.wait();
        drop(quiet);
        println!("image {release}, Ctrl-C: {status} after {took:?}");
        assert_eq!(status.code(), Some(0), "image {release}");
        assert!(took < AT_ONCE, "image {release}, Ctrl-C took {took:?}");
        assert_eq!(container.exit_code(), 0);
    }
}

#[test]
#[ignore = "needs Docker Engine"]
fn a_request_in_flight_at_docker_stop_finishes() {
    for release in RELEASES {
        finishes_a_request_in_flight(&image(release));
    }
}

pub fn finishes_a_request_in_flight(image: &str) {
    let container = Container::serve(image, "", "");
    let mut stream = connect(container.address());
    let request = get("/index");
    let (first, second) = request.split_at(20);
    stream.write_all(first.as_bytes()).unwrap();
    thread::sleep(Duration::from_millis(200)); // the service reads the first half before the signal
    thread::scope(|scope| {
        let stop = scope.spawn(|| docker(&format!("stop {container}")));
        container.wait_for("Handling signal: term");
        thread::sleep(Duration::from_millis(500)); // an idle service would have stopped by now
        let answer = exchange(&mut stream, second);
        assert_eq!(
            (answer.status, answer.header("connection")),
            (200, Some("close"))
        );
        stop.join().unwrap();
    });
    assert_eq!(container.exit_code(), 0, "{}", container.log());
}

#[test]
#[ignore = "needs Docker Engine"]
fn a_hardened_container_serves_and_logs_its_limits() {
    for release in RELEASES {
        serves_hardened_and_logs_its_limits(&image(release), 16);
    }
}

pub fn serves_hardened_and_logs_its_limits(image: &str, memory_mib: u32) {
    let limits = format!("memory limit {} KiB, CPU limit 0.500", memory_mib * 1024);
    for network in ["bridge", "none"] {
        let flags = format!("{HARDENED} --memory {memory_mib}m --network {network}");
        let container = Container::serve(image, &flags, "");
        docker(&format!("exec {container} /timber healthcheck"));
        let log = container.log();
        for fact in [
            "PID 1: SIGTERM handler installed",
            &format!("User 12345, root file system read-only, {limits}"),
            "Using workers: 1",
        ] {
            assert!(log.contains(fact), "{fact:?} is missing in {log}");
        }
    }
}

#[test]
#[ignore = "needs Docker Engine"]
fn does_not_start_with_fewer_workers_than_configured() {
    for release in RELEASES {
        // The log writer and the supervisor start, a second worker does not.
        let container = Container::run(&image(release), "--pids-limit 4", "--workers 8");
        assert_eq!(container.exit_code(), 1);
        let log = container.log();
        let errors: Vec<_> = log
            .lines()
            .filter(|line| line.starts_with("timber: "))
            .collect();
        assert!(
            errors.len() == 1 && errors[0].contains("cannot start worker "),
            "{log}"
        );
    }
}

#[test]
#[ignore = "needs Docker Engine"]
fn a_privileged_port_is_reported_in_one_line() {
    for release in RELEASES {
        let flags = "-e PORT=80 --cap-drop ALL --sysctl net.ipv4.ip_unprivileged_port_start=1024";
        let container = Container::run(&image(release), flags, "");
        assert_eq!(container.exit_code(), 1);
        let log = container.log();
        assert!(
            log.lines().count() == 1 && log.contains(":80: ") && log.contains("privilege"),
            "{log}"
        );
    }
}

#[test]
#[ignore = "needs Docker Engine"]
fn serves_without_ipv6_and_on_the_port_of_the_platform() {
    let dir = tempfile::tempdir().unwrap();
    let no_ipv6 = dir.path().join("no-ipv6.json");
    // A kernel without IPv6 returns EAFNOSUPPORT, 97, for a socket of family AF_INET6, 10.
    let rule = json!({"names": ["socket"], "action": "SCMP_ACT_ERRNO", "errnoRet": 97,
                      "args": [{"index": 0, "value": 10, "op": "SCMP_CMP_EQ"}]});
    fs::write(
        &no_ipv6,
        json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [rule]}).to_string(),
    )
    .unwrap();
    let no_ipv6 = format!("--security-opt seccomp={}", no_ipv6.display());
    for release in RELEASES {
        for (flags, address) in [
            (no_ipv6.as_str(), "0.0.0.0:8080"),
            ("--sysctl net.ipv6.conf.all.disable_ipv6=1", ":8080"), // binding [::] still works, and accepts IPv4
            ("-e PORT=9090 -p 127.0.0.1::9090", "[::]:9090"),
        ] {
            let container = Container::serve(&image(release), flags, "");
            let log = container.log();
            assert!(log.contains(&format!("{address} (1)")), "{flags}: {log}");
            assert_eq!(container.get("/index").status, 200, "{flags}");
            docker(&format!("exec {container} /timber healthcheck"));
        }
    }
}
