//! The costs of requests and connections in the binary of image 2: instructions and bytes, which are the same on
//! every machine of a kind. bench/ measures times.

use super::*;

/// Maximum number of user-mode instructions for one `GET /index` on a keep-alive connection, without and with the
/// access log.
const INSTRUCTIONS: [u64; 2] = [8_500, 10_000];

/// Maximum memory of a connection that has sent a request and is idle, in bytes.
const IDLE_CONNECTION: u64 = 1_500;

/// Maximum growth of memory after all connections are closed, in kB.
const GROWTH: u64 = 600;

#[test]
#[ignore = "needs the musl target and valgrind"]
fn instructions_per_request_are_within_their_budget() {
    for (flag, budget) in ["--no-access-log", "--access-log=on"]
        .into_iter()
        .zip(INSTRUCTIONS)
    {
        let count = (instructions(flag, 2_200) - instructions(flag, 200)) / 2_000;
        println!("{flag}: {count} instructions per request");
        assert!(
            count <= budget,
            "{flag}: {count} instructions per request, at most {budget} expected"
        );
    }
}

/// Counts the instructions of a run of the service with a number of requests.
fn instructions(flag: &str, requests: usize) -> u64 {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("callgrind");
    let mut command = Command::new("valgrind");
    command
        .arg("--tool=callgrind")
        .arg(format!("--callgrind-out-file={}", file.display()));
    command
        .arg(&*MUSL_BINARY)
        .args(["-b", "127.0.0.1:0", "--workers", "1", flag]);
    let mut service = Timber::spawn(
        command
            .env_clear()
            .env("PATH", "/usr/bin")
            .stdout(Stdio::null())
            .stderr(Stdio::piped()),
    );
    let mut stream = service.connect();
    for _ in 0..requests {
        assert_eq!(
            exchange(
                &mut stream,
                "GET /index HTTP/1.1\r\nHost: 127.0.0.1\r\nUser-Agent: wrk\r\nAccept: */*\r\n\r\n"
            )
            .status,
            200
        );
    }
    service.signal(Signal::TERM);
    assert_eq!(service.wait().0.code(), Some(0));
    let profile = fs::read_to_string(file).unwrap();
    let total = profile
        .lines()
        .find_map(|line| line.strip_prefix("totals: "))
        .expect("callgrind's total");
    total.parse().unwrap()
}

#[test]
#[ignore = "needs the musl target"]
fn idle_connections_are_within_their_budget_and_closed_ones_are_freed() {
    const CONNECTIONS: u64 = 4_000;
    let files = getrlimit(Resource::Nofile);
    setrlimit(
        Resource::Nofile,
        Rlimit {
            current: files.maximum,
            ..files
        },
    )
    .unwrap();
    let mut service = musl_service();
    assert_eq!(service.get("/index").status, 200);
    thread::sleep(Duration::from_secs(2));
    let before = memory(&service);
    let mut kept: Vec<_> = (0..CONNECTIONS).map(|_| service.connect()).collect();
    for stream in &mut kept {
        assert_eq!(exchange(stream, get("/index")).status, 200);
    }
    thread::sleep(Duration::from_secs(3));
    let each = memory(&service).saturating_sub(before) * 1024 / CONNECTIONS;
    for stream in kept.iter_mut().step_by(20) {
        assert_eq!(exchange(stream, get("/index")).status, 200);
    }
    drop(kept);
    thread::sleep(Duration::from_secs(2));
    let left = memory(&service).saturating_sub(before);
    println!(
        "{each} bytes per idle connection; {left} kB more than the {before} kB before after closing all"
    );
    assert!(
        each <= IDLE_CONNECTION,
        "{each} bytes per idle connection, at most {IDLE_CONNECTION} expected"
    );
    assert!(
        left <= GROWTH,
        "{left} kB are not freed after {CONNECTIONS} connections"
    );
    service.signal(Signal::TERM);
    assert_eq!(service.wait().0.code(), Some(0));
}

/// A million requests and 100,000 connections, or as many as fit into `SOAK_SECONDS`.
#[test]
#[ignore = "needs the musl target"]
fn memory_does_not_grow_with_a_million_requests() {
    let seconds = env::var("SOAK_SECONDS")
        .ok()
        .map(|value| value.parse().expect("SOAK_SECONDS is a number"));
    let end = seconds.map(|seconds| Instant::now() + Duration::from_secs(seconds));
    let mut service = musl_service();
    let address = service.address;
    let round = || {
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| soak(address));
            }
        });
    };
    round();
    thread::sleep(Duration::from_secs(2));
    let (before, mut rounds) = (memory(&service), 1);
    while end.map_or(rounds < 20, |end| Instant::now() < end) {
        round();
        rounds += 1;
    }
    thread::sleep(Duration::from_secs(2));
    let after = memory(&service);
    println!(
        "{rounds} rounds of 50,000 requests and 5,000 connections: {before} kB after the first, {after} kB after the last"
    );
    assert!(
        after <= before + GROWTH,
        "memory grew from {before} kB to {after} kB"
    );
    service.signal(Signal::TERM);
    assert_eq!(service.wait().0.code(), Some(0));
}

/// 1,250 connections of 10 requests each.
fn soak(address: SocketAddr) {
    let requests = get("/index").repeat(10);
    for _ in 0..1_250 {
        let mut stream = connect(address);
        stream.write_all(requests.as_bytes()).unwrap();
        for _ in 0..10 {
            assert_eq!(Response::read(&mut stream, false).status, 200);
        }
    }
}

fn musl_service() -> Timber {
    let mut command = Command::new(&*MUSL_BINARY);
    command.args(["-b", "127.0.0.1:0", "--no-access-log"]);
    Timber::spawn(
        command
            .env_clear()
            .stdout(Stdio::null())
            .stderr(Stdio::piped()),
    )
}

/// Resident set size in kB. The proportional size would change with the number of processes that run the same file.
fn memory(service: &Timber) -> u64 {
    let rollup = fs::read_to_string(format!("/proc/{}/smaps_rollup", service.child.id())).unwrap();
    let line = rollup
        .lines()
        .find_map(|line| line.strip_prefix("Rss:"))
        .expect("smaps_rollup has Rss");
    line.split_whitespace().next().unwrap().parse().unwrap()
}
