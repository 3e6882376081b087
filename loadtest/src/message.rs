//! The messages of a run: equal except for a token that identifies each.

use std::fmt::Write;

use bytes::Bytes;

/// Makes the messages of one run.
#[derive(Clone, Debug)]
pub(crate) struct MessageMaker {
    pub(crate) sender: Box<str>,
    pub(crate) recipient: Box<str>,
    run: u32,
    size: usize,
    date: Box<str>,
    /// Enough lines for the largest body.
    lines: Bytes,
}

const LINE: &[u8] = b"The post road was a chain of stations where riders were relayed.\r\n";

impl MessageMaker {
    pub(crate) fn new(sender: &str, recipient: &str, size: usize) -> Self {
        let now = postroad_env::wall();
        Self {
            sender: sender.into(),
            recipient: recipient.into(),
            run: postroad_env::random(),
            size,
            date: now.civil().to_rfc5322().into(),
            lines: LINE.repeat(size / LINE.len() + 1).into(),
        }
    }

    /// Returns the random number with which the tokens of this run begin.
    pub(crate) fn run(&self) -> u32 {
        self.run
    }

    /// Appends message `index` to `out`, header and body, without the final dot.
    pub(crate) fn write(&self, index: u64, out: &mut Vec<u8>) {
        let mut header = String::with_capacity(512);
        let Self { sender, recipient, run, date, .. } = self;
        let _ = write!(
            header,
            "X-Token: {}\r\nFrom: <{sender}>\r\nTo: <{recipient}>\r\nDate: {date}\r\n\
             Message-ID: <{index}.{run:08x}@load.test>\r\nSubject: load {index}\r\n\r\n",
            token(*run, index)
        );
        // The sink does not find the token in the first field.
        let header = format!("MIME-Version: 1.0\r\n{header}");
        let body_len = self.size.saturating_sub(header.len()).max(2);
        out.extend_from_slice(header.as_bytes());
        out.extend_from_slice(&self.lines[..body_len.min(self.lines.len()) - 2]);
        out.extend_from_slice(b"\r\n");
        fix_last_line(out);
    }
}

/// Cutting the body may have left a CR before the last CRLF.
fn fix_last_line(out: &mut [u8]) {
    let cr = out.len().wrapping_sub(3);
    if let Some(byte) = out.get_mut(cr).filter(|byte| **byte == b'\r') {
        *byte = b'.';
    }
}

fn token(run: u32, index: u64) -> String {
    format!("{run:08x}-{index}")
}

/// Returns the index of the message with this token, if it belongs to this run.
pub(crate) fn index_of(token: &str, run: u32) -> Option<u64> {
    let (of, index) = token.split_once('-')?;
    (u32::from_str_radix(of, 16) == Ok(run)).then(|| index.parse().ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_has_its_size_its_token_and_whole_lines() {
        for size in (400..700).chain([8192]) {
            let maker = MessageMaker::new("a@b.test", "c@d.test", size);
            let mut content = Vec::new();
            maker.write(7, &mut content);
            assert_eq!(content.len(), size);
            let text = String::from_utf8(content).unwrap();
            assert!(!text.replace("\r\n", "").contains(['\r', '\n']), "{size}");
            let token = text.lines().find_map(|line| line.strip_prefix("X-Token: ")).unwrap();
            assert_eq!(index_of(token, maker.run()), Some(7));
            assert_eq!(index_of(token, maker.run() ^ 1), None);
        }
    }
}
