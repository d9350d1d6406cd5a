//! Starting threads, and running futures on them. Nothing here is generic: each type parameter
//! would add the code of a thread or of an event loop to the program once more, which is 3 kB.

use std::io;
use std::pin::Pin;
use std::process::ExitCode;
use std::thread;

use tokio::runtime::Runtime;

/// What a thread does, and how the process ends because of it.
pub type Task = Pin<Box<dyn Future<Output = Result<ExitCode, String>>>>;

/// Starts a thread with this name.
///
/// # Errors
/// The system cannot start another thread.
pub fn spawn(name: String, body: Box<dyn FnOnce() + Send>) -> io::Result<()> {
    thread::Builder::new().name(name).spawn(body).map(drop)
}

/// Runs `task` on the calling thread, together with all that is spawned on its runtime.
///
/// # Errors
/// Those of the task.
pub fn block_on(runtime: &Runtime, task: Task) -> Result<ExitCode, String> {
    runtime.block_on(task)
}
