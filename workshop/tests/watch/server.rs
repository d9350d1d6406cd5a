//! A server that does to each request what a script says, and keeps count.

use std::{
    collections::BTreeMap,
    io,
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    runtime::Runtime,
    time::sleep,
};

pub const ONE: &str = r#"{"release": "1", "hostname": "a"}"#;

/// What a server does with one request.
#[derive(Clone, Copy, PartialEq)]
pub enum Act {
    Good(&'static str),
    Late,
    /// Says that it will close the connection, and does.
    LastGood,
    /// Closes the connection after an answer, without a word.
    GoodAndClose,
    Unavailable(&'static str),
    Reset,
    Close,
    HalfHead,
    HalfBody,
    HalfChunks,
    ResetBody,
    Silence,
    Garbage,
}

impl Act {
    /// What `watch` must call it.
    fn cause(self) -> Option<&'static str> {
        match self {
            Act::Good(_) | Act::Late | Act::LastGood | Act::GoodAndClose => None,
            Act::Unavailable(_) => Some("status 503"),
            Act::Reset | Act::ResetBody => Some("reset"),
            Act::Close => Some("closed without an answer"),
            Act::HalfHead | Act::HalfBody | Act::HalfChunks => Some("truncated"),
            Act::Silence => Some("timed out"),
            Act::Garbage => Some("not HTTP"),
        }
    }
}

#[derive(Default)]
pub struct Seen {
    pub connections: usize,
    /// By kind of connection.
    pub requests: BTreeMap<&'static str, usize>,
    /// By kind of connection and what became of it.
    pub losses: BTreeMap<(&'static str, &'static str), u64>,
    /// Closed or reset before an answer, on a connection that had one before.
    pub retriable: u64,
}

/// What to do with the nth request on this kind of connection, "new" or "kept".
pub type Script = fn(&'static str, usize) -> Act;

/// Ends, with all of its connections, when it is dropped.
pub struct Server {
    pub address: SocketAddr,
    pub seen: Arc<Mutex<Seen>>,
    _runtime: Runtime,
}

impl Server {
    pub fn start(script: Script) -> Self {
        Self::at("127.0.0.1:0".parse().unwrap(), script, |_| false)
    }

    /// `resets` says which connections to reset as soon as they are there.
    pub fn at(address: SocketAddr, script: Script, resets: fn(usize) -> bool) -> Self {
        let listener = std::net::TcpListener::bind(address).unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        let runtime = Runtime::new().unwrap();
        let seen = Arc::new(Mutex::new(Seen::default()));
        let shared = seen.clone();
        runtime.spawn(async move {
            let listener = TcpListener::from_std(listener).unwrap();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let n = {
                    let mut seen = shared.lock().unwrap();
                    seen.connections += 1;
                    seen.connections
                };
                if resets(n) {
                    stream.set_zero_linger().unwrap();
                } else {
                    tokio::spawn(serve(stream, script, shared.clone()));
                }
            }
        });
        Server {
            address,
            seen,
            _runtime: runtime,
        }
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub fn requests(&self) -> u64 {
        self.seen.lock().unwrap().requests.values().sum::<usize>() as u64
    }

    pub fn losses(&self) -> BTreeMap<(String, String), u64> {
        let named =
            |(key, count): (&(&str, &str), &u64)| ((key.0.to_owned(), key.1.to_owned()), *count);
        self.seen.lock().unwrap().losses.iter().map(named).collect()
    }
}

async fn serve(mut stream: TcpStream, script: Script, seen: Arc<Mutex<Seen>>) -> io::Result<()> {
    for answered in 0.. {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            if stream.read_buf(&mut head).await? == 0 {
                return Ok(());
            }
        }
        let head = String::from_utf8(head).unwrap().to_lowercase();
        let kind = if head.contains("connection: close") {
            "new"
        } else {
            "kept"
        };
        let act = {
            let mut seen = seen.lock().unwrap();
            let n = seen.requests.entry(kind).or_default();
            *n += 1;
            let act = script(kind, *n);
            if let Some(cause) = act.cause() {
                *seen.losses.entry((kind, cause)).or_default() += 1;
            }
            seen.retriable += u64::from(answered > 0 && matches!(act, Act::Reset | Act::Close));
            act
        };
        let answer = |status: &str, headers: &str, body: &str| {
            format!(
                "HTTP/1.1 {status}\r\nContent-Length: {}\r\n{headers}\r\n{body}",
                body.len()
            )
        };
        let good = answer("200 OK", "", ONE);
        if act == Act::Late {
            sleep(Duration::from_millis(500)).await;
        }
        let bytes = match act {
            Act::Good(body) => answer("200 OK", "", body),
            Act::Late | Act::GoodAndClose => good,
            Act::LastGood => answer("200 OK", "Connection: close\r\n", ONE),
            Act::Unavailable(body) => answer("503 Service Unavailable", "", body),
            Act::Reset | Act::Close | Act::Silence => String::new(),
            Act::HalfHead => good[..25].to_owned(),
            Act::HalfBody | Act::ResetBody => good[..good.len() - 5].to_owned(),
            Act::HalfChunks => {
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n".to_owned()
            }
            Act::Garbage => "220 smtp.example ready\r\n\r\n".to_owned(),
        };
        stream.write_all(bytes.as_bytes()).await?;
        match act {
            Act::Good(_) | Act::Late | Act::Unavailable(_) => {}
            Act::Silence => _ = stream.read_buf(&mut Vec::new()).await?, // until the client gives up
            Act::ResetBody => {
                sleep(Duration::from_millis(50)).await; // a reset overtakes what the client has not read yet
                return stream.set_zero_linger();
            }
            Act::Reset => return stream.set_zero_linger(),
            _ => return Ok(()),
        }
        if kind == "new" {
            return Ok(());
        }
    }
    Ok(())
}
