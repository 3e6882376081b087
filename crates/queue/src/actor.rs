//! Who asks for a change: what the caller says of the person, and what the certificate proves of the caller.

use postroad_core::text::is_printable;
use postroad_ledger::command::ACTOR_BYTES_MAX;
use postroad_net::PeerIdentity;

/// Returns the name for the record, such as `ann@laptop (operator)`; `unknown` where nothing is said and nothing proven.
pub(crate) fn actor(proven: Option<PeerIdentity>, said: &str) -> Box<str> {
    let proven = match proven {
        // Operators share the node id 0.
        Some(peer) if peer.node.0 == 0 => format!(" ({})", peer.role),
        Some(peer) => format!(" ({} {})", peer.role, peer.node),
        None => String::new(),
    };
    let said: String = said.chars().map(|c| if is_printable(c) { c } else { ' ' }).collect();
    let said = said.trim();
    let room = ACTOR_BYTES_MAX.saturating_sub(proven.len());
    let said = &said[..said.floor_char_boundary(room)];
    match format!("{said}{proven}").trim() {
        "" => "unknown".into(),
        name => name.into(),
    }
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
            let name = actor(proven.map(identity), said);
            assert_eq!(&*name, expected);
            assert!(name.len() <= ACTOR_BYTES_MAX);
        };
        check("ann@laptop", Some((Role::Operator, 0)), "ann@laptop (operator)");
        check(" ann@laptop\n", Some((Role::Operator, 7)), "ann@laptop (operator 7)");
        check("console", Some((Role::Control, 9)), "console (control 9)");
        check("", Some((Role::Operator, 0)), "(operator)");
        check("ann\r\n@laptop", None, "ann  @laptop");
        // What would show the rest of the line from right to left.
        check("ann\u{202e}@laptop", None, "ann @laptop");
        check("", None, "unknown");
        let long = "ä".repeat(200);
        check(&long, Some((Role::Operator, 0)), &format!("{} (operator)", "ä".repeat(58)));
    }
}
