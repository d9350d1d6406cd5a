//! Which layers an image shares with others on the same engine.

use std::cmp::Reverse;

use crate::engine::Layered;

/// A layer of an image.
pub struct Layer {
    /// Of the uncompressed layer: `sha256:…`
    pub digest: String,
    /// Size of its files.
    pub bytes: u64,
    pub compressed_bytes: u64,
}

/// Bytes of an image's layers, also of files that upper layers hide: a node stores them, too.
#[derive(Debug, PartialEq)]
pub struct Sharing {
    pub shared_bytes: u64,
    pub own_bytes: u64,
    /// The other image with the shared layers. `None`: no layer is shared.
    pub with: Option<String>,
}

impl Sharing {
    /// Finds the layers with which another image begins, too. The others are the image's own.
    ///
    /// An engine stores a layer once for all images that have the same layers up to this one, so
    /// that only the first layers of an image can be shared. Two kinds of other images do not
    /// count, because they are not another service on the same base:
    ///
    /// - Copies, such as the image itself under a second tag, or built with other labels: with one
    ///   of them, no layer would be the image's own.
    /// - Images built FROM this one: the whole image is their base.
    ///
    /// An older version of the same service does count, because the engine does store its layers
    /// once. The name of the other image is therefore part of the result.
    ///
    /// # Errors
    /// Nothing is shared, but the image is not FROM scratch. The layers of its base image cannot be
    /// told from its own.
    pub fn of(layers: &[Layer], is_from_scratch: bool, others: &[Layered]) -> Result<Self, String> {
        let in_common = |other: &Layered| {
            let pairs = layers.iter().zip(&other.layers);
            pairs
                .take_while(|(layer, other)| layer.digest == **other)
                .count()
        };
        let (count, with) = others
            .iter()
            .map(|other| (in_common(other), other))
            .filter(|(count, _)| (1..layers.len()).contains(count))
            // A sibling can be an older version of this image, which shares more than other services do.
            .max_by_key(|(count, other)| {
                let is_base = *count == other.layers.len();
                (is_base, *count, Reverse(&other.name))
            })
            .map_or((0, None), |(count, other)| (count, Some(other)));
        if with.is_none() && !is_from_scratch {
            return Err(
                "unknown base image: no other image on this engine has the same first layer. Pull \
                 or tag the base image"
                    .to_owned(),
            );
        }
        let bytes = |layers: &[Layer]| layers.iter().map(|layer| layer.bytes).sum();
        Ok(Sharing {
            shared_bytes: bytes(&layers[..count]),
            own_bytes: bytes(&layers[count..]),
            with: with.map(|other| other.name.clone()),
        })
    }

    /// Returns the bytes that ten services of this kind take on one node: each with as many bytes
    /// of its own as this one.
    pub fn ten_services(&self) -> u64 {
        self.shared_bytes + 10 * self.own_bytes
    }
}

#[cfg(test)]
mod tests {
    use super::{Layer, Sharing};
    use crate::engine::Layered;

    /// Each letter is a layer: `a` has 1 byte, `b` has 10, `c` has 100 and `d` has 1,000.
    fn sharing(layers: &str, is_from_scratch: bool, others: &[&str]) -> Option<(u64, u64, String)> {
        let digests = |layers: &str| layers.chars().map(String::from).collect::<Vec<_>>();
        let bytes = |digest: &str| 10_u64.pow("abcd".find(digest).unwrap().try_into().unwrap());
        let layers: Vec<_> = digests(layers)
            .into_iter()
            .map(|digest| Layer {
                bytes: bytes(&digest),
                compressed_bytes: 0,
                digest,
            })
            .collect();
        let others: Vec<_> = others
            .iter()
            .map(|other| Layered {
                name: format!("image-{other}"),
                layers: digests(other),
            })
            .collect();
        let found = Sharing::of(&layers, is_from_scratch, &others).ok()?;
        assert_eq!(
            found.ten_services(),
            found.shared_bytes + found.own_bytes * 10
        );
        Some((
            found.shared_bytes,
            found.own_bytes,
            found.with.unwrap_or_default(),
        ))
    }

    fn found(shared: u64, own: u64, with: &str) -> (u64, u64, String) {
        (shared, own, with.to_owned())
    }

    #[test]
    fn the_base_image_or_a_sibling_on_it_shows_the_shared_layers() {
        assert_eq!(
            sharing("abc", false, &["a"]),
            Some(found(1, 110, "image-a"))
        );
        assert_eq!(
            sharing("abc", false, &["ad"]),
            Some(found(1, 110, "image-ad"))
        );
        let both = ["a", "abd", "ab", "d", ""];
        assert_eq!(
            sharing("abc", false, &both),
            Some(found(11, 100, "image-ab"))
        );
    }

    #[test]
    fn copies_and_images_built_from_this_one_do_not_count() {
        assert_eq!(sharing("abc", false, &["abc", "abcd"]), None);
        let others = ["abc", "abcd", "a"];
        assert_eq!(
            sharing("abc", false, &others),
            Some(found(1, 110, "image-a"))
        );
        assert_eq!(
            sharing("abcd", false, &others),
            Some(found(111, 1000, "image-abc"))
        );
        assert_eq!(sharing("a", true, &["a", "ab"]), Some(found(0, 1, "")));
    }

    #[test]
    fn only_first_layers_can_be_shared() {
        assert_eq!(sharing("bac", true, &["a", "dac"]), Some(found(0, 111, "")));
    }

    #[test]
    fn without_a_shared_layer_the_base_is_scratch_or_unknown() {
        assert_eq!(sharing("ab", true, &["cd"]), Some(found(0, 11, "")));
        assert_eq!(sharing("ab", false, &["cd"]), None);
    }
}
