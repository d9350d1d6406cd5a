//! The phase of the process: serving, draining or closing. It only moves forward: `main` and the
//! server advance it, connections and the API read it. No I/O happens here.

use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering::Relaxed};

use tokio::sync::{Notify, futures::Notified};

/// The states after serving, in order.
#[repr(u8)]
#[derive(Clone, Copy)]
enum Phase {
    /// A signal has arrived: `/readyz` returns 503, and responses say `Connection: close`.
    Draining = 1,
    /// Connections close as soon as they have no request in flight.
    Closing,
}

/// The state of the process, and which connections are active.
#[derive(Default)]
pub struct Lifecycle {
    /// 0 while the service is serving, then a [`Phase`].
    phase: AtomicU8,
    /// Notified once, at the start of the closing phase.
    closing: Notify,
    /// Number of connections that are not parked.
    active: AtomicUsize,
}

/// Held by a connection that may have a request in flight. A shutdown aborts the connections that
/// still hold one at its deadline.
pub struct ActiveGuard(&'static Lifecycle);

impl Drop for ActiveGuard {
    fn drop(&mut self) {
        self.0.active.fetch_sub(1, Relaxed);
    }
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

    pub fn active_guard(&'static self) -> ActiveGuard {
        self.active.fetch_add(1, Relaxed);
        ActiveGuard(self)
    }

    /// Number of connections that are not parked.
    pub fn active_connections(&self) -> usize {
        self.active.load(Relaxed)
    }
}
