//! The workers: how connections are spread over them, and a worker that cannot start.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use super::process::*;
use super::*;

/// How the clients of one run connect.
#[derive(Clone, Copy, Debug)]
enum Arrival {
    /// Each has its first response before the next one connects.
    InSequence,
    /// All connect before the first one sends a request.
    Burst,
}

/// Opens `count` connections to a new service, twenty times for each kind of arrival.
///
/// # Panics
/// If a worker gets more than 1.25 times the mean.
fn check_spread(workers: usize, count: usize) {
    raise_file_limit();
    for run in 0..40 {
        let arrival = if run % 2 == 0 {
            Arrival::InSequence
        } else {
            Arrival::Burst
        };
        let service = Timber::start(&["--no-access-log", "--workers", &workers.to_string()]);
        // Until all workers have started, the first one serves alone.
        service.wait_for_event("Using workers");
        let before: BTreeSet<_> = registered_files(&service).into_iter().flatten().collect();
        let mut clients = Vec::new();
        for _ in 0..count {
            let mut client = service.connect();
            if matches!(arrival, Arrival::InSequence) {
                ask(&mut client);
            }
            clients.push(client);
        }
        if matches!(arrival, Arrival::Burst) {
            clients.iter_mut().for_each(ask);
        }
        let is_connection = |file: &&String| !before.contains(*file);
        let spread: Vec<_> = registered_files(&service)
            .iter()
            .map(|files| files.iter().filter(is_connection).count())
            .collect();
        assert_eq!(spread.len(), workers, "{spread:?}");
        assert_eq!(spread.iter().sum::<usize>(), count, "{spread:?}");
        let fullest = *spread.iter().max().unwrap();
        assert!(
            fullest * workers * 4 <= count * 5,
            "run {run}, {arrival:?}, {count} connections: {spread:?}"
        );
    }
}

#[test]
fn new_connection_wakes_one_worker() {
    let service = Timber::start(&["--no-access-log", "--workers", "8"]);
    service.wait_for_event("SIGTERM"); // the last entry of the start
    thread::sleep(Duration::from_millis(300)); // until all workers wait
    let before = waits_of_workers(&service);
    assert_eq!(before.len(), 8, "{before:?}");
    let mut client = service.connect();
    ask(&mut client);
    thread::sleep(Duration::from_millis(100)); // until it waits again
    let after = waits_of_workers(&service);
    let woken: Vec<_> = after
        .iter()
        .filter(|(thread, waits)| before[*thread] != **waits)
        .collect();
    assert_eq!(woken.len(), 1, "{woken:?}");
}

/// Returns how often each worker has waited: the main thread, and those called worker-N.
fn waits_of_workers(service: &Timber) -> BTreeMap<String, u64> {
    let tasks = fs::read_dir(format!("/proc/{}/task", service.child.id())).unwrap();
    tasks
        .map(|task| fs::read_to_string(task.unwrap().path().join("status")).unwrap())
        .filter_map(|status| {
            let field = |name: &str| {
                let line = status.lines().find_map(|line| line.strip_prefix(name));
                line.unwrap().trim().to_owned()
            };
            let thread = field("Name:");
            let is_worker = thread == "timber" || thread.starts_with("worker-");
            is_worker.then(|| (thread, field("voluntary_ctxt_switches:").parse().unwrap()))
        })
        .collect()
}

/// Sends a request. Reads the response at once, because [`Response::read`] reads byte by byte.
fn ask(client: &mut TcpStream) {
    client.write_all(get("/index").as_bytes()).unwrap();
    let mut response = [0; 1024];
    let length = client.read(&mut response).unwrap();
    assert!(response[..length].starts_with(b"HTTP/1.1 200 "));
}

#[test]
fn two_workers_share_connections_evenly() {
    check_spread(2, 16);
    check_spread(2, 64);
}

#[test]
fn eight_workers_share_connections_evenly() {
    check_spread(8, 64);
    check_spread(8, 512);
}

/// With stacks of 50 MB, an address space of 500 MB has no room for 64 threads.
#[test]
fn worker_that_cannot_start_is_a_start_up_error() {
    let output = run_to_completion(
        shell("ulimit -v 500000; exec \"$0\" -b 127.0.0.1:0 --workers 64")
            .env("RUST_MIN_STACK", "50000000")
            .env("MALLOC_ARENA_MAX", "1"), // glibc would reserve memory for each thread
    );
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    let errors = stderr.lines().filter(|line| !line.contains("[INFO]"));
    let [error] = errors.collect::<Vec<_>>()[..] else {
        panic!("expected one error in {stderr}");
    };
    let reason = error.strip_prefix("timber: cannot start worker ");
    assert!(
        reason.is_some_and(|rest| rest.contains("Resource temporarily unavailable")),
        "{error}"
    );
}
