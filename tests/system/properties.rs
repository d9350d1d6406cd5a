//! The invariants of tests/support/invariants.rs, each with some hundred random inputs per run.

#[path = "../support/invariants.rs"]
mod invariants;

use std::net::IpAddr;
use std::time::Instant;

use hyper::header::{ACCEPT, HOST, HeaderName};
use hyper::http::request::Parts;
use proptest::prelude::*;
use proptest::{collection::vec, sample::select};
use timber::cli;
use timber::faults::Faults;
use timber::response::{PROMETHEUS, Response};

/// Paths that come close to a route, the characters that text formats escape, and anything else.
const TARGET: &str = "(/{0,3}(v.?/)?(index|healthz|version|nope)?/{0,2}|/?[!-~]{0,20}|(http://|//)[!-~]{0,9}(/[!-~]{0,9})?\
                      |(/(%[0-9A-Fa-f]{2}|[!-~é])){0,9}|\\PC{0,9})";
const HOST_VALUE: &str = "([a-z0-9.:]{0,9}|[ -~\t]{0,9}|\\PC{0,9})";
const ACCEPT_VALUE: &str = "(text/html(; ?q=[01.]{0,3})?,? ?){0,2}([ -~]{0,9})";

fn head() -> impl Strategy<Value = Parts> {
    let method = select(&["GET", "HEAD", "OPTIONS", "POST", "CONNECT", "get", "X"][..]);
    let accept = proptest::option::of(ACCEPT_VALUE);
    let headers = (
        vec(HOST_VALUE, 0..3),
        accept,
        proptest::option::of("https?"),
    );
    (method, TARGET, headers).prop_filter_map(
        "hyper refuses the request",
        |(method, target, (hosts, accept, proto))| {
            let hosts = hosts.iter().map(|host| (HOST, host.as_bytes()));
            let accept = accept.iter().map(|accept| (ACCEPT, accept.as_bytes()));
            let proto = proto.iter().map(|proto| {
                (
                    HeaderName::from_static("x-forwarded-proto"),
                    proto.as_bytes(),
                )
            });
            invariants::head(
                method.as_bytes(),
                target.as_bytes(),
                &hosts.chain(accept).chain(proto).collect::<Vec<_>>(),
            )
        },
    )
}

/// Values that a user types, with a mistake now and then.
const VALUE: &str = "([0-9]{1,20}(s|ms|)|off|on|all|text|json|\\[?[0-9a-f:.]{0,9}\\]?:?[0-9]{0,6}|\\PC{0,70}|(?s).{0,3})";
const SETTING: &str = "(bind|workers|drain-delay|drain-deadline|idle-timeout|header-timeout|write-timeout\
                       |max-connections|access-log|log-format|release|no-access-log|(?s).{0,5})";

fn arguments() -> impl Strategy<Value = Vec<String>> {
    let flag = (SETTING, VALUE).prop_map(|(setting, value)| format!("--{setting}={value}"));
    let word = prop_oneof![
        SETTING.prop_map(|setting| format!("--{setting}")),
        VALUE,
        "(-[a-zA-Z]|healthcheck)"
    ];
    vec(prop_oneof![flag, word], 0..5)
}

fn variables() -> impl Strategy<Value = Vec<(String, String)>> {
    let name =
        SETTING.prop_map(|setting| format!("TIMBER_{}", setting.to_uppercase().replace('-', "_")));
    vec(
        (
            prop_oneof![4 => name, 1 => Just("PORT".to_owned()), 1 => "(?s).{0,5}"],
            VALUE,
        ),
        0..4,
    )
}

const FAULTS: [&str; 9] = [
    "ignore-sigterm",
    "no-drain",
    "unready",
    "unready=1s/60s",
    "slow-start=1s",
    "errors=50%",
    "errors=100%",
    "leak=1MB/s",
    "exit=3@30s",
];

/// What the probes and the metrics say of the faults. Requests only advance the number that decides which
/// of them fail.
fn effects(faults: &Faults, start: Instant) -> [(u16, Vec<u8>); 3] {
    ["/healthz", "/readyz", "/metrics"].map(|path| {
        let response = faults.apply(Some(path), start, Response::ok(&PROMETHEUS, "text\n"));
        (response.status.as_u16(), response.body.into())
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn each_request_gets_one_of_few_responses_and_one_log_entry(
        head in head(),
        client in any::<IpAddr>(),
        second in 0..1_u64 << 40,
    ) {
        let (_, response) = invariants::respond(&head);
        invariants::access_entries(second, &client.to_string(), &head, &response);
    }

    #[test]
    fn each_event_gets_one_log_entry(message in "(?s).{0,30}", second in 0..1_u64 << 40) {
        invariants::event_entries(second, &message);
    }

    #[test]
    fn a_normal_path_is_its_own_normal_form(path in TARGET) {
        invariants::normal_path(&path);
    }

    #[test]
    fn equivalent_spellings_of_a_path_lead_to_the_same_route(
        route in select(&["/index", "/healthz", "/readyz", "/version", "/sample", "/metrics", "/openapi.json"][..]),
        slashes in "/{1,3}",
        version in "(v[^/?#%]{1,5}/)?",
        encoded in vec(any::<bool>(), 12),
        end in "/?",
    ) {
        let encode = |byte: u8, is_encoded| if is_encoded { format!("%{byte:02x}") } else { char::from(byte).into() };
        let name: String = route[1..].bytes().zip(encoded).map(|(byte, is)| encode(byte, is)).collect();
        let target = format!("{slashes}{}{name}{end}", if route == "/index" { &version } else { "" });
        // Two slashes at the start of a target are a path. Only after a scheme do they lead to a host.
        if let Some(head) = invariants::head(b"GET", target.as_bytes(), &[(HOST, b"a")]) {
            prop_assert_eq!(invariants::respond(&head).0, Some(route), "{}", target);
        }
    }

    #[test]
    fn settings_are_in_range_or_each_mistake_is_one_line(arguments in arguments(), variables in variables()) {
        invariants::configuration(&arguments, &variables);
    }

    #[test]
    fn no_request_changes_a_fault(head in head(), names in vec(select(&FAULTS[..]), 0..4)) {
        let arguments: Vec<_> = names.iter().map(|name| format!("--fault={name}")).collect();
        let faults = cli::parse(&arguments, &[]).expect("valid faults").1.faults;
        let start = Instant::now();
        let before = (faults.clone(), effects(&faults, start));
        let (route, response) = invariants::respond(&head);
        faults.apply(route, start, response);
        prop_assert_eq!((faults.clone(), effects(&faults, start)), before);
    }

    #[test]
    fn any_container_facts_leave_at_least_one_worker(
        files in vec("(0::/|[0-9]{1,20}|max|[0-9]{1,20} [0-9]{1,20}|(?s).{0,40})\n?", invariants::CONTAINER_FILES.len()),
    ) {
        invariants::container_facts(&files.iter().map(String::as_str).collect::<Vec<_>>());
    }
}
