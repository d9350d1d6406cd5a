//! The real images in a real Docker Engine, with the commands that users type:
//! `cargo test --manifest-path tests/system/Cargo.toml --test image -- --include-ignored`.
//! `.ci/install` installs what they need on a Debian host. A test that misses a tool fails and names it.

#[path = "../../support/parity.rs"]
mod parity;
#[allow(dead_code, reason = "tests/service uses the rest")]
#[path = "../../support/mod.rs"]
mod support;

mod arm64;
mod builds;
mod containers;
mod contents;
mod costs;
mod docker;
mod limits;

use std::{
    env, fs,
    io::Write,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{self, Command, Stdio},
    sync::LazyLock,
    thread,
    time::{Duration, Instant, SystemTime},
};

use docker::{
    Container, Image, MUSL_BINARY, ROOT, assert_static, base_image, build, context, contributors,
    copy_out, docker, edit, eventually, image, inspect, run, try_build, undisturbed,
};
use rustix::process::{Resource, Rlimit, Signal, geteuid, getrlimit, setrlimit};
use serde_json::{Value, json};
use support::{Response, Timber, connect, exchange, get, is_closed};

const RELEASES: [usize; 3] = [1, 2, 3];
