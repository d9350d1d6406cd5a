//! Each check of the runner, with pages that fail it.

use std::os::unix::process::ExitStatusExt;
use std::process::Command;
use std::time::{Duration, Instant};

use crate::clone::Clone;
use crate::docker::{docker, output};
use crate::page::Page;
use crate::runner::{Report, perform};
use crate::shell::RUN;
use crate::swarm::{Engine, ready};

fn page(text: &str) -> Page {
    Page::parse("page", text)
}

/// Types a terminal session in a clone.
fn type_in(session: &str) -> Result<Report, String> {
    type_page(&format!("```console\n{session}```\n"), false)
}

fn type_page(text: &str, accepts_outputs: bool) -> Result<Report, String> {
    perform(&page(text), Clone::new().path(), None, accepts_outputs)
}

fn failure(session: &str) -> String {
    match type_in(session) {
        Ok(_) => panic!("it passes:\n{session}"),
        Err(failure) => failure,
    }
}

#[test]
fn commands_share_a_shell() {
    type_in("$ cd src && x=1\n$ echo $x $(basename $PWD)\n1 src\n").unwrap();
}

#[test]
fn other_output_fails() {
    let failure = failure("$ echo one\ntwo\n");
    assert!(
        failure.contains("page:2: $ echo one\nprinted:\none")
            && failure.contains("page shows:\ntwo"),
        "{failure}"
    );
}

#[test]
fn missing_command_fails() {
    let failure = failure("$ no-such-command 2>/dev/null\n");
    assert!(failure.contains("exit code 127, expected 0"), "{failure}");
}

#[test]
fn end_of_the_shell_fails() {
    let begin = Instant::now();
    let failure = failure("$ exit 0\n");
    assert!(failure.contains("has ended the shell"), "{failure}");
    assert!(begin.elapsed() < Duration::from_mins(1), "it waited");
}

#[test]
fn expected_exit_code_passes() {
    let comment = "<!-- // test: exit 3: (exit 3) -->\n";
    let session = "```console\n$ (exit 3)\n$ true\n```\n";
    type_page(&format!("{comment}{session}"), false).unwrap();
    type_page(session, false)
        .err()
        .expect("it needs the comment");
}

#[test]
fn files_and_commits_are_left_behind() {
    for (session, left) in [
        ("$ echo > new\n", "left behind: file ?? new"),
        ("$ echo >> README.md\n", "left behind: file  M README.md"),
        (
            "$ git commit --quiet --allow-empty --message x\n",
            "gone: commit",
        ),
    ] {
        let failure = failure(session);
        assert!(failure.contains(left), "{failure}");
    }
    type_in("$ echo > new\n$ rm new\n").unwrap();
}

#[test]
fn processes_are_left_behind_and_ended() {
    let session = "$ sleep 4711 >/dev/null 2>&1 &\n$ sleep 1\n";
    for _ in 0..2 {
        // The second time, too: the one of the first time has been ended.
        let failure = failure(session);
        assert_eq!(failure.matches("sleep 4711").count(), 1, "{failure}");
    }
}

#[test]
fn commands_in_the_background_run_to_their_end_or_to_ctrl_c() {
    let finite = "<!-- // test: background -->\n```console\n$ sleep 4; echo end\nend\n$ echo x\nx\n```\n## Next\n";
    // `$ echo x` is in the background, too.
    type_page(finite, false).unwrap();
    let endless = "<!-- // test: background -->\n```console\n$ trap 'echo caught; exit 0' INT; echo begin; while true; do sleep 0.1; done\nbegin\n```\n";
    let stopped = format!("{endless}```console\n^Ccaught\n```\n");
    type_page(&stopped, false).unwrap();
    let other = stopped.replace("^Ccaught", "^Cignored");
    assert!(type_page(&other, false).is_err());
}

#[test]
fn commands_that_clean_up_are_typed_after_a_failure() {
    let clone = Clone::new();
    let text = "```console\n$ echo > new\n$ false\n```\n<!-- // test: clean up -->\n```console\n$ rm new\n```\n";
    let failure = perform(&page(text), clone.path(), None, false).err();
    assert!(failure.expect("it fails").contains("$ false"));
    assert!(!clone.path().join("new").exists());
}

#[test]
fn new_outputs_are_accepted_but_not_other_exit_codes() {
    let text = "```console\n$ echo one; echo 2 seconds ago; echo three\n…\n9 seconds ago\nfour\n$ true\n```\n";
    let report = type_page(text, true).unwrap();
    assert_eq!(
        page(text).with_outputs(&report.outputs),
        text.replace("four", "three")
    );
    let text = text.replace("$ true", "$ false");
    let failure = type_page(&text, true).err().expect("another exit code");
    assert!(failure.contains("exit code 1, expected 0"), "{failure}");
}

#[test]
#[ignore = "needs Docker Engine"]
fn containers_networks_volumes_images_and_swarms_are_left_behind() {
    let mut engine = Engine::claim();
    let clone = Clone::new();
    let image = ready(2);
    // Removed by hand, because the runner removes only containers and processes of its own.
    let remove =
        "docker network rm timber-left && docker volume rm timber-left && docker rmi timber-left:1";
    for (command, left) in [
        (
            format!("docker run --detach --name timber-left {image}"),
            "container",
        ),
        (
            "docker network create timber-left".to_owned(),
            "network timber-left",
        ),
        (
            "docker volume create timber-left".to_owned(),
            "volume timber-left",
        ),
        (
            format!("docker tag {image} timber-left:1"),
            "image timber-left:1",
        ),
        (
            "docker swarm init --advertise-addr 127.0.0.1".to_owned(),
            "swarm active",
        ),
    ] {
        let text = format!("```console\n$ {command}\n…\n```\n");
        let failure = perform(&page(&text), clone.path(), Some(&mut engine), false).err();
        let failure = failure.unwrap_or_else(|| panic!("{command}"));
        assert!(
            failure.contains(&format!("left behind: {left}")),
            "{failure}"
        );
        let containers = docker("ps --all --format {{.Names}}");
        assert!(!containers.contains("timber-left"), "{command}");
    }
    let removed = output(Command::new("bash").args(["-c", remove]));
    assert!(removed.status.success(), "{removed:?}");
    // The page says that it makes this image.
    let text = "```console\n$ printf 'FROM scratch\\nCMD [\"/x\"]\\n' | docker build --quiet -t timber-left:1 -\n…\n```\n";
    perform(&page(text), clone.path(), Some(&mut engine), false).unwrap();
    docker("rmi timber-left:1");
}

#[test]
#[ignore = "needs Docker Engine"]
fn what_is_of_others_stays_and_is_refused() {
    let mut engine = Engine::claim();
    let clone = Clone::new();
    let create = format!(
        "create --label timber.test=true --name timber-other {}",
        ready(2)
    );
    let container = docker(&create);
    let mut type_in = |session: &str| {
        let text = format!("```console\n{session}```\n");
        perform(&page(&text), clone.path(), Some(&mut engine), false)
    };
    type_in("$ true\n").unwrap();
    for (session, what) in [
        (
            "$ docker create --name timber-other x\n",
            "container timber-other",
        ),
        (
            "$ docker rmi timber-tutorial:2\n",
            "image timber-tutorial:2",
        ),
        ("$ rm README.md\n", "file README.md"),
    ] {
        let refusal = type_in(session).err().expect("a refusal");
        assert!(refusal.contains(&format!("a {what}")), "{refusal}");
    }
    docker(&format!("rm {container}")); // it is still there
}

/// A killed test cannot end what it has started. The next one does.
#[test]
fn processes_of_a_killed_test_are_ended() {
    // No process has this id: see PID_MAX_LIMIT in the kernel.
    let mut left = Command::new("sleep")
        .arg("60") // so that the test fails if nothing ends it
        .env(RUN, "4194305-0")
        .spawn()
        .unwrap();
    type_in("$ true\n").unwrap();
    assert_eq!(left.wait().unwrap().signal(), Some(9));
}

#[test]
#[ignore = "needs Docker Engine"]
fn an_existing_swarm_is_refused() {
    let engine = Engine::claim();
    docker("swarm init --advertise-addr 127.0.0.1");
    let refused = Engine::refusal();
    drop(engine);
    assert!(
        refused
            .expect("a refusal")
            .contains("not in a swarm: it is active")
    );
    drop(Engine::claim()); // without a refusal
}
