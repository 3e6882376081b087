//! One SMTP client: feeds bytes to its session, sends replies, and asks the policy.

use std::{
    future::poll_fn,
    io,
    net::SocketAddr,
    pin::{Pin, pin},
    sync::Arc,
    task::Poll,
    time::{Duration, Instant},
};

use bytes::BytesMut;
use futures::FutureExt;
use postroad_core::Reply;
use postroad_smtp::server::{Answer, Output, Peer, Question, ServerSession, TlsInfo, write_reply};
use socket2::SockRef;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time,
};
use tokio_rustls::TlsStream;
use tokio_util::{io::poll_read_buf, sync::WaitForCancellationFutureOwned};

use super::{Listener, Policy, Session, log_refused};
use crate::{
    connect::Socket,
    smtp::stream::{Stream, tls_info},
    timer::DeadlineTimer,
};

/// A typical message fits one read. A client that fills it gets the larger size.
const READ_BYTES: usize = 16 << 10;
const READ_BYTES_BULK: usize = 64 << 10;
/// With less room than this a read would split a typical message.
const ROOM_BYTES_MIN: usize = 10 << 10;
/// How long to read after the last reply: closing with unread input sends RST, which can destroy the reply.
const LINGER: Duration = Duration::from_secs(1);
const LINGER_BYTES_MAX: usize = 64 << 10;

pub(super) struct Connection<P: Policy> {
    shared: Arc<Listener<P>>,
    client: SocketAddr,
    stream: Stream,
    input: BytesMut,
    timer: DeadlineTimer,
    shutdown: Pin<Box<WaitForCancellationFutureOwned>>,
    draining: bool,
    /// The last read filled the buffer.
    bulk: bool,
    /// A message was accepted, and the client has sent nothing since that shows it received the 250.
    unconfirmed_250: bool,
}

/// What ended a wait for input.
enum Event {
    Bytes,
    /// The client closed its side.
    End,
    TimedOut,
    ShutDown,
}

impl<P: Policy> Connection<P> {
    pub(super) fn new(shared: Arc<Listener<P>>, client: SocketAddr) -> Self {
        let shutdown = Box::pin(shared.shutdown.clone().cancelled_owned());
        Self {
            shared,
            client,
            stream: Stream::Handshaking,
            input: BytesMut::new(),
            timer: DeadlineTimer::default(),
            shutdown,
            draining: false,
            bulk: false,
            unconfirmed_250: false,
        }
    }

    /// Serves the client until the connection ends.
    pub(super) async fn run(mut self, socket: TcpStream) {
        self.shared.metrics.connections.increment(1);
        if let Err(error) = self.serve(socket.into()).await {
            tracing::debug!(%error, client = %self.client, "SMTP connection lost");
        }
    }

    async fn serve(&mut self, socket: Socket) -> io::Result<()> {
        let tls = if self.shared.implicit_tls {
            Some(self.handshake(socket).await?)
        } else {
            self.stream = Stream::Plain(socket);
            None
        };
        if let Err(refusal) = self.shared.policy.accepting() {
            self.shared.metrics.refused_policy.increment(1);
            log_refused("connect", "policy", self.client.ip(), None, &refusal);
            return self.refuse(&refusal).await;
        }
        if !self.check_early_talker().await? {
            return Ok(());
        }
        let ip = self.client.ip().to_canonical();
        let peer = Peer { ip, tls, identity: self.shared.policy.network_identity(ip) };
        let mut session = ServerSession::new(Arc::clone(&self.shared.server), peer, postroad_env::now());
        self.limit_message_size(&mut session);
        self.run_session(&mut session).await
    }

    async fn run_session(&mut self, session: &mut ServerSession<P::Identity>) -> io::Result<()> {
        loop {
            match session.poll(postroad_env::now(), &mut self.input) {
                Output::Ask(question) => self.answer(session, question).await,
                Output::Read(deadline) => {
                    if self.draining && session.shut_down() {
                        continue;
                    }
                    self.send_replies(session).await?;
                    match self.receive(deadline).await? {
                        Event::Bytes => {}
                        Event::End => return Ok(()),
                        Event::TimedOut => {
                            self.shared.metrics.timeouts.increment(1);
                            session.timed_out();
                        }
                        Event::ShutDown => self.draining = true,
                    }
                }
                Output::StartTls => {
                    self.send_replies(session).await?;
                    let socket = self.stream.take_socket(&self.input).ok_or(io::ErrorKind::NotConnected)?;
                    let tls = self.handshake(socket).await?;
                    session.tls_established(postroad_env::now(), tls);
                }
                // An unconfirmed 250 may be sent together with the 221: then close slowly so that both arrive.
                Output::Quit if !self.unconfirmed_250 => {
                    self.send_replies(session).await?;
                    return self.close_after_quit().await;
                }
                Output::Close | Output::Quit => {
                    self.send_replies(session).await?;
                    return self.close().await;
                }
            }
        }
    }

    async fn answer(&mut self, session: &mut ServerSession<P::Identity>, question: Question) {
        let is_message = matches!(question, Question::Message(_));
        let is_login = matches!(question, Question::Authenticate(_));
        let session_view = Session {
            client: self.client,
            helo: session.helo(),
            extended: session.is_extended(),
            tls: session.tls(),
            identity: session.identity(),
            logged_in: session.is_logged_in(),
        };
        let answer = self.shared.policy.decide(session_view, question).await;
        if is_message && matches!(&answer, Answer::Reply(reply) if reply.is_positive()) {
            self.unconfirmed_250 = true;
            if self.stream.peer_has_finished() {
                self.count_undelivered_ack();
            }
        }
        session.answer(postroad_env::now(), answer);
        if is_login {
            self.limit_message_size(session);
        }
    }

    /// S-201: the limit that is announced and enforced is that of the client's tenant, once it is known.
    fn limit_message_size(&self, session: &mut ServerSession<P::Identity>) {
        let own = session.identity().and_then(|identity| self.shared.policy.message_size_max(identity));
        session.limit_message_size(own);
    }

    /// S-037: the message was accepted once; the client may send it again.
    fn count_undelivered_ack(&mut self) {
        if std::mem::take(&mut self.unconfirmed_250) {
            self.shared.metrics.ack_undelivered.increment(1);
            tracing::info!(client = %self.client, "ack_undelivered: client disconnected before it received the 250; it may send the message again");
        }
    }

    async fn send_replies(&mut self, session: &mut ServerSession<P::Identity>) -> io::Result<()> {
        self.shared.metrics.note_tolerated(&session.take_tolerated());
        let replies = session.take_replies();
        if replies.is_empty() {
            return Ok(());
        }
        for refusal in session.take_refused() {
            let helo = Some(session.helo()).filter(|helo| !helo.is_empty());
            log_refused("session", "protocol", self.client.ip(), helo, &refusal);
        }
        let sent = self.send(&replies).await;
        if sent.is_err() {
            self.count_undelivered_ack();
        }
        sent
    }

    async fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        let sent = self.stream.send_at_once(bytes)?;
        if sent == bytes.len() {
            return Ok(());
        }
        let deadline = postroad_env::now() + self.shared.server.command_timeout;
        let stream = &mut self.stream;
        let sending = async {
            stream.write_all(&bytes[sent..]).await?;
            stream.flush().await
        };
        self.timer.timeout_at(deadline, sending).await.unwrap_or_else(|| Err(io::ErrorKind::TimedOut.into()))
    }

    /// Waits for bytes, or for shutdown unless the connection is draining already.
    async fn receive(&mut self, deadline: Instant) -> io::Result<Event> {
        self.make_room();
        let Self { stream, input, shutdown, draining, .. } = self;
        let before = input.len();
        let next = poll_fn(|context| {
            if let Poll::Ready(read) = poll_read_buf(Pin::new(&mut *stream), context, input) {
                let event = |bytes| if bytes == 0 { Event::End } else { Event::Bytes };
                return Poll::Ready(read.map(event));
            }
            if !*draining && shutdown.as_mut().poll(context).is_ready() {
                return Poll::Ready(Ok(Event::ShutDown));
            }
            Poll::Pending
        });
        let event = self.timer.timeout_at(deadline, next).await.unwrap_or(Ok(Event::TimedOut));
        match &event {
            Ok(Event::Bytes) => {
                self.unconfirmed_250 = false;
                self.bulk = self.input.len() == self.input.capacity();
                self.shared.metrics.received.increment((self.input.len() - before) as u64);
            }
            Err(_) => self.count_undelivered_ack(),
            Ok(_) => {}
        }
        event
    }

    fn make_room(&mut self) {
        let room = self.input.capacity() - self.input.len();
        if self.bulk {
            self.input.reserve(READ_BYTES_BULK);
        } else if self.input.is_empty() && room > READ_BYTES {
            // Shrink after a large message: thousands of connections may be idle.
            self.input = BytesMut::with_capacity(READ_BYTES);
        } else if room < ROOM_BYTES_MIN {
            self.input.reserve(READ_BYTES);
        }
    }

    /// Reads what the client sent before the greeting (S-002); returns false when it has disconnected.
    async fn check_early_talker(&mut self) -> io::Result<bool> {
        self.make_room();
        let delay = self.shared.greeting_delay;
        if !delay.is_zero() {
            let reading = self.stream.read_buf(&mut self.input);
            return Ok(
                self.timer.timeout_at(postroad_env::now() + delay, reading).await.transpose()? != Some(0)
            );
        }
        let read = match &mut self.stream {
            // The runtime has not polled this socket yet, so ask the kernel.
            Stream::Plain(Socket::Tcp(socket)) => {
                let mut early = [0; 256];
                let read = io::Read::read(&mut &*SockRef::from(&*socket), &mut early);
                read.inspect(|bytes| self.input.extend_from_slice(&early[..*bytes]))
            }
            stream => {
                let read = stream.read_buf(&mut self.input).now_or_never();
                read.unwrap_or(Err(io::ErrorKind::WouldBlock.into()))
            }
        };
        match read {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(true),
            read => read.map(|bytes| bytes > 0),
        }
    }

    async fn handshake(&mut self, socket: Socket) -> io::Result<TlsInfo> {
        let acceptor = self.shared.acceptor.clone().ok_or(io::ErrorKind::Unsupported)?;
        let limit = self.shared.handshake_timeout;
        let accepted = {
            let accepting = pin!(time::timeout(limit, acceptor.accept(socket)));
            accepting.await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
        };
        let stream = accepted.inspect_err(|error| {
            self.shared.metrics.handshakes_failed.increment(1);
            tracing::debug!(%error, client = %self.client, "TLS handshake of an SMTP client failed");
        })?;
        let tls = tls_info(stream.get_ref().1);
        self.stream = Stream::Tls(Box::new(TlsStream::Server(stream)));
        Ok(tls)
    }

    async fn refuse(&mut self, refusal: &Reply) -> io::Result<()> {
        let mut line = BytesMut::new();
        write_reply(&mut line, refusal);
        self.send(&line).await?;
        self.close().await
    }

    /// Closes the connection after QUIT.
    async fn close_after_quit(&mut self) -> io::Result<()> {
        let Self { stream, timer, .. } = self;
        timer.timeout_at(postroad_env::now() + LINGER, stream.finish()).await.unwrap_or(Ok(()))
    }

    /// Closes so that the last reply arrives: shuts down our side and reads until the client closes.
    async fn close(&mut self) -> io::Result<()> {
        let Self { stream, input, timer, .. } = self;
        let closing = async {
            stream.shutdown().await?;
            let mut left = LINGER_BYTES_MAX;
            loop {
                input.clear();
                input.reserve(512);
                let bytes = stream.read_buf(input).await?;
                left = left.saturating_sub(bytes);
                if bytes == 0 || left == 0 {
                    return Ok(());
                }
            }
        };
        timer.timeout_at(postroad_env::now() + LINGER, closing).await.unwrap_or(Ok(()))
    }
}
