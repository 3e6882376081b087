//! A scripted SMTP client.

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
    /// Connects and reads the greeting.
    pub(crate) async fn connect(address: SocketAddr) -> Self {
        let mut client = Self::on_stream(TcpStream::connect(address).await.unwrap());
        client.read_reply("220 ").await;
        client
    }

    /// Connects from this loopback address and reads the greeting.
    pub(crate) async fn connect_from(from: [u8; 4], address: SocketAddr) -> Self {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind((from, 0).into()).unwrap();
        let mut client = Self::on_stream(socket.connect(address).await.unwrap());
        client.read_reply("220 ").await;
        client
    }

    /// Connects over TLS and sends EHLO.
    pub(crate) async fn secure(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).await.unwrap();
        let stream = ClientTls::opportunistic().connect(stream, "mx.test").await.unwrap();
        let mut client = Self::on_stream(Box::pin(stream));
        client.read_reply("220 ").await;
        client.command("EHLO client.test", "250").await;
        client
    }

    /// Connects over TLS and logs in.
    pub(crate) async fn login(address: SocketAddr, login: &str, password: &str) -> Self {
        let mut client = Self::secure(address).await;
        client.command(&auth_plain(login, password), "235 2.7.0").await;
        client
    }

    pub(crate) fn on_stream(stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static) -> Self {
        Self { stream: Box::new(stream), buffer: Vec::new() }
    }

    /// Sends a line and returns the reply, which must begin with `expected`.
    pub(crate) async fn command(&mut self, line: &str, expected: &str) -> String {
        self.send(&format!("{line}\r\n")).await;
        self.read_reply(expected).await
    }

    pub(crate) async fn send(&mut self, bytes: &str) {
        self.stream.write_all(bytes.as_bytes()).await.unwrap();
        self.stream.flush().await.unwrap();
    }

    /// Returns the next reply, whose last line must begin with `expected`.
    pub(crate) async fn read_reply(&mut self, expected: &str) -> String {
        let mut reply = String::new();
        loop {
            let line = timeout(PATIENCE, self.line())
                .await
                .unwrap_or_else(|_| panic!("no {expected} after {reply}"));
            reply.push_str(&line);
            if line.len() < 4 || line.as_bytes()[3] == b' ' {
                assert!(line.starts_with(expected), "expected {expected}, got {reply}");
                return reply;
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

    /// Runs a transaction and returns the reply to the message, which must begin with `expected`.
    pub(crate) async fn mail(
        &mut self,
        sender: &str,
        recipients: &[&str],
        content: &str,
        expected: &str,
    ) -> String {
        self.command(&format!("MAIL FROM:<{sender}>"), "250 2.1.0").await;
        for recipient in recipients {
            self.command(&format!("RCPT TO:<{recipient}>"), "250 2.1.5").await;
        }
        self.command("DATA", "354 ").await;
        self.send(content).await;
        self.command(".", expected).await
    }
}

pub(crate) fn auth_plain(login: &str, password: &str) -> String {
    format!("AUTH PLAIN {}", base64(&format!("\0{login}\0{password}")))
}

pub(crate) fn base64(text: &str) -> String {
    STANDARD.encode(text)
}
