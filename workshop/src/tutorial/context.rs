//! Build contexts: the files that the engine gets for a build.

use std::fs;

use anyhow::{Context as _, Result, ensure};
use tar::HeaderMode;

use super::{ROOT, TutorialImage};

/// Returns the build context of an image as a tar archive, with its Dockerfile. Owners and times
/// are left out, because the engine's cache ignores them. So the cache is shared with
/// `docker build`.
pub fn archive(image: &TutorialImage) -> Result<Vec<u8>> {
    let context = ROOT.join(image.context);
    let mut archive = tar::Builder::new(Vec::new());
    archive.mode(HeaderMode::Deterministic);
    let ignore = context.join(".dockerignore");
    if ignore.exists() {
        let text = fs::read_to_string(&ignore)
            .with_context(|| format!("cannot read {}", ignore.display()))?;
        let admitted = admitted_by(&text).with_context(|| format!("in {}", ignore.display()))?;
        for path in admitted {
            let file = context.join(path);
            if file.is_dir() {
                archive.append_dir_all(path, &file)
            } else {
                archive.append_path_with_name(&file, path)
            }
            .with_context(|| format!("cannot read {}", file.display()))?;
        }
    } else {
        archive
            .append_dir_all("", &context)
            .with_context(|| format!("cannot read {}", context.display()))?;
    }
    let dockerfile = ROOT.join(image.dockerfile);
    archive
        .append_path_with_name(&dockerfile, image.dockerfile)
        .with_context(|| format!("cannot read {}", dockerfile.display()))?;
    Ok(archive.into_inner()?)
}

/// Returns the paths that a .dockerignore admits. Only `*` followed by lines of the form `!PATH` is
/// supported.
fn admitted_by(dockerignore: &str) -> Result<Vec<&str>> {
    let mut lines = dockerignore
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty() && !line.starts_with('#'));
    ensure!(
        lines.next() == Some("*"),
        "unsupported: the first pattern must be `*`"
    );
    lines
        .map(|line| {
            let path = line
                .strip_prefix('!')
                .filter(|path| !path.contains(['*', '?', '[', '\\']));
            path.with_context(|| format!("unsupported pattern `{line}`: expected `!PATH`"))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use super::{admitted_by, archive};
    use crate::tutorial::LADDER;

    #[test]
    fn the_build_context_contains_what_the_dockerignore_admits() {
        for image in &LADDER {
            let context = archive(image).unwrap();
            let mut paths: Vec<String> = Vec::new();
            for entry in tar::Archive::new(&context[..]).entries().unwrap() {
                let mut entry = entry.unwrap();
                entry.read_to_end(&mut Vec::new()).unwrap();
                paths.push(entry.path().unwrap().display().to_string());
            }
            let has = |path| paths.iter().any(|found| found == path);
            assert!(has(image.dockerfile), "{}: {paths:?}", image.name);
            if image.context.is_empty() {
                assert!(has("Cargo.lock") && has("src/main.rs"), "{paths:?}");
                assert!(
                    !has("README.md") && !has("workshop/Dockerfile") && !has(".dockerignore"),
                    "{paths:?}"
                );
            } else {
                assert!(has("app.py") && has("requirements.txt"), "{paths:?}");
            }
        }
    }

    #[test]
    fn rejects_other_forms_of_a_dockerignore() {
        assert_eq!(
            admitted_by("# all\n*\n\n!src\n!a/b.toml\n").unwrap(),
            ["src", "a/b.toml"]
        );
        for text in ["", "target\n", "*\n!src\nsrc/private\n", "*\n!*.rs\n"] {
            assert!(admitted_by(text).is_err(), "{text:?}");
        }
    }
}
