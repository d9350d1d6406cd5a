//! A git clone of the repository, with the changes that are not committed yet.

use std::path::Path;
use std::process::Command;

use tempfile::TempDir;

const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../..");

pub struct Clone(TempDir);

impl Clone {
    pub fn new() -> Self {
        let clone = Clone(tempfile::tempdir().unwrap());
        let to = clone.path().display();
        clone.sh(&format!(
            "cd {ROOT} && git ls-files -z --cached --others --exclude-standard --deduplicate |
                 xargs -0 sh -c 'for file; do [ ! -e \"$file\" ] || printf \"%s\\0\" \"$file\"; done' sh |
                 xargs -0 cp --parents --no-dereference --preserve=mode --target-directory {to}"
        ));
        clone.sh("git init --quiet --initial-branch main
             git config user.name test && git config user.email test@example.com
             git remote add origin https://gitlab.example/timber/timber-tutorial.git");
        clone.commit();
        clone
    }

    pub fn path(&self) -> &Path {
        self.0.path()
    }

    /// Runs a script, and returns its standard output.
    pub fn sh(&self, script: &str) -> String {
        let output = Command::new("bash")
            .args(["-euo", "pipefail", "-c", script])
            .current_dir(self.path())
            .output()
            .expect("bash exists");
        let text = String::from_utf8(output.stdout).unwrap();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{script}\n{text}{errors}");
        text
    }

    pub fn commit(&self) {
        self.sh("git add --all
             git commit --quiet --message test");
    }
}
