//! Facts that the kernel of this machine knows.

use std::{fs, io::ErrorKind, path::Path};

use anyhow::{Result, ensure};
use rustix::{
    process::{Pid, Resource, Rlimit, getrlimit, setrlimit, test_kill_process},
    rand::{GetRandomFlags, getrandom},
};

use crate::units::number;

/// Length of a container's id, in hexadecimal digits.
const ID: usize = 64;
/// Length of the prefix that a container has as its host name.
const SHORT_ID: usize = 12;

/// Returns whether a kernel with this release is the one of this machine. A virtual machine has
/// another one.
pub fn is_our_kernel(release: &str) -> bool {
    rustix::system::uname().release().to_str() == Ok(release)
}

/// Raises this process's limit of open files to the highest that is allowed.
///
/// # Errors
/// That is fewer than `needed`.
pub fn raise_open_files(needed: u64) -> Result<()> {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        ..limit
    };
    _ = setrlimit(Resource::Nofile, raised);
    let current = getrlimit(Resource::Nofile).current;
    ensure!(
        current.is_none_or(|current| current >= needed),
        "--connections: needs {needed} open files, but the limit is {}: raise it with ulimit -n, or use fewer connections",
        current.unwrap_or_default()
    );
    Ok(())
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

/// Returns the free space that users can fill on the disk of a directory.
pub fn free_bytes(directory: &str) -> Option<u64> {
    let stat = rustix::fs::statvfs(directory).ok()?;
    Some(stat.f_bavail * stat.f_frsize)
}

/// Returns 64 random bits.
pub fn random() -> u64 {
    let mut bytes = [0; 8];
    getrandom(&mut bytes, GetRandomFlags::empty()).expect("the kernel has random numbers");
    u64::from_ne_bytes(bytes)
}

/// Returns this machine's name, or the container's.
pub fn name() -> String {
    let uname = rustix::system::uname();
    uname.nodename().to_string_lossy().into_owned()
}

/// Returns whether Docker or Podman marked this file system as a container's.
pub fn is_container() -> bool {
    ["/.dockerenv", "/run/.containerenv"]
        .iter()
        .any(|file| Path::new(file).exists())
}

/// Returns possible ids of the container that this process runs in, the most reliable first. They
/// can be prefixes.
pub fn container_ids() -> Vec<String> {
    let read = |file| fs::read_to_string(file).unwrap_or_default();
    container_ids_in(
        &read("/proc/self/mountinfo"),
        &read("/proc/self/cgroup"),
        &name(),
    )
}

fn container_ids_in(mounts: &str, groups: &str, name: &str) -> Vec<String> {
    // Engines mount these files from a directory with the container's id. Other mounts can have the
    // ids of other containers.
    let mounted = mounts.lines().filter_map(|line| {
        let mut words = line.split(' ').skip(3);
        let (source, target) = (words.next()?, words.next()?);
        ["/etc/hostname", "/etc/hosts", "/etc/resolv.conf"]
            .contains(&target)
            .then_some(source)
    });
    let is_hex = |text: &&str, length| {
        text.len() == length && text.bytes().all(|byte| byte.is_ascii_hexdigit())
    };
    let parts = mounted
        .chain([groups])
        .flat_map(|text| text.split(|c: char| !c.is_ascii_alphanumeric()));
    let mut ids: Vec<String> = parts
        .filter(|part| is_hex(part, ID))
        .chain([name].into_iter().filter(|name| is_hex(name, SHORT_ID)))
        .map(str::to_owned)
        .collect();
    ids.dedup();
    ids
}

/// Returns the PID namespace of this process, in which ids of processes are unique. Empty: unknown.
pub fn pid_namespace() -> String {
    let link = fs::read_link("/proc/self/ns/pid").unwrap_or_default();
    link.to_string_lossy().into_owned()
}

/// Returns when a process of this namespace started, in clock ticks since the boot. A later process
/// with the same id has another time.
pub fn process_start(pid: i32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The second field, the name, can contain spaces and parentheses. The start is field 22.
    let (_, rest) = stat.rsplit_once(')')?;
    rest.split_whitespace().nth(19)?.parse().ok()
}

/// Returns whether a process of this namespace exists.
pub fn is_running(pid: i32) -> bool {
    let pid = Pid::from_raw(pid);
    pid.is_some_and(|pid| test_kill_process(pid) != Err(rustix::io::Errno::SRCH))
}

#[cfg(test)]
mod tests {
    use super::{ID, container_ids_in, is_running, process_start, random};

    #[test]
    fn finds_the_id_of_its_own_container() {
        let (own, other) = ("1f".repeat(ID / 2), "2e".repeat(ID / 2));
        // Docker mounts these in a container, and the second line on the host.
        let docker = format!(
            "712 704 259:1 /var/lib/docker/containers/{own}/hostname /etc/hostname rw - ext4 /dev/root rw\n\
             713 704 0:51 / /var/lib/docker/containers/{other}/mounts/shm rw - tmpfs shm rw\n\
             714 704 0:52 / / rw - overlay overlay rw,upperdir=/var/lib/docker/overlay2/{other}/diff\n"
        );
        assert_eq!(container_ids_in(&docker, "0::/\n", "renamed"), [&*own]);
        let podman = format!(
            "612 600 0:25 /containers/overlay-containers/{own}/userdata/hosts /etc/hosts rw - tmpfs tmpfs rw\n"
        );
        assert_eq!(container_ids_in(&podman, "0::/\n", "renamed"), [&*own]);
        let groups = format!("9:memory:/docker/{own}\n0::/system.slice/docker-{own}.scope\n");
        assert_eq!(container_ids_in("", &groups, "renamed"), [&*own]);
        assert_eq!(
            container_ids_in(&docker, "0::/\n", "1f1f1f1f1f1f"),
            [&*own, "1f1f1f1f1f1f"]
        );
        let host = format!("713 704 0:51 / /var/lib/docker/containers/{other}/mounts/shm rw\n");
        assert!(container_ids_in(&host, "0::/init.scope\n", "laptop").is_empty());
    }

    #[test]
    fn a_process_is_known_by_its_id_and_start() {
        let me = std::process::id().cast_signed();
        assert!(is_running(me));
        assert_eq!(process_start(me), process_start(me));
        assert!(process_start(me) > process_start(1));
        let mut child = std::process::Command::new("true").spawn().unwrap();
        child.wait().unwrap();
        let gone = child.id().cast_signed();
        assert!(!is_running(gone) && process_start(gone).is_none());
    }

    #[test]
    fn random_numbers_differ() {
        assert_ne!(random(), random());
    }
}
