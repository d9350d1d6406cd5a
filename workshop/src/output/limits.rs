//! `--fail-over`: limits of figures.

use crate::{
    figures::{Better, ROWS, Row, row_of},
    results::Image,
    units::Unit,
};

/// `size=900kB`, or `timber-tutorial:2/size=900kB` for one image alone.
#[derive(Clone)]
pub struct Limit {
    /// Name or label. `None`: every image.
    image: Option<String>,
    row: &'static Row,
    value: f64,
}

/// Parses one limit.
///
/// # Errors
///
/// A message with the invalid part and what is expected.
pub fn parse(text: &str) -> Result<Limit, String> {
    // Names and labels can contain `=` and `/`, but keys and values cannot.
    let (left, value) = text
        .rsplit_once('=')
        .ok_or("expected FIGURE=LIMIT or IMAGE/FIGURE=LIMIT, such as size=900kB")?;
    let (image, key) = match left.rsplit_once('/') {
        Some((image, key)) => (Some(image.to_owned()), key),
        None => (None, left),
    };
    let row = row_of(key.trim())
        .filter(|row| can_be_limited(row))
        .ok_or_else(|| {
            let known: Vec<_> = ROWS
                .iter()
                .filter(|row| can_be_limited(row))
                .map(|row| row.key)
                .collect();
            format!(
                "unknown figure `{}`: expected one of {}",
                key.trim(),
                known.join(", ")
            )
        })?;
    if image.as_ref().is_some_and(String::is_empty) {
        return Err(format!("missing image before the slash in `{text}`"));
    }
    Ok(Limit {
        image,
        row,
        value: row.unit.parse(value)?,
    })
}

/// A limit makes sense only if a higher value is worse.
fn can_be_limited(row: &Row) -> bool {
    row.better == Better::Lower
}

impl Limit {
    fn is_for(&self, name: &str, label: &str) -> bool {
        self.image
            .as_ref()
            .is_none_or(|image| image == name || image == label)
    }

    /// Returns a message if the image exceeds the limit or the figure is not available. The median
    /// of a spread counts.
    fn excess(&self, image: &Image) -> Option<String> {
        let (label, key, limit) = (
            &image.label,
            self.row.key,
            self.row.unit.write_mark(self.value),
        );
        let figure = self.row.of(image);
        match figure.value() {
            Some(value) if value <= self.value => None,
            Some(value) => {
                let written = self.row.write(&figure);
                let exact = if self.row.unit == Unit::Bytes {
                    format!(", {} bytes,", Unit::Count.write(value))
                } else {
                    String::new()
                };
                Some(format!(
                    "{label}: {key} {written}{exact} exceeds the limit of {limit}"
                ))
            }
            None => Some(format!(
                "{label}: {key} is not available, so its limit of {limit} is not met: {}",
                figure.reason().unwrap_or_default()
            )),
        }
    }
}

/// Returns a message for each limit whose image is not in `images`, a list of names and labels.
pub fn unknown(limits: &[Limit], images: &[(&str, &str)]) -> Vec<String> {
    let is_unknown = |limit: &&Limit| !images.iter().any(|(name, label)| limit.is_for(name, label));
    let message = |limit: &Limit| {
        let (image, key) = (limit.image.as_ref()?, limit.row.key);
        Some(format!(
            "{image}: unknown image in the limit of {key}: expected the name or label of a compared image"
        ))
    };
    limits
        .iter()
        .filter(is_unknown)
        .filter_map(message)
        .collect()
}

/// Returns a message for each limit that is not met, and for each image that failed.
pub fn check(limits: &[Limit], images: &[Image]) -> Vec<String> {
    let mut failures: Vec<_> = images
        .iter()
        .filter_map(|image| {
            image
                .failure
                .as_ref()
                .map(|why| format!("{} failed: {why}", image.label))
        })
        .collect();
    let names: Vec<_> = images
        .iter()
        .map(|image| (image.name.as_str(), image.label.as_str()))
        .collect();
    failures.extend(unknown(limits, &names));
    for limit in limits {
        let limited = images
            .iter()
            .filter(|image| limit.is_for(&image.name, &image.label));
        failures.extend(limited.filter_map(|image| limit.excess(image)));
    }
    failures
}

#[cfg(test)]
mod tests {
    use super::{check, parse};
    use crate::results::example;

    #[test]
    fn limits_apply_to_all_images_or_to_one() {
        let image = |text| {
            parse(text)
                .unwrap_or_else(|error| panic!("{text}: {error}"))
                .image
        };
        assert_eq!(image("size=900kB"), None);
        assert_eq!(
            image("timber-tutorial:2/size=900kB").as_deref(),
            Some("timber-tutorial:2")
        );
        assert_eq!(
            image("host:5000/team/timber:2/start=1s").as_deref(),
            Some("host:5000/team/timber:2")
        );
        assert_eq!(image("a=b/errors=0").as_deref(), Some("a=b"));
    }

    #[test]
    fn errors_name_the_invalid_part() {
        let wrong = [
            ("size", "expected FIGURE=LIMIT"),
            (
                "girth=1kB",
                "unknown figure `girth`: expected one of pull, pull-5-mbit",
            ),
            ("shell=1", "unknown figure `shell`"),
            ("rate=1", "unknown figure `rate`"),
            ("size=900", "missing unit in `900`"),
            ("stop=1kB", "unknown unit `kB`"),
            ("/size=1kB", "missing image before the slash"),
        ];
        for (text, message) in wrong {
            let error = parse(text).err().unwrap();
            assert!(error.contains(message), "{error}");
        }
    }

    #[test]
    fn messages_contain_the_value_and_the_limit() {
        let images = example().images;
        let failures = |limits: &[&str]| {
            let limits: Vec<_> = limits
                .iter()
                .map(|text| parse(text).ok().unwrap())
                .collect();
            check(&limits, &images[..3])
        };
        assert_eq!(
            failures(&[
                "timber-tutorial:2/size=882184B",
                "timber-tutorial:2/stop=1s"
            ]),
            [""; 0]
        );
        assert_eq!(
            failures(&["timber-tutorial:2/size=882183B"]),
            ["timber-tutorial:2: size 882 kB, 882,184 bytes, exceeds the limit of 882 kB"]
        );
        // Two of the three are larger.
        assert_eq!(failures(&["size=900kB"]).len(), 2);
        assert_eq!(
            failures(&["timber-tutorial:1/process=1s"]),
            [
                "timber-tutorial:1: process is not available, so its limit of 1 s is not met: the engine does not report when the process started"
            ]
        );
        assert_eq!(
            failures(&["other:3/size=1GB"]),
            [
                "other:3: unknown image in the limit of size: expected the name or label of a compared image"
            ]
        );
    }

    #[test]
    fn a_failed_image_is_a_failure() {
        let failures = check(&[], &example().images);
        assert_eq!(failures.len(), 1);
        assert!(
            failures[0].ends_with("failed: no response with status 200 within 30 s"),
            "{}",
            failures[0]
        );
    }
}
