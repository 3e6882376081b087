//! Receivers of mail: they accept, defer, refuse, break off and fall silent, and record what they saw.
//!
//! No process of the simulation: nothing happens in them between two bytes of a client, so they live in its tasks and outlive
//! nothing of it.

use std::{fmt, io, net::IpAddr, net::SocketAddr, sync::Arc, time::Duration};

use futures::future::BoxFuture;
use parking_lot::Mutex;
use postroad_core::{MessageId, NodeId};
use postroad_net::{Duplex, Outside};
use postroad_oracle::{
    What,
    history::{Closed, Mail, Message, Rcpt, Reply},
};
use rand::{RngExt, SeedableRng, rngs::StdRng};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader, DuplexStream, duplex},
    time,
};
use xxhash_rust::xxh3::xxh3_64;

use super::Place;

const PIPE_BYTES: usize = 64 << 10;

/// The receivers, as one outbound node reaches them.
pub(crate) struct Receivers {
    place: Place,
    node: NodeId,
    rng: Arc<Mutex<StdRng>>,
}

impl Receivers {
    pub(crate) fn new(place: &Place, node: NodeId, seed: u64) -> Self {
        Self { place: place.clone(), node, rng: Arc::new(Mutex::new(StdRng::seed_from_u64(seed))) }
    }
}

impl fmt::Debug for Receivers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Receivers").field("node", &self.node).finish_non_exhaustive()
    }
}

impl Outside for Receivers {
    fn connect(
        &self,
        from: Option<IpAddr>,
        _: SocketAddr,
    ) -> BoxFuture<'static, io::Result<Box<dyn Duplex>>> {
        let delay = self.rng.lock().random_range(1..20);
        let refuses = self.rng.lock().random_range(0..100) == 0;
        let session = Session {
            place: self.place.clone(),
            node: self.node,
            source: from.map_or_else(|| self.node.to_string(), |from| from.to_string()),
            rng: self.rng.clone(),
            transaction: None,
        };
        Box::pin(async move {
            time::sleep(Duration::from_millis(delay)).await;
            if refuses {
                return Err(io::ErrorKind::ConnectionRefused.into());
            }
            let (ours, theirs) = duplex(PIPE_BYTES);
            tokio::spawn(session.serve(ours));
            Ok(Box::new(theirs) as Box<dyn Duplex>)
        })
    }
}

/// What a receiver does at one command.
enum Mood {
    Accepts,
    Defers,
    Refuses,
    BreaksOff,
    /// It answers after a while.
    Waits(Duration),
}

struct Session {
    place: Place,
    node: NodeId,
    source: String,
    rng: Arc<Mutex<StdRng>>,
    /// The transaction that is open: its number, and how many recipients were accepted.
    transaction: Option<(u64, u32)>,
}

impl Session {
    /// Serves until the connection ends.
    async fn serve(mut self, stream: DuplexStream) {
        let mut stream = BufReader::new(stream);
        // A client that is gone needs no answer.
        let _ = self.converse(&mut stream).await;
        self.close();
    }

    async fn converse(&mut self, stream: &mut BufReader<DuplexStream>) -> io::Result<()> {
        stream.write_all(b"220 receiver.example ESMTP\r\n").await?;
        let mut line = Vec::new();
        loop {
            line.clear();
            if stream.read_until(b'\n', &mut line).await? == 0 {
                return Ok(());
            }
            let text = String::from_utf8_lossy(&line).to_ascii_uppercase();
            let reply = match text.get(..4).unwrap_or_default() {
                "EHLO" => "250-receiver.example\r\n250-PIPELINING\r\n250-8BITMIME\r\n250 SMTPUTF8".to_owned(),
                "HELO" | "NOOP" => "250 ok".to_owned(),
                "MAIL" => self.mail().await?,
                "RCPT" => self.recipient(&String::from_utf8_lossy(&line)).await?,
                "DATA" => match self.transaction {
                    Some((_, recipients)) if recipients > 0 => {
                        stream.write_all(b"354 go ahead\r\n").await?;
                        self.message(stream).await?
                    }
                    _ => "554 5.5.1 no valid recipients".to_owned(),
                },
                "RSET" => {
                    self.close();
                    "250 ok".to_owned()
                }
                "QUIT" => {
                    stream.write_all(b"221 bye\r\n").await?;
                    return Ok(());
                }
                _ => "500 5.5.1 unknown command".to_owned(),
            };
            stream.write_all(reply.as_bytes()).await?;
            stream.write_all(b"\r\n").await?;
        }
    }

    async fn mail(&mut self) -> io::Result<String> {
        self.close();
        let transaction = self.place.recorder.number();
        self.record(What::Mail(Mail {
            transaction,
            source: self.source.clone(),
            node: Some(self.node),
            message: None,
        }));
        self.transaction = Some((transaction, 0));
        let reply = self.reply("250 2.1.0 ok", 20).await?;
        if !reply.starts_with('2') {
            self.close();
        }
        Ok(reply)
    }

    async fn recipient(&mut self, line: &str) -> io::Result<String> {
        let Some((transaction, accepted)) = self.transaction else {
            return Ok("503 5.5.1 MAIL first".to_owned());
        };
        let address = line.split(['<', '>']).nth(1).unwrap_or_default();
        let reply = self.reply("250 2.1.5 ok", 20).await?;
        let code = code_of(&reply);
        self.record(What::Rcpt(Rcpt { transaction, recipient: address.to_owned(), code }));
        self.transaction = Some((transaction, accepted + u32::from(code < 300)));
        Ok(reply)
    }

    async fn message(&mut self, stream: &mut BufReader<DuplexStream>) -> io::Result<String> {
        let Some((transaction, _)) = self.transaction.take() else { return Ok("503 5.5.1 no".to_owned()) };
        let content = match read_content(stream).await {
            Ok(content) => content,
            Err(error) => {
                self.record(What::Closed(Closed { transaction }));
                return Err(error);
            }
        };
        let (header, body) = split(&content);
        // What it decides counts, whatever becomes of the reply.
        let reply = self.decide("250 2.0.0 taken", 40);
        let code = reply.as_ref().map_or(250, |reply| code_of(reply));
        self.record(What::Message(Message {
            transaction,
            message: message_id(&header),
            token: field(&header, "X-Token: ").map(str::to_owned),
            content_hash: Some(xxh3_64(body)),
            code,
        }));
        match reply {
            Some(reply) => {
                let pause = self.rng.lock().random_range(0..30);
                time::sleep(Duration::from_millis(pause)).await;
                Ok(reply)
            }
            None => {
                self.record(What::Reply(Reply { transaction, read: false }));
                Err(io::ErrorKind::ConnectionAborted.into())
            }
        }
    }

    /// Answers after what the receiver's mood demands; one in `rarity` answers is not `good`.
    async fn reply(&mut self, good: &str, rarity: u32) -> io::Result<String> {
        let mood = self.mood(rarity);
        match mood {
            Mood::Waits(length) => {
                time::sleep(length).await;
                Ok(good.to_owned())
            }
            Mood::Accepts => Ok(good.to_owned()),
            Mood::Defers => Ok("451 4.2.0 try again later".to_owned()),
            Mood::Refuses => Ok("550 5.1.1 no such user".to_owned()),
            Mood::BreaksOff => Err(io::ErrorKind::ConnectionAborted.into()),
        }
    }

    /// Returns the reply to a message; `None` when the connection ends before it.
    fn decide(&mut self, good: &str, rarity: u32) -> Option<String> {
        match self.mood(rarity) {
            Mood::Accepts | Mood::Waits(_) => Some(good.to_owned()),
            Mood::Defers => Some("451 4.3.0 try again later".to_owned()),
            Mood::Refuses => Some("554 5.6.0 not this".to_owned()),
            Mood::BreaksOff => None,
        }
    }

    fn mood(&self, rarity: u32) -> Mood {
        let mut rng = self.rng.lock();
        if rng.random_range(0..rarity) > 0 {
            return Mood::Accepts;
        }
        match rng.random_range(0..10) {
            0..4 => Mood::Defers,
            4..6 => Mood::Refuses,
            6..8 => Mood::BreaksOff,
            _ => Mood::Waits(Duration::from_millis(rng.random_range(100..5_000))),
        }
    }

    fn close(&mut self) {
        if let Some((transaction, _)) = self.transaction.take() {
            self.record(What::Closed(Closed { transaction }));
        }
    }

    fn record(&self, what: What) {
        self.place.recorder.push(what);
    }
}

impl Drop for Session {
    /// The process of the client was killed.
    fn drop(&mut self) {
        self.close();
    }
}

async fn read_content(stream: &mut BufReader<DuplexStream>) -> io::Result<Vec<u8>> {
    let mut content = Vec::new();
    loop {
        let start = content.len();
        if stream.read_until(b'\n', &mut content).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        match &content[start..] {
            b".\r\n" => {
                content.truncate(start);
                return Ok(content);
            }
            [b'.', b'.', ..] => {
                content.remove(start);
            }
            _ => {}
        }
    }
}

/// Returns the header as text, and the body.
fn split(content: &[u8]) -> (String, &[u8]) {
    let end = content.windows(4).position(|four| four == b"\r\n\r\n").unwrap_or(content.len());
    let body = content.get(end + 4..).unwrap_or_default();
    (String::from_utf8_lossy(&content[..end]).into_owned(), body)
}

fn field<'a>(header: &'a str, name: &str) -> Option<&'a str> {
    let (_, rest) = header.split_once(name)?;
    rest.split("\r\n").next()
}

fn message_id(header: &str) -> Option<MessageId> {
    let (_, rest) = header.split_once(" id ")?;
    rest.get(..MessageId::TEXT_LEN)?.parse().ok()
}

fn code_of(reply: &str) -> u16 {
    reply.get(..3).and_then(|code| code.parse().ok()).unwrap_or(0)
}
