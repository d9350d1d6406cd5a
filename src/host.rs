//! What the process can see of the container around it: user, root file system, limits.
//!
//! Read from files, the facts of the start-up lines below a root that tests replace. Whatever is not there (no `/proc`, another
//! cgroup layout) is none, never an error: the service runs without it.

use std::path::{Path, PathBuf};
use std::{fmt, fs, io::Read, thread};

/// Facts for the start-up lines; none where the system does not tell.
#[derive(Debug, PartialEq)]
pub struct Facts {
    pub user: Option<u32>,
    pub read_only_root: Option<bool>,
    /// Bytes; none also where there is no limit.
    pub memory_limit: Option<u64>,
    /// Thousandths of a CPU; none also where there is no limit.
    pub cpu_limit: Option<u64>,
    /// Limit of processes and threads in the container; none also where there is no limit.
    pub processes: Option<u64>,
}

/// Reads the facts below `root`, which is `/` but for tests.
pub fn facts(root: &Path) -> Facts {
    let lines = read(root.join("proc/self/cgroup")).unwrap_or_default();
    let groups = |controller| groups(root, &lines, controller);
    // The lowest number in this file of all groups; "max", no limit, is no number.
    let lowest = |controller, file: &str| {
        groups(controller)
            .filter_map(|dir| number(dir.join(file)))
            .min()
    };
    let either =
        |file, controller, old_file| lowest("", file).or_else(|| lowest(controller, old_file));
    let cpu_max = groups("").filter_map(|dir| {
        let text = read(dir.join("cpu.max"))?;
        let (quota, period) = text.trim().split_once(' ')?;
        thousandths(quota.parse().ok()?, period.parse().ok()?)
    });
    let cpu_quota = groups("cpu").filter_map(|dir| {
        // A quota of -1, no limit, does not parse.
        thousandths(
            number(dir.join("cpu.cfs_quota_us"))?,
            number(dir.join("cpu.cfs_period_us"))?,
        )
    });
    Facts {
        user: read(root.join("proc/self/status"))
            .and_then(|text| field(&text, "Uid:")?.parse().ok()),
        read_only_root: read(root.join("proc/self/mounts"))
            .and_then(|mounts| read_only_root(&mounts)),
        // Version 1 says "no limit" as the largest multiple of the page size.
        memory_limit: either("memory.max", "memory", "memory.limit_in_bytes")
            .filter(|limit| *limit < 1 << 60),
        cpu_limit: cpu_max.chain(cpu_quota).min(),
        processes: either("pids.max", "pids", "pids.max"),
    }
}

impl Facts {
    /// Threads to serve with: the CPUs that the container may use. Where the number of processes is limited no
    /// more than a quarter of it, for threads count as processes, and a probe needs some to start.
    pub fn workers(&self) -> usize {
        let most = self
            .processes
            .and_then(|limit| usize::try_from(limit / 4).ok())
            .unwrap_or(usize::MAX);
        cpus().min(most.max(1))
    }

    /// Connections that fit into the container's memory when each has sent all but the end of a long head; none where
    /// no limit is seen. What the kernel holds for them is not counted.
    pub fn connections(&self) -> Option<usize> {
        const EACH: u64 = 40 * 1024;
        const SERVICE: u64 = 4 * 1024 * 1024;
        let room = self.memory_limit?.saturating_sub(SERVICE) / EACH;
        usize::try_from(room.max(16)).ok()
    }
}

impl fmt::Display for Facts {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let user = self
            .user
            .map_or("unknown".to_owned(), |user| user.to_string());
        let root = self
            .read_only_root
            .map_or("unknown", |ro| if ro { "read-only" } else { "writable" });
        let memory = self
            .memory_limit
            .map(|bytes| format!("memory limit {} kiB", bytes / 1024));
        let memory = memory.as_deref().unwrap_or("no memory limit seen");
        let cpu = self
            .cpu_limit
            .map(|cpu| format!("CPU limit {}.{:03}", cpu / 1000, cpu % 1000));
        let cpu = cpu.as_deref().unwrap_or("no CPU limit seen");
        write!(f, "User {user}, root file system {root}, {memory}, {cpu}")
    }
}

/// The CPUs that the process may use.
pub fn cpus() -> usize {
    thread::available_parallelism().map_or(1, Into::into)
}

/// Soft limit of open file descriptors.
pub fn open_files() -> Option<usize> {
    field(&read("/proc/self/limits")?, "Max open files")?
        .parse()
        .ok()
}

/// What this host calls itself; the name of its container in Docker, of its pod in Kubernetes.
pub fn name() -> String {
    read("/proc/sys/kernel/hostname").map_or("unknown".to_owned(), |name| name.trim().to_owned())
}

/// Size of the file that this process runs, which on an empty image is all there is.
pub fn binary_bytes() -> Option<u64> {
    fs::metadata("/proc/self/exe").ok().map(|file| file.len())
}

/// Resident memory of this process in bytes.
pub fn resident_memory() -> Option<u64> {
    let kib: u64 = field(&read("/proc/self/status")?, "VmRSS:")?.parse().ok()?;
    Some(kib * 1024)
}

/// The first word behind `name` at the start of a line.
fn field<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    text.lines()
        .find_map(|line| line.strip_prefix(name))?
        .split_whitespace()
        .next()
}

fn read_only_root(mounts: &str) -> Option<bool> {
    // Later mounts cover earlier ones, so the last line about / counts.
    let root = mounts
        .lines()
        .rev()
        .find(|line| line.split(' ').nth(1) == Some("/"))?;
    Some(
        root.split(' ')
            .nth(3)?
            .split(',')
            .any(|option| option == "ro"),
    )
}

fn thousandths(quota: u64, period: u64) -> Option<u64> {
    quota.checked_mul(1000)?.checked_div(period)
}

fn number(path: impl AsRef<Path>) -> Option<u64> {
    read(path)?.trim().parse().ok()
}

/// In one piece: files like these have no size beforehand, and [`fs::read_to_string`] would start with 32 bytes.
fn read(path: impl AsRef<Path>) -> Option<String> {
    let mut text = String::with_capacity(4096);
    fs::File::open(path).ok()?.read_to_string(&mut text).ok()?;
    Some(text)
}

/// The directories of this process's control group and its parents, innermost first. `controller` is empty for
/// version 2. A limit anywhere on the way up binds. In a container that sees the host's path but only its own
/// group mounted, the last of them, the mount itself, is the one that is there.
fn groups(root: &Path, lines: &str, controller: &str) -> impl Iterator<Item = PathBuf> {
    let path = lines.lines().find_map(|line| {
        // `0::/path` in version 2, `5:cpu,cpuacct:/path` in version 1.
        let (_, rest) = line.split_once(':')?;
        let (controllers, path) = rest.split_once(':')?;
        controllers
            .split(',')
            .any(|name| name == controller)
            .then(|| path.trim_start_matches('/'))
    });
    let mount = root.join("sys/fs/cgroup").join(controller);
    Path::new(path.unwrap_or_default())
        .ancestors()
        .map(move |dir| mount.join(dir))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree(files: &[(&str, &str)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = dir.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        dir
    }

    #[test]
    fn cgroup_v2_limits_are_the_tightest_on_the_way_up() {
        let dir = tree(&[
            ("proc/self/cgroup", "0::/pod/box\n"),
            ("sys/fs/cgroup/pod/memory.max", "16777216\n"),
            ("sys/fs/cgroup/pod/box/memory.max", "max\n"),
            ("sys/fs/cgroup/pod/cpu.max", "max 100000\n"),
            ("sys/fs/cgroup/pod/box/cpu.max", "50000 100000\n"),
            ("sys/fs/cgroup/pod/pids.max", "7\n"),
            ("sys/fs/cgroup/pod/box/pids.max", "max\n"),
        ]);
        let facts = facts(dir.path());
        assert_eq!(
            (facts.memory_limit, facts.cpu_limit),
            (Some(16_777_216), Some(500))
        );
        assert_eq!((facts.processes, facts.workers()), (Some(7), 1));
    }

    #[test]
    fn cgroup_v2_in_its_own_namespace() {
        let dir = tree(&[
            ("proc/self/cgroup", "0::/\n"),
            ("sys/fs/cgroup/memory.max", "67108864\n"),
            ("sys/fs/cgroup/cpu.max", "150000 100000\n"),
        ]);
        let facts = facts(dir.path());
        assert_eq!(
            (facts.memory_limit, facts.cpu_limit),
            (Some(67_108_864), Some(1500))
        );
    }

    #[test]
    fn cgroup_v1_mounted_at_its_own_group() {
        let dir = tree(&[
            (
                "proc/self/cgroup",
                "5:memory:/docker/abc\n3:cpu,cpuacct:/docker/abc\n",
            ),
            ("sys/fs/cgroup/memory/memory.limit_in_bytes", "16777216\n"),
            ("sys/fs/cgroup/cpu/cpu.cfs_quota_us", "25000\n"),
            ("sys/fs/cgroup/cpu/cpu.cfs_period_us", "100000\n"),
        ]);
        let facts = facts(dir.path());
        assert_eq!(
            (facts.memory_limit, facts.cpu_limit),
            (Some(16_777_216), Some(250))
        );
    }

    #[test]
    fn no_limit_is_none_in_both_versions() {
        let v1 = tree(&[
            ("proc/self/cgroup", "5:memory:/\n3:cpu,cpuacct:/\n"),
            (
                "sys/fs/cgroup/memory/memory.limit_in_bytes",
                "9223372036854771712\n",
            ),
            ("sys/fs/cgroup/cpu/cpu.cfs_quota_us", "-1\n"),
            ("sys/fs/cgroup/cpu/cpu.cfs_period_us", "100000\n"),
        ]);
        let v2 = tree(&[
            ("proc/self/cgroup", "0::/\n"),
            ("sys/fs/cgroup/memory.max", "max\n"),
            ("sys/fs/cgroup/cpu.max", "max 100000\n"),
        ]);
        for dir in [v1, v2] {
            let facts = facts(dir.path());
            assert_eq!((facts.memory_limit, facts.cpu_limit), (None, None));
        }
    }

    #[test]
    fn process_files() {
        let dir = tree(&[
            (
                "proc/self/status",
                "Name:\ttimber\nUid:\t65532\t65532\t65532\t65532\n",
            ),
            (
                "proc/self/mounts",
                "rootfs / rootfs rw 0 0\noverlay / overlay ro,relatime 0 0\nproc /proc proc rw 0 0\n",
            ),
        ]);
        let facts = facts(dir.path());
        assert_eq!(
            (facts.user, facts.read_only_root),
            (Some(65532), Some(true))
        );
    }

    #[test]
    fn nothing_to_read_is_none_throughout() {
        let none = Facts {
            user: None,
            read_only_root: None,
            memory_limit: None,
            cpu_limit: None,
            processes: None,
        };
        assert_eq!(facts(tree(&[]).path()), none);
    }
}
