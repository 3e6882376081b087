//! Checks a run: compares acknowledged messages with the sink's copies, and explains duplicates from control's record.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    time::Duration,
};

use anyhow::{Context, ensure};
use postroad_core::MessageId;
use serde::Deserialize;

use crate::{
    process::http_get,
    sink::{Copies, Ledger},
};

/// How often to check again.
const CHECK_EVERY: Duration = Duration::from_millis(200);
/// After this long without a new copy, no more are expected.
const QUIET: Duration = Duration::from_secs(2);

/// A message that the server acknowledged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Acknowledged {
    /// The id that came with the 250.
    pub id: MessageId,
    /// Its recipients, as the client wrote them.
    pub recipients: Vec<Box<str>>,
}

/// One message for one recipient that the sink received more than once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Duplicate {
    /// The message.
    pub id: MessageId,
    /// The recipient.
    pub recipient: Box<str>,
    /// How many copies the sink received.
    pub copies: usize,
    /// How many attempts in the record ended `unknown`; each may have delivered a copy.
    pub unknown_attempts: usize,
}

impl Duplicate {
    /// Returns true when the record explains every copy.
    #[must_use]
    pub fn is_explained(&self) -> bool {
        self.copies <= self.unknown_attempts + 1
    }
}

/// What is wrong with a run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Findings {
    /// Acknowledged, and not at the sink.
    pub lost: Vec<(MessageId, Box<str>)>,
    /// At the sink more than once.
    pub duplicates: Vec<Duplicate>,
    /// At the sink, and not acknowledged: allowed, since the acknowledgement may be lost.
    pub unacknowledged: usize,
    /// Messages accepted more than once: each was sent once, and is at the sink under all these ids.
    /// Control's record cannot show this.
    pub accepted_twice: Vec<BTreeSet<MessageId>>,
}

impl Findings {
    /// Compares the acknowledged messages with the sink's copies.
    #[must_use]
    pub fn new(acknowledged: &[Acknowledged], copies: &Copies) -> Self {
        let mut findings = Self::default();
        let mut expected = BTreeMap::new();
        for message in acknowledged {
            for recipient in &message.recipients {
                expected.insert((message.id, recipient.clone()), ());
            }
        }
        findings.lost = expected.keys().filter(|key| !copies.contains_key(key)).cloned().collect();
        findings.unacknowledged = copies.keys().filter(|key| !expected.contains_key(key)).count();
        findings.accepted_twice = accepted_twice(copies);
        let several = copies.iter().filter(|(_, records)| records.len() > 1);
        findings.duplicates = several
            .map(|((id, recipient), records)| Duplicate {
                id: *id,
                recipient: recipient.clone(),
                copies: records.len(),
                unknown_attempts: 0,
            })
            .collect();
        findings
    }

    /// Waits until the sink has all acknowledged messages, and until control's record, which lags a little,
    /// explains every duplicate; gives up after `patience` without progress.
    ///
    /// # Errors
    /// Control does not answer, or has no record of a message.
    pub async fn wait_until_explained(
        acknowledged: &[Acknowledged],
        sink: &Ledger,
        control: SocketAddr,
        patience: Duration,
    ) -> anyhow::Result<Self> {
        let (findings, explained) = Self::collect(acknowledged, sink, control, patience).await;
        explained.map(|()| findings)
    }

    /// Waits as [`Findings::wait_until_explained`] does; returns the findings even if control does not answer.
    pub async fn collect(
        acknowledged: &[Acknowledged],
        sink: &Ledger,
        control: SocketAddr,
        patience: Duration,
    ) -> (Self, anyhow::Result<()>) {
        let mut count = sink.count();
        while !Self::new(acknowledged, &sink.copies()).lost.is_empty()
            && sink.wait_for_count(count + 1, patience).await
        {
            tokio::time::sleep(CHECK_EVERY).await;
            count = sink.count();
        }
        // Copies that are still being delivered count too.
        while sink.wait_for_count(sink.count() + 1, QUIET).await {}
        let mut findings = Self::new(acknowledged, &sink.copies());
        let end = postroad_env::now() + patience;
        loop {
            let explained = findings.explain(control).await;
            let all = explained.is_ok() && findings.duplicates.iter().all(Duplicate::is_explained);
            if all || postroad_env::now() > end {
                return (findings, explained);
            }
            tokio::time::sleep(CHECK_EVERY).await;
        }
    }

    /// Asks control's API for the record of each duplicate.
    ///
    /// # Errors
    /// Control does not answer, or has no record of a message.
    pub async fn explain(&mut self, control: SocketAddr) -> anyhow::Result<()> {
        for duplicate in &mut self.duplicates {
            let record = record(control, duplicate.id).await?;
            let delivery = record.deliveries.iter().find(|delivery| delivery.address == *duplicate.recipient);
            let delivery =
                delivery.with_context(|| format!("the record of `{}` lacks a recipient", duplicate.id))?;
            duplicate.unknown_attempts = delivery.unknown_attempts();
        }
        Ok(())
    }

    /// Fails if a message is lost or was accepted twice, or a duplicate is unexplained.
    ///
    /// # Errors
    /// The count and the first of each.
    pub fn require_exactly_once(&self) -> anyhow::Result<()> {
        ensure!(self.lost.is_empty(), "{} lost, the first {:?}", self.lost.len(), self.lost[0]);
        let twice = &self.accepted_twice;
        ensure!(twice.is_empty(), "{} accepted twice, the first as {:?}", twice.len(), twice[0]);
        let unexplained: Vec<_> =
            self.duplicates.iter().filter(|duplicate| !duplicate.is_explained()).collect();
        ensure!(unexplained.is_empty(), "{} unexplained duplicates: {unexplained:?}", unexplained.len());
        Ok(())
    }
}

/// Returns the ids of each token that is at the sink under more than one id.
fn accepted_twice(copies: &Copies) -> Vec<BTreeSet<MessageId>> {
    let mut ids = BTreeMap::<&str, BTreeSet<MessageId>>::new();
    for ((id, _), records) in copies {
        for token in records.iter().filter_map(|record| record.token.as_deref()) {
            ids.entry(token).or_default().insert(*id);
        }
    }
    ids.into_values().filter(|ids| ids.len() > 1).collect()
}

/// The part of control's record of a message that is needed here.
#[derive(Clone, Debug, Deserialize)]
pub struct MessageRecord {
    /// Its recipients.
    pub deliveries: Vec<DeliveryRecord>,
}

/// One recipient of a message.
#[derive(Clone, Debug, Deserialize)]
pub struct DeliveryRecord {
    /// The recipient.
    pub address: String,
    /// Its state: `delivered`, `deferred` and so on.
    pub state: String,
    /// Its events, in order.
    pub timeline: Vec<StepRecord>,
}

/// One event of a delivery.
#[derive(Clone, Debug, Deserialize)]
pub struct StepRecord {
    /// The outcome, if the event is an attempt.
    pub outcome: Option<String>,
}

impl DeliveryRecord {
    /// Returns how many attempts ended `unknown`.
    #[must_use]
    pub fn unknown_attempts(&self) -> usize {
        self.timeline.iter().filter(|step| step.outcome.as_deref() == Some("unknown")).count()
    }
}

/// Returns control's record of a message.
///
/// # Errors
/// Control does not answer, or has no record of the message.
pub async fn record(control: SocketAddr, id: MessageId) -> anyhow::Result<MessageRecord> {
    let (status, body) = http_get(control, &format!("/api/v1/messages/{id}")).await?;
    ensure!(status == 200, "control answers {status} for `{id}`");
    serde_json::from_slice(&body).with_context(|| format!("malformed record of `{id}`"))
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use postroad_core::Timestamp;

    use super::*;
    use crate::{
        Sink, SinkConfig,
        client::submit,
        sink::{Record, ReplyState},
    };

    fn copy(id: MessageId, recipient: &str) -> Record {
        Record {
            at: Timestamp::ZERO,
            since_start: Duration::ZERO,
            source: IpAddr::from([127, 0, 0, 1]),
            sender: "".into(),
            recipient: recipient.into(),
            size: 0,
            body_hash: 0,
            message: Some(id),
            token: None,
            reply: ReplyState::Written,
        }
    }

    #[test]
    fn lost_and_duplicate_messages_are_found() {
        let id = MessageId::from_u128;
        let mut copies = Copies::new();
        for (number, recipient, times) in [(1, "a@x.test", 1), (1, "b@x.test", 2), (9, "z@x.test", 1)] {
            copies.insert((id(number), recipient.into()), vec![copy(id(number), recipient); times]);
        }
        let message = |number, recipients: &[&str]| Acknowledged {
            id: id(number),
            recipients: recipients.iter().map(|recipient| Box::from(*recipient)).collect(),
        };
        let acknowledged = [message(1, &["a@x.test", "b@x.test"]), message(2, &["c@x.test"])];
        let mut findings = Findings::new(&acknowledged, &copies);
        assert_eq!(findings.lost, [(id(2), "c@x.test".into())]);
        assert_eq!((findings.duplicates.len(), findings.unacknowledged), (1, 1));
        assert!(findings.require_exactly_once().is_err());
        findings.lost.clear();
        assert!(findings.require_exactly_once().is_err());
        findings.duplicates[0].unknown_attempts = 1;
        assert!(findings.require_exactly_once().is_ok());
    }

    #[test]
    fn one_token_under_two_ids_was_accepted_twice() {
        #[track_caller]
        fn check(received: &[(u128, &str, &str)], expected: &[&[u128]]) {
            let mut copies = Copies::new();
            for (number, recipient, token) in received {
                let id = MessageId::from_u128(*number);
                let record = Record { token: Some((*token).into()), ..copy(id, recipient) };
                copies.entry((id, (*recipient).into())).or_default().push(record);
            }
            // The first was acknowledged.
            let id = MessageId::from_u128(1);
            let message = Acknowledged { id, recipients: vec!["a@x.test".into()] };
            let findings = Findings::new(&[message], &copies);
            let ids = |numbers: &&[u128]| numbers.iter().copied().map(MessageId::from_u128).collect();
            assert_eq!(findings.accepted_twice, expected.iter().map(ids).collect::<Vec<BTreeSet<_>>>());
            assert_eq!(findings.require_exactly_once().is_ok(), expected.is_empty());
        }
        check(&[(1, "a@x.test", "t-1"), (1, "b@x.test", "t-1")], &[]);
        check(&[(1, "a@x.test", "t-1"), (2, "a@x.test", "t-2")], &[]);
        check(&[(1, "a@x.test", "t-1"), (2, "a@x.test", "t-1"), (3, "a@x.test", "t-3")], &[&[1, 2]]);
        check(&[(1, "a@x.test", "t-1"), (2, "a@x.test", "t-2"), (3, "b@x.test", "t-2")], &[&[2, 3]]);
    }

    #[tokio::test]
    async fn findings_are_returned_even_without_control() {
        let sink = Sink::start(SinkConfig::default()).await.unwrap();
        let content =
            format!("Received: by x.test with ESMTP id {}\r\n\r\nhello\r\n", MessageId::from_u128(1));
        for _ in 0..2 {
            submit(sink.address(), "a@x.test", &["b@x.test"], &content).await;
        }
        // A port without a listener.
        let control = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let (findings, explained) =
            Findings::collect(&[], &sink.ledger(), control, Duration::from_millis(1)).await;
        assert_eq!((findings.duplicates.len(), findings.unacknowledged), (1, 1));
        assert!(explained.is_err());
    }

    #[test]
    fn unknown_attempts_are_counted_in_a_record() {
        let json = r#"{"id":"x","group":1,"deliveries":[{"recipient":0,"address":"a@x.test","state":"delivered",
            "timeline":[{"kind":"attempt","outcome":"unknown","class":null},{"kind":"held"},{"kind":"attempt","outcome":"delivered"}]}]}"#;
        let record: MessageRecord = serde_json::from_str(json).unwrap();
        assert_eq!(record.deliveries[0].unknown_attempts(), 1);
    }
}
