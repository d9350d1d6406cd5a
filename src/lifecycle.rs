//! Where the process is between its start and its exit: serving, draining, closing. It only moves
//! forward: `main` and the server advance it, connections and the API read it. No I/O happens here.

use std::sync::atomic::{AtomicU8, Ordering::Relaxed};

use tokio::sync::{Notify, futures::Notified, watch};

/// The states after serving, in order.
#[repr(u8)]
#[derive(Clone, Copy)]
enum Phase {
    /// A signal has arrived: `/readyz` returns 503, and responses say `Connection: close`.
    Draining = 1,
    /// Connections close as soon as they have no request in flight.
    Closing,
}

/// The state of the process, and the guards that a graceful shutdown waits for.
#[derive(Default)]
pub struct Lifecycle {
    /// 0 while the service is serving, then a [`Phase`].
    phase: AtomicU8,
    /// Notified once, at the start of the closing phase.
    closing: Notify,
    /// True once the workers have to stop accepting. Each accept loop holds a receiver.
    stop_accepting: watch::Sender<bool>,
    /// Every connection holds a receiver.
    open: watch::Sender<()>,
    /// Every connection that is not parked holds a receiver.
    active: watch::Sender<()>,
}

/// Held by an accept loop. A shutdown waits until all of them are dropped.
pub struct AcceptGuard(watch::Receiver<bool>);

impl AcceptGuard {
    /// Waits until the workers have to stop accepting.
    pub async fn stopped(&mut self) {
        // An error means that the sender is gone, and with it the whole lifecycle.
        _ = self.0.wait_for(|stop| *stop).await;
    }
}

/// Held by a connection until it ends. A shutdown waits until all are dropped.
pub struct OpenGuard {
    _receiver: watch::Receiver<()>,
}

/// Held by a connection that may have a request in flight. A shutdown that does not wait for it aborts
/// the connection.
pub struct ActiveGuard {
    _receiver: watch::Receiver<()>,
}

impl Lifecycle {
    /// Returns true from the first signal on.
    pub fn is_draining(&self) -> bool {
        self.phase.load(Relaxed) >= Phase::Draining as u8
    }

    /// Returns true once connections have to close as soon as no request is in flight.
    pub fn is_closing(&self) -> bool {
        self.phase.load(Relaxed) >= Phase::Closing as u8
    }

    /// Turns readiness off.
    pub fn start_draining(&self) {
        self.phase.fetch_max(Phase::Draining as u8, Relaxed);
    }

    /// Tells the accept loops to stop, and waits until the last of them has.
    pub async fn stop_accepting(&self) {
        self.stop_accepting.send_replace(true);
        self.stop_accepting.closed().await;
    }

    /// Tells connections to close once they have no request in flight.
    pub fn start_closing(&self) {
        self.phase.fetch_max(Phase::Closing as u8, Relaxed);
        self.closing.notify_waiters();
    }

    /// Returns a future that completes when the closing phase starts. It misses a start before this
    /// call, so check [`Lifecycle::is_closing`], too.
    pub fn closing(&self) -> Notified<'_> {
        self.closing.notified()
    }

    pub fn accept_guard(&self) -> AcceptGuard {
        AcceptGuard(self.stop_accepting.subscribe())
    }

    pub fn open_guard(&self) -> OpenGuard {
        OpenGuard {
            _receiver: self.open.subscribe(),
        }
    }

    pub fn active_guard(&self) -> ActiveGuard {
        ActiveGuard {
            _receiver: self.active.subscribe(),
        }
    }

    /// Number of connections that are not parked.
    pub fn active_connections(&self) -> usize {
        self.active.receiver_count()
    }

    pub fn has_open_connections(&self) -> bool {
        self.open.receiver_count() > 0
    }

    /// Waits until all connections are closed.
    pub async fn all_closed(&self) {
        self.open.closed().await;
    }
}
