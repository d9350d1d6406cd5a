//! One request and what became of it.

use std::{error::Error, fmt, io, iter, str::FromStr};

use anyhow::{Context, Result, ensure};
use http_body_util::{BodyExt, Empty};
use hyper::{
    Request, Response, StatusCode, Uri, body::Bytes, body::Incoming, client::conn::http1, header,
};
use hyper_util::rt::TokioIo;
use serde::{Deserialize, Serialize, Serializer};
use tokio::{net, net::TcpStream, task::JoinSet, time};

use crate::table::clean;

/// More than any `/version` has. Of a longer body the rest is awaited, but not kept.
const BODY_LIMIT: usize = 64 * 1024;

/// What is asked: `http://HOST[:PORT][/PATH]`.
#[derive(Clone, Debug)]
pub struct Target {
    /// As in the URL, for the request's Host.
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
            .with_context(|| format!("not a URL, {expected}"))?;
        let scheme = uri.scheme_str().unwrap_or_default();
        ensure!(
            scheme != "https",
            "TLS is not spoken, only HTTP: {expected}"
        );
        ensure!(scheme == "http", "not an http URL, {expected}");
        let authority = uri.authority().map(ToString::to_string).unwrap_or_default();
        let host = uri.host().unwrap_or_default();
        ensure!(
            !authority.contains('@'),
            "it sends no user name or password: {expected}"
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
            "the host or its port is wrong, {expected}"
        );
        let path = match uri.path_and_query().map_or("/", |path| path.as_str()) {
            "/" if !url["http://".len()..].contains('/') => "/version".to_owned(),
            query if query.starts_with('?') => format!("/{query}"),
            path => path.to_owned(),
        };
        let path = path
            .parse()
            .with_context(|| format!("the path is wrong, {expected}"))?;
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
    /// Any but 200.
    Status(u16),
    /// The connection was closed within the answer's head or body.
    Truncated,
    /// The connection was closed before the answer's first byte.
    Closed,
    Unreachable,
    Unresolved,
    /// The answer is not HTTP.
    Malformed,
    Other,
    /// Not the service's doing: this machine has no port or file left for one more connection.
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
            Cause::Closed => "closed without an answer",
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
    /// For people.
    pub detail: String,
}

/// Who answered. Both are null where the answer does not tell.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Answerer {
    pub release: Option<String>,
    #[serde(rename(deserialize = "hostname"))]
    pub host: Option<String>,
}

/// How far a request came. It is kept apart from the result, so that a timeout leaves it behind.
#[derive(Debug, Default)]
pub struct Progress {
    step: &'static str,
    /// On a kept connection that had answered before.
    pub reused: bool,
    /// The head of an answer came.
    pub answered: bool,
    /// Who answered, or had answered last on a kept connection.
    pub answerer: Option<Answerer>,
}

/// Between two requests it notices by itself that the server closes it. Dropped, it is closed at once.
pub struct Connection {
    sender: http1::SendRequest<Empty<Bytes>>,
    /// The one task that reads and writes. It ends with whether a part of an answer was left over.
    driver: JoinSet<bool>,
    answerer: Option<Answerer>,
}

impl Target {
    /// Asks once, on the connection that is `kept`, on a new one where there is none or it was closed meanwhile. With
    /// `None` the connection is for this request alone, and the server is told so.
    ///
    /// # Errors
    /// Anything but a complete answer with status 200 within `timeout`.
    pub async fn ask(
        &self,
        mut kept: Option<&mut Option<Connection>>,
        timeout: time::Duration,
        progress: &mut Progress,
    ) -> Result<(), Loss> {
        // Out of its place, so that it does not come back after a loss.
        let connection = kept.as_mut().and_then(|kept| kept.take());
        let exchange = self.exchange(connection, kept.is_some(), progress);
        let Ok(result) = time::timeout(timeout, exchange).await else {
            let detail = format!("{} took longer than {timeout:?}", progress.step);
            return Err(Loss {
                cause: Cause::TimedOut,
                detail,
            });
        };
        let connection = result?;
        if let Some(kept) = kept {
            *kept = Some(connection);
        }
        Ok(())
    }

    async fn exchange(
        &self,
        mut kept: Option<Connection>,
        keep: bool,
        progress: &mut Progress,
    ) -> Result<Connection, Loss> {
        loop {
            let mut connection = None;
            if let Some(mut candidate) = kept.take()
                && candidate.sender.ready().await.is_ok()
            {
                connection = Some(candidate);
            }
            progress.reused = connection.is_some();
            progress.answerer = connection
                .as_ref()
                .and_then(|connection| connection.answerer.clone());
            let mut connection = match connection {
                Some(connection) => connection,
                None => self.connect(progress).await?,
            };
            progress.step = "the answer";
            let response = match connection.sender.try_send_request(self.request(keep)).await {
                Ok(response) => response,
                // Closed between two requests, and nothing of this one was written: nothing is lost.
                Err(error) if progress.reused && error.message().is_some() => continue,
                Err(error) => return Err(connection.loss(&error.into_error()).await),
            };
            progress.answered = true;
            let status = response.status();
            let (body, result) = read(response).await;
            if result.is_ok()
                && let Ok(answerer) = serde_json::from_slice::<Answerer>(&body)
            {
                progress.answerer = Some(answerer);
            } else if progress.answerer.is_none() {
                progress.answerer = Some(Answerer::default());
            }
            if status != StatusCode::OK {
                let detail = format!("{status}: {}", first_words(&body));
                return Err(Loss {
                    cause: Cause::Status(status.as_u16()),
                    detail,
                });
            }
            result.map_err(|error| Loss::of(&error, true))?;
            connection.answerer.clone_from(&progress.answerer);
            return Ok(connection);
        }
    }

    async fn connect(&self, progress: &mut Progress) -> Result<Connection, Loss> {
        // For every connection, as clients do: what the name stands for may change with the roll-out.
        progress.step = "resolving the host's name";
        let addresses = net::lookup_host((&*self.host, self.port)).await;
        let unresolved = |error| Loss {
            cause: Cause::Unresolved,
            detail: format!("{}: {error}", self.host),
        };
        let addresses: Vec<_> = addresses.map_err(unresolved)?.collect();
        progress.step = "connecting";
        let stream = TcpStream::connect(&*addresses)
            .await
            .map_err(|error| Loss::of(&error, false))?;
        let stream = TokioIo::new(stream);
        let (sender, mut connection) = http1::handshake(stream)
            .await
            .map_err(|error| Loss::of(&error, false))?;
        let mut driver = JoinSet::new();
        driver.spawn(async move {
            _ = (&mut connection).await; // its errors reach the request, if one is under way
            !connection.into_parts().read_buf.is_empty()
        });
        Ok(Connection {
            sender,
            driver,
            answerer: None,
        })
    }

    fn request(&self, keep: bool) -> Request<Empty<Bytes>> {
        let mut request = Request::new(Empty::new());
        *request.uri_mut() = self.path.clone();
        let agent = concat!("timber-workshop/", env!("CARGO_PKG_VERSION"));
        let host = self
            .authority
            .parse()
            .expect("an authority is made of what headers are made of");
        request.headers_mut().insert(header::HOST, host);
        request
            .headers_mut()
            .insert(header::USER_AGENT, header::HeaderValue::from_static(agent));
        if !keep {
            let close = header::HeaderValue::from_static("close");
            request.headers_mut().insert(header::CONNECTION, close);
        }
        request
    }
}

/// The beginning of the body, and whether all of it came.
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

/// So much of a body as fits into a line.
fn first_words(body: &[u8]) -> String {
    let text: String = String::from_utf8_lossy(body).chars().take(80).collect();
    clean(&text.split_whitespace().collect::<Vec<_>>().join(" "))
}

impl Connection {
    /// Why there was no head of an answer.
    async fn loss(mut self, error: &hyper::Error) -> Loss {
        drop(self.sender);
        let begun = matches!(self.driver.join_next().await, Some(Ok(true)));
        Loss::of(error, begun)
    }
}

impl Loss {
    /// `begun` says that a part of the answer had come.
    fn of(error: &(dyn Error + 'static), begun: bool) -> Self {
        let chain = || iter::successors(Some(error), |&error| error.source());
        let io = chain().find_map(|error| error.downcast_ref::<io::Error>());
        let mut hyper = chain().filter_map(|error| error.downcast_ref::<hyper::Error>());
        let cause = match io {
            // Of a body that is shorter than its Content-Length says, or lacks its last chunk.
            Some(io) if io.kind() == io::ErrorKind::UnexpectedEof => Cause::Truncated,
            Some(io) => Cause::of(io),
            None if hyper.any(hyper::Error::is_parse) => Cause::Malformed,
            None if begun => Cause::Truncated,
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
            // Written to after the reset, a connection says that its pipe is broken.
            (Kind::ConnectionReset | Kind::ConnectionAborted | Kind::BrokenPipe, _) => Cause::Reset,
            (Kind::TimedOut, _) => Cause::TimedOut,
            (Kind::HostUnreachable | Kind::NetworkUnreachable | Kind::NetworkDown, _) => {
                Cause::Unreachable
            }
            // Of hyper, about chunks.
            (Kind::InvalidInput | Kind::InvalidData, _) => Cause::Malformed,
            (Kind::AddrNotAvailable, _)
            | (_, Some(Errno::MFILE | Errno::NFILE | Errno::NOBUFS)) => Cause::Exhausted,
            _ => Cause::Other,
        }
    }
}
