//! `cargo workshop ready`: checks the machine before the talk in docs/talk.md.

use std::{
    ffi::OsStr,
    fmt::Display,
    io::ErrorKind,
    net::{Ipv4Addr, Ipv6Addr, TcpListener},
    process::{Command, ExitCode},
    time::Duration,
};

use anyhow::{Result, anyhow};
use console::Term;

use crate::{
    engine::Engine,
    host,
    results::Reached,
    signals::Signals,
    subject::Subject,
    terminal::{Bar, clean, program},
    trial::{Plan, Trial},
    tutorial::{self, TutorialImage},
    units::{Unit, number},
};

/// The smallest terminal in which the slides fit.
const COLUMNS: u16 = 80;
const LINES: u16 = 24;

/// Layers of the images and of their builds.
const DISK_BYTES: u64 = 2_000_000_000;

/// Oldest version of presenterm with which the slides were tested.
const PRESENTERM: (u32, u32) = (0, 16);

/// Ports of the swarm in deploy/compose.yaml. The talk's other containers use the same ones.
const PORTS: [u16; 3] = [8080, 8081, 8082];

/// Names of the talk's containers.
const CONTAINERS: [&str; 2] = ["python", "rust"];

enum Finding {
    Good(String),
    Bad {
        found: String,
        remedy: String,
    },
    /// Cannot be seen from here.
    Unknown(String),
}

use Finding::{Bad, Good, Unknown};

fn bad(found: impl Display, remedy: impl Display) -> Finding {
    Bad {
        found: found.to_string(),
        remedy: remedy.to_string(),
    }
}

/// Prints a line for each fact. Returns exit code 0, or 1 if one of them would stop the talk.
///
/// # Errors
/// Interrupted, or the engine does not remove a container.
pub async fn run() -> Result<ExitCode> {
    let mut is_ready = true;
    let mut say = |what: &str, finding: Finding| {
        is_ready &= !matches!(finding, Bad { .. });
        let line = match finding {
            Good(found) => format!("ok    {what}: {found}"),
            Bad { found, remedy } => format!("FAIL  {what}: {found}\n      {remedy}"),
            Unknown(why) => format!("?     {what}: {why}"),
        };
        println!("{}", clean_lines(&line));
    };
    say("terminal", terminal());
    say("presenterm", presenterm(OsStr::new("presenterm")));
    match Engine::connect().await {
        Err(error) => say(
            "engine",
            bad(
                format!("{error:#}"),
                format!(
                    "then run {} ready again, which also checks the images",
                    program()
                ),
            ),
        ),
        Ok(engine) => {
            let mut signals = Signals::new()?;
            let looked = tokio::select! {
                looked = look(&engine, &mut say) => looked,
                signal = signals.next() => Err(anyhow!(signal)),
            };
            let cleared = engine.clear().await;
            looked?;
            cleared?;
        }
    }
    Ok(ExitCode::from(u8::from(!is_ready)))
}

/// Replaces control characters, but keeps the line breaks.
fn clean_lines(text: &str) -> String {
    text.lines().map(clean).collect::<Vec<_>>().join("\n")
}

async fn look(engine: &Engine, say: &mut impl FnMut(&str, Finding)) -> Result<()> {
    let facts = engine.facts().await?;
    let description = &engine.description;
    let name = format!("{} {}", description.name, description.version);
    say(
        "engine",
        if description.name == "Podman" {
            bad(
                name,
                "Podman has no swarm: start Docker Engine for the last part of the talk",
            )
        } else {
            Good(name)
        },
    );
    say(
        "swarm",
        if facts.swarm == "inactive" {
            Good("none yet".to_owned())
        } else {
            bad(
                format!("this engine is in a swarm ({})", facts.swarm),
                "the talk creates its own. If nobody needs this one: docker swarm leave --force",
            )
        },
    );
    for name in CONTAINERS {
        if facts.containers.iter().any(|container| container == name) {
            let remedy = format!("the talk needs this name: docker rm --force {name}");
            say("container", bad(format!("{name} exists"), remedy));
        }
    }
    say("disk", disk(facts.directory.as_deref()));
    // From the network of a container, the ports are not visible. The engine tries them below.
    if description.reached == Reached::PublishedPorts {
        for port in PORTS.into_iter().filter(|port| !is_free(*port)) {
            say("port", bad(format!("{port} is in use"), who_uses(port)));
        }
    }
    if let Err(error) = engine.claim().await {
        let remedy = format!(
            "otherwise wait until it has ended, then run {} ready again",
            program()
        );
        say("images", bad(format!("{error:#}"), remedy));
        return Ok(());
    }
    for (image, port) in tutorial::IMAGES.iter().zip(PORTS) {
        let bar = Bar::spinner(&format!("starting {}", image.name));
        let finding = runs(engine, image, port).await;
        drop(bar);
        say(&format!("{} on port {port}", image.name), finding);
    }
    Ok(())
}

/// Returns whether a container of the talk can publish the port, which `docker run -p` does on all addresses.
fn is_free(port: u16) -> bool {
    let can_bind = |listener: std::io::Result<_>| match listener {
        Ok(_) => true,
        Err(error) => error.kind() != ErrorKind::AddrInUse,
    };
    // Where there is IPv6, this includes IPv4.
    can_bind(TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)))
        && can_bind(TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)))
}

fn who_uses(port: u16) -> String {
    format!("to see what uses it: docker ps, or ss --listening --processes 'sport = :{port}'")
}

/// Starts an image on a port of this machine, sends a request, and stops it.
async fn runs(engine: &Engine, image: &TutorialImage, port: u16) -> Finding {
    let build = image.build_command();
    let found = match engine.find(image.name).await {
        Ok(Some(found)) => found,
        Ok(None) => return bad("missing", build),
        Err(error) => {
            return bad(
                format!("{error:#}"),
                format!("build the image again: {build}"),
            );
        }
    };
    let trial = async {
        let subject: Subject = format!("{}:port={port}:8080", image.name).parse()?;
        let trial = Trial {
            engine,
            subject: &subject,
            port: subject.port(&found)?,
            plan: Plan {
                timeout: Duration::from_secs(30),
                connections: 1,
                load: Duration::ZERO,
                fixed_rate: None,
            },
        };
        trial.start().await
    };
    match trial.await {
        Ok(start) => Good(format!(
            "responds {} after docker run",
            Unit::Seconds.write(start.create_to_response)
        )),
        Err(error) => {
            let error = format!("{error:#}");
            let remedy = if error.contains("of this machine is in use") {
                who_uses(port)
            } else {
                let name = image.name;
                format!(
                    "docker run --rm -p {port}:8080 {name} shows the log. To build the image again: {build}"
                )
            };
            bad(error, remedy)
        }
    }
}

fn disk(directory: Option<&str>) -> Finding {
    // From a container, the directory is not visible, but the container's own root is on the same disk.
    let root = host::is_container().then(|| host::free_bytes("/"));
    let free = directory.and_then(host::free_bytes).or(root.flatten());
    let Some(free) = free else {
        return Unknown("the engine's disk is not visible from here".to_owned());
    };
    let text = format!("{} free", Unit::Bytes.write(number(free)));
    if free >= DISK_BYTES {
        Good(text)
    } else {
        let needed = Unit::Bytes.write(number(DISK_BYTES));
        bad(
            text,
            format!("free {needed}, for example with docker system prune"),
        )
    }
}

fn terminal() -> Finding {
    let Some((lines, columns)) = Term::stdout().size_checked() else {
        return Unknown("the output is not a terminal".to_owned());
    };
    let size = format!("{columns} columns, {lines} lines");
    if columns >= COLUMNS && lines >= LINES {
        Good(size)
    } else {
        bad(
            size,
            format!(
                "enlarge the window, or choose a smaller font: the slides need {COLUMNS} columns and {LINES} lines"
            ),
        )
    }
}

fn presenterm(program: &OsStr) -> Finding {
    let (major, minor) = PRESENTERM;
    let install = "cargo install presenterm --locked";
    let output = match Command::new(program).arg("--version").output() {
        Ok(output) => output,
        Err(error) if error.kind() == ErrorKind::NotFound && host::is_container() => {
            return Unknown("not found in this container".to_owned());
        }
        Err(error) if error.kind() == ErrorKind::NotFound => {
            return bad("not found on PATH", install);
        }
        Err(error) => return bad(format!("cannot be started: {error}"), install),
    };
    let text = String::from_utf8_lossy(&output.stdout);
    let text = text.lines().next().unwrap_or_default().trim();
    let version = text.rsplit(' ').next().unwrap_or_default();
    let mut numbers = version.split('.').map(|part| part.parse::<u32>().ok());
    match (numbers.next().flatten(), numbers.next().flatten()) {
        (Some(its_major), Some(its_minor)) if (its_major, its_minor) >= PRESENTERM => {
            Good(version.to_owned())
        }
        _ => bad(
            format!("{text:?}, expected {major}.{minor} or later"),
            install,
        ),
    }
}

#[cfg(test)]
mod tests {
    use std::{ffi::OsStr, fs, os::unix::fs::PermissionsExt as _};

    use super::{Finding, presenterm};

    fn finding(output: &str) -> Result<String, String> {
        let directory = tempfile::tempdir().unwrap();
        let program = directory.path().join("presenterm");
        fs::write(&program, format!("#!/bin/sh\necho '{output}'\n")).unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        found(presenterm(program.as_os_str()))
    }

    fn found(finding: Finding) -> Result<String, String> {
        match finding {
            Finding::Good(found) => Ok(found),
            Finding::Bad { found, .. } => Err(found),
            Finding::Unknown(why) => Err(why),
        }
    }

    #[test]
    fn versions_of_presenterm_are_compared_by_number() {
        assert_eq!(finding("presenterm 0.16.1"), Ok("0.16.1".to_owned()));
        assert_eq!(finding("presenterm 1.0.0"), Ok("1.0.0".to_owned()));
        assert!(finding("presenterm 0.9.0").is_err());
        assert!(finding("usage").unwrap_err().contains("0.16 or later"));
        let missing = presenterm(OsStr::new("/no/presenterm"));
        assert!(found(missing).unwrap_err().starts_with("not found "));
    }
}
