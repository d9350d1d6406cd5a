//! Every flag, variable and default, with its reason. Nothing here looks at the process: [`parse`] takes the
//! arguments and the variables as values, and reports every mistake that it finds, not only the first.

use std::{net::Ipv6Addr, time::Duration};

/// The text of `timber --help`. What stands in it as a flag with a variable is a setting, and all of them are here.
pub const HELP: &str = include_str!("help.txt");

/// What the command line asks for.
#[derive(Debug, PartialEq)]
pub enum Command {
    Serve,
    /// Probe a running service: this URL, or the one that this configuration would serve.
    Healthcheck(Option<String>),
    Help,
    Version,
}

/// Which requests get a line on standard output. Probes and scrapes come every few seconds from each prober and
/// would drown the rest.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum AccessLog {
    Off,
    AllButProbes,
    All,
}

/// The settings of one service.
#[derive(Debug, PartialEq)]
pub struct Config {
    /// Address to listen at, or what was given for one; none means all interfaces, IPv6 and IPv4 both.
    pub host: Option<String>,
    bind_port: Option<u16>,
    platform_port: u16,
    /// Threads that serve; none means the CPUs that the container may use.
    pub workers: Option<usize>,
    /// From the signal until the listener closes: `/readyz` says 503 and requests are still answered.
    pub drain_delay: Duration,
    /// From the closing of the listener until what is still busy is cut.
    pub drain_deadline: Duration,
    /// How long a kept connection may be without a request.
    pub idle_timeout: Duration,
    /// How long a request's head may take, or a new connection's first byte.
    pub header_timeout: Duration,
    /// From the end of a request's head until its answer is with the kernel.
    pub write_timeout: Duration,
    /// Connections open at once; further ones wait in the kernel's backlog.
    pub max_connections: usize,
    pub access_log: AccessLog,
    pub json_log: bool,
    /// What `/version` and the page show as the release; the images say 1 and 2.
    pub release: String,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            host: None,
            bind_port: None,
            platform_port: 8000, // where the tutorial's service listens
            workers: None,
            drain_delay: Duration::ZERO,
            drain_deadline: Duration::from_secs(8), // `docker stop` kills after 10
            // Longer than the 60 s for which common proxies and scrapers keep an idle connection: who closes
            // first must be the one who would not send next.
            idle_timeout: Duration::from_secs(75),
            header_timeout: Duration::from_secs(10), // one packet's work, with room for some to be lost
            // An answer takes microseconds: what takes long is a client that does not read it.
            write_timeout: Duration::from_secs(30),
            max_connections: 10_000,
            access_log: AccessLog::AllButProbes,
            json_log: false,
            release: "dev".to_owned(),
        }
    }
}

impl Config {
    /// The port to listen at: that of `--bind`, else the platform's.
    pub fn port(&self) -> u16 {
        self.bind_port.unwrap_or(self.platform_port)
    }

    /// Takes one value in, or says what it should have looked like.
    fn set(&mut self, name: &str, value: &str) -> Result<(), &'static str> {
        const BIND: &str = "HOST:PORT, HOST or :PORT, as 127.0.0.1:8000, [::1]:8000 or :8000";
        const COUNT: &str = "a whole number from 1 to 1000000";
        const DURATION: &str = "seconds or milliseconds up to a day, as 5, 5s or 500ms";
        const TIMEOUT: &str = "seconds or milliseconds above 0 up to a day, as 5, 5s or 500ms";
        let count = || {
            value
                .parse()
                .ok()
                .filter(|n| (1..=1_000_000).contains(n))
                .ok_or(COUNT)
        };
        let duration = || duration(value).ok_or(DURATION);
        let timeout = || {
            duration()
                .ok()
                .filter(|duration| !duration.is_zero())
                .ok_or(TIMEOUT)
        };
        match name {
            "PORT" => {
                self.platform_port = value.parse().map_err(|_| "a port number from 0 to 65535")?
            }
            "bind" => (self.host, self.bind_port) = host_and_port(value).ok_or(BIND)?,
            "workers" => self.workers = Some(count()?),
            "drain-delay" => self.drain_delay = duration()?,
            "drain-deadline" => self.drain_deadline = duration()?,
            "idle-timeout" => self.idle_timeout = timeout()?,
            "header-timeout" => self.header_timeout = timeout()?,
            "write-timeout" => self.write_timeout = timeout()?,
            "max-connections" => self.max_connections = count()?,
            "access-log" => {
                self.access_log = match value {
                    "off" => AccessLog::Off,
                    "on" => AccessLog::AllButProbes,
                    "all" => AccessLog::All,
                    _ => return Err("off, on (all but probes) or all"),
                }
            }
            "log-format" if ["text", "json"].contains(&value) => self.json_log = value == "json",
            "log-format" => return Err("text or json"),
            "release" if (1..=64).contains(&value.chars().count()) => {
                value.clone_into(&mut self.release)
            }
            "release" => return Err("a label of 1 to 64 characters"),
            _ => return Err("one of the settings in timber --help"),
        }
        Ok(())
    }
}

/// Reads the arguments (without the program's name) and the variables. A flag beats its variable.
///
/// # Errors
/// All mistakes, a line each: its name, its value and the form expected.
pub fn parse(
    arguments: &[String],
    variables: &[(String, String)],
) -> Result<(Command, Config), Vec<String>> {
    let (mut config, mut command, mut mistakes) = (Config::default(), Command::Serve, Vec::new());
    let mut take = |config: &mut Config, setting: &str, name: &str, value: &str| {
        if let Err(form) = config.set(setting, value) {
            mistakes.push(format!(
                "{} {value:?}: expected {form}",
                name.escape_debug()
            ));
        }
    };
    for (name, value) in variables
        .iter()
        .filter(|(name, value)| !is_service_link(name, value))
    {
        if name == "PORT" {
            take(&mut config, "PORT", name, value);
        } else if let Some(setting) = name.strip_prefix("TIMBER_") {
            take(
                &mut config,
                &setting.to_ascii_lowercase().replace('_', "-"),
                name,
                value,
            );
        }
    }
    let mut arguments = arguments.iter();
    while let Some(argument) = arguments.next() {
        let (name, value) = match argument.split_once('=') {
            Some((name, value)) if name.starts_with('-') => (name, Some(value)),
            _ => (argument.as_str(), None),
        };
        match (name, &mut command) {
            ("-h" | "--help", _) => return Ok((Command::Help, config)),
            ("-V" | "--version", _) => return Ok((Command::Version, config)),
            ("--no-access-log", _) if value.is_none() => config.access_log = AccessLog::Off,
            ("healthcheck", command @ Command::Serve) => *command = Command::Healthcheck(None),
            (_, Command::Healthcheck(url @ None)) if !name.starts_with('-') => {
                *url = Some(argument.clone())
            }
            _ => {
                let setting = if name == "-b" {
                    "bind"
                } else {
                    name.strip_prefix("--").unwrap_or_default()
                };
                let known = !setting.contains(' ') && HELP.contains(&format!(" --{setting} "));
                let next = || {
                    if known {
                        arguments.next().map_or("", String::as_str)
                    } else {
                        ""
                    }
                };
                take(
                    &mut config,
                    if known { setting } else { "" },
                    name,
                    value.unwrap_or_else(next),
                );
            }
        }
    }
    if mistakes.is_empty() {
        Ok((command, config))
    } else {
        Err(mistakes)
    }
}

/// A cluster gives every container variables for the services beside it: one that is called `timber` brings
/// `TIMBER_PORT=tcp://…` and `TIMBER_SERVICE_HOST`. Those are nobody's mistake.
fn is_service_link(name: &str, value: &str) -> bool {
    let port = |(_, rest): (&str, &str)| rest.starts_with(|c: char| c.is_ascii_digit());
    name.ends_with("_PORT") && value.contains("://")
        || name.ends_with("_SERVICE_HOST")
        || name.contains("_SERVICE_PORT")
        || name.split_once("_PORT_").is_some_and(port)
}

/// The host and the port of what may be either or both. An IPv6 address stands in brackets or, without a port, bare.
pub fn host_and_port(value: &str) -> Option<(Option<String>, Option<u16>)> {
    if value.parse::<Ipv6Addr>().is_ok() {
        return Some((Some(value.to_owned()), None));
    }
    let (host, port) = match value.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => (host, Some(port.parse().ok()?)),
        _ => (value, None),
    };
    match host
        .strip_prefix('[')
        .and_then(|host| host.strip_suffix(']'))
    {
        Some(v6) => v6
            .parse::<Ipv6Addr>()
            .ok()
            .map(|_| (Some(v6.to_owned()), port)),
        None if value.is_empty() || host.contains(['[', ']', ':']) => None,
        None => Some(((!host.is_empty()).then(|| host.to_owned()), port)),
    }
}

fn duration(value: &str) -> Option<Duration> {
    let (digits, unit) = match value.strip_suffix("ms") {
        Some(digits) => (digits, 1),
        None => (value.strip_suffix('s').unwrap_or(value), 1000),
    };
    let duration = Duration::from_millis(digits.parse::<u64>().ok()?.checked_mul(unit)?);
    (duration <= Duration::from_hours(24)).then_some(duration)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_help_text_has_the_defaults() {
        for line in HELP
            .lines()
            .filter(|line| line.contains('[') && !line.contains("[the ") && line.contains("  --"))
        {
            let setting = line
                .trim_start()
                .split([' ', '='])
                .next()
                .unwrap()
                .trim_start_matches("--");
            let default = line.rsplit_once('[').unwrap().1.trim_end_matches(']');
            let mut config = Config::default();
            assert_eq!(config.set(setting, default), Ok(()), "{line}");
            assert_eq!(config, Config::default(), "{line}");
        }
        assert!(HELP.contains(&format!("[:{}]", Config::default().port())));
    }
}
