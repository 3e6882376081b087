//! Where `dev` listens: a default port that is taken is moved to a free one, a port that a flag names is not.

use std::{
    io,
    net::{SocketAddr, TcpListener as StdListener},
};

use anyhow::Context;
use tokio::net::TcpListener;

use crate::cli::DevArgs;

/// The range that moved ports are taken from: below the system's range for outgoing connections.
const MOVED_TO: std::ops::Range<u16> = 20_000..32_000;
/// Ports are tried at random, since another `dev` may be looking too.
const TRIES: usize = 1000;

/// One listener's address, and whether a flag named it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Listen {
    flag: &'static str,
    /// Its address; the first of its addresses in a cluster.
    pub(super) address: SocketAddr,
    is_default: bool,
    moved_from: Option<u16>,
}

/// Every listener of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Listeners {
    pub(super) smtp: Listen,
    pub(super) smtps: Listen,
    pub(super) grpc: Listen,
    pub(super) http: Listen,
    pub(super) metrics: Listen,
    pub(super) operator: Listen,
}

impl Listeners {
    /// Returns what flags and defaults say; nothing is tried yet.
    pub(super) fn of(args: &DevArgs) -> Self {
        let listen = |flag, given: Option<SocketAddr>, port| Listen {
            flag,
            address: given.unwrap_or(SocketAddr::from(([127, 0, 0, 1], port))),
            is_default: given.is_none(),
            moved_from: None,
        };
        Self {
            smtp: listen("--listen-smtp", args.listen_smtp, 2525),
            smtps: listen("--listen-smtps", args.listen_smtps, 4650),
            grpc: listen("--listen-grpc", args.listen_grpc, 5051),
            http: listen("--listen-http", args.listen_http, 8080),
            metrics: listen("--listen-metrics", args.listen_metrics, 9090),
            operator: listen("--listen-operator", args.listen_operator, crate::operator::DEV_PORT),
        }
    }

    /// Takes ports for `number` ingress nodes.
    ///
    /// # Errors
    /// See [`Listen::find`].
    pub(super) fn find_ingress(&mut self, number: u16) -> anyhow::Result<()> {
        for listen in [&mut self.smtp, &mut self.smtps, &mut self.grpc] {
            listen.find(number)?;
        }
        Ok(())
    }

    /// Returns a line for each listener that was moved.
    pub(super) fn moved(&self) -> String {
        let Self { smtp, smtps, grpc, http, metrics, operator } = self;
        let line = |listen: &&Listen| {
            let (port, address, flag) = (listen.moved_from?, listen.address, listen.flag);
            Some(format!("  port {port} is in use: {address} instead (`{flag}` sets it)\n"))
        };
        [smtp, smtps, grpc, http, metrics, operator].iter().filter_map(line).collect()
    }
}

impl Listen {
    /// Opens the listener.
    ///
    /// # Errors
    /// The address of the flag is in use, or no port is free.
    pub(super) async fn bind(&mut self) -> anyhow::Result<TcpListener> {
        let listener = match TcpListener::bind(self.address).await {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && self.is_default => {
                self.find(1)?;
                TcpListener::bind(self.address).await
            }
            bound => bound,
        };
        let listener = listener.with_context(|| self.refusal(self.address))?;
        // Port 0 asks for any.
        self.address = listener.local_addr()?;
        Ok(listener)
    }

    /// Takes `number` consecutive ports that are free now, from the address on; with port 0, any that are.
    ///
    /// # Errors
    /// One of the flag's ports is in use, or no ports are free.
    pub(super) fn find(&mut self, number: u16) -> anyhow::Result<()> {
        // A single port 0 is the system's to choose, when it is opened.
        let is_any_row = self.address.port() == 0 && number > 1;
        if !is_any_row {
            let Err((taken, error)) = try_all(self.address, number) else { return Ok(()) };
            if error.kind() != io::ErrorKind::AddrInUse || !self.is_default {
                return Err(error).with_context(|| self.refusal(taken));
            }
            self.moved_from = Some(self.moved_from.unwrap_or(self.address.port()));
        }
        let free = std::iter::repeat_with(|| rand::random_range(MOVED_TO))
            .take(TRIES)
            .map(|port| SocketAddr::new(self.address.ip(), port))
            .find(|first| try_all(*first, number).is_ok());
        self.address = free.with_context(|| format!("no {number} free ports in a row (`{}`)", self.flag))?;
        Ok(())
    }

    /// Returns the address of the `number`th listener, from 0.
    pub(super) fn at(&self, number: u16) -> SocketAddr {
        SocketAddr::new(self.address.ip(), self.address.port().saturating_add(number))
    }

    fn refusal(&self, address: SocketAddr) -> String {
        format!("cannot listen on {address} (`{}`)", self.flag)
    }
}

/// Tries to listen on `number` ports from `first` on; returns the first that cannot be used.
fn try_all(first: SocketAddr, number: u16) -> Result<(), (SocketAddr, io::Error)> {
    for offset in 0..number {
        let port = first.port().checked_add(offset);
        let address = SocketAddr::new(first.ip(), port.unwrap_or_default());
        if port.is_none() {
            return Err((first, io::Error::other(format!("expected {number} ports from here on"))));
        }
        StdListener::bind(address).map_err(|error| (address, error))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listen(address: SocketAddr, is_default: bool) -> Listen {
        Listen { flag: "--listen-smtp", address, is_default, moved_from: None }
    }

    #[tokio::test]
    async fn a_default_port_that_is_taken_is_moved_and_a_given_one_is_an_error() {
        let taken = StdListener::bind("127.0.0.1:0").unwrap();
        let address = taken.local_addr().unwrap();
        let mut moved = listen(address, true);
        let listener = moved.bind().await.unwrap();
        assert_eq!(listener.local_addr().unwrap(), moved.address);
        assert_eq!(moved.moved_from, Some(address.port()));
        let error = format!("{:#}", listen(address, false).bind().await.unwrap_err());
        assert!(error.contains(&format!("{address} (`--listen-smtp`)")), "{error}");
    }

    #[test]
    fn port_0_asks_for_any_free_ports_in_a_row() {
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let mut row = listen(any, false);
        row.find(3).unwrap();
        assert!(MOVED_TO.contains(&row.address.port()), "{}", row.address);
        assert_eq!((row.at(2).port(), row.moved_from), (row.address.port() + 2, None));
        let mut one = listen(any, false);
        one.find(1).unwrap();
        assert_eq!(one.address, any, "the system chooses it");
    }

    #[test]
    fn ports_in_a_row_are_moved_together() {
        let taken = StdListener::bind("127.0.0.1:0").unwrap();
        let second = taken.local_addr().unwrap();
        let first = SocketAddr::new(second.ip(), second.port() - 1);
        let mut moved = listen(first, true);
        moved.find(3).unwrap();
        assert!(moved.address != first && try_all(moved.address, 3).is_ok());
        let error = format!("{:#}", listen(first, false).find(3).unwrap_err());
        assert!(
            error.contains(&format!("{second} (`--listen-smtp`)")) || error.contains("--listen-smtp"),
            "{error}"
        );
    }
}
