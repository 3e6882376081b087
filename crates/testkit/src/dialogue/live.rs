//! A server over a real connection: a listener in this process, or another program.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    pin::Pin,
    sync::Arc,
    time::Duration,
};

use bytes::BytesMut;
use postroad_net::{
    ClientTls, ServerTls,
    smtp::server::{ListenerConfig, Policy, Session, serve},
};
use postroad_smtp::server::{Answer, Question};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};
use tokio_util::sync::CancellationToken;

use super::{
    AcceptedMessages, Envelope, Settings,
    play::{Peer, TestPolicy},
};

/// How long a server may take to answer.
const PATIENCE: Duration = Duration::from_secs(30);

/// A listener with the settings of a dialogue; it stops when dropped.
#[derive(Debug)]
pub struct Listener {
    address: SocketAddr,
    accepted: AcceptedMessages,
    shutdown: CancellationToken,
    task: JoinHandle<()>,
}

impl Listener {
    /// Listens on a free port of loopback.
    ///
    /// # Errors
    /// No port is free, or the certificate cannot be created.
    pub async fn start(settings: &Settings) -> io::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let wants_tls = settings.implicit_tls || !settings.no_starttls;
        let tls = wants_tls.then(|| ServerTls::self_signed(&["mail.test".to_owned()]));
        let config = ListenerConfig {
            server: settings.server_config(),
            tls: tls.transpose().map_err(io::Error::other)?,
            implicit_tls: settings.implicit_tls,
            // A client that speaks before the greeting is noticed within this time.
            greeting_delay: Duration::from_millis(20),
            ..ListenerConfig::default()
        };
        let policy = LivePolicy { decide: TestPolicy::default(), anonymous: settings.anonymous };
        let (accepted, shutdown) = (policy.decide.accepted.clone(), CancellationToken::new());
        let task = tokio::spawn(serve(listener, config, Arc::new(policy), shutdown.clone()));
        Ok(Self { address, accepted, shutdown, task })
    }

    /// Opens a connection.
    ///
    /// # Errors
    /// The connection or TLS fails.
    pub async fn connect(&self, settings: &Settings) -> io::Result<LiveSession> {
        let mut live = LiveSession::connect(self.address).await?;
        live.accepted = Some(self.accepted.clone());
        live.shutdown = Some(self.shutdown.clone());
        if settings.implicit_tls {
            live.start_tls().await?;
        }
        Ok(live)
    }

    /// Returns the messages that the policy has accepted.
    #[must_use]
    pub fn accepted(&self) -> &AcceptedMessages {
        &self.accepted
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.task.abort();
    }
}

struct LivePolicy {
    decide: TestPolicy,
    anonymous: bool,
}

impl Policy for LivePolicy {
    type Identity = ();

    fn network_identity(&self, _: IpAddr) -> Option<()> {
        (!self.anonymous).then_some(())
    }

    async fn decide(&self, _: Session<'_, ()>, question: Question) -> Answer<()> {
        self.decide.decide(question)
    }
}

trait Bytes: AsyncRead + AsyncWrite + Send {}

impl<S: AsyncRead + AsyncWrite + Send> Bytes for S {}

/// A connection to a server.
pub struct LiveSession {
    stream: Stream,
    input: BytesMut,
    accepted: Option<AcceptedMessages>,
    shutdown: Option<CancellationToken>,
}

enum Stream {
    Plain(TcpStream),
    Tls(Pin<Box<dyn Bytes>>),
    Broken,
}

impl LiveSession {
    /// Opens a connection to any server.
    ///
    /// # Errors
    /// The connection fails.
    pub async fn connect(address: SocketAddr) -> io::Result<Self> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        Ok(Self { stream: Stream::Plain(stream), input: BytesMut::new(), accepted: None, shutdown: None })
    }

    async fn read(&mut self) -> io::Result<usize> {
        let input = &mut self.input;
        let read = async {
            match &mut self.stream {
                Stream::Plain(stream) => stream.read_buf(input).await,
                Stream::Tls(stream) => stream.read_buf(input).await,
                Stream::Broken => Err(io::ErrorKind::NotConnected.into()),
            }
        };
        match tokio::time::timeout(PATIENCE, read).await.map_err(io::Error::from)? {
            // A server that closes with unread bytes causes a reset, and TLS may end without close_notify.
            Err(error)
                if matches!(error.kind(), io::ErrorKind::ConnectionReset | io::ErrorKind::UnexpectedEof) =>
            {
                Ok(0)
            }
            read => read,
        }
    }
}

impl Peer for LiveSession {
    async fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        match &mut self.stream {
            Stream::Plain(stream) => stream.write_all(bytes).await,
            Stream::Tls(stream) => {
                stream.write_all(bytes).await?;
                stream.flush().await
            }
            Stream::Broken => Err(io::ErrorKind::NotConnected.into()),
        }
    }

    async fn line(&mut self) -> io::Result<Option<String>> {
        loop {
            if let Some(end) = self.input.windows(2).position(|pair| pair == b"\r\n") {
                let line = self.input.split_to(end + 2);
                return Ok(Some(String::from_utf8_lossy(&line[..end]).into_owned()));
            }
            if self.read().await? == 0 {
                return Ok(None);
            }
        }
    }

    async fn start_tls(&mut self) -> io::Result<()> {
        let Stream::Plain(stream) = std::mem::replace(&mut self.stream, Stream::Broken) else {
            return Err(io::Error::other("TLS is already active"));
        };
        self.stream = Stream::Tls(Box::pin(ClientTls::opportunistic().connect(stream, "mail.test").await?));
        Ok(())
    }

    fn wait(&mut self, _: Duration) -> bool {
        false
    }

    fn shut_down(&mut self) -> bool {
        self.shutdown.as_ref().map(CancellationToken::cancel).is_some()
    }

    fn accepted(&mut self) -> Option<Option<Envelope>> {
        self.accepted.as_ref().map(AcceptedMessages::next)
    }
}
