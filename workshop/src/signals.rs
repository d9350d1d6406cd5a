//! The signals that mean stop.

use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};

/// From here on neither ends the process by itself.
pub struct Signals {
    interrupt: Signal,
    terminate: Signal,
}

impl Signals {
    /// # Errors
    /// The process cannot have handlers of signals.
    pub fn new() -> io::Result<Self> {
        Ok(Signals {
            interrupt: signal(SignalKind::interrupt())?, // Ctrl-C
            terminate: signal(SignalKind::terminate())?,
        })
    }

    /// What the next one has done to the process.
    pub async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.interrupt.recv() => "interrupted",
            _ = self.terminate.recv() => "terminated",
        }
    }
}
