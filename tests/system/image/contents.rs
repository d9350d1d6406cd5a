//! What is in the images.

use auditable_info::Limits;

use super::*;

/// Bytes of image 2, which is one file. To be lowered whenever it can be.
const BUDGET: u64 = 900_000;

#[test]
#[ignore = "needs Docker Engine"]
fn the_images_say_the_same_about_themselves() {
    let manifest = fs::read_to_string(Path::new(ROOT).join("Cargo.toml")).unwrap();
    for release in RELEASES {
        let config = inspect(&image(release), "Config");
        let (user, group) = config["User"]
            .as_str()
            .unwrap()
            .split_once(':')
            .expect("USER has a group");
        for id in [user, group] {
            assert!(
                id.parse::<u32>().is_ok_and(|id| id > 0),
                "{user}:{group} has root or a name"
            );
        }
        for (key, value) in [
            ("Entrypoint", json!(["/timber"])),
            ("ExposedPorts", json!({"8080/tcp": {}})),
            ("StopSignal", json!("SIGTERM")),
        ] {
            assert_eq!(config[key], value, "{key} of image {release}");
        }
        assert_eq!(
            config["Healthcheck"]["Test"],
            json!(["CMD", "/timber", "healthcheck"])
        );
        for variable in ["PORT=8080".to_owned(), format!("TIMBER_RELEASE={release}")] {
            assert!(
                config["Env"].as_array().unwrap().contains(&json!(variable)),
                "{}",
                config["Env"]
            );
        }
        for (label, field) in [
            ("title", Some("name")),
            ("description", None),
            ("licenses", Some("license")),
            ("version", Some("version")),
            ("revision", None),
            ("created", None),
            ("source", None),
        ] {
            let labels = &config["Labels"];
            let found = labels[format!("org.opencontainers.image.{label}")].as_str();
            let found = found.unwrap_or_else(|| panic!("{label} is missing in {labels}"));
            if let Some(field) = field {
                let line = format!("\n{field} = \"{found}\"\n");
                assert!(manifest.contains(&line), "Cargo.toml has not{line}");
            }
        }
    }
}

#[test]
#[ignore = "needs Docker Engine"]
fn image_2_is_one_static_file() {
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path().display();
    docker(&format!("save -o {at}/image.tar {}", image(2)));
    run(&format!("tar -xf {at}/image.tar -C {at}"));
    let manifest: Value =
        serde_json::from_slice(&fs::read(dir.path().join("manifest.json")).unwrap()).unwrap();
    let layers = manifest[0]["Layers"]
        .as_array()
        .unwrap()
        .iter()
        .map(|layer| layer.as_str().unwrap());
    let files: String = layers
        .map(|layer| run(&format!("tar -tf {at}/{layer}")))
        .collect();
    assert_eq!(files, "timber\n");

    let file = copy_out(&image(2), dir.path());
    assert_static(&file);
    let machine = |file: &Path| fs::read(file).unwrap()[18..20].to_vec();
    assert_eq!(
        machine(&file),
        machine(&env::current_exe().unwrap()),
        "it is built for another machine"
    );
}

#[test]
#[ignore = "needs Docker Engine, and the musl target when it fails"]
fn image_2_is_within_its_budget() {
    let size = inspect(&image(2), "Size").as_u64().unwrap();
    println!("image 2: {size} bytes of {BUDGET}");
    assert!(
        size <= BUDGET,
        "image 2 has {size} bytes, {BUDGET} are allowed.\n{}",
        contributors(&MUSL_BINARY)
    );
}

#[test]
#[ignore = "needs Docker Engine"]
fn a_scanner_can_read_the_crates_out_of_a_release() {
    let lock = fs::read_to_string(Path::new(ROOT).join("Cargo.lock")).unwrap();
    for (release, dockerfile) in DOCKERFILES {
        let image = Image::new(&format!("auditable-{release}"));
        build(
            &format!(
                "docker build -f {dockerfile} -t {} --build-arg AUDITABLE=1 .",
                image.0
            ),
            ROOT,
        );
        let dir = tempfile::tempdir().unwrap();
        let [listed, plain] =
            [&image.0, &self::image(release)].map(|name| inspect(name, "Size").as_u64().unwrap());
        println!(
            "image {release}: the list takes {} bytes",
            listed.saturating_sub(plain)
        );
        let file = copy_out(&image.0, dir.path());
        let list = auditable_info::audit_info_from_file(&file, Limits::default())
            .expect("the binary has a list");
        for package in &list.packages {
            let locked = format!(
                "name = \"{}\"\nversion = \"{}\"\n",
                package.name, package.version
            );
            assert!(
                lock.contains(&locked),
                "{locked} is in image {release}, but not in Cargo.lock"
            );
        }
        let names: Vec<_> = list
            .packages
            .iter()
            .map(|package| package.name.as_str())
            .collect();
        for name in [
            "timber",
            "hyper",
            "tokio",
            "socket2",
            "serde_json",
            "http",
            "mio",
        ] {
            assert!(names.contains(&name), "{name} is not in {names:?}");
        }
        for name in ["tempfile", "want", "parking_lot"] {
            assert!(
                !names.contains(&name),
                "{name}, for tests and the workshop tool, is in {names:?}"
            );
        }
    }
}

#[test]
#[ignore = "needs the musl target"]
fn the_static_binary_can_be_had_without_docker() {
    assert_static(&MUSL_BINARY);
    let contributors = contributors(&MUSL_BINARY);
    println!("{contributors}");
    for name in ["timber", "hyper", "tokio", "std"] {
        assert!(
            contributors
                .lines()
                .any(|line| line.ends_with(&format!(" {name}"))),
            "{contributors}"
        );
    }
}

#[test]
#[ignore = "needs Docker Engine and root"]
fn the_file_of_image_2_is_all_it_takes_even_without_proc() {
    assert!(
        geteuid().is_root(),
        "this test needs root: only root may chroot"
    );
    let dir = tempfile::tempdir().unwrap();
    copy_out(&image(2), dir.path());
    let mut chroot = Command::new("chroot");
    chroot
        .arg(dir.path())
        .args(["/timber", "--bind", "127.0.0.1:0"]);
    chroot
        .env_clear()
        .env("PATH", "/usr/sbin:/usr/bin")
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut service = Timber::spawn(&mut chroot);
    service.event("User unknown, root file system unknown");
    for path in ["/index", "/version", "/metrics", "/healthz"] {
        assert_eq!(service.get(path).status, 200, "{path}");
    }
    service.signal(Signal::TERM);
    assert_eq!(service.wait().0.code(), Some(0));
}
