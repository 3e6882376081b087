//! The change from one authority of a cluster to another, in the cluster's directory.
//!
//! | state | `authority.pem` | `authority.key` | `next-authority.pem` | `next-authority.key` |
//! |---|---|---|---|---|
//! | none | old | old | | |
//! | interrupted in the start | old | old | (new) | new |
//! | started | old, new | old | new | new |
//! | interrupted in the switch | old, new | new | new | |
//! | switched | new, old | new | | |
//!
//! Every file is replaced at once, so that a step that was interrupted can be taken again. What was interrupted in the
//! start counts as none: no node trusts that authority yet.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, ensure};
use postroad_net::{Certificate, KeyId, authority::ClusterAuthority};

use super::{ClusterDirectory, replace};

/// How far the change is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rotation {
    /// There is one authority that nodes trust.
    None,
    /// There is a new one, which nodes are to trust and which signs nothing yet.
    Started,
    /// The key of the new one has replaced that of the old one, and the rest of the step is missing.
    Interrupted,
    /// The new one signs; nodes still trust the old one too.
    Switched,
}

impl Rotation {
    /// Reads from the files of a cluster's directory how far the change is.
    ///
    /// # Errors
    /// A file cannot be read.
    pub(crate) fn of(dir: &Path) -> anyhow::Result<Self> {
        let files = Files::of(dir);
        let trusted = files.trusted()?;
        let number = trusted.len();
        ensure!(number <= 2, "`{}` has {number} certificates; expected 1 or 2", files.authority.display());
        if !files.next.exists() {
            return Ok(if number == 2 { Self::Switched } else { Self::None });
        }
        let next = key_of(&read(&files.next)?)?;
        Ok(match (files.next_key.exists(), is_among(&trusted, &next)) {
            (false, _) => Self::Interrupted,
            (true, true) => Self::Started,
            (true, false) => Self::None,
        })
    }
}

/// The files of both authorities.
struct Files {
    authority: PathBuf,
    key: PathBuf,
    next: PathBuf,
    next_key: PathBuf,
}

impl Files {
    fn of(dir: &Path) -> Self {
        let file = |name| dir.join(name);
        Self {
            authority: file("authority.pem"),
            key: file("authority.key"),
            next: file("next-authority.pem"),
            next_key: file("next-authority.key"),
        }
    }

    fn trusted(&self) -> anyhow::Result<Vec<Certificate>> {
        let file = self.authority.display();
        Certificate::read_all(&self.authority).with_context(|| format!("`{file}`"))
    }
}

fn read(file: &Path) -> anyhow::Result<String> {
    fs::read_to_string(file).with_context(|| format!("cannot read `{}`", file.display()))
}

/// Removes a file; returns whether there was one.
fn remove(file: &Path) -> anyhow::Result<bool> {
    match fs::remove_file(file) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error).with_context(|| format!("cannot remove `{}`", file.display())),
    }
}

fn is_among(authorities: &[Certificate], key: &KeyId) -> bool {
    authorities.iter().any(|authority| authority.key.as_ref() == Some(key))
}

/// Returns the key of the only certificate in PEM.
fn key_of(pem: &str) -> anyhow::Result<KeyId> {
    let key = Certificate::all_of_pem(pem.as_bytes())?.swap_remove(0).key;
    key.context("the certificate of an authority has no key identifier")
}

impl ClusterDirectory {
    /// Makes the new authority where there is none yet, and lets nodes trust both; returns its key.
    ///
    /// # Errors
    /// A file cannot be read or written.
    pub(crate) fn rotate_start(&self) -> anyhow::Result<KeyId> {
        let files = Files::of(&self.path);
        if !files.next.exists() {
            let next = ClusterAuthority::generate(self.file.id)?;
            // The key first: without its certificate it means nothing.
            remove(&files.next_key)?;
            replace(&files.next_key, &next.key_pem())?;
            replace(&files.next, next.certificate_pem())?;
        }
        let next = read(&files.next)?;
        let key = key_of(&next)?;
        if !is_among(&files.trusted()?, &key) {
            replace(&files.authority, &format!("{}{next}", read(&files.authority)?))?;
        }
        Ok(key)
    }

    /// Forgets the new authority, which has signed nothing yet: only the old one is trusted again. Returns
    /// whether there was a new one, if only a part of it.
    ///
    /// # Errors
    /// A file cannot be read, written or removed.
    pub(crate) fn rotate_abort(&self) -> anyhow::Result<bool> {
        let files = Files::of(&self.path);
        self.trust_first_only()?;
        // The certificate first: a key without one means nothing.
        let certificate = remove(&files.next)?;
        Ok(remove(&files.next_key)? || certificate)
    }

    /// Lets the new authority sign, beginning with the operator's certificate; returns its key.
    ///
    /// # Errors
    /// A file cannot be read or written.
    pub(crate) fn rotate_switch(&self) -> anyhow::Result<KeyId> {
        let files = Files::of(&self.path);
        if files.next_key.exists() {
            let moved = fs::rename(&files.next_key, &files.key);
            moved.with_context(|| format!("cannot write `{}`", files.key.display()))?;
        }
        if files.next.exists() {
            let (next, both) = (read(&files.next)?, read(&files.authority)?);
            let old = both.strip_suffix(&next).unwrap_or(&both);
            // The one that signs is the first.
            replace(
                &files.authority,
                &if old.starts_with(&next) { both.clone() } else { format!("{next}{old}") },
            )?;
            remove(&files.next)?;
        }
        let key = key_of(&read(&files.authority)?)?;
        let operator = Certificate::read_first(&self.path.join("operator.pem"))?;
        if operator.signed_by.as_ref() != Some(&key) {
            // With the files as they are now.
            Self::open(&self.path)?.renew_operator()?;
        }
        Ok(key)
    }

    /// Ends the change: only the new authority is trusted.
    ///
    /// # Errors
    /// A file cannot be read or written.
    pub(crate) fn rotate_finish(&self) -> anyhow::Result<()> {
        self.trust_first_only()
    }

    /// Removes every certificate from `authority.pem` but that of the authority that signs.
    fn trust_first_only(&self) -> anyhow::Result<()> {
        let files = Files::of(&self.path);
        let both = read(&files.authority)?;
        const END: &str = "-----END CERTIFICATE-----";
        let end = both.find(END).context("no certificate in `authority.pem`")? + END.len();
        replace(&files.authority, &format!("{}\n", &both[..end]))
    }
}

#[cfg(test)]
mod tests {
    use postroad_net::{NodeTls, Role};

    use super::*;
    use crate::cli::NodeAddress;

    fn cluster() -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("cluster");
        let queue: NodeAddress = "1=q1.example:7000".parse().unwrap();
        ClusterDirectory::init(&path, &[queue], 1).unwrap();
        (dir, path)
    }

    fn open(path: &Path) -> ClusterDirectory {
        ClusterDirectory::open(path).unwrap()
    }

    /// Another node would accept the operator, whose files are these.
    fn operator_is_accepted(path: &Path, authority: &str) -> bool {
        let file = |name: &str| path.join(name);
        NodeTls::from_files(file(authority), file("operator.pem"), file("operator.key"))
            .unwrap()
            .verify()
            .is_ok()
    }

    #[test]
    fn an_authority_is_replaced_in_three_steps_and_everyone_is_trusted_at_each() {
        let (_dir, path) = cluster();
        fs::copy(path.join("authority.pem"), path.join("old.pem")).unwrap();
        assert_eq!(Rotation::of(&path).unwrap(), Rotation::None);

        let key = open(&path).rotate_start().unwrap();
        assert_eq!(Rotation::of(&path).unwrap(), Rotation::Started);
        assert_eq!(open(&path).rotate_start().unwrap(), key, "a second call changes nothing");
        let trusted = Files::of(&path).trusted().unwrap();
        assert_eq!((trusted.len(), trusted[1].key.as_ref()), (2, Some(&key)));
        assert!(operator_is_accepted(&path, "authority.pem"));
        fs::copy(path.join("authority.pem"), path.join("both.pem")).unwrap();
        // Certificates that are issued now are of the old authority.
        let node = postroad_net::PeerIdentity {
            cluster: open(&path).file.id,
            role: Role::Queue,
            node: postroad_core::NodeId(1),
        };
        let renew = |path: &Path| {
            for name in ["queue.pem", "queue.key"] {
                fs::write(path.join(name), "").unwrap();
            }
            open(path).renew(node, path, "queue").unwrap().signed_by
        };
        assert_eq!(renew(&path), trusted[0].key);

        assert_eq!(open(&path).rotate_switch().unwrap(), key);
        assert_eq!(Rotation::of(&path).unwrap(), Rotation::Switched);
        assert_eq!(Files::of(&path).trusted().unwrap()[0].key.as_ref(), Some(&key));
        assert!(operator_is_accepted(&path, "both.pem"), "by a node that has the file of the first step");
        assert!(!operator_is_accepted(&path, "old.pem"), "not by a node that has missed it");
        assert_eq!(renew(&path), Some(key.clone()));
        assert_eq!(open(&path).rotate_switch().unwrap(), key, "a second call changes nothing");

        open(&path).rotate_finish().unwrap();
        assert_eq!(Rotation::of(&path).unwrap(), Rotation::None);
        assert_eq!(Files::of(&path).trusted().unwrap().len(), 1);
        assert!(operator_is_accepted(&path, "authority.pem"));
        assert_eq!(renew(&path), Some(key));
    }

    #[test]
    fn a_step_that_was_interrupted_is_taken_again() {
        let (_dir, path) = cluster();
        let before = fs::read_to_string(path.join("authority.pem")).unwrap();
        let key = open(&path).rotate_start().unwrap();
        // Before nodes could trust it.
        fs::write(path.join("authority.pem"), &before).unwrap();
        assert_eq!(Rotation::of(&path).unwrap(), Rotation::None, "the next call takes step 1, not step 2");
        assert_eq!(open(&path).rotate_start().unwrap(), key);
        assert_eq!(Rotation::of(&path).unwrap(), Rotation::Started);
        assert_eq!(Files::of(&path).trusted().unwrap().len(), 2);
        // After the key was moved.
        fs::rename(path.join("next-authority.key"), path.join("authority.key")).unwrap();
        assert_eq!(Rotation::of(&path).unwrap(), Rotation::Interrupted);
        assert_eq!(open(&path).rotate_switch().unwrap(), key);
        assert_eq!(Rotation::of(&path).unwrap(), Rotation::Switched);
        assert!(operator_is_accepted(&path, "authority.pem"));
        // A new authority's key without a certificate is not one.
        open(&path).rotate_finish().unwrap();
        fs::write(path.join("next-authority.key"), "half").unwrap();
        assert_eq!(Rotation::of(&path).unwrap(), Rotation::None);
        assert_ne!(open(&path).rotate_start().unwrap(), key);
        assert_eq!(Rotation::of(&path).unwrap(), Rotation::Started);
    }

    #[test]
    fn a_new_authority_that_has_signed_nothing_can_be_given_up() {
        let (_dir, path) = cluster();
        let before = fs::read_to_string(path.join("authority.pem")).unwrap();
        let check = || {
            open(&path).rotate_abort().unwrap();
            assert_eq!(Rotation::of(&path).unwrap(), Rotation::None);
            assert_eq!(fs::read_to_string(path.join("authority.pem")).unwrap(), before);
            assert!(operator_is_accepted(&path, "authority.pem"));
            let left = ["next-authority.pem", "next-authority.key"].map(|name| path.join(name).exists());
            assert_eq!(left, [false, false]);
        };
        let first = open(&path).rotate_start().unwrap();
        check();
        assert_ne!(open(&path).rotate_start().unwrap(), first, "the next one is another");
        // Interrupted in the start.
        fs::write(path.join("authority.pem"), &before).unwrap();
        check();
        // There is nothing to give up.
        check();
    }
}
