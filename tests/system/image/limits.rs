//! Containers at their connection limit: as many connections as the memory limit allows, each with a client that
//! behaves as badly as it can. The service stays healthy, and its memory within the limit.

use std::{
    net::TcpStream,
    sync::atomic::{AtomicBool, Ordering::Relaxed},
};

use timber::{admission::RESERVE, request::MAX_HEAD};

use super::*;

/// Keeps the clients connected for as long as a test runs.
const PATIENT: &str = "--idle-timeout 300s --header-timeout 300s --write-timeout 300s";

/// As many header fields as hyper accepts besides those that a request for the page needs.
fn fields() -> String {
    let fields: Vec<_> = (0..97).map(|number| format!("a{number}: b\r\n")).collect();
    fields.concat()
}

fn page_with_97_fields() -> String {
    let fields = fields();
    format!("GET / HTTP/1.1\r\nHost: a\r\nAccept: text/html\r\n{fields}\r\n")
}

/// All but the end of the longest head.
fn half_a_head() -> String {
    let start = "GET /index HTTP/1.1\r\nHost: a\r\nX: ";
    format!("{start}{}", "x".repeat(MAX_HEAD - 16 - start.len()))
}

/// Small responses fill the write buffer almost to its limit, then a 404 that contains a long Host follows.
fn long_responses_after_short_ones() -> String {
    let fields = fields();
    let host = "h".repeat(MAX_HEAD - 1_100);
    let long = format!("GET /nope HTTP/1.1\r\nHost: {host}\r\n{fields}\r\n");
    get("/index").repeat(7) + &long
}

#[test]
#[ignore = "needs Docker Engine"]
fn a_container_stays_healthy_while_its_connection_limit_is_reached() {
    for release in RELEASES {
        for (kind, requests, others) in [
            ("idle", get("/index"), 200),
            ("half a head", half_a_head(), 503),
            ("no reading", page_with_97_fields().repeat(400), 503),
        ] {
            let flags = "--memory 16m --health-interval 1s";
            let container = Container::serve(&image(release), flags, PATIENT);
            let (address, limit) = (own_address(&container), connection_limit(&container));
            let mut clients = silent_clients(address, limit, &requests);
            let what = format!("image {release}, {limit} clients, {kind}");
            // The scrape is a connection, too. Docker's own probe may be another one for a moment.
            let expected = limit + usize::from(others == 503);
            let begin = Instant::now();
            loop {
                let open = open_connections(address);
                if open == expected {
                    break;
                }
                assert!(
                    begin.elapsed() < Duration::from_secs(10),
                    "{what}: {open} open, {expected} expected"
                );
                thread::sleep(Duration::from_millis(100));
            }

            let index = exchange(&mut connect(address), get("/index"));
            assert_eq!(index.status, others, "{what}");
            let ready = exchange(&mut connect(address), get("/readyz"));
            assert_eq!(ready.status, 200, "{what}");
            let checks = next_health_checks(&container, || {
                // A probe may have closed an idle connection, so the limit is reached again.
                let mut client = SilentClient::connect(address, &requests);
                client.send();
                clients.push(client);
            });
            println!("{what}: {}", checks["Status"]);
            assert!(
                checks["Status"] == "healthy" && checks["FailingStreak"] == 0,
                "{what}: {checks}"
            );
            assert!(
                open_connections(address) >= limit,
                "{what}: some were closed"
            );
            drop(clients);
        }
    }
}

#[test]
#[ignore = "needs Docker Engine, and root to read the memory of a container"]
fn the_worst_clients_at_the_limit_fit_into_the_memory_of_a_container() {
    let files = getrlimit(Resource::Nofile);
    let all = Rlimit {
        current: files.maximum,
        ..files
    };
    setrlimit(Resource::Nofile, all).unwrap();
    for release in RELEASES {
        for (kind, requests) in [
            ("half a head", page_with_97_fields() + &half_a_head()),
            ("pages", page_with_97_fields().repeat(400)),
            (
                "long responses",
                long_responses_after_short_ones().repeat(60),
            ),
        ] {
            let [small, large] = [16, 64].map(|mib| {
                let filled = fill(release, mib, &requests);
                let Filled { limit, each, peak } = filled;
                println!(
                    "image {release}, {mib} MiB, {limit} clients, {kind}: {each} bytes each, {peak} bytes at the peak"
                );
                filled
            });
            // What the service assumes for each connection.
            let bound = (48 << 20) / (large.limit - small.limit);
            assert!(
                large.each <= bound,
                "image {release}, {kind}: {} bytes per connection, at most {bound} expected",
                large.each
            );
        }
    }
}

/// A container at its connection limit.
struct Filled {
    limit: usize,
    /// Bytes for each connection.
    each: usize,
    /// Maximum number of bytes in use.
    peak: usize,
}

/// Lets as many clients as possible send `requests` to a container with `mib` of memory, and tests that it survives.
fn fill(release: usize, mib: usize, requests: &str) -> Filled {
    let flags = format!("--memory {mib}m --memory-swap {mib}m");
    let container = Container::serve(&image(release), &flags, PATIENT);
    let (address, limit) = (own_address(&container), connection_limit(&container));
    let memory = Memory::of(&container);
    let before = memory.bytes();
    // Those beyond the limit take turns in the reserve.
    let connect_all = || silent_clients(address, limit + 2 * RESERVE, requests);
    let (clients, clients_peak) = memory.peak_during(connect_all);
    assert!(
        open_connections(address) >= limit,
        "the limit is not reached"
    );
    // Docker's own process that starts a probe counts, too.
    let probe = || {
        docker(&format!("exec {container} /timber healthcheck"));
        exchange(&mut connect(address), get("/readyz"))
    };
    let (ready, probe_peak) = memory.peak_during(probe);
    assert_eq!(ready.status, 200);
    let state = inspect(&container.0, "State");
    assert!(
        state["Running"] == true && state["OOMKilled"] == false,
        "{mib} MiB, {limit} clients: {state}{}",
        container.log()
    );
    let peak = clients_peak.max(probe_peak);
    assert!(
        peak <= mib << 20,
        "{limit} clients take {peak} bytes of {mib} MiB"
    );
    drop(clients);
    eventually("a served request", || {
        let index = exchange(&mut connect(address), get("/index"));
        (index.status == 200).then_some(())
    });
    let each = (clients_peak - before) / (limit + RESERVE);
    Filled { limit, each, peak }
}

/// Connects clients, lets all of them send as much of `requests` as the service takes, and read nothing.
fn silent_clients(address: SocketAddr, count: usize, requests: &str) -> Vec<SilentClient<'_>> {
    let connect = |_| SilentClient::connect(address, requests);
    let mut clients: Vec<_> = (0..count).map(connect).collect();
    let mut last_progress = Instant::now();
    // Much longer than a tick, after which the service parks an idle connection.
    while last_progress.elapsed() < Duration::from_secs(3) {
        for client in &mut clients {
            if client.send() {
                last_progress = Instant::now();
            }
        }
        thread::sleep(Duration::from_millis(10));
    }
    clients
}

struct SilentClient<'a> {
    stream: TcpStream,
    unsent: &'a [u8],
}

impl<'a> SilentClient<'a> {
    fn connect(address: SocketAddr, requests: &'a str) -> Self {
        let stream = connect(address);
        stream.set_nonblocking(true).unwrap();
        let unsent = requests.as_bytes();
        SilentClient { stream, unsent }
    }

    /// Sends what fits into the send buffer. Returns false if nothing does, or the service has closed.
    fn send(&mut self) -> bool {
        let Ok(length) = self.stream.write(self.unsent) else {
            return false;
        };
        self.unsent = &self.unsent[length..];
        length > 0
    }
}

/// The container's own address: the proxy of a published port would read what a client does not.
fn own_address(container: &Container) -> SocketAddr {
    let networks = inspect(&container.0, "NetworkSettings")["Networks"].take();
    let ip = networks["bridge"]["IPAddress"].as_str().unwrap();
    format!("{ip}:8080").parse().unwrap()
}

/// The limit that the service has logged.
fn connection_limit(container: &Container) -> usize {
    let log = container.log();
    let (_, rest) = log
        .split_once("Limiting connections to ")
        .unwrap_or_else(|| panic!("no connection limit in {log}"));
    let (limit, _) = rest.split_once(": container memory limit").unwrap();
    limit.parse().unwrap()
}

/// Number of open connections, the one that asks included.
fn open_connections(address: SocketAddr) -> usize {
    let response = exchange(&mut connect(address), get("/metrics"));
    assert_eq!(response.status, 200, "{response:?}");
    let page = response.text();
    let value = page
        .lines()
        .find_map(|line| line.strip_prefix("http_connections_open "));
    value.unwrap().parse().unwrap()
}

/// Docker's report after three more health checks. Calls `meanwhile` some ten times per second.
fn next_health_checks(container: &Container, mut meanwhile: impl FnMut()) -> Value {
    let report = || inspect(&container.0, "State")["Health"].take();
    let starts = |report: &Value| -> Vec<String> {
        let checks = report["Log"].as_array().unwrap();
        let start = |check: &Value| check["Start"].as_str().unwrap().to_owned();
        checks.iter().map(start).collect()
    };
    let last = starts(&report()).pop().unwrap_or_default();
    eventually("three health checks", || {
        meanwhile();
        let report = report();
        let new = starts(&report).into_iter().filter(|start| *start > last);
        // The first may have begun before the limit was reached.
        (new.count() > 3).then_some(report)
    })
}

/// The memory of a container as the kernel counts it.
struct Memory {
    /// Files with numbers of bytes in use. Their sum is what cgroup version 2 charges to the container.
    files: Vec<PathBuf>,
}

impl Memory {
    fn of(container: &Container) -> Self {
        let pid = &inspect(&container.0, "State")["Pid"];
        let groups = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
        let path = |controller: &str| {
            let mut lines = groups.lines();
            lines.find_map(|line| Some(line.split_once(controller)?.1.to_owned()))
        };
        let files = if let Some(path) = path(":memory:") {
            let group = PathBuf::from(format!("/sys/fs/cgroup/memory{path}"));
            // Version 1 counts the queues of sockets apart, and only after a limit for them has been set.
            fs::write(group.join("memory.kmem.tcp.limit_in_bytes"), "1T").unwrap();
            ["memory.usage_in_bytes", "memory.kmem.tcp.usage_in_bytes"]
                .map(|file| group.join(file))
                .to_vec()
        } else {
            let path = path("0::").expect("a cgroup of version 2");
            vec![PathBuf::from(format!(
                "/sys/fs/cgroup{path}/memory.current"
            ))]
        };
        Memory { files }
    }

    fn bytes(&self) -> usize {
        let read = |file: &PathBuf| -> usize {
            let text = fs::read_to_string(file)
                .unwrap_or_else(|error| panic!("{}: {error}", file.display()));
            text.trim().parse().unwrap()
        };
        self.files.iter().map(read).sum()
    }

    /// Returns the result of `work` and the maximum number of bytes in use meanwhile.
    fn peak_during<T>(&self, work: impl FnOnce() -> T) -> (T, usize) {
        let is_over = AtomicBool::new(false);
        thread::scope(|scope| {
            let peak = scope.spawn(|| {
                let mut peak = 0;
                while !is_over.load(Relaxed) {
                    peak = peak.max(self.bytes());
                    thread::sleep(Duration::from_millis(5));
                }
                peak
            });
            let result = work();
            is_over.store(true, Relaxed);
            (result, peak.join().unwrap())
        })
    }
}
