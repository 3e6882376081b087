//! A receiver whose replies a test chooses from what was said before, over all its connections.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
};

use postroad_directory::{Pattern, Route};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};

use crate::node::{Node, Setup};

/// What a reply answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum At {
    Mail,
    Recipient,
    Message,
}

/// What was said before.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Seen {
    /// Which connection this is; the first is 1.
    pub(crate) connection: u32,
    /// Messages taken on this connection.
    pub(crate) messages: u32,
    /// Recipients accepted in this transaction.
    pub(crate) recipients: u32,
}

/// A reply that is none: the connection stays open.
pub(crate) const SILENCE: &str = "";

/// The usual reply, after which the connection is closed.
pub(crate) const CLOSES: &str = "250 ok, and goodbye";

/// Chooses a reply; `None` for the usual one. After 421 the connection is closed.
type Choose = dyn Fn(Seen, At) -> Option<&'static str> + Send + Sync;

pub(crate) struct Receiver {
    pub(crate) address: SocketAddr,
    connections: Arc<AtomicU32>,
    task: JoinHandle<()>,
}

impl Receiver {
    pub(crate) async fn start(
        choose: impl Fn(Seen, At) -> Option<&'static str> + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let connections = Arc::new(AtomicU32::new(0));
        let (count, choose) = (connections.clone(), Arc::new(choose));
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let connection = count.fetch_add(1, Ordering::Relaxed) + 1;
                let choose = choose.clone();
                tokio::spawn(async move {
                    let seen = Seen { connection, ..Seen::default() };
                    // The client closes the connection when it likes.
                    let _ = serve(stream, seen, &*choose).await;
                });
            }
        });
        Self { address, connections, task }
    }

    /// Returns how many connections it has had.
    pub(crate) fn connections(&self) -> u32 {
        self.connections.load(Ordering::Relaxed)
    }

    /// Starts a node that routes all mail here.
    pub(crate) async fn start_node(&self) -> Node {
        self.start_node_with(Setup::default()).await
    }

    pub(crate) async fn start_node_with(&self, setup: Setup) -> Node {
        let (host, port) = (self.address.ip().to_string().into(), self.address.port());
        setup.start(Some(Route { pattern: Pattern::Any, host, port })).await
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(stream: TcpStream, mut seen: Seen, choose: &Choose) -> std::io::Result<()> {
    let mut stream = BufReader::new(stream);
    stream.write_all(b"220 r.example\r\n").await?;
    let (mut line, mut in_content) = (String::new(), false);
    loop {
        line.clear();
        if stream.read_line(&mut line).await? == 0 {
            return Ok(());
        }
        let at = match (in_content, line.get(..4)) {
            (true, _) if line != ".\r\n" => continue,
            (true, _) => Some(At::Message),
            (false, Some("MAIL")) => Some(At::Mail),
            (false, Some("RCPT")) => Some(At::Recipient),
            _ => None,
        };
        let is_data = !in_content && line.starts_with("DATA");
        let usual = if is_data { "354 go ahead" } else { "250 ok" };
        let reply = at.and_then(|at| choose(seen, at)).unwrap_or(usual);
        let is_taken = reply.starts_with("250");
        match at {
            Some(At::Recipient) => seen.recipients += u32::from(is_taken),
            Some(At::Mail) => seen.recipients = 0,
            Some(At::Message) => seen.messages += u32::from(is_taken),
            None => {}
        }
        in_content = is_data;
        if reply != SILENCE {
            stream.write_all(format!("{reply}\r\n").as_bytes()).await?;
        }
        if reply.starts_with("421") || reply == CLOSES || line.starts_with("QUIT") {
            return Ok(());
        }
    }
}
