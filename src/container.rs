//! What the process sees of its container: user, root file system, limits.
//!
//! Everything is read from files of `/proc` and `/sys`. A file that is missing (another system,
//! another cgroup layout) makes a fact unknown, never an error: the service runs without it.

use std::fmt;
use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::thread;

/// Memory of a connection with the worst client, in bytes: it pipelines requests with long heads
/// and 100 header fields for long responses, and reads nothing. Half of it is hyper's buffers, the
/// rest is queues and objects of the kernel. cgroup version 2 charges the queues to the container,
/// version 1 does not. Measured by `cargo test worst_client -- --ignored`.
const CONNECTION_MEMORY: u64 = 84 * 1024;

/// Memory of everything else in the container, in bytes: the process, the pages of its file, full
/// logs, and a probe.
const SERVICE_MEMORY: u64 = 4 * 1024 * 1024;

/// Connections that are open even in a container too small for them.
pub const MIN_CONNECTIONS: usize = 16;

/// What the service logs at its start, and derives its limits from. `None` stands for unknown, and
/// for a limit also for unlimited.
#[derive(Debug, PartialEq)]
pub struct Facts {
    pub user: Option<u32>,
    pub read_only_root: Option<bool>,
    /// Memory limit in bytes.
    pub memory_limit: Option<u64>,
    /// CPU limit in thousandths of a CPU.
    pub cpu_limit: Option<u64>,
    /// Limit of processes and threads.
    pub process_limit: Option<u64>,
}

/// Reads the facts.
pub fn facts() -> Facts {
    facts_from(read_file)
}

/// Derives the facts from what `read` returns for a path: the text of its file, if there is one.
pub fn facts_from(read: impl Fn(&Path) -> Option<String>) -> Facts {
    let read_text = |path: &str| read(Path::new(path));
    let cgroups = read_text("/proc/self/cgroup").unwrap_or_default();
    let number = |path: PathBuf| read(&path)?.trim().parse().ok();
    // The lowest number in this file of all groups; "max", no limit, is not a number.
    let lowest = |controller, file: &str| {
        groups(&cgroups, controller)
            .filter_map(|group| number(group.join(file)))
            .min()
    };
    let either =
        |file, controller, v1_file| lowest("", file).or_else(|| lowest(controller, v1_file));
    let cpu_max = groups(&cgroups, "").filter_map(|group| {
        let text = read(&group.join("cpu.max"))?;
        let (quota, period) = text.trim().split_once(' ')?;
        thousandths(quota.parse().ok()?, period.parse().ok()?)
    });
    let cpu_quota = groups(&cgroups, "cpu").filter_map(|group| {
        // A quota of -1, no limit, does not parse.
        let quota = number(group.join("cpu.cfs_quota_us"))?;
        thousandths(quota, number(group.join("cpu.cfs_period_us"))?)
    });
    Facts {
        user: read_text("/proc/self/status").and_then(|text| field(&text, "Uid:")?.parse().ok()),
        read_only_root: read_text("/proc/self/mounts").and_then(|text| is_root_read_only(&text)),
        // cgroup version 1 says "no limit" as the largest multiple of the page size.
        memory_limit: either("memory.max", "memory", "memory.limit_in_bytes")
            .filter(|limit| *limit < 1 << 60),
        cpu_limit: cpu_max.chain(cpu_quota).min(),
        process_limit: either("pids.max", "pids", "pids.max"),
    }
}

impl Facts {
    /// Number of workers: the CPUs that the container may use, but at most a quarter of the process
    /// limit. Threads count as processes, and a probe needs some to start.
    pub fn workers(&self) -> usize {
        let limit = self
            .process_limit
            .and_then(|limit| usize::try_from(limit / 4).ok());
        cpus().min(limit.unwrap_or(usize::MAX).max(1))
    }

    /// Number of connections that fit into the container's memory, besides `reserve` further ones,
    /// if each client behaves as badly as it can; `None` without a limit.
    pub fn max_connections(&self, reserve: usize) -> Option<usize> {
        let connections = self.memory_limit?.saturating_sub(SERVICE_MEMORY) / CONNECTION_MEMORY;
        let connections = usize::try_from(connections).unwrap_or(usize::MAX);
        Some(connections.saturating_sub(reserve).max(MIN_CONNECTIONS))
    }
}

impl fmt::Display for Facts {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self.user {
            Some(user) => write!(f, "User {user}, ")?,
            None => f.write_str("User unknown, ")?,
        }
        f.write_str(match self.read_only_root {
            Some(true) => "root file system read-only, ",
            Some(false) => "root file system writable, ",
            None => "root file system unknown, ",
        })?;
        match self.memory_limit {
            Some(bytes) => write!(f, "memory limit {} KiB, ", bytes / 1024)?,
            None => f.write_str("no memory limit found, ")?,
        }
        match self.cpu_limit {
            Some(limit) => write!(f, "CPU limit {}.{:03}", limit / 1000, limit % 1000),
            None => f.write_str("no CPU limit found"),
        }
    }
}

/// Number of CPUs that the process may use.
pub fn cpus() -> usize {
    thread::available_parallelism().map_or(1, Into::into)
}

/// Returns the soft limit of open file descriptors.
pub fn open_files() -> Option<usize> {
    let limits = read_file(Path::new("/proc/self/limits"))?;
    field(&limits, "Max open files")?.parse().ok()
}

/// Returns the host name; in Docker that of the container, in Kubernetes that of the pod.
pub fn hostname() -> String {
    let name = read_file(Path::new("/proc/sys/kernel/hostname"));
    name.map_or("unknown".to_owned(), |name| name.trim().to_owned())
}

/// Returns the size of the running program's file, which is all of an image on scratch.
pub fn binary_bytes() -> Option<u64> {
    let file = fs::metadata("/proc/self/exe").ok()?;
    Some(file.len())
}

/// Returns the resident memory of this process in bytes.
pub fn resident_memory() -> Option<u64> {
    let status = read_file(Path::new("/proc/self/status"))?;
    let kib: u64 = field(&status, "VmRSS:")?.parse().ok()?;
    Some(kib * 1024)
}

/// Reads a file at once. Files in `/proc` report no size, so [`fs::read_to_string`] would start
/// with 32 bytes.
fn read_file(path: &Path) -> Option<String> {
    let mut text = String::with_capacity(4096);
    File::open(path).ok()?.read_to_string(&mut text).ok()?;
    Some(text)
}

/// Returns the first word after `name` at the start of a line.
fn field<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    let rest = text.lines().find_map(|line| line.strip_prefix(name))?;
    rest.split_whitespace().next()
}

fn is_root_read_only(mounts: &str) -> Option<bool> {
    // Later mounts cover earlier ones, so the last line for / counts.
    let mut lines = mounts.lines().rev();
    let root = lines.find(|line| line.split(' ').nth(1) == Some("/"))?;
    let options = root.split(' ').nth(3)?;
    Some(options.split(',').any(|option| option == "ro"))
}

fn thousandths(quota: u64, period: u64) -> Option<u64> {
    quota.checked_mul(1000)?.checked_div(period)
}

/// Returns the directories of this process's cgroup and its parents, innermost first: a limit of
/// any of them applies. `controller` is empty for cgroup version 2. A container may see the host's
/// path although only its own group is mounted. Then only the last directory, the mount point,
/// exists.
fn groups(cgroups: &str, controller: &str) -> impl Iterator<Item = PathBuf> {
    let path = cgroups.lines().find_map(|line| {
        // `0::/path` in version 2, `5:cpu,cpuacct:/path` in version 1.
        let (_, rest) = line.split_once(':')?;
        let (controllers, path) = rest.split_once(':')?;
        let is_this = controllers.split(',').any(|name| name == controller);
        is_this.then(|| path.trim_start_matches('/'))
    });
    let mount = Path::new("/sys/fs/cgroup").join(controller);
    Path::new(path.unwrap_or_default())
        .ancestors()
        .map(move |group| mount.join(group))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The facts of a container with these files.
    fn facts_of(files: &[(&str, &str)]) -> Facts {
        facts_from(|path| {
            let (_, text) = files.iter().find(|(name, _)| Path::new(name) == path)?;
            Some((*text).to_owned())
        })
    }

    #[test]
    fn cgroup_v2_limit_is_the_lowest_of_all_parents() {
        let facts = facts_of(&[
            ("/proc/self/cgroup", "0::/pod/box\n"),
            ("/sys/fs/cgroup/pod/memory.max", "16777216\n"),
            ("/sys/fs/cgroup/pod/box/memory.max", "max\n"),
            ("/sys/fs/cgroup/pod/cpu.max", "max 100000\n"),
            ("/sys/fs/cgroup/pod/box/cpu.max", "50000 100000\n"),
            ("/sys/fs/cgroup/pod/pids.max", "7\n"),
            ("/sys/fs/cgroup/pod/box/pids.max", "max\n"),
        ]);
        assert_eq!(
            (facts.memory_limit, facts.cpu_limit),
            (Some(16_777_216), Some(500))
        );
        assert_eq!((facts.process_limit, facts.workers()), (Some(7), 1));
    }

    #[test]
    fn reads_cgroup_v2_in_its_own_namespace() {
        let facts = facts_of(&[
            ("/proc/self/cgroup", "0::/\n"),
            ("/sys/fs/cgroup/memory.max", "67108864\n"),
            ("/sys/fs/cgroup/cpu.max", "150000 100000\n"),
        ]);
        assert_eq!(
            (facts.memory_limit, facts.cpu_limit),
            (Some(67_108_864), Some(1500))
        );
    }

    #[test]
    fn reads_cgroup_v1_mounted_at_its_own_group() {
        let facts = facts_of(&[
            (
                "/proc/self/cgroup",
                "5:memory:/docker/abc\n3:cpu,cpuacct:/docker/abc\n",
            ),
            ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "16777216\n"),
            ("/sys/fs/cgroup/cpu/cpu.cfs_quota_us", "25000\n"),
            ("/sys/fs/cgroup/cpu/cpu.cfs_period_us", "100000\n"),
        ]);
        assert_eq!(
            (facts.memory_limit, facts.cpu_limit),
            (Some(16_777_216), Some(250))
        );
    }

    #[test]
    fn unlimited_cgroups_report_no_limit() {
        let v1 = facts_of(&[
            ("/proc/self/cgroup", "5:memory:/\n3:cpu,cpuacct:/\n"),
            (
                "/sys/fs/cgroup/memory/memory.limit_in_bytes",
                "9223372036854771712\n",
            ),
            ("/sys/fs/cgroup/cpu/cpu.cfs_quota_us", "-1\n"),
            ("/sys/fs/cgroup/cpu/cpu.cfs_period_us", "100000\n"),
        ]);
        let v2 = facts_of(&[
            ("/proc/self/cgroup", "0::/\n"),
            ("/sys/fs/cgroup/memory.max", "max\n"),
            ("/sys/fs/cgroup/cpu.max", "max 100000\n"),
        ]);
        for facts in [v1, v2] {
            assert_eq!((facts.memory_limit, facts.cpu_limit), (None, None));
        }
    }

    #[test]
    fn reads_user_and_root_file_system() {
        let facts = facts_of(&[
            (
                "/proc/self/status",
                "Name:\ttimber\nUid:\t65532\t65532\t65532\t65532\n",
            ),
            (
                "/proc/self/mounts",
                "rootfs / rootfs rw 0 0\noverlay / overlay ro,relatime 0 0\nproc /proc proc rw 0 0\n",
            ),
        ]);
        assert_eq!(
            (facts.user, facts.read_only_root),
            (Some(65532), Some(true))
        );
    }

    #[test]
    fn missing_files_make_facts_unknown() {
        let none = Facts {
            user: None,
            read_only_root: None,
            memory_limit: None,
            cpu_limit: None,
            process_limit: None,
        };
        assert_eq!(facts_of(&[]), none);
    }
}
