//! Who asks for a change: what the caller says of the person, and what the certificate proves of the caller.

use postroad_ledger::command::ACTOR_BYTES_MAX;
use postroad_net::{PeerIdentity, peer_info};
use tonic::Request;

/// Returns the name for the record, such as `ann@laptop (operator)`.
pub(super) fn named<T>(request: &Request<T>, said: &str) -> Box<str> {
    actor(said, peer_info(request).and_then(|peer| peer.identity))
}

fn actor(said: &str, proven: Option<PeerIdentity>) -> Box<str> {
    let proven = match proven {
        // Operators share the node id 0.
        Some(peer) if peer.node.0 == 0 => format!(" ({})", peer.role),
        Some(peer) => format!(" ({} {})", peer.role, peer.node),
        None => String::new(),
    };
    let said: String = said.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    let room = ACTOR_BYTES_MAX.saturating_sub(proven.len());
    let said = &said[..said.floor_char_boundary(room)];
    format!("{said}{proven}").trim().into()
}

#[cfg(test)]
mod tests {
    use postroad_core::{ClusterId, NodeId};
    use postroad_net::Role;

    use super::*;

    #[test]
    fn what_the_certificate_proves_is_always_in_the_name() {
        let check = |said: &str, proven: Option<(Role, u64)>, expected: &str| {
            let identity = |(role, node)| PeerIdentity { cluster: ClusterId(1), role, node: NodeId(node) };
            let name = actor(said, proven.map(identity));
            assert_eq!(&*name, expected);
            assert!(name.len() <= ACTOR_BYTES_MAX);
        };
        check("ann@laptop", Some((Role::Operator, 0)), "ann@laptop (operator)");
        check("console", Some((Role::Control, 9)), "console (control 9)");
        check("", Some((Role::Operator, 0)), "(operator)");
        check("ann\r\n@laptop", None, "ann  @laptop");
        check("", None, "");
        let long = "ä".repeat(200);
        check(&long, Some((Role::Operator, 0)), &format!("{} (operator)", "ä".repeat(58)));
    }
}
