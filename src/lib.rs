//! The service's modules, for its own binary and for tests. Not a stable interface: use the binary.

pub mod admission;
pub mod api;
pub mod cli;
pub mod config;
mod connection;
pub mod container;
pub mod context;
#[cfg(feature = "faults")]
pub mod faults;
pub mod healthcheck;
mod lifecycle;
pub mod listener;
pub mod log;
pub mod metrics;
pub mod request;
pub mod response;
pub mod server;
mod socket;
pub mod text;
pub mod threads;
mod timeouts;
pub mod timers;
mod workers;
