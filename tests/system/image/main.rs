//! The real images in a real Docker Engine, by the commands that users type: `cargo test -- --ignored`. What that
//! takes, `.ci/install` puts on a Debian host. A test that misses something fails and names it; none is skipped.

#[allow(dead_code, reason = "tests/service uses the rest")]
#[path = "../../support/mod.rs"]
mod support;

mod builds;
mod containers;
mod contents;
mod costs;
mod docker;

use std::{
    env, fs,
    io::Write,
    net::SocketAddr,
    path::Path,
    process::{self, Command, Stdio},
    thread,
    time::{Duration, Instant, SystemTime},
};

use builds::DOCKERFILES;
use docker::{
    Container, Image, MUSL_BINARY, ROOT, assert_static, build, command, context, contributors,
    copy_out, docker, edit, eventually, image, inspect, output, run, try_build, undisturbed,
};
use rustix::process::{Resource, Rlimit, Signal, geteuid, getrlimit, setrlimit};
use serde_json::{Value, json};
use support::{Answer, Timber, ask, connect, get};

const RELEASES: [usize; 2] = [1, 2];
