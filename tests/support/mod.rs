//! Starts the real program as a child process and talks to it over raw sockets.

use std::{
    io::{BufRead, BufReader, ErrorKind, Read, Write},
    net::{SocketAddr, TcpStream},
    path::PathBuf,
    process::{Child, Command, ExitStatus, Output, Stdio},
    sync::{
        LazyLock,
        mpsc::{self, Receiver},
    },
    thread,
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

/// Maximum time to wait for an expected event. Much longer than needed, because the machine may be
/// busy.
pub const TEST_TIMEOUT: Duration = Duration::from_secs(20);

/// A running service, killed when dropped.
pub struct Timber {
    pub child: Child,
    pub address: SocketAddr,
    /// Entries of the event log up to the one with the address.
    pub startup_log: Vec<String>,
    event_log: Receiver<String>,
    /// `None` if the command does not pipe standard output.
    access_log: Option<Receiver<String>>,
}

/// The service's binary. Cargo sets the variable for the tests of the service's own package;
/// other packages build the binary here, once per process.
static BINARY: LazyLock<PathBuf> = LazyLock::new(|| {
    option_env!("CARGO_BIN_EXE_timber").map_or_else(
        || {
            let manifest = concat!(env!("CARGO_MANIFEST_DIR"), "/../../Cargo.toml");
            cargo_build(&["--bin", "timber", "--manifest-path", manifest])
        },
        PathBuf::from,
    )
});

/// Builds a program and returns the path that cargo reports for it.
pub fn cargo_build(arguments: &[&str]) -> PathBuf {
    let output = Command::new(env!("CARGO"))
        .args([
            "build",
            "--locked",
            "--quiet",
            "--message-format",
            "json-render-diagnostics",
        ])
        .args(arguments)
        .stderr(Stdio::inherit())
        .output()
        .expect("cargo starts");
    assert!(output.status.success(), "cargo build {arguments:?} failed");
    let messages = serde_json::Deserializer::from_slice(&output.stdout).into_iter::<Value>();
    messages
        .filter_map(|message| Some(message.unwrap()["executable"].as_str()?.into()))
        .last()
        .expect("cargo reports the path of the executable")
}

/// Returns a command that runs the service.
pub fn timber() -> Command {
    with_clean_environment(Command::new(&*BINARY))
}

/// Returns a command that runs a shell script. `$0` is the path of the service.
pub fn shell(script: &str) -> Command {
    let mut command = Command::new("/bin/sh");
    command.args(["-c", script]).arg(&*BINARY);
    with_clean_environment(command)
}

/// Pipes the output and removes all variables, because those of the test machine would change the
/// service's configuration.
fn with_clean_environment(mut command: Command) -> Command {
    command
        .env_clear()
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

/// Runs a command that exits by itself.
///
/// # Panics
/// If the process has not exited after [`TEST_TIMEOUT`]. It is killed first.
pub fn run_to_completion(command: &mut Command) -> Output {
    let mut child = command.spawn().expect("the command starts");
    wait(&mut child);
    child.wait_with_output().unwrap()
}

fn wait(child: &mut Child) -> (ExitStatus, Duration) {
    let start = Instant::now();
    while start.elapsed() < TEST_TIMEOUT {
        if let Some(status) = child.try_wait().unwrap() {
            return (status, start.elapsed());
        }
        thread::sleep(Duration::from_millis(2));
    }
    _ = child.kill();
    panic!("the process has not exited after {TEST_TIMEOUT:?}");
}

impl Timber {
    /// Starts the service on a free port of 127.0.0.1.
    pub fn start(arguments: &[&str]) -> Self {
        Timber::spawn(timber().args(["-b", "127.0.0.1:0"]).args(arguments))
    }

    /// Starts the service with this command and waits until it logs its address.
    pub fn spawn(command: &mut Command) -> Self {
        let mut child = command.spawn().expect("the service starts");
        let event_log = read_lines(child.stderr.take().expect("standard error is piped"));
        let access_log = child.stdout.take().map(read_lines);
        let address = ([127, 0, 0, 1], 0).into();
        let mut timber = Timber {
            child,
            address,
            startup_log: Vec::new(),
            event_log,
            access_log,
        };
        loop {
            let entry = timber.event_log.recv_timeout(TEST_TIMEOUT);
            let entry = entry.unwrap_or_else(|_| panic!("no address in {:#?}", timber.startup_log));
            timber.startup_log.push(entry.clone());
            if let Some((_, rest)) = entry.split_once("Listening at: http://") {
                let address: SocketAddr = rest.split(' ').next().unwrap().parse().unwrap();
                timber.address.set_port(address.port());
                if !address.ip().is_unspecified() {
                    timber.address = address;
                }
                return timber;
            }
        }
    }

    pub fn connect(&self) -> TcpStream {
        connect(self.address)
    }

    /// Sends a request on a new connection and reads the response.
    pub fn exchange(&self, request: impl AsRef<[u8]>) -> Response {
        exchange(&mut self.connect(), request)
    }

    pub fn get(&self, path: &str) -> Response {
        self.exchange(get(path))
    }

    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).expect("the process exists");
    }

    /// Waits for the process to exit. Returns its status and the time that it took.
    pub fn wait(&mut self) -> (ExitStatus, Duration) {
        wait(&mut self.child)
    }

    /// Returns the next entry of the event log that contains `part`.
    pub fn wait_for_event(&self, part: &str) -> String {
        next_entry(&self.event_log, part)
    }

    /// Returns the next entry of the access log that contains `part`.
    pub fn wait_for_access_entry(&self, part: &str) -> String {
        next_entry(self.access_log(), part)
    }

    /// Returns the further entries of the access log, up to its end.
    pub fn remaining_access_entries(&self) -> Vec<String> {
        self.access_log().iter().collect()
    }

    fn access_log(&self) -> &Receiver<String> {
        self.access_log.as_ref().expect("standard output is piped")
    }

    /// Returns the value of a metric without labels.
    pub fn metric(&self, name: &str) -> String {
        self.get("/metrics").metric(name)
    }
}

impl Drop for Timber {
    fn drop(&mut self) {
        _ = self.child.kill();
        _ = self.child.wait();
    }
}

fn next_entry(log: &Receiver<String>, part: &str) -> String {
    loop {
        let entry = log
            .recv_timeout(TEST_TIMEOUT)
            .unwrap_or_else(|_| panic!("no log entry contains {part:?}"));
        if entry.contains(part) {
            return entry;
        }
    }
}

/// Reads a stream in a thread of its own, so that a full pipe does not block the service.
fn read_lines(stream: impl Read + Send + 'static) -> Receiver<String> {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        BufReader::new(stream)
            .lines()
            .map_while(Result::ok)
            .try_for_each(|line| sender.send(line))
    });
    receiver
}

pub fn connect(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).unwrap_or_else(|error| panic!("{address}: {error}"));
    stream.set_read_timeout(Some(TEST_TIMEOUT)).unwrap();
    stream
}

/// Returns a GET request for `path`.
pub fn get(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: localhost:8000\r\n\r\n")
}

/// Sends a request and reads the response.
pub fn exchange(stream: &mut TcpStream, request: impl AsRef<[u8]>) -> Response {
    let request = request.as_ref();
    stream.write_all(request).expect("the request is sent");
    Response::read(stream, request.starts_with(b"HEAD "))
}

/// Returns true if the server closes the connection, cleanly or with a reset, before it sends
/// anything else.
pub fn is_closed(stream: &mut TcpStream) -> bool {
    match stream.read(&mut [0]) {
        Ok(length) => length == 0,
        Err(error) => error.kind() == ErrorKind::ConnectionReset,
    }
}

/// Returns true if the service has neither closed the connection nor sent anything.
pub fn is_open(stream: &TcpStream) -> bool {
    stream.set_nonblocking(true).unwrap();
    let peeked = stream.peek(&mut [0]);
    stream.set_nonblocking(false).unwrap();
    peeked.is_err_and(|error| error.kind() == ErrorKind::WouldBlock)
}

/// A response, read up to the end of its body.
#[derive(Debug)]
pub struct Response {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Response {
    /// Reads one response. A response to HEAD has no body.
    pub fn read(stream: &mut TcpStream, is_head: bool) -> Self {
        Response::try_read(stream, is_head).unwrap_or_else(|error| panic!("{error}"))
    }

    /// Reads one response. A response to HEAD has no body.
    ///
    /// # Errors
    /// The input up to the point where the response is incomplete or malformed.
    pub fn try_read(stream: &mut impl Read, is_head: bool) -> Result<Self, String> {
        let mut response = Response::parse_head(&read_head(stream)?)?;
        if !is_head && response.status >= 200 {
            let length = response
                .header("content-length")
                .map_or(0, |length| length.parse().unwrap());
            response.body.resize(length, 0);
            stream
                .read_exact(&mut response.body)
                .map_err(|error| format!("{error} in the body"))?;
        }
        Ok(response)
    }

    fn parse_head(head: &[u8]) -> Result<Self, String> {
        let mut slots = [httparse::EMPTY_HEADER; 32];
        let mut parsed = httparse::Response::new(&mut slots);
        let is_complete = parsed.parse(head).map(|parsed| parsed.is_complete());
        let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
        if is_complete != Ok(true) {
            return Err(format!("{is_complete:?} of {:?}", text(head)));
        }
        let headers = parsed
            .headers
            .iter()
            .map(|header| (header.name.to_ascii_lowercase(), text(header.value)))
            .collect();
        Ok(Response {
            status: parsed.code.unwrap(),
            headers,
            body: Vec::new(),
        })
    }

    /// Returns the first header of this name, which has to be in lower case.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers
            .iter()
            .find(|(header, _)| header == name)
            .map(|(_, value)| value.as_str())
    }

    /// Returns the value of a metric in the body.
    pub fn metric(&self, name: &str) -> String {
        let page = self.text();
        let value = page
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        value
            .unwrap_or_else(|| panic!("no {name} in {page}"))
            .to_owned()
    }

    pub fn text(&self) -> String {
        String::from_utf8(self.body.clone()).expect("the body is text")
    }

    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).expect("the body is JSON")
    }
}

/// Reads up to the empty line, and nothing of the body.
fn read_head(stream: &mut impl Read) -> Result<Vec<u8>, String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        match stream.read(&mut byte) {
            Ok(1) => head.push(byte[0]),
            end => {
                let head = String::from_utf8_lossy(&head);
                return Err(format!("{end:?} after {head:?}"));
            }
        }
    }
    Ok(head)
}
