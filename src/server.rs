//! The accept loop, and the graceful shutdown.

use std::collections::VecDeque;
use std::io;
use std::net::{SocketAddr, TcpListener as StdListener, TcpStream as StdStream};

use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio::time::{Duration, Instant, sleep, timeout_at};
use tokio::{join, select};

use crate::admission::Permit;
use crate::connection;
use crate::context::Context;
use crate::listener;
use crate::workers::Workers;

/// Pause after an accept that failed for lack of resources, such as file descriptors: retrying at
/// once would spin.
const ACCEPT_PAUSE: Duration = Duration::from_secs(1);

/// Time for handshakes that are in progress when the listener stops taking new ones: several round
/// trips within a data center.
const HANDSHAKE_GRACE: Duration = Duration::from_millis(20);

/// Time between the end of accepting and the closing of idle connections: a request that is on its
/// way is still served.
const LAST_REQUEST_GRACE: Duration = Duration::from_millis(100);

/// The running server.
pub struct Server {
    context: &'static Context,
    workers: &'static Workers,
    listener: StdListener,
    accept_loop: JoinHandle<()>,
}

impl Server {
    /// Starts to accept and serve in the calling runtime, which is that of the first worker.
    ///
    /// # Errors
    /// The listener cannot be used.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub fn start(context: &'static Context, listener: StdListener) -> io::Result<Self> {
        let workers: &Workers = Box::leak(Box::new(Workers::new(context.log)));
        let accepting = TcpListener::from_std(listener.try_clone()?)?;
        let accept_loop = tokio::spawn(accept_connections(context, workers, accepting));
        Ok(Server {
            context,
            workers,
            listener,
            accept_loop,
        })
    }

    /// Starts the other workers. Call this once.
    ///
    /// # Errors
    /// Which worker cannot be started, and why.
    pub fn start_workers(&self, count: usize) -> Result<(), String> {
        self.workers.start_others(count)
    }

    /// Waits until a worker thread or the accept loop ends. Neither should.
    pub async fn failure(&mut self) {
        select! {
            () = self.workers.thread_ended() => {}
            _ = &mut self.accept_loop => {}
        }
    }

    /// Shuts down gracefully within `delay` plus the drain deadline. Every connection that
    /// the kernel has accepted is served. Returns how many were still active or waiting at the
    /// deadline: they end with the process.
    pub async fn drain(self, delay: Duration) -> usize {
        let context = self.context;
        sleep(delay).await;
        let deadline = Instant::now() + context.config.drain_deadline;
        // A handshake that completes between the last accept and the close would be reset, and its
        // request lost. So no new handshake may start, and those in progress get time to complete
        // (`cargo test late_handshakes`).
        listener::decline_handshakes(&self.listener);
        self.accept_loop.abort();
        if !self.accept_loop.is_finished() {
            _ = self.accept_loop.await; // a second `await` would panic: see `failure`
        }
        _ = timeout_at(deadline, sleep(HANDSHAKE_GRACE)).await;
        let mut backlog = VecDeque::new();
        let close_all = async {
            join!(
                serve_backlog(context, self.workers, self.listener, &mut backlog),
                close_idle_connections(context)
            );
            context.admission.all_closed().await;
        };
        match timeout_at(deadline, close_all).await {
            Ok(()) => 0,
            Err(_) => context.lifecycle.active_connections() + backlog.len(),
        }
    }
}

/// Accepts connections for all workers, up to the connection limit.
async fn accept_connections(
    context: &'static Context,
    workers: &'static Workers,
    listener: TcpListener,
) {
    loop {
        let permit = context.admission.permit().await;
        match listener.accept().await {
            Ok((stream, peer)) => open(context, workers, Ok(stream), peer, permit),
            Err(error) if listener::is_client_gone(&error) => {}
            Err(error) => {
                let message =
                    format!("Cannot accept connections, retrying in {ACCEPT_PAUSE:?}: {error}");
                context.log.error(&message);
                let resume = Instant::now() + ACCEPT_PAUSE;
                context.timers.sleep_until(resume).await;
            }
        }
    }
}

/// Gives a connection to a worker, which serves it to its end.
fn open(
    context: &'static Context,
    workers: &'static Workers,
    stream: io::Result<TcpStream>,
    peer: SocketAddr,
    permit: Permit,
) {
    let (worker, stream) = match stream.and_then(|stream| workers.assign(stream)) {
        Ok(assigned) => assigned,
        Err(error) => {
            let message = format!("Cannot serve a connection: {error}");
            return context.log.error(&message);
        }
    };
    // Counted before the task runs, so that a shutdown does not miss it.
    let slot = context.admission.admit(permit, &worker.open_connections);
    let active = context.lifecycle.active_guard();
    // On a socket for both families, an IPv4 client has an address such as ::ffff:127.0.0.1.
    let client = peer.ip().to_canonical();
    let connection = connection::serve(context, stream, client, slot, active);
    worker.runtime.spawn(connection);
}

/// Accepts every connection in the backlog, closes the listener, and serves each connection when it
/// gets a permit. `backlog` holds those that wait.
async fn serve_backlog(
    context: &'static Context,
    workers: &'static Workers,
    listener: StdListener,
    backlog: &mut VecDeque<(StdStream, SocketAddr)>,
) {
    // Nothing is served before the backlog is empty. Where the system cannot decline handshakes, it
    // could otherwise fill as fast as it empties. This fails only at the limit of file descriptors:
    // then serve what is there, and so free some.
    while let Err(error) = listener::empty_backlog(&listener, backlog) {
        let message = format!("Cannot accept the rest of the backlog yet: {error}");
        context.log.error(&message);
        open_all(context, workers, backlog).await;
        sleep(ACCEPT_PAUSE).await;
    }
    drop(listener);
    open_all(context, workers, backlog).await;
}

/// Opens each connection as soon as a permit is free.
async fn open_all(
    context: &'static Context,
    workers: &'static Workers,
    backlog: &mut VecDeque<(StdStream, SocketAddr)>,
) {
    while !backlog.is_empty() {
        let permit = context.admission.regular_permit().await;
        if let Some((stream, peer)) = backlog.pop_front() {
            open(context, workers, workers.register(stream), peer, permit);
        }
    }
}

/// Closes connections that stay idle after a grace period.
async fn close_idle_connections(context: &'static Context) {
    if context.admission.has_open_connections() {
        sleep(LAST_REQUEST_GRACE).await;
    }
    context.lifecycle.start_closing();
    context.admission.wake_parked();
}
