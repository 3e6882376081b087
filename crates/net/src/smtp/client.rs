//! Sends mail over one connection to a server.

use std::{
    future::{pending, poll_fn},
    io::{self, IoSlice},
    pin::{Pin, pin},
    time::{Duration, Instant},
};

use bytes::BytesMut;
use futures::FutureExt;
use postroad_core::Reply;
use postroad_smtp::client::{
    Capabilities, ClientConfig, ClientSession, Ended, Lost, Output, Phase, RecipientResult, Timeouts,
    Transaction,
};
use rustls_pki_types::ServerName;
use tokio::{
    io::{AsyncReadExt, AsyncWrite, AsyncWriteExt},
    time,
};
use tokio_rustls::{TlsStream, client};

mod parts;

#[cfg(test)]
mod tests;

use parts::{Parts, SLICES_MAX};

use super::stream::{Stream, tls_info};
use crate::{connect::Socket, timer::DeadlineTimer, tls::ClientTls};

/// Replies are short; EHLO has the longest.
const READ_BYTES: usize = 1 << 10;
/// A server that reads slower than this is given up (like Postfix's `smtp_min_data_rate`).
const BYTES_PER_SECOND_MIN: u64 = 500;
/// How long to wait for a reply that the server sent before it closed the connection.
const FINAL_REPLY_TIMEOUT: Duration = Duration::from_millis(200);

/// A session with a server, over one connection.
///
/// Dropping it closes the connection without QUIT.
#[derive(Debug)]
pub struct Connection {
    stream: Stream,
    session: ClientSession,
    input: BytesMut,
    timer: DeadlineTimer,
    timeouts: Timeouts,
    tls: Box<str>,
    usable: bool,
    /// The connection was closed before the server answered any command of the transaction.
    unanswered: bool,
    /// At least one byte of the transaction was written to the socket.
    sent_any: bool,
    /// The transaction was aborted: nothing more may be sent on this connection.
    aborted: bool,
}

/// The result of a transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delivery {
    /// One result per recipient, in order.
    pub results: Vec<RecipientResult>,
    /// A reused connection was closed before any command of this transaction was answered.
    /// It was stale; the message may be sent on another connection at once.
    pub stale: bool,
    /// The transaction was aborted before any byte was sent: the server does not know of it.
    pub not_started: bool,
}

/// Why a read or a write did not complete.
///
/// After an interrupted write the server does not have the end of the message:
/// with TLS it cannot decrypt an incomplete record.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Interrupted {
    Closed,
    TimedOut,
    /// The transaction was aborted.
    Aborted,
}

impl Connection {
    /// Opens a session: greeting, EHLO and, as `config` demands, STARTTLS with `server_name`.
    ///
    /// # Errors
    /// The server refused, the connection was lost, or required TLS is not offered.
    /// A failed handshake is `Ended::Lost` in `Phase::StartTls`.
    pub async fn open(
        socket: impl Into<Socket>,
        config: ClientConfig,
        tls: &ClientTls,
        server_name: &str,
    ) -> Result<Self, Ended> {
        let timeouts = config.timeouts;
        let session = ClientSession::new(config, postroad_env::now());
        let mut connection = Self::new(socket.into(), session, timeouts);
        connection.begin(tls, server_name).await?;
        Ok(connection)
    }

    /// Opens a session like [`Connection::open`], and returns what the server said with the result.
    pub async fn open_recorded(
        socket: impl Into<Socket>,
        config: ClientConfig,
        tls: &ClientTls,
        server_name: &str,
    ) -> (Vec<(Phase, Reply)>, Result<Self, Ended>) {
        let timeouts = config.timeouts;
        let session = ClientSession::new(config, postroad_env::now()).recorded();
        let mut connection = Self::new(socket.into(), session, timeouts);
        let begun = connection.begin(tls, server_name).await;
        (connection.session.take_record(), begun.map(|()| connection))
    }

    fn new(socket: Socket, session: ClientSession, timeouts: Timeouts) -> Self {
        Self {
            stream: Stream::Plain(socket),
            session,
            input: BytesMut::new(),
            timer: DeadlineTimer::default(),
            timeouts,
            tls: "".into(),
            usable: true,
            unanswered: false,
            sent_any: false,
            aborted: false,
        }
    }

    /// Reads the greeting, and goes on until the session is idle.
    async fn begin(&mut self, tls: &ClientTls, server_name: &str) -> Result<(), Ended> {
        loop {
            match self.drive(pin!(pending())).await {
                Output::Idle => return Ok(()),
                Output::StartTls => self.handshake(tls, server_name).await,
                Output::Ended(ended) => return Err(ended),
                Output::Read(_) | Output::Write | Output::Done(_) => {
                    unreachable!("no transaction has been started")
                }
            }
        }
    }

    /// Sends one message. The results are exact, even when the connection breaks.
    ///
    /// The transaction is aborted when `abort` is ready. It is polled immediately before each write, so it may check a clock.
    /// From then on nothing more is sent, in particular not the end of the message,
    /// and the results say how far the transaction got. It is not polled again.
    ///
    /// Dropping the future leaves the results unknown and the connection unusable.
    pub async fn deliver(&mut self, transaction: Transaction, abort: impl Future<Output = ()>) -> Delivery {
        let recipients = transaction.recipients.len();
        let reused = self.session.transactions() > 0;
        let mut abort = pin!(abort);
        self.sent_any = false;
        if let Err(lost) = self.check_ready(abort.as_mut()).await {
            self.usable = false;
            let not_started = lost == Lost::Aborted;
            let results = vec![RecipientResult::NotSent(lost); recipients];
            return Delivery { results, stale: reused && !not_started, not_started };
        }
        if let Some(results) = self.session.start(postroad_env::now(), transaction) {
            return Delivery { results, stale: false, not_started: false };
        }
        self.usable = false;
        let Output::Done(results) = self.drive(abort).await else {
            unreachable!("a transaction ends with results");
        };
        let stale = reused && self.unanswered;
        let not_started =
            !self.sent_any && results.iter().all(|result| *result == RecipientResult::NotSent(Lost::Aborted));
        self.usable = !self.aborted && self.finish_transaction().await;
        Delivery { results, stale, not_started }
    }

    /// Returns true when the connection can be reused.
    #[must_use]
    pub fn is_usable(&self) -> bool {
        self.usable
    }

    /// Returns TLS version and cipher, as `TLSv1.3 TLS_AES_128_GCM_SHA256`; empty without TLS.
    #[must_use]
    pub fn tls(&self) -> &str {
        &self.tls
    }

    /// Returns the extensions that the server announced.
    #[must_use]
    pub fn capabilities(&self) -> Capabilities {
        self.session.capabilities()
    }

    /// Returns how many replies broke the rules of SMTP and were understood.
    #[must_use]
    pub fn irregular_replies(&self) -> u64 {
        self.session.irregular_replies()
    }

    /// Returns the number of finished transactions.
    #[must_use]
    pub fn transactions(&self) -> u32 {
        self.session.transactions()
    }

    /// Sends QUIT and closes, within the QUIT timeout.
    pub async fn quit(mut self) {
        let limit = self.timeouts.quit;
        self.session.quit(postroad_env::now());
        let goodbye = async {
            self.drive(pin!(pending())).await;
            self.stream.shutdown().await
        };
        // The connection is closed either way.
        let _ = time::timeout(limit, goodbye).await;
    }

    /// Reads what the server sent since the last transaction: a farewell, or the reply to RSET.
    async fn check_ready(&mut self, abort: Pin<&mut impl Future<Output = ()>>) -> Result<(), Lost> {
        if !self.usable {
            return Err(Lost::Closed);
        }
        if !self.read_available() {
            self.session.connection_lost(false);
        }
        match self.drive(abort).await {
            Output::Idle => Ok(()),
            Output::Ended(Ended::Lost(_, Lost::Aborted)) => Err(Lost::Aborted),
            _ => Err(Lost::Closed),
        }
    }

    /// Reads available bytes without waiting; returns false when the server has closed the connection.
    fn read_available(&mut self) -> bool {
        self.input.reserve(READ_BYTES);
        matches!(self.stream.read_buf(&mut self.input).now_or_never(), None | Some(Ok(1..)))
    }

    /// Sends RSET if needed, without waiting for its reply; returns false when the session is over.
    async fn finish_transaction(&mut self) -> bool {
        let written = self.write_output(pin!(pending())).await.is_ok();
        written && !matches!(self.session.poll(postroad_env::now(), &mut self.input), Output::Ended(_))
    }

    /// Reads and writes until the session needs something else, or until the transaction is aborted.
    async fn drive(&mut self, mut abort: Pin<&mut impl Future<Output = ()>>) -> Output {
        self.unanswered = false;
        let mut broken = None;
        loop {
            let interrupted = match self.session.poll(postroad_env::now(), &mut self.input) {
                Output::Write => {
                    broken = self.write_output(abort.as_mut()).await.err().or(broken);
                    broken.filter(|broken| *broken == Interrupted::Aborted)
                }
                Output::Read(deadline) => self.read_reply(deadline, broken, abort.as_mut()).await.err(),
                Output::Done(results) => {
                    return Output::Done(correct_for_incomplete_write(results, broken.is_some()));
                }
                output => return output,
            };
            let Some(interrupted) = interrupted else { continue };
            if interrupted == Interrupted::Aborted {
                return self.abort(broken.is_some());
            }
            let timed_out = interrupted == Interrupted::TimedOut;
            self.unanswered = !timed_out && self.session.is_unanswered();
            if let Some(results) = self.session.connection_lost(timed_out) {
                return Output::Done(correct_for_incomplete_write(results, broken.is_some()));
            }
        }
    }

    /// Writes the output of the session, whose time for the reply then begins.
    async fn write_output(&mut self, abort: Pin<&mut impl Future<Output = ()>>) -> Result<(), Interrupted> {
        let written = self.write(abort).await;
        self.session.written(postroad_env::now());
        written
    }

    /// Reads part of a reply. After a broken write only a reply that the server sent before it closed is of use.
    async fn read_reply(
        &mut self,
        deadline: Instant,
        broken: Option<Interrupted>,
        abort: Pin<&mut impl Future<Output = ()>>,
    ) -> Result<(), Interrupted> {
        let Some(broken) = broken else { return self.read(deadline, abort).await };
        let final_deadline = deadline.min(postroad_env::now() + FINAL_REPLY_TIMEOUT);
        self.read(final_deadline, abort).await.map_err(|_| broken)
    }

    /// Aborts the transaction; a reply that has already arrived still counts.
    fn abort(&mut self, incomplete: bool) -> Output {
        self.aborted = true;
        if self.sent_any {
            // The kernel must not send buffered bytes later, when another node may own the source.
            self.stream.discard_on_close();
            self.read_available();
        }
        let results = match self.session.poll(postroad_env::now(), &mut self.input) {
            Output::Done(results) => Some(results),
            _ => self.session.abort(),
        };
        match results {
            Some(results) => Output::Done(correct_for_incomplete_write(results, incomplete)),
            None => self.session.poll(postroad_env::now(), &mut self.input),
        }
    }

    /// Writes the output of the session without copying it.
    async fn write(&mut self, mut abort: Pin<&mut impl Future<Output = ()>>) -> Result<(), Interrupted> {
        let output = self.session.take_output();
        if output.is_empty() {
            return Ok(());
        }
        let mut parts = Parts::new(output);
        let total_deadline = postroad_env::now() + self.timeouts.write + transfer_time_max(parts.bytes());
        while !parts.is_empty() {
            let deadline = total_deadline.min(postroad_env::now() + self.timeouts.write);
            let mut slices = [IoSlice::new(&[]); SLICES_MAX];
            let count = parts.fill(&mut slices);
            let stream = &mut self.stream;
            let writing =
                poll_fn(|context| Pin::new(&mut *stream).poll_write_vectored(context, &slices[..count]));
            let written = self.timer.timeout_at(deadline, abortable(abort.as_mut(), writing)).await;
            match written.ok_or(Interrupted::TimedOut)?? {
                Ok(written @ 1..) => {
                    self.sent_any = true;
                    parts.advance(written);
                }
                Ok(0) | Err(_) => return Err(Interrupted::Closed),
            }
        }
        if !self.stream.has_unflushed_tls() {
            // The kernel has all bytes: from here on the message may have been sent.
            return Ok(());
        }
        let deadline = total_deadline.min(postroad_env::now() + self.timeouts.write);
        let flushed = self.timer.timeout_at(deadline, abortable(abort, self.stream.flush())).await;
        flushed.ok_or(Interrupted::TimedOut)??.map_err(|_| Interrupted::Closed)
    }

    async fn read(
        &mut self,
        deadline: Instant,
        abort: Pin<&mut impl Future<Output = ()>>,
    ) -> Result<(), Interrupted> {
        self.input.reserve(READ_BYTES);
        let reading = abortable(abort, self.stream.read_buf(&mut self.input));
        match self.timer.timeout_at(deadline, reading).await.ok_or(Interrupted::TimedOut)?? {
            Ok(1..) => Ok(()),
            Ok(0) | Err(_) => Err(Interrupted::Closed),
        }
    }

    async fn handshake(&mut self, tls: &ClientTls, server_name: &str) {
        match self.start_tls(tls, server_name).await {
            Some(Ok(stream)) => {
                self.tls = tls_info(stream.get_ref().1).0;
                self.stream = Stream::Tls(Box::new(TlsStream::Client(stream)));
                self.session.tls_established(postroad_env::now());
            }
            failed => {
                if let Some(Err(error)) = &failed {
                    tracing::debug!(%error, server = server_name, "TLS handshake with a server failed");
                }
                match &failed {
                    Some(Err(error)) if is_plaintext(error) => self.session.plaintext_instead_of_handshake(),
                    _ => drop(self.session.connection_lost(failed.is_none())),
                }
            }
        }
    }

    async fn start_tls(
        &mut self,
        tls: &ClientTls,
        server_name: &str,
    ) -> Option<io::Result<client::TlsStream<Socket>>> {
        let Some(socket) = self.stream.take_socket(&self.input) else {
            return Some(Err(io::ErrorKind::NotConnected.into()));
        };
        let name = match (ServerName::try_from(server_name), socket.peer_addr()) {
            (Ok(name), _) => name.to_owned(),
            // Some MX names are not valid TLS server names; without verification none is needed.
            (Err(_), Ok(address)) if !tls.is_verified() => ServerName::IpAddress(address.ip().into()),
            (Err(_), _) => return Some(Err(io::ErrorKind::InvalidInput.into())),
        };
        let deadline = postroad_env::now() + self.timeouts.start_tls;
        let connecting = Box::pin(tls.connector().connect(name, socket));
        self.timer.timeout_at(deadline, connecting).await
    }
}

/// Returns true when the server sent something other than TLS records.
fn is_plaintext(error: &io::Error) -> bool {
    let cause = error.get_ref().and_then(|cause| cause.downcast_ref::<rustls::Error>());
    matches!(cause, Some(rustls::Error::InvalidMessage(rustls::InvalidMessage::InvalidContentType)))
}

/// Returns how long a message of this size may take at the minimum rate.
fn transfer_time_max(bytes: u64) -> Duration {
    Duration::from_secs(bytes / BYTES_PER_SECOND_MIN)
}

/// Polls `operation`, checking `abort` immediately before each poll.
async fn abortable<T>(
    abort: Pin<&mut impl Future<Output = ()>>,
    operation: impl Future<Output = T>,
) -> Result<T, Interrupted> {
    tokio::select! {
        biased;
        () = abort => Err(Interrupted::Aborted),
        done = operation => Ok(done),
    }
}

/// Corrects results for a message whose end was never written: whatever the server replied, it cannot have the message.
fn correct_for_incomplete_write(results: Vec<RecipientResult>, incomplete: bool) -> Vec<RecipientResult> {
    if !incomplete {
        return results;
    }
    let correct = |result| match result {
        RecipientResult::Unknown(lost) => RecipientResult::NotSent(lost),
        RecipientResult::Reply(Phase::Message, reply) if reply.is_positive() => {
            RecipientResult::NotSent(Lost::Closed)
        }
        result => result,
    };
    results.into_iter().map(correct).collect()
}
