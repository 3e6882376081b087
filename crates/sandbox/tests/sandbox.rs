//! The sandbox over real SMTP on loopback, and its pages and API.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::{
    net::{Ipv4Addr, SocketAddr},
    time::Duration,
};

use axum::{
    Router,
    body::{Body, to_bytes},
    http::{HeaderMap, Request, StatusCode, header},
};
use postroad_sandbox::{Nav, Sandbox, SandboxConfig, SandboxDeps};
use postroad_telemetry::Health;
use serde_json::Value;
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    net::TcpStream,
    task::JoinHandle,
};
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

const NAV: Nav = &[("Overview", "/"), ("Messages", "/messages"), ("Sandbox", "/sandbox")];
const ID: &str = "01M85FM9W0000G000000000007";

struct Running {
    address: SocketAddr,
    router: Router,
    shutdown: CancellationToken,
    running: JoinHandle<()>,
}

impl Running {
    async fn start(config: SandboxConfig) -> Self {
        let health = Health::new();
        let config = SandboxConfig { listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)), ..config };
        let sandbox =
            Sandbox::start(config, SandboxDeps { health, nav: NAV, directory: None }).await.unwrap();
        let (address, router) = (sandbox.local_addr(), sandbox.router());
        let shutdown = CancellationToken::new();
        let running = tokio::spawn(sandbox.run(shutdown.clone()));
        Self { address, router, shutdown, running }
    }

    async fn stop(self) {
        self.shutdown.cancel();
        tokio::time::timeout(Duration::from_secs(20), self.running).await.unwrap().unwrap();
    }

    async fn send(&self, request: Request<Body>) -> (StatusCode, HeaderMap, String) {
        let (parts, body) = self.router.clone().oneshot(request).await.unwrap().into_parts();
        let body = to_bytes(body, 50 << 20).await.unwrap();
        (parts.status, parts.headers, String::from_utf8(body.to_vec()).unwrap())
    }

    async fn get(&self, path: &str) -> (StatusCode, HeaderMap, String) {
        self.send(Request::get(path).body(Body::empty()).unwrap()).await
    }

    async fn page(&self, path: &str) -> String {
        let (status, _, body) = self.get(path).await;
        assert_eq!(status, StatusCode::OK, "{path}: {body}");
        body
    }

    async fn json(&self, path: &str) -> Value {
        serde_json::from_str(&self.page(path).await).unwrap()
    }
}

/// Delivers messages over one connection, as an outbound node does.
async fn deliver(to: SocketAddr, messages: &[(&str, &[&str], &str)]) {
    let mut stream = BufReader::new(TcpStream::connect(to).await.unwrap());
    expect(&mut stream, "220").await;
    say(&mut stream, "EHLO out.sender.example", "250").await;
    for (from, recipients, content) in messages {
        say(&mut stream, &format!("MAIL FROM:<{from}>"), "250").await;
        for recipient in *recipients {
            say(&mut stream, &format!("RCPT TO:<{recipient}>"), "250").await;
        }
        say(&mut stream, "DATA", "354").await;
        say(&mut stream, &format!("{content}\r\n."), "250").await;
    }
    say(&mut stream, "QUIT", "221").await;
}

async fn say(stream: &mut BufReader<TcpStream>, line: &str, code: &str) {
    stream.write_all(format!("{line}\r\n").as_bytes()).await.unwrap();
    expect(stream, code).await;
}

async fn expect(stream: &mut BufReader<TcpStream>, code: &str) {
    loop {
        let mut line = String::new();
        stream.read_line(&mut line).await.unwrap();
        assert!(line.starts_with(code), "expected {code}, got {line}");
        if line.as_bytes().get(3) == Some(&b' ') {
            return;
        }
    }
}

fn content(subject: &str, html: &str) -> String {
    format!(
        "Received: from app by mail.example.org with ESMTP\r\n\tid {ID}; Tue, 24 Nov 2026 00:34:56 +0000\r\n\
        From: Shop <shop@sender.example>\r\nTo: a@receiver.example\r\nSubject: {subject}\r\n\
        Content-Type: multipart/alternative; boundary=b\r\n\r\n\
        --b\r\nContent-Type: text/plain\r\n\r\nHello in text\r\n\
        --b\r\nContent-Type: text/html\r\n\r\n{html}\r\n--b--"
    )
}

#[tokio::test]
async fn the_api_shows_what_came_over_smtp() {
    let sandbox = Running::start(SandboxConfig::default()).await;
    let plain = content("=?utf-8?q?Gr=C3=BC=C3=9Fe?=", "<p>Hello</p>");
    deliver(
        sandbox.address,
        &[
            ("bounces@sender.example", &["a@receiver.example", "b@receiver.example"], &plain),
            ("", &["C@other.example"], "Subject: a bounce\r\n\r\nx"),
        ],
    )
    .await;
    let list = sandbox.json("/sandbox/v1/messages").await;
    let [newest, oldest] = [&list["messages"][0], &list["messages"][1]];
    assert_eq!(
        (&newest["id"], &newest["from"], &newest["message_id"]),
        (&2.into(), &"".into(), &Value::Null)
    );
    assert_eq!((&oldest["subject"], &oldest["message_id"]), (&"Grüße".into(), &ID.into()));
    assert_eq!(oldest["to"], serde_json::json!(["a@receiver.example", "b@receiver.example"]));
    for (query, expected) in
        [("to=c@OTHER", 1), ("subject=gr%C3%BC", 1), ("to=b@&subject=bounce", 0), ("limit=1", 1), ("", 2)]
    {
        let list = sandbox.json(&format!("/sandbox/v1/messages?{query}")).await;
        assert_eq!(list["messages"].as_array().unwrap().len(), expected, "{query}");
    }
    let parsed = sandbox.json("/sandbox/v1/messages/1").await;
    assert_eq!((&parsed["text"], &parsed["html"]), (&"Hello in text".into(), &"<p>Hello</p>".into()));
    assert_eq!(parsed["header_from"][0]["name"], "Shop");
    let (status, headers, raw) = sandbox.get("/sandbox/v1/messages/1/raw").await;
    assert_eq!((status, headers[header::CONTENT_TYPE].to_str().unwrap()), (StatusCode::OK, "message/rfc822"));
    assert_eq!(raw, plain + "\r\n");

    let delete = Request::delete("/sandbox/v1/messages").body(Body::empty()).unwrap();
    assert_eq!(sandbox.send(delete).await.0, StatusCode::NO_CONTENT);
    for path in ["/sandbox/v1/messages/1", "/sandbox/v1/messages/x", "/sandbox/v1/messages/1/raw"] {
        let (status, headers, body) = sandbox.get(path).await;
        let problem: Value = serde_json::from_str(&body).unwrap();
        assert_eq!(headers[header::CONTENT_TYPE], "application/problem+json", "{path}");
        assert_eq!((status, &problem["status"]), (StatusCode::NOT_FOUND, &404.into()), "{path}");
    }
    let (status, ..) = sandbox.get("/sandbox/v1/messages?limit=many").await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    sandbox.stop().await;
}

#[tokio::test]
async fn pages_show_hostile_mail_without_running_it() {
    let sandbox = Running::start(SandboxConfig::default()).await;
    let html = "<p onclick='x()'>Hi</p><script>alert(1)</script><img src='https://t.example/p'><a href='https://x.example/c?a=1'>go</a>";
    let hostile = content("\"><script>alert(2)</script>", html);
    deliver(sandbox.address, &[("a@b.example", &["a@receiver.example"], &hostile)]).await;
    deliver(sandbox.address, &[("a@b.example", &["other@receiver.example"], &hostile)]).await;
    for view in ["", "?view=html", "?view=text", "?view=headers", "?view=raw", "?view=nonsense"] {
        let (status, headers, page) = sandbox.get(&format!("/sandbox/1{view}")).await;
        assert_eq!(status, StatusCode::OK, "{view}");
        assert!(!page.contains("<script") && !page.contains("<img"), "{view}: {page}");
        let policy = headers[header::CONTENT_SECURITY_POLICY].to_str().unwrap();
        assert!(policy.starts_with("default-src 'none'"), "{policy}");
    }
    let page = sandbox.page("/sandbox/1").await;
    let frame = page.split_once("<iframe").and_then(|(_, rest)| rest.split_once("</iframe>")).unwrap().0;
    assert!(frame.contains("sandbox=\"allow-popups allow-popups-to-escape-sandbox\""), "{frame}");
    assert!(frame.contains("srcdoc=\"&lt;p&gt;Hi&lt;/p&gt;") && !frame.contains("t.example"), "{frame}");
    assert!(page.contains(&format!("<a class=\"mono\" href=\"/messages/{ID}\">")), "{page}");
    assert!(page.contains("<a href=\"/sandbox/2\">other@receiver.example</a>"), "{page}");
    let list = sandbox.page("/sandbox?subject=%22%3E%3Cscript").await;
    assert!(list.contains("&lt;script&gt;alert(2)") && !list.contains("<script"), "{list}");
    assert!(sandbox.page("/sandbox?to=nobody").await.contains("No message matches"));
    sandbox.stop().await;
}

#[tokio::test]
async fn forms_of_other_sites_cannot_delete() {
    let sandbox = Running::start(SandboxConfig::default()).await;
    deliver(sandbox.address, &[("a@b.example", &["a@receiver.example"], "Subject: s\r\n\r\nx")]).await;
    let clear = |origin: &str| {
        let request = Request::post("/sandbox/clear").header("host", "mail.example").header("origin", origin);
        request.body(Body::empty()).unwrap()
    };
    assert_eq!(sandbox.send(clear("http://evil.example")).await.0, StatusCode::FORBIDDEN);
    assert!(sandbox.page("/sandbox").await.contains("1 captured message"));
    assert_eq!(sandbox.send(clear("http://mail.example")).await.0, StatusCode::SEE_OTHER);
    assert!(sandbox.page("/sandbox").await.contains("No message has been captured yet"));
    assert_eq!(sandbox.get("/sandbox/1").await.0, StatusCode::NOT_FOUND);
    sandbox.stop().await;
}

#[tokio::test]
async fn the_oldest_captures_are_dropped() {
    let sandbox = Running::start(SandboxConfig { messages_max: 3, ..SandboxConfig::default() }).await;
    for number in 0..5 {
        let content = format!("Subject: number {number}\r\n\r\nx");
        deliver(sandbox.address, &[("a@b.example", &["a@receiver.example"], &content)]).await;
    }
    let list = sandbox.json("/sandbox/v1/messages").await;
    let ids: Vec<_> = list["messages"].as_array().unwrap().iter().map(|item| item["id"].clone()).collect();
    assert_eq!((ids, &list["kept"]), (vec![5.into(), 4.into(), 3.into()], &3.into()));
    sandbox.stop().await;
}
