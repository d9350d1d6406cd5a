//! Tests of the real process over real sockets.

#[path = "../support/parity.rs"]
mod parity;
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

use rustix::process::Signal;
use serde_json::{Value, json};
use support::{
    Response, TEST_TIMEOUT, Timber, connect, exchange, get, is_closed, is_open, run_to_completion,
    shell, timber,
};

const JSON: &str = "application/json; charset=utf-8";
