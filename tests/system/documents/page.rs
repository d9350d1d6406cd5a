//! The commands of a page, and how a test types them.
//!
//! A page is Markdown. Two kinds of fenced blocks contain commands:
//!
//! - A `console` block is a terminal session. A line that starts with `$ ` is a command, lines that start
//!   with `> ` continue it, and the lines below are its output. A block that starts with output belongs to
//!   the command that was left running, and `^C` in it stops that command.
//! - A `bash +exec` block of a deck for presenterm is one command. The `text` blocks of the section show the
//!   outputs, in the same order.
//!
//! Comments before a block tell the test how to type its commands. They are not rendered, and presenterm
//! ignores them because of the two slashes. Each applies to all commands of the block, or to those that
//! start with the given text:
//!
//! ```text
//! <!-- // test: background -->
//! <!-- // test: exit 126: docker exec timber sh -->
//! ```
//!
//! | word | meaning |
//! |---|---|
//! | `background` | the command keeps running in a terminal of its own, until a block shows `^C`. Otherwise, before the next heading, the test waits for its end if the page shows output, and presses Ctrl-C if not |
//! | `exit N` | it ends with this exit code instead of 0 |
//! | `retry` | it is repeated until it prints what the page shows, as are commands that only look |
//! | `any output` | the page omits the output |
//! | `clean up` | it is also typed after another command failed |
//! | `leaves a container` | the page does not remove the container; the test does |
//! | `kubernetes` | it needs a cluster that tests do not have; the page shows no output |
//! | `skip (REASON)` | no test types it |

use std::collections::BTreeMap;
use std::ops::Range;

/// The text of a page and its commands.
pub struct Page {
    pub name: String,
    pub text: String,
    pub steps: Vec<Step>,
}

/// One command of a page.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Step {
    /// Line number in the page, from 1.
    pub line: usize,
    /// The heading above.
    pub section: String,
    /// The command, without prompts. Empty if the block continues a command in the background.
    pub command: String,
    /// The output that the page shows.
    pub shown: String,
    /// Its lines, from 0.
    pub shown_lines: Range<usize>,
    /// Whether `text` blocks show the output.
    is_of_deck: bool,
    pub how: How,
}

/// How a test types a command.
#[derive(Clone, Debug, Default, PartialEq)]
#[expect(clippy::struct_excessive_bools, reason = "each is a word of a comment")]
pub struct How {
    pub is_background: bool,
    pub is_retried: bool,
    pub cleans_up: bool,
    pub leaves_container: bool,
    pub exit: i32,
    pub needs_cluster: bool,
    /// Why no test types the command.
    pub skipped: Option<String>,
}

/// What a test expects where a page omits output.
const ANY_OUTPUT: &str = "…\n";

impl Step {
    fn apply(&mut self, word: &str) -> Result<(), String> {
        let how = &mut self.how;
        match word {
            "background" => how.is_background = true,
            "retry" => how.is_retried = true,
            "any output" => ANY_OUTPUT.clone_into(&mut self.shown),
            "clean up" => how.cleans_up = true,
            "leaves a container" => how.leaves_container = true,
            "kubernetes" => {
                how.needs_cluster = true;
                how.skipped = Some("needs a Kubernetes cluster".to_owned());
            }
            _ => {
                let exit = word.strip_prefix("exit ").map(str::parse);
                let reason = word
                    .strip_prefix("skip (")
                    .and_then(|rest| rest.strip_suffix(')'));
                match (exit, reason) {
                    (Some(Ok(exit)), _) => how.exit = exit,
                    (_, Some(reason)) => how.skipped = Some(reason.to_owned()),
                    _ => return Err(format!("unknown {word:?}: see page.rs for the words")),
                }
            }
        }
        Ok(())
    }
}

const COMMENT: &str = "<!-- // test: ";

impl Page {
    /// Finds the commands.
    ///
    /// # Panics
    /// If a command is in another block, where no test would find it, or a comment is invalid or concerns no
    /// command.
    pub fn parse(name: &str, text: &str) -> Self {
        let lines: Vec<&str> = text.lines().collect();
        let mut page = Page {
            name: name.to_owned(),
            text: text.to_owned(),
            steps: Vec::new(),
        };
        let mut section = String::new();
        let mut comments: Vec<(usize, &str)> = Vec::new();
        let has_front_matter = lines.first() == Some(&"---");
        let front_matter = lines.iter().skip(1).position(|line| *line == "---");
        let mut index = match front_matter {
            Some(end) if has_front_matter => end + 2,
            _ => 0,
        };
        while index < lines.len() {
            let line = lines[index];
            if let Some(comment) = line.strip_prefix(COMMENT) {
                let comment = comment
                    .strip_suffix(" -->")
                    .unwrap_or_else(|| panic!("{name}:{}: a comment without end", index + 1));
                comments.push((index + 1, comment));
            } else if line.starts_with("<!--") && line.contains("test") {
                panic!("{name}:{}: not a comment of the form {COMMENT}…", index + 1);
            } else if let Some(info) = line.trim_start().strip_prefix("```") {
                let end = (index + 1..lines.len())
                    .find(|end| lines[*end].trim_start().starts_with("```"))
                    .unwrap_or_else(|| panic!("{name}:{}: a block without end", index + 1));
                let mut steps = page.block(info, &lines, index + 1..end, &section);
                for (line, comment) in comments.drain(..) {
                    apply(comment, &mut steps).unwrap_or_else(|why| panic!("{name}:{line}: {why}"));
                }
                page.steps.append(&mut steps);
                index = end;
            } else if line.starts_with('#') || lines.get(index + 1).is_some_and(is_underline) {
                line.trim_start_matches('#').trim().clone_into(&mut section);
            }
            index += 1;
        }
        assert!(
            comments.is_empty(),
            "{name}: a comment without a block: {comments:?}"
        );
        page
    }

    /// Returns the commands of a block. A block of output goes to the command before it.
    fn block(
        &mut self,
        info: &str,
        lines: &[&str],
        block: Range<usize>,
        section: &str,
    ) -> Vec<Step> {
        let content = &lines[block.clone()];
        let is_session = info == "console"
            || info.is_empty() && content.first().is_some_and(|line| line.starts_with("$ "));
        if is_session {
            return session(content, block.start, section);
        }
        if let Some(line) = content.iter().find(|line| line.starts_with("$ ")) {
            panic!(
                "{}: a command outside of a console block: {line}",
                self.name
            );
        }
        if info.starts_with("bash +exec") {
            return vec![Step {
                line: block.start + 1,
                section: section.to_owned(),
                command: content.join("\n"),
                shown: ANY_OUTPUT.to_owned(),
                shown_lines: block.end..block.end,
                is_of_deck: true,
                how: How::default(),
            }];
        }
        if info == "text" {
            let of_slide = |step: &&mut Step| step.is_of_deck && step.section == section;
            let mut steps = self.steps.iter_mut().filter(of_slide).peekable();
            if steps.peek().is_some() {
                let Some(step) = steps.find(|step| step.shown_lines.is_empty()) else {
                    panic!("{}:{}: output of no command", self.name, block.start);
                };
                step.shown = joined(content);
                step.shown_lines = block;
            }
        }
        Vec::new()
    }

    /// Returns the text with other outputs, by the index of their steps.
    pub fn with_outputs(&self, outputs: &BTreeMap<usize, String>) -> String {
        let mut lines: Vec<&str> = self.text.lines().collect();
        // From the end, so that the earlier line numbers stay valid.
        for (step, output) in outputs.iter().rev() {
            lines.splice(self.steps[*step].shown_lines.clone(), output.lines());
        }
        joined(&lines)
    }
}

/// Whether the line makes a heading of the one above it.
fn is_underline(line: &&str) -> bool {
    line.len() >= 3 && (line.bytes().all(|b| b == b'=') || line.bytes().all(|b| b == b'-'))
}

fn joined(lines: &[&str]) -> String {
    lines.iter().flat_map(|line| [line, "\n"]).collect()
}

/// Applies the comment to the steps that it concerns.
fn apply(comment: &str, steps: &mut [Step]) -> Result<(), String> {
    let (word, start) = comment.split_once(": ").unwrap_or((comment, ""));
    let mut concerned = steps
        .iter_mut()
        .filter(|step| step.command.starts_with(start))
        .peekable();
    if concerned.peek().is_none() {
        return Err(format!(
            "no command of the block below starts with {start:?}"
        ));
    }
    concerned.try_for_each(|step| step.apply(word))
}

/// Returns the commands of a terminal session. `first` is the index of its first line.
fn session(content: &[&str], first: usize, section: &str) -> Vec<Step> {
    let mut steps: Vec<Step> = Vec::new();
    let mut has_output = false;
    for (index, text) in (first..).zip(content) {
        if let Some(command) = text.strip_prefix("$ ") {
            steps.push(Step {
                line: index + 1,
                section: section.to_owned(),
                command: command.to_owned(),
                shown_lines: index + 1..index + 1,
                ..Step::default()
            });
            has_output = false;
            continue;
        }
        if steps.is_empty() {
            steps.push(Step {
                line: index + 1,
                section: section.to_owned(),
                shown_lines: index..index,
                ..Step::default()
            });
            has_output = true;
        }
        let step = steps.last_mut().expect("a step precedes its output");
        match text.strip_prefix("> ") {
            Some(continued) if !has_output => {
                step.command.push('\n');
                step.command += continued;
                step.shown_lines = index + 1..index + 1;
            }
            _ => {
                step.shown += text;
                step.shown.push('\n');
                step.shown_lines.end = index + 1;
                has_output = true;
            }
        }
    }
    steps
}

#[cfg(test)]
mod tests {
    use super::{How, Page};

    fn page(text: &str) -> Page {
        Page::parse("page", text)
    }

    #[test]
    fn finds_commands_and_their_output() {
        let page = page(
            "# One\n```console\n$ a \\\n> b\n$ c\nd\n> e\n```\n```rust\nx\n```\nTwo\n===\n```console\n^Cf\n```\n",
        );
        let found: Vec<_> = page
            .steps
            .iter()
            .map(|step| (step.line, &*step.section, &*step.command, &*step.shown))
            .collect();
        assert_eq!(
            found,
            [
                (3, "One", "a \\\nb", ""),
                (5, "One", "c", "d\n> e\n"),
                (15, "Two", "", "^Cf\n")
            ]
        );
    }

    #[test]
    fn a_deck_shows_outputs_in_later_blocks() {
        let page = page(
            "---\ntitle: x\n---\nA\n===\n```bash +exec\none\ntwo\n```\n```bash +exec\nthree\n```\n<!-- end_slide -->\n```text\n1\n```\n```text\n2\n```\nB\n===\n```bash +exec\nfour\n```\n",
        );
        let steps = page.steps.iter();
        let found: Vec<_> = steps.map(|step| (&*step.command, &*step.shown)).collect();
        assert_eq!(
            found,
            [("one\ntwo", "1\n"), ("three", "2\n"), ("four", "…\n")]
        );
    }

    #[test]
    fn comments_say_how_to_type_a_command() {
        let page = page(
            "<!-- // test: background -->\n<!-- // test: exit 2: b -->\n```console\n$ a\n$ b\n```\n```console\n$ c\n```\n",
        );
        let how: Vec<_> = page.steps.iter().map(|step| step.how.clone()).collect();
        let background = How {
            is_background: true,
            ..How::default()
        };
        let fails = How {
            exit: 2,
            ..background.clone()
        };
        assert_eq!(how, [background, fails, How::default()]);
    }

    #[test]
    #[should_panic(expected = "no command of the block below starts with \"x\"")]
    fn a_comment_concerns_a_command() {
        page("<!-- // test: retry: x -->\n```console\n$ a\n```\n");
    }

    #[test]
    #[should_panic(expected = "unknown \"backgruond\"")]
    fn a_comment_is_spelled_correctly() {
        page("<!-- // test: backgruond -->\n```console\n$ a\n```\n");
    }

    #[test]
    #[should_panic(expected = "page:1: not a comment of the form <!-- // test: ")]
    fn a_comment_has_the_right_form() {
        page("<!-- // tests: retry -->\n```console\n$ a\n```\n");
    }

    #[test]
    #[should_panic(expected = "page:7: output of no command")]
    fn an_output_belongs_to_a_command() {
        page("```bash +exec\na\n```\n```text\n1\n```\n```text\nx\n```\n");
    }

    #[test]
    #[should_panic(expected = "a command outside of a console block: $ a")]
    fn no_command_is_overlooked() {
        page("```rust\n$ a\n```\n");
    }

    #[test]
    fn outputs_are_replaced_in_place() {
        let page = page("```console\n$ a\n1\n2\n$ b\n$ c\n3\n```\nend\n");
        // The first one is that of a command in the background, which ended last.
        let outputs = [(1, "y\nz\n".to_owned()), (0, "x\n".to_owned())].into();
        assert_eq!(
            page.with_outputs(&outputs),
            "```console\n$ a\nx\n$ b\ny\nz\n$ c\n3\n```\nend\n"
        );
    }
}
