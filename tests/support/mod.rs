//! The real program as a child process, and raw sockets to talk to it.

use std::{
    io::{BufRead, BufReader, Read, Write},
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

/// For whatever has to happen at all: far more than it takes, even on a machine that is busy with
/// something else.
pub const SOON: Duration = Duration::from_secs(20);

/// A running service, killed when dropped.
pub struct Timber {
    pub child: Child,
    pub address: SocketAddr,
    /// Lines on standard error up to the address.
    pub start: Vec<String>,
    events: Receiver<String>,
    requests: Option<Receiver<String>>,
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

pub fn timber() -> Command {
    clean(Command::new(&*BINARY))
}

/// A script for sh whose `$0` is the service.
pub fn shell(script: &str) -> Command {
    let mut command = Command::new("/bin/sh");
    command.args(["-c", script]).arg(&*BINARY);
    clean(command)
}

/// What the machine that runs the tests has set is not what they are about.
fn clean(mut command: Command) -> Command {
    command
        .env_clear()
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

/// Runs a command that should end by itself, and ends it if it does not.
pub fn run_to_end(command: &mut Command) -> Output {
    let mut child = command.spawn().expect("the command starts");
    wait(&mut child);
    child.wait_with_output().unwrap()
}

fn wait(child: &mut Child) -> (ExitStatus, Duration) {
    let start = Instant::now();
    while start.elapsed() < SOON {
        if let Some(status) = child.try_wait().unwrap() {
            return (status, start.elapsed());
        }
        thread::sleep(Duration::from_millis(2));
    }
    _ = child.kill();
    panic!("it does not end");
}

impl Timber {
    /// Starts the service on a free port of 127.0.0.1.
    pub fn start(arguments: &[&str]) -> Self {
        Timber::spawn(timber().args(["-b", "127.0.0.1:0"]).args(arguments))
    }

    /// Starts the service by this command, and waits until it tells its address.
    pub fn spawn(command: &mut Command) -> Self {
        let mut child = command.spawn().expect("the service starts");
        let events = lines(child.stderr.take().expect("standard error is piped"));
        let requests = child.stdout.take().map(lines);
        let address = ([127, 0, 0, 1], 0).into();
        let mut timber = Timber {
            child,
            address,
            start: Vec::new(),
            events,
            requests,
        };
        loop {
            let line = timber.events.recv_timeout(SOON);
            let line = line.unwrap_or_else(|_| panic!("no address in {:#?}", timber.start));
            timber.start.push(line.clone());
            if let Some((_, rest)) = line.split_once("Listening at: http://") {
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

    /// Sends one request on a connection of its own.
    pub fn ask(&self, request: impl AsRef<[u8]>) -> Answer {
        ask(&mut self.connect(), request)
    }

    pub fn get(&self, path: &str) -> Answer {
        self.ask(get(path))
    }

    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).expect("the process is there");
    }

    /// How it ended, and how long that took.
    pub fn wait(&mut self) -> (ExitStatus, Duration) {
        wait(&mut self.child)
    }

    /// The next line on standard error with this in it.
    pub fn event(&self, part: &str) -> String {
        next_with(&self.events, part)
    }

    /// The next line on standard output with this in it.
    pub fn request(&self, part: &str) -> String {
        next_with(
            self.requests.as_ref().expect("standard output is piped"),
            part,
        )
    }

    /// What else comes on standard output until it is closed.
    pub fn remaining_requests(&self) -> Vec<String> {
        self.requests
            .as_ref()
            .expect("standard output is piped")
            .iter()
            .collect()
    }

    /// The value of a metric without labels.
    pub fn metric(&self, name: &str) -> String {
        let page = self.get("/metrics").text();
        let line = page
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.unwrap_or_else(|| panic!("no {name} in {page}"))
            .to_owned()
    }
}

impl Drop for Timber {
    fn drop(&mut self) {
        _ = self.child.kill();
        _ = self.child.wait();
    }
}

fn next_with(lines: &Receiver<String>, part: &str) -> String {
    loop {
        let line = lines
            .recv_timeout(SOON)
            .unwrap_or_else(|_| panic!("no line with {part:?}"));
        if line.contains(part) {
            return line;
        }
    }
}

fn lines(stream: impl Read + Send + 'static) -> Receiver<String> {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        BufReader::new(stream)
            .lines()
            .map_while(Result::ok)
            .try_for_each(|l| sender.send(l))
    });
    receiver
}

pub fn connect(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).unwrap_or_else(|error| panic!("{address}: {error}"));
    stream.set_read_timeout(Some(SOON)).unwrap();
    stream
}

pub fn get(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: localhost:8000\r\n\r\n")
}

pub fn ask(stream: &mut TcpStream, request: impl AsRef<[u8]>) -> Answer {
    let request = request.as_ref();
    stream.write_all(request).expect("the request is taken");
    Answer::read(stream, request.starts_with(b"HEAD "))
}

/// True when the other side closes, cleanly or not, before it sends anything more.
pub fn is_closed(stream: &mut TcpStream) -> bool {
    match stream.read(&mut [0]) {
        Ok(n) => n == 0,
        Err(error) => error.kind() == std::io::ErrorKind::ConnectionReset,
    }
}

/// A response, read to the end of its body and no further.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Answer {
    pub fn read(stream: &mut TcpStream, has_no_body: bool) -> Self {
        Answer::try_read(stream, has_no_body).unwrap_or_else(|end| panic!("{end}"))
    }

    /// The answer, or what came instead.
    pub fn try_read(stream: &mut impl Read, has_no_body: bool) -> Result<Self, String> {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            match stream.read(&mut byte) {
                Ok(1) => head.push(byte[0]),
                end => {
                    return Err(format!(
                        "{end:?} after {:?}",
                        String::from_utf8_lossy(&head)
                    ));
                }
            }
        }
        let mut slots = [httparse::EMPTY_HEADER; 32];
        let mut parsed = httparse::Response::new(&mut slots);
        let is_whole = parsed.parse(&head).map(|parsed| parsed.is_complete());
        if is_whole != Ok(true) {
            return Err(format!(
                "{is_whole:?} of {:?}",
                String::from_utf8_lossy(&head)
            ));
        }
        let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
        let headers = parsed
            .headers
            .iter()
            .map(|h| (h.name.to_ascii_lowercase(), text(h.value)))
            .collect();
        let mut answer = Answer {
            status: parsed.code.unwrap(),
            headers,
            body: Vec::new(),
        };
        if !has_no_body && answer.status >= 200 {
            let length = answer
                .header("content-length")
                .map_or(0, |length| length.parse().unwrap());
            answer.body.resize(length, 0);
            stream
                .read_exact(&mut answer.body)
                .map_err(|error| format!("{error} in the body"))?;
        }
        Ok(answer)
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers
            .iter()
            .find(|(n, _)| n == name)
            .map(|(_, value)| value.as_str())
    }

    pub fn text(&self) -> String {
        String::from_utf8(self.body.clone()).expect("the body is text")
    }

    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).expect("the body is JSON")
    }
}
