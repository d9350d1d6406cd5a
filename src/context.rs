//! Handles and values that the server, its connections and the API share. It lives below all three,
//! so that a connection does not need to know the server.

use std::time::{Instant, SystemTime};

use crate::admission::Admission;
use crate::config::Config;
use crate::lifecycle::Lifecycle;
use crate::log::Log;
use crate::metrics::Metrics;
use crate::text::since_epoch;
use crate::timers::Timers;

pub struct Context {
    pub config: Config,
    /// The port that the service listens on.
    pub port: u16,
    pub start: Instant,
    pub start_epoch_seconds: u64,
    pub lifecycle: Lifecycle,
    pub admission: Admission,
    pub timers: Timers,
    pub metrics: &'static Metrics,
    pub log: &'static Log,
}

impl Context {
    pub fn new(
        config: Config,
        port: u16,
        timers: Timers,
        metrics: &'static Metrics,
        log: &'static Log,
    ) -> Self {
        Context {
            admission: Admission::new(config.max_connections, metrics),
            config,
            port,
            start: Instant::now(),
            start_epoch_seconds: since_epoch(SystemTime::now()).as_secs(),
            lifecycle: Lifecycle::default(),
            timers,
            metrics,
            log,
        }
    }

    /// Returns a context with the timers of the calling runtime. Nothing writes its log.
    #[cfg(test)]
    pub fn for_test(config: Config) -> &'static Self {
        let metrics: &Metrics = Box::leak(Box::new(Metrics::new([].into_iter())));
        let log: &Log = Box::leak(Box::new(Log::new(false, false, metrics)));
        let timers = Timers::of(tokio::runtime::Handle::current());
        Box::leak(Box::new(Context::new(config, 0, timers, metrics, log)))
    }
}
