//! A tar archive of texts, in the format `ustar` of POSIX: every tar reads it.

use anyhow::ensure;
use postroad_core::Timestamp;

const BLOCK: usize = 512;
/// The place and size of each field of a header.
const NAME: (usize, usize) = (0, 100);
const MODE: (usize, usize) = (100, 8);
const OWNER: (usize, usize) = (108, 8);
const GROUP: (usize, usize) = (116, 8);
const SIZE: (usize, usize) = (124, 12);
const TIME: (usize, usize) = (136, 12);
const CHECKSUM: (usize, usize) = (148, 8);
const KIND: usize = 156;
const MAGIC: (usize, &[u8]) = (257, b"ustar\x0000");

/// An archive that grows in memory.
#[derive(Debug)]
pub(super) struct Archive {
    bytes: Vec<u8>,
    at: Timestamp,
}

impl Archive {
    /// Begins an archive whose files all have one time.
    pub(super) fn new(at: Timestamp) -> Self {
        Self { bytes: Vec::new(), at }
    }

    /// Adds a file to the directory that the archive unpacks into.
    pub(super) fn add(&mut self, name: &str, content: &[u8]) -> anyhow::Result<()> {
        let name = format!("postroad-support/{name}");
        ensure!(name.len() < NAME.1, "`{name}` is too long for an archive");
        let mut header = [0; BLOCK];
        header[..name.len()].copy_from_slice(name.as_bytes());
        octal(&mut header, MODE, 0o600);
        octal(&mut header, OWNER, 0);
        octal(&mut header, GROUP, 0);
        octal(&mut header, SIZE, content.len() as u64);
        octal(&mut header, TIME, self.at.as_millis() / 1000);
        header[KIND] = b'0';
        header[MAGIC.0..MAGIC.0 + MAGIC.1.len()].copy_from_slice(MAGIC.1);
        // The sum counts its own field as spaces.
        header[CHECKSUM.0..CHECKSUM.0 + CHECKSUM.1].fill(b' ');
        let sum = header.iter().map(|byte| u64::from(*byte)).sum();
        octal(&mut header, (CHECKSUM.0, CHECKSUM.1 - 1), sum);
        self.bytes.extend(header);
        self.bytes.extend(content);
        self.bytes.resize(self.bytes.len().next_multiple_of(BLOCK), 0);
        Ok(())
    }

    /// Ends the archive; returns it.
    pub(super) fn finish(mut self) -> Vec<u8> {
        self.bytes.resize(self.bytes.len() + 2 * BLOCK, 0);
        self.bytes
    }
}

/// Writes a number in octal digits, and a NUL behind them.
fn octal(header: &mut [u8; BLOCK], (start, size): (usize, usize), number: u64) {
    let digits = format!("{number:0width$o}", width = size - 1);
    // A number that is too large for its field shows as its last digits, which no file of ours reaches.
    let digits = &digits.as_bytes()[digits.len() - (size - 1)..];
    header[start..start + digits.len()].copy_from_slice(digits);
    header[start + digits.len()] = 0;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_archive_has_a_header_and_whole_blocks_for_each_file() {
        let mut archive = Archive::new(Timestamp::from_millis(1_700_000_000_000));
        archive.add("a.txt", b"hello").unwrap();
        archive.add("empty.txt", b"").unwrap();
        let bytes = archive.finish();
        assert_eq!(bytes.len(), (2 + 1 + 2) * BLOCK);
        assert!(bytes.starts_with(b"postroad-support/a.txt\0"));
        assert_eq!(&bytes[124..136], b"00000000005\0");
        assert_eq!(&bytes[136..148], b"14524770400\0");
        assert_eq!(&bytes[BLOCK..BLOCK + 5], b"hello");
        let sum: u64 =
            (0..BLOCK).map(|at| if (148..156).contains(&at) { 32 } else { u64::from(bytes[at]) }).sum();
        assert_eq!(&bytes[148..156], format!("{sum:06o}\0 ").as_bytes());
        assert!(bytes[2 * BLOCK..].starts_with(b"postroad-support/empty.txt\0"));
        assert!(Archive::new(Timestamp::ZERO).add(&"n".repeat(100), b"").is_err());
    }
}
