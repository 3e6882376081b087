//! The frame, style and security headers of HTML pages: no scripts, nothing loaded from other hosts.
//! A listener serves its pages as a [`site`]: to its own names only.
//!
//! The content of a page belongs to its role.

mod hosts;
mod site;

pub use hosts::HostList;
pub use site::site;

use axum::{
    http::{
        HeaderMap, HeaderName, HeaderValue, StatusCode,
        header::{
            CACHE_CONTROL, CONTENT_SECURITY_POLICY, HOST, ORIGIN, REFERRER_POLICY, X_CONTENT_TYPE_OPTIONS,
        },
    },
    response::{Html, IntoResponse, Response},
};
use maud::{DOCTYPE, Markup, PreEscaped, html};
use postroad_core::Timestamp;

/// The links at the top of every page: label and path.
pub type Nav = &'static [(&'static str, &'static str)];

const STYLE: &str = include_str!("style.css");

/// Allows inline styles, and images inside a mail that is shown. Nothing else is loaded, and no script runs.
const SECURITY_POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; \
    form-action 'self'; base-uri 'none'; frame-ancestors 'none'";

/// Returns a page in the common frame; `current` is the path of the link to highlight.
#[must_use]
pub fn page(nav: Nav, current: &str, title: &str, body: &Markup) -> Response {
    frame(nav, current, title, body, None)
}

/// Returns a page that reloads itself.
#[must_use]
pub fn refreshing_page(nav: Nav, current: &str, title: &str, body: &Markup, seconds: u32) -> Response {
    frame(nav, current, title, body, Some(seconds))
}

fn frame(nav: Nav, current: &str, title: &str, body: &Markup, refresh: Option<u32>) -> Response {
    let markup = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                @if let Some(seconds) = refresh { meta http-equiv="refresh" content=(seconds); }
                title { (title) " · Postroad" }
                style { (PreEscaped(STYLE)) }
            }
            body {
                header { div {
                    b { "Postroad" }
                    nav {
                        @for (label, path) in nav {
                            a href=(path) aria-current=[(*path == current).then_some("page")] { (label) }
                        }
                    }
                } }
                main { (body) }
            }
        }
    };
    (security_headers(), Html(markup.into_string())).into_response()
}

/// Returns an error page.
#[must_use]
pub fn error_page(nav: Nav, status: StatusCode, why: &str) -> Response {
    let title = status.canonical_reason().unwrap_or("Error");
    let body = html! {
        h1 { (title) }
        p { (why) }
    };
    let mut response = page(nav, "", title, &body);
    *response.status_mut() = status;
    response
}

/// Returns the headers that every response carries.
#[must_use]
pub fn security_headers() -> [(HeaderName, HeaderValue); 4] {
    [
        (CONTENT_SECURITY_POLICY, HeaderValue::from_static(SECURITY_POLICY)),
        (X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
        (REFERRER_POLICY, HeaderValue::from_static("same-origin")),
        (CACHE_CONTROL, HeaderValue::from_static("no-store")),
    ]
}

/// Returns true when a form was sent by one of our pages: protection against CSRF.
///
/// Browsers send `Sec-Fetch-Site` or `Origin`; a request with neither does not come from a browser's form.
#[must_use]
pub fn is_same_origin(headers: &HeaderMap) -> bool {
    let text = |name: HeaderName| headers.get(name).and_then(|value| value.to_str().ok());
    if let Some(site) = text(HeaderName::from_static("sec-fetch-site")) {
        return site == "same-origin";
    }
    match (text(ORIGIN), text(HOST)) {
        (None, _) => true,
        (Some(origin), Some(host)) => {
            origin.split_once("://").is_some_and(|(_, from)| from.eq_ignore_ascii_case(host))
        }
        (Some(_), None) => false,
    }
}

/// Returns a time as UTC, to the second.
#[must_use]
pub fn time(at: Timestamp) -> Markup {
    let text = at.to_string();
    let short = text.get(..19).unwrap_or(&text).replace('T', " ");
    html! { time datetime=(text) title=(text) { (short) } }
}

/// Returns a number of bytes in a readable unit.
#[must_use]
pub fn size(bytes: u64) -> String {
    match bytes {
        0..1024 => format!("{bytes} B"),
        1024..1_048_576 => format!("{:.1} KiB", bytes as f64 / 1024.0),
        _ => format!("{:.1} MiB", bytes as f64 / 1_048_576.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forms_of_other_origins_are_recognised() {
        let check = |headers: &[(&'static str, &'static str)], expected| {
            let headers: HeaderMap = headers
                .iter()
                .map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)))
                .collect();
            assert_eq!(is_same_origin(&headers), expected, "{headers:?}");
        };
        check(&[("sec-fetch-site", "same-origin")], true);
        check(&[("sec-fetch-site", "cross-site")], false);
        check(&[("sec-fetch-site", "same-site")], false);
        check(&[("origin", "http://localhost:8025"), ("host", "localhost:8025")], true);
        check(&[("origin", "http://evil.example"), ("host", "localhost:8025")], false);
        check(&[("origin", "null"), ("host", "localhost:8025")], false);
        check(&[("origin", "http://localhost:8025")], false);
        check(&[("host", "localhost:8025")], true);
    }

    #[test]
    fn sizes_have_a_readable_unit() {
        for (bytes, expected) in [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (3 << 20, "3.0 MiB")] {
            assert_eq!(size(bytes), expected);
        }
    }
}
