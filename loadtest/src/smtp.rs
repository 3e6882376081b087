//! Load over SMTP: one pipelined write for the envelope, one for the content.

use std::{io, sync::Arc};

use postroad_core::MessageId;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    task::JoinSet,
};

use crate::{
    ClientArgs,
    message::MessageMaker,
    plan::{DueMessage, Plan},
    report::Tally,
};

/// The longest reply of a server.
const REPLY_BYTES_MAX: usize = 16 << 10;

pub(crate) async fn run(
    target: &str,
    clients: &ClientArgs,
    plan: &Arc<Plan>,
    tally: &Arc<Tally>,
    maker: &MessageMaker,
) -> anyhow::Result<()> {
    let mut connections = JoinSet::new();
    for _ in 0..clients.connections.max(1) {
        let sender = Sender {
            target: target.to_owned(),
            messages_max: clients.messages_per_connection,
            maker: maker.clone(),
            connection: None,
        };
        connections.spawn(send_all(sender, plan.clone(), tally.clone()));
    }
    while let Some(ended) = connections.join_next().await {
        ended?;
    }
    Ok(())
}

async fn send_all(mut sender: Sender, plan: Arc<Plan>, tally: Arc<Tally>) {
    while let Some(due_message) = plan.next().await {
        match sender.send(due_message).await {
            Ok(Answer::Accepted(id)) => tally.count_accepted(due_message, id),
            Ok(Answer::Refused(reply)) => {
                tally.count_refused(&reply);
                sender.connection = None;
            }
            Err(_) => {
                tally.count_unanswered();
                sender.connection = None;
            }
        }
    }
    if let Some(mut connection) = sender.connection {
        let _ = connection.stream.write_all(b"QUIT\r\n").await;
        let _ = connection.reply().await;
    }
}

enum Answer {
    /// With the id in the reply, if there is one.
    Accepted(Option<MessageId>),
    Refused(String),
}

struct Sender {
    target: String,
    messages_max: u64,
    maker: MessageMaker,
    connection: Option<Connection>,
}

struct Connection {
    stream: TcpStream,
    input: Vec<u8>,
    output: Vec<u8>,
    messages: u64,
}

impl Sender {
    async fn send(&mut self, due_message: DueMessage) -> io::Result<Answer> {
        let used_up =
            |connection: &Connection| self.messages_max > 0 && connection.messages >= self.messages_max;
        if let Some(mut old) = self.connection.take_if(|connection| used_up(connection)) {
            old.stream.write_all(b"QUIT\r\n").await?;
            old.reply().await?;
        }
        let connection = match &mut self.connection {
            Some(connection) => connection,
            None => match Connection::open(&self.target).await? {
                Ok(connection) => self.connection.insert(connection),
                Err(reply) => return Ok(Answer::Refused(reply)),
            },
        };
        connection.send(due_message.index, &self.maker).await
    }
}

impl Connection {
    async fn open(target: &str) -> io::Result<Result<Self, String>> {
        let stream = TcpStream::connect(target).await?;
        stream.set_nodelay(true)?;
        let mut connection = Self { stream, input: Vec::new(), output: Vec::new(), messages: 0 };
        let greeting = connection.reply().await?;
        if !greeting.starts_with("220") {
            return Ok(Err(greeting));
        }
        connection.stream.write_all(b"EHLO load.test\r\n").await?;
        let reply = connection.reply().await?;
        Ok(if reply.starts_with("250") { Ok(connection) } else { Err(reply) })
    }

    async fn send(&mut self, index: u64, maker: &MessageMaker) -> io::Result<Answer> {
        let (sender, recipient) = (&maker.sender, &maker.recipient);
        let envelope = format!("MAIL FROM:<{sender}>\r\nRCPT TO:<{recipient}>\r\nDATA\r\n");
        self.stream.write_all(envelope.as_bytes()).await?;
        for expected in ["250", "250", "354"] {
            let reply = self.reply().await?;
            if !reply.starts_with(expected) {
                return Ok(Answer::Refused(reply));
            }
        }
        self.output.clear();
        maker.write(index, &mut self.output);
        self.output.extend_from_slice(b".\r\n");
        self.stream.write_all(&self.output).await?;
        self.messages += 1;
        let reply = self.reply().await?;
        if !reply.starts_with("250") {
            return Ok(Answer::Refused(reply));
        }
        Ok(Answer::Accepted(reply.split(' ').find_map(|word| word.parse().ok())))
    }

    /// Reads one reply and returns its last line.
    async fn reply(&mut self) -> io::Result<String> {
        loop {
            while let Some(end) = memchr::memchr(b'\n', &self.input) {
                let line: Vec<u8> = self.input.drain(..=end).collect();
                if line.get(3) != Some(&b'-') {
                    return Ok(String::from_utf8_lossy(line.trim_ascii_end()).into_owned());
                }
            }
            if self.input.len() > REPLY_BYTES_MAX {
                return Err(io::ErrorKind::InvalidData.into());
            }
            if self.stream.read_buf(&mut self.input).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    }
}
