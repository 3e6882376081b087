//! Content as the next hop takes it: converted once for each message and what hops offer, within a budget of memory.

use std::{ops::Deref, panic, sync::Arc, time::Duration};

use bytes::Bytes;
use postroad_mail::finish::{Finished, Offered, Prepared, prepare};
use postroad_telemetry::Counter;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, TryAcquireError},
    time,
};

use crate::content::Content;

/// A larger message is converted on a thread of its own, so that it does not delay what else its worker thread does.
///
/// One that is not larger takes no part of the budget and never waits for it. The content budget bounds how many there
/// are, and a conversion takes a few times the size of its message.
const INLINE_BYTES_MAX: usize = 256 << 10;

/// The longest wait for the budget. The receiver waits meanwhile: it closes a silent connection, from 5 minutes on
/// (RFC 5321 4.5.3.2.7), and would seem to fail where we do.
const WAIT_MAX: Duration = Duration::from_secs(60);

/// Converts content, and bounds the memory that converted large content takes.
///
/// The budget is apart from that of the content: an attempt that holds a part of that one may wait for a part of this
/// one, and an attempt that holds a part of this one waits for neither.
#[derive(Debug)]
pub(crate) struct Conversions {
    budget: Arc<Semaphore>,
    budget_bytes: usize,
    wait_max: Duration,
    waits: Counter,
}

/// Content for hops that offer the same.
#[derive(Debug)]
pub(crate) struct FinishedFor {
    offered: Offered,
    content: Finished,
    _budget: Option<OwnedSemaphorePermit>,
}

impl Deref for FinishedFor {
    type Target = Finished;

    fn deref(&self) -> &Finished {
        &self.content
    }
}

impl Conversions {
    /// Converts large messages with at most `bytes_max` of memory, besides that of the content.
    #[must_use]
    pub(crate) fn new(bytes_max: usize, waits: Counter) -> Self {
        let budget = Arc::new(Semaphore::new(bytes_max));
        Self { budget, budget_bytes: bytes_max, wait_max: WAIT_MAX, waits }
    }

    /// Returns the content for a hop: `before`, if it was for such a hop. `None` when too little memory was free for too
    /// long, or when the process is stopping.
    pub(crate) async fn finish(
        &self,
        content: &Content,
        offered: Offered,
        before: Option<FinishedFor>,
    ) -> Option<FinishedFor> {
        match before {
            Some(before) if before.offered == offered => return Some(before),
            // Its memory is free before more is waited for.
            other => drop(other),
        }
        let conversion = match prepare(&content.parts, offered) {
            Prepared::Finished(content) => return Some(FinishedFor { offered, content, _budget: None }),
            Prepared::Conversion(conversion) => conversion,
        };
        if conversion.bytes() <= INLINE_BYTES_MAX {
            return Some(FinishedFor { offered, content: conversion.run(), _budget: None });
        }
        let mut budget = self.acquire(conversion.bytes_max()).await?;
        // The thread goes on when the attempt ends, and keeps the content in memory.
        let content_budget = content.budget.clone();
        let convert = move || {
            let content = conversion.run();
            drop(content_budget);
            // Content that stays as it is takes nothing more.
            let parts = content.parts.iter().filter(|_| !content.eight_bit);
            let bytes: usize = parts.map(Bytes::len).sum();
            let _budget = budget.split(bytes.min(budget.num_permits()));
            FinishedFor { offered, content, _budget }
        };
        match postroad_env::blocking(convert).await {
            Ok(finished) => Some(finished),
            Err(error) => match error.try_into_panic() {
                Ok(reason) => panic::resume_unwind(reason),
                Err(_) => None,
            },
        }
    }

    async fn acquire(&self, bytes: usize) -> Option<OwnedSemaphorePermit> {
        // A message that needs more than the whole budget takes all of it.
        let permits = u32::try_from(bytes.min(self.budget_bytes)).unwrap_or(u32::MAX);
        match self.budget.clone().try_acquire_many_owned(permits) {
            Ok(budget) => return Some(budget),
            Err(TryAcquireError::Closed) => return None,
            Err(TryAcquireError::NoPermits) => self.waits.increment(1),
        }
        let free = self.budget.clone().acquire_many_owned(permits);
        time::timeout(self.wait_max, free).await.ok()?.ok()
    }
}

#[cfg(test)]
mod tests {
    use std::{future::Future as _, pin::pin, sync::mpsc, task::Context};

    use futures::FutureExt;
    use postroad_telemetry::Counter;

    use super::*;

    const NOTHING: Offered = Offered { eight_bit_mime: false, smtputf8: false };
    const EIGHT_BIT: Offered = Offered { eight_bit_mime: true, smtputf8: false };

    /// Content of two parts with this many bytes in the second.
    fn content(bytes: usize) -> Content {
        let header = Bytes::from_static(b"Subject: large\r\n\r\n");
        let body = Bytes::from("\u{e9} and so on\r\n".repeat(bytes / 14));
        Content { parts: vec![header, body], budget: None }
    }

    #[tokio::test]
    async fn a_message_is_converted_once_for_hops_that_offer_the_same() {
        let conversions = Conversions::new(1 << 20, Counter::noop());
        for bytes in [1000, 300 << 10] {
            let content = content(bytes);
            let first = conversions.finish(&content, NOTHING, None).await.unwrap();
            assert!(!first.eight_bit);
            let place = first.parts[0].as_ptr();
            let second = conversions.finish(&content, NOTHING, Some(first)).await.unwrap();
            assert_eq!(second.parts[0].as_ptr(), place);
            let other = conversions.finish(&content, EIGHT_BIT, Some(second)).await.unwrap();
            assert_eq!(other.parts, content.parts);
            assert_eq!(conversions.budget.available_permits(), 1 << 20);
        }
    }

    #[tokio::test]
    async fn conversions_wait_for_memory_and_leave_what_they_do_not_need() {
        let conversions = Conversions::new(1536 << 10, Counter::noop());
        let content = content(300 << 10);
        let first = conversions.finish(&content, NOTHING, None).await.unwrap();
        let converted = first.parts[0].len();
        assert_eq!(conversions.budget.available_permits(), (1536 << 10) - converted);
        let second = conversions.finish(&content, NOTHING, None).await.unwrap();
        let mut third = pin!(conversions.finish(&content, NOTHING, None));
        let mut context = Context::from_waker(std::task::Waker::noop());
        assert!(third.as_mut().poll(&mut context).is_pending());
        drop(second);
        assert!(!third.await.unwrap().eight_bit);
        drop(first);
        assert_eq!(conversions.budget.available_permits(), 1536 << 10);
        // Larger than the whole budget.
        let large = super::tests::content(2 << 20);
        assert!(!conversions.finish(&large, NOTHING, None).await.unwrap().eight_bit);
    }

    #[tokio::test]
    async fn a_conversion_that_waits_too_long_is_given_up_and_small_ones_never_wait() {
        let wait_max = Duration::from_millis(1);
        let conversions = Conversions { wait_max, ..Conversions::new(1 << 20, Counter::noop()) };
        let large = content(2 << 20);
        let held = conversions.finish(&large, NOTHING, None).await.unwrap();
        assert_eq!(conversions.budget.available_permits(), 0);
        let given_up = time::timeout(Duration::from_secs(20), conversions.finish(&large, NOTHING, None));
        assert!(given_up.await.expect("the wait has an end").is_none());
        let mut waiting = pin!(conversions.acquire(1));
        assert!(waiting.as_mut().now_or_never().is_none());
        let small = conversions.finish(&content(100 << 10), NOTHING, None).now_or_never().flatten();
        assert!(!small.unwrap().eight_bit);
        drop(held);
        assert!(waiting.await.is_some());
    }

    #[test]
    fn content_counts_until_the_thread_that_converts_it_has_ended() {
        let one_thread = tokio::runtime::Builder::new_current_thread().max_blocking_threads(1).build();
        one_thread.unwrap().block_on(async {
            let (open, gate) = mpsc::channel::<()>();
            let occupied = postroad_env::blocking(move || gate.recv());
            let content_budget = Arc::new(Semaphore::new(1));
            let permit = content_budget.clone().try_acquire_owned().unwrap();
            let content = Content { budget: Some(Arc::new(permit)), ..content(300 << 10) };
            let conversions = Conversions::new(2 << 20, Counter::noop());
            assert!(conversions.finish(&content, NOTHING, None).now_or_never().is_none());
            // The attempt was aborted.
            drop(content);
            assert_eq!(content_budget.available_permits(), 0);
            open.send(()).unwrap();
            occupied.await.unwrap().unwrap();
            let _ = content_budget.acquire().await.unwrap();
        });
    }

    #[tokio::test]
    async fn content_that_cannot_be_converted_takes_no_memory() {
        let conversions = Conversions::new(1 << 20, Counter::noop());
        let signed = "Content-Type: multipart/signed; boundary=b\r\n\r\n--b\r\n\r\n\u{e9}\r\n--b--\r\n";
        let signed = Content::whole(Bytes::from(signed), None);
        let finished = conversions.finish(&signed, NOTHING, None).await.unwrap();
        assert!(finished.eight_bit);
        assert_eq!(conversions.budget.available_permits(), 1 << 20);
    }
}
