//! Medians, ranges, and whether a difference can be chance.

use statrs::stats_tests::{
    Alternative,
    mannwhitneyu::{MannWhitneyUMethod, mannwhitneyu},
};

/// Accepted probability that any difference that is named between two images is chance.
pub const LEVEL: f64 = 0.01;

/// Returns the median, or `None` of no samples. Of an even number, it is the mean of the two in the
/// middle.
pub fn median(samples: &[f64]) -> Option<f64> {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match sorted[..] {
        [] => None,
        _ if sorted.len() % 2 == 1 => Some(sorted[middle]),
        _ => Some(f64::midpoint(sorted[middle - 1], sorted[middle])),
    }
}

/// Returns the lowest and the highest sample, or `None` of no samples.
pub fn range(samples: &[f64]) -> Option<(f64, f64)> {
    let lowest = samples.iter().copied().min_by(f64::total_cmp)?;
    let highest = samples.iter().copied().max_by(f64::total_cmp)?;
    Some((lowest, highest))
}

/// Returns the probability that two series of measurements of the same thing differ as much as
/// these do, by the two-sided Mann–Whitney U test. It compares ranks, and so assumes no
/// distribution: start times and latencies have none that is simple.
pub fn rank_test(a: &[f64], b: &[f64]) -> f64 {
    let smallest = a.iter().chain(b).copied().fold(f64::INFINITY, f64::min);
    if a.iter()
        .chain(b)
        .all(|sample| sample.total_cmp(&smallest).is_eq())
    {
        return 1.0; // the test's variance would be zero
    }
    // Not `Exact`, which is wrong for series of the same length in statrs 0.19.
    let method = MannWhitneyUMethod::AsymptoticInclContinuityCorrection;
    mannwhitneyu(a, b, method, Alternative::TwoSided).map_or(1.0, |(_, p)| p)
}

/// Returns which of the probabilities are too low for chance: the probability that any of these
/// answers is wrong is at most [`LEVEL`]. Holm, "A simple sequentially rejective multiple
/// test procedure", 1979.
pub fn holm(probabilities: &[f64]) -> Vec<bool> {
    let mut order: Vec<usize> = (0..probabilities.len()).collect();
    order.sort_by(|a, b| probabilities[*a].total_cmp(&probabilities[*b]));
    let mut rejected = vec![false; probabilities.len()];
    for (left, index) in (1..=order.len()).rev().zip(order) {
        #[expect(clippy::cast_precision_loss, reason = "there are few figures")]
        if probabilities[index] * left as f64 > LEVEL {
            break;
        }
        rejected[index] = true;
    }
    rejected
}

#[cfg(test)]
mod tests {
    use super::{holm, median, range, rank_test};

    #[test]
    fn median_and_range() {
        assert_eq!(median(&[3.0]), Some(3.0));
        assert_eq!(median(&[9.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(&[9.0, 1.0, 2.0, 4.0]), Some(3.0));
        assert_eq!(range(&[9.0, 1.0, 2.0]), Some((1.0, 9.0)));
        assert_eq!((median(&[]), range(&[])), (None, None));
    }

    /// Expected: `scipy.stats.mannwhitneyu(a, b, method="asymptotic").pvalue`, version 1.17.
    #[test]
    fn the_rank_test_agrees_with_scipy() {
        let series = |first: f64| -> Vec<f64> { (0..10).map(|n| first + f64::from(n)).collect() };
        for (a, b, expected) in [
            (series(0.0), series(10.0), 0.000_182_671_791),
            (series(0.5), series(5.0), 0.009_108_496_398),
            (series(0.0), series(5.0), 0.005_075_392_315), // with equal samples
            (series(0.0), series(0.0), 1.0),
        ] {
            let p = rank_test(&a, &b);
            assert!(
                (p - expected).abs() < expected / 1000.0,
                "{p}, expected {expected}"
            );
        }
        assert!((rank_test(&[1.0; 10], &[1.0; 10]) - 1.0).abs() < f64::EPSILON);
    }

    #[test]
    fn holm_divides_the_level_among_the_figures() {
        assert_eq!(holm(&[0.004, 0.006, 0.0001]), [true, true, true]);
        // 0.006 > 0.01 / 2, and what follows is not tested any more.
        assert_eq!(holm(&[0.006, 0.0001, 0.007]), [false, true, false]);
        assert_eq!(holm(&[0.02]), [false]);
        assert_eq!(holm(&[]), [false; 0]);
    }
}
