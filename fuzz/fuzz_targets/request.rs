//! A request through the API and into the access log. The input: method, target, Host, Accept and the scheme that a
//! proxy names, a line each, where the last three may be missing; what follows is the text of an event.
#![no_main]

#[allow(dead_code, reason = "the other targets use the rest")]
#[path = "../../tests/support/invariants.rs"]
mod invariants;

use hyper::header::{ACCEPT, HOST, HeaderName};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let mut lines = data.splitn(6, |byte| *byte == b'\n');
    let (method, target) = (
        lines.next().unwrap_or_default(),
        lines.next().unwrap_or_default(),
    );
    let names = [HOST, ACCEPT, HeaderName::from_static("x-forwarded-proto")];
    let headers: Vec<_> = names
        .into_iter()
        .zip(&mut lines)
        .filter(|(_, value)| *value != b"-")
        .collect();
    if let Some(head) = invariants::head(method, target, &headers) {
        let (_, answer) = invariants::answer(&head);
        let length = u64::try_from(data.len()).unwrap_or_default();
        invariants::lines(length << 24, "127.0.0.1", &head, &answer);
        invariants::normal_path(head.uri.path());
    }
    if let Some(message) = lines.next() {
        invariants::event_lines(0, &String::from_utf8_lossy(message));
    }
});
