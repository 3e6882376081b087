//! The server session without a network, with its own clock.

use std::{
    collections::VecDeque,
    io,
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::BytesMut;
use postroad_smtp::{
    server::{Output, Peer as Client, ServerConfig, ServerSession, Service, TlsInfo},
    tolerance::Tolerant,
};

use super::{Envelope, Settings, play::Peer, play::TestPolicy};

/// A session without a network.
#[derive(Debug)]
pub struct BareSession {
    session: ServerSession<()>,
    policy: TestPolicy,
    now: Instant,
    deadline: Instant,
    input: BytesMut,
    lines: VecDeque<String>,
    rest: Vec<u8>,
    starting_tls: bool,
    greeted: bool,
    closed: bool,
}

impl Settings {
    pub(super) fn server_config(&self) -> ServerConfig {
        let usual = ServerConfig::default();
        ServerConfig {
            hostname: "mail.test".into(),
            service: if self.relay { Service::Relay } else { Service::Submission },
            message_size_max: self.size_max.unwrap_or(usual.message_size_max),
            recipients_max: self.recipients_max.unwrap_or(usual.recipients_max),
            refusals_max: self.refusals_max.unwrap_or(usual.refusals_max),
            tls_available: !self.no_starttls,
            tolerant: if self.strict { Tolerant::Nobody } else { Tolerant::Known },
            ..usual
        }
    }
}

impl BareSession {
    /// Makes a session before its greeting.
    #[must_use]
    pub fn new(settings: &Settings) -> Self {
        let now = postroad_env::now();
        let client = Client {
            ip: IpAddr::from([127, 0, 0, 1]),
            tls: settings.implicit_tls.then(tls),
            identity: (!settings.anonymous).then_some(()),
        };
        Self {
            session: ServerSession::new(Arc::new(settings.server_config()), client, now),
            policy: TestPolicy::default(),
            now,
            deadline: now,
            input: BytesMut::new(),
            lines: VecDeque::new(),
            rest: Vec::new(),
            starting_tls: false,
            greeted: false,
            closed: false,
        }
    }

    fn run(&mut self) {
        self.greeted = true;
        while !self.closed && !self.starting_tls {
            match self.session.poll(self.now, &mut self.input) {
                Output::Read(deadline) => {
                    self.deadline = deadline;
                    break;
                }
                Output::Ask(question) => self.session.answer(self.now, self.policy.decide(question)),
                Output::StartTls => self.starting_tls = true,
                Output::Close | Output::Quit => self.closed = true,
            }
        }
        self.take_replies();
    }

    fn take_replies(&mut self) {
        self.rest.extend_from_slice(&self.session.take_replies());
        while let Some(end) = self.rest.windows(2).position(|pair| pair == b"\r\n") {
            let line: Vec<u8> = self.rest.drain(..end + 2).take(end).collect();
            self.lines.push_back(String::from_utf8_lossy(&line).into_owned());
        }
    }
}

fn tls() -> TlsInfo {
    TlsInfo("TLSv1.3 TLS_AES_128_GCM_SHA256".into())
}

impl Peer for BareSession {
    async fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.input.extend_from_slice(bytes);
        self.run();
        Ok(())
    }

    async fn line(&mut self) -> io::Result<Option<String>> {
        if !self.greeted {
            self.run();
        }
        match self.lines.pop_front() {
            Some(line) => Ok(Some(line)),
            None if self.closed => Ok(None),
            None => Err(io::Error::other("the session sent nothing and waits for input")),
        }
    }

    async fn start_tls(&mut self) -> io::Result<()> {
        if !std::mem::take(&mut self.starting_tls) {
            return Err(io::Error::other("the session does not wait for TLS"));
        }
        self.session.tls_established(self.now, tls());
        Ok(())
    }

    fn wait(&mut self, duration: Duration) -> bool {
        self.now += duration;
        if self.now >= self.deadline && !self.closed {
            self.session.timed_out();
            self.run();
        }
        true
    }

    fn shut_down(&mut self) -> bool {
        if !self.session.shut_down() {
            // The session shuts down after the current message.
            return true;
        }
        self.run();
        true
    }

    fn accepted(&mut self) -> Option<Option<Envelope>> {
        Some(self.policy.accepted.next())
    }
}
