//! The faults for teaching of docs/lessons.md, in the real process:
//! `cargo test --features faults --test faults`. What needs a container is in tests/system/swarm.

#[allow(dead_code, reason = "tests/service uses the rest")]
mod support;

use std::{
    fs, thread,
    time::{Duration, Instant},
};

use rustix::process::Signal;
use support::{Timber, exchange, get, run_to_completion, timber};

/// Statuses of `/index`, in the order of the requests on one connection.
fn statuses(timber: &Timber, count: usize) -> Vec<u16> {
    let mut stream = timber.connect();
    (0..count)
        .map(|_| exchange(&mut stream, get("/index")).status)
        .collect()
}

/// Starts the service and waits until it has announced the fault.
fn start(fault: &str) -> Timber {
    let timber = Timber::start(&["--fault", fault]);
    timber.wait_for_event(&format!("[WARNING] Fault for teaching: {fault}"));
    timber
}

#[test]
fn faults_are_announced_in_version_page_and_metrics() {
    let variable = [("TIMBER_FAULTS", "errors=0%,unready=1s/2s")];
    let mut command = timber();
    command.args(["-b", "127.0.0.1:0", "--fault", "unready=1s/1s"]);
    command.args(["--fault=leak=1MB/s/1MB"]).envs(variable);
    let timber = Timber::spawn(&mut command);
    let names = ["errors=0%", "unready=1s/1s", "leak=1MB/s/1MB"];
    for name in names {
        timber.wait_for_event(&format!("[WARNING] Fault for teaching: {name}"));
    }
    for path in ["/version", "/sample"] {
        assert_eq!(timber.get(path).json()["faults"], serde_json::json!(names));
    }
    let page = timber.exchange("GET / HTTP/1.1\r\nHost: a\r\nAccept: text/html\r\n\r\n");
    let banner = "<p role=\"alert\"><b>Faults for teaching:</b> errors=0%, unready=1s/1s, leak=1MB/s/1MB</p>";
    assert!(page.text().contains(banner), "{}", page.text());
    let metrics = timber.get("/metrics");
    for name in names {
        let metric = format!("timber_fault_active{{fault=\"{name}\"}}");
        assert_eq!(metrics.metric(&metric), "1");
    }
}

#[test]
fn without_a_fault_the_build_behaves_as_usual() {
    let mut timber = Timber::start(&[]);
    assert_eq!(
        timber.get("/version").json()["faults"],
        serde_json::json!([])
    );
    assert!(!timber.get("/metrics").text().contains("fault"));
    assert_eq!(timber.get("/readyz").status, 200);
    let page = timber.exchange("GET / HTTP/1.1\r\nHost: a\r\nAccept: text/html\r\n\r\n");
    assert!(!page.text().contains("Faults for teaching"));
    timber.signal(Signal::TERM);
    assert_eq!(timber.wait().0.code(), Some(0));
}

#[test]
fn invalid_faults_are_reported_like_other_settings() {
    for (fault, form) in [
        ("frobnicate", "expected ignore-sigterm, no-drain,"),
        ("unready,frobnicate", "expected ignore-sigterm, no-drain,"),
        ("", "expected ignore-sigterm, no-drain,"),
        ("errors", "expected ignore-sigterm, no-drain,"),
        ("no-drain=1", "expected ignore-sigterm, no-drain,"),
        ("errors=10", "expected errors=PERCENT"),
        ("errors=101%", "expected errors=PERCENT"),
        ("unready=30s/10s", "expected unready or unready=OFF/PERIOD"),
        ("unready=0s/10s", "expected unready or unready=OFF/PERIOD"),
        ("slow-start=soon", "expected slow-start=TIME"),
        ("leak=1MB", "expected leak=RATE"),
        ("leak=0MB/s", "expected leak=RATE"),
        ("leak=1MB/s/1GB", "expected leak=RATE"),
        ("exit=3", "expected exit=CODE@TIME"),
        ("exit=256@1s", "expected exit=CODE@TIME"),
    ] {
        let flag = run_to_completion(timber().args(["--fault", fault]));
        let variable = run_to_completion(timber().env("TIMBER_FAULTS", fault));
        for (output, name) in [(flag, "--fault"), (variable, "TIMBER_FAULTS")] {
            let stderr = String::from_utf8(output.stderr).unwrap();
            assert_eq!(output.status.code(), Some(2), "{fault}: {stderr}");
            let start = format!("timber: invalid {name} {fault:?}: {form}");
            assert!(stderr.starts_with(&start), "{start}\n{stderr}");
        }
    }
    let output = run_to_completion(timber().args(["--fault-seed", "-1"]));
    assert_eq!(output.status.code(), Some(2));
}

#[test]
fn ignore_sigterm_leaves_the_signal_its_default_action() {
    let mut timber = start("ignore-sigterm");
    // Of process 1 in a container, the kernel would discard the signal.
    assert!(!status_of(&timber).catches(15), "SIGTERM is caught");
    timber.signal(Signal::TERM);
    assert_eq!(terminated_by(&mut timber), Some(15));
}

#[test]
fn no_drain_ends_the_process_at_once() {
    // Longer than the test waits.
    let mut timber = Timber::start(&["--fault=no-drain", "--drain-delay=1000s"]);
    timber.wait_for_event("SIGTERM starts");
    let end = Instant::now() + Duration::from_secs(20);
    while !status_of(&timber).catches(15) {
        assert!(Instant::now() < end, "process 1 needs a handler");
        thread::sleep(Duration::from_millis(10));
    }
    timber.signal(Signal::TERM);
    assert_eq!(timber.wait().0.code(), Some(143));
}

#[test]
fn unready_concerns_readiness_only() {
    let timber = start("unready");
    let response = timber.get("/readyz");
    assert_eq!(response.status, 503);
    assert!(response.text().contains("Fault for teaching: not ready"));
    for path in ["/healthz", "/index", "/metrics", "/version"] {
        assert_eq!(timber.get(path).status, 200, "{path}");
    }
}

#[test]
fn readiness_that_flaps_comes_back() {
    let timber = start("unready=500ms/1s");
    let mut seen = vec![timber.get("/readyz").status];
    let end = Instant::now() + Duration::from_secs(20);
    while seen.len() < 4 && Instant::now() < end {
        let status = timber.get("/readyz").status;
        if seen.last() != Some(&status) {
            seen.push(status);
        }
        thread::sleep(Duration::from_millis(20));
    }
    assert!(
        seen == [200, 503, 200, 503] || seen == [503, 200, 503, 200],
        "{seen:?}"
    );
}

#[test]
fn slow_start_opens_the_port_late() {
    let begin = Instant::now();
    let timber = start("slow-start=2s");
    assert!(begin.elapsed() >= Duration::from_secs(2));
    assert_eq!(timber.get("/index").status, 200);
}

#[test]
fn sigterm_ends_a_slow_start() {
    let mut child = timber()
        .args(["-b", "127.0.0.1:0", "--fault=slow-start=1000s"])
        .spawn()
        .unwrap();
    let status = format!("/proc/{}/status", child.id());
    let end = Instant::now() + Duration::from_secs(20);
    while !Status(fs::read_to_string(&status).unwrap()).catches(15) {
        assert!(Instant::now() < end, "no handler for SIGTERM");
        thread::sleep(Duration::from_millis(10));
    }
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, Signal::TERM).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(143));
}

#[test]
fn errors_hit_the_same_requests_for_the_same_seed() {
    let with_seed = |seed: &str| {
        let timber = Timber::start(&["--fault=errors=30%", "--fault-seed", seed]);
        timber.wait_for_event(&format!("Seed of the faults: {seed}"));
        for path in ["/healthz", "/readyz", "/metrics"] {
            let mut stream = timber.connect();
            for _ in 0..50 {
                assert_eq!(exchange(&mut stream, get(path)).status, 200, "{path}");
            }
        }
        statuses(&timber, 100)
    };
    let first = with_seed("7");
    let failed = first.iter().filter(|status| **status == 500).count();
    assert!((10..=50).contains(&failed), "{failed} of 100 failed");
    assert!(first.iter().all(|status| [200, 500].contains(status)));
    assert_eq!(with_seed("7"), first);
    assert_ne!(with_seed("8"), first);
}

#[test]
fn all_paths_but_the_probes_fail() {
    let timber = start("errors=100%");
    for path in ["/index", "/version", "/sample", "/openapi.json", "/nope"] {
        let response = timber.get(path);
        assert_eq!(response.status, 500, "{path}");
        let body = response.json();
        let description = &body["errors"]["Internal Server Error"];
        assert_eq!(
            description,
            "Fault for teaching: this request was chosen to fail"
        );
    }
    let page = timber.exchange("GET / HTTP/1.1\r\nHost: a\r\nAccept: text/html\r\n\r\n");
    assert_eq!(page.status, 500);
}

#[test]
fn leak_grows_to_its_limit() {
    let before = memory(&Timber::start(&[]));
    let timber = start("leak=20MB/s/40MB");
    let end = Instant::now() + Duration::from_secs(20);
    while memory(&timber) < before + 40_000_000 {
        assert!(Instant::now() < end, "{} bytes", memory(&timber));
        thread::sleep(Duration::from_millis(50));
    }
    thread::sleep(Duration::from_millis(500));
    let leaked = memory(&timber) - before;
    assert!((40_000_000..44_000_000).contains(&leaked), "{leaked} bytes");
    assert_eq!(timber.get("/index").status, 200);
}

#[test]
fn exit_ends_the_process_with_its_code() {
    let begin = Instant::now();
    let mut timber = start("exit=3@1s");
    assert_eq!(timber.get("/index").status, 200);
    timber.wait_for_event("[ERROR] Fault for teaching: exit with code 3");
    assert_eq!(timber.wait().0.code(), Some(3));
    assert!(begin.elapsed() >= Duration::from_secs(1));
}

/// Bytes.
fn memory(timber: &Timber) -> u64 {
    let memory = timber.metric("process_resident_memory_bytes");
    memory.parse().unwrap()
}

fn terminated_by(timber: &mut Timber) -> Option<i32> {
    use std::os::unix::process::ExitStatusExt;
    timber.wait().0.signal()
}

/// `/proc/PID/status`.
struct Status(String);

fn status_of(timber: &Timber) -> Status {
    Status(fs::read_to_string(format!("/proc/{}/status", timber.child.id())).unwrap())
}

impl Status {
    fn catches(&self, signal: u32) -> bool {
        let mask = self.0.lines().find_map(|line| line.strip_prefix("SigCgt:"));
        let mask = u64::from_str_radix(mask.unwrap().trim(), 16).unwrap();
        mask >> (signal - 1) & 1 == 1
    }
}
