//! Tests of the real process over real sockets.

#[path = "../support/mod.rs"]
mod support;

#[cfg(target_os = "linux")] // reads /proc and sets resource limits of the service
mod abuse;
mod api;
mod configuration;
mod exchanges;
mod healthcheck;
#[cfg(target_os = "linux")]
mod limit;
mod logs;
mod operations;
mod page;
#[cfg(target_os = "linux")]
mod process;
mod rfc;
mod shut_down;
mod structure;
#[cfg(target_os = "linux")]
mod workers;

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
    Response, TEST_TIMEOUT, Timber, connect, exchange, get, is_closed, is_open, run_to_completion,
    shell, timber,
};

const JSON: &str = "application/json; charset=utf-8";

/// At the connection limit, with every connection active, a further one is refused. It is served
/// once `close_one` has run.
fn assert_refused_until(service: &Timber, close_one: impl FnOnce()) {
    let refusal = service.get("/index");
    assert_eq!(refusal.status, 503);
    assert_eq!(refusal.header("retry-after"), Some("1"));
    assert_eq!(refusal.header("connection"), Some("close"));
    assert_eq!(service.get("/healthz").status, 200);
    close_one();
    assert_eq!(service.get("/index").status, 200);
}
