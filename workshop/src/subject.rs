//! An image to compare, as written on the command line.

use std::str::FromStr;

use anyhow::{Result, anyhow, bail, ensure};

use crate::{engine::Inspected, tutorial};

/// An image, and how requests reach it.
#[derive(Clone, Debug, PartialEq)]
pub struct Subject {
    pub name: String,
    pub label: String,
    /// Port inside the container. `None`: the exposed one.
    port: Option<u16>,
    /// Port on this machine. `None`: a free one.
    pub published: Option<u16>,
    pub path: String,
}

impl FromStr for Subject {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        const FORM: &str = "IMAGE[=LABEL][:port=[HOST:]PORT][:path=/PATH]";
        // Names and labels can contain colons, but not these words.
        let (text, path) = match text.split_once(":path=") {
            Some((rest, path)) => (rest, Some(path)),
            None => (text, None),
        };
        let (text, ports) = match text.split_once(":port=") {
            Some((rest, ports)) => (rest, Some(ports)),
            None => (text, None),
        };
        let (name, label) = text.split_once('=').unwrap_or((text, text));
        ensure!(
            !name.is_empty() && !label.is_empty(),
            "missing image in {text:?}: expected {FORM}"
        );
        let path = path.unwrap_or_else(|| tutorial::path(name));
        ensure!(
            path.starts_with('/'),
            "invalid path {path:?}: expected a slash at the start"
        );
        ensure!(
            !path.contains(":port="),
            "the port must precede the path: expected {FORM}"
        );
        let number = |text: &str| match text.parse() {
            Ok(0) | Err(_) => Err(anyhow!(
                "invalid port {text:?}: expected a number from 1 to 65535 in {FORM}"
            )),
            Ok(port) => Ok(port),
        };
        let (published, port) =
            match ports.map(|ports| ports.split_once(':').unwrap_or(("", ports))) {
                Some(("", port)) => (None, Some(number(port)?)),
                Some((published, port)) => (Some(number(published)?), Some(number(port)?)),
                None => (None, None),
            };
        Ok(Subject {
            name: name.into(),
            label: label.into(),
            port,
            published,
            path: path.into(),
        })
    }
}

impl Subject {
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

#[cfg(test)]
mod tests {
    use super::Subject;

    #[test]
    fn parses_names_labels_ports_and_paths() {
        let subject = |text: &str| text.parse::<Subject>().unwrap();
        let plain = subject("registry:5000/a/b:1");
        assert_eq!(
            (plain.name.as_str(), plain.label.as_str()),
            ("registry:5000/a/b:1", "registry:5000/a/b:1")
        );
        assert_eq!(
            (plain.port, plain.published, plain.path.as_str()),
            (None, None, "/")
        );
        let full = subject("web:2=Our web:port=9000:80:path=/a:b");
        assert_eq!(
            (full.name.as_str(), full.label.as_str()),
            ("web:2", "Our web")
        );
        assert_eq!(
            (full.port, full.published, full.path.as_str()),
            (Some(80), Some(9000), "/a:b")
        );
        assert_eq!(subject("timber-tutorial:2").path, "/index");
        assert_eq!(subject("a:port=80").port, Some(80));
    }

    #[test]
    fn errors_name_the_invalid_part() {
        for (text, part) in [
            ("", "missing image"),
            ("=label", "missing image"),
            ("a:port=0", "port \"0\""),
            ("a:port=x:80", "port \"x\""),
            ("a:port=80:70000", "port \"70000\""),
            ("a:path=index", "slash"),
        ] {
            let error = text.parse::<Subject>().unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        }
    }
}
