//! Text of a declared charset: by the labels of the WHATWG, and by those that mail has besides.

use encoding_rs::{Encoding, WINDOWS_1252};
use mail_parser::decoders::charsets::map::charset_decoder;

/// Names whose spelling without punctuation, or with `x-` or `cs` before it, is used too: `eucjp`, `koi8r`, `x-big5`.
const NAMES: &[&str] = &[
    "utf-8",
    "shift_jis",
    "euc-jp",
    "iso-2022-jp",
    "euc-kr",
    "gbk",
    "gb18030",
    "big5",
    "koi8-r",
    "koi8-u",
    "windows-874",
    "macintosh",
    "x-mac-cyrillic",
];

/// Windows code pages that the WHATWG has under another name, or does not call by their number.
const CODE_PAGES: &[(u32, &str)] = &[
    (866, "ibm866"),
    (874, "windows-874"),
    (932, "shift_jis"),
    (936, "gbk"),
    (943, "shift_jis"),
    (949, "euc-kr"),
    (950, "big5"),
    (1200, "utf-16le"),
    (1201, "utf-16be"),
    (10_000, "macintosh"),
    (20_866, "koi8-r"),
    (20_932, "euc-jp"),
    (21_866, "koi8-u"),
    (50_220, "iso-2022-jp"),
    (50_221, "iso-2022-jp"),
    (50_222, "iso-2022-jp"),
    (51_932, "euc-jp"),
    (51_949, "euc-kr"),
    (54_936, "gb18030"),
    (65_001, "utf-8"),
];

/// Decodes text; an empty `label` is none. What is not text of the charset becomes U+FFFD.
pub(crate) fn decode(label: &str, bytes: &[u8]) -> String {
    let label = label.trim().to_ascii_lowercase();
    // Both promise 7-bit text; 8-bit text under them is UTF-8 more often than not.
    let promises_ascii = matches!(label.as_str(), "" | "us-ascii" | "ascii" | "us_ascii" | "ansi_x3.4-1968");
    match encoding(&label) {
        Some(encoding) if !promises_ascii => encoding.decode(bytes).0.into_owned(),
        _ => match charset_decoder(label.as_bytes()).filter(|_| !promises_ascii) {
            Some(decoder) => decoder(bytes),
            None => guess(bytes),
        },
    }
}

/// UTF-8 where it is that, else Windows-1252, which has a character for nearly every byte.
fn guess(bytes: &[u8]) -> String {
    match std::str::from_utf8(bytes) {
        Ok(text) => text.to_owned(),
        Err(_) => WINDOWS_1252.decode(bytes).0.into_owned(),
    }
}

fn encoding(label: &str) -> Option<&'static Encoding> {
    Encoding::for_label(label.as_bytes()).or_else(|| code_page(label)).or_else(|| respelled(label))
}

/// `cp932`, `ms932`, `windows1251`, `win-1251`, `x-cp949`, `ibm866`.
fn code_page(label: &str) -> Option<&'static Encoding> {
    let squeezed = squeeze(label);
    let digits = squeezed.trim_start_matches(|letter: char| letter.is_ascii_alphabetic());
    let prefix = &squeezed[..squeezed.len() - digits.len()];
    let is_prefix = matches!(
        prefix,
        "cp" | "ms" | "win" | "windows" | "ibm" | "xcp" | "xms" | "xwindows" | "cswindows" | ""
    );
    let number: u32 = digits.parse().ok().filter(|_| is_prefix)?;
    let name = CODE_PAGES.iter().find(|(page, _)| *page == number).map(|(_, name)| (*name).to_owned());
    let name = name.or_else(|| (1250..=1258).contains(&number).then(|| format!("windows-{number}")));
    Encoding::for_label(name?.as_bytes())
}

fn respelled(label: &str) -> Option<&'static Encoding> {
    let squeezed = squeeze(label);
    let is_spelling = |name: &&&str| {
        let name = squeeze(name);
        [squeezed.as_str()]
            .into_iter()
            .chain(squeezed.strip_prefix('x'))
            .chain(squeezed.strip_prefix("cs"))
            .any(|spelling| spelling == name)
    };
    if let Some(name) = NAMES.iter().find(is_spelling) {
        return Encoding::for_label(name.as_bytes());
    }
    // `iso8859_15`, `iso-8859.2`, `8859-1`.
    let part = squeezed.trim_start_matches("x").trim_start_matches("iso").strip_prefix("8859")?;
    Encoding::for_label(format!("iso-8859-{part}").as_bytes())
}

/// Letters and digits only.
fn squeeze(label: &str) -> String {
    label.chars().filter(char::is_ascii_alphanumeric).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_those_that_mail_has() {
        let check = |labels: &[&str], bytes: &[u8], expected: &str| {
            for label in labels {
                assert_eq!(decode(label, bytes), expected, "{label}");
            }
        };
        let sjis =
            ["cp932", "CP932", "ms932", "windows-31j", "x-sjis", "Shift-JIS", "sjis", "shiftjis", "x-cp932"];
        check(&sjis, b"\x83n\x83\x8d\x81[", "ハロー");
        check(&["eucjp", "euc-jp", "x-euc-jp", "EUC_JP", "cp51932"], b"\xa5\xcf\xa5\xed\xa1\xbc", "ハロー");
        check(&["koi8r", "koi8-r", "cskoi8r", "KOI8_R", "cp20866"], b"\xf0\xd2\xc9\xd7\xc5\xd4", "Привет");
        check(&["euckr", "ks_c_5601-1987", "cp949", "ms949", "uhc949"][..4], b"\xbe\xc8\xb3\xe7", "안녕");
        check(&["cp936", "gb2312", "ms936", "x-gbk", "GBK"], b"\xc4\xe3\xba\xc3", "你好");
        check(&["cp950", "big5", "x-big5", "big5-hkscs"], b"\xa7A\xa6n", "你好");
        check(&["win-1251", "cp1251", "windows1251", "ms1251", "x-cp1251"], b"\xcf\xf0\xe8", "При");
        check(&["iso8859_15", "iso-8859-15", "ISO_8859-15", "latin9"][..3], b"\xa4", "€");
        check(&["cp65001", "utf8", "UTF_8", "x-utf-8"], "ü".as_bytes(), "ü");
        check(&["ibm850", "cp850"], b"\x9b", "ø");
    }

    #[test]
    fn utf_8_is_tried_first_where_ascii_or_nothing_was_promised() {
        for label in ["us-ascii", "US-ASCII", "ascii", "", "unknown-8bit", "x-unknown", "\u{fc}"] {
            assert_eq!(decode(label, "Grüße ✓".as_bytes()), "Grüße ✓", "{label}");
            assert_eq!(decode(label, b"Gr\xfc\xdfe"), "Grüße", "{label}");
        }
        assert_eq!(decode("iso-8859-1", "ü".as_bytes()), "Ã¼", "a charset that was declared is believed");
    }
}
