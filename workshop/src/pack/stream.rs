//! Bytes on their way: counted, summed, and stopped when the user says so.

use std::io::{self, Read, Write};

use anyhow::Result;
use indicatif::ProgressBar;
use sha2::{Digest, Sha256};
use tokio_util::sync::CancellationToken;

use crate::signals::Signals;

/// What goes through it moves a bar, and fails once the token is cancelled.
pub struct Meter<T> {
    inner: T,
    bar: ProgressBar,
    stop: CancellationToken,
}

impl<T> Meter<T> {
    pub fn new(inner: T, bar: &ProgressBar, stop: &CancellationToken) -> Self {
        Meter {
            inner,
            bar: bar.clone(),
            stop: stop.clone(),
        }
    }

    /// Not `ErrorKind::Interrupted`, which callers take for "try again".
    fn check(&self) -> io::Result<()> {
        if self.stop.is_cancelled() {
            Err(io::Error::other("interrupted"))
        } else {
            Ok(())
        }
    }
}

impl<R: Read> Read for Meter<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.check()?;
        let count = self.inner.read(buffer)?;
        self.bar.inc(count as u64);
        Ok(count)
    }
}

impl<W: Write> Write for Meter<W> {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        self.check()?;
        let count = self.inner.write(buffer)?;
        self.bar.inc(count as u64);
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

/// Counts and sums what is written through it.
pub struct Summed<W> {
    inner: W,
    bytes: u64,
    sha256: Sha256,
}

impl<W> Summed<W> {
    pub fn new(inner: W) -> Self {
        Summed {
            inner,
            bytes: 0,
            sha256: Sha256::new(),
        }
    }

    /// Bytes, and their SHA-256 in hexadecimal digits.
    pub fn finish(self) -> (u64, String) {
        (self.bytes, hex::encode(self.sha256.finalize()))
    }
}

impl<W: Write> Write for Summed<W> {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        let count = self.inner.write(buffer)?;
        self.bytes += count as u64;
        self.sha256.update(&buffer[..count]);
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

/// Cancelled by the first signal that means stop.
///
/// # Errors
/// The process cannot have handlers of signals.
pub fn stop_on_signal() -> Result<CancellationToken> {
    let mut signals = Signals::new()?;
    let stop = CancellationToken::new();
    let cancel = stop.clone();
    tokio::spawn(async move {
        signals.next().await;
        cancel.cancel();
    });
    Ok(stop)
}
