//! What every listener with pages does: it answers to its own names only, and an unknown path is a page too.

use axum::{
    Router,
    extract::{Request, State},
    http::{StatusCode, Uri, header::CONTENT_TYPE},
    middleware::{self, Next},
    response::{IntoResponse, Response},
};
use maud::html;

use crate::{HostList, Nav, error_page, page, security_headers};

/// Paths of APIs, whose errors are problems of RFC 9457.
const APIS: &[&str] = &["/api/", "/sandbox/v1/"];

/// Returns pages as one listener serves them: only for the names of `hosts`, and with a page for unknown paths.
pub fn site(pages: Router, nav: Nav, hosts: HostList) -> Router {
    let unknown = move |uri: Uri| async move { unknown_path(nav, &uri) };
    pages.fallback(unknown).layer(middleware::from_fn_with_state((nav, hosts), require_own_name))
}

async fn require_own_name(
    State((nav, hosts)): State<(Nav, HostList)>,
    request: Request,
    next: Next,
) -> Response {
    let Some(host) = hosts.refused(request.uri(), request.headers()) else { return next.run(request).await };
    let why = format!(
        "This node does not answer to the name `{host}`. Use its IP address, or add the name to the setting \
         `http.hosts` of this node (`--http-host` of `postroad dev`)."
    );
    error_page(nav, StatusCode::MISDIRECTED_REQUEST, &why)
}

fn unknown_path(nav: Nav, uri: &Uri) -> Response {
    let status = StatusCode::NOT_FOUND;
    if APIS.iter().any(|api| uri.path().starts_with(api)) {
        let problem =
            r#"{"type":"about:blank","title":"Not Found","status":404,"detail":"no such resource"}"#;
        return (status, security_headers(), [(CONTENT_TYPE, "application/problem+json")], problem)
            .into_response();
    }
    let body = html! {
        h1 { "Not Found" }
        p { "There is no page at " span.mono { (uri.path()) } "." }
        @if let Some((label, path)) = nav.first() { p { a href=(path) { "Go to: " (label) } } }
    };
    let mut response = page(nav, "", "Not Found", &body);
    *response.status_mut() = status;
    response
}
