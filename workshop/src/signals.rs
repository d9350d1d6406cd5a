//! Signals that end the tool.

use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};

/// Handlers of SIGINT and SIGTERM. While they exist, the signals do not end the process.
pub struct Signals {
    interrupt: Signal,
    terminate: Signal,
}

impl Signals {
    /// # Errors
    /// The handlers cannot be installed.
    pub fn new() -> io::Result<Self> {
        Ok(Signals {
            interrupt: signal(SignalKind::interrupt())?, // Ctrl-C
            terminate: signal(SignalKind::terminate())?,
        })
    }

    /// Waits for a signal, and returns a word for an error message.
    pub async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.interrupt.recv() => "interrupted",
            _ = self.terminate.recv() => "terminated",
        }
    }
}
