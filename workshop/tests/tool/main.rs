//! The tool as a whole: in its own image, and before a talk.

mod boxed;
mod ready;

use std::sync::{Mutex, MutexGuard, PoisonError};

/// One test at a time: they use the same ports, and count what is in the engine.
fn engine() -> MutexGuard<'static, ()> {
    static ENGINE: Mutex<()> = Mutex::new(());
    ENGINE.lock().unwrap_or_else(PoisonError::into_inner)
}
