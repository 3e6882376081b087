//! An SMTP client that says what it is told to say.

use std::net::SocketAddr;

use base64::{Engine, engine::general_purpose::STANDARD};
use postroad_net::ClientTls;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpSocket, TcpStream},
    time::timeout,
};

use super::PATIENCE;

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

pub(crate) struct Smtp {
    stream: Box<dyn Stream>,
    buffer: Vec<u8>,
}

impl Smtp {
    /// Connects and hears the greeting.
    pub(crate) async fn connect(address: SocketAddr) -> Self {
        let mut client = Self::silent(TcpStream::connect(address).await.unwrap());
        client.hear("220 ").await;
        client
    }

    /// The same from an address of loopback.
    pub(crate) async fn connect_from(from: [u8; 4], address: SocketAddr) -> Self {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind((from, 0).into()).unwrap();
        let mut client = Self::silent(socket.connect(address).await.unwrap());
        client.hear("220 ").await;
        client
    }

    /// Connects over TLS and says EHLO.
    pub(crate) async fn secure(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).await.unwrap();
        let stream = ClientTls::opportunistic().connect(stream, "mx.test").await.unwrap();
        let mut client = Self::silent(Box::pin(stream));
        client.hear("220 ").await;
        client.say("EHLO client.test", "250").await;
        client
    }

    /// The same, logged in.
    pub(crate) async fn login(address: SocketAddr, login: &str, password: &str) -> Self {
        let mut client = Self::secure(address).await;
        client.say(&auth_plain(login, password), "235 2.7.0").await;
        client
    }

    pub(crate) fn silent(stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static) -> Self {
        Self { stream: Box::new(stream), buffer: Vec::new() }
    }

    /// Sends a line, hears the reply, which must begin so, and returns it.
    pub(crate) async fn say(&mut self, line: &str, expected: &str) -> String {
        self.send(&format!("{line}\r\n")).await;
        self.hear(expected).await
    }

    pub(crate) async fn send(&mut self, bytes: &str) {
        self.stream.write_all(bytes.as_bytes()).await.unwrap();
        self.stream.flush().await.unwrap();
    }

    /// Hears a whole reply, of which the last line must begin so.
    pub(crate) async fn hear(&mut self, expected: &str) -> String {
        let mut told = String::new();
        loop {
            let line =
                timeout(PATIENCE, self.line()).await.unwrap_or_else(|_| panic!("no {expected} after {told}"));
            told.push_str(&line);
            if line.len() < 4 || line.as_bytes()[3] == b' ' {
                assert!(line.starts_with(expected), "expected {expected}, got {told}");
                return told;
            }
        }
    }

    async fn line(&mut self) -> String {
        loop {
            if let Some(end) = self.buffer.iter().position(|byte| *byte == b'\n') {
                return String::from_utf8(self.buffer.drain(..=end).collect()).unwrap();
            }
            let read = self.stream.read_buf(&mut self.buffer).await.unwrap();
            assert!(read > 0, "the connection has ended");
        }
    }

    /// Goes through a transaction; the reply to the content must begin so.
    pub(crate) async fn mail(
        &mut self,
        sender: &str,
        recipients: &[&str],
        content: &str,
        expected: &str,
    ) -> String {
        self.say(&format!("MAIL FROM:<{sender}>"), "250 2.1.0").await;
        for recipient in recipients {
            self.say(&format!("RCPT TO:<{recipient}>"), "250 2.1.5").await;
        }
        self.say("DATA", "354 ").await;
        self.send(content).await;
        self.say(".", expected).await
    }
}

pub(crate) fn auth_plain(login: &str, password: &str) -> String {
    format!("AUTH PLAIN {}", base64(&format!("\0{login}\0{password}")))
}

pub(crate) fn base64(text: &str) -> String {
    STANDARD.encode(text)
}
