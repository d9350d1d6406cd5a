//! Checks deploy/kubernetes against the schemas of Kubernetes, a policy scanner and the service.
//! Run `cargo test --manifest-path tests/system/Cargo.toml --test deploy -- --ignored`. The tests
//! need kubectl and what `.ci/install` installs, but no cluster. A test fails and names the program
//! that is missing. None is skipped.

use std::{fs, io::ErrorKind, path::Path, process::Command, time::Duration};

use serde_json::{Value, json};
use tempfile::TempDir;
use timber::{config, host::Facts};

/// The manifests must be right for each of these, the newest that there are schemas of and the one before.
const KUBERNETES: [&str; 2] = ["1.36", "1.37"];

/// What the scanner may say, and why that is no mistake.
const WAIVED: [(&str, &str); 3] = [
    (
        "KSV-0011",
        "a CPU limit would make all requests wait just when there are many",
    ),
    (
        "KSV-0110",
        "the namespace is chosen with kubectl -n or in the overlay of whoever deploys",
    ),
    (
        "KSV-0125",
        "the registry in the overlay for the cloud is a placeholder",
    ),
];

/// For what the service has no part in: the runtime passes the signal on, and notices the end.
const MARGIN: Duration = Duration::from_secs(2);

/// Each rule of the restricted profile and, because that includes it, of the baseline: the check that is to find it
/// broken, where a pod breaks it, and how. `null` takes the value away.
#[rustfmt::skip]
fn restricted_profile() -> Vec<(&'static str, &'static str, &'static str, Value)> {
    vec![
        ("HostProcess", "KSV-0103", "securityContext/windowsOptions", json!({"hostProcess": true})),
        ("HostProcess", "KSV-0103", "containers/0/securityContext/windowsOptions", json!({"hostProcess": true})),
        ("Host Namespaces", "KSV-0009", "hostNetwork", json!(true)),
        ("Host Namespaces", "KSV-0010", "hostPID", json!(true)),
        ("Host Namespaces", "KSV-0008", "hostIPC", json!(true)),
        ("Privileged Containers", "KSV-0017", "containers/0/securityContext/privileged", json!(true)),
        ("Capabilities", "KSV-0106", "containers/0/securityContext/capabilities/drop", Value::Null),
        ("Capabilities", "KSV-0106", "containers/0/securityContext/capabilities/drop", json!(["NET_RAW"])),
        ("Capabilities", "KSV-0106", "containers/0/securityContext/capabilities/add", json!(["CHOWN"])),
        ("HostPath Volumes", "KSV-0023", "volumes", json!([{"name": "v", "hostPath": {"path": "/etc"}}])),
        ("Volume Types", "KSV-0028", "volumes", json!([{"name": "v", "nfs": {"server": "s", "path": "/"}}])),
        ("Host Ports", "KSV-0024", "containers/0/ports/0/hostPort", json!(8080)),
        ("Host Probes", "TIMBER-0001", "containers/0/livenessProbe/httpGet/host", json!("192.0.2.1")),
        ("Lifecycle Hooks", "TIMBER-0001", "containers/0/lifecycle",
            json!({"preStop": {"tcpSocket": {"host": "192.0.2.1", "port": 80}}})),
        ("AppArmor", "TIMBER-0001", "securityContext/appArmorProfile", json!({"type": "Unconfined"})),
        ("AppArmor", "TIMBER-0001", "containers/0/securityContext/appArmorProfile", json!({"type": "Unconfined"})),
        ("AppArmor", "KSV-0002", "../metadata/annotations",
            json!({"container.apparmor.security.beta.kubernetes.io/timber": "unconfined"})),
        ("SELinux", "KSV-0025", "securityContext/seLinuxOptions", json!({"type": "spc_t"})),
        ("SELinux", "KSV-0025", "securityContext/seLinuxOptions", json!({"user": "system_u"})),
        ("SELinux", "KSV-0025", "containers/0/securityContext/seLinuxOptions", json!({"role": "system_r"})),
        ("/proc Mount Type", "KSV-0027", "containers/0/securityContext/procMount", json!("Unmasked")),
        ("Seccomp", "KSV-0104", "securityContext/seccompProfile", Value::Null),
        ("Seccomp", "KSV-0104", "securityContext/seccompProfile", json!({"type": "Unconfined"})),
        ("Seccomp", "KSV-0104", "containers/0/securityContext/seccompProfile", json!({"type": "Unconfined"})),
        ("Sysctls", "KSV-0026", "securityContext/sysctls", json!([{"name": "kernel.msgmax", "value": "1"}])),
        ("Privilege Escalation", "KSV-0001", "containers/0/securityContext/allowPrivilegeEscalation", Value::Null),
        ("Privilege Escalation", "KSV-0001", "containers/0/securityContext/allowPrivilegeEscalation", json!(true)),
        ("Running as Non-root", "KSV-0012", "securityContext/runAsNonRoot", Value::Null),
        ("Running as Non-root", "KSV-0012", "securityContext/runAsNonRoot", json!(false)),
        ("Running as Non-root user", "KSV-0105", "securityContext/runAsUser", json!(0)),
        ("Running as Non-root user", "KSV-0105", "containers/0/securityContext/runAsUser", json!(0)),
        ("each container counts", "KSV-0106", "initContainers", json!([{"name": "i", "image": "i:1"}])),
    ]
}

#[test]
#[ignore = "needs kubectl and kubernetes-validate"]
fn kubernetes_knows_every_field() {
    for overlay in overlays() {
        for version in KUBERNETES {
            accepted(&render(&overlay), version)
                .unwrap_or_else(|refusal| panic!("{overlay}: {refusal}"));
        }
    }
}

/// Nor would the check before accept just anything.
#[test]
#[ignore = "needs kubectl and kubernetes-validate"]
fn a_mistake_in_a_field_is_told() {
    for (pointer, value, refusal) in [
        ("/spec/replica", json!(2), "'replica' was unexpected"),
        (
            "/spec/minReadySeconds",
            json!("soon"),
            "'soon' is not of type 'integer'",
        ),
        (
            "/spec/template/spec/containers/0/livenessProbe/httpGet/pat",
            json!("/"),
            "'pat' was unexpected",
        ),
        (
            "/spec/selector",
            Value::Null,
            "'selector' is a required property",
        ),
        (
            "/kind",
            json!("Deploiment"),
            "Couldn't find schema for kind Deploiment",
        ),
        ("/apiVersion", json!("apps/v2"), "with api version apps/v2"),
    ] {
        let mut deployment = find(&render("base"), "Deployment").clone();
        set(&mut deployment, pointer, value);
        let told = accepted(&[deployment], KUBERNETES[0]).expect_err(refusal);
        assert!(told.contains(refusal), "{told}");
    }
}

#[test]
#[ignore = "needs kubectl and trivy"]
fn a_policy_scanner_finds_nothing() {
    let mut files = Vec::new();
    for overlay in overlays() {
        files.extend(
            render(&overlay)
                .into_iter()
                .map(|object| (format!("{} of {overlay}", object["kind"]), object)),
        );
    }
    let mut waived = Vec::new();
    for ((name, _), found) in files
        .iter()
        .zip(scan(files.iter().map(|(_, object)| object)))
    {
        for finding in found {
            assert!(
                WAIVED.iter().any(|(id, _)| finding.starts_with(id)),
                "{name}: {finding}"
            );
            waived.push(finding);
        }
    }
    for (id, reason) in WAIVED {
        assert!(
            waived.iter().any(|finding| finding.starts_with(id)),
            "{id} is not found any more ({reason})"
        );
    }
}

/// A cluster holds pods to the profile, and about a Deployment it only warns.
#[test]
#[ignore = "needs kubectl and trivy"]
fn each_rule_of_the_restricted_profile_is_kept_and_would_be_missed() {
    let deployment = find(&render("base"), "Deployment").clone();
    let broken = restricted_profile()
        .into_iter()
        .map(|(rule, check, pointer, value)| {
            let rule = format!("{rule}: {pointer} {value}");
            let pointer = match pointer.strip_prefix("../") {
                Some(pointer) => format!("/spec/template/{pointer}"),
                None => format!("/spec/template/spec/{pointer}"),
            };
            let mut broken = deployment.clone();
            set(&mut broken, &pointer, value);
            assert_ne!(broken, deployment, "{rule} changes nothing");
            (rule, check, broken)
        });
    let broken: Vec<_> = broken.collect();
    let kept = &scan([&deployment].into_iter())[0];
    let found = scan(broken.iter().map(|(_, _, deployment)| deployment));
    for ((rule, check, _), found) in broken.iter().zip(found) {
        assert!(
            !kept.iter().any(|finding| finding.starts_with(check)),
            "{check} is found in the base"
        );
        assert!(
            found.iter().any(|finding| finding.starts_with(check)),
            "{rule} is not found by {check}, only {found:?}"
        );
    }
}

#[test]
#[ignore = "needs kubectl"]
fn a_stop_is_over_before_the_pod_is_killed() {
    for overlay in overlays() {
        let objects = render(&overlay);
        let pod = &find(&objects, "Deployment")["spec"]["template"]["spec"];
        let settings = settings(&pod["containers"][0]);
        let grace = Duration::from_secs(pod["terminationGracePeriodSeconds"].as_u64().unwrap());
        let (delay, deadline) = (settings.drain_delay, settings.drain_deadline);
        println!(
            "{overlay}: {delay:?} delay + {deadline:?} deadline + {MARGIN:?} margin < {grace:?}"
        );
        assert!(delay + deadline + MARGIN < grace, "{overlay}");
        // Other nodes take about a second to hear of it.
        assert!(delay >= Duration::from_secs(3), "{overlay}");
        let strategy = &find(&objects, "Deployment")["spec"]["strategy"]["rollingUpdate"];
        assert_eq!(
            *strategy,
            json!({"maxUnavailable": 0, "maxSurge": 1}),
            "{overlay}"
        );
    }
}

#[test]
#[ignore = "needs kubectl"]
fn what_refers_to_something_finds_it() {
    let dockerfile = fs::read_to_string(root().join("Dockerfile.musl")).unwrap();
    for overlay in overlays() {
        let objects = render(&overlay);
        let deployment = find(&objects, "Deployment");
        let template = &deployment["spec"]["template"];
        let container = &template["spec"]["containers"][0];
        let selected = json!({"app.kubernetes.io/name": "timber"});
        for object in &objects {
            let kind = object["kind"].as_str().unwrap();
            for key in ["name", "component", "part-of"] {
                let label = &object["metadata"]["labels"][format!("app.kubernetes.io/{key}")];
                assert!(label.is_string(), "{key} of {overlay} {kind}");
            }
            let selector = match kind {
                "Service" => "/spec/selector",
                "Deployment" | "PodDisruptionBudget" => "/spec/selector/matchLabels",
                "NetworkPolicy" => "/spec/podSelector/matchLabels",
                _ => continue,
            };
            assert_eq!(
                object.pointer(selector),
                Some(&selected),
                "{overlay} {kind}"
            );
        }
        assert_eq!(
            template["metadata"]["labels"]["app.kubernetes.io/name"],
            "timber"
        );
        for constraint in template["spec"]["topologySpreadConstraints"]
            .as_array()
            .unwrap()
        {
            assert_eq!(
                constraint["labelSelector"]["matchLabels"], selected,
                "{overlay}"
            );
        }
        let target = &find(&objects, "HorizontalPodAutoscaler")["spec"]["scaleTargetRef"];
        assert_eq!(
            (&target["kind"], &target["name"]),
            (&deployment["kind"], &deployment["metadata"]["name"])
        );
        assert!(
            container["resources"]["requests"]["cpu"].is_string(),
            "the autoscaler has nothing to compare with"
        );
        assert_eq!(
            deployment["spec"]["replicas"],
            Value::Null,
            "would undo what the autoscaler does"
        );

        let port = &container["ports"][0];
        assert!(
            dockerfile.contains(&format!("ENV PORT={} ", port["containerPort"])),
            "{overlay}: {port}"
        );
        assert_eq!(
            find(&objects, "Service")["spec"]["ports"][0]["targetPort"],
            port["name"]
        );
        let policy = &find(&objects, "NetworkPolicy")["spec"];
        assert_eq!(
            policy["ingress"],
            json!([{"ports": [{"port": port["containerPort"], "protocol": "TCP"}]}])
        );
        assert_eq!(policy["egress"], json!([]));
        for (probe, path) in [
            ("startupProbe", "/healthz"),
            ("livenessProbe", "/healthz"),
            ("readinessProbe", "/readyz"),
        ] {
            assert_eq!(
                container[probe]["httpGet"],
                json!({"path": path, "port": port["name"]}),
                "{overlay}"
            );
        }
        let user = &template["spec"]["securityContext"];
        let user = format!("USER {}:{}\n", user["runAsUser"], user["runAsGroup"]);
        assert!(dockerfile.contains(&user), "{overlay}: {user}");
    }
}

/// Idle connections that take all places let none of the probes in, and are closed after the idle timeout.
#[test]
#[ignore = "needs kubectl"]
fn a_pod_that_is_full_is_not_restarted() {
    for overlay in overlays() {
        let objects = render(&overlay);
        let container = &find(&objects, "Deployment")["spec"]["template"]["spec"]["containers"][0];
        let seconds = |field| container["livenessProbe"][field].as_u64().unwrap();
        let patience = Duration::from_secs(seconds("periodSeconds") * seconds("failureThreshold"));
        assert!(
            patience > settings(container).idle_timeout,
            "{overlay}: {patience:?}"
        );
    }
}

#[test]
#[ignore = "needs kubectl"]
fn the_memory_limit_is_for_as_many_connections_as_its_comment_says() {
    let objects = render("base");
    let limit = &find(&objects, "Deployment")["spec"]["template"]["spec"]["containers"][0]["resources"]
        ["limits"];
    let mebibytes: u64 = limit["memory"]
        .as_str()
        .unwrap()
        .strip_suffix("Mi")
        .unwrap()
        .parse()
        .unwrap();
    let memory_limit = Some(mebibytes * 1024 * 1024);
    let facts = Facts {
        user: None,
        read_only_root: None,
        memory_limit,
        cpu_limit: None,
        processes: None,
    };
    assert_eq!(facts.connections(), Some(1536));
    let text = fs::read_to_string(root().join("deploy/kubernetes/base/deployment.yaml")).unwrap();
    assert_eq!(
        text.matches("1,536 connections").count() + text.matches("1,536 idle connections").count(),
        2
    );
}

/// The settings that the service would have in this container; it must know them all.
fn settings(container: &Value) -> config::Config {
    let variables = container["env"].as_array().unwrap().iter().map(|variable| {
        let text = |key| {
            variable[key]
                .as_str()
                .expect("variables have a name and a text")
                .to_owned()
        };
        (text("name"), text("value"))
    });
    let variables: Vec<_> = variables.collect();
    config::parse(&[], &variables)
        .unwrap_or_else(|mistakes| panic!("{mistakes:?}"))
        .1
}

fn root() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."))
}

/// The base and all overlays, as folders below deploy/kubernetes.
fn overlays() -> impl Iterator<Item = String> {
    let dir = fs::read_dir(root().join("deploy/kubernetes/overlays")).unwrap();
    let names = dir.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<_> = names.map(|name| format!("overlays/{name}")).collect();
    names.sort();
    assert!(!names.is_empty());
    ["base".to_owned()].into_iter().chain(names)
}

/// What `kubectl apply -k` would send.
fn render(overlay: &str) -> Vec<Value> {
    let dir = root().join("deploy/kubernetes").join(overlay);
    let (yaml, warnings) = run(Command::new("kubectl").arg("kustomize").arg(dir)).unwrap();
    assert_eq!(warnings, "", "{overlay}");
    serde_saphyr::from_multiple(&yaml).expect("kubectl writes YAML")
}

fn find<'a>(objects: &'a [Value], kind: &str) -> &'a Value {
    let mut found = objects.iter().filter(|object| object["kind"] == kind);
    let (Some(first), None) = (found.next(), found.next()) else {
        panic!("not one {kind}")
    };
    first
}

/// Puts a value there, or takes away what is there.
fn set(object: &mut Value, pointer: &str, value: Value) {
    let (parent, key) = pointer.rsplit_once('/').unwrap();
    let parent = object
        .pointer_mut(parent)
        .unwrap_or_else(|| panic!("no {parent}"));
    let fields = parent.as_object_mut().unwrap();
    if value.is_null() {
        fields.remove(key);
    } else {
        fields.insert(key.to_owned(), value);
    }
}

/// Each object in a file of its own.
fn files<'a>(objects: impl Iterator<Item = &'a Value>) -> (TempDir, Vec<String>) {
    let dir = tempfile::tempdir().unwrap();
    let names = objects.enumerate().map(|(number, object)| {
        let name = format!("{number:03}.json");
        fs::write(dir.path().join(&name), object.to_string()).unwrap();
        name
    });
    let names = names.collect();
    (dir, names)
}

/// Or what the schemas of that version have against it.
fn accepted(objects: &[Value], version: &str) -> Result<(), String> {
    let (dir, names) = files(objects.iter());
    let mut command = Command::new("kubernetes-validate");
    command
        .args(["--strict", "--kubernetes-version", version])
        .args(&names)
        .current_dir(&dir);
    let (said, _) = run(&mut command)?;
    // To an object of an unknown kind it says so, and exits with 0.
    let passed = said
        .lines()
        .filter(|line| line.contains(&format!(" against version {version}")))
        .count();
    if said.lines().count() == names.len() && passed == names.len() {
        Ok(())
    } else {
        Err(said)
    }
}

/// For each object, the checks that it fails: the name of each, and what it says.
fn scan<'a>(objects: impl Iterator<Item = &'a Value>) -> Vec<Vec<String>> {
    let (dir, names) = files(objects);
    let home = tempfile::tempdir().unwrap();
    let mut command = Command::new("trivy");
    // With the checks that are in the program: those of today could fail a change that has nothing to do with them.
    command.args([
        "config",
        "--skip-check-update",
        "--skip-version-check",
        "--disable-telemetry",
        "--quiet",
    ]);
    command.args([
        "--misconfig-scanners",
        "kubernetes",
        "--format",
        "json",
        "--check-namespaces",
        "user",
    ]);
    command
        .arg("--config-check")
        .arg(root().join("tests/system/deploy/pod-security.rego"));
    command
        .arg("--cache-dir")
        .arg(home.path())
        .arg(".")
        .env("HOME", home.path())
        .current_dir(&dir);
    let report: Value = serde_json::from_str(&run(&mut command).unwrap().0).unwrap();
    let results = report["Results"]
        .as_array()
        .expect("the scanner has results");
    let found = names.iter().map(|name| {
        let result = results.iter().find(|result| result["Target"] == **name);
        let result = result.unwrap_or_else(|| panic!("{name} was not scanned"));
        assert!(
            result["MisconfSummary"]["Successes"].as_u64() > Some(50),
            "few checks were made: {result}"
        );
        let found = result["Misconfigurations"].as_array().into_iter().flatten();
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        found
            .map(|found| text(&found["ID"]) + ": " + &text(&found["Message"]))
            .collect()
    });
    found.collect()
}

/// What it writes to standard output and standard error, and as an error both.
fn run(command: &mut Command) -> Result<(String, String), String> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command.output().unwrap_or_else(|error| match error.kind() {
        ErrorKind::NotFound if name == "kubectl" => {
            panic!(
                "kubectl is not on this machine (PATH), and without it no manifest can be checked"
            )
        }
        ErrorKind::NotFound => {
            panic!("{name} is not on this machine (PATH): .ci/install puts it there")
        }
        _ => panic!("{name}: {error}"),
    });
    let [out, err] = [output.stdout, output.stderr].map(|bytes| String::from_utf8(bytes).unwrap());
    if output.status.success() {
        Ok((out, err))
    } else {
        Err(format!("{out}{err}{name}: {}", output.status))
    }
}
