//! A reply's text as the rules' words are compared with it, and the enhanced code where it is not in front.
//!
//! Receivers wrap, shout, abbreviate and decorate: one form of each word keeps the rules short.

use postroad_core::reply::EnhancedCode;

/// Stands for any address of somebody, so that words in addresses do not count.
const ADDRESS: char = '@';
/// Stands for any IP address.
const IP: &str = "%ip";

/// Returns `text` in the one form that rules are written for:
/// lines joined, lower case, accents dropped, `-` and `_` as blanks, single blanks, `can't` as `can not`,
/// an address as `@`, an IPv4 or IPv6 address as `%ip`; links keep their signs, and an IP address in one is dropped.
pub(crate) fn normalise(text: &str) -> String {
    let folded = fold(text);
    let (host, said) = without_lead_in(&folded);
    let mut out = String::with_capacity(folded.len());
    for word in words(host).chain(words(said)) {
        push_blank(&mut out);
        push_word(&mut out, word);
    }
    out.truncate(out.trim_end_matches(' ').len());
    out
}

/// How a receiver begins that passes on what the next one said.
const LEAD_INS: [&str; 4] = [
    "remote server returned an error ->",
    "remote server returned",
    "remote system says:",
    "remote host said:",
];

/// Divides a text at such a lead-in, which is dropped; `("", text)` where the receiver speaks for itself.
///
/// A reply follows with its code, and nothing but a host's name is in front: more words say what the receiver did there,
/// such as a check of the sender, and what a timeout was of.
fn without_lead_in(folded: &str) -> (&str, &str) {
    let divided = LEAD_INS.iter().find_map(|lead_in| folded.split_once(lead_in));
    let is_passed_on = |(host, said): &(&str, &str)| words(host).count() <= 1 && begins_with_code(said);
    divided.filter(is_passed_on).unwrap_or(("", folded))
}

/// Returns true for `550 5.1.1 no` and `: 421-no`.
fn begins_with_code(said: &str) -> bool {
    let said = said.trim_start_matches(|c: char| !c.is_alphanumeric());
    let code = &said[..said.find(|c: char| !c.is_alphanumeric()).unwrap_or(said.len())];
    matches!(code.as_bytes(), [b'4' | b'5', tens, ones] if tens.is_ascii_digit() && ones.is_ascii_digit())
}

fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split([' ', '\n', '\t', '\r']).filter(|word| !word.is_empty())
}

/// One blank between words, whatever stood there.
fn push_blank(out: &mut String) {
    if !out.is_empty() && !out.ends_with(' ') {
        out.push(' ');
    }
}

/// Lower case without accents and typographic quotes.
fn fold(text: &str) -> String {
    if text.is_ascii() {
        return text.to_ascii_lowercase();
    }
    let mut out = String::with_capacity(text.len());
    for c in text.chars().flat_map(char::to_lowercase) {
        match c {
            'à' | 'á' | 'â' | 'ã' | 'ä' | 'å' | 'ą' | 'ă' => out.push('a'),
            'ç' | 'ć' | 'č' => out.push('c'),
            'ď' | 'đ' => out.push('d'),
            'è' | 'é' | 'ê' | 'ë' | 'ę' | 'ě' => out.push('e'),
            'ğ' => out.push('g'),
            'ì' | 'í' | 'î' | 'ï' | 'ı' => out.push('i'),
            'ł' => out.push('l'),
            'ñ' | 'ń' | 'ň' => out.push('n'),
            'ò' | 'ó' | 'ô' | 'õ' | 'ö' | 'ø' | 'ő' => out.push('o'),
            'ř' => out.push('r'),
            'ś' | 'š' | 'ş' | 'ș' => out.push('s'),
            'ť' | 'ț' => out.push('t'),
            'ù' | 'ú' | 'û' | 'ü' | 'ů' | 'ű' => out.push('u'),
            'ý' => out.push('y'),
            'ź' | 'ż' | 'ž' => out.push('z'),
            'ß' => out.push_str("ss"),
            '\u{2018}' | '\u{2019}' => out.push('\''),
            '\u{a0}' | '\u{3000}' => out.push(' '),
            '\u{300}'..='\u{36f}' => {}
            _ => out.push(c),
        }
    }
    out
}

/// Appends one word, with the addresses in it replaced.
fn push_word(out: &mut String, word: &str) {
    let in_link = is_link(word);
    let mut rest = word;
    while !rest.is_empty() {
        let end = rest.find(|c: char| !is_atom(c)).unwrap_or(rest.len());
        let (atom, after) = rest.split_at(end);
        push_atom(out, atom, in_link);
        let separator = after.chars().next().map_or(0, char::len_utf8);
        out.push_str(&after[..separator]);
        rest = &after[separator..];
    }
}

/// A link says where to read more; its parts are no words of the reply.
fn is_link(word: &str) -> bool {
    word.contains("://")
        || word.split_once('/').is_some_and(|(host, _path)| host.contains('.') && !host.contains('%'))
}

/// What addresses, host names and words are made of; anything else separates them.
fn is_atom(c: char) -> bool {
    c.is_alphanumeric() || matches!(c, '.' | '@' | '-' | '_' | '+' | ':' | '\'' | '%' | '~' | '!')
}

fn push_atom(out: &mut String, atom: &str, in_link: bool) {
    let bare = atom.trim_end_matches(['.', ':', '\'', '!']);
    let tail = &atom[bare.len()..];
    if bare.find('@').is_some_and(|at| at > 0 && at + 1 < bare.len()) {
        out.push(ADDRESS);
    } else if is_ip(bare) {
        out.push_str(if in_link { "" } else { IP });
    } else if let Some(name) = name_before_ip(bare) {
        out.push_str(name);
        out.push_str(if in_link { "" } else { IP });
    } else if in_link {
        out.push_str(bare);
    } else {
        push_plain(out, bare);
    }
    out.push_str(tail);
}

/// Returns `ip:` of `ip:192.0.2.1`.
fn name_before_ip(atom: &str) -> Option<&str> {
    let (name, after) = atom.split_at(atom.find(':')? + 1);
    is_ip(after).then_some(name)
}

fn is_ip(atom: &str) -> bool {
    let bytes = atom.as_bytes();
    let perhaps = bytes.first().is_some_and(|b| b.is_ascii_hexdigit() || *b == b':')
        && bytes.iter().all(|b| b.is_ascii_hexdigit() || matches!(b, b'.' | b':'));
    if !perhaps {
        return false;
    }
    let host = atom.rsplit_once(':').map_or(atom, |(host, _port)| host);
    host.parse::<std::net::Ipv4Addr>().is_ok() || atom.parse::<std::net::IpAddr>().is_ok()
}

fn push_plain(out: &mut String, atom: &str) {
    match atom {
        "e-mail" => out.push_str("email"),
        "e-mails" => out.push_str("emails"),
        "cannot" | "can't" => out.push_str("can not"),
        "won't" => out.push_str("will not"),
        _ => {
            let (stem, negated) = match atom.strip_suffix("n't") {
                Some(stem) if !stem.is_empty() => (stem, true),
                _ => (atom, false),
            };
            for c in stem.chars() {
                if matches!(c, '-' | '_') { push_blank(out) } else { out.push(c) }
            }
            if negated {
                out.push_str(" not");
            }
        }
    }
}

/// Finds an enhanced code that is not in front of the text but in it: `(#5.7.1)`, `#5.1.0`, `550 x: 5.7.515 y`.
///
/// Its class must be that of the reply, and it must stand alone, so that versions and addresses are not taken for one.
pub(crate) fn enhanced_in(text: &str, reply_class: u8) -> Option<EnhancedCode> {
    let bytes = text.as_bytes();
    let is_part = |at: Option<&u8>| at.is_some_and(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-'));
    let mut at = 0;
    while let Some(found) = bytes[at..].iter().position(|b| *b == b'0' + reply_class) {
        let start = at + found;
        at = start + 1;
        if start > 0 && is_part(bytes.get(start - 1)) {
            continue;
        }
        let digits_and_dots = bytes[start..]
            .iter()
            .position(|b| !b.is_ascii_digit() && *b != b'.')
            .unwrap_or(bytes.len() - start);
        let candidate = text[start..start + digits_and_dots].trim_end_matches('.');
        if is_part(bytes.get(start + digits_and_dots)) {
            continue;
        }
        if let Some((code, _length)) = EnhancedCode::parse_prefix(candidate)
            && code.subject <= 7
        {
            return Some(code);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use postroad_core::reply::enhanced;

    use super::*;

    #[test]
    fn a_text_has_one_form() {
        let check = |text: &str, expected: &str| assert_eq!(normalise(text), expected, "{text:?}");
        check("User  Unknown\nhere", "user unknown here");
        check("<spam.user+x@virus.example>: No", "<@>: no");
        check("id=a@b.example;ip=192.0.2.1", "id=@;ip=%ip");
        check("[192.0.2.1]:25 and 2001:db8::1.", "[%ip]:25 and %ip.");
        check("192.0.2.1:25 is bad", "%ip is bad");
        check("IP:192.0.2.1 from:2001:db8::1", "ip:%ip from:%ip");
        check("version 4.16.50, 1.2.3.4.5", "version 4.16.50, 1.2.3.4.5");
        check("can't cannot won't doesn’t", "can not can not will not does not");
        check("E-Mail MAILBOX_FULL non-existent", "email mailbox full non existent");
        check("Boîte pleine, Postfach ungültig", "boite pleine, postfach ungultig");
        check("Почтовый ЯЩИК", "почтовый ящик");
        check("Böyle bir kullanıcı; Příjemce, Știri, Őr", "boyle bir kullanici; prijemce, stiri, or");
        check("Remote server returned an error -> 550 no such user", "550 no such user");
        check("mx1: Remote host said: 552 full", "mx1: 552 full");
        check("Remote system says:\n421-Busy", "421 busy");
        check("the remote server returned", "the remote server returned");
        check("remote server returned timeout", "remote server returned timeout");
        check("remote server returned 5500 errors", "remote server returned 5500 errors");
        check("Sender refused; remote host said: 550 no", "sender refused; remote host said: 550 no");
        check("@ alone a@ @b", "@ alone a@ @b");
        check("user@example.net... No", "@... no");
        check(
            "see https://a.example/help_spam-1?ip=192.0.2.1 now",
            "see https://a.example/help_spam-1?ip= now",
        );
        check("", "");
    }

    #[test]
    fn enhanced_codes_are_found_where_receivers_put_them() {
        let check = |text: &str, expected| assert_eq!(enhanced_in(text, 5), expected, "{text:?}");
        check("#5.1.0 Address rejected", Some(enhanced(5, 1, 0)));
        check("sorry, no mailbox here by that name. (#5.1.1)", Some(enhanced(5, 1, 1)));
        check("not accepted: 5.7.1 This system", Some(enhanced(5, 7, 1)));
        check("Access denied 5.7.515", Some(enhanced(5, 7, 515)));
        check("it is 5.7.1.", Some(enhanced(5, 7, 1)));
        for text in ["4.7.1 temporary", "5.16.50", "5.1.1.1", "x5.1.1", "5.1.1x", "1.5.1.1", "5.1", "", "5"] {
            check(text, None);
        }
    }

    proptest::proptest! {
        #[test]
        fn any_text_has_a_form_without_line_ends(text: String) {
            let form = normalise(&text);
            proptest::prop_assert!(!form.contains('\n'));
            let _ = enhanced_in(&text, 5);
        }
    }
}
