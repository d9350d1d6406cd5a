//! The talk on a machine without a network: what docs/workshop.md carries there, and then the talk itself, in
//! a network namespace without any route, with an engine of its own.

use std::env;
use std::path::Path;
use std::process::Command;

use crate::clone::Clone;
use crate::docker::ROOT;
use crate::page::{Page, Step};
use crate::read_page;
use crate::runner::{perform, type_in_order};
use crate::swarm::Engine;

/// Tells the test that it runs in the namespace, and in which clone.
const CLONE: &str = "OFFLINE_CLONE";

/// The first command on the machine without a network.
const ARRIVAL: &str = "docker load";

/// Returns a part of the section "Offline". Other tests do not type it.
fn section(is_wanted: impl Fn(&[Step], usize) -> bool) -> Page {
    let mut page = read_page("docs/workshop.md");
    page.steps.retain(|step| step.section == "Offline");
    let wanted = |index: &usize| is_wanted(&page.steps, *index);
    let kept = (0..page.steps.len()).filter(wanted);
    page.steps = kept.map(|index| page.steps[index].clone()).collect();
    for step in &mut page.steps {
        step.how.skipped = None;
    }
    page
}

fn arrival(steps: &[Step]) -> usize {
    let mut steps = steps.iter();
    let arrival = steps.position(|step| step.command.starts_with(ARRIVAL));
    arrival.expect("the section loads images")
}

#[test]
#[ignore = "needs Docker Engine and root; takes ten minutes"]
fn the_talk_works_without_a_network() {
    if let Ok(clone) = env::var(CLONE) {
        return inside_the_namespace(Path::new(&clone));
    }
    let clone = Clone::new();
    {
        let mut engine = Engine::claim();
        let at_home = section(|steps, index| index < arrival(steps));
        type_in_order(&at_home, clone.path(), Some(&mut engine))
            .unwrap_or_else(|failure| panic!("{failure}"));
    }
    // The other instance of dockerd has images and a socket of its own.
    let inside = format!(
        "ip link set lo up
         trap 'rm -rf --one-file-system \"$CI_CACHE/engine-offline\"' EXIT
         .ci/engine run trixie {} --exact --ignored --nocapture offline::the_talk_works_without_a_network",
        env::current_exe().unwrap().display()
    );
    let cargo_home = tempfile::tempdir().unwrap();
    let cache = env::var("CI_CACHE").unwrap_or("/var/cache/timber-ci".to_owned());
    let status = Command::new("unshare")
        .args(["--net", "bash", "-euc", &inside])
        .current_dir(ROOT)
        .env("INSTANCE", "offline")
        .env("CI_CACHE", cache)
        .env("CARGO_HOME", cargo_home.path())
        .env(CLONE, clone.path())
        .env_remove("CARGO_TARGET_DIR")
        // The tool compiles in half the time.
        .env("CARGO_PROFILE_WORKSHOP_OPT_LEVEL", "0")
        .env("CARGO_INCREMENTAL", "0")
        .status()
        .expect("unshare exists");
    assert!(status.success(), "{status}");
}

fn inside_the_namespace(clone: &Path) {
    let routes = "ip -4 route show default && ip -6 route show default";
    let routes = Command::new("bash").args(["-c", routes]).output().unwrap();
    assert!(
        routes.status.success() && routes.stdout.is_empty(),
        "this namespace has a network: {routes:?}"
    );
    let mut engine = Engine::claim();
    let arrival = section(|steps, index| index >= arrival(steps));
    type_in_order(&arrival, clone, Some(&mut engine)).unwrap_or_else(|failure| panic!("{failure}"));
    let talk = read_page("docs/talk.md");
    perform(&talk, clone, Some(&mut engine), false).unwrap_or_else(|failure| panic!("{failure}"));
}
