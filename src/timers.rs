//! Timers, driven by a runtime apart from the workers'.
//!
//! A runtime with timers reads the clock and checks its timer wheel on each turn of its event loop,
//! so for each request: 700 of 9,222 instructions (docs/architecture.md). The workers' runtimes
//! therefore have no timers. The supervisor's runtime, which otherwise waits for signals, drives all
//! of them.

use tokio::runtime::Handle;
use tokio::time::{Duration, Instant, Sleep, Timeout, sleep_until, timeout};

/// Creates timers that any worker can await and the supervisor drives.
pub struct Timers(Handle);

impl Timers {
    /// Uses a runtime with timers.
    pub fn of(runtime: Handle) -> Self {
        Timers(runtime)
    }

    /// Returns a future that completes at `deadline`.
    pub fn sleep_until(&self, deadline: Instant) -> Sleep {
        // A timer belongs to the runtime in which it is created.
        let _entered = self.0.enter();
        sleep_until(deadline)
    }

    /// Limits `future` to `duration`.
    pub fn timeout<F: Future>(&self, duration: Duration, future: F) -> Timeout<F> {
        let _entered = self.0.enter();
        timeout(duration, future)
    }
}
