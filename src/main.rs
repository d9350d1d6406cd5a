//! The process edge: arguments, variables, signals and the exit code.

use std::io::{self, Write};
use std::process::{self, ExitCode};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};
use std::{cell::LazyCell, env, ffi::OsString, future::poll_fn, panic, path::Path, task::Poll};

use tokio::runtime::Builder;
use tokio::signal::unix::{Signal, SignalKind, signal};

use timber::config::{self, Command, Config};
use timber::server::{self, Server, is_first};
use timber::{api, api::App, healthcheck, host, log, log::Log, metrics::Metrics};

/// Could not start, or a stop cut requests short.
const FAILURE: u8 = 1;
/// Wrong flags or variables.
const USAGE: u8 = 2;

/// What the number of the process means when it is told to stop.
const AS_INIT: &str =
    " of its container: the kernel would ignore a SIGTERM that is not handled; it is";
const AS_CHILD: &str = ": SIGTERM, SIGINT and SIGQUIT stop it gracefully, a second one at once";

/// For the last lines when their reader has stopped reading.
const FLUSH: Duration = Duration::from_millis(500);

fn main() -> ExitCode {
    let text = |os: OsString| os.to_string_lossy().into_owned();
    let arguments: Vec<_> = env::args_os().skip(1).map(text).collect();
    let variables: Vec<_> = env::vars_os()
        .map(|(name, value)| (text(name), text(value)))
        .collect();
    let (command, config) = match config::parse(&arguments, &variables) {
        Ok(parsed) => parsed,
        Err(mistakes) => {
            // Docker reserves 2 as the answer of a probe.
            let is_probe = arguments.iter().any(|argument| argument == "healthcheck");
            return complain(&mistakes, if is_probe { FAILURE } else { USAGE });
        }
    };
    match command {
        Command::Help => print(config::HELP),
        Command::Version => print(&format!("timber {}\n", api::VERSION)),
        Command::Healthcheck(url) => match healthcheck::probe(&config, url.as_deref()) {
            Ok(line) => print(&format!("healthy: {line}\n")),
            Err(line) => complain(&[format!("unhealthy: {line}")], FAILURE),
        },
        Command::Serve => {
            let files = host::open_files(); // first: below, a low limit could prevent it
            Builder::new_current_thread()
                .enable_all()
                .build()
                .map_err(|error| format!("cannot start: {error}"))
                .and_then(|runtime| runtime.block_on(serve(config, files)))
                .unwrap_or_else(|mistake| complain(&[mistake], FAILURE))
        }
    }
}

/// Not `println!`, which panics when the reader has gone.
fn print(text: &str) -> ExitCode {
    let written = io::stdout().write_all(text.as_bytes());
    if written.is_ok() {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(FAILURE)
    }
}

fn complain(mistakes: &[String], code: u8) -> ExitCode {
    for mistake in mistakes {
        _ = writeln!(io::stderr(), "timber: {mistake}");
    }
    ExitCode::from(code)
}

/// Serves until a signal says stop, and returns what the process ends with. `files` may be open at once.
///
/// # Errors
/// Why it cannot start, in one line.
async fn serve(mut config: Config, files: Option<usize>) -> Result<ExitCode, String> {
    let (started, pid) = (Instant::now(), process::id());
    let most = config.max_connections;
    config.max_connections = server::room(&config, files.unwrap_or(usize::MAX))?;
    // Signals before the port: whoever can reach the service can also stop it.
    let mut signals = catch_signals().map_err(|error| format!("cannot handle signals: {error}"))?;
    let listener = server::listen(&config)?;
    let address = listener
        .local_addr()
        .map_err(|error| format!("cannot listen: {error}"))?;

    let metrics: &Metrics = Box::leak(Box::new(Metrics::new(
        api::ROUTES.iter().map(|route| route.path),
    )));
    let log: &Log = Box::leak(Box::new(Log::new(&config, metrics)));
    panic::set_hook(Box::new(move |panic| log.error(&panic.to_string())));
    log.info(&format!("Starting timber {}", api::VERSION));
    let room = config.max_connections;
    if room < most {
        // Out of file descriptors, clients would be refused at random: better that they wait in the backlog.
        log.warning(&format!(
            "Serving {room} connections at once, not {most}: it may open no more files"
        ));
    }
    let app: &App = Box::leak(Box::new(App {
        release: config.release.clone(),
        port: address.port(),
        started,
        started_at: log::epoch_seconds(),
        draining: AtomicBool::new(false),
        metrics,
    }));
    let server: &Server = Box::leak(Box::new(Server::new(config, app, log)));
    // The first worker serves before the system is asked for what a talk likes to show.
    let facts = LazyCell::new(|| host::facts(Path::new("/")));
    let workers = || server.config.workers.unwrap_or_else(|| facts.workers());
    log.start();
    let workers = server.start(&listener, workers).map_err(|error| {
        log.flush(FLUSH);
        format!("cannot serve: {error}")
    })?;
    log.info(&format!("Listening at: http://{address} ({pid})"));
    log.info(&format!("Using workers: {workers}"));
    log.info(&facts.to_string());
    if let Some(room) = facts.connections().filter(|room| server.limit(*room)) {
        log.warning(&format!(
            "Serving {room} connections at once: more could take more memory than it may"
        ));
    }
    log.info(&format!(
        "Process {pid}{}",
        if pid == 1 { AS_INIT } else { AS_CHILD }
    ));

    let signal = next(&mut signals).await;
    app.draining.store(true, Relaxed);
    log.info(&format!("Handling signal: {signal}"));
    let (stop, before) = (Instant::now(), metrics.answered());
    let is_drained = is_first(server.drain(listener), next(&mut signals)).await;
    let (took, answered, cut) = (
        stop.elapsed(),
        metrics.answered() - before,
        server.busy.receiver_count(),
    );
    let how = if is_drained {
        ""
    } else {
        ", at a second signal"
    };
    log.info(&format!(
        "Shutting down: {answered} requests finished in {took:.3?}, {cut} connections cut{how}"
    ));
    log.flush(FLUSH);
    Ok(ExitCode::from(if is_drained && cut == 0 {
        0
    } else {
        FAILURE
    }))
}

/// Catches the signals that mean stop, each with the name that the log has for it.
fn catch_signals() -> io::Result<[(&'static str, Signal); 3]> {
    // A closed terminal, or "reload": there is nothing to. Once caught, it does nothing for good.
    drop(signal(SignalKind::hangup())?);
    Ok([
        ("term", signal(SignalKind::terminate())?), // docker stop, Kubernetes, systemd
        ("int", signal(SignalKind::interrupt())?),  // Ctrl-C
        ("quit", signal(SignalKind::quit())?), // Ctrl-\, and the graceful stop of nginx and gunicorn
    ])
}

/// The name of the next of these signals.
async fn next(signals: &mut [(&'static str, Signal)]) -> &'static str {
    poll_fn(|cx| {
        let mut signals = signals.iter_mut();
        let caught =
            signals.find_map(|(name, signal)| signal.poll_recv(cx).is_ready().then_some(*name));
        caught.map_or(Poll::Pending, Poll::Ready)
    })
    .await
}
