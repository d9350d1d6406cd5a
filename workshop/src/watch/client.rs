//! A request and its outcome.

use std::{error::Error, fmt, io, iter, str::FromStr};

use anyhow::{Context, Result, ensure};
use http_body_util::{BodyExt, Empty};
use hyper::{
    Request, Response, StatusCode, Uri, body::Bytes, body::Incoming, client::conn::http1, header,
};
use hyper_util::rt::TokioIo;
use serde::{Deserialize, Serialize, Serializer};
use tokio::{net, net::TcpStream, task::JoinSet, time};

use crate::terminal::clean;

/// Maximum size of a body in memory. The rest of a longer body is read and discarded.
const BODY_LIMIT: usize = 64 * 1024;

/// The URL of requests: `http://HOST[:PORT][/PATH]`.
#[derive(Clone, Debug)]
pub struct Target {
    /// Host and port as in the URL, for the Host header.
    authority: String,
    host: String,
    port: u16,
    path: Uri,
}

impl FromStr for Target {
    type Err = anyhow::Error;

    fn from_str(url: &str) -> Result<Self> {
        let expected = "expected http://HOST[:PORT][/PATH]";
        let uri: Uri = url
            .parse()
            .with_context(|| format!("invalid URL: {expected}"))?;
        let scheme = uri.scheme_str().unwrap_or_default();
        ensure!(scheme != "https", "unsupported scheme https: {expected}");
        ensure!(scheme == "http", "missing scheme http: {expected}");
        let authority = uri.authority().map(ToString::to_string).unwrap_or_default();
        let host = uri.host().unwrap_or_default();
        ensure!(
            !authority.contains('@'),
            "unsupported user name in the URL: {expected}"
        );
        let port = match authority.strip_prefix(host).unwrap_or_default() {
            "" => 80,
            rest => rest
                .strip_prefix(':')
                .and_then(|port| port.parse().ok())
                .unwrap_or(0),
        };
        ensure!(
            !host.is_empty() && port > 0,
            "invalid host or port: {expected}"
        );
        let path = match uri.path_and_query().map_or("/", |path| path.as_str()) {
            "/" if !url["http://".len()..].contains('/') => "/version".to_owned(),
            query if query.starts_with('?') => format!("/{query}"),
            path => path.to_owned(),
        };
        let path = path
            .parse()
            .with_context(|| format!("invalid path: {expected}"))?;
        let host = host.trim_matches(['[', ']']).to_owned();
        Ok(Target {
            authority,
            host,
            port,
            path,
        })
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "http://{}{}", self.authority, self.path)
    }
}

/// Why a request counts as lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Cause {
    Refused,
    Reset,
    TimedOut,
    /// A status other than 200.
    Status(u16),
    /// The connection was closed during the response.
    Truncated,
    /// The connection was closed before the first byte of the response.
    Closed,
    Unreachable,
    Unresolved,
    /// The response is not HTTP.
    Malformed,
    Other,
    /// This machine has no port or file descriptor left. Not a loss.
    Exhausted,
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(match self {
            Cause::Status(status) => return write!(f, "status {status}"),
            Cause::Refused => "refused",
            Cause::Reset => "reset",
            Cause::TimedOut => "timed out",
            Cause::Truncated => "truncated",
            Cause::Closed => "closed without a response",
            Cause::Unreachable => "unreachable",
            Cause::Unresolved => "host name not resolved",
            Cause::Malformed => "not HTTP",
            Cause::Other => "other",
            Cause::Exhausted => "client exhausted",
        })
    }
}

impl Serialize for Cause {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[derive(Debug)]
pub struct Loss {
    pub cause: Cause,
    /// Error message.
    pub detail: String,
}

/// Release and host that responded. `None`: unknown.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Responder {
    pub release: Option<String>,
    #[serde(rename(deserialize = "hostname"))]
    pub host: Option<String>,
}

/// State of a request. Separate from the result, so that it survives a timeout.
#[derive(Debug, Default)]
pub struct Progress {
    step: &'static str,
    /// The connection has had a response before.
    pub reused: bool,
    /// The head of the response was received.
    pub responded: bool,
    /// Sender of this response, or of the last one on the same connection.
    pub responder: Option<Responder>,
}

/// A connection. Its task notices if the server closes it. Dropping it closes it.
pub struct Connection {
    sender: http1::SendRequest<Empty<Bytes>>,
    /// The task that reads and writes. Returns whether an incomplete response was received.
    driver: JoinSet<bool>,
    responder: Option<Responder>,
}

impl Target {
    /// Sends a request. Reuses the connection in `slot`, or stores a new one there if it is missing
    /// or closed. Without a slot, the connection is closed after the request.
    ///
    /// # Errors
    /// Anything but a complete response with status 200 within `timeout`.
    pub async fn send(
        &self,
        mut slot: Option<&mut Option<Connection>>,
        timeout: time::Duration,
        progress: &mut Progress,
    ) -> Result<(), Loss> {
        // Taken out of its slot, so that it is dropped after a loss.
        let connection = slot.as_mut().and_then(|slot| slot.take());
        let exchange = self.exchange(connection, slot.is_some(), progress);
        let Ok(result) = time::timeout(timeout, exchange).await else {
            let detail = format!("{} took longer than {timeout:?}", progress.step);
            return Err(Loss {
                cause: Cause::TimedOut,
                detail,
            });
        };
        let connection = result?;
        if let Some(slot) = slot {
            *slot = Some(connection);
        }
        Ok(())
    }

    async fn exchange(
        &self,
        mut idle: Option<Connection>,
        keep_alive: bool,
        progress: &mut Progress,
    ) -> Result<Connection, Loss> {
        loop {
            let mut connection = None;
            if let Some(mut candidate) = idle.take()
                && candidate.sender.ready().await.is_ok()
            {
                connection = Some(candidate);
            }
            progress.reused = connection.is_some();
            progress.responder = connection
                .as_ref()
                .and_then(|connection| connection.responder.clone());
            let mut connection = match connection {
                Some(connection) => connection,
                None => self.connect(progress).await?,
            };
            progress.step = "the response";
            let response = match connection
                .sender
                .try_send_request(self.request(keep_alive))
                .await
            {
                Ok(response) => response,
                // The server closed the connection before the request was sent: not a loss.
                Err(error) if progress.reused && error.message().is_some() => continue,
                Err(error) => return Err(connection.loss(&error.into_error()).await),
            };
            progress.responded = true;
            let status = response.status();
            let (body, result) = read(response).await;
            if result.is_ok()
                && let Ok(responder) = serde_json::from_slice::<Responder>(&body)
            {
                progress.responder = Some(responder);
            } else if progress.responder.is_none() {
                progress.responder = Some(Responder::default());
            }
            if status != StatusCode::OK {
                let detail = format!("{status}: {}", first_words(&body));
                return Err(Loss {
                    cause: Cause::Status(status.as_u16()),
                    detail,
                });
            }
            result.map_err(|error| Loss::of(&error, true))?;
            connection.responder.clone_from(&progress.responder);
            return Ok(connection);
        }
    }

    async fn connect(&self, progress: &mut Progress) -> Result<Connection, Loss> {
        // For every connection, because the addresses can change during a rollout.
        progress.step = "name resolution";
        let addresses = net::lookup_host((&*self.host, self.port)).await;
        let unresolved = |error| Loss {
            cause: Cause::Unresolved,
            detail: format!("{}: {error}", self.host),
        };
        let addresses: Vec<_> = addresses.map_err(unresolved)?.collect();
        progress.step = "the connection";
        let stream = TcpStream::connect(&*addresses)
            .await
            .map_err(|error| Loss::of(&error, false))?;
        let stream = TokioIo::new(stream);
        let (sender, mut connection) = http1::handshake(stream)
            .await
            .map_err(|error| Loss::of(&error, false))?;
        let mut driver = JoinSet::new();
        driver.spawn(async move {
            _ = (&mut connection).await; // the request receives the error, too
            !connection.into_parts().read_buf.is_empty()
        });
        Ok(Connection {
            sender,
            driver,
            responder: None,
        })
    }

    fn request(&self, keep_alive: bool) -> Request<Empty<Bytes>> {
        let mut request = Request::new(Empty::new());
        *request.uri_mut() = self.path.clone();
        let agent = concat!("timber-workshop/", env!("CARGO_PKG_VERSION"));
        let host = self
            .authority
            .parse()
            .expect("an authority is a valid header value");
        request.headers_mut().insert(header::HOST, host);
        request
            .headers_mut()
            .insert(header::USER_AGENT, header::HeaderValue::from_static(agent));
        if !keep_alive {
            let close = header::HeaderValue::from_static("close");
            request.headers_mut().insert(header::CONNECTION, close);
        }
        request
    }
}

/// Returns the beginning of the body, and an error if the body is incomplete.
async fn read(response: Response<Incoming>) -> (Vec<u8>, hyper::Result<()>) {
    let mut body = response.into_body();
    let mut start = Vec::new();
    while let Some(frame) = body.frame().await {
        match frame {
            Ok(frame) => {
                let data = frame.data_ref().map_or(&[][..], |data| data);
                start.extend_from_slice(&data[..data.len().min(BODY_LIMIT - start.len())]);
            }
            Err(error) => return (start, Err(error)),
        }
    }
    (start, Ok(()))
}

/// Returns the beginning of a body in one line.
fn first_words(body: &[u8]) -> String {
    let text: String = String::from_utf8_lossy(body).chars().take(80).collect();
    clean(&text.split_whitespace().collect::<Vec<_>>().join(" "))
}

impl Connection {
    /// Returns the cause of a missing response.
    async fn loss(mut self, error: &hyper::Error) -> Loss {
        drop(self.sender);
        let is_partial = matches!(self.driver.join_next().await, Some(Ok(true)));
        Loss::of(error, is_partial)
    }
}

impl Loss {
    /// `is_partial`: a part of the response was received.
    fn of(error: &(dyn Error + 'static), is_partial: bool) -> Self {
        let chain = || iter::successors(Some(error), |&error| error.source());
        let io = chain().find_map(|error| error.downcast_ref::<io::Error>());
        let mut hyper = chain().filter_map(|error| error.downcast_ref::<hyper::Error>());
        let cause = match io {
            // The body is shorter than its Content-Length, or its last chunk is missing.
            Some(io) if io.kind() == io::ErrorKind::UnexpectedEof => Cause::Truncated,
            Some(io) => Cause::of(io),
            None if hyper.any(hyper::Error::is_parse) => Cause::Malformed,
            None if is_partial => Cause::Truncated,
            None => Cause::Closed,
        };
        let detail: Vec<_> = chain().map(ToString::to_string).collect();
        Loss {
            cause,
            detail: detail.join(": "),
        }
    }
}

impl Cause {
    fn of(error: &io::Error) -> Self {
        use io::ErrorKind as Kind;
        use rustix::io::Errno;
        match (error.kind(), Errno::from_io_error(error)) {
            (Kind::ConnectionRefused, _) => Cause::Refused,
            // A write after the reset fails with a broken pipe.
            (Kind::ConnectionReset | Kind::ConnectionAborted | Kind::BrokenPipe, _) => Cause::Reset,
            (Kind::TimedOut, _) => Cause::TimedOut,
            (Kind::HostUnreachable | Kind::NetworkUnreachable | Kind::NetworkDown, _) => {
                Cause::Unreachable
            }
            // hyper's errors about chunks.
            (Kind::InvalidInput | Kind::InvalidData, _) => Cause::Malformed,
            (Kind::AddrNotAvailable, _)
            | (_, Some(Errno::MFILE | Errno::NFILE | Errno::NOBUFS)) => Cause::Exhausted,
            _ => Cause::Other,
        }
    }
}
