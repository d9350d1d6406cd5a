//! Compares the service with the original, wherever it runs.

use base64::{Engine, prelude::BASE64_STANDARD};
use serde_json::{Value, json};

use crate::support::Response;

/// Sends requests recorded with the tutorial's service, hug 2.4.0 with gunicorn 19.8.1, and
/// compares the responses.
pub fn assert_matches_original(exchange: impl Fn(&[u8]) -> Response) {
    let cases: Vec<Value> = serde_json::from_str(include_str!("../parity.json")).unwrap();
    assert_eq!(cases.len(), 25);
    for case in cases {
        let bytes = |key: &str| BASE64_STANDARD.decode(case[key].as_str()?).ok();
        let response = exchange(&bytes("request_base64").unwrap());
        let name = &case["name"];
        assert_eq!(json!(response.status), case["status"], "{name}");
        if let Some(content_type) = case["content_type"].as_str() {
            assert_eq!(
                response.header("content-type"),
                Some(content_type),
                "{name}"
            );
        }
        if let Some(body) = bytes("body_base64") {
            assert_eq!(response.text(), String::from_utf8(body).unwrap(), "{name}");
        }
        for method in case["allow_contains"].as_array().into_iter().flatten() {
            let allow = response.header("allow").unwrap_or_default();
            assert!(
                allow.split(", ").any(|m| m == method),
                "{name}: {method} is not in Allow: {allow}"
            );
        }
    }
}
