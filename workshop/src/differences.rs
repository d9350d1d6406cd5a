//! Which differences between images are more than chance.

use std::collections::{BTreeMap, BTreeSet};

use crate::{
    figures::{Better, ROWS, Row},
    results::{Difference, Figure, Image},
    statistics::{holm, rank_test},
};

/// Number of samples of each image. With fewer, the test finds even the greatest difference too
/// likely if there are as many figures as with a load.
pub const ENOUGH: usize = 9;

/// Returns the keys of the figures in which two images differ by more than chance.
///
/// Counts that are not equal differ. Of measured figures, the rank test decides, with Holm's
/// correction over the figures of this pair.
pub fn differing(a: &Image, b: &Image) -> BTreeSet<&'static str> {
    let mut differing = BTreeSet::new();
    let (mut keys, mut probabilities) = (Vec::new(), Vec::new());
    for row in ROWS.iter().filter(|row| row.is_comparable()) {
        match (row.of(a), row.of(b)) {
            (Figure::Samples(a), Figure::Samples(b)) if a.len().min(b.len()) >= ENOUGH => {
                keys.push(row.key);
                probabilities.push(rank_test(&a, &b));
            }
            (Figure::Samples(_), Figure::Samples(_)) => {}
            (a, b) => {
                if let (Some(a), Some(b)) = (a.value(), b.value())
                    && a.total_cmp(&b).is_ne()
                {
                    differing.insert(row.key);
                }
            }
        }
    }
    let real = keys.into_iter().zip(holm(&probabilities));
    differing.extend(real.filter_map(|(key, is_real)| is_real.then_some(key)));
    differing
}

/// The differences between all images of a comparison.
pub struct Differences(BTreeMap<(usize, usize), BTreeSet<&'static str>>);

impl Differences {
    pub fn among(images: &[Image]) -> Self {
        let mut pairs = BTreeMap::new();
        for (first, a) in images.iter().enumerate() {
            for (second, b) in images.iter().enumerate().skip(first + 1) {
                pairs.insert((first, second), differing(a, b));
            }
        }
        Differences(pairs)
    }

    /// Returns the differences as the results file has them.
    pub fn describe(&self, images: &[Image]) -> Vec<Difference> {
        let pairs = self.0.iter().map(|((a, b), keys)| Difference {
            images: [*a, *b].map(|index| images[index].label.clone()),
            figures: keys.iter().map(|key| (*key).to_owned()).collect(),
        });
        pairs.collect()
    }

    pub fn is_real(&self, row: &Row, a: usize, b: usize) -> bool {
        let pair = self.0.get(&(a.min(b), a.max(b)));
        pair.is_some_and(|keys| keys.contains(row.key))
    }

    /// Returns whether each image has the best figure. Several have it if their differences can be
    /// chance, and none has it if all are equal.
    pub fn best(&self, row: &Row, images: &[Image]) -> Vec<bool> {
        let values: Vec<_> = images.iter().map(|image| row.of(image).value()).collect();
        let known = values
            .iter()
            .enumerate()
            .filter_map(|(index, value)| Some((index, (*value)?)));
        let best = match row.better {
            Better::Neither => None,
            Better::Lower => known.min_by(|a, b| a.1.total_cmp(&b.1)),
            Better::Higher => known.max_by(|a, b| a.1.total_cmp(&b.1)),
        };
        let is_best = |index: usize| {
            best.is_some_and(|(best, _)| values[index].is_some() && !self.is_real(row, index, best))
        };
        let marks: Vec<_> = (0..images.len()).map(is_best).collect();
        let is_distinct = (0..images.len()).any(|index| values[index].is_some() && !marks[index]);
        if is_distinct {
            marks
        } else {
            vec![false; images.len()]
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Differences, differing};
    use crate::{
        figures::row_of,
        results::{Figure, example},
    };

    #[test]
    fn only_the_best_and_its_equals_are_marked() {
        let images = example().images;
        let differences = Differences::among(&images);
        let best = |key| differences.best(row_of(key).unwrap(), &images);
        assert_eq!(best("pull"), [false, false, true, false]);
        // Medians of 0.348 s and 0.345 s do not differ, 1.24 s does.
        assert_eq!(best("start"), [false, true, true, false]);
        assert_eq!(best("rate"), [false, false, true, false]);
        assert_eq!(best("shell"), [false; 4]);
        // All equal.
        assert_eq!(best("errors"), [false; 4]);
    }

    #[test]
    fn counts_differ_by_one_and_samples_by_more_than_chance() {
        let image = &example().images[2];
        assert!(differing(image, image).is_empty());
        let mut other = image.clone();
        other.figures.insert("files".into(), Figure::Count(2));
        // One of ten samples is an outlier.
        let Figure::Samples(mut samples) = image.figure("start") else {
            panic!("the start is measured");
        };
        samples[3] *= 10.0;
        other
            .figures
            .insert("start".into(), Figure::Samples(samples.clone()));
        assert_eq!(Vec::from_iter(differing(image, &other)), ["files"]);
        for sample in &mut samples {
            *sample += 0.2;
        }
        other
            .figures
            .insert("start".into(), Figure::Samples(samples));
        assert_eq!(Vec::from_iter(differing(image, &other)), ["files", "start"]);
    }

    /// Both error rates on made-up measurements: skewed, most of them within 10 % of each other.
    /// bench/chance measures them on real ones.
    #[test]
    fn same_images_rarely_differ_and_slower_ones_nearly_always() {
        const TRIALS: u32 = 1000;
        let mut state = 1_u64;
        let mut uniform = || {
            // Knuth's linear congruential generator.
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            f64::from((state >> 32) as u32) / f64::from(u32::MAX)
        };
        let mut measure = |mean: f64| {
            let mut image = example().images.remove(2);
            for figure in image.figures.values_mut() {
                if let Figure::Samples(samples) = figure {
                    *samples = (0..10)
                        .map(|_| mean * (1.0 - 0.04 * uniform().max(1e-9).ln()))
                        .collect();
                }
            }
            image
        };
        let (mut alarms, mut misses) = (0, 0);
        for _ in 0..TRIALS {
            let (image, same, slower) = (measure(1.0), measure(1.0), measure(1.2));
            alarms += u32::from(!differing(&image, &same).is_empty());
            misses += u32::from(!differing(&image, &slower).contains("rate"));
        }
        println!("of {TRIALS}: {alarms} false alarms, {misses} misses");
        assert!(alarms <= TRIALS / 50 && misses <= TRIALS / 20);
    }

    #[test]
    fn three_measurements_tell_nothing() {
        let mut image = example().images.remove(0);
        let mut other = image.clone();
        for (image, samples) in [(&mut image, [1.0, 1.1, 1.2]), (&mut other, [7.0, 7.1, 7.2])] {
            image
                .figures
                .insert("start".into(), Figure::Samples(samples.to_vec()));
        }
        assert!(!differing(&image, &other).contains("start"));
    }
}
