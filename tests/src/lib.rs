//! Tests of the whole system are in this package's `tests` directory; here is what several of them need to read the tree.

use std::{
    fs,
    path::{Path, PathBuf},
};

/// What is not ours; `.git` is a file in a worktree.
const SKIPPED: &[&str] = &[".git", "target", "Cargo.lock"];

/// Returns the root of the tree.
#[must_use]
pub fn root() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
}

/// Returns every file of the tree, sorted; without git's and cargo's own.
///
/// # Panics
/// A directory is not readable.
#[must_use]
pub fn files() -> Vec<PathBuf> {
    files_in(&root())
}

/// Returns every file below a directory of the tree, sorted; without git's and cargo's own.
///
/// # Panics
/// A directory is not readable.
#[must_use]
pub fn files_in(directory: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    let mut directories = vec![directory.to_owned()];
    while let Some(directory) = directories.pop() {
        let entries = fs::read_dir(&directory);
        for entry in entries.unwrap_or_else(|error| panic!("{}: {error}", directory.display())) {
            let path = entry.expect("a directory of ours is readable").path();
            let name = path.file_name().unwrap_or_default();
            if SKIPPED.iter().any(|skipped| name == *skipped) {
                continue;
            }
            if path.is_dir() { directories.push(path) } else { files.push(path) }
        }
    }
    files.sort();
    files
}

/// Returns the path of a file of the tree, from the root.
///
/// # Panics
/// The file is not below the root.
#[must_use]
pub fn relative(file: &Path) -> String {
    file.strip_prefix(root()).expect("the file is below the root").display().to_string()
}
