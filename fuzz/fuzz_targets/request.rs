//! Fuzzes the API, the access log and the event log with a request. The input has one line each for
//! the method, the target, Host, Accept and X-Forwarded-Proto. A `-` omits one of the last three.
//! The rest of the input is the message of an event.
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
        let (_, response) = invariants::respond(&head);
        let length = u64::try_from(data.len()).unwrap_or_default();
        invariants::access_entries(length << 24, "127.0.0.1", &head, &response);
        invariants::normal_path(head.uri.path());
    }
    if let Some(message) = lines.next() {
        invariants::event_entries(0, &String::from_utf8_lossy(message));
    }
});
