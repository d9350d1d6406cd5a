//! The real process over real sockets.

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
use support::{Answer, SOON, Timber, ask, connect, get, is_closed, run_to_end, shell, timber};

const JSON: &str = "application/json; charset=utf-8";

/// A connection that is one too many is not served before `leave`, and then it is.
fn waits_for(service: &Timber, leave: impl FnOnce()) {
    let mut extra = service.connect();
    extra.write_all(get("/index").as_bytes()).unwrap();
    extra
        .set_read_timeout(Some(Duration::from_millis(300)))
        .unwrap();
    assert!(
        extra.read(&mut [0]).is_err(),
        "it is served beside the others"
    );
    leave();
    extra.set_read_timeout(Some(SOON)).unwrap();
    assert_eq!(Answer::read(&mut extra, false).status, 200);
}
