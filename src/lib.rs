//! The service's modules, for its own binary and for fuzz/. No stable interface: use the binary.

pub mod api;
pub mod config;
mod connection;
pub mod healthcheck;
pub mod host;
pub mod log;
pub mod metrics;
pub mod server;
