//! The process edge: arguments, variables, signals and the exit code. Nothing else touches the process.

mod api;
mod config;
mod connection;
mod healthcheck;
mod host;
mod log;
mod metrics;
mod server;

use std::{
    env,
    ffi::OsString,
    future::poll_fn,
    io::{self, Write},
    panic,
    path::Path,
    pin::pin,
    process::{self, ExitCode},
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    task::Poll,
    thread,
    time::{Duration, Instant},
};

use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::{
    api::App,
    config::{Command, Config},
    log::Log,
    metrics::Metrics,
    server::Server,
};

/// Could not start, or a stop cut requests short.
const FAILURE: u8 = 1;
/// Wrong flags or variables.
const USAGE: u8 = 2;

/// What the number of the process means when it is told to stop.
const AS_INIT: &str = "without a handler the kernel ignores SIGTERM here; it is handled";
const AS_CHILD: &str = "SIGTERM, SIGINT and SIGQUIT stop it gracefully, a second one at once";

/// File descriptors that are not connections: streams, listener, epoll instances, signal pipes.
const RESERVED_FILES: usize = 64;

/// For the last lines when their reader has stopped reading.
const FLUSH: Duration = Duration::from_millis(500);

fn main() -> ExitCode {
    let text = |os: OsString| os.to_string_lossy().into_owned();
    let arguments: Vec<_> = env::args_os().skip(1).map(text).collect();
    let variables: Vec<_> = env::vars_os()
        .map(|(k, v)| (k.to_string_lossy().into_owned(), v.to_string_lossy().into_owned()))
        .collect();
    let (command, config) = match config::parse(&arguments, &variables) {
        Ok(parsed) => parsed,
        // Docker reserves 2 as the answer of a probe.
        Err(mistakes) if arguments.first().is_some_and(|arg| arg == "healthcheck") => {
            return complain(&mistakes, FAILURE);
        }
        Err(mistakes) => return complain(&mistakes, USAGE),
    };
    match command {
        Command::Help => print(&config::help()),
        Command::Version => print(&format!("timber {}\n", api::VERSION)),
        Command::Healthcheck(url) => match healthcheck::probe(&config, url.as_deref()) {
            Ok(line) => print(&format!("healthy: {line}\n")),
            Err(line) => complain(&[format!("unhealthy: {line}")], FAILURE),
        },
        Command::Serve => match server::runtime() {
            Ok(runtime) => runtime.block_on(serve(config)),
            Err(error) => complain(&[format!("cannot start: {error}")], FAILURE),
        },
    }
}

/// Not `println!`, which panics when the reader has gone.
fn print(text: &str) -> ExitCode {
    match io::stdout().write_all(text.as_bytes()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::from(FAILURE),
    }
}

fn complain(mistakes: &[String], code: u8) -> ExitCode {
    for mistake in mistakes {
        _ = writeln!(io::stderr(), "timber: {mistake}");
    }
    ExitCode::from(code)
}

async fn serve(mut config: Config) -> ExitCode {
    let started = Instant::now();
    // Signals before the port: whoever can reach the service can also stop it.
    let bound = Signals::register()
        .map_err(|error| format!("cannot handle signals: {error}"))
        .and_then(|signals| Ok((signals, server::listen(&config)?)))
        .and_then(|(signals, listener)| {
            let address = listener.local_addr().map_err(|error| format!("cannot listen: {error}"))?;
            Ok((signals, listener, address))
        });
    let (mut signals, listener, address) = match bound {
        Ok(bound) => bound,
        Err(mistake) => return complain(&[mistake], FAILURE),
    };

    let metrics: &Metrics = Box::leak(Box::new(Metrics::new(api::ROUTES.iter().map(|route| route.path))));
    let log = Log::new(&config, metrics);
    let panics = log.clone();
    panic::set_hook(Box::new(move |panic| panics.error(format_args!("{panic}"))));
    let facts = host::facts(Path::new("/"));
    let pid = process::id();
    log.info(format_args!("Starting timber {}", api::VERSION));
    limit_connections(&mut config, facts.open_files, &log);
    let app = Box::leak(Box::new(App {
        release: config.release.clone(),
        host_name: facts.host_name.clone().unwrap_or_else(|| "unknown".to_owned()),
        pid,
        port: address.port(),
        started,
        started_at: log::epoch_seconds(),
        draining: AtomicBool::new(false),
        metrics,
    }));
    let server = Box::leak(Box::new(Server::new(&config, app, log.clone())));
    let workers =
        config.workers.or_else(|| thread::available_parallelism().ok().map(Into::into)).unwrap_or(1);
    let (workers, accepting) = match server.start(&listener, workers) {
        Ok(started) => started,
        Err(error) => return complain(&[format!("cannot serve: {error}")], FAILURE),
    };
    log.info(format_args!("Listening at: http://{address} ({pid})"));
    log.info(format_args!("Using workers: {workers}"));
    log.info(format_args!("{facts}"));
    log.info(format_args!("Process {pid}: {}", if pid == 1 { AS_INIT } else { AS_CHILD }));

    let signal = signals.next().await;
    log.info(format_args!("Handling signal: {signal}"));
    let stop = Instant::now();
    let drain = server.drain(listener, accepting, config.drain_delay, config.drain_deadline);
    let answered = metrics.answered();
    let is_complete = either(drain, signals.next()).await;
    let cut = metrics.connections.load(Relaxed);
    log.info(format_args!(
        "Shutting down: {} requests finished in {:.3?}, {cut} connections cut{}",
        metrics.answered() - answered,
        stop.elapsed(),
        if is_complete { "" } else { " by a second signal" },
    ));
    log.flush(FLUSH);
    ExitCode::from(if is_complete && cut == 0 { 0 } else { FAILURE })
}

/// Out of file descriptors, clients would be refused at random: better that they wait in the backlog.
fn limit_connections(config: &mut Config, open_files: Option<u64>, log: &Log) {
    let Some(files) = open_files.and_then(|files| usize::try_from(files).ok()) else { return };
    let room = files.saturating_sub(RESERVED_FILES).max(1);
    if room < config.max_connections {
        let wanted = config.max_connections;
        log.warning(format_args!(
            "Serving {room} connections at once, not {wanted}: the limit of open files is {files}"
        ));
        config.max_connections = room;
    }
}

/// True if the first is ready before the second.
async fn either<A, B>(first: impl Future<Output = A>, second: impl Future<Output = B>) -> bool {
    let (mut first, mut second) = (pin!(first), pin!(second));
    poll_fn(|context| match first.as_mut().poll(context) {
        Poll::Ready(_) => Poll::Ready(true),
        Poll::Pending => second.as_mut().poll(context).map(|_| false),
    })
    .await
}

/// The signals that matter, caught from the moment of [`Signals::register`].
struct Signals([(&'static str, Signal); 4]);

impl Signals {
    fn register() -> io::Result<Self> {
        Ok(Signals([
            ("term", signal(SignalKind::terminate())?), // docker stop, Kubernetes, systemd
            ("int", signal(SignalKind::interrupt())?),  // Ctrl-C
            ("quit", signal(SignalKind::quit())?),      // Ctrl-\, and the graceful stop of nginx and gunicorn
            ("hup", signal(SignalKind::hangup())?),     // a closed terminal, or "reload": there is nothing to
        ]))
    }

    /// The next signal that means stop.
    async fn next(&mut self) -> &'static str {
        poll_fn(|context| {
            for (name, signal) in &mut self.0 {
                while signal.poll_recv(context).is_ready() {
                    if *name != "hup" {
                        return Poll::Ready(*name);
                    }
                }
            }
            Poll::Pending
        })
        .await
    }
}
