//! Tests of the real process over real sockets.

#[path = "../support/mod.rs"]
mod support;

#[cfg(target_os = "linux")] // reads /proc and sets resource limits of the service
mod abuse;
mod api;
mod configuration;
mod exchanges;
mod healthcheck;
mod logs;
mod operations;
mod page;
mod rfc;
mod shut_down;
mod structure;

use std::{
    collections::BTreeMap,
    fs::File,
    io::{Read, Write},
    net::{Ipv6Addr, SocketAddr, TcpListener, TcpStream},
    process::{Output, Stdio},
    thread,
    time::{Duration, Instant},
};

use base64::{Engine, prelude::BASE64_STANDARD};
use rustix::process::Signal;
use serde_json::{Value, json};
use support::{
    Response, TEST_TIMEOUT, Timber, connect, exchange, get, is_closed, run_to_completion, shell,
    timber,
};

const JSON: &str = "application/json; charset=utf-8";

/// At the connection limit, a further connection is served only after `close_one` has run.
fn assert_served_after(service: &Timber, close_one: impl FnOnce()) {
    let mut extra = service.connect();
    extra.write_all(get("/index").as_bytes()).unwrap();
    extra
        .set_read_timeout(Some(Duration::from_millis(300)))
        .unwrap();
    assert!(
        extra.read(&mut [0]).is_err(),
        "a connection beyond the limit is served"
    );
    close_one();
    extra.set_read_timeout(Some(TEST_TIMEOUT)).unwrap();
    assert_eq!(Response::read(&mut extra, false).status, 200);
}
