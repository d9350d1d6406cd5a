//! Listener, workers, the connection limit, and the drain.

use std::io::{self, ErrorKind};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener as StdListener};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::{future::pending, future::poll_fn, pin::pin, task::Poll, thread};

use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::runtime::{Builder, Handle};
use tokio::sync::{Notify, Semaphore, watch};
use tokio::time::{Duration, Instant, Sleep, sleep, sleep_until, timeout_at};

use crate::{api::App, config::Config, connection, host, log::Log};

/// Handshakes that may wait to be accepted; the kernel caps it at `net.core.somaxconn`, 4096 by default.
const BACKLOG: u32 = 4096;

/// After an accept that failed for want of resources, such as file descriptors: trying again at once would spin.
const ACCEPT_PAUSE: Duration = Duration::from_secs(1);

/// For handshakes that have begun when a stop does: a round trip within a data centre, several times.
const HANDSHAKE: Duration = Duration::from_millis(20);

/// Between the closing of the listener and the closing of silent connections: a request that is on its way on
/// a kept connection is still answered.
const LAST_REQUESTS: Duration = Duration::from_millis(100);

/// Linux's "address family not supported": IPv6 is switched off.
const EAFNOSUPPORT: i32 = 97;

/// The service at work. There is one, and it lives as long as the process.
pub struct Server {
    pub config: Config,
    pub app: &'static App,
    pub log: &'static Log,
    /// The runtime that has the timers. A worker's runtime has none: it would ask the clock and look at its timers
    /// for each request.
    timers: Handle,
    /// Connections that may still be opened.
    permits: Semaphore,
    /// True from the moment when the workers accept no more. Each of them holds a receiver until it has stopped.
    stopped: watch::Sender<bool>,
    /// True from the moment when connections close as soon as they have nothing to do, and the call to do so.
    pub closing: AtomicBool,
    pub close: Notify,
    /// A connection that may have something to do holds a receiver, and a drain waits for it.
    pub busy: watch::Sender<()>,
}

/// Binds the address of `config`. Without a host that is all interfaces: IPv6 and IPv4 (unless the kernel is told
/// to keep them apart, `net.ipv6.bindv6only`), or IPv4 alone where IPv6 is off.
///
/// # Errors
/// Why it cannot be had, in one line.
pub fn listen(config: &Config) -> Result<StdListener, String> {
    let host = config.host.as_deref().unwrap_or("::");
    let ip = address(host).ok_or_else(|| {
        format!("cannot listen at {host:?}: expected an IPv4 or IPv6 address, or localhost")
    })?;
    let mut at = SocketAddr::new(ip, config.port());
    let mut bound = bind(at);
    let is_off = |error: &io::Error| {
        error.kind() == ErrorKind::AddrNotAvailable || error.raw_os_error() == Some(EAFNOSUPPORT)
    };
    if config.host.is_none() && bound.as_ref().is_err_and(is_off) {
        at.set_ip(Ipv4Addr::UNSPECIFIED.into());
        bound = bind(at);
    }
    bound.map_err(|error| {
        let hint = match error.kind() {
            ErrorKind::AddrInUse => {
                "; another process listens there, choose another port with --bind or PORT"
            }
            ErrorKind::PermissionDenied => {
                "; ports below 1024 take a privilege, choose a higher one with --bind or PORT"
            }
            ErrorKind::AddrNotAvailable => "; no interface of this host has that address",
            _ => "",
        };
        format!("cannot listen at {at}: {error}{hint}")
    })
}

/// Connections that may be open at once: as many as `config` says, or fewer where no more than `files` may be open.
///
/// # Errors
/// When there is no room for any, in one line.
pub fn room(config: &Config, files: usize) -> Result<usize, String> {
    // Beside connections: streams, listener and signals; for each worker epoll, its wake-up and a listener.
    let own = |workers: usize| 16 + 4 * workers;
    let most = config.max_connections;
    // How many workers there will be is asked, which takes a while, only where it matters.
    if files >= most + own(config.workers.unwrap_or(256)) {
        return Ok(most);
    }
    let own = own(config.workers.unwrap_or_else(host::cpus));
    if files <= own {
        let limit = format!("it may open {files} files (ulimit -n), and needs more than {own}");
        return Err(format!("cannot start: {limit}"));
    }
    Ok(most.min(files - own))
}

/// The one name that is known is localhost. To resolve others would take musl's resolver into the image.
pub fn address(host: &str) -> Option<IpAddr> {
    if host == "localhost" {
        Some(Ipv4Addr::LOCALHOST.into())
    } else {
        host.parse().ok()
    }
}

fn bind(address: SocketAddr) -> io::Result<StdListener> {
    let socket = if address.is_ipv6() {
        TcpSocket::new_v6()
    } else {
        TcpSocket::new_v4()
    }?;
    // Connections of an earlier process that are in TIME_WAIT do not hold the port.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)?.into_std()
}

/// It has gone again before it was accepted; the next one is fine.
fn is_about_one_client(error: &io::Error) -> bool {
    use ErrorKind::{ConnectionAborted, ConnectionReset, Interrupted};
    matches!(
        error.kind(),
        ConnectionAborted | ConnectionReset | Interrupted
    )
}

/// Classic BPF on what arrives for the listener: a segment with SYN but not ACK begins a handshake and is dropped.
/// Its sender tries again a second later, when the port is closed, and is told so.
#[cfg(target_os = "linux")]
fn decline_handshakes(listener: &StdListener) -> io::Result<()> {
    socket2::SockRef::from(listener).attach_filter(&[
        socket2::SockFilter::new(0x30, 0, 0, 13), // load the byte of the TCP header that has the flags
        socket2::SockFilter::new(0x54, 0, 0, 0x12), // keep SYN and ACK
        socket2::SockFilter::new(0x15, 0, 1, 0x02), // SYN alone?
        socket2::SockFilter::new(0x06, 0, 0, 0),  // drop
        socket2::SockFilter::new(0x06, 0, 0, u32::MAX),
    ])
}

impl Server {
    /// To be called on the runtime that is to have the timers.
    pub fn new(config: Config, app: &'static App, log: &'static Log) -> Self {
        let (timers, permits) = (Handle::current(), Semaphore::new(config.max_connections));
        let (stopped, closing, close, busy) = Default::default();
        Server {
            config,
            app,
            log,
            timers,
            permits,
            stopped,
            closing,
            close,
            busy,
        }
    }

    /// Serves until [`Server::drain`] on threads of its own, or on this one where none can be started. Asks for
    /// their number when the first is at work. Returns how many there are.
    ///
    /// # Errors
    /// When the listener cannot be shared.
    pub fn start(
        &'static self,
        listener: &StdListener,
        count: impl FnOnce() -> usize,
    ) -> io::Result<usize> {
        let accept = || {
            listener
                .try_clone()
                .map(|listener| self.accept(listener, self.stopped.subscribe()))
        };
        if !self.start_worker(1, accept()?) {
            tokio::spawn(accept()?);
            return Ok(1);
        }
        let workers = count();
        for number in 2..=workers {
            if !self.start_worker(number, accept()?) {
                return Ok(number - 1);
            }
        }
        Ok(workers)
    }

    fn start_worker(&'static self, number: usize, accept: impl Future + Send + 'static) -> bool {
        // A connection never moves to another worker.
        let worker = move || match Builder::new_current_thread().enable_io().build() {
            Ok(runtime) => runtime.block_on(async {
                accept.await;
                pending::<()>().await; // connections still run here; the thread ends with the process
            }),
            Err(error) => self
                .log
                .error(&format!("Worker {number} cannot run: {error}")),
        };
        let started = thread::Builder::new()
            .name(format!("worker-{number}"))
            .spawn(worker);
        if let Err(error) = &started {
            self.log
                .warning(&format!("Worker {number} cannot start: {error}"));
        }
        started.is_ok()
    }

    /// Lowers the number of connections that may be open at once. True if it was higher.
    pub fn limit(&self, connections: usize) -> bool {
        self.permits
            .forget_permits(self.config.max_connections.saturating_sub(connections))
            > 0
    }

    /// A timer of the runtime that has them, for use on any.
    pub fn sleep_until(&self, deadline: Instant) -> Sleep {
        let _timers = self.timers.enter();
        sleep_until(deadline)
    }

    async fn accept(&'static self, listener: StdListener, mut stopped: watch::Receiver<bool>) {
        let listener = match TcpListener::from_std(listener) {
            Ok(listener) => listener,
            Err(error) => {
                return self
                    .log
                    .error(&format!("Cannot accept connections: {error}"));
            }
        };
        let accept = async {
            while let Ok(permit) = self.permits.acquire().await {
                match listener.accept().await {
                    Ok((stream, peer)) => {
                        permit.forget(); // Open gives it back
                        self.open(stream, peer);
                    }
                    Err(error) if is_about_one_client(&error) => {}
                    Err(error) => {
                        self.log
                            .error(&format!("Cannot accept, for {ACCEPT_PAUSE:?}: {error}"));
                        self.sleep_until(Instant::now() + ACCEPT_PAUSE).await;
                    }
                }
            }
        };
        is_first(stopped.wait_for(|stopped| *stopped), accept).await;
    }

    fn open(&'static self, stream: TcpStream, peer: SocketAddr) {
        // Counted here and not in the task: a drain must not miss one that has yet to run.
        self.app.metrics.connections.fetch_add(1, Relaxed);
        let (open, busy) = (Open(self), self.busy.subscribe());
        tokio::spawn(async move {
            // IPv4 clients of a socket for both families look like ::ffff:127.0.0.1.
            connection::serve(self, stream, peer.ip().to_canonical(), busy).await;
            drop(open);
        });
    }

    /// Stops within one budget, the delay and the deadline. By now [`App::draining`] is to be set. Nothing that the
    /// kernel has accepted for us is lost: once the workers have let go of the listener, all that waits in its queue is
    /// taken in one go, with nothing served in between (a queue that is served while it is emptied never empties).
    pub async fn drain(&'static self, listener: StdListener) {
        sleep(self.config.drain_delay).await;
        let end = Instant::now() + self.config.drain_deadline;

        // A handshake that ends between the last accept and the close would be reset. So none may begin any more,
        // and those under way get the time to end. Without this, 20 stops under 200 clients lost up to 15
        // requests; with it none (`cargo test nothing_is_lost`). Where the kernel declines, the gap is small.
        #[cfg(target_os = "linux")]
        let _ = decline_handshakes(&listener);
        self.stopped.send_replace(true);
        _ = timeout_at(end, self.stopped.closed()).await;
        _ = timeout_at(end, sleep(HANDSHAKE)).await;
        let mut queue = Vec::new();
        loop {
            match listener.accept() {
                Ok(connection) => queue.push(connection),
                Err(error) if is_about_one_client(&error) => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => {
                    break self
                        .log
                        .error(&format!("Cannot accept what is waiting: {error}"));
                }
            }
        }
        drop(listener);
        for (stream, peer) in queue {
            if let Ok(stream) = stream
                .set_nonblocking(true)
                .and_then(|()| TcpStream::from_std(stream))
            {
                self.open(stream, peer);
            }
        }

        if self.app.metrics.connections.load(Relaxed) > 0 {
            _ = timeout_at(end, sleep(LAST_REQUESTS)).await;
        }
        self.closing.store(true, Relaxed);
        self.close.notify_waiters();
        // What is parked needs no closing: it ends with the process, and is served until then.
        _ = timeout_at(end, self.busy.closed()).await;
    }
}

/// Waits for whichever comes first; true if that is `a`.
pub async fn is_first<A, B>(a: impl Future<Output = A>, b: impl Future<Output = B>) -> bool {
    let (mut a, mut b) = (pin!(a), pin!(b));
    poll_fn(|cx| match a.as_mut().poll(cx) {
        Poll::Ready(_) => Poll::Ready(true),
        Poll::Pending => b.as_mut().poll(cx).map(|_| false),
    })
    .await
}

/// A connection's place among those that may be open.
struct Open(&'static Server);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.permits.add_permits(1);
        self.0.app.metrics.connections.fetch_sub(1, Relaxed);
    }
}
