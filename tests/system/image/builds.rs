//! Building the images: what the Dockerfiles promise. Three builders build image 2. The other Dockerfiles use nothing
//! of a builder that Dockerfile.musl does not.

use auditable_info::{Limits, audit_info_from_file};

use super::*;

pub const DOCKERFILES: [(usize, &str); 3] = [
    (1, "Dockerfile"),
    (2, "Dockerfile.musl"),
    (3, "Dockerfile.build-std"),
];
/// `.ci/release` builds these.
const RELEASED: [usize; 2] = [1, 2];

#[test]
fn dockerfiles_fit_on_a_slide() {
    for (_, dockerfile) in DOCKERFILES {
        let text = fs::read_to_string(Path::new(ROOT).join(dockerfile)).unwrap();
        let lines = text.lines().count();
        let columns = text.lines().map(|line| line.chars().count()).max().unwrap();
        assert!(
            lines <= 30 && columns <= 110,
            "{dockerfile} has {lines} lines and {columns} columns: expected at most 30 and 110"
        );
    }
}

#[test]
fn one_version_of_rust_is_tested_and_shipped() {
    let manifest = fs::read_to_string(Path::new(ROOT).join("Cargo.toml")).unwrap();
    let version = manifest
        .lines()
        .find_map(|line| line.strip_prefix("rust-version = \""))
        .and_then(|rest| rest.split('"').next())
        .expect("Cargo.toml has a rust-version");
    let compiler = run("rustc --version");
    assert!(
        compiler.starts_with(&format!("rustc {version}.")),
        "these tests run with {compiler}, Cargo.toml says {version}"
    );
    for (_, dockerfile) in DOCKERFILES {
        let image = base_image(dockerfile);
        assert!(
            image.starts_with(&format!("rust:{version}-")),
            "{dockerfile} builds with {image}, Cargo.toml says {version}"
        );
    }
}

#[test]
#[ignore = "needs Docker Engine"]
fn a_binary_that_is_not_static_fails_the_build() {
    let context = context();
    // A RUSTFLAGS in the environment replaces the flags in .cargo/config.toml.
    edit(
        &context.path().join("Dockerfile.musl"),
        "RUN cargo install",
        "RUN RUSTFLAGS=-Ctarget-feature=-crt-static cargo install",
    );
    let image = Image::new("dynamic");
    let line = format!(
        "docker build --force-rm -f Dockerfile.musl -t {} .",
        image.0
    );
    let failure = try_build(&line, &context)
        .map(drop)
        .expect_err("a dynamic binary got into an image");
    // It is built, or its layer is reused, and does not start.
    for part in ["chroot: ", "/bin/timber", "No such file or directory"] {
        assert!(failure.contains(part), "{part:?} is missing in {failure}");
    }
}

/// The next test shows for Dockerfile.musl that an edit of the source then downloads nothing.
#[test]
fn dockerfiles_download_before_they_copy_the_source() {
    for (_, dockerfile) in DOCKERFILES {
        let text = fs::read_to_string(Path::new(ROOT).join(dockerfile)).unwrap();
        assert!(
            text.contains(
                "\nCOPY Cargo.toml Cargo.lock build.rs ./\nRUN cargo fetch --locked\nCOPY src src\n"
            ),
            "{dockerfile} copies other files before it downloads the dependencies"
        );
        let install = "\nRUN cargo install --path . --root /out";
        assert!(
            ["--locked --offline", "--frozen"]
                .iter()
                .any(|flags| text.contains(&format!("{install} {flags}"))),
            "{dockerfile} does not build offline"
        );
    }
}

/// The default of Docker Engine 20.10. Later ones have it, too.
#[test]
#[ignore = "needs Docker Engine with the classic builder"]
fn the_classic_builder_builds_the_same_image_and_downloads_nothing_after_an_edit() {
    let image = Image::new("classic");
    // The classic builder reuses a layer whatever its network, BuildKit does not. Without a network, only a layer
    // that exists can provide the dependencies.
    let line = |network| {
        let build = format!("docker build --network {network} -f Dockerfile.musl");
        format!("env DOCKER_BUILDKIT=0 {build} -t {} .", image.0)
    };
    let log = build(&line("default"), ROOT);
    assert!(
        log.contains("Successfully built"),
        "not the classic builder: {log}"
    );
    assert_is_image_2(&image);

    let context = context();
    let now = SystemTime::UNIX_EPOCH.elapsed().unwrap().as_nanos();
    let body = format!("so delicious {now}"); // no earlier run has built the same
    let handlers = context.path().join("src/api.rs");
    edit(&handlers, "so delicious", &body);
    // Every source is older than any compiled file: dates must not matter.
    for file in fs::read_dir(context.path().join("src")).unwrap() {
        fs::File::open(file.unwrap().path())
            .unwrap()
            .set_modified(SystemTime::UNIX_EPOCH)
            .unwrap();
    }
    let log = build(&line("none"), &context);
    assert!(log.contains("Compiling"), "nothing is compiled in {log}");
    let index = Container::serve(&image.0, "", "").get("/index").text();
    assert!(
        index.contains(&body),
        "the image has an older program: {index}"
    );
}

/// The default since Docker Engine 23.
#[test]
#[ignore = "needs Docker Engine with BuildKit"]
fn buildkit_builds_the_same_image() {
    let image = Image::new("buildkit");
    let line = format!("docker build -f Dockerfile.musl -t {} .", image.0);
    let log = build(&format!("env DOCKER_BUILDKIT=1 {line}"), ROOT);
    assert!(
        log.contains("[internal] load build definition"),
        "not BuildKit: {log}"
    );
    assert_is_image_2(&image);
}

#[test]
#[ignore = "needs Docker Engine and buildah"]
fn buildah_builds_the_same_image() {
    let image = Image::new("buildah");
    let line = format!(
        "buildah bud --format docker -f Dockerfile.musl -t {} .",
        image.0
    );
    build(&line, ROOT);
    run(&format!(
        "buildah push --quiet {0} docker-daemon:{0}",
        image.0
    ));
    assert_is_image_2(&image);
}

/// A digest in a cluster can be traced to a commit: everyone who builds that commit gets the same layer.
#[test]
#[ignore = "needs Docker Engine"]
fn a_second_build_makes_the_same_layer() {
    for (release, dockerfile) in &DOCKERFILES[1..] {
        let first = image(*release); // before the second, whose layers it could reuse
        let context = context();
        let second = Image::new(&format!("second-{release}"));
        // The label makes every layer of the build stage a new one. `--no-cache` would do so, too, but other
        // tests would continue from its layers, while these are incomplete.
        let now = SystemTime::UNIX_EPOCH.elapsed().unwrap().as_nanos();
        let label = format!(" AS build\nLABEL second={now}\n");
        edit(&context.path().join(dockerfile), " AS build\n", &label);
        build(
            &format!("docker build -f {dockerfile} -t {} .", second.0),
            &context,
        );
        let [first, second] =
            [&first, &second.0].map(|name| inspect(name, "RootFS")["Layers"].take());
        assert_eq!(first, second, "{dockerfile}");
    }
}

/// Compares the configuration and the bytes of the binary with those of image 2, and sends a request.
fn assert_is_image_2(built: &Image) {
    let configs = [&built.0, &image(2)].map(|name| {
        let mut config = inspect(name, "Config");
        config["Labels"]
            .as_object_mut()
            .unwrap()
            .remove("io.buildah.version");
        if config["Cmd"] == json!([]) {
            config["Cmd"] = Value::Null; // how buildah removes the base image's command
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
        copy_out(&image(2), dirs[1].path()),
    ];
    assert!(
        fs::read(&files[0]).unwrap() == fs::read(&files[1]).unwrap(),
        "the binary of {} differs",
        built.0
    );
    assert_eq!(Container::serve(&built.0, "", "").get("/index").status, 200);
}

#[test]
#[ignore = "needs Docker Engine and git"]
fn a_release_names_its_commit_and_lists_its_crates() {
    let name = format!("timber-test-release-{}", process::id());
    let images = RELEASED.map(|release| Image(format!("{name}:{release}")));
    let source = "https://timber.test/src";
    build(&format!(".ci/release {name} {source}"), ROOT);
    let revision = run("git rev-parse HEAD").trim().to_owned();
    let version = run("cargo pkgid")
        .trim()
        .rsplit(['#', '@'])
        .next()
        .unwrap()
        .to_owned();
    for image in &images {
        let labels = inspect(&image.0, "Config")["Labels"].take();
        let label = |key| {
            labels[format!("org.opencontainers.image.{key}")]
                .as_str()
                .unwrap_or_else(|| panic!("{key} is missing in {labels}"))
        };
        assert_eq!(label("source"), source);
        assert_eq!(label("version"), version);
        assert!(label("description").contains("microservice"), "{labels}");
        assert!(label("created").ends_with('Z'), "{labels}");
        // A tree with changes is marked, in the label and in the program.
        assert_eq!(label("revision").trim_end_matches("-dirty"), revision);
        let version = Container::serve(&image.0, "", "").get("/version").json();
        assert_eq!(version["revision"], label("revision"), "{version}");
        assert_lists_crates(image);
    }
}

/// Asserts that the list in a program has exactly the crates that `cargo tree` shows for its target.
fn assert_lists_crates(image: &Image) {
    let dir = tempfile::tempdir().unwrap();
    let file = copy_out(&image.0, dir.path());
    let list = audit_info_from_file(&file, Limits::default()).expect("the binary has a list");
    let mut listed: Vec<_> = list
        .packages
        .iter()
        .map(|package| format!("{} v{}", package.name, package.version))
        .collect();
    let libc = if image.0.ends_with('1') {
        "gnu"
    } else {
        "musl"
    };
    let target = format!("{}-unknown-linux-{libc}", env::consts::ARCH);
    let tree = run(&format!(
        "cargo tree --locked --edges normal,build --prefix none --target {target}"
    ));
    let mut expected: Vec<_> = tree
        .lines()
        .map(|line| line.split(' ').take(2).collect::<Vec<_>>().join(" "))
        .collect();
    expected.sort();
    expected.dedup();
    listed.sort();
    assert_eq!(listed, expected, "{}", image.0);
}
