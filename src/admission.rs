//! The connection limit: who may open a connection, and who closes one at the limit.
//!
//! At the limit, a new connection opens from a small reserve and asks for a permit. The connection
//! that has been parked longest closes and so returns its permit: a server may close an idle
//! connection at any time (RFC 9112 section 9.5). If none is parked, the new connection stays in
//! the reserve, where `connection` responds to probes and refuses the rest. Beyond the reserve,
//! clients wait in the backlog.

use std::future::poll_fn;
use std::mem;
use std::pin::pin;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use tokio::select;
use tokio::sync::{Notify, Semaphore, SemaphorePermit, futures::Notified};
use tokio::time::Duration;

use crate::config::Config;
use crate::container::{self, MIN_CONNECTIONS};
use crate::metrics::Metrics;
use crate::timers::Timers;

/// Connections beyond the limit that are open at once. Together with the time that each of them
/// may take, this decides how many clients per second find out that the service is full: 64 (see
/// `connection::RESERVE_TIMEOUT`).
pub const RESERVE: usize = 16;

/// Time that a new connection at the limit waits for a permit. A parked connection returns its own
/// within a millisecond, unless the machine is overloaded.
const PERMIT_TIMEOUT: Duration = Duration::from_millis(50);

/// Decides how many connections are open at once.
pub struct Admission {
    permits: Semaphore,
    reserve: Semaphore,
    /// Number of permits that reserve connections wait for, and that no closing connection is about
    /// to return.
    missing_permits: AtomicUsize,
    /// Parked connections wait here, in the order in which they were parked.
    parked: Notify,
    /// Notified when the last open connection has closed.
    all_closed: Notify,
    /// The limit before that of the container is known.
    initial_limit: usize,
    metrics: &'static Metrics,
}

/// Permission to open one more connection.
pub enum Permit {
    Regular(SemaphorePermit<'static>),
    Reserve(SemaphorePermit<'static>),
}

/// An open connection. When it is dropped, the next one may open.
pub struct ConnectionSlot {
    // 8 bytes more would put a parked connection into the allocator's next size class: 1.55 instead
    // of 1.25 kB (`cargo test idle_connection -- --ignored`).
    admission: &'static Admission,
    /// Number of open connections of the worker that serves this one.
    load: &'static AtomicUsize,
    kind: SlotKind,
}

#[derive(PartialEq)]
enum SlotKind {
    Regular,
    Reserve,
    /// Was regular, and closes in favor of a connection of the reserve.
    Evicted,
}

impl Admission {
    pub fn new(limit: usize, metrics: &'static Metrics) -> Self {
        let initial_limit = limit.min(MIN_CONNECTIONS);
        Admission {
            permits: Semaphore::new(initial_limit),
            reserve: Semaphore::new(RESERVE),
            missing_permits: AtomicUsize::new(0),
            parked: Notify::new(),
            all_closed: Notify::new(),
            initial_limit,
            metrics,
        }
    }

    /// Raises the limit from the initial one to the final one. Call this once.
    pub fn raise(&self, limit: usize) {
        let more = limit.saturating_sub(self.initial_limit);
        (0..more)
            .take_while(|_| self.claim_missing_permit())
            .for_each(drop);
        self.permits.add_permits(more);
    }

    /// Waits until one more connection may be open. Prefers the reserve, because `accept` may wait
    /// long for a client, and meanwhile a connection of the reserve may need the regular permit.
    /// [`Admission::admit`] takes a regular permit if one is free.
    pub async fn permit(&'static self) -> Permit {
        loop {
            if let Ok(permit) = self.reserve.try_acquire() {
                return Permit::Reserve(permit);
            }
            if let Ok(permit) = self.permits.try_acquire() {
                return Permit::Regular(permit);
            }
            select! {
                biased;
                permit = acquire(&self.reserve) => return Permit::Reserve(permit),
                // Not kept: it may be meant for a connection of the reserve, which takes it first.
                permit = acquire(&self.permits) => drop(permit),
            }
        }
    }

    /// Waits until one more connection may be open, and never takes from the reserve.
    pub async fn regular_permit(&'static self) -> Permit {
        Permit::Regular(acquire(&self.permits).await)
    }

    /// Counts an open connection of the worker that has `load`.
    pub fn admit(&'static self, permit: Permit, load: &'static AtomicUsize) -> ConnectionSlot {
        let permit = match permit {
            Permit::Reserve(reserve) => self
                .permits
                .try_acquire()
                .map_or(Permit::Reserve(reserve), Permit::Regular),
            regular @ Permit::Regular(_) => regular,
        };
        let kind = match permit {
            Permit::Regular(_) => SlotKind::Regular,
            Permit::Reserve(_) => SlotKind::Reserve,
        };
        let (Permit::Regular(permit) | Permit::Reserve(permit)) = permit;
        permit.forget(); // returned by `drop`
        load.fetch_add(1, Relaxed);
        self.metrics.connections.fetch_add(1, Relaxed);
        ConnectionSlot {
            admission: self,
            load,
            kind,
        }
    }

    /// Returns a future for a parked connection. It completes when the connection may have to
    /// close: ask [`ConnectionSlot::give_way`], and whether the closing phase has begun.
    pub fn parked(&self) -> Notified<'_> {
        self.parked.notified()
    }

    /// Wakes every parked connection, because the closing phase has begun.
    pub fn wake_parked(&self) {
        self.parked.notify_waiters();
    }

    /// Wakes the connection that has been parked longest. If there is none, the next one that parks
    /// wakes up in vain.
    pub fn wake_longest_parked(&self) {
        self.parked.notify_one();
    }

    /// Counts one missing permit less: a connection returns it, or nobody waits for it any longer.
    /// Returns false if none was missing.
    fn claim_missing_permit(&self) -> bool {
        let one_less = |missing: usize| missing.checked_sub(1);
        self.missing_permits
            .fetch_update(Relaxed, Relaxed, one_less)
            .is_ok()
    }

    pub fn has_open_connections(&self) -> bool {
        self.metrics.connections.load(Relaxed) > 0
    }

    /// Waits until all connections are closed. Only one task may wait.
    pub async fn all_closed(&self) {
        while self.has_open_connections() {
            self.all_closed.notified().await;
        }
    }
}

async fn acquire(semaphore: &'static Semaphore) -> SemaphorePermit<'static> {
    semaphore
        .acquire()
        .await
        .expect("the semaphore is never closed")
}

impl ConnectionSlot {
    pub fn is_reserve(&self) -> bool {
        self.kind == SlotKind::Reserve
    }

    /// Moves a connection from the reserve to a regular permit, for which the connection that has
    /// been parked longest is closed. Returns false if no permit comes within [`PERMIT_TIMEOUT`].
    pub async fn leave_reserve(&mut self, timers: &Timers) -> bool {
        let admission = self.admission;
        admission.missing_permits.fetch_add(1, Relaxed);
        let mut is_queued = false;
        let mut permit = pin!(acquire(&admission.permits));
        let wait = poll_fn(|cx| {
            let permit = permit.as_mut().poll(cx);
            // Only once this connection is in the queue, so that no other one gets the permit.
            if permit.is_pending() && !mem::replace(&mut is_queued, true) {
                admission.wake_longest_parked();
            }
            permit
        });
        let Ok(permit) = timers.timeout(PERMIT_TIMEOUT, wait).await else {
            admission.claim_missing_permit();
            return false;
        };
        if !is_queued {
            admission.claim_missing_permit(); // the permit was free, so nobody closes for it
        }
        permit.forget();
        self.kind = SlotKind::Regular;
        admission.reserve.add_permits(1);
        true
    }

    /// Returns true if this parked connection has to close, because another one waits for its
    /// permit.
    pub fn give_way(&mut self) -> bool {
        let admission = self.admission;
        let has_to_close = admission.claim_missing_permit();
        if has_to_close {
            self.kind = SlotKind::Evicted;
            let evicted = &admission.metrics.evicted_connections;
            evicted.fetch_add(1, Relaxed);
            // `Notify` stores one wake-up only, even if several connections have asked.
            if admission.missing_permits.load(Relaxed) > 0 {
                admission.wake_longest_parked();
            }
        }
        has_to_close
    }
}

impl Drop for ConnectionSlot {
    fn drop(&mut self) {
        let admission = self.admission;
        self.load.fetch_sub(1, Relaxed);
        if self.is_reserve() {
            admission.reserve.add_permits(1);
        } else {
            if self.kind == SlotKind::Regular {
                admission.claim_missing_permit();
            }
            admission.permits.add_permits(1);
        }
        if admission.metrics.connections.fetch_sub(1, Relaxed) == 1 {
            admission.all_closed.notify_one();
        }
    }
}

/// Returns how many connections may be open at once: the configured maximum, or fewer if the
/// process may open no more than `open_files` files.
///
/// # Errors
/// A one-line message if the limit leaves no room for a connection.
pub fn limit_by_open_files(config: &Config, open_files: usize) -> Result<usize, String> {
    // Besides connections: standard streams, listener and signals, and for each worker an epoll
    // instance, its wake-up and a receiver of signals.
    let reserved_files = |workers: usize| 16 + RESERVE + 3 * workers;
    let configured = config.max_connections;
    // Counting the CPUs takes a while, so count them only if the result depends on it.
    if open_files >= configured + reserved_files(config.workers.unwrap_or(256)) {
        return Ok(configured);
    }
    let reserved = reserved_files(config.workers.unwrap_or_else(container::cpus));
    if open_files <= reserved {
        let limit = "cannot start: the file-descriptor limit (ulimit -n)";
        return Err(format!(
            "{limit} is {open_files}, expected more than {reserved}"
        ));
    }
    Ok(configured.min(open_files - reserved))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::context::Context;

    #[tokio::test]
    async fn limit_is_low_at_first_and_raised_once() {
        for (configured, first, last) in [(10_000, 16, 130), (4, 4, 4)] {
            let mut config = Config::default();
            config.max_connections = configured;
            let admission = &Context::for_test(config).admission;
            assert_eq!(admission.permits.available_permits(), first);
            admission.raise(last);
            assert_eq!(admission.permits.available_permits(), last);
        }
    }

    #[tokio::test]
    async fn no_regular_permit_is_held_while_accept_waits() {
        static LOAD: AtomicUsize = AtomicUsize::new(0);
        let mut config = Config::default();
        config.max_connections = 2;
        let admission = &Context::for_test(config).admission;
        let permit = admission.permit().await;
        assert_eq!(admission.permits.available_permits(), 2);
        let slot = admission.admit(permit, &LOAD);
        assert!(!slot.is_reserve());
        assert_eq!(admission.permits.available_permits(), 1);
        assert_eq!(admission.reserve.available_permits(), RESERVE);
    }
}
