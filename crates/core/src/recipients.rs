//! The recipients of an envelope: a set, in the order in which the client named them.

use std::{collections::BTreeSet, ops::Deref};

use crate::Address;

/// Recipients, each of them once, whatever the spelling of its domain.
///
/// A message is delivered once to every recipient in it, so an envelope with a mailbox twice cannot be written.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Recipients {
    /// Invariant: no two addresses are the same mailbox.
    list: Vec<Address>,
    /// The mailboxes in `list`.
    mailboxes: BTreeSet<Box<str>>,
}

impl Recipients {
    /// Makes an empty set.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a recipient at the end; returns false when it is the same mailbox as an earlier one.
    pub fn insert(&mut self, address: Address) -> bool {
        let new = self.mailboxes.insert(address.mailbox());
        if new {
            self.list.push(address);
        }
        new
    }

    /// Returns true when the set has this mailbox.
    #[must_use]
    pub fn has(&self, address: &Address) -> bool {
        !self.list.is_empty() && self.mailboxes.contains(&address.mailbox())
    }

    /// Returns the addresses, as the client wrote them first.
    #[must_use]
    pub fn into_vec(self) -> Vec<Address> {
        self.list
    }
}

impl Deref for Recipients {
    type Target = [Address];

    fn deref(&self) -> &[Address] {
        &self.list
    }
}

impl FromIterator<Address> for Recipients {
    fn from_iter<T: IntoIterator<Item = Address>>(addresses: T) -> Self {
        let mut recipients = Self::new();
        for address in addresses {
            recipients.insert(address);
        }
        recipients
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(written: &[&str], expected: &[&str]) {
        let recipients: Recipients = written.iter().map(|text| Address::parse(text).unwrap()).collect();
        assert_eq!(recipients.iter().map(Address::as_str).collect::<Vec<_>>(), expected);
        for text in written {
            assert!(recipients.has(&Address::parse(text).unwrap()), "{text}");
        }
    }

    #[test]
    fn a_mailbox_is_in_the_set_once_whatever_the_spelling_of_its_domain() {
        check(&["b@a.example", "b@a.example"], &["b@a.example"]);
        check(&["b@A.example", "b@a.EXAMPLE"], &["b@A.example"]);
        check(&["b@bücher.example", "b@xn--bcher-kva.example"], &["b@bücher.example"]);
        check(&["b@[IPv6:::1]", "b@[ipv6:0::1]"], &["b@[IPv6:::1]"]);
        // RFC 5321 2.4: only the receiver may say that these are equal.
        check(
            &["b@a.example", "B@a.example", "\"b\"@a.example"],
            &["b@a.example", "B@a.example", "\"b\"@a.example"],
        );
        assert!(!Recipients::new().has(&Address::parse("b@a.example").unwrap()));
    }
}
