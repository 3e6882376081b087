//! How many messages a site takes on one connection, learned from where it ends connections (D-036).
//!
//! A receiver that ends a connection after five messages asks for nothing but a new connection. Learning the number
//! saves the refused MAIL at the end of each; trying more now and then finds out when the site allows more.

/// Full connections after which twice as many messages are tried.
const PROBE_AFTER: u32 = 10;

/// Connections in a row that ended early until the number is taken to be smaller: one may have ended for any reason.
const EARLY_MAX: u32 = 3;

/// What a lane has learned; forgotten with the lane.
#[derive(Debug, Default)]
pub(super) struct MessagesPerConnection {
    learned: Option<Learned>,
}

#[derive(Debug)]
struct Learned {
    /// At least 1.
    messages: u32,
    /// The number that connections had carried, while more is tried and none has carried it.
    proven: Option<u32>,
    /// Connections that carried so many since.
    full: u32,
    /// Connections in a row that ended before, and the most that one of them carried.
    early: u32,
    early_most: u32,
}

impl Learned {
    fn new(messages: u32) -> Self {
        Self { messages: messages.max(1), proven: None, full: 0, early: 0, early_most: 0 }
    }
}

impl MessagesPerConnection {
    /// Returns how many messages to send on one connection, of `configured` at most and at least 1.
    pub(super) fn limit(&self, configured: u32) -> u32 {
        let learned = self.learned.as_ref().map_or(u32::MAX, |learned| learned.messages);
        learned.min(configured).max(1)
    }

    /// The site ended a connection after this many messages.
    pub(super) fn ended_after(&mut self, messages: u32) {
        let Some(learned) = self.learned.as_mut().filter(|learned| messages < learned.messages) else {
            self.learned = Some(Learned::new(messages));
            return;
        };
        if let Some(proven) = learned.proven {
            *learned = Learned::new(messages.max(proven));
            return;
        }
        learned.early += 1;
        learned.early_most = learned.early_most.max(messages);
        if learned.early >= EARLY_MAX {
            *learned = Learned::new(learned.early_most);
        }
    }

    /// A connection carried as many messages as it may. Trying too many costs one refused MAIL and no message.
    pub(super) fn filled(&mut self) {
        let Some(learned) = &mut self.learned else { return };
        (learned.proven, learned.early, learned.early_most) = (None, 0, 0);
        learned.full += 1;
        if learned.full >= PROBE_AFTER {
            let messages = learned.messages;
            *learned = Learned { proven: Some(messages), ..Learned::new(messages.saturating_mul(2)) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn d_036_the_number_of_messages_is_learned_and_tried_upwards() {
        let mut messages = MessagesPerConnection::default();
        assert_eq!((messages.limit(100), messages.limit(0)), (100, 1));
        messages.filled();
        assert_eq!(messages.limit(100), 100);
        messages.ended_after(5);
        assert_eq!((messages.limit(100), messages.limit(3)), (5, 3));
        (0..PROBE_AFTER).for_each(|_| messages.filled());
        assert_eq!(messages.limit(100), 10);
        // Still five: nothing was lost by the attempt.
        messages.ended_after(5);
        assert_eq!(messages.limit(100), 5);
        // The site allows more now.
        (0..PROBE_AFTER * 40).for_each(|_| messages.filled());
        assert_eq!(messages.limit(100), 100);
        let mut messages = MessagesPerConnection::default();
        messages.ended_after(0);
        assert_eq!(messages.limit(100), 1);
    }

    #[test]
    fn d_036_a_connection_that_ends_early_does_not_lower_the_number() {
        let mut messages = MessagesPerConnection::default();
        messages.ended_after(20);
        messages.ended_after(1);
        messages.ended_after(2);
        assert_eq!(messages.limit(100), 20);
        messages.filled();
        messages.ended_after(1);
        messages.ended_after(2);
        assert_eq!(messages.limit(100), 20);
        // Three in a row: the site takes fewer now.
        messages.ended_after(1);
        assert_eq!(messages.limit(100), 2);
        // While more is tried, what connections have carried is certain.
        (0..PROBE_AFTER).for_each(|_| messages.filled());
        messages.ended_after(1);
        assert_eq!(messages.limit(100), 2);
    }
}
