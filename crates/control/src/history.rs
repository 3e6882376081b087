//! The history: one SQLite database, one writer, and readers that never wait for it.

mod open;
mod prune;
mod read;
mod write;

pub(crate) use open::{Reader, Writer, open};
pub(crate) use prune::Keep;
pub(crate) use read::{Delivery, Filter, Gap, Line, Message, MinuteCount, Step};

#[cfg(test)]
mod tests {
    use std::{collections::HashMap, time::Duration};

    use postroad_core::{GroupId, MessageId, OutcomeKind, Timestamp};
    use postroad_proto::queue::{Accepted, AttemptEnded, EndKind, Event, attempt_ended::Then, event::Kind};

    use super::*;
    use crate::{rows::Rows, state::State};

    const GROUP: GroupId = GroupId(1);
    const STARTED: Timestamp = Timestamp::from_millis(1_795_480_000_000);

    fn event(sequence: u64, message: MessageId, recipient: Option<u32>, kind: Kind) -> Event {
        Event {
            sequence,
            at_millis: message.at().as_millis() + 20,
            message_id: bytes::Bytes::copy_from_slice(&message.as_u128().to_be_bytes()),
            recipient,
            kind: Some(kind),
        }
    }

    /// One message a millisecond, each accepted and delivered at once.
    fn events(messages: std::ops::Range<u64>) -> Vec<Event> {
        let of = |number: u64| {
            let random = number.wrapping_mul(0x9e37_79b9_7f4a_7c15);
            let message = MessageId::new(STARTED.after(Duration::from_millis(number)), GROUP, random);
            let accepted = Kind::Accepted(Accepted {
                tenant: u32::try_from(number % 7).unwrap(),
                sender: "bounces@sender.example".into(),
                recipients: vec![format!("{random:016x}@receiver.example")],
                size_bytes: 8_192,
                subject: "Your invoice for November".into(),
                origin: "192.0.2.1".into(),
            });
            let ended = Kind::AttemptEnded(AttemptEnded {
                attempt: 1,
                source: 3,
                node: 4,
                kind: u32::from(OutcomeKind::Delivered.code()),
                code: 250,
                text: "2.0.0 Ok: queued as 4Xyz123456".into(),
                remote: "mx1.receiver.example [192.0.2.9]".into(),
                tls: "TLSv1.3 TLS_AES_256_GCM_SHA384".into(),
                started_at_millis: message.at().as_millis() + 10,
                ended_at_millis: message.at().as_millis() + 15,
                then: Some(Then::End(EndKind::Delivered.into())),
                ..AttemptEnded::default()
            });
            [event(2 * number + 1, message, None, accepted), event(2 * number + 2, message, Some(0), ended)]
        };
        messages.flat_map(of).collect()
    }

    fn cpu_seconds() -> f64 {
        let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
        let (_, rest) = stat.rsplit_once(')').unwrap();
        let mut fields = rest.split_whitespace().skip(11);
        let mut ticks = || fields.next().unwrap().parse::<f64>().unwrap();
        (ticks() + ticks()) / 100.0
    }

    #[tokio::test]
    #[ignore = "measures: cargo test --release -p postroad-control --lib -- --ignored --nocapture"]
    async fn what_an_event_costs() {
        let directory = tempfile::tempdir().unwrap();
        let (mut writer, reader) = open(&directory.path().join("control.sqlite")).await.unwrap();
        let mut cursors = HashMap::new();
        for events_per_batch in [64, 256, 1024, 2048] {
            const MESSAGES: u64 = 100_000;
            let first: u64 = cursors.get(&GROUP).map_or(0, |through| through / 2);
            let (mut cpu, mut wall) = (0.0, Duration::ZERO);
            for from in (first..first + MESSAGES).step_by(events_per_batch / 2) {
                let events = events(from..(from + events_per_batch as u64 / 2).min(first + MESSAGES));
                let (started, cpu_started) = (std::time::Instant::now(), cpu_seconds());
                let mut rows = Rows::after(&cursors);
                for event in events {
                    rows.add(GROUP, event);
                }
                writer.write(&rows).await.unwrap();
                cursors = rows.cursors;
                wall += started.elapsed();
                cpu += cpu_seconds() - cpu_started;
            }
            let per_event = |seconds: f64| seconds * 1e6 / (2 * MESSAGES) as f64;
            println!(
                "batches of {events_per_batch}: {:.1} µs CPU, {:.1} µs wall per event",
                per_event(cpu),
                per_event(wall.as_secs_f64())
            );
        }
        for (recipient, state) in
            [("nobody@receiver.example", None), ("nobody", None), ("", Some(State::Held))]
        {
            let filter = Filter { recipient: recipient.to_owned(), state, ..Filter::default() };
            let started = std::time::Instant::now();
            assert!(reader.messages(&filter, 50).await.unwrap().is_empty());
            println!("a search in vain among 400,000 messages: {:.0?}", started.elapsed());
        }
    }
}
