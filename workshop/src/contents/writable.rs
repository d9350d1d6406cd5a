//! The user of an image, and what the permissions allow it to write.

use std::collections::BTreeSet;

/// Who may do what with a file or a directory.
#[derive(Clone, Copy)]
pub struct Permissions {
    pub mode: u32,
    /// Id of the owner.
    pub user: u64,
    pub group: u64,
}

/// A user as the kernel knows it.
#[derive(Debug, PartialEq)]
pub struct User {
    id: u64,
    groups: BTreeSet<u64>,
}

impl User {
    /// Resolves `USER[:GROUP]`, as an image names its user, in the image's `/etc/passwd` and
    /// `/etc/group`. The rules are Docker's: no user means root. A number need not be listed, and its
    /// group is then 0. A named group replaces all others.
    ///
    /// # Errors
    /// The user or the group is not a number and not listed. Such an image does not start.
    pub fn resolve(text: &str, passwd: &str, group: &str) -> Result<Self, String> {
        let (user, chosen) = text.split_once(':').unwrap_or((text, ""));
        let user = if user.is_empty() { "0" } else { user };
        let entry = find(passwd, user);
        let field = |entry: &[&str], at: usize| entry.get(at)?.parse::<u64>().ok();
        let unknown =
            |what, name, file| format!("unknown {what} of the image: {name} is not in {file}");
        let id = entry
            .as_deref()
            .map_or(user.parse().ok(), |entry| field(entry, 2))
            .ok_or_else(|| unknown("user", user, "/etc/passwd"))?;
        let groups = if chosen.is_empty() {
            let first = entry.as_deref().and_then(|entry| field(entry, 3));
            let name = entry.as_ref().map(|entry| entry[0]);
            let further = entries(group).filter(|entry| {
                let members = entry.get(3).unwrap_or(&"");
                members.split(',').any(|member| Some(member) == name)
            });
            let further = further.filter_map(|entry| field(&entry, 2));
            further.chain([first.unwrap_or(0)]).collect()
        } else {
            let id = find(group, chosen)
                .as_deref()
                .map_or(chosen.parse().ok(), |entry| field(entry, 2));
            BTreeSet::from([id.ok_or_else(|| unknown("group", chosen, "/etc/group"))?])
        };
        Ok(User { id, groups })
    }

    fn is_root(&self) -> bool {
        self.id == 0
    }

    pub fn may_write(&self, file: &Permissions) -> bool {
        self.has(0o2, file)
    }

    /// Returns whether this user can reach the entries of a directory.
    pub fn may_search(&self, directory: &Permissions) -> bool {
        self.has(0o1, directory)
    }

    /// Only one of the three permission sets applies: the owner's also if the group's allows more.
    fn has(&self, permission: u32, file: &Permissions) -> bool {
        let shift = if self.id == file.user {
            6
        } else if self.groups.contains(&file.group) {
            3
        } else {
            0
        };
        self.is_root() || file.mode >> shift & permission != 0
    }
}

/// Splits `/etc/passwd` or `/etc/group` into fields.
fn entries(file: &str) -> impl Iterator<Item = Vec<&str>> {
    let lines = file.lines().map(str::trim);
    lines
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .map(|line| line.split(':').collect())
}

/// Finds the entry with this id if `text` is a number, and with this name if not.
fn find<'a>(file: &'a str, text: &str) -> Option<Vec<&'a str>> {
    let column = if text.parse::<u64>().is_ok() { 2 } else { 0 };
    entries(file).find(|entry| entry.get(column) == Some(&text))
}

#[cfg(test)]
mod tests {
    use super::{Permissions, User};

    const PASSWD: &str = "root:x:0:0::/root:/bin/sh\n# none\n\nweb:x:33:34::/:\n5:x:9:9::/:\n";
    const GROUP: &str = "root:x:0:\nlogs:x:50:other,web\nmail:x:51:webber\n";

    fn resolve(text: &str) -> Result<(u64, Vec<u64>), String> {
        let user = User::resolve(text, PASSWD, GROUP)?;
        Ok((user.id, user.groups.into_iter().collect()))
    }

    #[test]
    fn users_are_resolved_as_docker_does() {
        for (text, id, groups) in [
            ("", 0, vec![0]),
            ("root", 0, vec![0]),
            ("web", 33, vec![34, 50]),
            ("33", 33, vec![34, 50]),
            ("web:mail", 33, vec![51]),
            ("33:0", 33, vec![0]),
            (":7", 0, vec![7]),
            // Numbers that are not listed, and a name that is a number.
            ("65532", 65532, vec![0]),
            ("65532:65533", 65532, vec![65533]),
            ("5", 5, vec![0]),
        ] {
            assert_eq!(resolve(text), Ok((id, groups)), "{text}");
        }
        for (text, part) in [("absent", "absent"), ("web:absent", "/etc/group")] {
            assert!(resolve(text).unwrap_err().contains(part), "{text}");
        }
        assert!(User::resolve("web", "", "").is_err());
    }

    #[test]
    fn only_one_set_of_permissions_applies() {
        let user = |text| User::resolve(text, PASSWD, GROUP).unwrap();
        for (mode, owner, group, may_write) in [
            (0o200, 33, 0, true),
            (0o022, 33, 50, false),
            (0o020, 0, 50, true),
            (0o602, 0, 34, false),
            (0o002, 0, 0, true),
            (0o775, 0, 0, false),
        ] {
            let file = Permissions {
                mode,
                user: owner,
                group,
            };
            assert_eq!(user("web").may_write(&file), may_write, "{mode:o}");
            assert!(user("root").may_write(&file));
        }
    }
}
