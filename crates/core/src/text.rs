//! Text of others, where people read it.

/// Returns true for a character that shows as itself: no control character, none that changes the direction of the text
/// around it, and none that nobody sees.
#[must_use]
pub fn is_printable(c: char) -> bool {
    // Soft hyphen, direction marks, ends of lines and paragraphs, joiners, and tags.
    let is_hidden = matches!(
        c,
        '\u{ad}'
            | '\u{61c}'
            | '\u{180e}'
            | '\u{200b}'..='\u{200f}'
            | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}'
            | '\u{feff}'
            | '\u{e0000}'..='\u{e007f}'
    );
    !c.is_control() && !is_hidden
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_seen_or_turns_the_text_is_not_printable() {
        assert!("Zoë, 北京, a-b_c … ⟨x⟩ 🙂".chars().all(is_printable));
        let hidden = ['\0', '\n', '\x1b', '\u{7f}', '\u{9b}', '\u{ad}', '\u{61c}', '\u{200b}', '\u{200f}'];
        let others = ['\u{2028}', '\u{202e}', '\u{2066}', '\u{2069}', '\u{feff}', '\u{e0041}'];
        assert!(!hidden.into_iter().chain(others).any(is_printable));
    }
}
