//! What Linux shows of the service in /proc, and the resource limits of this test process.

use std::collections::BTreeSet;
use std::fs;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use socket2::{Domain, Socket, Type};

use super::*;

/// Reads a file of the service in /proc.
pub fn read_proc(service: &Timber, file: &str) -> String {
    fs::read_to_string(format!("/proc/{}/{file}", service.child.id()))
        .expect("/proc lists the service")
}

/// Returns the resident memory in kilobytes.
pub fn resident_memory(service: &Timber) -> u64 {
    let status = read_proc(service, "status");
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .expect("VmRSS in /proc/PID/status");
    line.trim_end_matches("kB").trim().parse().unwrap()
}

/// Returns the CPU time used so far, in hundredths of a second.
pub fn cpu_time(service: &Timber) -> u64 {
    let stat = read_proc(service, "stat");
    let fields = stat
        .rsplit_once(") ")
        .unwrap()
        .1
        .split(' ')
        .skip(11)
        .take(2);
    fields.map(|ticks| ticks.parse::<u64>().unwrap()).sum()
}

/// Waits until only the request for the metrics is in flight, on the only open connection.
pub fn wait_until_idle(service: &Timber) {
    let start = Instant::now();
    let figures =
        || ["http_connections_open", "http_requests_in_flight"].map(|name| service.metric(name));
    while figures() != ["1", "1"] {
        assert!(start.elapsed() < TEST_TIMEOUT, "{:?}", figures());
        thread::sleep(Duration::from_millis(20));
    }
}

/// Connects with small segments and a small receive buffer, so that few responses fill the buffers
/// of both kernels.
pub fn connect_with_small_buffers(address: SocketAddr) -> TcpStream {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None).unwrap();
    socket.set_tcp_mss(536).unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    socket.set_read_timeout(Some(TEST_TIMEOUT)).unwrap();
    socket.connect(&address.into()).unwrap();
    socket.into()
}

/// Sends requests until the service no longer reads them, and reads no response.
pub fn stop_reading(client: &mut TcpStream) {
    let timeout = Some(Duration::from_millis(200));
    client.set_write_timeout(timeout).unwrap();
    let requests = get("/openapi.json").repeat(2000);
    while client.write_all(requests.as_bytes()).is_ok() {}
}

/// Lets this process open as many files as it may. Returns how many that are.
pub fn raise_file_limit() -> u64 {
    let files = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: files.maximum,
        ..files
    };
    setrlimit(Resource::Nofile, raised).unwrap();
    files.maximum.unwrap_or(u64::MAX)
}

/// The kernel's side of a connection that the service has accepted.
#[derive(Debug)]
pub struct KernelSocket {
    pub inode: u64,
    /// Bytes that the client has not yet acknowledged.
    pub send_queue: u64,
    /// Bytes that the service has not yet read.
    pub receive_queue: u64,
}

/// Returns the established connections of a service that listens on an IPv4 address.
pub fn kernel_sockets(service: &Timber) -> Vec<KernelSocket> {
    const ESTABLISHED: &str = "01";
    let port = format!(":{:04X}", service.address.port());
    let table = read_proc(service, "net/tcp");
    let parse = |line: &str| {
        let fields: Vec<_> = line.split_whitespace().collect();
        if !fields[1].ends_with(&port) || fields[3] != ESTABLISHED {
            return None;
        }
        let (send, receive) = fields[4].split_once(':').unwrap();
        let bytes = |text| u64::from_str_radix(text, 16).unwrap();
        Some(KernelSocket {
            inode: fields[9].parse().unwrap(),
            send_queue: bytes(send),
            receive_queue: bytes(receive),
        })
    };
    let sockets = table.lines().skip(1).filter_map(parse);
    // A connection in the backlog has no file, and so no inode.
    sockets.filter(|socket| socket.inode != 0).collect()
}

/// Returns the numbers of the files that are registered in each epoll instance of the service. Each
/// worker has one.
pub fn registered_files(service: &Timber) -> BTreeSet<Vec<String>> {
    let directory = format!("/proc/{}/fd", service.child.id());
    let files = fs::read_dir(directory).expect("/proc lists the service");
    let epolls = files.filter_map(|entry| {
        let path = entry.unwrap().path();
        let is_epoll = fs::read_link(&path).ok()?.to_str()? == "anon_inode:[eventpoll]";
        is_epoll.then(|| path.file_name().unwrap().to_str().unwrap().to_owned())
    });
    // tokio has two files for each instance. Both list the same registered files.
    epolls
        .map(|number| {
            let info = read_proc(service, &format!("fdinfo/{number}"));
            let rows = info.lines().filter_map(|line| line.strip_prefix("tfd:"));
            rows.filter_map(|row| Some(row.split_whitespace().next()?.to_owned()))
                .collect()
        })
        .collect()
}
