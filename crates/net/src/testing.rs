//! Shared by the tests of this crate: a scripted peer.

use std::{future::Future, net::SocketAddr, process::Command, time::Duration};

use bytes::BytesMut;
use socket2::SockRef;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
    time,
};

/// How long a test waits for anything.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);

pub(crate) trait ByteStream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> ByteStream for S {}

/// One end of a connection, driven by a test.
pub(crate) struct Raw<S = TcpStream> {
    pub(crate) stream: S,
    buffer: BytesMut,
}

impl Raw {
    pub(crate) async fn connect(address: SocketAddr) -> Self {
        Self::new(TcpStream::connect(address).await.unwrap())
    }

    /// Breaks the connection with RST.
    pub(crate) fn reset(self) {
        SockRef::from(&self.stream).set_linger(Some(Duration::ZERO)).unwrap();
    }
}

impl<S: ByteStream> Raw<S> {
    pub(crate) fn new(stream: S) -> Self {
        Self { stream, buffer: BytesMut::new() }
    }

    pub(crate) async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.stream.write_all(bytes.as_ref()).await.unwrap();
        self.stream.flush().await.unwrap();
    }

    /// Reads up to and including `end`, or until the peer closes.
    pub(crate) async fn until(&mut self, end: &str) -> String {
        let reading = async {
            loop {
                let position = self.buffer.windows(end.len()).position(|window| window == end.as_bytes());
                if let Some(position) = position {
                    return self.buffer.split_to(position + end.len());
                }
                if self.stream.read_buf(&mut self.buffer).await.unwrap_or(0) == 0 {
                    return self.buffer.split();
                }
            }
        };
        let bytes = time::timeout(PATIENCE, reading).await.unwrap_or_else(|_| panic!("{end:?} not received"));
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Reads one reply with all its lines; empty when the peer has closed.
    pub(crate) async fn reply(&mut self) -> String {
        let mut reply = String::new();
        loop {
            let line = self.until("\r\n").await;
            let last = line.as_bytes().get(3) != Some(&b'-');
            reply.push_str(&line);
            if last {
                return reply;
            }
        }
    }

    pub(crate) async fn expect(&mut self, start: &str) -> String {
        let reply = self.reply().await;
        assert!(reply.starts_with(start), "expected {start:?}, received {reply:?}");
        reply
    }

    /// Sends bytes and checks the reply.
    pub(crate) async fn ask(&mut self, bytes: impl AsRef<[u8]>, start: &str) -> String {
        self.send(bytes).await;
        self.expect(start).await
    }

    /// Checks that nothing follows.
    pub(crate) async fn expect_end(&mut self) {
        let rest = self.until("never sent").await;
        assert_eq!(rest, "", "nothing should follow");
    }
}

/// Starts a peer that runs `script` on one connection; returns our end of it.
pub(crate) async fn peer<F>(script: impl FnOnce(Raw) -> F + Send + 'static) -> (TcpStream, JoinHandle<()>)
where
    F: Future<Output = ()> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let stream = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    let (theirs, _) = listener.accept().await.unwrap();
    theirs.set_nodelay(true).unwrap();
    (stream, tokio::spawn(script(Raw::new(theirs))))
}

/// Runs an ignored test of this binary in a process limited to 40 file descriptors.
pub(crate) fn run_with_few_descriptors(test: &str) {
    let status = Command::new("sh")
        .args(["-c", "ulimit -n 40 && exec \"$0\" --ignored --exact \"$1\""])
        .arg(std::env::current_exe().unwrap())
        .arg(test)
        .status()
        .unwrap();
    assert!(status.success());
}

/// Waits until `condition` holds.
pub(crate) async fn wait_until(what: &str, condition: impl Fn() -> bool) {
    let waiting = async {
        while !condition() {
            time::sleep(Duration::from_millis(2)).await;
        }
    };
    time::timeout(PATIENCE, waiting).await.unwrap_or_else(|_| panic!("timed out waiting: {what}"));
}
