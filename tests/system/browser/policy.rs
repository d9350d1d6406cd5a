//! The page's Content-Security-Policy, checked without a browser.

use base64::{Engine as _, prelude::BASE64_STANDARD};
use sha2::{Digest as _, Sha256};

use super::Timber;

/// A browser ignores a script or a style whose hash the policy does not name. One changed letter in
/// the page is enough.
#[test]
fn policy_contains_the_hashes_of_script_and_style() {
    let service = Timber::start(&["--release", "<7>"]);
    let page = service.exchange("GET / HTTP/1.1\r\nHost: a\r\nAccept: text/html\r\n\r\n");
    let (policy, text) = (page.header("content-security-policy").unwrap(), page.text());
    for element in ["script", "style"] {
        let (begin, end) = (format!("<{element}>"), format!("</{element}>"));
        assert_eq!(text.matches(&begin).count(), 1, "{element} elements");
        let content = text
            .split_once(&begin)
            .and_then(|(_, rest)| rest.split_once(&end))
            .unwrap()
            .0;
        let hash = BASE64_STANDARD.encode(Sha256::digest(content));
        let directive = format!("{element}-src 'sha256-{hash}'");
        assert!(
            policy.split("; ").any(|d| d == directive),
            "{directive} is missing in {policy}"
        );
    }
}
