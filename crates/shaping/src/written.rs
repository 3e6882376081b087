//! A reply as people write it down: one line, with `\n` where the reply had a line end.

use std::fmt;

use postroad_core::{EnhancedCode, Reply};

/// Why a line is no reply.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WrittenReplyError {
    /// What was found instead of a code.
    found: String,
}

impl fmt::Display for WrittenReplyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "`{}`: expected a reply code from 200 to 599 and a text, such as `550 5.1.1 user unknown`",
            self.found
        )
    }
}

impl std::error::Error for WrittenReplyError {}

/// Reads `550 5.1.1 no such user`; later lines may carry the codes again, as they do on the wire and in logs.
///
/// # Errors
/// Says what stands where a reply code was expected.
pub fn read_reply(line: &str) -> Result<Reply, WrittenReplyError> {
    let written = line.trim().replace("\\n", "\n");
    let mut lines = written.split('\n').map(str::trim);
    let first = lines.next().unwrap_or_default();
    let (code, rest) = split_code(first).ok_or_else(|| WrittenReplyError { found: found_in(first) })?;
    let class = (code / 100) as u8;
    let enhanced = EnhancedCode::parse_prefix(rest).filter(|(enhanced, _length)| enhanced.class == class);
    let mut text = without_prefix(rest, enhanced).to_owned();
    for line in lines {
        let line =
            split_code(line).filter(|(again, _rest)| *again == code).map_or(line, |(_code, rest)| rest);
        text.push('\n');
        text.push_str(without_prefix(
            line,
            EnhancedCode::parse_prefix(line).filter(|found| Some(*found) == enhanced),
        ));
    }
    Ok(Reply { code, enhanced: enhanced.map(|(enhanced, _length)| enhanced), text: text.into() })
}

/// A code of three digits and what follows the blank or hyphen behind it.
fn split_code(line: &str) -> Option<(u16, &str)> {
    let digits = line.get(..3).filter(|digits| digits.bytes().all(|b| b.is_ascii_digit()))?;
    let rest = &line[3..];
    let stands_alone = rest.is_empty() || rest.starts_with([' ', '-']);
    let code = digits.parse().ok().filter(|code| (200..600).contains(code) && stands_alone)?;
    Some((code, rest.get(1..).unwrap_or_default().trim_start()))
}

fn without_prefix(text: &str, enhanced: Option<(EnhancedCode, usize)>) -> &str {
    enhanced.map_or(text, |(_code, length)| text[length..].trim_start())
}

/// The first word, cut to what fits into an error.
fn found_in(line: &str) -> String {
    line.split_whitespace().next().unwrap_or_default().chars().take(40).collect()
}

#[cfg(test)]
mod tests {
    use postroad_core::reply::enhanced;

    use super::*;

    #[test]
    fn a_written_reply_is_the_reply_that_was_sent() {
        let check = |line: &str, code, enhanced, text: &str| {
            let expected = Reply { code, enhanced, text: text.to_owned().into() };
            assert_eq!(read_reply(line), Ok(expected), "{line:?}");
        };
        check("550 5.1.1 no such user", 550, Some(enhanced(5, 1, 1)), "no such user");
        check("550", 550, None, "");
        check("591 blocked", 591, None, "blocked");
        check("421 5.7.1 blocked", 421, None, "5.7.1 blocked");
        check(r"550-5.7.1 one\n550 5.7.1 two", 550, Some(enhanced(5, 7, 1)), "one\ntwo");
        check(r"550 5.7.1 one\ntwo", 550, Some(enhanced(5, 7, 1)), "one\ntwo");
        check(r"550 one\n551 two", 550, None, "one\n551 two");
        for line in ["", "hello", "55 x", "5500 x", "199 x", "600 x", "٣٣٣ x"] {
            assert!(read_reply(line).is_err(), "{line:?}");
        }
    }
}
