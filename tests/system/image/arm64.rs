//! Image 2 for arm64. Its binary is built without Docker, by cross compilation. On other machines, the kernel runs
//! arm64 containers with qemu, so nothing here is timed.

use super::*;
use containers::{
    finishes_a_request_in_flight, is_healthy_if_it_serves, serves_hardened_and_logs_its_limits,
};
use contents::assert_one_static_file;

const TARGET: &str = "aarch64-unknown-linux-musl";

/// Built once from the working tree.
static ARM64_IMAGE: LazyLock<&str> = LazyLock::new(|| {
    let name = "timber-test:2-arm64";
    build_image(name, Path::new(ROOT), "arm64");
    name
});

/// Compiles a source tree, and builds the last stage of Dockerfile.musl with the binary. Each tree needs a target
/// directory of its own, because cargo compares only dates and would take the binary of one tree for the other's.
fn build_image(name: &str, source: &Path, target_dir: &str) {
    assert_arm64_runs();
    let target_dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join(target_dir);
    build(
        &format!("cargo musl {TARGET} --target-dir {}", target_dir.display()),
        source,
    );
    let context = tempfile::tempdir().unwrap();
    let binary = target_dir.join(TARGET).join("release/timber");
    fs::copy(binary, context.path().join("timber")).unwrap();
    let dockerfile = fs::read_to_string(Path::new(ROOT).join("Dockerfile.musl")).unwrap();
    let last_stage = &dockerfile[dockerfile.rfind("FROM scratch\n").unwrap()..];
    fs::write(context.path().join("Dockerfile"), last_stage).unwrap();
    edit(
        &context.path().join("Dockerfile"),
        "COPY --from=build /out/bin/timber",
        "COPY timber",
    );
    build(
        &format!("docker build --platform linux/arm64 -t {name} ."),
        &context,
    );
}

/// Containers cannot see qemu's program, so the kernel must have opened it at registration: flag F.
fn assert_arm64_runs() {
    if env::consts::ARCH == "aarch64" {
        return;
    }
    let entry =
        fs::read_to_string("/proc/sys/fs/binfmt_misc/qemu-aarch64").unwrap_or_else(|error| {
            panic!(
                "this test needs qemu-aarch64 in /proc/sys/fs/binfmt_misc: {error}. Run .ci/install"
            )
        });
    let has_flag = |line: &str| line.starts_with("flags: ") && line.contains('F');
    assert!(
        entry.starts_with("enabled\n") && entry.lines().any(has_flag),
        "qemu-aarch64 is not registered with flag F: {entry}"
    );
}

#[test]
#[ignore = "needs Docker Engine, the arm64 target and qemu"]
fn image_2_for_arm64_is_one_static_position_independent_file() {
    let architecture = inspect(&ARM64_IMAGE, "Architecture");
    assert_eq!(architecture, "arm64");
    let dir = tempfile::tempdir().unwrap();
    let file = assert_one_static_file(&ARM64_IMAGE, dir.path());
    let headers = run(&format!(
        "readelf --file-header --dynamic {}",
        file.display()
    ));
    for part in [" DYN (Position-Independent", " (RELR) "] {
        assert!(headers.contains(part), "{part:?} is missing in {headers}");
    }
    let size = fs::metadata(file).unwrap().len();
    println!("image 2 for arm64: {size} bytes");
}

#[test]
#[ignore = "needs Docker Engine, the arm64 target and qemu"]
fn arm64_responses_match_the_original() {
    let container = Container::serve(&ARM64_IMAGE, "", "");
    let version = container.get("/version").json();
    assert_eq!(version["target"], TARGET);
    let address = container.address();
    parity::assert_matches_original(|request| exchange(&mut connect(address), request));
}

#[test]
#[ignore = "needs Docker Engine, the arm64 target and qemu"]
fn docker_reports_the_health_of_the_arm64_service() {
    is_healthy_if_it_serves(&ARM64_IMAGE);
}

#[test]
#[ignore = "needs Docker Engine, the arm64 target and qemu"]
fn a_request_in_flight_at_docker_stop_finishes_on_arm64() {
    finishes_a_request_in_flight(&ARM64_IMAGE);
}

#[test]
#[ignore = "needs Docker Engine, the arm64 target and qemu"]
fn a_hardened_arm64_container_serves_and_logs_its_limits() {
    // qemu takes 7 MB for the service, and as much for the probe. With 16 MiB, a probe was killed once.
    serves_hardened_and_logs_its_limits(&ARM64_IMAGE, 64);
}

#[test]
#[ignore = "needs Docker Engine, the arm64 target and qemu"]
fn a_panic_costs_one_connection_on_arm64() {
    let source = context();
    edit(
        &source.path().join("src/api.rs"),
        r##"Response::ok(&JSON, r#"{"timber": "so delicious"}"#)"##,
        r#"panic!("for this test")"#,
    );
    let image = Image::new("arm64-panics");
    build_image(&image.0, source.path(), "arm64-panics");
    let container = Container::serve(&image.0, "", "");
    let mut other = connect(container.address());
    assert_eq!(exchange(&mut other, get("/healthz")).status, 200);
    let mut failing = connect(container.address());
    failing.write_all(get("/index").as_bytes()).unwrap();
    assert!(
        is_closed(&mut failing),
        "the connection is open, or has a response"
    );
    assert_eq!(exchange(&mut other, get("/healthz")).status, 200);
    container.wait_for("panicked at src/api.rs:");
    docker(&format!("stop {container}"));
    assert_eq!(container.exit_code(), 0, "{}", container.log());
}
