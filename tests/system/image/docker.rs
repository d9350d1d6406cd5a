//! Runs the commands that users type, and removes the containers and images that a test creates.

use std::{
    collections::BTreeMap,
    env, fmt, fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{self, Command, Output, Stdio},
    sync::{LazyLock, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard},
    thread,
    time::{Duration, Instant},
};

use serde_json::Value;
use tempfile::TempDir;

use crate::support::{Response, TEST_TIMEOUT, connect, exchange, get};

/// The directory of the service's package.
pub const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../..");

/// The commands at the top of the Dockerfiles.
const BUILDS: [&str; 3] = [
    "docker build -t timber-tutorial:1 .",
    "docker build -f Dockerfile.musl -t timber-tutorial:2 .",
    "docker build -f Dockerfile.build-std -t timber-tutorial:3 .",
];

/// The ids of the images, built once from the working tree. Their names may get other images meanwhile.
static IMAGES: LazyLock<Result<[String; 3], String>> = LazyLock::new(|| {
    let engine = output(&mut command("docker version"));
    if !engine.status.success() {
        return Err(format!(
            "this test needs a Docker Engine that answers `docker version`: {}",
            all(&engine)
        ));
    }
    thread::scope(|scope| {
        let [first, second, third] = BUILDS.map(|line| scope.spawn(move || build_image(line)));
        Ok([
            first.join().unwrap()?,
            second.join().unwrap()?,
            third.join().unwrap()?,
        ])
    })
});

fn build_image(line: &str) -> Result<String, String> {
    try_build(line, ROOT)?;
    let name = line.split(' ').find(|word| word.contains(':')).unwrap();
    Ok(inspect(name, "Id").as_str().unwrap().to_owned())
}

/// Shared by everything that loads the machine, exclusive for what is timed.
static MACHINE: RwLock<()> = RwLock::new(());

/// The binary of image 2 with its symbols, built without Docker.
pub static MUSL_BINARY: LazyLock<PathBuf> = LazyLock::new(|| {
    let (dir, target) = (
        concat!(env!("CARGO_TARGET_TMPDIR"), "/musl"),
        format!("{}-unknown-linux-musl", env::consts::ARCH),
    );
    let line =
        format!("env CARGO_PROFILE_RELEASE_STRIP=false cargo musl {target} --target-dir {dir}");
    try_build(&line, ROOT)
        .unwrap_or_else(|log| panic!("this test needs Rust's {target} target: {log}"));
    [dir, &target, "release", "timber"].iter().collect()
});

/// The image of a Dockerfile's first stage.
pub fn base_image(dockerfile: &str) -> String {
    let text = fs::read_to_string(Path::new(ROOT).join(dockerfile)).unwrap();
    let from = text.lines().find_map(|line| line.strip_prefix("FROM "));
    let image = from.and_then(|rest| rest.split(' ').next());
    image.expect("a Dockerfile has FROM").to_owned()
}

/// Returns the id of image 1, 2 or 3 after all are built.
pub fn image(release: usize) -> String {
    match &*IMAGES {
        Ok(images) => images[release - 1].clone(),
        Err(failure) => panic!("{failure}"),
    }
}

/// While the guard exists, no test builds anything, or starts or removes a container.
pub fn undisturbed() -> RwLockWriteGuard<'static, ()> {
    MACHINE.write().unwrap_or_else(PoisonError::into_inner)
}

fn busy() -> RwLockReadGuard<'static, ()> {
    MACHINE.read().unwrap_or_else(PoisonError::into_inner)
}

/// Returns the output of a command, or as an error the end of the output if the command fails.
pub fn try_build(line: &str, dir: impl AsRef<Path>) -> Result<String, String> {
    let _busy = busy();
    let output = output(command(line).current_dir(dir));
    if output.status.success() {
        Ok(all(&output))
    } else {
        Err(failure(line, &output))
    }
}

pub fn build(line: &str, dir: impl AsRef<Path>) -> String {
    try_build(line, dir).unwrap_or_else(|failure| panic!("{failure}"))
}

/// A command line without quotes, in the package's root and with a time limit.
pub fn command(line: &str) -> Command {
    let mut command = Command::new("timeout");
    command
        .arg("900")
        .args(line.split_whitespace())
        .stdin(Stdio::null())
        .current_dir(ROOT);
    command
}

pub fn output(command: &mut Command) -> Output {
    let output = command
        .output()
        .unwrap_or_else(|error| panic!("this test needs {command:?}: {error}"));
    let printed = all(&output);
    assert!(
        !printed.starts_with("timeout: failed to run command"),
        "this test needs a program: {printed}"
    );
    output
}

/// Returns the standard output of a command that must succeed.
pub fn run(line: &str) -> String {
    let output = output(&mut command(line));
    assert!(output.status.success(), "{}", failure(line, &output));
    String::from_utf8(output.stdout).expect("the output is text")
}

pub fn docker(arguments: &str) -> String {
    run(&format!("docker {arguments}"))
}

fn failure(line: &str, output: &Output) -> String {
    let log = all(output);
    let lines: Vec<_> = log.lines().collect();
    format!(
        "{line}: {}, the end of its output:\n{}",
        output.status,
        lines[lines.len().saturating_sub(25)..].join("\n")
    )
}

fn all(output: &Output) -> String {
    [output.stdout.as_slice(), &output.stderr]
        .map(String::from_utf8_lossy)
        .concat()
}

/// One member of the JSON that `docker inspect` prints for a container or an image.
pub fn inspect(name: &str, member: &str) -> Value {
    let mut objects: Value = serde_json::from_str(&docker(&format!("inspect {name}"))).unwrap();
    objects[0][member].take()
}

pub fn eventually<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + TEST_TIMEOUT;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(
            Instant::now() < deadline,
            "waited {TEST_TIMEOUT:?} for {what}"
        );
        thread::sleep(Duration::from_millis(20));
    }
}

/// The id or name of a container, which is removed on drop.
pub struct Container(pub String);

impl Container {
    pub fn run(image: &str, flags: &str, arguments: &str) -> Self {
        let _busy = busy();
        let flags = format!("--detach --label timber.test=true --publish 127.0.0.1::8080 {flags}");
        Container(
            docker(&format!("run {flags} {image} {arguments}"))
                .trim()
                .to_owned(),
        )
    }

    /// Runs a container and waits until it serves.
    pub fn serve(image: &str, flags: &str, arguments: &str) -> Self {
        let container = Container::run(image, flags, arguments);
        container.wait_for("PID "); // the last entry of the start
        container
    }

    /// The standard error of the service.
    pub fn log(&self) -> String {
        String::from_utf8(output(&mut command(&format!("docker logs {self}"))).stderr).unwrap()
    }

    pub fn wait_for(&self, part: &str) {
        eventually(&format!("{part:?} of {self}"), || {
            let log = self.log();
            let state = inspect(&self.0, "State");
            assert!(
                log.contains(part) || state["Running"] == true,
                "no {part:?} in {log}{state}"
            );
            log.contains(part).then_some(())
        });
    }

    pub fn exit_code(&self) -> i64 {
        eventually(&format!("the end of {self}"), || {
            let state = inspect(&self.0, "State");
            (state["Status"] == "exited").then(|| state["ExitCode"].as_i64().unwrap())
        })
    }

    /// The published address of the service's port.
    pub fn address(&self) -> SocketAddr {
        let log = self.log();
        let (_, rest) = log.split_once("Listening at: http://").unwrap();
        let listening: SocketAddr = rest.split(' ').next().unwrap().parse().unwrap();
        docker(&format!("port {self} {}", listening.port()))
            .trim()
            .parse()
            .unwrap()
    }

    pub fn get(&self, path: &str) -> Response {
        exchange(&mut connect(self.address()), get(path))
    }
}

impl fmt::Display for Container {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        let _busy = busy();
        _ = command(&format!("docker rm --force --volumes {self}")).output();
    }
}

/// The name of an image, which is removed on drop, from Docker's store and from buildah's.
pub struct Image(pub String);

impl Image {
    /// A name for an image that no other run of the tests uses.
    pub fn new(name: &str) -> Self {
        Image(format!("timber-test:{name}-{}", process::id()))
    }
}

impl Drop for Image {
    fn drop(&mut self) {
        for tool in ["docker", "buildah"] {
            _ = command(&format!("{tool} rmi --force {}", self.0)).output();
        }
    }
}

/// Copies the build context to a temporary directory, for tests that edit it.
pub fn context() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    let ignore = fs::read_to_string(Path::new(ROOT).join(".dockerignore")).unwrap();
    let admitted = ignore.lines().filter_map(|line| line.strip_prefix('!'));
    for name in admitted.chain([
        ".dockerignore",
        "Dockerfile",
        "Dockerfile.musl",
        "Dockerfile.build-std",
    ]) {
        run(&format!("cp -a --parents {name} {}", dir.path().display()));
    }
    dir
}

pub fn edit(file: &Path, from: &str, to: &str) {
    let text = fs::read_to_string(file).unwrap();
    assert!(
        text.contains(from),
        "{from:?} is missing in {}",
        file.display()
    );
    fs::write(file, text.replacen(from, to, 1)).unwrap();
}

/// Copies `/timber` of an image into a directory.
pub fn copy_out(image: &str, dir: &Path) -> PathBuf {
    let container = Container(
        docker(&format!("create --label timber.test=true {image}"))
            .trim()
            .to_owned(),
    );
    docker(&format!("cp {container}:/timber {}", dir.display()));
    dir.join("timber")
}

/// Asserts that a program needs neither a loader nor a library.
pub fn assert_static(file: &Path) {
    let headers = run(&format!(
        "readelf --program-headers --dynamic {}",
        file.display()
    ));
    assert!(headers.contains("LOAD"), "{headers}");
    let is_bad = |line: &&str| line.contains("INTERP") || line.contains("NEEDED");
    let bad: Vec<_> = headers.lines().filter(is_bad).collect();
    assert!(bad.is_empty(), "{} is not static: {bad:#?}", file.display());
}

/// The largest crates in a binary with symbols, by the sizes of the symbols.
pub fn contributors(binary: &Path) -> String {
    let mut sizes = BTreeMap::<String, u64>::new();
    for line in run(&format!(
        "nm --print-size --radix=d --demangle {}",
        binary.display()
    ))
    .lines()
    {
        // Address, size, kind and name. Symbols of kind b occupy no bytes in the file.
        let mut words = line.splitn(4, ' ');
        let (Some(size), Some(kind), Some(name)) = (words.nth(1), words.next(), words.next())
        else {
            continue;
        };
        let Ok(size) = size.parse::<u64>() else {
            continue;
        };
        if !kind.eq_ignore_ascii_case("b") {
            // `<hyper::body::Incoming as core::fmt::Debug>::fmt` is hyper's.
            let path = name
                .split("::")
                .next()
                .filter(|path| path.len() < name.len());
            let name = path.map_or("C, and data without a path", |path| {
                path.rsplit(|c: char| !c.is_alphanumeric() && c != '_')
                    .next()
                    .unwrap_or(path)
            });
            *sizes.entry(name.to_owned()).or_default() += size;
        }
    }
    let mut sizes: Vec<_> = sizes.into_iter().collect();
    sizes.sort_by_key(|(_, size)| std::cmp::Reverse(*size));
    let lines: Vec<_> = sizes
        .iter()
        .take(12)
        .map(|(name, size)| format!("{size:>9} {name}"))
        .collect();
    lines.join("\n")
}
