//! Changes since an earlier comparison.

use crate::{
    figures::{Reading, Row},
    results::{DATE, Image, Results},
};

/// Returns the sentence that explains the changes in a table.
pub fn legend(baseline: &Results) -> String {
    let date = baseline.begun.strftime(DATE);
    format!(
        "After the comma: the change since the baseline of {date}. ≈ means that the ranges overlap, so the change may be \
         chance."
    )
}

/// Finds the same image in an earlier file, by name or else by label.
pub fn same_image<'a>(baseline: &'a Results, image: &Image) -> Option<&'a Image> {
    let by_name = baseline
        .images
        .iter()
        .find(|other| other.name == image.name);
    by_name.or_else(|| {
        baseline
            .images
            .iter()
            .find(|other| other.label == image.label)
    })
}

/// Returns a change such as `+0.1 %`, or `≈` if the ranges overlap. `None` if one of the two is not
/// a number.
pub fn change(row: &Row, now: &Reading, before: &Image) -> Option<String> {
    let before = (row.of)(before);
    let before = before.value()?;
    let (new, old) = (now.value()?, before.value()?);
    let ((lowest, highest), (old_lowest, old_highest)) = (now.plausible()?, before.plausible()?);
    Some(
        if lowest <= old_highest
            && old_lowest <= highest
            && (lowest < highest || old_lowest < old_highest)
        {
            "≈".to_owned()
        } else if new.total_cmp(&old).is_eq() {
            "±0".to_owned()
        } else if old == 0.0 {
            format!("was {}", row.unit.write(old))
        } else {
            match (new - old) / old * 100.0 {
                // Would be rounded to +0.0 %.
                percent if percent.abs() < 0.05 => {
                    let sign = if new < old { '-' } else { '+' };
                    format!("{sign}{}", row.unit.write((new - old).abs()))
                }
                percent if percent.abs() >= 100.0 => format!("{percent:+.0} %"),
                percent => format!("{percent:+.1} %"),
            }
        },
    )
}

#[cfg(test)]
mod tests {
    use super::change;
    use crate::{
        figures::Reading,
        figures::row_of,
        results::{Figure, Spread, example},
    };

    #[test]
    fn overlapping_ranges_are_not_a_change() {
        let row = row_of("start").unwrap();
        let change_of = |old: &[f64], new: &[f64]| {
            let image = |samples: &[f64]| {
                let mut image = example().images.remove(0);
                image.start.create_to_response =
                    Figure::Value(Spread::new(samples.to_vec()).unwrap());
                image
            };
            let now = (row.of)(&image(new));
            change(row, now.value().unwrap(), &image(old)).unwrap()
        };
        assert_eq!(change_of(&[0.30, 0.35, 0.40], &[0.39, 0.45, 0.50]), "≈");
        assert_eq!(change_of(&[0.30, 0.35, 0.40], &[0.40, 0.45, 0.50]), "≈");
        assert_eq!(
            change_of(&[0.30, 0.40, 0.41], &[0.48, 0.50, 0.51]),
            "+25.0 %"
        );
        assert_eq!(
            change_of(&[0.48, 0.50, 0.51], &[0.30, 0.40, 0.41]),
            "-20.0 %"
        );
        // Measured once.
        assert_eq!(change_of(&[0.3], &[0.55]), "≈");
        assert_eq!(change_of(&[0.3], &[0.75]), "+150 %");
    }

    #[test]
    fn a_change_of_one_byte_is_shown() {
        let row = row_of("size").unwrap();
        let change_of = |old: u64, new: f64| {
            let mut before = example().images.remove(0);
            before.size.engine_bytes = Figure::Value(old);
            change(row, &Reading::number(new), &before).unwrap()
        };
        assert_eq!(change_of(882_184, 883_066.0), "+0.1 %");
        assert_eq!(change_of(882_184, 882_185.0), "+1 B");
        assert_eq!(change_of(882_184, 882_183.0), "-1 B");
        assert_eq!(change_of(882_184, 882_184.0), "±0");
        assert_eq!(change_of(0, 12.0), "was 0 B");
        let mut without = example().images.remove(0);
        without.size.engine_bytes = Figure::NotAvailable("unknown".to_owned());
        assert_eq!(change(row, &Reading::number(1.0), &without), None);
    }
}
