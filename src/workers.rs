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
    pub open_connections: AtomicUsize,
}

/// The threads that serve. The first one also accepts.
pub struct Workers {
    first: Worker,
    others: OnceLock<Vec<Worker>>,
    /// Notified when a thread has ended, which none should.
    thread_ended: Notify,
    log: &'static Log,
}

impl Workers {
    /// Call this in the runtime of the first worker.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub fn new(log: &'static Log) -> Self {
        Workers {
            first: Worker::new(Handle::current()),
            others: OnceLock::new(),
            thread_ended: Notify::new(),
            log,
        }
    }

    /// Starts all threads but the first. Call this once.
    ///
    /// # Errors
    /// Which thread cannot be started, and why.
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
        // Leaked: it lives as long as the process. If the thread fails to start, dropping it here,
        // inside the supervisor's runtime, would panic.
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
            let _report = ReportEnd {
                workers: self,
                number,
            };
            serve();
        };
        threads::spawn(format!("worker-{number}"), Box::new(body))
    }

    /// Registers the stream with the first worker's event loop.
    ///
    /// # Errors
    /// The stream cannot be registered there.
    pub fn register(&self, stream: StdStream) -> io::Result<TcpStream> {
        self.first.register(stream)
    }

    /// Chooses the worker for a connection that the first one has accepted, and returns the stream
    /// in its runtime.
    ///
    /// # Errors
    /// The stream cannot be registered with the other worker.
    pub fn assign(&'static self, stream: TcpStream) -> io::Result<(&'static Worker, TcpStream)> {
        let load = |worker: &Worker| worker.open_connections.load(Relaxed);
        let others = self.others.get().map_or(&[][..], Vec::as_slice);
        match others.iter().min_by_key(|worker| load(worker)) {
            Some(least) if !keeps(load(&self.first), load(least)) => {
                Ok((least, least.register(stream.into_std()?)?))
            }
            _ => Ok((&self.first, stream)),
        }
    }

    /// Waits until a thread has ended.
    pub async fn thread_ended(&self) {
        self.thread_ended.notified().await;
    }
}

/// Returns true if the first worker, with `first` open connections, keeps the next one, although
/// another worker has only `least`. Keeping is cheaper, because handing over wakes another thread.
/// From 8 connections per worker on, the fullest worker has at most 1.25 times the mean.
fn keeps(first: usize, least: usize) -> bool {
    first <= least + (least / 8).max(1)
}

impl Worker {
    fn new(runtime: Handle) -> Self {
        Worker {
            runtime,
            open_connections: AtomicUsize::new(0),
        }
    }

    fn register(&self, stream: StdStream) -> io::Result<TcpStream> {
        let _entered = self.runtime.enter();
        TcpStream::from_std(stream)
    }
}

/// Dropped when a thread ends, for whatever reason.
struct ReportEnd {
    workers: &'static Workers,
    number: usize,
}

impl Drop for ReportEnd {
    fn drop(&mut self) {
        let message = format!("Worker {} has ended, so the service stops", self.number);
        self.workers.log.error(&message);
        self.workers.thread_ended.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::timeout;

    use super::*;
    use crate::config::Config;
    use crate::context::Context;

    #[test]
    fn fullest_worker_has_at_most_a_quarter_more_than_the_mean() {
        for workers in [2, 3, 4, 8, 16, 64] {
            let mut loads = vec![0; workers];
            for connections in 1..=4_000 {
                let (first, others) = loads.split_first_mut().unwrap();
                let least = others.iter_mut().min().unwrap();
                *if keeps(*first, *least) { first } else { least } += 1;
                let fullest = loads.iter().max().unwrap();
                assert!(
                    connections < 8 * workers || 4 * fullest * workers <= 5 * connections,
                    "{connections} connections: {loads:?}"
                );
            }
        }
    }

    #[tokio::test]
    async fn thread_that_panics_is_reported() {
        let log = Context::for_test(Config::default()).log;
        let workers: &Workers = Box::leak(Box::new(Workers::new(log)));
        workers.spawn(2, || panic!("for this test")).unwrap();
        let end = timeout(Duration::from_secs(10), workers.thread_ended());
        end.await.expect("the end is reported");
    }
}
