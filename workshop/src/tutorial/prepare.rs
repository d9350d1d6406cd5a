//! Makes the tutorial's images exist in the engine, on official base images if possible.

use std::collections::{BTreeSet, VecDeque};

use anyhow::{Context as _, Result, anyhow, ensure};

use super::{ROOT, TutorialImage, context, stand_in};
use crate::{engine::Engine, terminal::Bar};

/// Number of lines of a failed build to show.
const LAST_LINES: usize = 15;

/// Builds the images that are missing in the engine, or all of them with `rebuild`. Before that, it
/// pulls the official images in place of stand-ins.
///
/// # Errors
/// The engine does not respond, the repository is missing, or a build fails. The error then
/// contains the end of its output.
pub async fn prepare(engine: &Engine, images: &[TutorialImage], rebuild: bool) -> Result<()> {
    if ROOT.exists() {
        replace_stand_ins(engine, images).await?;
    }
    for image in images {
        if rebuild || engine.find(image.name).await?.is_none() {
            image.check_dockerfile()?;
            build(engine, image).await?;
        }
    }
    Ok(())
}

/// Pulls the official images for base images that are stand-ins, and removes the images that were
/// built on those stand-ins. Keeps the stand-ins if a pull fails, and prints why.
async fn replace_stand_ins(engine: &Engine, images: &[TutorialImage]) -> Result<()> {
    let (mut tried, mut replaced) = (BTreeSet::new(), BTreeSet::new());
    for image in images {
        for base in image.bases.iter().copied() {
            if !tried.insert(base) || !is_stand_in(engine, base).await? {
                continue;
            }
            let what = format!("pulling {base}");
            let bar = Bar::spinner(&what);
            if let Err(error) = engine.pull(base, |status| bar.say(status)).await {
                drop(bar);
                eprintln!("Keeping local stand-ins for official images: {what}: {error:#}");
                return remove_built_on(engine, images, &replaced).await;
            }
            drop(bar);
            // A registry of one's own can serve stand-ins.
            if !is_stand_in(engine, base).await? {
                eprintln!("Pulled {base} in place of a local stand-in");
                replaced.insert(base);
            }
        }
    }
    remove_built_on(engine, images, &replaced).await
}

async fn is_stand_in(engine: &Engine, image: &str) -> Result<bool> {
    let found = engine.find(image).await?;
    Ok(found.is_some_and(|found| stand_in(image, &found).is_some()))
}

async fn remove_built_on(
    engine: &Engine,
    images: &[TutorialImage],
    replaced: &BTreeSet<&str>,
) -> Result<()> {
    for image in images {
        let is_affected = image.bases.iter().any(|base| replaced.contains(base));
        if is_affected && engine.find(image.name).await?.is_some() {
            eprintln!("Building {} again, on official images", image.name);
            engine.remove_image(image.name).await?;
        }
    }
    Ok(())
}

async fn build(engine: &Engine, image: &TutorialImage) -> Result<()> {
    let context = context::archive(image)
        .with_context(|| format!("cannot read the build context of {}", image.name))?;
    let what = format!("building {}", image.name);
    let bar = Bar::spinner(&what);
    let mut last = VecDeque::new();
    let line = |line: &str| {
        // Docker prints `Step 1/9 : FROM …`, Podman `STEP 1/9: FROM …`.
        let start = line.get(..5);
        if start.is_some_and(|start| start.eq_ignore_ascii_case("step ")) {
            bar.say(line);
        }
        last.push_back(line.to_owned());
        if last.len() > LAST_LINES {
            last.pop_front();
        }
    };
    let built = engine
        .build(image.name, image.dockerfile, context, line)
        .await;
    built.map_err(|error| {
        last.push_front(format!("{what} failed: {error:#}"));
        anyhow!(last.make_contiguous().join("\n  "))
    })?;
    ensure!(
        engine.find(image.name).await?.is_some(),
        "{} was built, but is missing in the engine",
        image.name
    );
    Ok(())
}
