//! A listener's pages as a whole: names that are refused, and paths that do not exist.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use axum::{
    Router,
    body::{Body, to_bytes},
    http::{Request, StatusCode, header},
    routing::get,
};
use postroad_web::{HostList, Nav, site};
use tower::ServiceExt;

const NAV: Nav = &[("Overview", "/"), ("Messages", "/messages")];

async fn ask(path: &str, host: &str) -> (StatusCode, String, String) {
    let pages = Router::new().route("/", get(|| async { "the overview" }));
    let request = Request::get(path).header(header::HOST, host).body(Body::empty()).unwrap();
    let response = site(pages, NAV, HostList::new(["mail1.example.org"])).oneshot(request).await.unwrap();
    let (parts, body) = response.into_parts();
    let kind = parts.headers[header::CONTENT_TYPE].to_str().unwrap().to_owned();
    let body = to_bytes(body, 1 << 20).await.unwrap();
    (parts.status, kind, String::from_utf8(body.to_vec()).unwrap())
}

#[tokio::test]
async fn a_rebound_name_is_refused_with_a_page_that_names_the_setting() {
    for path in ["/", "/nothing", "/api/v1/messages/x"] {
        let (status, _, body) = ask(path, "rebound.example:8080").await;
        assert_eq!(status, StatusCode::MISDIRECTED_REQUEST, "{path}");
        assert!(body.contains("rebound.example:8080") && body.contains("http.hosts"), "{body}");
        assert!(!body.contains("the overview"));
    }
    for host in ["127.0.0.1:8080", "localhost:8080", "mail1.example.org"] {
        assert_eq!(ask("/", host).await.2, "the overview", "{host}");
    }
    let (_, _, body) = ask("/", "<script>alert(1)</script>").await;
    assert!(!body.contains("<script>"), "{body}");
}

#[tokio::test]
async fn an_unknown_path_is_a_page_that_links_home() {
    let (status, kind, body) = ask("/nothing", "localhost").await;
    assert_eq!((status, &*kind), (StatusCode::NOT_FOUND, "text/html; charset=utf-8"));
    assert!(body.contains("<a href=\"/\">") && body.contains("Not Found"), "{body}");
    let (status, kind, body) = ask("/api/v1/nothing", "localhost").await;
    assert_eq!((status, &*kind), (StatusCode::NOT_FOUND, "application/problem+json"));
    assert!(body.contains("\"status\":404"), "{body}");
}
