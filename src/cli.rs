//! The command line: reads arguments and environment variables, and writes the help text. Nothing
//! here looks at the process: both are values, and every mistake in them is reported.

use std::fmt::Write;

use crate::config::{AccessLog, Config, SETTINGS, Setting};

/// What the command line asks for.
#[derive(Debug, PartialEq)]
pub enum Command {
    Serve,
    /// Probe a running service: at this URL, or where this configuration would serve.
    Healthcheck(Option<String>),
    Help,
    Version,
}

/// The text of `timber --help`.
pub fn help() -> String {
    let mut text = "\
Usage: timber [OPTIONS]                    Serve
       timber healthcheck [OPTIONS] [URL]  Probe a running service: exit 0 if healthy, else 1

Options (a flag overrides its environment variable; TIME is 5, 5s or 500ms):
"
    .to_owned();
    for setting in SETTINGS {
        let usage = match setting.flag {
            "" => String::new(),
            "--bind" => format!("-b, --bind {}", setting.value),
            flag => format!("    {flag} {}", setting.value),
        };
        let (variable, default, help) = (setting.variable, setting.default, setting.help);
        let source = format!("[env: {variable}] [default: {default}]");
        _ = writeln!(text, "  {usage:<28}{source}\n          {help}");
    }
    text + "      --no-access-log
          Same as --access-log off
  -h, --help
          Print this help
  -V, --version
          Print the version

Exit codes:
  0  Graceful shutdown: every request finished
  1  Could not start, drain deadline exceeded, or second signal received
  2  Invalid configuration
"
}

/// Reads the arguments (without the program's name) and the environment variables. A flag overrides
/// its variable.
///
/// # Errors
/// All mistakes, one line each.
pub fn parse(
    arguments: &[String],
    variables: &[(String, String)],
) -> Result<(Command, Config), Vec<String>> {
    let mut parser = Parser {
        config: Config::default(),
        mistakes: Vec::new(),
    };
    for (name, value) in variables {
        parser.read_variable(name, value);
    }
    match parser.read_arguments(arguments) {
        command @ (Command::Help | Command::Version) => Ok((command, parser.config)),
        command if parser.mistakes.is_empty() => Ok((command, parser.config)),
        _ => Err(parser.mistakes),
    }
}

struct Parser {
    config: Config,
    mistakes: Vec<String>,
}

impl Parser {
    fn read_variable(&mut self, name: &str, value: &str) {
        let is_ours = name == "PORT" || name.starts_with("TIMBER_");
        if !is_ours || is_service_link(name, value) {
            return;
        }
        match SETTINGS.iter().find(|setting| setting.variable == name) {
            Some(setting) => self.store(setting, name, value),
            None => self.report_unknown("variable", name),
        }
    }

    fn read_arguments(&mut self, arguments: &[String]) -> Command {
        let mut command = Command::Serve;
        let mut arguments = arguments.iter().map(String::as_str);
        while let Some(argument) = arguments.next() {
            match (argument, &mut command) {
                ("-h" | "--help", _) => return Command::Help,
                ("-V" | "--version", _) => return Command::Version,
                ("--no-access-log", _) => self.config.access_log = AccessLog::Off,
                (flag, _) if flag.starts_with('-') => self.read_flag(flag, &mut arguments),
                ("healthcheck", Command::Serve) => command = Command::Healthcheck(None),
                (url, Command::Healthcheck(target @ None)) => *target = Some(url.to_owned()),
                (word, _) => self.report_unknown("argument", word),
            }
        }
        command
    }

    /// Reads `--flag=VALUE`, or `--flag` with its value from the next argument.
    fn read_flag<'a>(&mut self, flag: &'a str, next: &mut impl Iterator<Item = &'a str>) {
        let (name, value) = match flag.split_once('=') {
            Some((name, value)) => (name, Some(value)),
            None => (flag, None),
        };
        let Some(setting) = SETTINGS.iter().find(|setting| has_flag(setting, name)) else {
            return self.report_unknown("flag", name);
        };
        let value = value.or_else(|| next.next()).unwrap_or_default();
        self.store(setting, name, value);
    }

    fn store(&mut self, setting: &Setting, name: &str, value: &str) {
        if let Err(form) = (setting.set)(&mut self.config, value) {
            let mistake = format!("invalid {name} {value:?}: expected {form}");
            self.mistakes.push(mistake);
        }
    }

    fn report_unknown(&mut self, kind: &str, name: &str) {
        let name = name.escape_debug();
        let mistake = format!("unknown {kind} {name}: expected one that timber --help lists");
        self.mistakes.push(mistake);
    }
}

fn has_flag(setting: &Setting, flag: &str) -> bool {
    setting.flag == flag || setting.flag == "--bind" && flag == "-b"
}

/// Kubernetes and Docker links set variables for the services beside a container. One that is
/// called `timber` brings `TIMBER_PORT=tcp://…` and `TIMBER_SERVICE_HOST`.
fn is_service_link(name: &str, value: &str) -> bool {
    let is_numbered = |(_, rest): (&str, &str)| rest.starts_with(|c: char| c.is_ascii_digit());
    name.ends_with("_PORT") && value.contains("://")
        || name.ends_with("_SERVICE_HOST")
        || name.contains("_SERVICE_PORT")
        || name.split_once("_PORT_").is_some_and(is_numbered)
}
