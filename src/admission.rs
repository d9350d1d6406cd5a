//! The connection limit.

use std::sync::atomic::Ordering::Relaxed;

use tokio::sync::{Semaphore, SemaphorePermit};

use crate::config::Config;
use crate::container;
use crate::lifecycle::OpenGuard;
use crate::metrics::Metrics;

/// Decides how many connections are open at once.
pub struct Admission {
    limit: usize,
    permits: Semaphore,
    metrics: &'static Metrics,
}

/// Permission to open one more connection.
pub type Permit = SemaphorePermit<'static>;

/// An open connection. When it is dropped, the next one may open.
pub struct ConnectionSlot {
    // A pointer to both counters: a larger slot would lift a parked connection from 1.25 to 1.55 kB.
    admission: &'static Admission,
    _open: OpenGuard,
}

impl Admission {
    pub fn new(limit: usize, metrics: &'static Metrics) -> Self {
        let permits = Semaphore::new(limit);
        Admission {
            limit,
            permits,
            metrics,
        }
    }

    /// Lowers the limit. Returns true if it was higher. To be called once, at the start.
    pub fn lower(&self, limit: usize) -> bool {
        let excess = self.limit.saturating_sub(limit);
        self.permits.forget_permits(excess) > 0
    }

    /// Waits until one more connection may be open.
    #[expect(clippy::missing_panics_doc, reason = "the semaphore is never closed")]
    pub async fn wait(&'static self) -> Permit {
        let permit = self.permits.acquire().await;
        permit.expect("the semaphore is never closed")
    }

    /// Counts an open connection. A shutdown opens those in the backlog without a permit.
    pub fn admit(&'static self, permit: Option<Permit>, open: OpenGuard) -> ConnectionSlot {
        if let Some(permit) = permit {
            permit.forget(); // returned by `drop`
        }
        self.metrics.connections.fetch_add(1, Relaxed);
        ConnectionSlot {
            admission: self,
            _open: open,
        }
    }
}

impl Drop for ConnectionSlot {
    fn drop(&mut self) {
        let Admission {
            permits, metrics, ..
        } = self.admission;
        permits.add_permits(1);
        metrics.connections.fetch_sub(1, Relaxed);
    }
}

/// Returns how many connections may be open at once: the configured maximum, or fewer if the
/// process may open no more than `open_files` files.
///
/// # Errors
/// The limit leaves no room for a connection; in one line.
pub fn limit_by_open_files(config: &Config, open_files: usize) -> Result<usize, String> {
    // Beside connections: streams, listener and signals, and for each worker an epoll instance, its
    // wake-up and a listener.
    let reserved_files = |workers: usize| 16 + 4 * workers;
    let wanted = config.max_connections;
    // Counting the CPUs takes a while, so count them only if the result depends on it.
    if open_files >= wanted + reserved_files(config.workers.unwrap_or(256)) {
        return Ok(wanted);
    }
    let reserved = reserved_files(config.workers.unwrap_or_else(container::cpus));
    if open_files <= reserved {
        let limit = "cannot start: the file-descriptor limit (ulimit -n)";
        return Err(format!(
            "{limit} is {open_files}, expected more than {reserved}"
        ));
    }
    Ok(wanted.min(open_files - reserved))
}
