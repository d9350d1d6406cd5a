//! A server that treats each request as a script says, and counts.

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

/// Treatment of a request.
#[derive(Clone, Copy, PartialEq)]
pub enum Act {
    Good(&'static str),
    Late,
    /// Responds with `Connection: close`, and closes.
    LastGood,
    /// Responds, and closes without notice.
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
    /// Returns the cause of loss that `watch` must report.
    fn cause(self) -> Option<&'static str> {
        match self {
            Act::Good(_) | Act::Late | Act::LastGood | Act::GoodAndClose => None,
            Act::Unavailable(_) => Some("status 503"),
            Act::Reset | Act::ResetBody => Some("reset"),
            Act::Close => Some("closed without a response"),
            Act::HalfHead | Act::HalfBody | Act::HalfChunks => Some("truncated"),
            Act::Silence => Some("timed out"),
            Act::Garbage => Some("not HTTP"),
        }
    }
}

#[derive(Default)]
pub struct Seen {
    pub connections: usize,
    /// Counts by kind of connection.
    pub requests: BTreeMap<&'static str, usize>,
    /// Counts by kind of connection and cause.
    pub losses: BTreeMap<(&'static str, &'static str), u64>,
    /// Losses before a response on a connection that had one before.
    pub retriable: u64,
}

/// Returns the treatment of the nth request on this kind of connection, "new" or "kept".
pub type Script = fn(&'static str, usize) -> Act;

/// A server that ends with all its connections when dropped.
pub struct Server {
    pub address: SocketAddr,
    pub seen: Arc<Mutex<Seen>>,
    _runtime: Runtime,
}

impl Server {
    pub fn start(script: Script) -> Self {
        Self::at("127.0.0.1:0".parse().unwrap(), script, |_| false)
    }

    /// `resets` selects connections to reset immediately.
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
    for responses in 0.. {
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
            seen.retriable += u64::from(responses > 0 && matches!(act, Act::Reset | Act::Close));
            act
        };
        let response = |status: &str, headers: &str, body: &str| {
            format!(
                "HTTP/1.1 {status}\r\nContent-Length: {}\r\n{headers}\r\n{body}",
                body.len()
            )
        };
        let good = response("200 OK", "", ONE);
        if act == Act::Late {
            sleep(Duration::from_millis(500)).await;
        }
        let bytes = match act {
            Act::Good(body) => response("200 OK", "", body),
            Act::Late | Act::GoodAndClose => good,
            Act::LastGood => response("200 OK", "Connection: close\r\n", ONE),
            Act::Unavailable(body) => response("503 Service Unavailable", "", body),
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
                sleep(Duration::from_millis(50)).await; // a reset discards what the client has not read yet
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
