//! How many messages a site takes on one connection, learned from where it ends connections (D-036).
//!
//! A receiver that ends a connection after five messages asks for nothing but a new connection. Learning the number
//! saves the refused MAIL at the end of each; trying more now and then finds out when the site allows more.

/// Full connections after which twice as many messages are tried.
const PROBE_AFTER: u32 = 10;

/// What a lane has learned; forgotten with the lane.
#[derive(Debug, Default)]
pub(super) struct MessagesPerConnection {
    learned: Option<Learned>,
}

#[derive(Debug)]
struct Learned {
    /// At least 1.
    messages: u32,
    /// Connections that carried so many since.
    full: u32,
}

impl MessagesPerConnection {
    /// Returns how many messages to send on one connection, of `configured` at most and at least 1.
    pub(super) fn limit(&self, configured: u32) -> u32 {
        let learned = self.learned.as_ref().map_or(u32::MAX, |learned| learned.messages);
        learned.min(configured).max(1)
    }

    /// The site ended a connection after this many messages.
    pub(super) fn ended_after(&mut self, messages: u32) {
        self.learned = Some(Learned { messages: messages.max(1), full: 0 });
    }

    /// A connection carried as many messages as it may. Trying too many costs one refused MAIL and no message.
    pub(super) fn filled(&mut self) {
        let Some(learned) = &mut self.learned else { return };
        learned.full += 1;
        if learned.full >= PROBE_AFTER {
            *learned = Learned { messages: learned.messages.saturating_mul(2), full: 0 };
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
        messages.ended_after(0);
        assert_eq!(messages.limit(100), 1);
    }
}
