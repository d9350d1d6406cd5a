//! A swarm of one node that is removed after the test, the service in it, and the load on it.

use std::{
    io::Read,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{LazyLock, Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::docker::{ROOT, command, docker, image, inspect, output, run};
use crate::support::{cargo_build, exchange, get};

pub const SERVICE: &str = "timber_timber";

const ADDRESS: &str = "127.0.0.1:8080";

/// Timeout for what takes seconds on an idle machine.
const PATIENCE: Duration = Duration::from_mins(3);

/// Time after a rollout in which a stopped task's lost requests would still be counted.
const AFTERMATH: Duration = Duration::from_secs(2);

/// All tests share one engine and one port.
static ENGINE: Mutex<()> = Mutex::new(());

static WATCH: LazyLock<PathBuf> = LazyLock::new(|| {
    cargo_build(&[
        "--profile",
        "workshop",
        "--manifest-path",
        concat!(env!("CARGO_MANIFEST_DIR"), "/../../workshop/Cargo.toml"),
    ])
});

/// Compiles `cargo workshop watch`, so that the next call starts at once.
pub fn compile_watch() {
    LazyLock::force(&WATCH);
}

static MESH: LazyLock<PathBuf> = LazyLock::new(|| {
    let mesh = concat!(env!("CARGO_TARGET_TMPDIR"), "/mesh");
    run(&format!(
        "rustc --edition 2024 -O tests/system/swarm/mesh.rs -o {mesh}"
    ));
    mesh.into()
});

/// Returns the name of an image, which is built if it does not exist.
pub fn ready(release: usize) -> String {
    let name = format!("timber-tutorial:{release}");
    if !output(&mut command(&format!("docker image inspect {name}")))
        .status
        .success()
    {
        image(release);
    }
    name
}

pub fn wait_for<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look() {
            return found;
        }
        let services = || docker(&format!("service ps --no-trunc {SERVICE}"));
        assert!(
            Instant::now() < deadline,
            "timeout after {PATIENCE:?}: {what}\n{}",
            services()
        );
        thread::sleep(Duration::from_millis(200));
    }
}

/// Exclusive use of the engine. Restores its state when dropped.
pub struct Engine {
    bridge_was_there: bool,
    mesh: Option<Child>,
    _alone: MutexGuard<'static, ()>,
}

impl Engine {
    /// # Panics
    /// If the engine is in a swarm, which is somebody else's.
    pub fn claim() -> Self {
        let alone = ENGINE.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(refusal) = Self::refusal() {
            panic!("{refusal}");
        }
        let bridge_was_there = docker("network ls --format {{.Name}}")
            .lines()
            .any(|name| name == "docker_gwbridge");
        Engine {
            bridge_was_there,
            mesh: None,
            _alone: alone,
        }
    }

    /// Returns why no test may use the engine.
    pub fn refusal() -> Option<String> {
        let state = docker("info --format {{.Swarm.LocalNodeState}}");
        (state.trim() != "inactive").then(|| {
            let state = state.trim();
            format!("this test needs an engine that is not in a swarm: it is {state}")
        })
    }

    /// Starts a stand-in for the routing mesh if the kernel has none. Needs the service in the swarm.
    pub fn need_mesh(&mut self) {
        // By now the engine has loaded the kernel module if it exists.
        if self.mesh.is_some() || Path::new("/proc/net/ip_vs").exists() {
            return;
        }
        println!("No IPVS in this kernel, so no routing mesh: using tests/system/swarm/mesh.rs");
        let mount = format!("--mount type=bind,src={},dst=/mesh", MESH.display());
        let network = "--network timber_default --publish mode=host,target=8080";
        let image = format!(
            "--no-resolve-image --no-healthcheck --entrypoint /mesh {}",
            ready(1)
        );
        docker(&format!(
            "service create --detach --name timber-mesh {network} {mount} {image} [::]:8080 tasks.timber:8080"
        ));
        let port = wait_for("the port of the mesh", || {
            let task =
                docker("ps --quiet --filter label=com.docker.swarm.service.name=timber-mesh");
            let ports = output(&mut command(&format!("docker port {} 8080", task.trim()))).stdout;
            let ports = String::from_utf8(ports).unwrap();
            ports.lines().next()?.rsplit(':').next().map(str::to_owned)
        });
        let mesh = Command::new(&*MESH)
            .args([ADDRESS, &format!("127.0.0.1:{port}")])
            .spawn();
        self.mesh = Some(mesh.expect("the stand-in for the mesh starts"));
    }

    pub fn drop_mesh(&mut self) {
        if let Some(mut mesh) = self.mesh.take() {
            _ = mesh.kill();
            _ = mesh.wait();
            _ = command("docker service rm timber-mesh").output();
        }
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.drop_mesh();
        // Without a swarm these fail at once.
        _ = command("docker stack rm timber").output();
        // Tasks that still exist when the node leaves the swarm would block their networks.
        let end = Instant::now() + Duration::from_mins(1);
        for service in ["timber_timber", "timber-mesh"] {
            let left = format!(
                "docker ps --all --quiet --filter label=com.docker.swarm.service.name={service}"
            );
            let is_left = || {
                command(&left)
                    .output()
                    .is_ok_and(|output| !output.stdout.is_empty())
            };
            while is_left() && Instant::now() < end {
                thread::sleep(Duration::from_millis(200));
            }
        }
        _ = command("docker swarm leave --force").output();
        if !self.bridge_was_there {
            _ = command("docker network rm docker_gwbridge").output();
        }
    }
}

/// Three replicas in a swarm.
pub struct Swarm {
    engine: Engine,
}

impl Swarm {
    pub fn deploy(image: &str) -> Self {
        let mut swarm = Swarm {
            engine: Engine::claim(),
        };
        docker("swarm init --advertise-addr 127.0.0.1");
        stack(image);
        wait_for("the service", || {
            (swarm.tasks().len() == 3 && replicas() == "3/3").then_some(())
        });
        swarm.engine.need_mesh();
        wait_for("a response", || {
            let mut stream = std::net::TcpStream::connect(ADDRESS).ok()?;
            stream
                .set_read_timeout(Some(Duration::from_secs(5)))
                .unwrap();
            std::panic::catch_unwind(move || exchange(&mut stream, get("/index"))).ok()
        });
        swarm
    }

    /// Returns the containers of the service, including those that are stopping.
    #[allow(
        clippy::unused_self,
        reason = "there are tasks only while there is a swarm"
    )]
    pub fn tasks(&self) -> Vec<String> {
        let tasks = docker(&format!(
            "ps --quiet --filter label=com.docker.swarm.service.name={SERVICE}"
        ));
        tasks.lines().map(str::to_owned).collect()
    }

    /// Deploys the image, waits for the end of the rollout and asserts its state.
    pub fn roll(&self, image: &str, state: &str) {
        let earlier = update()["StartedAt"].take();
        stack(image);
        let end = wait_for("the end of the rollout", || {
            let update = update();
            let is_active = ["updating", "rollback_started"]
                .map(Value::from)
                .contains(&update["State"]);
            (update["StartedAt"] != earlier && update["State"].is_string() && !is_active)
                .then_some(update)
        });
        assert_eq!(
            end["State"],
            state,
            "{end}\n{}",
            docker(&format!("service ps --no-trunc {SERVICE}"))
        );
        self.settle(3);
    }

    pub fn scale(&self, replicas: usize) {
        docker(&format!("service scale {SERVICE}={replicas}"));
        self.settle(replicas);
    }

    fn settle(&self, replicas: usize) {
        wait_for("the end of the old tasks", || {
            (self.tasks().len() == replicas).then_some(())
        });
        thread::sleep(AFTERMATH);
    }

    /// Asserts that the tasks run this image, whose name in the service has a digest.
    #[allow(clippy::unused_self, reason = "as above")]
    pub fn all_run_image(&self, image: &str, replicas: usize) {
        let id = docker(&format!("image inspect --format {{{{.Id}}}} {image}"));
        let ids: Vec<_> = self
            .tasks()
            .iter()
            .map(|task| inspect(task, "Image"))
            .collect();
        assert_eq!(ids, vec![id.trim(); replicas]);
    }

    #[allow(clippy::unused_self, reason = "as above")]
    pub fn all_run(&self, image: &str, replicas: usize) {
        let images = docker(&format!(
            "ps --filter label=com.docker.swarm.service.name={SERVICE} --format {{{{.Image}}}}"
        ));
        assert_eq!(images.lines().collect::<Vec<_>>(), vec![image; replicas]);
    }
}

fn stack(image: &str) {
    let line = "docker stack deploy --resolve-image never -c deploy/compose.yaml timber";
    let output = output(command(line).env("IMAGE", image));
    assert!(
        output.status.success(),
        "{line}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}

fn replicas() -> String {
    docker(&format!(
        "service ls --filter name={SERVICE} --format {{{{.Replicas}}}}"
    ))
    .trim()
    .to_owned()
}

fn update() -> Value {
    let service = docker(&format!("service inspect {SERVICE}"));
    let mut service: Value = serde_json::from_str(&service).unwrap();
    service[0]["UpdateStatus"].take()
}

/// A running `cargo workshop watch`, killed when dropped.
pub struct Watch(Child);

impl Watch {
    /// Returns once requests are being sent.
    pub fn start() -> Self {
        let mut watch = Command::new(&*WATCH);
        watch
            .args(["watch", &format!("http://{ADDRESS}"), "--format", "json"])
            .current_dir(ROOT);
        let child = watch
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn();
        let watch = Watch(child.expect("the watch starts"));
        thread::sleep(Duration::from_secs(2));
        watch
    }

    /// Ends the watch and returns its summary.
    pub fn end(mut self) -> Value {
        kill_process(Pid::from_child(&self.0), Signal::TERM).expect("the watch is running");
        let mut summary = String::new();
        self.0
            .stdout
            .take()
            .unwrap()
            .read_to_string(&mut summary)
            .unwrap();
        serde_json::from_str(&summary).expect("the summary is JSON")
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        _ = self.0.kill();
        _ = self.0.wait();
    }
}
