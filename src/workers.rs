//! The worker threads, and which of them serves a new connection.

use std::future::pending;
use std::io;
use std::net::TcpStream as StdStream;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use tokio::net::TcpStream;
use tokio::runtime::{Builder, Handle};
use tokio::sync::Notify;

use crate::log::Log;
use crate::threads;

/// A thread that serves the connections it is given until they end, on a runtime of its own.
pub struct Worker {
    pub runtime: Handle,
    /// Number of open connections.
    pub load: AtomicUsize,
}

/// The threads that serve. The first one also accepts.
pub struct Workers {
    first: Worker,
    others: OnceLock<Vec<Worker>>,
    /// Notified when a thread has ended, which none should.
    death: Notify,
    log: &'static Log,
}

impl Workers {
    /// To be called in the runtime of the first worker.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub fn new(log: &'static Log) -> Self {
        Workers {
            first: Worker::new(Handle::current()),
            others: OnceLock::new(),
            death: Notify::new(),
            log,
        }
    }

    /// Starts all threads but the first. To be called once.
    ///
    /// # Errors
    /// A thread cannot be started; in one line.
    pub fn start_others(&'static self, count: usize) -> Result<(), String> {
        let others: Result<_, _> = (2..=count).map(|number| self.start(number)).collect();
        _ = self.others.set(others?);
        Ok(())
    }

    fn start(&'static self, number: usize) -> Result<Worker, String> {
        let explain = |error| format!("cannot start worker {number}: {error}");
        // Without timers: see `timers`.
        let runtime = Builder::new_current_thread()
            .enable_io()
            .build()
            .map_err(explain)?;
        // Leaked, because it serves until the process ends. If its thread does not start, tokio would
        // panic: a runtime must not be dropped in another one, here the supervisor's.
        let runtime = Box::leak(Box::new(runtime));
        let worker = Worker::new(runtime.handle().clone());
        self.spawn(number, move || {
            _ = threads::block_on(runtime, Box::pin(pending()));
        })
        .map_err(explain)?;
        Ok(worker)
    }

    fn spawn(
        &'static self,
        number: usize,
        serve: impl FnOnce() + Send + 'static,
    ) -> io::Result<()> {
        let body = move || {
            let _report = ReportDeath {
                workers: self,
                number,
            };
            serve();
        };
        threads::spawn(format!("worker-{number}"), Box::new(body))
    }

    /// Returns the stream in the runtime of the first worker.
    ///
    /// # Errors
    /// The stream cannot be registered there.
    pub fn register(&self, stream: StdStream) -> io::Result<TcpStream> {
        self.first.register(stream)
    }

    /// Chooses the worker for a connection of the first one. That keeps it, unless another one has
    /// clearly fewer: handing over wakes another thread.
    ///
    /// # Errors
    /// The stream cannot be registered with the other worker.
    pub fn hand_over(&'static self, stream: TcpStream) -> io::Result<(&'static Worker, TcpStream)> {
        let load = |worker: &Worker| worker.load.load(Relaxed);
        let others = self.others.get().map_or(&[][..], Vec::as_slice);
        match others.iter().min_by_key(|worker| load(worker)) {
            Some(least) if load(&self.first) > load(least) + 1 + load(least) / 8 => {
                Ok((least, least.register(stream.into_std()?)?))
            }
            _ => Ok((&self.first, stream)),
        }
    }

    /// Waits until a thread has ended.
    pub async fn death(&self) {
        self.death.notified().await;
    }
}

impl Worker {
    fn new(runtime: Handle) -> Self {
        Worker {
            runtime,
            load: AtomicUsize::new(0),
        }
    }

    fn register(&self, stream: StdStream) -> io::Result<TcpStream> {
        let _entered = self.runtime.enter();
        TcpStream::from_std(stream)
    }
}

/// Dropped when a thread ends, for whatever reason.
struct ReportDeath {
    workers: &'static Workers,
    number: usize,
}

impl Drop for ReportDeath {
    fn drop(&mut self) {
        let message = format!("Worker {} has ended, so the service stops", self.number);
        self.workers.log.error(&message);
        self.workers.death.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::timeout;

    use super::*;
    use crate::metrics::Metrics;

    #[tokio::test]
    async fn thread_that_panics_is_reported() {
        let metrics: &Metrics = Box::leak(Box::new(Metrics::new([].into_iter())));
        let log: &Log = Box::leak(Box::new(Log::new(false, false, metrics)));
        let workers: &Workers = Box::leak(Box::new(Workers::new(log)));
        workers.spawn(2, || panic!("for this test")).unwrap();
        let death = timeout(Duration::from_secs(10), workers.death());
        death.await.expect("the death is reported");
    }
}
