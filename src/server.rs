//! The workers with their accept loops, and the graceful shutdown.

use std::future::pending;
use std::io;
use std::net::{SocketAddr, TcpListener as StdListener};
use std::thread;

use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Builder;
use tokio::select;
use tokio::time::{Duration, Instant, sleep, timeout_at};

use crate::admission::Permit;
use crate::connection;
use crate::context::Context;
use crate::lifecycle::AcceptGuard;
use crate::listener;

/// Pause after an accept that failed for lack of resources, such as file descriptors: retrying at
/// once would spin.
const ACCEPT_PAUSE: Duration = Duration::from_secs(1);

/// Time for handshakes that are in progress when the listener stops taking new ones: several round
/// trips within a data center.
const HANDSHAKE_GRACE: Duration = Duration::from_millis(20);

/// Time between the end of accepting and the closing of idle connections: a request that is on its
/// way is still served.
const LAST_REQUEST_GRACE: Duration = Duration::from_millis(100);

/// Starts the workers, and returns their number. `count` is called after the first one's thread has
/// started. If no thread can be started, the caller's runtime serves.
///
/// # Errors
/// The listener cannot be shared.
pub fn start(
    context: &'static Context,
    listener: &StdListener,
    count: impl FnOnce() -> usize,
) -> io::Result<usize> {
    if !start_worker(context, 1, listener.try_clone()?) {
        let guard = context.lifecycle.accept_guard();
        tokio::spawn(accept_loop(context, listener.try_clone()?, guard));
        return Ok(1);
    }
    let workers = count();
    for number in 2..=workers {
        if !start_worker(context, number, listener.try_clone()?) {
            return Ok(number - 1);
        }
    }
    Ok(workers)
}

/// Starts a thread that accepts connections and serves those that it has accepted: a connection
/// never moves to another worker. Returns false if the thread cannot be started.
fn start_worker(context: &'static Context, number: usize, listener: StdListener) -> bool {
    let guard = context.lifecycle.accept_guard();
    // Without timers: see `timers`.
    let worker = move || match Builder::new_current_thread().enable_io().build() {
        Ok(runtime) => runtime.block_on(async {
            accept_loop(context, listener, guard).await;
            // The worker's connections go on. The thread ends with the process.
            pending::<()>().await;
        }),
        Err(error) => context.log.error(&format!(
            "Cannot create the runtime of worker {number}: {error}"
        )),
    };
    let thread = thread::Builder::new().name(format!("worker-{number}"));
    if let Err(error) = thread.spawn(worker) {
        let warning = format!("Cannot start the thread of worker {number}: {error}");
        context.log.warning(&warning);
        return false;
    }
    true
}

async fn accept_loop(context: &'static Context, listener: StdListener, mut guard: AcceptGuard) {
    let listener = match TcpListener::from_std(listener) {
        Ok(listener) => listener,
        Err(error) => {
            let message = format!("Cannot accept connections: {error}");
            return context.log.error(&message);
        }
    };
    select! {
        biased;
        () = guard.stopped() => {}
        () = accept_connections(context, &listener) => {}
    }
}

async fn accept_connections(context: &'static Context, listener: &TcpListener) {
    loop {
        let permit = context.admission.wait().await;
        match listener.accept().await {
            Ok((stream, peer)) => {
                open(context, stream, peer, Some(permit));
            }
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

/// Serves a connection on the runtime of the calling thread.
fn open(context: &'static Context, stream: TcpStream, peer: SocketAddr, permit: Option<Permit>) {
    // Counted before the task runs, so that a shutdown does not miss it.
    let lifecycle = &context.lifecycle;
    let slot = context.admission.admit(permit, lifecycle.open_guard());
    let active = lifecycle.active_guard();
    // On a socket for both families, an IPv4 client has an address such as ::ffff:127.0.0.1.
    let client = peer.ip().to_canonical();
    tokio::spawn(connection::serve(context, stream, client, slot, active));
}

/// Shuts down gracefully within the drain delay plus the drain deadline. Every connection that the
/// kernel has accepted is served. Returns how many were still active at the deadline: they end with
/// the process.
pub async fn drain(context: &'static Context, listener: StdListener) -> usize {
    sleep(context.config.drain_delay).await;
    let deadline = Instant::now() + context.config.drain_deadline;
    // A handshake that completes between the last accept and the close would be reset, and its
    // request lost. So no new handshake may start, and those in progress get time to complete
    // (`cargo test late_handshakes`).
    listener::decline_handshakes(&listener);
    _ = timeout_at(deadline, async {
        context.lifecycle.stop_accepting().await;
        sleep(HANDSHAKE_GRACE).await;
    })
    .await;
    serve_backlog(context, listener);
    match timeout_at(deadline, close_connections(context)).await {
        Ok(()) => 0,
        Err(_) => context.lifecycle.active_connections(),
    }
}

/// Accepts what waits in the backlog, and closes the listener.
fn serve_backlog(context: &'static Context, listener: StdListener) {
    let (backlog, error) = listener::empty_backlog(&listener);
    drop(listener);
    if let Some(error) = error {
        let message = format!("Cannot accept the rest of the backlog: {error}");
        context.log.error(&message);
    }
    for (stream, peer) in backlog {
        let stream = stream
            .set_nonblocking(true)
            .and_then(|()| TcpStream::from_std(stream));
        if let Ok(stream) = stream {
            open(context, stream, peer, None);
        }
    }
}

/// Closes idle connections, and waits until the active ones have finished.
async fn close_connections(context: &'static Context) {
    if context.lifecycle.has_open_connections() {
        sleep(LAST_REQUEST_GRACE).await;
    }
    context.lifecycle.start_closing();
    context.lifecycle.all_closed().await;
}
