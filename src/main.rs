//! The process: arguments, environment, signals and the exit code.

use std::cell::LazyCell;
use std::env;
use std::ffi::OsString;
use std::io::{self, Write};
use std::net::{SocketAddr, TcpListener};
use std::panic;
use std::process::{self, ExitCode};
use std::time::{Duration, Instant};

use tokio::runtime::Builder;
use tokio::select;
use tokio::signal::unix::{Signal, SignalKind, signal};

use timber::api::{self, ROUTES};
use timber::cli::{self, Command};
use timber::config::{AccessLog, Config};
use timber::context::Context;
use timber::log::Log;
use timber::metrics::Metrics;
use timber::{admission, container, healthcheck, listener, server};

/// Could not start, or a shutdown aborted connections.
const EXIT_FAILURE: u8 = 1;
/// Invalid configuration.
const EXIT_USAGE: u8 = 2;

/// Time limit for writing the last log entries. Their reader may have stopped reading.
const FLUSH_TIMEOUT: Duration = Duration::from_millis(500);

fn main() -> ExitCode {
    let to_string = |os: OsString| os.to_string_lossy().into_owned();
    let arguments: Vec<_> = env::args_os().skip(1).map(to_string).collect();
    let variables: Vec<_> = env::vars_os()
        .map(|(name, value)| (to_string(name), to_string(value)))
        .collect();
    let (command, config) = match cli::parse(&arguments, &variables) {
        Ok(parsed) => parsed,
        Err(mistakes) => {
            // Docker reserves exit code 2 for its health checks.
            let is_probe = arguments.iter().any(|argument| argument == "healthcheck");
            return fail(&mistakes, if is_probe { EXIT_FAILURE } else { EXIT_USAGE });
        }
    };
    match command {
        Command::Help => print(&cli::help()),
        Command::Version => print(&format!("timber {}\n", api::VERSION)),
        Command::Healthcheck(url) => match healthcheck::probe(&config, url.as_deref()) {
            Ok(result) => print(&format!("healthy: {result}\n")),
            Err(error) => fail(&[format!("unhealthy: {error}")], EXIT_FAILURE),
        },
        Command::Serve => run(config).unwrap_or_else(|error| fail(&[error], EXIT_FAILURE)),
    }
}

/// Unlike `println!`, does not panic if the reader has gone.
fn print(text: &str) -> ExitCode {
    match io::stdout().write_all(text.as_bytes()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::from(EXIT_FAILURE),
    }
}

fn fail(errors: &[String], code: u8) -> ExitCode {
    for error in errors {
        _ = writeln!(io::stderr(), "timber: {error}");
    }
    ExitCode::from(code)
}

/// Serves until a signal, and returns the exit code of the process.
///
/// # Errors
/// Why the service cannot start, in one line.
fn run(mut config: Config) -> Result<ExitCode, String> {
    // Read first: with a low limit, no file could be opened later.
    let open_files = container::open_files().unwrap_or(usize::MAX);
    let wanted = config.max_connections;
    config.max_connections = admission::limit_by_open_files(&config, open_files)?;
    let limit = config.max_connections;
    // The main thread waits for signals and drives the timers.
    let runtime = Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| format!("cannot start: {error}"))?;
    runtime.block_on(async {
        // Before the port is bound, so that the service can be stopped as soon as it is reachable.
        let mut signals =
            Signals::catch().map_err(|error| format!("cannot handle signals: {error}"))?;
        let listener = listener::bind(&config)?;
        let address = listener
            .local_addr()
            .map_err(|error| format!("cannot listen: {error}"))?;
        let context = new_context(config, address.port());
        if limit < wanted {
            // Without a free descriptor, accept would fail. With a limit, clients wait in the
            // backlog.
            let message = format!("Limiting connections to {limit}: file-descriptor limit");
            context.log.warning(&message);
        }
        start(context, &listener, address)?;
        let signal = signals.next().await;
        context.lifecycle.start_draining();
        context.log.info(&format!("Handling signal: {signal}"));
        Ok(shut_down(context, listener, signals).await)
    })
}

/// Creates what lives as long as the process.
fn new_context(config: Config, port: u16) -> &'static Context {
    let routes = ROUTES.iter().map(|route| route.path);
    let metrics: &Metrics = Box::leak(Box::new(Metrics::new(routes)));
    let has_access_log = config.access_log != AccessLog::Off;
    let log: &Log = Box::leak(Box::new(Log::new(has_access_log, config.json_log, metrics)));
    panic::set_hook(Box::new(|panic| log.error(&panic.to_string())));
    log.info(&format!("Starting timber {}", api::VERSION));
    Box::leak(Box::new(Context::new(config, port, metrics, log)))
}

/// Starts the workers and the log, logs the environment, and applies the memory limit.
fn start(
    context: &'static Context,
    listener: &TcpListener,
    address: SocketAddr,
) -> Result<(), String> {
    let log = context.log;
    // Read after the first worker has started, because reading these files takes a while.
    let facts = LazyCell::new(container::facts);
    let count = || context.config.workers.unwrap_or_else(|| facts.workers());
    log.start();
    let workers = server::start(context, listener, count).map_err(|error| {
        log.flush(FLUSH_TIMEOUT);
        format!("cannot serve: {error}")
    })?;
    let pid = process::id();
    log.info(&format!("Listening at: http://{address} ({pid})"));
    log.info(&format!("Using workers: {workers}"));
    log.info(&facts.to_string());
    if let Some(limit) = facts.max_connections()
        && context.admission.lower(limit)
    {
        let message = format!("Limiting connections to {limit}: container memory limit");
        log.warning(&message);
    }
    log.info(&match pid {
        // Without a handler, the kernel discards the signals of process 1 of a container.
        1 => "PID 1: SIGTERM handler installed".to_owned(),
        _ => format!("PID {pid}: SIGTERM starts a graceful shutdown"),
    });
    Ok(())
}

/// Shuts down gracefully, or at once at a second signal.
async fn shut_down(
    context: &'static Context,
    listener: TcpListener,
    mut signals: Signals,
) -> ExitCode {
    let start = Instant::now();
    let responses = context.metrics.responses();
    let (aborted, end) = select! {
        biased;
        aborted = server::drain(context, listener) => (aborted, ""),
        _ = signals.next() => (
            context.lifecycle.active_connections(),
            ", at a second signal",
        ),
    };
    let finished = context.metrics.responses() - responses;
    let time = start.elapsed();
    context.log.info(&format!(
        "Shutting down: {finished} requests finished, {aborted} connections aborted in {time:.0?}{end}"
    ));
    context.log.flush(FLUSH_TIMEOUT);
    if aborted == 0 && end.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(EXIT_FAILURE)
    }
}

/// The signals that start a shutdown.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
    quit: Signal,
}

impl Signals {
    fn catch() -> io::Result<Self> {
        // Sent when a terminal closes, or to reload a configuration. Once caught, it stays ignored.
        drop(signal(SignalKind::hangup())?);
        Ok(Signals {
            terminate: signal(SignalKind::terminate())?, // docker stop, Kubernetes, systemd
            interrupt: signal(SignalKind::interrupt())?, // Ctrl-C
            quit: signal(SignalKind::quit())?,           // Ctrl-\, and a graceful stop of nginx
        })
    }

    /// Waits for the next signal, and returns its name as gunicorn logs it.
    async fn next(&mut self) -> &'static str {
        select! {
            biased;
            _ = self.terminate.recv() => "term",
            _ = self.interrupt.recv() => "int",
            _ = self.quit.recv() => "quit",
        }
    }
}
