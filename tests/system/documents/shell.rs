//! The terminals in which the commands of a page are typed.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process_group};
use tempfile::TempDir;

/// Environment variable of all processes that a run starts. Not TIMBER_…, because the service refuses settings
/// that it does not know.
pub const RUN: &str = "PAGE_RUN";
/// Label of its containers.
pub const LABEL: &str = "timber.page"; // also in PRELUDE

/// curl shows no progress on a terminal, which tests do not have. `.ci/run` removes containers with the label
/// timber.test when it ends.
const PRELUDE: &str = r#"
    exec 2>&1
    curl() { command curl --no-progress-meter "$@"; }
    docker() {
        case $1 in run | create) set -- "$1" --label timber.test=true --label "timber.page=$PAGE_RUN" "${@:2}" ;; esac
        command docker "$@"
    }
    export -f curl docker
"#;

/// Ends the output of a command, followed by the exit code and another one.
const END: char = '\u{1e}';

/// One shell for all commands of a page.
pub struct Shell {
    child: Child,
    input: ChildStdin,
    output: Receiver<Vec<u8>>,
    scratch: TempDir,
}

/// Output of a command, and its exit code if it has ended in time.
pub struct Outcome {
    pub printed: String,
    pub exit: Option<i32>,
}

impl Shell {
    pub fn start(directory: &Path, run: &str) -> Self {
        let mut child = bash(directory, run)
            .stdin(Stdio::piped())
            .spawn()
            .expect("bash starts");
        let mut shell = Shell {
            input: child.stdin.take().expect("it is piped"),
            output: read(child.stdout.take().expect("it is piped")),
            child,
            scratch: tempfile::tempdir().expect("a temporary directory"),
        };
        shell.type_in(PRELUDE, Duration::from_secs(10));
        shell
    }

    pub fn pid(&self) -> i32 {
        self.child.id().cast_signed()
    }

    /// Types a command and waits for its end. After a timeout, the shell is of no more use.
    pub fn type_in(&mut self, command: &str, timeout: Duration) -> Outcome {
        let file = self.scratch.path().join("command");
        fs::write(&file, format!("{command}\n")).expect("the file is writable");
        let typed = format!(
            ". {} </dev/null; printf '\\036%d\\036' $?\n",
            file.display()
        );
        // Fails if an earlier command ended the shell. Then there is no output, either.
        _ = self.input.write_all(typed.as_bytes());
        let deadline = Instant::now() + timeout;
        let mut bytes = Vec::new();
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let Ok(more) = self.output.recv_timeout(left) else {
                let printed = String::from_utf8_lossy(&bytes).into_owned();
                return Outcome {
                    printed,
                    exit: None,
                };
            };
            bytes.extend(more);
            let text = String::from_utf8_lossy(&bytes);
            let end = text
                .strip_suffix(END)
                .and_then(|text| text.rsplit_once(END));
            if let Some((printed, exit)) = end {
                return Outcome {
                    printed: printed.to_owned(),
                    exit: exit.parse().ok(),
                };
            }
        }
    }
}

impl Drop for Shell {
    fn drop(&mut self) {
        end(&mut self.child);
    }
}

/// A terminal in which a command keeps running.
pub struct Background {
    child: Child,
    output: Receiver<Vec<u8>>,
    printed: Vec<u8>,
}

impl Background {
    pub fn start(command: &str, directory: &Path, run: &str) -> Self {
        let mut child = bash(directory, run)
            .args(["-c", &format!("{PRELUDE}\n{command}")])
            .stdin(Stdio::null())
            .spawn()
            .expect("bash starts");
        Background {
            output: read(child.stdout.take().expect("it is piped")),
            child,
            printed: Vec::new(),
        }
    }

    /// Waits until the output so far passes.
    ///
    /// # Errors
    /// The output, if it does not pass in time.
    pub fn wait_for(
        &mut self,
        passes: impl Fn(&str) -> bool,
        patience: Duration,
    ) -> Result<(), String> {
        let deadline = Instant::now() + patience;
        loop {
            let text = String::from_utf8_lossy(&self.printed);
            if passes(&text) {
                return Ok(());
            }
            let left = deadline.saturating_duration_since(Instant::now());
            match self.output.recv_timeout(left) {
                Ok(more) => self.printed.extend(more),
                Err(_) => return Err(text.into_owned()),
            }
        }
    }

    /// Presses Ctrl-C.
    pub fn interrupt(&self) {
        _ = kill_process_group(Pid::from_child(&self.child), Signal::INT);
    }

    /// Waits for the end of the command. `None`: it has not ended in time.
    pub fn end(&mut self, patience: Duration) -> (String, Option<ExitStatus>) {
        let deadline = Instant::now() + patience;
        while let Ok(more) = self
            .output
            .recv_timeout(deadline.saturating_duration_since(Instant::now()))
        {
            self.printed.extend(more);
        }
        let printed = String::from_utf8_lossy(&self.printed).into_owned();
        let has_ended = Instant::now() < deadline;
        (printed, has_ended.then(|| self.child.wait().ok()).flatten())
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            // Clients of Docker stop their container.
            self.interrupt();
            self.end(Duration::from_secs(15));
            end(&mut self.child);
        }
    }
}

/// Returns bash in a process group of its own, so that Ctrl-C reaches all that it has started. A job in the
/// background of a script ignores Ctrl-C, and so would its children.
fn bash(directory: &Path, run: &str) -> Command {
    let mut bash = Command::new("env");
    bash.args(["--default-signal=INT", "bash"])
        .current_dir(directory)
        .env(RUN, run)
        .stdout(Stdio::piped())
        .process_group(0);
    bash
}

fn end(child: &mut Child) {
    if matches!(child.try_wait(), Ok(None)) {
        _ = kill_process_group(Pid::from_child(child), Signal::KILL);
        _ = child.wait();
    }
}

fn read(mut output: ChildStdout) -> Receiver<Vec<u8>> {
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        let mut buffer = [0; 4096];
        while let Ok(length @ 1..) = output.read(&mut buffer) {
            if sender.send(buffer[..length].to_vec()).is_err() {
                return;
            }
        }
    });
    receiver
}
