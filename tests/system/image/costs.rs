//! What a request, a connection and a million of each cost, by the binary of image 2. Instructions, bytes and counts
//! only: they are the same on every machine of a kind. What takes time is measured by bench/.

use super::*;

/// User-mode instructions for one `GET /index` on a kept connection, without the access log and with it.
const INSTRUCTIONS: [u64; 2] = [9_000, 10_500];

/// Bytes of memory for a connection that has made a request and is kept open.
const IDLE_CONNECTION: u64 = 1_500;

/// Kilobytes that may be left when everybody has gone.
const LEFT: u64 = 600;

#[test]
#[ignore = "needs the musl target and valgrind"]
fn instructions_a_request_are_within_their_budget() {
    for (flag, budget) in ["--no-access-log", "--access-log=on"]
        .into_iter()
        .zip(INSTRUCTIONS)
    {
        let count = (instructions(flag, 2_200) - instructions(flag, 200)) / 2_000;
        println!("{flag}: {count} instructions a request");
        assert!(
            count <= budget,
            "{flag}: {count} instructions a request, {budget} are allowed"
        );
    }
}

/// Of a whole run with that many requests.
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
            ask(
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
fn an_idle_connection_costs_little_and_nothing_when_it_is_closed() {
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
        assert_eq!(ask(stream, get("/index")).status, 200);
    }
    thread::sleep(Duration::from_secs(3));
    let each = memory(&service).saturating_sub(before) * 1024 / CONNECTIONS;
    for stream in kept.iter_mut().step_by(20) {
        assert_eq!(ask(stream, get("/index")).status, 200);
    }
    drop(kept);
    thread::sleep(Duration::from_secs(2));
    let left = memory(&service).saturating_sub(before);
    println!("{each} bytes for an idle connection; {left} kB left of all; {before} kB before");
    assert!(
        each <= IDLE_CONNECTION,
        "{each} bytes for an idle connection, {IDLE_CONNECTION} are allowed"
    );
    assert!(
        left <= LEFT,
        "{left} kB are left of {CONNECTIONS} connections"
    );
    service.signal(Signal::TERM);
    assert_eq!(service.wait().0.code(), Some(0));
}

/// A million requests and 100,000 connections, or as many as fit into `TIMBER_SOAK` seconds.
#[test]
#[ignore = "needs the musl target"]
fn a_million_requests_leave_memory_where_it_was() {
    let seconds = env::var("TIMBER_SOAK")
        .ok()
        .map(|value| value.parse().expect("TIMBER_SOAK in seconds"));
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
    assert!(after <= before + LEFT, "{before} kB have become {after} kB");
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
            assert_eq!(Answer::read(&mut stream, false).status, 200);
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

/// Resident set size in kB. Not the proportional one: that of pages which come from the file changes with every other test
/// that runs the same file.
fn memory(service: &Timber) -> u64 {
    let rollup = fs::read_to_string(format!("/proc/{}/smaps_rollup", service.child.id())).unwrap();
    let line = rollup
        .lines()
        .find_map(|line| line.strip_prefix("Rss:"))
        .expect("Linux tells Rss");
    line.split_whitespace().next().unwrap().parse().unwrap()
}
