//! Text of others, where people read it.

/// Returns true for a character that shows as itself: no control character, none that changes the direction of the text
/// around it, and none that nobody sees.
#[must_use]
pub fn is_printable(c: char) -> bool {
    let is_hidden = matches!(
        c,
        '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{2069}' | '\u{feff}'
    );
    !c.is_control() && !is_hidden
}
