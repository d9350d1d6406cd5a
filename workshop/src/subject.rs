//! An image to compare, and how it runs, as written on the command line.

use std::str::FromStr;

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use hyper::{
    StatusCode, Uri,
    header::{HeaderName, HeaderValue},
};

use crate::{
    engine::{Inspected, Mount, RunOptions},
    tutorial,
    units::Unit,
};

const FORM: &str = "IMAGE[=LABEL][:KEY=VALUE]…";

/// Names of the values that can follow an image.
const KEYS: [&str; 11] = [
    "port", "path", "status", "header", "command", "env", "user", "memory", "cpus", "mount",
    "network",
];

/// An image, how its container runs, and what requests it gets.
#[derive(Clone, Debug)]
pub struct Subject {
    pub name: String,
    pub label: String,
    /// Port inside the container. `None`: the exposed one.
    port: Option<u16>,
    pub path: String,
    /// Status of a good response.
    pub status: StatusCode,
    pub headers: Vec<(HeaderName, HeaderValue)>,
    pub run: RunOptions,
    /// What differs from `docker run IMAGE`, as on the command line.
    pub options: Vec<String>,
}

impl FromStr for Subject {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let (image, options) = split(text);
        let (name, label) = image.split_once('=').unwrap_or((image, image));
        ensure!(
            !name.is_empty() && !label.is_empty(),
            "missing image in {text:?}: expected {FORM}"
        );
        let mut subject = Subject {
            name: name.to_owned(),
            label: label.to_owned(),
            port: None,
            path: tutorial::path(name).to_owned(),
            status: StatusCode::OK,
            headers: Vec::new(),
            run: RunOptions::default(),
            options: Vec::new(),
        };
        // A misspelled key would be a part of the label.
        if let Some(key) = label.split(':').skip(1).find_map(key_of) {
            bail!(
                "unknown key {key:?} of {name}: expected one of {}",
                KEYS.join(", ")
            );
        }
        for (key, value) in options {
            subject
                .set(key, value)
                .with_context(|| format!("invalid {key} {value:?} of {name}"))?;
            if !["port", "path"].contains(&key) {
                subject.options.push(format!("{key}={value}"));
            }
        }
        Ok(subject)
    }
}

/// Splits a text before each `:KEY=` with a known key. Names, labels and values can contain colons.
fn split(text: &str) -> (&str, Vec<(&str, &str)>) {
    let starts = |at: usize| {
        let rest = &text[at + 1..];
        let key = KEYS.iter().find(|key| {
            let value = rest.strip_prefix(**key);
            value.is_some_and(|value| value.starts_with('='))
        })?;
        Some((at, *key))
    };
    let found: Vec<_> = text
        .match_indices(':')
        .filter_map(|(at, _)| starts(at))
        .collect();
    let ends = found.iter().skip(1).map(|(at, _)| *at).chain([text.len()]);
    let options = found.iter().zip(ends);
    let image = found.first().map_or(text, |(at, _)| &text[..*at]);
    let options = options.map(|((at, key), end)| (*key, &text[at + key.len() + 2..end]));
    (image, options.collect())
}

fn key_of(word: &str) -> Option<&str> {
    let (key, _) = word.split_once('=')?;
    let is_key = !key.is_empty() && key.chars().all(|c| c.is_ascii_lowercase());
    is_key.then_some(key)
}

impl Subject {
    fn set(&mut self, key: &str, value: &str) -> Result<()> {
        match key {
            "port" => {
                let (published, port) = value.split_once(':').unwrap_or(("", value));
                if !published.is_empty() {
                    self.run.published = Some(port_number(published)?);
                }
                self.port = Some(port_number(port)?);
            }
            "path" => {
                ensure!(value.starts_with('/'), "expected a slash at the start");
                let uri = value.parse::<Uri>();
                uri.context("expected a path without spaces, such as /index")?;
                value.clone_into(&mut self.path);
            }
            "status" => {
                self.status = value.parse().context("expected a number from 100 to 999")?;
            }
            "header" => {
                let (name, value) = value.split_once(':').context("expected NAME: VALUE")?;
                self.headers.push((
                    name.trim().parse().context("expected NAME: VALUE")?,
                    value.trim().parse().context("expected NAME: VALUE")?,
                ));
            }
            "command" => {
                let words = shlex::split(value).filter(|words| !words.is_empty());
                self.run.command = Some(words.context("expected a command, quoted as in a shell")?);
            }
            "env" => {
                let is_set = value
                    .split_once('=')
                    .is_some_and(|(name, _)| !name.is_empty());
                ensure!(is_set, "expected NAME=VALUE");
                self.run.env.push(value.to_owned());
            }
            "user" => self.run.user = Some(value.to_owned()),
            "memory" => {
                let bytes = Unit::Bytes.parse(value).map_err(|error| anyhow!(error))?;
                #[expect(clippy::cast_possible_truncation, reason = "a fraction of a byte")]
                let bytes = bytes as i64;
                self.run.memory = Some(bytes);
            }
            "cpus" => {
                let cpus = value
                    .parse()
                    .ok()
                    .filter(|cpus| (0.01..=1024.0).contains(cpus));
                self.run.cpus = Some(cpus.context("expected a number such as 0.5 or 2")?);
            }
            "mount" => {
                let paths = value.split_once(':');
                let (source, target) = paths
                    .filter(|(source, target)| source.starts_with('/') && target.starts_with('/'))
                    .context("expected /HOST/PATH:/CONTAINER/PATH")?;
                self.run.mounts.push(Mount {
                    source: source.to_owned(),
                    target: target.to_owned(),
                });
            }
            _ => self.run.network = Some(value.to_owned()),
        }
        Ok(())
    }

    /// Returns the port inside the container.
    ///
    /// # Errors
    /// The port is unset, and the image does not expose exactly one.
    pub fn port(&self, image: &Inspected) -> Result<u16> {
        if let Some(port) = self.port {
            return Ok(port);
        }
        match image.ports[..] {
            [port] => Ok(port),
            [] => bail!(
                "the image exposes no TCP port: add one, as {}:port=PORT",
                self.name
            ),
            _ => bail!(
                "the image exposes several ports, {:?}: choose one, as {}:port=PORT",
                image.ports,
                self.name
            ),
        }
    }
}

fn port_number(text: &str) -> Result<u16> {
    let port = text.parse().ok().filter(|port| *port > 0);
    port.context("expected [HOST:]PORT with numbers from 1 to 65535")
}

#[cfg(test)]
mod tests {
    use super::Subject;

    fn subject(text: &str) -> Subject {
        text.parse()
            .unwrap_or_else(|error| panic!("{text}: {error:#}"))
    }

    #[test]
    fn parses_names_labels_ports_and_paths() {
        let plain = subject("registry:5000/a/b:1");
        assert_eq!(
            (plain.name.as_str(), plain.label.as_str()),
            ("registry:5000/a/b:1", "registry:5000/a/b:1")
        );
        assert_eq!(
            (plain.port, plain.run.published, plain.path.as_str()),
            (None, None, "/")
        );
        let full = subject("web:2=Our: web:port=9000:80:path=/a:b");
        assert_eq!(
            (full.name.as_str(), full.label.as_str()),
            ("web:2", "Our: web")
        );
        assert_eq!(
            (full.port, full.run.published, full.path.as_str()),
            (Some(80), Some(9000), "/a:b")
        );
        assert_eq!(subject("timber-tutorial:2").path, "/index");
        assert_eq!(subject("a:path=/:port=80").port, Some(80));
        assert!(full.options.is_empty());
    }

    #[test]
    fn parses_how_a_container_runs() {
        let full = subject(
            "db:1:env=A=b:c:env=D=:command=sh -c 'exec run --port 80':user=1:2:memory=64MiB:cpus=1.5\
             :mount=/etc:/data:network=net:status=204:header=Accept: text/html",
        );
        assert_eq!(full.run.env, ["A=b:c", "D="]);
        assert_eq!(
            full.run.command.as_deref().unwrap(),
            ["sh", "-c", "exec run --port 80"]
        );
        assert_eq!(full.run.user.as_deref(), Some("1:2"));
        assert_eq!(
            (full.run.memory, full.run.cpus),
            (Some(64 << 20), Some(1.5))
        );
        assert_eq!(full.run.mounts[0].target, "/data");
        assert_eq!(full.run.network.as_deref(), Some("net"));
        assert_eq!(full.status.as_u16(), 204);
        assert_eq!(full.headers[0].1, "text/html");
        assert_eq!(full.options.len(), 10);
    }

    #[test]
    fn errors_name_the_invalid_part() {
        for (text, part) in [
            ("", "missing image"),
            ("=label", "missing image"),
            ("a:port=0", "invalid port \"0\" of a"),
            ("a:port=x:80", "invalid port \"x:80\""),
            ("a:port=80:70000", "from 1 to 65535"),
            ("a:path=index", "slash"),
            ("a:path=/a b", "without spaces"),
            ("a=label:ports=80", "unknown key \"ports\" of a"),
            ("a:status=ok", "invalid status \"ok\""),
            ("a:header=x", "NAME: VALUE"),
            ("a:command='", "quoted as in a shell"),
            ("a:env=b", "NAME=VALUE"),
            ("a:memory=64", "missing unit in `64`"),
            ("a:cpus=many", "such as 0.5 or 2"),
            ("a:mount=data:/data", "/HOST/PATH:/CONTAINER/PATH"),
        ] {
            let error = format!("{:#}", text.parse::<Subject>().unwrap_err());
            assert!(error.contains(part), "{error}");
        }
    }
}
