//! The process: arguments, environment, signals and the exit code.

use std::cell::LazyCell;
use std::env;
use std::ffi::OsString;
use std::io::{self, Write};
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
const FAILURE: u8 = 1;
/// Invalid configuration.
const USAGE: u8 = 2;

/// Time for the last log entries to be written, should their reader have stopped reading.
const FLUSH: Duration = Duration::from_millis(500);

fn main() -> ExitCode {
    let text = |os: OsString| os.to_string_lossy().into_owned();
    let arguments: Vec<_> = env::args_os().skip(1).map(text).collect();
    let variables: Vec<_> = env::vars_os()
        .map(|(name, value)| (text(name), text(value)))
        .collect();
    let (command, config) = match cli::parse(&arguments, &variables) {
        Ok(parsed) => parsed,
        Err(mistakes) => {
            // Docker reserves exit code 2 of a health check.
            let is_probe = arguments.iter().any(|argument| argument == "healthcheck");
            return fail(&mistakes, if is_probe { FAILURE } else { USAGE });
        }
    };
    match command {
        Command::Help => print(&cli::help()),
        Command::Version => print(&format!("timber {}\n", api::VERSION)),
        Command::Healthcheck(url) => match healthcheck::probe(&config, url.as_deref()) {
            Ok(result) => print(&format!("healthy: {result}\n")),
            Err(error) => fail(&[format!("unhealthy: {error}")], FAILURE),
        },
        Command::Serve => run(config).unwrap_or_else(|error| fail(&[error], FAILURE)),
    }
}

/// Unlike `println!`, does not panic if the reader has gone.
fn print(text: &str) -> ExitCode {
    match io::stdout().write_all(text.as_bytes()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::from(FAILURE),
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
        // Before the port is bound: a client that reaches the service can also stop it.
        let mut signals =
            Signals::catch().map_err(|error| format!("cannot handle signals: {error}"))?;
        let listener = listener::bind(&config)?;
        let port = listener.local_addr().map_or(0, |address| address.port());
        let context = new_context(config, port);
        if limit < wanted {
            // Without descriptors, clients would be refused at random. Now they wait in the
            // backlog.
            let reason = "file-descriptor limit";
            let message = format!("Limiting connections to {limit} instead of {wanted}: {reason}");
            context.log.warning(&message);
        }
        start(context, &listener)?;
        let signal = signals.next().await;
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

/// Starts the workers and the log, and logs what they run on.
fn start(context: &'static Context, listener: &std::net::TcpListener) -> Result<(), String> {
    let log = context.log;
    // Asked for after the first worker serves, because reading these files takes a while.
    let facts = LazyCell::new(|| container::facts(container::read_file));
    let workers = || context.config.workers.unwrap_or_else(|| facts.workers());
    log.start();
    let started = listener
        .local_addr()
        .and_then(|address| Ok((address, server::start(context, listener, workers)?)));
    let (address, workers) = started.map_err(|error| {
        log.flush(FLUSH);
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
        // The kernel gives process 1 of a container no default action for signals.
        1 => "PID 1: SIGTERM handler installed".to_owned(),
        _ => format!("PID {pid}: SIGTERM starts a graceful shutdown"),
    });
    Ok(())
}

/// Shuts down gracefully, or at once at a second signal.
async fn shut_down(
    context: &'static Context,
    listener: std::net::TcpListener,
    mut signals: Signals,
) -> ExitCode {
    let (start, responses) = (Instant::now(), context.metrics.responses());
    let is_forced = select! {
        biased;
        () = server::drain(context, listener) => false,
        _ = signals.next() => true,
    };
    let finished = context.metrics.responses() - responses;
    let aborted = context.lifecycle.active_connections();
    let end = if is_forced {
        ", at a second signal"
    } else {
        ""
    };
    let time = u64::try_from(start.elapsed().as_millis()).unwrap_or(u64::MAX);
    context.log.info(&format!(
        "Shutting down: {finished} requests finished, {aborted} connections aborted, {time} ms{end}"
    ));
    context.log.flush(FLUSH);
    match (is_forced, aborted) {
        (false, 0) => ExitCode::SUCCESS,
        _ => ExitCode::from(FAILURE),
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
        // Sent when a terminal closes, or to reload a configuration: ignored, once it is caught.
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
