//! Who asked for a change, as records and suspensions name them.

use postroad_net::PeerIdentity;

/// The most bytes of an actor's name.
pub(crate) const ACTOR_BYTES_MAX: usize = 128;

/// Returns the caller's proven role and node, followed by what it says of itself, such as `operator/1 (eve@laptop)`.
///
/// Without mutual TLS nothing is proven: then it is what the caller says.
pub(crate) fn actor(peer: Option<PeerIdentity>, said: &str) -> String {
    let said: String = said.trim().chars().filter(|letter| !letter.is_control()).collect();
    let mut name = match (peer, said.is_empty()) {
        (Some(peer), true) => format!("{}/{}", peer.role, peer.node),
        (Some(peer), false) => format!("{}/{} ({said})", peer.role, peer.node),
        (None, true) => "unknown".to_owned(),
        (None, false) => said,
    };
    name.truncate(name.floor_char_boundary(ACTOR_BYTES_MAX));
    name
}

#[cfg(test)]
mod tests {
    use postroad_core::{ClusterId, NodeId};
    use postroad_net::Role;

    use super::*;

    #[test]
    fn the_certificate_comes_first_and_the_name_is_bounded() {
        let peer = PeerIdentity { cluster: ClusterId(1), role: Role::Operator, node: NodeId(7) };
        let check = |peer, said: &str, expected: &str| assert_eq!(actor(peer, said), expected);
        check(Some(peer), "eve@laptop", "operator/7 (eve@laptop)");
        check(Some(peer), " ", "operator/7");
        check(None, "eve@laptop\n", "eve@laptop");
        check(None, "", "unknown");
        check(None, &"é".repeat(100), &"é".repeat(64));
    }
}
