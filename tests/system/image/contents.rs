//! The contents of the images.

use super::*;

/// Maximum sizes of images 2 and 3 in bytes, built with the official toolchain.
const BUDGETS: [(usize, u64); 2] = [(2, 890_000), (3, 655_000)];

#[test]
#[ignore = "needs Docker Engine"]
fn all_images_have_the_same_configuration() {
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
                "{user}:{group}: expected numbers other than 0"
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
        for (label, field) in [("title", "name"), ("licenses", "license")] {
            let labels = &config["Labels"];
            let found = labels[format!("org.opencontainers.image.{label}")].as_str();
            let found = found.unwrap_or_else(|| panic!("{label} is missing in {labels}"));
            let line = format!("\n{field} = \"{found}\"\n");
            assert!(manifest.contains(&line), "missing in Cargo.toml: {line}");
        }
    }
}

#[test]
#[ignore = "needs Docker Engine"]
fn images_2_and_3_are_one_static_file() {
    for release in [2, 3] {
        let dir = tempfile::tempdir().unwrap();
        assert_one_static_file(&image(release), dir.path());
    }
}

/// Asserts that an image has one file, which is static and for the image's platform. Returns a copy of it.
pub fn assert_one_static_file(image: &str, dir: &Path) -> PathBuf {
    let at = dir.display();
    docker(&format!("save -o {at}/image.tar {image}"));
    run(&format!("tar -xf {at}/image.tar -C {at}"));
    let manifest: Value =
        serde_json::from_slice(&fs::read(dir.join("manifest.json")).unwrap()).unwrap();
    let layers = manifest[0]["Layers"]
        .as_array()
        .unwrap()
        .iter()
        .map(|layer| layer.as_str().unwrap());
    let files: String = layers
        .map(|layer| run(&format!("tar -tf {at}/{layer}")))
        .collect();
    assert_eq!(files, "timber\n");

    let file = copy_out(image, dir);
    assert_static(&file);
    let architecture = inspect(image, "Architecture");
    let machine = match architecture.as_str() {
        Some("amd64") => 62,  // EM_X86_64
        Some("arm64") => 183, // EM_AARCH64
        _ => panic!("unexpected architecture {architecture}"),
    };
    let header = fs::read(&file).unwrap();
    let found = u16::from_le_bytes([header[18], header[19]]);
    assert_eq!(
        found, machine,
        "the ELF machine of an image for {architecture}"
    );
    file
}

#[test]
#[ignore = "needs Docker Engine, and the musl target to explain a failure"]
fn images_2_and_3_are_within_their_budgets() {
    for (release, budget) in BUDGETS {
        let size = inspect(&image(release), "Size").as_u64().unwrap();
        println!("image {release}: {size} bytes, at most {budget}");
        assert!(
            size <= budget,
            "image {release} has {size} bytes: expected at most {budget}. The largest crates of image 2:\n{}",
            contributors(&MUSL_BINARY)
        );
    }
}

/// Only the image of docs/lessons.md has the faults for teaching.
#[test]
#[ignore = "needs Docker Engine"]
fn images_contain_no_faults() {
    let dir = tempfile::tempdir().unwrap();
    for release in 1..=3 {
        let target = dir.path().join(release.to_string());
        fs::create_dir(&target).unwrap();
        copy_out(&image(release), &target);
        let program = fs::read(target.join("timber")).unwrap();
        let contains = |text: &str| {
            program
                .windows(text.len())
                .any(|part| part == text.as_bytes())
        };
        assert!(contains("TIMBER_RELEASE"), "the settings are readable");
        for text in [
            "TIMBER_FAULT",
            "ignore-sigterm",
            "timber_fault_active",
            "for teaching",
        ] {
            assert!(!contains(text), "image {release} contains {text:?}");
        }
    }
}

#[test]
#[ignore = "needs the musl target"]
fn cargo_musl_builds_a_static_binary() {
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
fn image_2_serves_from_a_root_without_proc() {
    assert!(geteuid().is_root(), "this test needs root, for chroot");
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
    service.wait_for_event("User unknown, root file system unknown");
    for path in ["/index", "/version", "/metrics", "/healthz"] {
        assert_eq!(service.get(path).status, 200, "{path}");
    }
    service.signal(Signal::TERM);
    assert_eq!(service.wait().0.code(), Some(0));
}
