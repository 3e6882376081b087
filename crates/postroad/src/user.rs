//! The user that this process runs as.

use std::{fmt, fs};

/// The effective user of this process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct User {
    id: u32,
    /// Its name in `/etc/passwd`; containers often have none.
    name: Option<String>,
}

impl User {
    pub(crate) fn current() -> Self {
        let id = rustix::process::geteuid().as_raw();
        let users = fs::read_to_string("/etc/passwd").unwrap_or_default();
        Self { id, name: name_of(id, &users) }
    }

    pub(crate) fn is_root(&self) -> bool {
        self.id == 0
    }
}

/// Finds a user in the text of `/etc/passwd`: `name:password:id:…`.
fn name_of(id: u32, users: &str) -> Option<String> {
    let name = |line: &str| {
        let mut fields = line.split(':');
        let (name, _password, found) = (fields.next()?, fields.next()?, fields.next()?);
        (found.parse() == Ok(id)).then(|| name.to_owned())
    };
    users.lines().find_map(name)
}

impl fmt::Display for User {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.name {
            Some(name) => write!(f, "user `{name}` (uid {})", self.id),
            None => write!(f, "uid {}", self.id),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_is_named_where_the_system_knows_it() {
        let users = "root:x:0:0:root:/root:/bin/bash\npostroad:x:999:999::/nonexistent:/usr/sbin/nologin\n";
        let check = |id, shown: &str| assert_eq!(User { id, name: name_of(id, users) }.to_string(), shown);
        check(0, "user `root` (uid 0)");
        check(999, "user `postroad` (uid 999)");
        check(1000, "uid 1000");
    }
}
