//! Runs a future only while the source may be used.

use std::{
    future::{Future, poll_fn},
    pin::pin,
    task::Poll,
};

use tokio_util::sync::CancellationToken;

use crate::lease::Lease;

/// Waits until the source may no longer be used: the lease has ended or `abort` is cancelled.
///
/// Every poll checks the lease. A transaction polls this before MAIL and before the final dot,
/// so neither is sent after the end of the lease.
pub(crate) async fn source_lost(lease: &Lease, abort: &CancellationToken) {
    let mut aborted = pin!(abort.cancelled());
    poll_fn(|context| {
        if aborted.as_mut().poll(context).is_ready() || !lease.is_valid() {
            return Poll::Ready(());
        }
        Poll::Pending
    })
    .await;
}

/// Runs `future` while the source may be used; `None` when it was dropped before its end.
pub(crate) async fn while_permitted<F: Future>(
    lease: &Lease,
    abort: &CancellationToken,
    future: F,
) -> Option<F::Output> {
    tokio::select! {
        biased;
        () = source_lost(lease, abort) => None,
        output = future => Some(output),
    }
}

#[cfg(test)]
mod tests {
    use std::{future::pending, time::Duration};

    use super::*;
    use crate::lease::{BootTime, LeaseTerms};

    #[tokio::test]
    async fn r_31_no_step_runs_after_the_end_of_the_lease() {
        let (lease, abort) = (Lease::default(), CancellationToken::new());
        assert_eq!(while_permitted(&lease, &abort, async { 7 }).await, None);
        let millis = Duration::from_millis;
        let terms = LeaseTerms { length: millis(50), drift: millis(0), margin: millis(0) };
        lease.renewed(BootTime::now(), &terms);
        assert_eq!(while_permitted(&lease, &abort, async { 7 }).await, Some(7));
        // The machine slept: the lease has ended before the next step, and no timer has fired.
        let step = async {
            tokio::task::yield_now().await;
            postroad_env::pause(millis(60));
            tokio::task::yield_now().await;
            panic!("a step after the end of the lease");
        };
        assert_eq!(while_permitted(&lease, &abort, step).await, None::<()>);
    }

    #[tokio::test]
    async fn an_abort_ends_the_future_at_once() {
        let (lease, abort) = (Lease::default(), CancellationToken::new());
        lease.renewed(BootTime::now(), &LeaseTerms::default());
        let cancel = abort.clone();
        let (ended, ()) = tokio::join!(while_permitted(&lease, &abort, pending::<()>()), async move {
            tokio::task::yield_now().await;
            cancel.cancel();
        });
        assert_eq!(ended, None);
    }
}
