//! Sending over one connection to a mail server.

use std::{
    future::poll_fn,
    io::{self, IoSlice},
    pin::Pin,
    time::{Duration, Instant},
};

use bytes::BytesMut;
use futures::FutureExt;
use postroad_smtp::client::{
    Capabilities, ClientConfig, ClientSession, Ended, Fate, Lost, Output, Phase, Timeouts, Transaction,
};
use rustls_pki_types::ServerName;
use tokio::{
    io::{AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::TcpStream,
    time,
};
use tokio_rustls::{TlsStream, client};

mod parts;

#[cfg(test)]
mod tests;

use parts::{Parts, SLICES_MAX};

use super::stream::{Stream, describe};
use crate::{alarm::Alarm, tls::ClientTls};

/// Replies are short; EHLO has the longest.
const READ_OCTETS: usize = 1 << 10;
/// Slower than this a message is not being taken (Postfix's `smtp_min_data_rate`).
const OCTETS_PER_SECOND_MIN: u64 = 500;
/// For what a server said before it broke the connection.
const LAST_WORDS: Duration = Duration::from_millis(200);

/// A session with a server, over one connection.
///
/// Dropping it closes the connection without a goodbye.
#[derive(Debug)]
pub struct Connection {
    stream: Stream,
    session: ClientSession,
    input: BytesMut,
    alarm: Alarm,
    timeouts: Timeouts,
    tls: Box<str>,
    usable: bool,
    /// The connection was closed before the server answered anything of the transaction.
    unanswered: bool,
}

/// What became of a transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delivery {
    /// The fate of each recipient, in the order of the transaction.
    pub fates: Vec<Fate>,
    /// A connection used before was closed before anything of this transaction was answered:
    /// it had gone stale, which says nothing about the message; it may go out on another one at once.
    pub stale: bool,
}

/// A write ended before all was handed to the system, or the system could not pass it on.
struct Broken {
    timed_out: bool,
    /// Some octets were not handed over: the last ones, which end a message, are among them.
    incomplete: bool,
}

/// A read brought nothing.
struct Silent {
    timed_out: bool,
}

impl Connection {
    /// Opens a session: the greeting, EHLO, and TLS as `config` wants it, with `server_name` as the server's name there.
    ///
    /// # Errors
    /// The server refused, was lost, or cannot do what is required.
    /// A handshake that failed is `Ended::Lost` in `Phase::StartTls`.
    pub async fn open(
        stream: TcpStream,
        config: ClientConfig,
        tls: &ClientTls,
        server_name: &str,
    ) -> Result<Self, Ended> {
        let timeouts = config.timeouts;
        let mut connection = Self {
            stream: Stream::Plain(stream),
            session: ClientSession::new(config, Instant::now()),
            input: BytesMut::new(),
            alarm: Alarm::default(),
            timeouts,
            tls: "".into(),
            usable: true,
            unanswered: false,
        };
        loop {
            match connection.drive().await {
                Output::Idle => return Ok(connection),
                Output::StartTls => connection.handshake(tls, server_name).await,
                Output::Ended(ended) => return Err(ended),
                Output::Read(_) | Output::Done(_) => unreachable!("no transaction has been started"),
            }
        }
    }

    /// Sends one message; the fates are exact, also when the connection breaks.
    ///
    /// Dropping the future leaves what became of the message unknown, and the connection unusable.
    pub async fn deliver(&mut self, transaction: Transaction) -> Delivery {
        let recipients = transaction.recipients.len();
        let reused = self.session.transactions() > 0;
        if !self.is_usable() || !self.is_ready().await {
            self.usable = false;
            return Delivery { fates: vec![Fate::NotSent(Lost::Closed); recipients], stale: reused };
        }
        if let Some(fates) = self.session.start(Instant::now(), transaction) {
            return Delivery { fates, stale: false };
        }
        self.usable = false;
        let Output::Done(fates) = self.drive().await else {
            unreachable!("a transaction ends with the fates of its recipients");
        };
        let stale = reused && self.unanswered;
        self.usable = self.goes_on().await;
        Delivery { fates, stale }
    }

    /// Returns true when another transaction may be tried.
    #[must_use]
    pub fn is_usable(&self) -> bool {
        self.usable
    }

    /// Returns version and cipher of the TLS, as `TLSv1.3 TLS_AES_128_GCM_SHA256`; empty without TLS.
    #[must_use]
    pub fn tls(&self) -> &str {
        &self.tls
    }

    /// Returns what the server said it can do.
    #[must_use]
    pub fn capabilities(&self) -> Capabilities {
        self.session.capabilities()
    }

    /// Returns how many transactions have been finished.
    #[must_use]
    pub fn transactions(&self) -> u32 {
        self.session.transactions()
    }

    /// Says goodbye and closes, within the time for QUIT.
    pub async fn quit(mut self) {
        let limit = self.timeouts.quit;
        self.session.quit(Instant::now());
        let goodbye = async {
            self.drive().await;
            self.stream.shutdown().await
        };
        // The connection is closed either way; nobody waits longer for a goodbye.
        let _ = time::timeout(limit, goodbye).await;
    }

    /// Hears what came while nobody listened: a farewell, or the reply to RSET.
    async fn is_ready(&mut self) -> bool {
        self.input.reserve(READ_OCTETS);
        match self.stream.read_buf(&mut self.input).now_or_never() {
            None | Some(Ok(1..)) => {}
            Some(Ok(0) | Err(_)) => drop(self.session.lost(false)),
        }
        matches!(self.drive().await, Output::Idle)
    }

    /// Sends RSET where one is due, without waiting for its reply; false when the session is over.
    async fn goes_on(&mut self) -> bool {
        let written = self.write().await.is_ok();
        written && !matches!(self.session.poll(Instant::now(), &mut self.input), Output::Ended(_))
    }

    /// Moves octets until the session needs something else.
    async fn drive(&mut self) -> Output {
        self.unanswered = false;
        let mut broken: Option<Broken> = None;
        loop {
            let deadline = match self.session.poll(Instant::now(), &mut self.input) {
                Output::Read(deadline) => deadline,
                Output::Done(fates) => return Output::Done(as_written(fates, broken.as_ref())),
                output => return output,
            };
            if let Err(error) = self.write().await {
                broken = Some(error);
            }
            let last_words = || Instant::now() + LAST_WORDS;
            let deadline = if broken.is_some() { last_words().min(deadline) } else { deadline };
            let Err(silent) = self.read(deadline).await else { continue };
            let timed_out = broken.as_ref().map_or(silent.timed_out, |broken| broken.timed_out);
            self.unanswered = !timed_out && self.session.is_unanswered();
            if let Some(fates) = self.session.lost(timed_out) {
                return Output::Done(as_written(fates, broken.as_ref()));
            }
        }
    }

    /// Writes all that the session has to say, without joining it.
    async fn write(&mut self) -> Result<(), Broken> {
        let output = self.session.take_output();
        if output.is_empty() {
            return Ok(());
        }
        let mut parts = Parts::new(output);
        let whole = Instant::now() + self.timeouts.write + slowest(parts.octets());
        while !parts.is_empty() {
            let deadline = whole.min(Instant::now() + self.timeouts.write);
            let mut slices = [IoSlice::new(&[]); SLICES_MAX];
            let count = parts.fill(&mut slices);
            let stream = &mut self.stream;
            let writing =
                poll_fn(|context| Pin::new(&mut *stream).poll_write_vectored(context, &slices[..count]));
            match self.alarm.bound(deadline, writing).await {
                Some(Ok(written @ 1..)) => parts.advance(written),
                Some(Ok(0) | Err(_)) => return Err(Broken { timed_out: false, incomplete: true }),
                None => return Err(Broken { timed_out: true, incomplete: true }),
            }
        }
        let deadline = whole.min(Instant::now() + self.timeouts.write);
        match self.alarm.bound(deadline, self.stream.flush()).await {
            Some(Ok(())) => Ok(()),
            flushed => Err(Broken { timed_out: flushed.is_none(), incomplete: false }),
        }
    }

    async fn read(&mut self, deadline: Instant) -> Result<(), Silent> {
        self.input.reserve(READ_OCTETS);
        match self.alarm.bound(deadline, self.stream.read_buf(&mut self.input)).await {
            Some(Ok(1..)) => Ok(()),
            Some(Ok(0) | Err(_)) => Err(Silent { timed_out: false }),
            None => Err(Silent { timed_out: true }),
        }
    }

    async fn handshake(&mut self, tls: &ClientTls, server_name: &str) {
        match self.secure(tls, server_name).await {
            Some(Ok(stream)) => {
                self.tls = describe(stream.get_ref().1).0;
                self.stream = Stream::Tls(Box::new(TlsStream::Client(stream)));
                self.session.tls_established(Instant::now());
            }
            failed => {
                if let Some(Err(error)) = &failed {
                    tracing::debug!(%error, server = server_name, "handshake failed");
                }
                self.session.lost(failed.is_none());
            }
        }
    }

    async fn secure(
        &mut self,
        tls: &ClientTls,
        server_name: &str,
    ) -> Option<io::Result<client::TlsStream<TcpStream>>> {
        let Some(socket) = self.stream.take_socket(&self.input) else {
            return Some(Err(io::ErrorKind::NotConnected.into()));
        };
        let name = match (ServerName::try_from(server_name), socket.peer_addr()) {
            (Ok(name), _) => name.to_owned(),
            // Names that TLS cannot carry exist in MX records; without checking the name none is needed.
            (Err(_), Ok(address)) if !tls.is_verified() => ServerName::IpAddress(address.ip().into()),
            (Err(_), _) => return Some(Err(io::ErrorKind::InvalidInput.into())),
        };
        let deadline = Instant::now() + self.timeouts.start_tls;
        let connecting = Box::pin(tls.connector().connect(name, socket));
        self.alarm.bound(deadline, connecting).await
    }
}

/// How long a message of so many octets may take at the least rate that is borne.
fn slowest(octets: u64) -> Duration {
    Duration::from_secs(octets / OCTETS_PER_SECOND_MIN)
}

/// Corrects fates for a message whose end was never handed over: whatever the server said, it cannot have it.
fn as_written(fates: Vec<Fate>, broken: Option<&Broken>) -> Vec<Fate> {
    if !broken.is_some_and(|broken| broken.incomplete) {
        return fates;
    }
    let correct = |fate| match fate {
        Fate::Unknown(lost) => Fate::NotSent(lost),
        Fate::Reply(Phase::Message, reply) if reply.is_positive() => Fate::NotSent(Lost::Closed),
        fate => fate,
    };
    fates.into_iter().map(correct).collect()
}
