//! Checks deploy/kubernetes against the schemas of Kubernetes, a policy scanner and the service.
//! Run `cargo test --manifest-path tests/system/Cargo.toml --test deploy -- --ignored`. The tests
//! need kubectl and what `.ci/install` installs, but no cluster. A test fails and names the program
//! that is missing. None is skipped.

use std::{fs, io::ErrorKind, path::Path, process::Command, time::Duration};

use serde_json::{Value, json};
use tempfile::TempDir;
use timber::{admission::RESERVE, cli, config::Config, container::Facts};

/// Versions of Kubernetes to validate against: the newest with published schemas, and the one before.
const KUBERNETES: [&str; 2] = ["1.36", "1.37"];

/// Accepted findings of the policy scanner, with the reasons.
const WAIVED: [(&str, &str); 3] = [
    (
        "KSV-0011",
        "a CPU limit would throttle all requests under load",
    ),
    (
        "KSV-0110",
        "the namespace is selected with kubectl -n or in an overlay",
    ),
    (
        "KSV-0125",
        "the registry in the cloud overlay is a placeholder",
    ),
];

/// Time for the container runtime to forward the signal and to notice the exit.
const MARGIN: Duration = Duration::from_secs(2);

/// Returns one violation of each rule of the restricted Pod Security profile, which includes the
/// baseline profile: the rule, the scanner's check, the JSON pointer and the value that violates the
/// rule. `null` removes the field.
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
        ("init containers", "KSV-0106", "initContainers", json!([{"name": "i", "image": "i:1"}])),
    ]
}

#[test]
#[ignore = "needs kubectl and kubernetes-validate"]
fn manifests_match_the_schemas_of_kubernetes() {
    for overlay in overlays() {
        // The Gateway API is not part of Kubernetes. `gateway_publishes_the_api_only` compares the whole route.
        let mut objects = render(&overlay);
        objects.retain(|object| object["kind"] != "HTTPRoute");
        for version in KUBERNETES {
            validate(&objects, version).unwrap_or_else(|error| panic!("{overlay}: {error}"));
        }
    }
}

#[test]
#[ignore = "needs kubectl and kubernetes-validate"]
fn schema_validation_rejects_mistakes() {
    for (pointer, value, expected) in [
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
        let error = validate(&[deployment], KUBERNETES[0]).expect_err(expected);
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
#[ignore = "needs kubectl and trivy"]
fn policy_scanner_reports_accepted_findings_only() {
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
            "{id} is no longer reported ({reason})"
        );
    }
}

/// A cluster enforces the profile for pods only, so a Deployment that violates it would be accepted.
#[test]
#[ignore = "needs kubectl and trivy"]
fn deployment_complies_with_each_rule_of_the_restricted_profile() {
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
            "{check} is reported for the base"
        );
        assert!(
            found.iter().any(|finding| finding.starts_with(check)),
            "{check} does not report {rule}, only {found:?}"
        );
    }
}

#[test]
#[ignore = "needs kubectl"]
fn drain_ends_before_the_grace_period() {
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
        // Other nodes learn about a stopping pod within about a second.
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
fn names_labels_and_ports_match_across_manifests() {
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
            "the autoscaler needs a CPU request"
        );
        assert_eq!(
            deployment["spec"]["replicas"],
            Value::Null,
            "each apply would undo the autoscaler's work"
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
        let scrape = json!({
            "prometheus.io/scrape": "true",
            "prometheus.io/port": port["containerPort"].to_string(),
            "prometheus.io/path": "/metrics",
        });
        assert_eq!(template["metadata"]["annotations"], scrape, "{overlay}");
        let user = &template["spec"]["securityContext"];
        let user = format!("USER {}:{}\n", user["runAsUser"], user["runAsGroup"]);
        assert!(dockerfile.contains(&user), "{overlay}: {user}");
    }
}

#[test]
#[ignore = "needs kubectl"]
fn ingress_publishes_the_api_only() {
    let objects = render("overlays/ingress");
    let service = find(&objects, "Service");
    let backend = json!({"service": {
        "name": service["metadata"]["name"],
        "port": {"name": service["spec"]["ports"][0]["name"]},
    }});
    let spec = &find(&objects, "Ingress")["spec"];
    assert_eq!(spec["defaultBackend"], Value::Null);
    let rules = spec["rules"].as_array().unwrap().iter();
    let paths = rules.flat_map(|rule| rule["http"]["paths"].as_array().unwrap());
    let paths: Vec<_> = paths.cloned().collect();
    let expected = ["/index", "/openapi.json"]
        .map(|path| json!({"path": path, "pathType": "Exact", "backend": backend}));
    assert_eq!(paths, expected);
}

#[test]
#[ignore = "needs kubectl"]
fn gateway_publishes_the_api_only() {
    let objects = render("overlays/gateway");
    let service = find(&objects, "Service");
    let matches =
        ["/index", "/openapi.json"].map(|path| json!({"path": {"type": "Exact", "value": path}}));
    let backend = json!({
        "name": service["metadata"]["name"],
        "port": service["spec"]["ports"][0]["port"],
    });
    let route = find(&objects, "HTTPRoute");
    assert_eq!(route["apiVersion"], "gateway.networking.k8s.io/v1");
    let spec = json!({
        "parentRefs": [{"name": "gateway"}],
        "hostnames": ["timber.example"],
        "rules": [{"matches": matches, "backendRefs": [backend]}],
    });
    assert_eq!(route["spec"], spec);
}

/// Clients can fill even the reserve for probes. By then the idle timeout has closed some of them.
#[test]
#[ignore = "needs kubectl"]
fn pod_at_the_connection_limit_is_not_restarted() {
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
fn memory_limit_admits_the_connections_of_its_comment() {
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
        process_limit: None,
    };
    assert_eq!(facts.max_connections(RESERVE), Some(715));
    let text = fs::read_to_string(root().join("deploy/kubernetes/base/deployment.yaml")).unwrap();
    assert_eq!(
        text.matches("(715 connections").count() + text.matches("715 idle connections").count(),
        2
    );
}

/// Returns the settings of the service in this container.
fn settings(container: &Value) -> Config {
    let variables = container["env"].as_array().unwrap().iter().map(|variable| {
        let text = |key| {
            variable[key]
                .as_str()
                .expect("each variable has a name and a value")
                .to_owned()
        };
        (text("name"), text("value"))
    });
    let variables: Vec<_> = variables.collect();
    cli::parse(&[], &variables)
        .unwrap_or_else(|mistakes| panic!("{mistakes:?}"))
        .1
}

fn root() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."))
}

/// Returns the base and all overlays, as paths below deploy/kubernetes.
fn overlays() -> impl Iterator<Item = String> {
    let dir = fs::read_dir(root().join("deploy/kubernetes/overlays")).unwrap();
    let names = dir.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<_> = names.map(|name| format!("overlays/{name}")).collect();
    names.sort();
    assert!(!names.is_empty());
    ["base".to_owned()].into_iter().chain(names)
}

/// Returns the objects that `kubectl apply -k` would send.
fn render(overlay: &str) -> Vec<Value> {
    let dir = root().join("deploy/kubernetes").join(overlay);
    let (yaml, warnings) = run(Command::new("kubectl").arg("kustomize").arg(dir)).unwrap();
    assert_eq!(warnings, "", "{overlay}");
    serde_saphyr::from_multiple(&yaml).expect("kubectl writes YAML")
}

fn find<'a>(objects: &'a [Value], kind: &str) -> &'a Value {
    let mut found = objects.iter().filter(|object| object["kind"] == kind);
    let (Some(first), None) = (found.next(), found.next()) else {
        panic!("expected exactly one {kind}")
    };
    first
}

/// Sets a field, or removes it if the value is `null`.
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

/// Writes each object to a file.
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

/// Validates objects against the schemas of a version of Kubernetes.
///
/// # Errors
/// The validator's output.
fn validate(objects: &[Value], version: &str) -> Result<(), String> {
    let (dir, names) = files(objects.iter());
    let mut command = Command::new("kubernetes-validate");
    command
        .args(["--strict", "--kubernetes-version", version])
        .args(&names)
        .current_dir(&dir);
    let (report, _) = run(&mut command)?;
    // For an unknown kind, the validator reports an error but exits with 0.
    let passed = report
        .lines()
        .filter(|line| line.contains(&format!(" against version {version}")))
        .count();
    if report.lines().count() == names.len() && passed == names.len() {
        Ok(())
    } else {
        Err(report)
    }
}

/// Returns the scanner's findings for each object, as "ID: message".
fn scan<'a>(objects: impl Iterator<Item = &'a Value>) -> Vec<Vec<String>> {
    let (dir, names) = files(objects);
    let home = tempfile::tempdir().unwrap();
    let mut command = Command::new("trivy");
    // Only the built-in checks: downloaded ones could fail an unrelated change.
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
        .expect("the report has results");
    let found = names.iter().map(|name| {
        let result = results.iter().find(|result| result["Target"] == **name);
        let result = result.unwrap_or_else(|| panic!("{name} was not scanned"));
        assert!(
            result["MisconfSummary"]["Successes"].as_u64() > Some(50),
            "too few checks ran: {result}"
        );
        let found = result["Misconfigurations"].as_array().into_iter().flatten();
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        found
            .map(|found| text(&found["ID"]) + ": " + &text(&found["Message"]))
            .collect()
    });
    found.collect()
}

/// Runs a program and returns its standard output and standard error.
///
/// # Errors
/// Both, if the program fails.
fn run(command: &mut Command) -> Result<(String, String), String> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command.output().unwrap_or_else(|error| match error.kind() {
        ErrorKind::NotFound if name == "kubectl" => {
            panic!("kubectl not found in PATH: install it to render the manifests")
        }
        ErrorKind::NotFound => panic!("{name} not found in PATH: run .ci/install"),
        _ => panic!("{name}: {error}"),
    });
    let [out, err] = [output.stdout, output.stderr].map(|bytes| String::from_utf8(bytes).unwrap());
    if output.status.success() {
        Ok((out, err))
    } else {
        Err(format!("{out}{err}{name}: {}", output.status))
    }
}
