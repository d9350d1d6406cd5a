//! What the parts of the service share: plain values and shared handles. It lives below the server
//! and its connections, so that a connection does not need to know the server.

use std::time::Instant;

use crate::admission::Admission;
use crate::config::Config;
use crate::lifecycle::Lifecycle;
use crate::log::Log;
use crate::metrics::Metrics;
use crate::text::epoch_seconds;
use crate::timers::Timers;

pub struct Context {
    pub config: Config,
    /// The port that the service listens on.
    pub port: u16,
    pub started: Instant,
    /// Seconds since the Unix epoch.
    pub started_at: u64,
    pub lifecycle: Lifecycle,
    pub admission: Admission,
    pub timers: Timers,
    pub metrics: &'static Metrics,
    pub log: &'static Log,
}

impl Context {
    /// The caller's runtime drives the timers.
    pub fn new(config: Config, port: u16, metrics: &'static Metrics, log: &'static Log) -> Self {
        Context {
            admission: Admission::new(config.max_connections, metrics),
            config,
            port,
            started: Instant::now(),
            started_at: epoch_seconds(),
            lifecycle: Lifecycle::default(),
            timers: Timers::of_this_runtime(),
            metrics,
            log,
        }
    }
}
