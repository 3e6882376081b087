//! Sending over one connection to a mail server.

use std::{
    future::{pending, poll_fn},
    io::{self, IoSlice},
    pin::{Pin, pin},
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
use crate::{timer::Alarm, tls::ClientTls};

/// Replies are short; EHLO has the longest.
const READ_BYTES: usize = 1 << 10;
/// Slower than this a message is not being taken (Postfix's `smtp_min_data_rate`).
const BYTES_PER_SECOND_MIN: u64 = 500;
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
    /// Some byte of the transaction was handed over.
    said: bool,
    /// The transaction was broken off: nothing more may be said here.
    withdrawn: bool,
}

/// What became of a transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delivery {
    /// The fate of each recipient, in the order of the transaction.
    pub fates: Vec<Fate>,
    /// A connection used before was closed before anything of this transaction was answered:
    /// it had gone stale, which says nothing about the message; it may go out on another one at once.
    pub stale: bool,
    /// It was to be broken off before an byte of it was said: the server knows nothing of it.
    pub withheld: bool,
}

/// Why bytes were not moved.
///
/// A write that ends so has not handed over the last of its bytes, which are what ends a message:
/// with TLS the rest of a record is kept here, and what came of it before is of no use to the server.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Stuck {
    Closed,
    TimedOut,
    /// Nothing more may be said.
    Withdrawn,
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
            said: false,
            withdrawn: false,
        };
        loop {
            match connection.drive(pin!(pending())).await {
                Output::Idle => return Ok(connection),
                Output::StartTls => connection.handshake(tls, server_name).await,
                Output::Ended(ended) => return Err(ended),
                Output::Read(_) | Output::Done(_) => unreachable!("no transaction has been started"),
            }
        }
    }

    /// Sends one message; the fates are exact, also when the connection breaks.
    ///
    /// `until` is polled right before each time bytes are handed over, so that it may look at a clock there:
    /// once it is ready nothing more is said, above all not the end of the message,
    /// and the fates tell how far it was. It is not polled again.
    ///
    /// Dropping the future leaves what became of the message unknown, and the connection unusable.
    pub async fn deliver(&mut self, transaction: Transaction, until: impl Future<Output = ()>) -> Delivery {
        let recipients = transaction.recipients.len();
        let reused = self.session.transactions() > 0;
        let mut until = pin!(until);
        self.said = false;
        if let Err(lost) = self.is_ready(until.as_mut()).await {
            self.usable = false;
            let withheld = lost == Lost::Withdrawn;
            let fates = vec![Fate::NotSent(lost); recipients];
            return Delivery { fates, stale: reused && !withheld, withheld };
        }
        if let Some(fates) = self.session.start(Instant::now(), transaction) {
            return Delivery { fates, stale: false, withheld: false };
        }
        self.usable = false;
        let Output::Done(fates) = self.drive(until).await else {
            unreachable!("a transaction ends with the fates of its recipients");
        };
        let stale = reused && self.unanswered;
        let withheld = !self.said && fates.iter().all(|fate| *fate == Fate::NotSent(Lost::Withdrawn));
        self.usable = !self.withdrawn && self.goes_on().await;
        Delivery { fates, stale, withheld }
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
            self.drive(pin!(pending())).await;
            self.stream.shutdown().await
        };
        // The connection is closed either way; nobody waits longer for a goodbye.
        let _ = time::timeout(limit, goodbye).await;
    }

    /// Hears what came while nobody listened: a farewell, or the reply to RSET.
    async fn is_ready(&mut self, until: Pin<&mut impl Future<Output = ()>>) -> Result<(), Lost> {
        if !self.usable {
            return Err(Lost::Closed);
        }
        if !self.hear() {
            self.session.lost(false);
        }
        match self.drive(until).await {
            Output::Idle => Ok(()),
            Output::Ended(Ended::Lost(_, Lost::Withdrawn)) => Err(Lost::Withdrawn),
            _ => Err(Lost::Closed),
        }
    }

    /// Takes in what has come, without waiting; false when nothing will come any more.
    fn hear(&mut self) -> bool {
        self.input.reserve(READ_BYTES);
        matches!(self.stream.read_buf(&mut self.input).now_or_never(), None | Some(Ok(1..)))
    }

    /// Sends RSET where one is due, without waiting for its reply; false when the session is over.
    async fn goes_on(&mut self) -> bool {
        let written = self.write(pin!(pending())).await.is_ok();
        written && !matches!(self.session.poll(Instant::now(), &mut self.input), Output::Ended(_))
    }

    /// Moves bytes until the session needs something else, or until nothing more may be said.
    async fn drive(&mut self, mut until: Pin<&mut impl Future<Output = ()>>) -> Output {
        self.unanswered = false;
        let mut broken = None;
        loop {
            let deadline = match self.session.poll(Instant::now(), &mut self.input) {
                Output::Read(deadline) => deadline,
                Output::Done(fates) => return Output::Done(as_written(fates, broken.is_some())),
                output => return output,
            };
            if let Err(stuck) = self.write(until.as_mut()).await {
                broken = Some(stuck);
            }
            let stuck = match broken {
                None => self.read(deadline, until.as_mut()).await.err(),
                Some(Stuck::Withdrawn) => broken,
                Some(stuck) => {
                    let last_words = deadline.min(Instant::now() + LAST_WORDS);
                    self.read(last_words, until.as_mut()).await.err().map(|_| stuck)
                }
            };
            let Some(stuck) = stuck else { continue };
            if stuck == Stuck::Withdrawn {
                return self.withdraw(broken.is_some());
            }
            let timed_out = stuck == Stuck::TimedOut;
            self.unanswered = !timed_out && self.session.is_unanswered();
            if let Some(fates) = self.session.lost(timed_out) {
                return Output::Done(as_written(fates, broken.is_some()));
            }
        }
    }

    /// Says nothing more; a reply that has come already still counts.
    fn withdraw(&mut self, incomplete: bool) -> Output {
        self.withdrawn = true;
        if self.said {
            // What the system holds of it must not go out later, when another may use the source.
            self.stream.discard_on_close();
            self.hear();
        }
        let fates = match self.session.poll(Instant::now(), &mut self.input) {
            Output::Done(fates) => Some(fates),
            _ => self.session.withdraw(),
        };
        match fates {
            Some(fates) => Output::Done(as_written(fates, incomplete)),
            None => self.session.poll(Instant::now(), &mut self.input),
        }
    }

    /// Writes all that the session has to say, without joining it.
    async fn write(&mut self, mut until: Pin<&mut impl Future<Output = ()>>) -> Result<(), Stuck> {
        let output = self.session.take_output();
        if output.is_empty() {
            return Ok(());
        }
        let mut parts = Parts::new(output);
        let whole = Instant::now() + self.timeouts.write + slowest(parts.bytes());
        while !parts.is_empty() {
            let deadline = whole.min(Instant::now() + self.timeouts.write);
            let mut slices = [IoSlice::new(&[]); SLICES_MAX];
            let count = parts.fill(&mut slices);
            let stream = &mut self.stream;
            let writing =
                poll_fn(|context| Pin::new(&mut *stream).poll_write_vectored(context, &slices[..count]));
            let written = self.alarm.bound(deadline, unless(until.as_mut(), writing)).await;
            match written.ok_or(Stuck::TimedOut)?? {
                Ok(written @ 1..) => {
                    self.said = true;
                    parts.advance(written);
                }
                Ok(0) | Err(_) => return Err(Stuck::Closed),
            }
        }
        if !self.stream.holds_back() {
            // The system has all of it: from here on nobody may say that it was not sent.
            return Ok(());
        }
        let deadline = whole.min(Instant::now() + self.timeouts.write);
        let flushed = self.alarm.bound(deadline, unless(until, self.stream.flush())).await;
        flushed.ok_or(Stuck::TimedOut)??.map_err(|_| Stuck::Closed)
    }

    async fn read(
        &mut self,
        deadline: Instant,
        until: Pin<&mut impl Future<Output = ()>>,
    ) -> Result<(), Stuck> {
        self.input.reserve(READ_BYTES);
        let reading = unless(until, self.stream.read_buf(&mut self.input));
        match self.alarm.bound(deadline, reading).await.ok_or(Stuck::TimedOut)?? {
            Ok(1..) => Ok(()),
            Ok(0) | Err(_) => Err(Stuck::Closed),
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

/// How long a message of so many bytes may take at the least rate that is borne.
fn slowest(bytes: u64) -> Duration {
    Duration::from_secs(bytes / BYTES_PER_SECOND_MIN)
}

/// Does one thing, unless `until` is ready right before, each time it is tried.
async fn unless<T>(
    until: Pin<&mut impl Future<Output = ()>>,
    thing: impl Future<Output = T>,
) -> Result<T, Stuck> {
    tokio::select! {
        biased;
        () = until => Err(Stuck::Withdrawn),
        done = thing => Ok(done),
    }
}

/// Corrects fates for a message whose end was never handed over: whatever the server said, it cannot have it.
fn as_written(fates: Vec<Fate>, incomplete: bool) -> Vec<Fate> {
    if !incomplete {
        return fates;
    }
    let correct = |fate| match fate {
        Fate::Unknown(lost) => Fate::NotSent(lost),
        Fate::Reply(Phase::Message, reply) if reply.is_positive() => Fate::NotSent(Lost::Closed),
        fate => fate,
    };
    fates.into_iter().map(correct).collect()
}
