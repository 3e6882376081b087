//! The client's side of an SMTP submission, one command at a time (RFC 6409).

use anyhow::{Context, bail, ensure};
use base64::{Engine, prelude::BASE64_STANDARD};
use bytes::BytesMut;
use postroad_core::{Address, Reply};
use postroad_smtp::reply::ReplyReader;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::output::line;

/// A connection to a submission server.
pub(super) struct Dialogue<S> {
    stream: S,
    input: BytesMut,
    replies: ReplyReader,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Dialogue<S> {
    pub(super) fn new(stream: S) -> Self {
        Self { stream, input: BytesMut::new(), replies: ReplyReader::default() }
    }

    /// Returns the connection, for TLS.
    ///
    /// # Errors
    /// The server sent more than its reply: an injection (RFC 3207 5).
    pub(super) fn into_stream(self) -> anyhow::Result<S> {
        ensure!(self.input.is_empty(), "the server sent data before TLS");
        Ok(self.stream)
    }

    /// Waits for the greeting, and answers it.
    pub(super) async fn greeting(&mut self) -> anyhow::Result<()> {
        let reply = self.reply().await?;
        ensure!(reply.code == 220, "greeting: {}", shown(&reply));
        self.hello().await
    }

    /// Sends EHLO, with a name that any submission server takes.
    pub(super) async fn hello(&mut self) -> anyhow::Result<()> {
        self.command("EHLO localhost", 250).await.map(drop)
    }

    /// Logs in; the secret is in no error.
    pub(super) async fn authenticate(&mut self, login: &str, password: &str) -> anyhow::Result<()> {
        let secret = BASE64_STANDARD.encode(format!("\0{login}\0{password}"));
        self.write(&format!("AUTH PLAIN {secret}")).await?;
        let reply = self.reply().await?;
        ensure!(reply.code == 235, "AUTH as `{login}`: {}", shown(&reply));
        Ok(())
    }

    /// Sends a test message and ends the session; returns the text of the reply that accepts it.
    pub(super) async fn message(&mut self, from: &Address, to: &Address) -> anyhow::Result<String> {
        self.command(&format!("MAIL FROM:<{from}>"), 250).await?;
        self.command(&format!("RCPT TO:<{to}>"), 250).await?;
        self.command("DATA", 354).await?;
        let content = format!(
            "From: <{from}>\r\nTo: <{to}>\r\nSubject: Test message of postroad send\r\n\r\n\
             This message tests the way from ingress to the receiver.\r\n."
        );
        let accepted = self.command(&content, 250).await.context("the message was not accepted")?;
        self.write("QUIT").await?;
        Ok(accepted)
    }

    /// Sends a command; returns the text of the reply, which must have this code.
    pub(super) async fn command(&mut self, command: &str, expected: u16) -> anyhow::Result<String> {
        self.write(command).await?;
        let reply = self.reply().await?;
        if reply.code == expected {
            return Ok(reply.text.to_string());
        }
        let command = command.lines().next().unwrap_or_default();
        bail!("{command}: {}", shown(&reply))
    }

    async fn write(&mut self, command: &str) -> anyhow::Result<()> {
        self.stream.write_all(format!("{command}\r\n").as_bytes()).await?;
        Ok(self.stream.flush().await?)
    }

    async fn reply(&mut self) -> anyhow::Result<Reply> {
        loop {
            if let Some(reply) = self.replies.read(&mut self.input)? {
                return Ok(reply);
            }
            let read = self.stream.read_buf(&mut self.input).await?;
            ensure!(read > 0, "the server closed the connection");
        }
    }
}

/// A reply for a person's terminal.
fn shown(reply: &Reply) -> String {
    format!("{} {}", reply.code, line(&reply.text))
}
