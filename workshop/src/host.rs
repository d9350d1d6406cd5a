//! Facts that the kernel of this machine knows, if the engine runs on it.

use std::{fs, io::ErrorKind};

use crate::results::{Figure, InUse};

/// Returns whether the engine uses the clock of this machine. A virtual machine has another one.
pub fn clock(kernel: &str) -> Figure<()> {
    if is_our_kernel(kernel) {
        Figure::Value(())
    } else {
        Figure::NotAvailable(
            "the engine runs on another kernel, which has its own clock".to_owned(),
        )
    }
}

fn is_our_kernel(release: &str) -> bool {
    rustix::system::uname().release().to_str() == Ok(release)
}

/// Reads the model from `/proc`, because the engine does not report it.
pub fn cpu_model(kernel: &str) -> Figure<String> {
    let text = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = text
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    match model {
        Some((_, model)) if is_our_kernel(kernel) => Figure::Value(model.to_owned()),
        _ => Figure::NotAvailable("the engine does not report it".to_owned()),
    }
}

/// Sums the proportional set sizes of a container's processes, in which shared pages are divided by
/// their users.
///
/// Returns `None` if the processes are not visible, or the user lacks the permission.
pub fn memory_of_processes(id: &str) -> Option<InUse> {
    let mut sum = InUse {
        anonymous_bytes: 0,
        file_bytes: 0,
    };
    let mut found = false;
    for process in fs::read_dir("/proc").ok()?.filter_map(Result::ok) {
        let read = |file| fs::read_to_string(process.path().join(file));
        if !read("cgroup").is_ok_and(|groups| groups.contains(id)) {
            continue;
        }
        let rollup = match read("smaps_rollup") {
            Ok(rollup) => rollup,
            Err(error) if error.kind() == ErrorKind::PermissionDenied => return None,
            Err(_) => continue, // the process has exited
        };
        let kilobytes = |name: &str| -> Option<u64> {
            let line = rollup.lines().find_map(|line| line.strip_prefix(name))?;
            line.split_whitespace().next()?.parse().ok()
        };
        // Shared memory has no file either.
        sum.anonymous_bytes += (kilobytes("Pss_Anon:")? + kilobytes("Pss_Shmem:")?) << 10;
        sum.file_bytes += kilobytes("Pss_File:")? << 10;
        found = true;
    }
    found.then_some(sum)
}
