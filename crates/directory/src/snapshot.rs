//! Encoding and decoding of the state.

use std::collections::VecDeque;

use crate::{
    codec::{Code, Corrupt, Take, put_list},
    directory::{Directory, Numbers, Row},
};

/// The version of the layout; other versions are refused.
const VERSION: u16 = 1;

impl Directory {
    /// Writes the state as bytes that [`Directory::restore`] reads. Equal states are equal bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.rows.len() * 128 + 64);
        VERSION.put(&mut out);
        self.revision.put(&mut out);
        self.numbers.tenant.put(&mut out);
        self.numbers.pool.put(&mut out);
        self.numbers.source.put(&mut out);
        self.forgotten.put(&mut out);
        put_list(&mut out, self.removed.iter());
        put_list(&mut out, self.rows.values());
        out
    }

    /// Makes a directory from the bytes of a snapshot.
    ///
    /// # Errors
    /// The bytes are not those of a snapshot of a known version.
    pub fn restore(bytes: &[u8]) -> Result<Self, Corrupt> {
        let mut from = Take(bytes);
        if u16::take(&mut from)? != VERSION {
            return Err(Corrupt);
        }
        let revision = Code::take(&mut from)?;
        let numbers = Numbers {
            tenant: Code::take(&mut from)?,
            pool: Code::take(&mut from)?,
            source: Code::take(&mut from)?,
        };
        let forgotten = Code::take(&mut from)?;
        let removed = VecDeque::from(from.list()?);
        let rows: Vec<Row> = from.list()?;
        from.finish()?;
        let rows = rows.into_iter().map(|row| (row.item.name(), row)).collect();
        Ok(Self { revision, numbers, rows, removed, forgotten })
    }

    /// Returns a number that is equal for equal states: FNV-1a of the snapshot's bytes.
    #[must_use]
    pub fn state_hash(&self) -> u64 {
        self.encode().into_iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
        })
    }
}

impl Code for Row {
    fn put(&self, out: &mut Vec<u8>) {
        self.revision.put(out);
        self.item.put(out);
    }

    fn take(from: &mut Take<'_>) -> Result<Self, Corrupt> {
        Ok(Self { revision: Code::take(from)?, item: Code::take(from)? })
    }
}
