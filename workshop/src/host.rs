//! Facts that the kernel of this machine knows, if the engine runs on it.

use std::{fs, io::ErrorKind};

use crate::units::number;

/// Returns whether a kernel with this release is the one of this machine. A virtual machine has
/// another one.
pub fn is_our_kernel(release: &str) -> bool {
    rustix::system::uname().release().to_str() == Ok(release)
}

/// Reads the model from `/proc`, because the engine does not report it.
pub fn cpu_model() -> Option<String> {
    let text = fs::read_to_string("/proc/cpuinfo").ok()?;
    let model = text
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    model.map(|(_, model)| model.to_owned())
}

/// Sums the proportional set sizes of a container's processes, in which shared pages are divided by
/// their users. In bytes.
///
/// Returns `None` if the processes are not visible, or the user lacks the permission.
pub fn memory_of_processes(id: &str) -> Option<f64> {
    let (mut kilobytes, mut found) = (0, false);
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
        let pss = rollup.lines().find_map(|line| line.strip_prefix("Pss:"))?;
        kilobytes += pss.split_whitespace().next()?.parse::<u64>().ok()?;
        found = true;
    }
    found.then(|| number(kilobytes << 10))
}
