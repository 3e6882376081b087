//! The gRPC channels to the other queue nodes, for Raft.

use std::collections::HashMap;

use parking_lot::Mutex;
use postroad_core::NodeId;
use postroad_net::{Expect, Role, Transport};
use postroad_raft::{Connect, Purpose};
use tonic::transport::Channel;

/// One channel for each node and purpose, shared by all groups.
pub(crate) struct Peers {
    transport: Transport,
    channels: Mutex<HashMap<(NodeId, Purpose), Channel>>,
}

impl Peers {
    pub(crate) fn new(transport: Transport) -> Self {
        Self { transport, channels: Mutex::default() }
    }
}

impl Connect for Peers {
    fn channel(&self, node: NodeId, address: &str, purpose: Purpose) -> Channel {
        let connect = || self.transport.channel(address, Expect::node(Role::Queue, node));
        self.channels.lock().entry((node, purpose)).or_insert_with(connect).clone()
    }
}
