//! Captures in a directory, one file for each: the envelope, an empty line, and the content byte for byte.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use bytes::Bytes;
use postroad_core::{Address, Timestamp};

use crate::capture::Capture;

const EXTENSION: &str = "capture";

/// The directory.
#[derive(Debug)]
pub(crate) struct Disk {
    directory: PathBuf,
}

impl Disk {
    /// Opens the directory; returns the captures in it, the oldest first. What is not a capture is skipped.
    ///
    /// # Errors
    /// The directory cannot be made or read.
    pub(crate) fn open(directory: &Path) -> io::Result<(Self, Vec<Capture>)> {
        fs::create_dir_all(directory)?;
        let mut captures = Vec::new();
        for entry in fs::read_dir(directory)? {
            let path = entry?.path();
            if path.extension().is_none_or(|extension| extension != EXTENSION) {
                continue;
            }
            match read(&path) {
                Some(capture) => captures.push(capture),
                None => tracing::warn!(file = %path.display(), "unreadable capture is not shown"),
            }
        }
        captures.sort_by_key(|capture| capture.id);
        Ok((Self { directory: directory.to_owned() }, captures))
    }

    /// Writes a capture, whole or not at all.
    ///
    /// # Errors
    /// The file cannot be written.
    pub(crate) fn write(&self, capture: &Capture) -> io::Result<()> {
        let sender = capture.sender.as_ref().map(Address::as_str).unwrap_or_default();
        let mut text = format!("{}\n{sender}\n", capture.received_at.as_millis());
        for recipient in &capture.recipients {
            text.push_str(recipient.as_str());
            text.push('\n');
        }
        text.push('\n');
        let (path, new) = (self.path(capture.id), self.directory.join("new"));
        fs::write(&new, [text.as_bytes(), &capture.content].concat())?;
        fs::rename(new, path)
    }

    /// Removes a capture. One that stays is shown again by the next process, which is harmless.
    pub(crate) fn remove(&self, id: u64) {
        if let Err(error) = fs::remove_file(self.path(id)) {
            tracing::warn!(id, %error, "cannot remove a capture");
        }
    }

    fn path(&self, id: u64) -> PathBuf {
        self.directory.join(format!("{id}.{EXTENSION}"))
    }
}

fn read(path: &Path) -> Option<Capture> {
    let id = path.file_stem()?.to_str()?.parse().ok()?;
    let mut rest = Bytes::from(fs::read(path).ok()?);
    let received_at = Timestamp::from_millis(line(&mut rest)?.parse().ok()?);
    let sender = match line(&mut rest)?.as_str() {
        "" => None,
        sender => Some(Address::parse(sender).ok()?),
    };
    let mut recipients = Vec::new();
    loop {
        match line(&mut rest)?.as_str() {
            "" => break,
            recipient => recipients.push(Address::parse(recipient).ok()?),
        }
    }
    Some(Capture::new(id, received_at, sender, recipients, rest))
}

/// Takes the first line off.
fn line(rest: &mut Bytes) -> Option<String> {
    let end = rest.iter().position(|byte| *byte == b'\n')?;
    let line = rest.split_to(end + 1);
    String::from_utf8(line[..end].to_vec()).ok()
}
