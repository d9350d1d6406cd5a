//! Every setting, with its default and the reason for that. [`SETTINGS`] is the only list of them:
//! the parser and `timber --help` follow from it, and a test compares docs/settings.md with it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

#[cfg(feature = "faults")]
use crate::faults::Faults;

/// Which requests are logged on standard output. Probes, scrapes and samples come every few seconds
/// and would drown out other requests.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum AccessLog {
    Off,
    AllButPolled,
    All,
}

impl AccessLog {
    pub fn includes(self, is_polled: bool) -> bool {
        match self {
            AccessLog::Off => false,
            AccessLog::AllButPolled => !is_polled,
            AccessLog::All => true,
        }
    }
}

/// The settings of one service.
#[derive(Debug, PartialEq)]
pub struct Config {
    /// The address or host name to bind; unset for every interface, IPv6 and IPv4.
    pub host: Option<String>,
    bind_port: Option<u16>,
    platform_port: u16,
    /// Threads that serve; unset for the CPUs that the container may use.
    pub workers: Option<usize>,
    /// From the signal until the listener closes: `/readyz` returns 503, and requests are still
    /// served.
    pub drain_delay: Duration,
    /// From the end of the drain delay until active connections are aborted.
    pub drain_deadline: Duration,
    /// Time that a keep-alive connection may be without a request.
    pub idle_timeout: Duration,
    /// Time that a request's head may take, or a new connection's first byte.
    pub header_timeout: Duration,
    /// Time in which the client reads nothing of a response that the kernel cannot take as a whole.
    pub write_timeout: Duration,
    /// Maximum number of open connections. Further ones wait in the kernel's backlog.
    pub max_connections: usize,
    pub access_log: AccessLog,
    pub json_log: bool,
    /// The release that `/version` and the page show. The images say 1 and 2.
    pub release: String,
    #[cfg(feature = "faults")]
    pub faults: Faults,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            host: None,
            bind_port: None,
            platform_port: 8000, // the port of the tutorial's service
            workers: None,
            drain_delay: Duration::ZERO,
            drain_deadline: Duration::from_secs(8), // `docker stop` kills after 10
            // Longer than the 60 s for which common proxies and scrapers keep an idle connection:
            // the server must not be the first to time out.
            idle_timeout: Duration::from_secs(75),
            header_timeout: Duration::from_secs(10), // one packet, with time for retransmissions
            // Writing a response takes microseconds, unless the client does not read.
            write_timeout: Duration::from_secs(30),
            max_connections: 10_000,
            access_log: AccessLog::AllButPolled,
            json_log: false,
            release: "dev".to_owned(),
            #[cfg(feature = "faults")]
            faults: Faults::default(),
        }
    }
}

impl Config {
    /// The port to bind: that of `--bind`, or else the platform's.
    pub fn port(&self) -> u16 {
        self.bind_port.unwrap_or(self.platform_port)
    }
}

/// One setting: how it is named, shown and read.
pub struct Setting {
    /// Empty if there is no flag.
    pub flag: &'static str,
    pub variable: &'static str,
    /// What stands for the value in the help text.
    pub value: &'static str,
    pub default: &'static str,
    pub help: &'static str,
    /// Stores a value, or returns which form is expected.
    pub set: fn(&mut Config, &str) -> Result<(), &'static str>,
}

pub static SETTINGS: &[Setting] = &[
    Setting {
        flag: "--bind",
        variable: "TIMBER_BIND",
        value: "HOST:PORT",
        default: ":8000",
        help: "Address to bind; without HOST, every interface, IPv6 and IPv4",
        set: |config, value| {
            const FORM: &str = "HOST:PORT, HOST or :PORT, such as 127.0.0.1:8000 or [::1]:8000";
            (config.host, config.bind_port) = parse_host_and_port(value).ok_or(FORM)?;
            Ok(())
        },
    },
    Setting {
        flag: "",
        variable: "PORT",
        value: "PORT",
        default: "8000",
        help: "Port to bind unless --bind sets one; 8080 in the images",
        set: |config, value| {
            config.platform_port = value.parse().map_err(|_| "a port number from 0 to 65535")?;
            Ok(())
        },
    },
    Setting {
        flag: "--workers",
        variable: "TIMBER_WORKERS",
        value: "N",
        default: "available CPUs",
        help: "Number of worker threads",
        set: |config, value| {
            config.workers = Some(parse_count(value)?);
            Ok(())
        },
    },
    Setting {
        flag: "--drain-delay",
        variable: "TIMBER_DRAIN_DELAY",
        value: "TIME",
        default: "0s",
        help: "Keep serving for this long after SIGTERM, with readiness off",
        set: |config, value| {
            config.drain_delay = parse_duration(value)?;
            Ok(())
        },
    },
    Setting {
        flag: "--drain-deadline",
        variable: "TIMBER_DRAIN_DEADLINE",
        value: "TIME",
        default: "8s",
        help: "Abort connections that are still active this long after the drain delay",
        set: |config, value| {
            config.drain_deadline = parse_duration(value)?;
            Ok(())
        },
    },
    Setting {
        flag: "--idle-timeout",
        variable: "TIMBER_IDLE_TIMEOUT",
        value: "TIME",
        default: "75s",
        help: "Close a keep-alive connection after this long without a request",
        set: |config, value| {
            config.idle_timeout = parse_timeout(value)?;
            Ok(())
        },
    },
    Setting {
        flag: "--header-timeout",
        variable: "TIMBER_HEADER_TIMEOUT",
        value: "TIME",
        default: "10s",
        help: "Refuse a request if its head takes longer than this",
        set: |config, value| {
            config.header_timeout = parse_timeout(value)?;
            Ok(())
        },
    },
    Setting {
        flag: "--write-timeout",
        variable: "TIMBER_WRITE_TIMEOUT",
        value: "TIME",
        default: "30s",
        help: "Close a connection if its client reads nothing of a response for this long",
        set: |config, value| {
            config.write_timeout = parse_timeout(value)?;
            Ok(())
        },
    },
    Setting {
        flag: "--max-connections",
        variable: "TIMBER_MAX_CONNECTIONS",
        value: "N",
        default: "10000",
        help: "Maximum number of open connections; lowered to fit file and memory limits",
        set: |config, value| {
            config.max_connections = parse_count(value)?;
            Ok(())
        },
    },
    Setting {
        flag: "--access-log",
        variable: "TIMBER_ACCESS_LOG",
        value: "WHICH",
        default: "on",
        help: "Requests to log: off, on (without probes, scrapes and samples) or all",
        set: |config, value| {
            config.access_log = match value {
                "off" => AccessLog::Off,
                "on" => AccessLog::AllButPolled,
                "all" => AccessLog::All,
                _ => return Err("off, on or all"),
            };
            Ok(())
        },
    },
    Setting {
        flag: "--log-format",
        variable: "TIMBER_LOG_FORMAT",
        value: "FORMAT",
        default: "text",
        help: "Format of both logs: text or json",
        set: |config, value| {
            config.json_log = match value {
                "text" => false,
                "json" => true,
                _ => return Err("text or json"),
            };
            Ok(())
        },
    },
    Setting {
        flag: "--release",
        variable: "TIMBER_RELEASE",
        value: "LABEL",
        default: "dev",
        help: "Release shown by /version and the page; 1 and 2 in the images",
        set: |config, value| {
            if !(1..=64).contains(&value.chars().count()) {
                return Err("a label of 1 to 64 characters");
            }
            value.clone_into(&mut config.release);
            Ok(())
        },
    },
    #[cfg(feature = "faults")]
    Setting {
        flag: "--fault",
        variable: "TIMBER_FAULTS",
        value: "NAME[=VALUE],…",
        default: "none",
        help: "Faults for teaching (docs/lessons.md); flags add to the variable",
        set: |config, value| config.faults.add(value, parse_duration),
    },
    #[cfg(feature = "faults")]
    Setting {
        flag: "--fault-seed",
        variable: "TIMBER_FAULT_SEED",
        value: "N",
        default: "0",
        help: "Decides which requests the fault errors chooses",
        set: |config, value| config.faults.set_seed(value),
    },
];

/// Returns the address of `host`: an IP address, or localhost. Resolving other names would add musl's
/// resolver to the image.
pub fn parse_ip(host: &str) -> Option<IpAddr> {
    match host {
        "localhost" => Some(Ipv4Addr::LOCALHOST.into()),
        _ => host.parse().ok(),
    }
}

/// Returns the host and the port of `HOST:PORT`, `HOST` or `:PORT`. An IPv6 address stands in
/// brackets or, without a port, bare.
pub fn parse_host_and_port(value: &str) -> Option<(Option<String>, Option<u16>)> {
    if value.parse::<Ipv6Addr>().is_ok() {
        return Some((Some(value.to_owned()), None));
    }
    let (host, port) = match value.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => (host, Some(port.parse().ok()?)),
        _ => (value, None),
    };
    let in_brackets = host
        .strip_prefix('[')
        .and_then(|host| host.strip_suffix(']'));
    match in_brackets {
        Some(v6) if v6.parse::<Ipv6Addr>().is_ok() => Some((Some(v6.to_owned()), port)),
        Some(_) => None,
        None if value.is_empty() || host.contains(['[', ']', ':']) => None,
        None => Some(((!host.is_empty()).then(|| host.to_owned()), port)),
    }
}

fn parse_count(value: &str) -> Result<usize, &'static str> {
    let count = value.parse().ok();
    count
        .filter(|count| (1..=1_000_000).contains(count))
        .ok_or("a whole number from 1 to 1000000")
}

fn parse_duration(value: &str) -> Result<Duration, &'static str> {
    const FORM: &str = "seconds or milliseconds up to a day, such as 5, 5s or 500ms";
    let (digits, unit) = match value.strip_suffix("ms") {
        Some(digits) => (digits, 1),
        None => (value.strip_suffix('s').unwrap_or(value), 1000),
    };
    let number = digits.parse::<u64>().map_err(|_| FORM)?;
    let duration = Duration::from_millis(number.checked_mul(unit).ok_or(FORM)?);
    if duration <= Duration::from_hours(24) {
        Ok(duration)
    } else {
        Err(FORM)
    }
}

fn parse_timeout(value: &str) -> Result<Duration, &'static str> {
    const FORM: &str = "seconds or milliseconds above 0 up to a day, such as 5, 5s or 500ms";
    parse_duration(value)
        .ok()
        .filter(|timeout| !timeout.is_zero())
        .ok_or(FORM)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_table_matches_the_default_config() {
        for setting in SETTINGS {
            if ["available CPUs", "none"].contains(&setting.default) {
                continue; // unset
            }
            let mut config = Config::default();
            let result = (setting.set)(&mut config, setting.default);
            assert_eq!(result, Ok(()), "{}", setting.variable);
            // The default of --bind names the platform's port.
            config.bind_port = config
                .bind_port
                .filter(|port| *port != config.platform_port);
            assert_eq!(config, Config::default(), "{}", setting.variable);
        }
    }
}
