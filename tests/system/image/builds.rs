//! What the Dockerfiles promise about building them.

use super::*;

pub const DOCKERFILES: [(usize, &str); 2] = [(1, "Dockerfile"), (2, "Dockerfile.musl")];

#[test]
#[ignore = "needs Docker Engine"]
fn labels_and_version_say_what_the_build_was_told() {
    let told = [
        ("revision", "abc"),
        ("source", "https://timber.test/src"),
        ("created", "2026-01-02T03:04:05Z"),
    ];
    let arguments = told
        .map(|(label, value)| format!("--build-arg {}={value}", label.to_uppercase()))
        .join(" ");
    for (release, dockerfile) in DOCKERFILES {
        let image = Image::new(&format!("told-{release}"));
        build(
            &format!("docker build -f {dockerfile} -t {} {arguments} .", image.0),
            ROOT,
        );
        let labels = &inspect(&image.0, "Config")["Labels"];
        for (label, value) in told {
            assert_eq!(
                labels[format!("org.opencontainers.image.{label}")],
                value,
                "{label} of {dockerfile}"
            );
        }
        let version = Container::serve(&image.0, "", "").get("/version").json();
        assert_eq!(version["revision"], "abc", "/version of {dockerfile}");
    }
}

#[test]
#[ignore = "needs Docker Engine"]
fn a_binary_that_is_not_static_fails_the_build() {
    let context = context();
    edit(
        &context.path().join(".cargo/config.toml"),
        "+crt-static",
        "-crt-static",
    );
    let image = Image::new("dynamic");
    let line = format!(
        "docker build --force-rm -f Dockerfile.musl -t {} .",
        image.0
    );
    let failure = try_build(&line, &context)
        .map(drop)
        .expect_err("a dynamic binary got into an image");
    for part in ["INTERP", "NEEDED", "RUN readelf"] {
        assert!(failure.contains(part), "{part} is not in {failure}");
    }
}

#[test]
#[ignore = "needs Docker Engine"]
fn a_change_of_the_source_downloads_nothing_and_arrives_in_the_image() {
    for (release, dockerfile) in DOCKERFILES {
        let context = context();
        let image = Image::new(&format!("changed-{release}"));
        // The classic builder looks for a layer that it has already without regard to the network; BuildKit does not.
        // Where there is no network, only such a layer can provide the dependencies.
        let line = |network| {
            let line = format!(
                "docker build --network {network} -f {dockerfile} -t {} .",
                image.0
            );
            format!("env DOCKER_BUILDKIT=0 {line}")
        };
        build(&line("default"), &context);
        let source = context.path().join("src/help.txt");
        let now = SystemTime::UNIX_EPOCH.elapsed().unwrap().as_nanos();
        let mark = format!("Usage ({now}): timber"); // no earlier run has built the same
        edit(&source, "Usage: timber", &mark);
        // All older than whatever was compiled before, main.rs too: dates must not matter.
        for file in fs::read_dir(source.parent().unwrap()).unwrap() {
            fs::File::open(file.unwrap().path())
                .unwrap()
                .set_modified(SystemTime::UNIX_EPOCH)
                .unwrap();
        }
        let log = build(&line("none"), &context);
        // The builder puts its colours wherever it likes in these lines.
        let is_timber_alone = log.matches("Compiling").count() == 1 && log.contains(" timber v");
        assert!(
            is_timber_alone,
            "{dockerfile}: not timber alone is compiled in {log}"
        );
        let help = docker(&format!(
            "run --rm --label timber.test=true {} --help",
            image.0
        ));
        assert!(
            help.starts_with(&mark),
            "the image holds an older binary: {help}"
        );
    }
}

#[test]
#[ignore = "needs Docker Engine with BuildKit"]
fn buildkit_builds_the_same_images() {
    // Since clients have BuildKit as a plugin, it may be missing; the distribution's older one has it built in.
    let has_buildx = output(&mut command("docker buildx version"))
        .status
        .success();
    let client = if has_buildx {
        "docker"
    } else {
        "/usr/bin/docker"
    };
    for (release, dockerfile) in DOCKERFILES {
        let image = Image::new(&format!("buildkit-{release}"));
        let line = format!(
            "{client} build --progress plain -f {dockerfile} -t {} .",
            image.0
        );
        let log = build(&format!("env DOCKER_BUILDKIT=1 {line}"), ROOT);
        assert!(
            log.contains("[internal] load build definition"),
            "that was not BuildKit: {log}"
        );
        assert_same(&image, release);
    }
}

#[test]
#[ignore = "needs Docker Engine and buildah"]
fn buildah_builds_the_same_images() {
    for (release, dockerfile) in DOCKERFILES {
        let image = Image::new(&format!("buildah-{release}"));
        build(
            &format!(
                "buildah bud --format docker -f {dockerfile} -t {} .",
                image.0
            ),
            ROOT,
        );
        run(&format!(
            "buildah push --quiet {0} docker-daemon:{0}",
            image.0
        ));
        assert_same(&image, release);
    }
}

/// So that a digest in a cluster can be traced to a commit: anyone who builds that again gets the same.
#[test]
#[ignore = "needs Docker Engine"]
fn built_again_elsewhere_it_is_the_same_layer() {
    let context = context();
    let again = Image::new("again");
    build(
        &format!(
            "docker build --no-cache -f Dockerfile.musl -t {} .",
            again.0
        ),
        &context,
    );
    let [first, second] =
        [&image(2), &again.0].map(|name| inspect(name, "RootFS")["Layers"].take());
    assert_eq!(first, second);
}

/// By its configuration, by the bytes of the binary, and by serving.
fn assert_same(built: &Image, release: usize) {
    let configs = [&built.0, &image(release)].map(|name| {
        let mut config = inspect(name, "Config");
        config["Labels"]
            .as_object_mut()
            .unwrap()
            .remove("io.buildah.version");
        if config["Cmd"] == json!([]) {
            config["Cmd"] = Value::Null; // buildah's way to say that the base image's is gone
        }
        config
    });
    for key in [
        "Entrypoint",
        "Cmd",
        "User",
        "ExposedPorts",
        "Env",
        "Healthcheck",
        "StopSignal",
        "Labels",
    ] {
        assert_eq!(configs[0][key], configs[1][key], "{key} of {}", built.0);
    }
    let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let files = [
        copy_out(&built.0, dirs[0].path()),
        copy_out(&image(release), dirs[1].path()),
    ];
    assert!(
        fs::read(&files[0]).unwrap() == fs::read(&files[1]).unwrap(),
        "the binary of {} differs",
        built.0
    );
    assert_eq!(Container::serve(&built.0, "", "").get("/index").status, 200);
}
