//! One timer per connection that is moved only when it must be.

use std::{
    future::Future,
    pin::{Pin, pin},
    task::Poll,
    time::Instant,
};

use tokio::time::{Sleep, sleep_until};

/// A deadline for whatever a connection waits for.
///
/// Deadlines of a session move with every command, nearly always to a later time.
/// The timer stays where it is until it rings, and only then is it set to what has become of the deadline:
/// so a busy connection touches the runtime's timer wheel once in minutes.
#[derive(Debug, Default)]
pub(crate) struct Alarm {
    sleep: Option<Pin<Box<Sleep>>>,
}

impl Alarm {
    /// Waits for `future`, until `deadline` at most; dropping what this returns drops `future`.
    pub(crate) async fn bound<F: Future>(&mut self, deadline: Instant, future: F) -> Option<F::Output> {
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
    async fn deadlines_hold_whether_they_move_forth_or_back() {
        let mut alarm = Alarm::default();
        let millis = Duration::from_millis;
        for wait in [millis(30), millis(10), millis(60), millis(0)] {
            let start = Instant::now();
            assert_eq!(alarm.bound(start + millis(3_600_000), async { 7 }).await, Some(7));
            assert_eq!(alarm.bound(start + wait, pending::<()>()).await, None);
            assert!(start.elapsed() >= wait);
            assert!(start.elapsed() < wait + millis(2_000));
        }
    }
}
