//! Sanitises HTML of mail for a sandboxed frame.

use std::{borrow::Cow, collections::HashSet, sync::LazyLock};

use ammonia::{Builder, UrlRelative};

/// HTML after this many bytes is not shown.
pub(crate) const HTML_BYTES_MAX: usize = 2 << 20;
/// Elements inside elements; the parser's tree is dropped by recursion.
const NESTING_MAX: usize = 500;

/// The style properties that mail uses for layout; none of them can load anything.
const STYLE_PROPERTIES: &[&str] = &[
    "background-color",
    "border",
    "border-bottom",
    "border-collapse",
    "border-color",
    "border-left",
    "border-radius",
    "border-right",
    "border-spacing",
    "border-style",
    "border-top",
    "border-width",
    "color",
    "direction",
    "display",
    "font",
    "font-family",
    "font-size",
    "font-style",
    "font-weight",
    "height",
    "letter-spacing",
    "line-height",
    "margin",
    "margin-bottom",
    "margin-left",
    "margin-right",
    "margin-top",
    "max-width",
    "min-width",
    "padding",
    "padding-bottom",
    "padding-left",
    "padding-right",
    "padding-top",
    "text-align",
    "text-decoration",
    "text-transform",
    "vertical-align",
    "white-space",
    "width",
    "word-break",
];

static CLEANER: LazyLock<Builder<'static>> = LazyLock::new(|| {
    let mut builder = Builder::default();
    let table: &[&str] = &["align", "valign", "bgcolor", "width", "height"];
    for tag in ["table", "tbody", "thead", "tfoot", "tr", "td", "th"] {
        builder.add_tag_attributes(tag, table);
    }
    builder
        .add_tags(&["font"])
        .add_tag_attributes("font", &["color", "size", "face"])
        .add_tag_attributes("table", &["border", "cellpadding", "cellspacing"])
        .add_clean_content_tags(&["title", "head"])
        .add_generic_attributes(&["style", "dir"])
        .filter_style_properties(STYLE_PROPERTIES.iter().copied().collect())
        .url_schemes(HashSet::from(["http", "https", "mailto", "data"]))
        .url_relative(UrlRelative::Deny)
        .link_rel(Some("noopener noreferrer"))
        .set_tag_attribute_value("a", "target", "_blank")
        .attribute_filter(keep_attribute);
    builder
});

/// Keeps the source of an image only where the image is inside the message; its `alt` text stays.
fn keep_attribute<'a>(element: &str, attribute: &str, value: &'a str) -> Option<Cow<'a, str>> {
    const IMAGES: [&str; 4] = ["data:image/png", "data:image/gif", "data:image/jpeg", "data:image/webp"];
    match (element, attribute) {
        ("img", "src") => IMAGES.iter().any(|kind| value.starts_with(kind)).then(|| value.into()),
        (_, "cite") => None,
        (_, "href") if value.trim_start().to_ascii_lowercase().starts_with("data:") => None,
        _ => Some(value.into()),
    }
}

/// Returns the HTML without scripts, forms, frames, style sheets and everything that would be loaded from other hosts.
///
/// Links stay and open a new window without opener and referrer. At most 2 MiB are read; HTML that nests too deeply is
/// returned as text.
#[must_use]
pub fn sanitise_html(html: &str) -> String {
    let html = &html[..html.floor_char_boundary(HTML_BYTES_MAX)];
    if nesting_of(html) > NESTING_MAX {
        return format!("<pre>{}</pre>", ammonia::clean_text(html));
    }
    CLEANER.clean(html).to_string()
}

/// An upper bound on how deep elements are nested: tags opened and not closed, at the deepest point.
fn nesting_of(html: &str) -> usize {
    let bytes = html.as_bytes();
    let (mut open, mut deepest) = (0_usize, 0);
    for open_tag in memchr::memchr_iter(b'<', bytes) {
        match bytes.get(open_tag + 1) {
            Some(b'/') => open = open.saturating_sub(1),
            Some(letter) if letter.is_ascii_alphabetic() && !is_void(&bytes[open_tag + 1..]) => open += 1,
            _ => {}
        }
        deepest = deepest.max(open);
    }
    deepest
}

/// Elements that mail is full of and that hold nothing.
fn is_void(tag: &[u8]) -> bool {
    const VOID: [&[u8]; 8] = [b"br", b"img", b"hr", b"meta", b"link", b"col", b"wbr", b"input"];
    let name = tag.iter().position(|byte| !byte.is_ascii_alphanumeric()).map_or(tag, |end| &tag[..end]);
    VOID.iter().any(|void| name.eq_ignore_ascii_case(void))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(html: &str, expected: &str) {
        assert_eq!(sanitise_html(html), expected, "{html}");
    }

    /// The attributes of a link come in any order.
    fn check_link(html: &str, href: Option<&str>) {
        let clean = sanitise_html(html);
        for attribute in ["rel=\"noopener noreferrer\"", "target=\"_blank\""] {
            assert!(clean.contains(attribute), "{clean}");
        }
        let found = clean.split_once("href=\"").and_then(|(_, rest)| rest.split_once('"'));
        assert_eq!(found.map(|(href, _)| href), href, "{html}");
    }

    #[test]
    fn scripts_and_forms_are_removed() {
        check("<p onclick=alert(1)>a<script>alert(1)</script>b</p>", "<p>ab</p>");
        check("<svg onload=alert(1)><a xlink:href='javascript:alert(1)'>x</a></svg>t", "t");
        check_link("<a href='javascript:alert(1)'>x</a>", None);
        check_link("<a href=' DATA:text/html,x'>x</a>", None);
        check("<iframe src='https://x.example'></iframe><form action=/x><button>b</button></form>", "b");
        check(
            "<base href='https://x.example/'><meta http-equiv=refresh content='0;url=https://x.example'>t",
            "t",
        );
    }

    #[test]
    fn nothing_is_loaded_from_other_hosts() {
        check("<img src='https://x.example/pixel' alt='logo'>", "<img alt=\"logo\">");
        check("<img src='cid:part1' alt='logo'>", "<img alt=\"logo\">");
        check("<img src='/pixel' srcset='https://x.example/2x 2x'>", "<img>");
        check("<img src='data:image/png;base64,AA=='>", "<img src=\"data:image/png;base64,AA==\">");
        check("<img src='data:image/svg+xml,<svg/>'>", "<img>");
        check("<td background='https://x.example/a.png'>t</td>", "t");
        check(
            "<link rel=stylesheet href='https://x.example/a.css'><style>@import 'https://x.example'</style>t",
            "t",
        );
        check(
            "<p style=\"background:url(https://x.example);color:red\">t</p>",
            "<p style=\"color:red\">t</p>",
        );
        check("<blockquote cite='https://x.example'>t</blockquote>", "<blockquote>t</blockquote>");
    }

    #[test]
    fn links_open_a_new_window_without_referrer() {
        let href = "https://x.example/confirm?a=1&amp;b=2";
        check_link(&format!("<a href='{href}' target=_top>confirm</a>"), Some(href));
    }

    #[test]
    fn the_layout_of_mail_stays() {
        let html = "<table width=\"600\" cellpadding=\"0\"><tbody><tr><td bgcolor=\"#fff\" style=\"padding:4px\">t</td></tr></tbody></table>";
        let clean = sanitise_html(html);
        for kept in ["width=\"600\"", "cellpadding=\"0\"", "bgcolor=\"#fff\"", "padding:4px", ">t</td>"] {
            assert!(clean.contains(kept), "{kept} is missing in {clean}");
        }
    }

    #[test]
    fn deep_nesting_is_shown_as_text() {
        let clean = sanitise_html(&"<div>".repeat(100_000));
        assert!(clean.starts_with("<pre>") && !clean.contains("<div>"));
        assert!(sanitise_html(&"<div>a</div><br>".repeat(20_000)).contains("<div>a</div>"));
    }
}
