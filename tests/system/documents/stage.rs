//! Shows docs/talk.md with presenterm in a terminal of tmux, as a presenter does: every slide, and the
//! commands on it.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use crate::docker::ROOT;
use crate::leaks;
use crate::matching::is_shown;
use crate::page::Page;
use crate::swarm::Engine;

/// The deck of the talk must not be longer.
const MAX_SLIDES: usize = 15;

/// Time for the commands of a slide.
const PATIENCE: Duration = Duration::from_mins(5);

/// Returns the Markdown of each slide, after the one that presenterm makes of the front matter.
pub fn slides(page: &Page) -> Vec<&str> {
    let (_, slides) = page.text[3..].split_once("\n---\n").expect("front matter");
    slides
        .split("<!-- end_slide -->")
        .filter(|slide| !slide.contains("<!-- skip_slide -->"))
        .collect()
}

/// Shows the deck in a terminal of this size, and returns what is wrong. Leaves what was seen in the
/// directory of temporary files, as talk-COLUMNSxLINES.txt.
pub fn show(page: &Page, engine: &mut Engine, columns: u16, lines: u16) -> Vec<String> {
    let slides = slides(page);
    assert!(slides.len() < MAX_SLIDES, "{} slides", slides.len() + 1);
    if let Some(refusal) = leaks::refusal(page, Path::new(ROOT)) {
        panic!("{refusal}");
    }
    let _left = Left(page);
    let terminal = Terminal::start("deck", columns, lines, "");
    let notes = Terminal::start("notes", columns, lines, "--listen-speaker-notes");
    let (mut wrong, mut seen) = (Vec::new(), String::new());
    let title = page
        .text
        .lines()
        .find_map(|line| line.strip_prefix("title: "));
    terminal.wait_for("the title", |screen| screen.contains(title.unwrap()));
    seen += &terminal.screen();
    for slide in slides {
        terminal.press("Right");
        let title = slide.trim_start().lines().next().unwrap();
        terminal.wait_for(title, |screen| screen.contains(title));
        for note in speaker_note(slide) {
            notes.wait_for(note, |screen| screen.contains(&start(note)));
        }
        let mut blocks = 0;
        for part in slide.split("<!-- pause -->") {
            if blocks > 0 {
                terminal.press("Right");
            }
            if part.contains("docker stack rm") {
                engine.drop_mesh();
            }
            let here = part.matches("```bash +exec").count();
            blocks += here;
            if here > 0 {
                thread::sleep(Duration::from_millis(500)); // until the slide is drawn
                terminal.press("C-e");
                thread::sleep(Duration::from_secs(3));
            }
            if part.contains("docker stack deploy") {
                terminal.wait_for("the stack", |screen| {
                    screen.matches("[finished").count() == blocks
                });
                engine.need_mesh();
            }
        }
        let screen = terminal.wait_for(title, |screen| {
            screen.matches("[finished").count() == blocks
        });
        seen += &screen;
        let failures = screen.matches("[finished with error]").count();
        if failures != slide.matches("+expect:failure").count() {
            wrong.push(format!(
                "{columns}x{lines}, slide {title:?}: {failures} failures"
            ));
        }
        wrong.extend(
            missing(page, slide, &screen)
                .into_iter()
                .map(|line| format!("{columns}x{lines}, slide {title:?} does not show: {line}")),
        );
    }
    let file = format!("{}/talk-{columns}x{lines}.txt", env!("CARGO_TARGET_TMPDIR"));
    fs::write(&file, seen).unwrap();
    println!("{file}");
    wrong
}

/// The lines that the speaker sees in a second terminal.
fn speaker_note(slide: &str) -> impl Iterator<Item = &str> {
    let (_, note) = slide.split_once("speaker_note: |\n").unwrap_or_default();
    let (note, _) = note.split_once("-->").unwrap_or_default();
    note.lines().map(str::trim)
}

/// The first words of a line, which is wrapped on the screen.
fn start(line: &str) -> String {
    line.chars().take(40).collect()
}

/// Returns the lines of a slide, and of the output that the page shows for its commands, that are not on the
/// screen.
fn missing(page: &Page, slide: &str, screen: &str) -> Vec<String> {
    let mut expected: Vec<&str> = Vec::new();
    let mut is_comment = false;
    for line in slide.lines() {
        is_comment |= line.starts_with("<!--");
        let is_text =
            !is_comment && !line.is_empty() && !line.starts_with("```") && !line.starts_with("===");
        if is_text {
            expected.push(line.trim_start_matches("- "));
        }
        is_comment &= !line.ends_with("-->");
    }
    for step in &page.steps {
        if slide.contains(&step.command) {
            expected.extend(step.shown.lines().filter(|line| *line != "…"));
        }
    }
    let is_seen = |line: &&str| {
        // Markdown is drawn without its marks, and long lines are wrapped.
        let plain = line.replace('`', "");
        screen.contains(&start(&plain)) || screen.lines().any(|seen| is_shown(seen.trim(), &plain))
    };
    let missing = expected.iter().filter(|line| !is_seen(line));
    missing.map(|line| (*line).to_owned()).collect()
}

/// What the slides before "Clean up" have made. Removed when dropped, if one of them failed.
struct Left<'a>(&'a Page);

impl Drop for Left<'_> {
    fn drop(&mut self) {
        if thread::panicking() {
            for step in self.0.steps.iter().filter(|step| step.how.cleans_up) {
                let mut bash = Command::new("bash");
                let command = bash.args(["-c", &step.command]).current_dir(ROOT);
                _ = command.output();
            }
        }
    }
}

/// A terminal of tmux with the deck or its notes in it. Ends both when dropped.
struct Terminal {
    socket: String,
}

impl Terminal {
    fn start(name: &str, columns: u16, lines: u16, options: &str) -> Self {
        let terminal = Terminal {
            socket: format!("timber-{name}-{}", std::process::id()),
        };
        let version = Command::new("presenterm").arg("--version").output();
        version.expect("this test needs presenterm");
        let (columns, lines) = (columns.to_string(), lines.to_string());
        terminal.tmux(&[
            "-f",
            "/dev/null",
            "new-session",
            "-d",
            "-x",
            &columns,
            "-y",
            &lines,
            "-c",
            ROOT,
            &format!(
                "presenterm --config-file docs/presenterm.yaml {options} docs/talk.md; sleep 5"
            ),
        ]);
        terminal
    }

    fn tmux(&self, arguments: &[&str]) -> String {
        let output = Command::new("tmux")
            .args(["-L", &self.socket])
            .args(arguments)
            .output()
            .expect("this test needs tmux");
        assert!(output.status.success(), "tmux {arguments:?}: {output:?}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    fn press(&self, key: &str) {
        self.tmux(&["send-keys", key]);
    }

    fn screen(&self) -> String {
        self.tmux(&["capture-pane", "-p"])
    }

    fn wait_for(&self, what: &str, passes: impl Fn(&str) -> bool) -> String {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let screen = self.screen();
            if passes(&screen) {
                return screen;
            }
            assert!(Instant::now() < deadline, "waited for {what}:\n{screen}");
            thread::sleep(Duration::from_millis(300));
        }
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        _ = Command::new("tmux")
            .args(["-L", &self.socket, "kill-server"])
            .output();
    }
}
