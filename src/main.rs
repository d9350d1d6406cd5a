//! The process: arguments, environment, signals and the exit code.

use std::env;
use std::ffi::OsString;
use std::io::{self, Write};
use std::net::SocketAddr;
use std::panic;
use std::process::{self, ExitCode};
use std::time::{Duration, Instant};

use tokio::runtime::{Builder, Runtime};
use tokio::select;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::oneshot;
use tokio::time::sleep;

use timber::admission::{self, RESERVE};
use timber::api::{self, ROUTES};
use timber::cli::{self, Command};
use timber::config::{AccessLog, Config};
use timber::context::Context;
use timber::log::Log;
use timber::metrics::Metrics;
use timber::server::Server;
use timber::timers::Timers;
use timber::{container, healthcheck, listener, threads};

/// Could not start, a thread ended, or a shutdown was not clean.
const EXIT_FAILURE: u8 = 1;
/// Invalid configuration.
const EXIT_USAGE: u8 = 2;

/// Delay before the rest of the service starts, so that a first request does not compete with it
/// for CPU time (`bench/run`).
const START_DELAY: Duration = Duration::from_millis(2);

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
/// A one-line message that says why the service cannot start.
fn run(mut config: Config) -> Result<ExitCode, String> {
    let cannot_start = |error| format!("cannot start: {error}");
    // Read first: with a low limit, no file could be opened later.
    let open_files = container::open_files().unwrap_or(usize::MAX);
    let wanted = config.max_connections;
    config.max_connections = admission::limit_by_open_files(&config, open_files)?;
    let limit = config.max_connections;
    let supervisor = Builder::new_current_thread()
        .enable_time()
        .build()
        .map_err(cannot_start)?;
    // Leaked, because connections use its timers as long as the process lives.
    let supervisor: &Runtime = Box::leak(Box::new(supervisor));
    // The main thread is the first worker. It serves as soon as the port is bound. The supervisor
    // does everything else.
    let worker = Builder::new_current_thread()
        .enable_io()
        .build()
        .map_err(cannot_start)?;
    let _entered = worker.enter();
    #[cfg(feature = "faults")]
    config.faults.delay_start();
    let terminate = SignalKind::terminate(); // docker stop, Kubernetes, systemd
    #[cfg(feature = "faults")]
    let terminate = config.faults.signal_instead_of(terminate);
    // Before the port is bound, so that the service can be stopped as soon as it is reachable.
    let signals =
        Signals::catch(terminate).map_err(|error| format!("cannot handle signals: {error}"))?;
    let listener = listener::bind(&config)?;
    let address = listener
        .local_addr()
        .map_err(|error| format!("cannot listen: {error}"))?;
    let context = new_context(
        config,
        address.port(),
        Timers::of(supervisor.handle().clone()),
    );
    if limit < wanted {
        // Without a free descriptor, accept would fail. At the limit, clients get a response.
        let message = format!("Limiting connections to {limit}: file-descriptor limit");
        context.log.warning(&message);
    }
    let server =
        Server::start(context, listener).map_err(|error| format!("cannot serve: {error}"))?;
    let (exit_sender, exit) = oneshot::channel();
    let supervise = move || {
        let supervise = Box::pin(supervise(context, server, address, signals));
        let end = threads::block_on(supervisor, supervise);
        context.log.flush(FLUSH_TIMEOUT);
        _ = exit_sender.send(end);
    };
    threads::spawn("supervisor".to_owned(), Box::new(supervise))
        .map_err(|error| format!("cannot start the supervisor thread: {error}"))?;
    let serve = async {
        exit.await
            .unwrap_or_else(|_| Err("the supervisor thread has ended".to_owned()))
    };
    threads::block_on(&worker, Box::pin(serve))
}

/// Creates what lives as long as the process.
fn new_context(config: Config, port: u16, timers: Timers) -> &'static Context {
    let routes = ROUTES.iter().map(|route| route.path);
    let metrics: &Metrics = Box::leak(Box::new(Metrics::new(routes)));
    let has_access_log = config.access_log != AccessLog::Off;
    let log: &Log = Box::leak(Box::new(Log::new(has_access_log, config.json_log, metrics)));
    panic::set_hook(Box::new(|panic| {
        log.error(&panic.to_string());
        log.flush(FLUSH_TIMEOUT); // the process may end because of it
    }));
    log.info(&format!("Starting timber {}", api::VERSION));
    Box::leak(Box::new(Context::new(config, port, timers, metrics, log)))
}

/// Completes the start, waits for a signal or a failure, and shuts down. Returns the exit code of
/// the process.
///
/// # Errors
/// A one-line message that says why the service cannot start.
async fn supervise(
    context: &'static Context,
    mut server: Server,
    address: SocketAddr,
    mut signals: Signals,
) -> Result<ExitCode, String> {
    sleep(START_DELAY).await;
    start(context, &server, address)?;
    let (delay, has_failed) = select! {
        biased;
        signal = signals.next() => {
            context.log.info(&format!("Handling signal: {signal}"));
            (context.config.drain_delay, false)
        }
        // Without delay, because new connections could be assigned to the thread that has ended.
        () = server.failure() => (Duration::ZERO, true),
    };
    context.lifecycle.start_draining();
    let is_complete = shut_down(context, server, delay, signals).await;
    Ok(if is_complete && !has_failed {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(EXIT_FAILURE)
    })
}

/// Starts the log and the other workers, logs the environment, and applies the memory limit.
fn start(context: &'static Context, server: &Server, address: SocketAddr) -> Result<(), String> {
    let log = context.log;
    log.start();
    let pid = process::id();
    log.info(&format!("Listening at: http://{address} ({pid})"));
    let facts = container::facts();
    let configured = context.config.max_connections;
    let fits = facts.max_connections(RESERVE).unwrap_or(usize::MAX);
    context.admission.raise(configured.min(fits));
    let workers = context.config.workers.unwrap_or_else(|| facts.workers());
    server.start_workers(workers)?;
    log.info(&format!("Using workers: {workers}"));
    log.info(&facts.to_string());
    #[cfg(feature = "faults")]
    context.config.faults.start(log);
    if fits < configured {
        let message = format!("Limiting connections to {fits}: container memory limit");
        log.warning(&message);
    }
    #[cfg(feature = "faults")]
    if context.config.faults.ignores_sigterm() {
        return Ok(());
    }
    log.info(&match pid {
        // Without a handler, the kernel discards the signals of process 1 of a container.
        1 => "PID 1: SIGTERM handler installed".to_owned(),
        _ => format!("PID {pid}: SIGTERM starts a graceful shutdown"),
    });
    Ok(())
}

/// Shuts down gracefully, or at once at a second signal. Returns true if no connection was aborted.
async fn shut_down(
    context: &'static Context,
    server: Server,
    delay: Duration,
    mut signals: Signals,
) -> bool {
    let start = Instant::now();
    let responses = context.metrics.responses();
    let (aborted, end) = select! {
        biased;
        aborted = server.drain(delay) => (aborted, ""),
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
    aborted == 0 && end.is_empty()
}

/// The signals that start a shutdown.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
    quit: Signal,
}

impl Signals {
    fn catch(terminate: SignalKind) -> io::Result<Self> {
        // Sent when a terminal closes, or to reload a configuration. Once caught, it stays ignored.
        drop(signal(SignalKind::hangup())?);
        Ok(Signals {
            terminate: signal(terminate)?,
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
