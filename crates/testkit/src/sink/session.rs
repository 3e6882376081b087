//! One session of the sink: the SMTP that the script and the ledger need.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use bytes::{Buf, Bytes, BytesMut};
use rand::RngExt;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::TcpStream,
};

use super::{
    Shared, content,
    ledger::{Record, RecordNumber, ReplyState},
    meter::Connected,
    script::{Action, Limits, Phase, Receiver, Rule, Script, Tls},
};

/// The longest command line.
const LINE_BYTES_MAX: usize = 64 << 10;
/// More lines without a reply code than any client should pass over.
const GARBAGE_LINES: usize = 100;
/// The size of reads while commands are expected, and while content is.
const COMMAND_READ_BYTES: usize = 2 << 10;
const CONTENT_READ_BYTES: usize = 32 << 10;

/// Serves one client until the client or the script ends the session.
pub(super) async fn serve(stream: TcpStream, client: SocketAddr, shared: Arc<Shared>) {
    let implicit = shared.script.read().tls == Tls::Implicit;
    let _ = stream.set_nodelay(true);
    if implicit {
        return secure(stream, client, shared, true).await;
    }
    let mut session = Session::new(stream, client.ip(), shared.clone(), false);
    match session.run(true).await {
        End::Closed => {}
        End::Reset => drop(session.stream.set_zero_linger()),
        End::StartTls => {
            let stream = session.into_stream();
            Box::pin(secure(stream, client, shared, false)).await;
        }
    }
}

async fn secure(stream: TcpStream, client: SocketAddr, shared: Arc<Shared>, greet: bool) {
    let Some(tls) = shared.tls.clone() else { return };
    let Ok(stream) = tls.accept(stream).await else { return };
    let mut session = Session::new(stream, client.ip(), shared, true);
    session.run(greet).await;
    let _ = session.stream.shutdown().await;
}

/// How a session ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Closed,
    Reset,
    StartTls,
}

type Step<T = ()> = Result<T, End>;

#[derive(Debug)]
struct Session<S> {
    stream: S,
    client: IpAddr,
    shared: Arc<Shared>,
    script: Arc<Script>,
    secure: bool,
    input: BytesMut,
    output: Vec<u8>,
    envelope: Option<Envelope>,
    messages: u32,
    connected: Vec<Connected>,
    accepted: AcceptedCopies,
}

#[derive(Debug, Default)]
struct Envelope {
    sender: Box<str>,
    recipients: Vec<Box<str>>,
}

/// Accepted copies whose reply is not known to be read; dropping it records replies that are not written as lost.
#[derive(Debug)]
struct AcceptedCopies {
    shared: Arc<Shared>,
    unanswered: Vec<(RecordNumber, usize)>,
    /// The reply is written, and the client has sent nothing since.
    unread: Vec<(RecordNumber, usize)>,
}

impl AcceptedCopies {
    fn record_replies(&mut self, written: bool) {
        for (first, count) in self.unanswered.drain(..) {
            self.shared.ledger.record_reply(first, count, written);
            if written {
                self.unread.push((first, count));
            }
        }
    }

    fn record_read(&mut self) {
        for (first, count) in self.unread.drain(..) {
            self.shared.ledger.record_read(first, count);
        }
    }
}

impl Drop for AcceptedCopies {
    fn drop(&mut self) {
        self.record_replies(false);
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Session<S> {
    fn new(stream: S, client: IpAddr, shared: Arc<Shared>, secure: bool) -> Self {
        let script = shared.script.read().clone();
        Self {
            stream,
            client,
            script,
            secure,
            input: BytesMut::new(),
            output: Vec::with_capacity(512),
            envelope: None,
            messages: 0,
            connected: Vec::new(),
            accepted: AcceptedCopies { shared: shared.clone(), unanswered: Vec::new(), unread: Vec::new() },
            shared,
        }
    }

    fn into_stream(self) -> S {
        self.stream
    }

    async fn run(&mut self, greet: bool) -> End {
        match self.converse(greet).await {
            Ok(()) => End::Closed,
            Err(end) => end,
        }
    }

    async fn converse(&mut self, greet: bool) -> Step {
        if greet {
            let greeting = format!("220 {} ESMTP", self.script.hostname);
            self.respond(Phase::Connect, None, &greeting).await?;
        }
        loop {
            while let Some(line) = self.next_line()? {
                self.script = self.shared.script.read().clone();
                self.handle(&line).await?;
            }
            self.flush().await?;
            self.read(COMMAND_READ_BYTES).await?;
        }
    }

    fn next_line(&mut self) -> Step<Option<Bytes>> {
        let Some(end) = memchr::memchr(b'\n', &self.input) else {
            return if self.input.len() > LINE_BYTES_MAX { Err(End::Closed) } else { Ok(None) };
        };
        let line = self.input.split_to(end + 1).freeze();
        let bare = content::bare_newlines(&line);
        self.shared.ledger.count_bare_newlines(bare);
        Ok(Some(line))
    }

    async fn read(&mut self, bytes: usize) -> Step {
        self.input.reserve(bytes);
        match self.stream.read_buf(&mut self.input).await {
            Ok(0) | Err(_) => Err(End::Closed),
            Ok(_) => {
                self.accepted.record_read();
                Ok(())
            }
        }
    }

    async fn flush(&mut self) -> Step {
        if self.output.is_empty() {
            return Ok(());
        }
        let written = self.stream.write_all(&self.output).await.is_ok() && self.stream.flush().await.is_ok();
        self.output.clear();
        self.accepted.record_replies(written);
        if written { Ok(()) } else { Err(End::Closed) }
    }

    async fn handle(&mut self, line: &[u8]) -> Step {
        let line = line.trim_ascii_end();
        let verb = line.get(..4).unwrap_or(line);
        let is = |name: &[u8]| verb.eq_ignore_ascii_case(name);
        if is(b"MAIL") {
            self.mail(line).await
        } else if is(b"RCPT") {
            self.recipient(line).await
        } else if is(b"DATA") {
            self.data().await
        } else if is(b"EHLO") {
            self.envelope = None;
            let reply = self.ehlo_reply();
            self.respond(Phase::Hello, None, &reply).await.map(drop)
        } else if is(b"HELO") {
            self.envelope = None;
            let reply = format!("250 {}", self.script.hostname);
            self.respond(Phase::Hello, None, &reply).await.map(drop)
        } else if is(b"RSET") || is(b"NOOP") {
            self.envelope = if is(b"RSET") { None } else { self.envelope.take() };
            self.respond(Phase::Reset, None, "250 2.0.0 ok").await.map(drop)
        } else if is(b"QUIT") {
            self.respond(Phase::Quit, None, "221 2.0.0 bye").await?;
            self.flush().await?;
            Err(End::Closed)
        } else if line.eq_ignore_ascii_case(b"STARTTLS") && self.offers_tls() {
            self.start_tls().await
        } else {
            self.put("500 5.5.1 unknown command");
            Ok(())
        }
    }

    fn offers_tls(&self) -> bool {
        self.script.tls == Tls::Starttls && self.shared.tls.is_some() && !self.secure
    }

    fn ehlo_reply(&self) -> String {
        let script = &self.script;
        let mut reply = script.hostname.to_string();
        let size = format!("SIZE {}", script.size_max);
        for (capability, offered) in [
            ("PIPELINING", script.pipelining),
            (&size, script.size_max > 0),
            ("8BITMIME", script.eight_bit_mime),
            ("SMTPUTF8", script.smtputf8),
            ("ENHANCEDSTATUSCODES", true),
            ("STARTTLS", self.offers_tls()),
        ] {
            if offered {
                reply.push('\n');
                reply.push_str(capability);
            }
        }
        format!("250 {reply}")
    }

    async fn start_tls(&mut self) -> Step {
        if !self.respond(Phase::Starttls, None, "220 2.0.0 go ahead").await? {
            return Ok(());
        }
        self.flush().await?;
        // Bytes before the handshake may be an attacker's: close.
        Err(if self.input.is_empty() { End::StartTls } else { End::Closed })
    }

    async fn mail(&mut self, line: &[u8]) -> Step {
        if self.envelope.is_some() {
            self.put("503 5.5.1 nested MAIL");
            return Ok(());
        }
        let max = self.script.messages_per_connection_max;
        if max > 0 && self.messages >= max {
            self.put("421 4.7.0 too many messages on this connection");
            self.flush().await?;
            return Err(End::Closed);
        }
        let Some(sender) = path(line) else {
            self.put("501 5.1.7 bad sender address");
            return Ok(());
        };
        if self.respond(Phase::Mail, None, "250 2.1.0 ok").await? {
            self.envelope = Some(Envelope { sender, recipients: Vec::new() });
        }
        Ok(())
    }

    async fn recipient(&mut self, line: &[u8]) -> Step {
        let Some(envelope) = &self.envelope else {
            self.put("503 5.5.1 MAIL first");
            return Ok(());
        };
        let Some(recipient) = path(line).filter(|recipient| !recipient.is_empty()) else {
            self.put("501 5.1.3 bad recipient address");
            return Ok(());
        };
        let script = self.script.clone();
        if let Some(receiver) = script.receiver(domain_of(&recipient)) {
            if self.is_greylisted(receiver, &envelope.sender, &recipient) {
                self.put("451 4.7.1 greylisted, try again later");
                return Ok(());
            }
            if !self.count_against(&receiver.limits, domain_of(&recipient)).await? {
                return Ok(());
            }
        }
        let positive = self.respond(Phase::Recipient, Some(&recipient), "250 2.1.5 ok").await?;
        if let Some(envelope) = self.envelope.as_mut().filter(|_| positive) {
            envelope.recipients.push(recipient);
        }
        Ok(())
    }

    fn is_greylisted(&self, receiver: &Receiver, sender: &str, recipient: &str) -> bool {
        let Some(wait) = receiver.greylist_secs else { return false };
        let now = postroad_env::now();
        let key = format!("{}\t{sender}\t{recipient}", self.client);
        let first = *self.shared.greylist.lock().entry(key.into()).or_insert(now);
        now.duration_since(first) < Duration::from_secs_f64(wait)
    }

    /// Counts the first recipient of a domain in a transaction; false when a limit refuses it.
    async fn count_against(&mut self, limits: &Limits, domain: &str) -> Step<bool> {
        let seen = |envelope: &Envelope| envelope.recipients.iter().any(|other| domain_of(other) == domain);
        if limits.is_empty() || self.envelope.as_ref().is_some_and(seen) {
            return Ok(true);
        }
        let mut within = true;
        let index = match self.connected.iter().position(|connected| connected.is_for(domain)) {
            Some(index) => index,
            None => {
                let (connected, allowed) = self.shared.meters.connect(self.client, domain, limits);
                within = allowed;
                self.connected.push(connected);
                self.connected.len() - 1
            }
        };
        let connected = &mut self.connected[index];
        within &= connected.count_on_connection(limits);
        let in_windows = connected.count_in_windows(postroad_env::now(), limits);
        if !limits.enforce || (within && in_windows) {
            return Ok(true);
        }
        if !within {
            self.put("421 4.7.0 too many connections, or messages on this connection");
            self.flush().await?;
            return Err(End::Closed);
        }
        self.put("451 4.7.1 too many messages, slow down");
        Ok(false)
    }

    async fn data(&mut self) -> Step {
        let refusal = match &self.envelope {
            None => "503 5.5.1 MAIL first",
            Some(envelope) if envelope.recipients.is_empty() => "554 5.5.1 no valid recipients",
            Some(_) => "",
        };
        if !refusal.is_empty() {
            self.put(refusal);
            return Ok(());
        }
        let recipient = self.recipient_with_rule(Phase::Data);
        if !self.respond(Phase::Data, recipient.as_deref(), "354 go ahead").await? {
            return Ok(());
        }
        self.flush().await?;
        let mut end = content::EndOfData::default();
        let (content_len, wire_len) = loop {
            if let Some(found) = end.find(&self.input) {
                break found;
            }
            let max = usize::try_from(self.script.size_max).unwrap_or(usize::MAX);
            if max > 0 && self.input.len() > max.saturating_add(CONTENT_READ_BYTES) {
                self.put("552 5.3.4 message too large");
                self.flush().await?;
                return Err(End::Closed);
            }
            self.read(CONTENT_READ_BYTES).await?;
        };
        self.accept_message(content_len, wire_len).await
    }

    async fn accept_message(&mut self, content_len: usize, wire_len: usize) -> Step {
        let envelope = self.envelope.take().unwrap_or_default();
        self.messages += 1;
        let wire = &self.input[..content_len];
        self.shared.ledger.count_bare_newlines(content::bare_newlines(wire));
        let summary = content::summarise(&content::unstuff(wire));
        self.input.advance(wire_len);
        let rule = self.rule(Phase::Message, &envelope.recipients);
        let refused =
            rule.as_ref().and_then(|rule| rule.reply.as_deref()).is_some_and(|reply| !is_positive(reply));
        if !refused {
            let (at, since_start) = (postroad_env::wall(), self.shared.ledger.since_start());
            let record = |recipient| Record {
                at,
                since_start,
                source: self.client,
                sender: envelope.sender.clone(),
                recipient,
                size: summary.size,
                body_hash: summary.body_hash,
                message: summary.message,
                token: summary.token.clone(),
                reply: ReplyState::Open,
            };
            let count = envelope.recipients.len();
            let records = envelope.recipients.into_iter().map(record).collect();
            self.accepted.unanswered.push((self.shared.ledger.add(records), count));
        }
        self.apply(rule, "250 2.0.0 accepted").await.map(drop)
    }

    /// The first recipient whose domain has a rule for a phase that concerns all recipients.
    fn recipient_with_rule(&self, phase: Phase) -> Option<Box<str>> {
        if self.script.domains.is_empty() {
            return None;
        }
        let has_rule = |recipient: &str| {
            let receiver = self.script.receiver(domain_of(recipient));
            receiver.is_some_and(|receiver| receiver.rules.iter().any(|rule| rule.phase == phase))
        };
        self.envelope.as_ref()?.recipients.iter().find(|recipient| has_rule(recipient)).cloned()
    }

    async fn respond(&mut self, phase: Phase, recipient: Option<&str>, default: &str) -> Step<bool> {
        if self.script.rules.is_empty() && self.script.domains.is_empty() {
            self.put(default);
            return Ok(true);
        }
        let recipients: Vec<Box<str>> = recipient.map(Box::from).into_iter().collect();
        let rule = self.rule(phase, &recipients);
        self.apply(rule, default).await
    }

    /// The first rule that applies: one of a recipient's domain, or one for all sessions if no domain is in the script.
    fn rule(&self, phase: Phase, recipients: &[Box<str>]) -> Option<Rule> {
        if self.script.rules.is_empty() && self.script.domains.is_empty() {
            return None;
        }
        let receivers: Vec<&Receiver> =
            recipients.iter().filter_map(|recipient| self.script.receiver(domain_of(recipient))).collect();
        let of_domains = receivers.iter().flat_map(|receiver| &receiver.rules);
        let for_all = self.script.rules.iter().filter(|_| receivers.is_empty());
        of_domains.chain(for_all).find(|rule| rule.phase == phase && self.is_drawn(rule.probability)).cloned()
    }

    fn is_drawn(&self, probability: f64) -> bool {
        probability >= 1.0 || self.shared.random.lock().random_bool(probability.clamp(0.0, 1.0))
    }

    /// Replies as the rule says; true when the reply is positive.
    async fn apply(&mut self, rule: Option<Rule>, default: &str) -> Step<bool> {
        let Some(rule) = rule else {
            self.put(default);
            return Ok(true);
        };
        if rule.delay_ms > 0 {
            self.flush().await?;
            tokio::time::sleep(rule.delay()).await;
        }
        let reply = rule.reply.as_deref().unwrap_or(default);
        match rule.then {
            Action::CloseSilently => return Err(End::Closed),
            Action::Reset => return Err(End::Reset),
            Action::Stall => return self.stall().await,
            Action::Garbage => {
                let lines = b"\x00\xff\x16\x03 no reply at all\r\n".repeat(GARBAGE_LINES);
                self.output.extend_from_slice(&lines);
            }
            Action::GoOn | Action::Close | Action::HalfClose => self.put(reply),
            Action::Raw => self.output.extend_from_slice(reply.as_bytes()),
            Action::Inject => {
                self.put(reply);
                self.output.extend_from_slice(b"250-injected.test\r\n250 PIPELINING\r\n");
                self.flush().await?;
                return self.stall().await;
            }
        }
        if rule.byte_delay_ms > 0 {
            self.drip(Duration::from_millis(rule.byte_delay_ms)).await?;
        }
        match rule.then {
            Action::Close => {
                self.flush().await?;
                Err(End::Closed)
            }
            Action::HalfClose => {
                self.flush().await?;
                let _ = self.stream.shutdown().await;
                self.stall().await
            }
            _ => Ok(is_positive(reply)),
        }
    }

    async fn drip(&mut self, delay: Duration) -> Step {
        let bytes = std::mem::take(&mut self.output);
        for byte in &bytes {
            let written = self.stream.write_all(&[*byte]).await.is_ok();
            if !(written && self.stream.flush().await.is_ok()) {
                return Err(End::Closed);
            }
            tokio::time::sleep(delay).await;
        }
        self.accepted.record_replies(true);
        Ok(())
    }

    /// Reads and discards until the client closes.
    async fn stall(&mut self) -> Step<bool> {
        loop {
            self.input.clear();
            self.read(COMMAND_READ_BYTES).await?;
        }
    }

    /// Adds a reply of one or more lines to the output.
    fn put(&mut self, reply: &str) {
        if !reply.contains('\n') {
            self.output.extend_from_slice(reply.as_bytes());
            self.output.extend_from_slice(b"\r\n");
            return;
        }
        let code = reply.get(..3).unwrap_or("250");
        let mut lines = reply.get(4..).unwrap_or("").split('\n').peekable();
        while let Some(line) = lines.next() {
            let separator = if lines.peek().is_some() { '-' } else { ' ' };
            self.output.extend_from_slice(format!("{code}{separator}{line}\r\n").as_bytes());
        }
    }
}

fn is_positive(reply: &str) -> bool {
    reply.trim_start().starts_with(['2', '3'])
}

/// The text between `<` and the `>` at the end of the path.
fn path(line: &[u8]) -> Option<Box<str>> {
    let line = std::str::from_utf8(line).ok()?;
    let start = line.find('<')? + 1;
    let rest = &line[start..];
    // A quoted local part may contain `>`; parameters after the path do not.
    let end = rest.rfind('>')?;
    Some(rest[..end].into())
}

fn domain_of(address: &str) -> &str {
    address.rsplit_once('@').map_or("", |(_, domain)| domain)
}
