//! `--fail-over`: what a figure may not exceed.

use crate::{
    figures::{Better, ROWS, Reading, Row, row_of},
    results::{Figure, Image},
    units::Unit,
};

/// `size=900kB`, or `timber-tutorial:2/size=900kB` for one image alone.
#[derive(Clone)]
pub struct Limit {
    /// Name or label; none is every image.
    image: Option<String>,
    row: &'static Row,
    value: f64,
}

/// Reads one of `--fail-over`'s parts.
///
/// # Errors
///
/// What is wrong with it, and what would do.
pub fn parse(text: &str) -> Result<Limit, String> {
    // Names of images hold colons and slashes, a label may hold anything; keys and values hold neither `=` nor `/`.
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
                "unknown figure `{}`; expected one of: {}",
                key.trim(),
                known.join(", ")
            )
        })?;
    if image.as_ref().is_some_and(String::is_empty) {
        return Err(format!("no image before the slash in `{text}`"));
    }
    Ok(Limit {
        image,
        row,
        value: row.unit.parse(value)?,
    })
}

/// More of it must be worse, for a limit to make sense.
fn can_be_limited(row: &Row) -> bool {
    row.unit != Unit::Words && (row.better == Better::Lower || row.key == "layers")
}

impl Limit {
    fn is_for(&self, name: &str, label: &str) -> bool {
        self.image
            .as_ref()
            .is_none_or(|image| image == name || image == label)
    }

    /// Why the image does not keep to the limit, where it does not. A spread is held by its median; a figure that is not
    /// available keeps to no limit.
    fn excess(&self, image: &Image) -> Option<String> {
        let (label, key, limit) = (
            &image.label,
            self.row.key,
            self.row.unit.write_mark(self.value),
        );
        match (self.row.of)(image) {
            Figure::Value(Reading::Number { value, .. }) if value <= self.value => None,
            Figure::Value(reading) => {
                let written = self.row.write(&reading);
                let exact = reading.value().filter(|_| self.row.unit == Unit::Bytes);
                let exact = exact
                    .map(|value| format!(", {} bytes,", Unit::Count.write(value)))
                    .unwrap_or_default();
                Some(format!(
                    "{label}: {key} {written}{exact} is over the limit of {limit}"
                ))
            }
            Figure::NotAvailable(reason) => Some(format!(
                "{label}: {key} is not available, so not within the limit of {limit}: {reason}"
            )),
        }
    }
}

/// A sentence for each limit of an image that is none of these, by name and label.
pub fn unknown(limits: &[Limit], images: &[(&str, &str)]) -> Vec<String> {
    let is_unknown = |limit: &&Limit| !images.iter().any(|(name, label)| limit.is_for(name, label));
    let tell = |limit: &Limit| {
        let (image, key) = (limit.image.as_ref()?, limit.row.key);
        Some(format!(
            "{image}: no image has this name or label, so its limit of {key} limits nothing"
        ))
    };
    limits.iter().filter(is_unknown).filter_map(tell).collect()
}

/// A sentence for each limit that is not kept and for each image whose measuring failed.
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
    fn a_limit_is_for_all_or_for_one() {
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
    fn what_is_wrong_is_named() {
        let wrong = [
            ("size", "expected FIGURE=LIMIT"),
            (
                "girth=1kB",
                "unknown figure `girth`; expected one of: size, unpacked, pull",
            ),
            ("shell=1", "unknown figure `shell`"),
            ("rate=1", "unknown figure `rate`"),
            ("size=900", "`900` has no unit"),
            ("stop=1kB", "unknown unit `kB`"),
            ("/size=1kB", "no image before the slash"),
        ];
        for (text, message) in wrong {
            let error = parse(text).err().unwrap();
            assert!(error.contains(message), "{error}");
        }
    }

    #[test]
    fn what_is_over_is_told_with_value_and_limit() {
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
            ["timber-tutorial:2: size 882 kB, 882,184 bytes, is over the limit of 882 kB"]
        );
        // Two of the three are larger.
        assert_eq!(failures(&["size=900kB"]).len(), 2);
        assert_eq!(
            failures(&["timber-tutorial:1/process=1s"]),
            [
                "timber-tutorial:1: process is not available, so not within the limit of 1 s: the engine does not tell when the process started"
            ]
        );
        assert_eq!(
            failures(&["other:3/size=1GB"]),
            ["other:3: no image has this name or label, so its limit of size limits nothing"]
        );
    }

    #[test]
    fn an_image_that_failed_is_a_failure() {
        let failures = check(&[], &example().images);
        assert_eq!(failures.len(), 1);
        assert!(
            failures[0].ends_with("failed: no answer with status 200 within 30 s"),
            "{}",
            failures[0]
        );
    }
}
