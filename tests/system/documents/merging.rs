//! Merges a new output into a page, for `UPDATE=1`.

use crate::matching::is_shown;

/// Any lines, or any words of a line.
const ANY: &str = "…";

/// Returns what the page should show for this output: the lines shown until now that are still printed,
/// the printed ones instead of the others, and every `…`.
///
/// Returns `None` if a `…` would be lost, for example because a line between two of them has changed.
pub fn merged(printed: &str, shown: &str) -> Option<String> {
    let merged = merge_lines(printed, shown);
    let omissions = |text: &str| text.matches(ANY).count();
    (omissions(&merged) == omissions(shown)).then_some(merged)
}

fn merge_lines(printed: &str, shown: &str) -> String {
    let lines = |text| str::lines(text).collect::<Vec<_>>();
    let lines = merge(&lines(shown), &lines(printed), &is_shown, &|old, new| {
        let words = |line: &str| line.split(' ').map(str::to_owned).collect::<Vec<_>>();
        let (old, new) = (words(old), words(new));
        if !old.iter().any(|word| word == ANY) {
            return new.join(" ");
        }
        let [old, new] =
            [&old, &new].map(|words| words.iter().map(String::as_str).collect::<Vec<_>>());
        let same = |printed: &str, shown: &str| printed == shown;
        merge(&old, &new, &same, &|_, new| new.to_owned()).join(" ")
    });
    lines
        .into_iter()
        .flat_map(|line| [line, "\n".to_owned()])
        .collect()
}

/// Keeps the longest sequence of members that fit. `replace` gets the old and the new member in the same
/// place between them.
fn merge(
    shown: &[&str],
    printed: &[&str],
    fits: &dyn Fn(&str, &str) -> bool,
    replace: &dyn Fn(&str, &str) -> String,
) -> Vec<String> {
    let mut result = Vec::new();
    let (mut shown_from, mut printed_from) = (0, 0);
    let mut pairs = longest_common(shown, printed, &|shown, printed| {
        shown != ANY && fits(printed, shown)
    });
    pairs.push((shown.len(), printed.len()));
    for (shown_to, printed_to) in pairs {
        let old = &shown[shown_from..shown_to];
        let new = &printed[printed_from..printed_to];
        // Members of `new` that stand in the places before and after all `…`, which stand for the rest.
        let is_any = |member: &&str| *member == ANY;
        let before = old.iter().position(is_any).unwrap_or(new.len());
        let after = old.iter().rev().position(is_any).unwrap_or(0);
        let before = before.min(new.len());
        let after = after.min(new.len() - before);
        let with_old = |index: usize| old.get(index).copied().unwrap_or("");
        result.extend((0..before).map(|index| replace(with_old(index), new[index])));
        if old.contains(&ANY) {
            result.push(ANY.to_owned());
        }
        result.extend(
            (new.len() - after..new.len())
                .map(|index| replace(with_old(old.len() + index - new.len()), new[index])),
        );
        if shown_to < shown.len() {
            result.push(shown[shown_to].to_owned());
        }
        (shown_from, printed_from) = (shown_to + 1, printed_to + 1);
    }
    result
}

/// Returns the indices of the members of a longest common subsequence.
fn longest_common(
    a: &[&str],
    b: &[&str],
    is_same: &dyn Fn(&str, &str) -> bool,
) -> Vec<(usize, usize)> {
    // length[i][j] is that of a[i..] and b[j..].
    let mut length = vec![vec![0; b.len() + 1]; a.len() + 1];
    let mut same = vec![vec![false; b.len()]; a.len()];
    for i in (0..a.len()).rev() {
        for j in (0..b.len()).rev() {
            same[i][j] = is_same(a[i], b[j]);
            length[i][j] = if same[i][j] {
                length[i + 1][j + 1] + 1
            } else {
                length[i + 1][j].max(length[i][j + 1])
            };
        }
    }
    let (mut i, mut j, mut pairs) = (0, 0, Vec::new());
    while i < a.len() && j < b.len() {
        if same[i][j] {
            pairs.push((i, j));
            (i, j) = (i + 1, j + 1);
        } else if length[i + 1][j] >= length[i][j + 1] {
            i += 1;
        } else {
            j += 1;
        }
    }
    pairs
}

#[test]
fn merging_keeps_what_is_still_printed_and_what_is_omitted() {
    for (printed, shown, expected) in [
        // Varies by nature.
        ("up 12 seconds\n", "up 9 seconds\n", "up 9 seconds\n"),
        (
            "one\nTWO\nthree\n",
            "one\ntwo\nthree\n",
            "one\nTWO\nthree\n",
        ),
        ("one\nnew\nthree\n", "one\nthree\n", "one\nnew\nthree\n"),
        ("one\n", "one\nold\n", "one\n"),
        ("a\nb\nc\n", "…\nC\n", "…\nc\n"),
        ("a\nb\nc\n", "A\n…\n", "a\n…\n"),
        ("a\nb\nc\n", "A\n…\nC\n", "a\n…\nc\n"),
        ("x\ny\n", "…\n", "…\n"),
        (
            "release 2 on host one\n",
            "release … on port one\n",
            "release … on host one\n",
        ),
        ("\n", "x\n", "\n"),
        ("", "x\n", ""),
        ("a\n", "", "a\n"),
    ] {
        let merged = merged(printed, shown);
        assert_eq!(merged.as_deref(), Some(expected), "{printed:?} {shown:?}");
    }
    for (printed, shown) in [
        ("a\nB\nC\nd\n", "…\nb\nc\n…\n"),
        ("digest sha512:1\n", "digest sha256:…\n"),
    ] {
        assert_eq!(merged(printed, shown), None, "{printed:?} {shown:?}");
    }
}
