//! One timer per connection, reset as rarely as possible.

use std::{
    future::Future,
    pin::{Pin, pin},
    task::Poll,
    time::Instant,
};

use tokio::time::{Sleep, sleep_until};

/// The timer of a connection's deadlines.
///
/// Every command sets a new deadline, nearly always a later one.
/// The timer is reset only when it fires or when the deadline moves to an earlier time,
/// so a busy connection touches the runtime's timer wheel once in minutes.
#[derive(Debug, Default)]
pub(crate) struct DeadlineTimer {
    sleep: Option<Pin<Box<Sleep>>>,
}

impl DeadlineTimer {
    /// Waits for `future` until `deadline`; returns `None` after that.
    pub(crate) async fn timeout_at<F: Future>(&mut self, deadline: Instant, future: F) -> Option<F::Output> {
        let mut future = pin!(future);
        std::future::poll_fn(|context| {
            if let Poll::Ready(output) = future.as_mut().poll(context) {
                return Poll::Ready(Some(output));
            }
            let deadline = deadline.into();
            let sleep = self.sleep.get_or_insert_with(|| Box::pin(sleep_until(deadline)));
            if sleep.deadline() > deadline {
                sleep.as_mut().reset(deadline);
            }
            while sleep.as_mut().poll(context).is_ready() {
                if sleep.deadline() >= deadline {
                    return Poll::Ready(None);
                }
                sleep.as_mut().reset(deadline);
            }
            Poll::Pending
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use std::{future::pending, time::Duration};

    use super::*;

    #[tokio::test]
    async fn deadlines_may_move_to_a_later_or_an_earlier_time() {
        let mut timer = DeadlineTimer::default();
        let millis = Duration::from_millis;
        for wait in [millis(30), millis(10), millis(60), millis(0)] {
            let start = postroad_env::now();
            assert_eq!(timer.timeout_at(start + millis(3_600_000), async { 7 }).await, Some(7));
            assert_eq!(timer.timeout_at(start + wait, pending::<()>()).await, None);
            assert!(postroad_env::since(start) >= wait);
            assert!(postroad_env::since(start) < wait + millis(2_000));
        }
    }
}
