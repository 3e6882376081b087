use std::path::Path;

use rustls::{ClientConfig, HandshakeKind};
use rustls_pki_types::ServerName;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_rustls::client::TlsStream;

use super::*;
use crate::tls::ClientTls;

type RawTls = Raw<TlsStream<TcpStream>>;

fn config() -> ListenerConfig {
    let tls = ServerTls::self_signed(&["localhost".to_owned()]).unwrap();
    ListenerConfig { tls: Some(tls), ..ListenerConfig::default() }
}

fn implicit() -> ListenerConfig {
    ListenerConfig { implicit_tls: true, ..config() }
}

fn name() -> ServerName<'static> {
    ServerName::try_from("localhost").unwrap()
}

async fn handshake(stream: TcpStream, tls: &ClientTls) -> RawTls {
    Raw::new(tls.connector().connect(name(), stream).await.unwrap())
}

impl Server {
    /// Connects and does STARTTLS.
    async fn secured(&self) -> RawTls {
        let mut client = self.greeted().await;
        client.ask("EHLO c.example\r\n", "250-").await;
        client.ask("STARTTLS\r\n", "220 2.0.0").await;
        handshake(client.stream, &ClientTls::opportunistic()).await
    }
}

#[tokio::test]
async fn s_401_commands_pipelined_after_starttls_are_never_executed() {
    let server = Server::start(config()).await;
    let injected = "RSET\r\nMAIL FROM:<evil@b.example>\r\n";
    for start_tls in ["STARTTLS\r\n", "starttls\r\n", "STARTTLS \r\n"] {
        let mut client = server.greeted().await;
        client.ask("EHLO c.example\r\n", "250-").await;
        client.send(format!("{start_tls}{injected}")).await;
        let replies = client.until("never sent").await;
        let refused = replies.starts_with("554 5.5.0") || replies.starts_with("50");
        assert!(refused && !replies.contains("250 2.1.0"), "{start_tls:?} gives {replies:?}");
        assert!(replies.lines().count() == 1 || !replies.contains("220 "), "{start_tls:?} gives {replies:?}");
    }
    server.stop().await;
}

#[tokio::test]
async fn s_401_starttls_ended_by_a_bare_lf_ends_the_session() {
    let server = Server::start(config()).await;
    let mut client = server.greeted().await;
    client.ask("EHLO c.example\r\n", "250-").await;
    client.ask("STARTTLS\nMAIL FROM:<evil@b.example>\r\n", "521 5.5.2").await;
    client.expect_end().await;
    server.stop().await;
}

#[tokio::test]
async fn s_401_plaintext_after_starttls_is_not_executed() {
    let server = Server::start(config()).await;
    let mut client = server.greeted().await;
    client.ask("EHLO c.example\r\n", "250-").await;
    client.ask("STARTTLS\r\n", "220 2.0.0").await;
    client.send("RSET\r\nMAIL FROM:<evil@b.example>\r\n").await;
    let replies = client.until("never sent").await;
    assert!(!replies.contains("250"), "{replies:?}");
    server.stop().await;
}

#[tokio::test]
async fn s_403_starttls_resets_the_session() {
    let server = Server::start(config()).await;
    let mut client = server.greeted().await;
    let before = client.ask("EHLO c.example\r\n", "250-").await;
    assert!(before.contains("STARTTLS"));
    client.ask("MAIL FROM:<a@b.example>\r\n", "250 2.1.0").await;
    client.ask("STARTTLS\r\n", "220 2.0.0").await;
    let mut client = handshake(client.stream, &ClientTls::opportunistic()).await;
    client.ask("RCPT TO:<c@d.example>\r\n", "503 5.5.1").await;
    client.ask("MAIL FROM:<a@b.example>\r\n", "503 5.5.1").await;
    let after = client.ask("EHLO c.example\r\n", "250-").await;
    assert!(!after.contains("STARTTLS"));
    begin_message(&mut client).await;
    client.ask(format!("{CONTENT}.\r\n"), "250 2.0.0").await;
    server.stop().await;
}

#[tokio::test]
async fn s_404_starttls_with_an_argument_twice_or_without_a_certificate_is_refused() {
    let server = Server::start(config()).await;
    let mut client = server.greeted().await;
    client.ask("EHLO c.example\r\nSTARTTLS now\r\n", "250-").await;
    client.expect("501 5.5.4").await;
    let mut client = server.secured().await;
    client.ask("STARTTLS\r\n", "503 5.5.1").await;
    server.stop().await;
    let server = Server::start(ListenerConfig::default()).await;
    let mut client = server.greeted().await;
    client.ask("STARTTLS\r\n", "454 4.7.0").await;
    server.stop().await;
}

#[tokio::test]
async fn s_405_tls_1_1_is_refused() {
    let server = Server::start(implicit()).await;
    let mut hello = vec![0x16, 3, 1, 0, 45, 1, 0, 0, 41, 3, 2];
    hello.extend([7; 32]);
    hello.extend([0, 0, 2, 0xc0, 0x13, 1, 0]);
    let mut client = TcpStream::connect(server.address).await.unwrap();
    client.write_all(&hello).await.unwrap();
    let mut answer = Vec::new();
    time::timeout(PATIENCE, client.read_to_end(&mut answer)).await.unwrap().unwrap();
    // A fatal alert: protocol_version or handshake_failure.
    assert!(matches!(answer[..], [0x15, 3, _, 0, 2, 2, 70 | 40]), "{answer:?}");
    server.stop().await;
}

#[tokio::test]
async fn s_405_and_d_041_a_session_of_one_listener_is_not_resumed_at_another() {
    let shared = ServerTls::self_signed(&["localhost".to_owned()]).unwrap();
    let config =
        || ListenerConfig { tls: Some(shared.clone()), implicit_tls: true, ..ListenerConfig::default() };
    let (first, second) = (Server::start(config()).await, Server::start(config()).await);
    let tls = ClientTls::opportunistic();
    let mut kinds = Vec::new();
    for server in [&first, &first, &second, &second] {
        let mut client = handshake(TcpStream::connect(server.address).await.unwrap(), &tls).await;
        client.expect("220 ").await;
        kinds.push(client.stream.get_ref().1.handshake_kind());
    }
    let [full, resumed] = [Some(HandshakeKind::Full), Some(HandshakeKind::Resumed)];
    assert_eq!(kinds[..2], [full, resumed]);
    assert_ne!(kinds[2], resumed);
    first.stop().await;
    second.stop().await;
}

#[tokio::test]
async fn s_406_a_fragmented_client_hello_is_accepted() {
    let server = Server::start(implicit()).await;
    let tls = ClientTls::opportunistic();
    let mut config = ClientConfig::clone(tls.connector().config());
    config.max_fragment_size = Some(32);
    let stream = TcpStream::connect(server.address).await.unwrap();
    stream.set_nodelay(true).unwrap();
    let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
    let mut client = Raw::new(connector.connect(name(), stream).await.unwrap());
    client.expect("220 ").await;
    begin_message(&mut client).await;
    client.ask(format!("{CONTENT}.\r\n"), "250 2.0.0").await;
    server.stop().await;
}

/// Writes records of one byte, each in a segment of its own, until `hello` is sent or the server closes.
async fn write_records_of_one_byte(client: &mut TcpStream, hello: &[u8]) {
    for byte in hello {
        if client.write_all(&[0x16, 3, 1, 0, 1, *byte]).await.is_err() {
            return;
        }
    }
}

/// The handshake message of a client hello, without its record header.
fn client_hello() -> Vec<u8> {
    let config = ClientConfig::clone(ClientTls::opportunistic().connector().config());
    let mut tls = rustls::ClientConnection::new(Arc::new(config), name()).unwrap();
    let mut records = Vec::new();
    tls.write_tls(&mut records).unwrap();
    let header = 5;
    assert_eq!(
        records.len(),
        header + usize::from(u16::from_be_bytes([records[3], records[4]])),
        "one record"
    );
    records.split_off(header)
}

#[tokio::test]
async fn s_406_a_client_hello_in_records_of_one_byte_is_answered_or_refused_in_time() {
    let config = ListenerConfig { handshake_timeout: Duration::from_secs(2), ..implicit() };
    let server = Server::start(config).await;
    let hello = client_hello();
    for sent in [&hello[..], &hello[..hello.len() / 2]] {
        let mut client = TcpStream::connect(server.address).await.unwrap();
        client.set_nodelay(true).unwrap();
        write_records_of_one_byte(&mut client, sent).await;
        let mut answer = Vec::new();
        let ended = time::timeout(PATIENCE, client.read_to_end(&mut answer)).await;
        assert!(ended.is_ok(), "{} of {} bytes keep the connection open", sent.len(), hello.len());
        // A server hello or an alert, where a hello has come to its end.
        assert!(answer.is_empty() || matches!(answer[0], 0x15 | 0x16), "{answer:?}");
        // The server goes on.
        let mut other =
            handshake(TcpStream::connect(server.address).await.unwrap(), &ClientTls::opportunistic()).await;
        other.expect("220 ").await;
    }
    server.stop().await;
}

/// A small certificate could become one of gigabytes.
#[test]
fn s_406_certificates_are_never_decompressed() {
    let client = ClientConfig::clone(ClientTls::opportunistic().connector().config());
    assert!(client.cert_decompressors.is_empty());
    let server = config().tls.unwrap().acceptor(&[]);
    assert!(server.config().cert_decompressors.is_empty());
}

#[tokio::test]
async fn s_406_an_incomplete_handshake_times_out() {
    let config = ListenerConfig { handshake_timeout: Duration::from_millis(200), ..implicit() };
    let server = Server::start(config).await;
    let pieces: [&[u8]; 4] = [
        b"",
        b"\x16",
        b"\x16\x03\x01\x01\x00\x01\x00\x00\xfc\x03\x03",
        // close_notify instead of a hello.
        b"\x15\x03\x01\x00\x02\x01\x00",
    ];
    for piece in pieces {
        let mut client = TcpStream::connect(server.address).await.unwrap();
        client.write_all(piece).await.unwrap();
        let mut answer = Vec::new();
        let ended = time::timeout(PATIENCE, client.read_to_end(&mut answer)).await;
        assert!(ended.is_ok(), "{piece:?} keeps the connection open");
    }
    server.stop().await;
}

#[tokio::test]
async fn s_407_a_renewed_certificate_is_used_for_new_connections_only() {
    let folder = tempfile::tempdir().unwrap();
    let (certificate, key) = (folder.path().join("tls.crt"), folder.path().join("tls.key"));
    let first = write_certificate(&certificate, &key);
    let tls = ServerTls::from_files(&certificate, &key).unwrap();
    let config = ListenerConfig { tls: Some(tls.clone()), ..ListenerConfig::default() };
    let server = Server::start(config).await;
    let mut old = server.secured().await;
    assert_eq!(shown(&old), first);
    assert!(!tls.reload().unwrap(), "nothing has changed");

    let second = write_certificate(&certificate, &key);
    assert!(tls.reload().unwrap());
    let new = server.secured().await;
    assert_eq!(shown(&new), second);
    old.ask("EHLO c.example\r\n", "250-").await;

    // Certificate and key do not match: the old pair stays in use.
    let (_, other_key) = make_certificate();
    std::fs::write(&key, other_key).unwrap();
    assert!(tls.reload().is_err());
    assert_eq!(shown(&server.secured().await), second);
    server.stop().await;
}

#[tokio::test]
async fn s_407_a_client_that_names_another_server_gets_the_certificate() {
    let server = Server::start(implicit()).await;
    let mut certificates = Vec::new();
    for name in ["localhost", "unknown.example", "192.0.2.1"] {
        let stream = TcpStream::connect(server.address).await.unwrap();
        let tls = ClientTls::opportunistic();
        let connecting = tls.connector().connect(ServerName::try_from(name).unwrap(), stream);
        let mut client = Raw::new(connecting.await.unwrap());
        client.expect("220 ").await;
        certificates.push(shown(&client));
    }
    certificates.dedup();
    assert_eq!(certificates.len(), 1);
    server.stop().await;
}

fn make_certificate() -> (rcgen::Certificate, String) {
    let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    (made.cert, made.signing_key.serialize_pem())
}

fn write_certificate(certificate: &Path, key: &Path) -> Vec<u8> {
    let (made, made_key) = make_certificate();
    std::fs::write(certificate, made.pem()).unwrap();
    std::fs::write(key, made_key).unwrap();
    made.der().to_vec()
}

fn shown(client: &RawTls) -> Vec<u8> {
    client.stream.get_ref().1.peer_certificates().unwrap()[0].to_vec()
}

#[tokio::test]
async fn s_002_a_client_that_speaks_before_the_greeting_over_tls_is_refused() {
    let server =
        Server::start(ListenerConfig { greeting_delay: Duration::from_millis(100), ..implicit() }).await;
    let mut client =
        handshake(TcpStream::connect(server.address).await.unwrap(), &ClientTls::opportunistic()).await;
    client.ask("EHLO spam.example\r\n", "554 5.5.0").await;
    client.expect_end().await;
    server.stop().await;
}

#[tokio::test]
async fn s_107_the_end_of_data_is_found_in_any_split_of_tls_records() {
    let server = Server::start(config()).await;
    let mut client = server.secured().await;
    split_at_every_position(&server, &mut client).await;
    server.stop().await;
}

#[tokio::test]
async fn s_301_auth_is_refused_without_tls() {
    let server = Server::start(config()).await;
    let mut client = server.greeted().await;
    let replies = client.ask("EHLO c.example\r\n", "250-").await;
    assert!(!replies.contains("AUTH"));
    client.ask("AUTH PLAIN AGEAYg==\r\n", "538 5.7.11").await;
    server.stop().await;
}

/// Without `close_notify` the client cannot distinguish our close from an attack.
#[tokio::test]
async fn s_036_close_notify_is_sent_after_quit() {
    let server = Server::start(config()).await;
    let mut client = server.secured().await;
    client.ask("QUIT\r\n", "221 2.0.0").await;
    let read = time::timeout(PATIENCE, client.stream.read(&mut [0; 8])).await.expect("the server closes");
    assert_eq!(read.expect("close_notify was received"), 0);
    server.stop().await;
}
