//! The environment of one simulated node, which is in force on this thread while the node runs.

use std::{
    cell::RefCell,
    rc::Rc,
    sync::mpsc::{Receiver, RecvError, TryRecvError},
    time::{Duration, Instant},
};

use postroad_core::Timestamp;
use rand::{Rng, SeedableRng, rngs::StdRng};

use crate::{Started, Worker, now};

/// After so many rounds of all workers without a value, none will come.
const ROUNDS_MAX: u32 = 1_000;

/// How often work looks whether the disk is free.
const DISK_POLL: Duration = Duration::from_millis(1);

thread_local! {
    static CURRENT: RefCell<Option<Rc<Environment>>> = const { RefCell::new(None) };
}

/// What one simulated node sees of the world. Everything of it runs on one thread.
pub struct Environment {
    started: Started,
    /// How far the wall clock has been set from where it would be, in ms.
    set_by_millis: RefCell<i64>,
    rng: RefCell<StdRng>,
    workers: RefCell<Vec<Box<dyn Worker>>>,
    /// Until when the disk does one call, by the steady clock.
    disk_busy_until: RefCell<Option<Instant>>,
    /// Work of [`crate::blocking`] waits for a worker: time stands still meanwhile, also for the disk.
    waits_for_workers: RefCell<bool>,
}

impl Environment {
    /// Makes the environment of a node that starts now, with its wall clock and its seed.
    #[must_use]
    pub fn new(steady: Instant, wall: Timestamp, seed: u64) -> Rc<Self> {
        let (started, rng) = (Started { wall, steady }, StdRng::seed_from_u64(seed));
        Rc::new(Self {
            started,
            set_by_millis: RefCell::new(0),
            rng: RefCell::new(rng),
            workers: RefCell::default(),
            disk_busy_until: RefCell::new(None),
            waits_for_workers: RefCell::new(false),
        })
    }

    /// Puts this environment in force until the guard is dropped.
    pub fn enter(self: &Rc<Self>) -> Entered {
        Entered(CURRENT.replace(Some(Rc::clone(self))))
    }

    /// Lets every worker do what is queued for it, unless the disk is busy. The environment must be in force, and so must the
    /// node's runtime, whose clock says when the disk is free.
    pub fn step_workers(&self) {
        if self.disk_is_busy() {
            return;
        }
        let mut workers = self.workers.take();
        workers.retain_mut(|worker| worker.work(false));
        // What they have started meanwhile comes last.
        workers.append(&mut self.workers.borrow_mut());
        *self.workers.borrow_mut() = workers;
    }

    /// Drops every worker, as the end of the process does. The environment must be in force.
    pub fn stop_workers(&self) {
        drop(self.workers.take());
    }

    /// Makes the disk busy for so long from now on, unless it is busy for longer. Until then no worker is stepped and no work
    /// of [`crate::blocking`] begins or ends.
    pub fn occupy_disk(&self, duration: Duration) {
        let until = Some(now() + duration);
        self.disk_busy_until.replace_with(|before| (*before).max(until));
    }

    /// Makes the disk free now.
    pub fn free_disk(&self) {
        self.disk_busy_until.replace(None);
    }

    /// Returns whether the disk is busy.
    #[must_use]
    pub fn disk_is_busy(&self) -> bool {
        !*self.waits_for_workers.borrow() && self.disk_busy_until.borrow().is_some_and(|until| now() < until)
    }

    /// Sets the wall clock forward, or back.
    pub fn step_wall(&self, by_millis: i64) {
        self.set_by_millis.replace_with(|before| before.saturating_add(by_millis));
    }

    pub(crate) fn started(&self) -> Started {
        self.started
    }

    pub(crate) fn since_start(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.started.steady)
    }

    pub(crate) fn wall(&self, now: Instant) -> Timestamp {
        let true_time = self.started.wall.after(self.since_start(now));
        let set_by = *self.set_by_millis.borrow();
        let by = Duration::from_millis(set_by.unsigned_abs());
        if set_by < 0 { true_time.before(by) } else { true_time.after(by) }
    }
}

/// Keeps an environment in force.
#[must_use = "the environment is in force until this is dropped"]
pub struct Entered(Option<Rc<Environment>>);

impl Drop for Entered {
    fn drop(&mut self) {
        CURRENT.set(self.0.take());
    }
}

pub(crate) fn is_simulated() -> bool {
    CURRENT.with_borrow(Option::is_some)
}

pub(crate) fn current<T>(read: impl FnOnce(&Environment) -> T) -> Option<T> {
    CURRENT.with_borrow(|current| current.as_deref().map(read))
}

pub(crate) fn add(worker: impl Worker) {
    current(|current| current.workers.borrow_mut().push(Box::new(worker)));
}

/// Lets the workers do what is queued until one of them sends a value.
///
/// A busy disk does not keep them from it: this work began when the disk was free, and [`blocking`] makes its result wait.
pub(crate) fn receive<T>(receiver: &Receiver<T>) -> Result<T, RecvError> {
    let environment = CURRENT.with_borrow(Clone::clone).ok_or(RecvError)?;
    let outer = environment.waits_for_workers.replace(true);
    let received = (0..ROUNDS_MAX).find_map(|_| match receiver.try_recv() {
        Err(TryRecvError::Empty) => {
            environment.step_workers();
            None
        }
        Err(TryRecvError::Disconnected) => Some(Err(RecvError)),
        Ok(value) => Some(Ok(value)),
    });
    environment.waits_for_workers.replace(outer);
    received.expect("a worker sends what is waited for, or drops the sender")
}

/// Runs work that blocks; both its beginning and its result wait while the disk is busy.
pub(crate) async fn blocking<T>(work: impl FnOnce() -> T) -> T {
    tokio::task::yield_now().await;
    until_disk_is_free().await;
    let result = work();
    until_disk_is_free().await;
    result
}

async fn until_disk_is_free() {
    // In small steps: the disk may be freed before its time, or become busy again.
    while current(Environment::disk_is_busy).unwrap_or_default() {
        tokio::time::sleep(DISK_POLL).await;
    }
}

pub(crate) fn with_rng<T>(work: impl FnOnce(&mut dyn Rng) -> T) -> T {
    let current = CURRENT.with_borrow(Clone::clone);
    let environment = current.expect("the caller has checked that one is in force");
    let mut rng = environment.rng.borrow_mut();
    work(&mut *rng)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{blocking, disk_is_busy, occupy_disk, random, start, wall};

    #[test]
    fn a_seed_repeats_and_each_node_has_its_own_clock() {
        let of = |seed| Environment::new(now(), Timestamp::from_millis(5_000), seed);
        let (one, other, again) = (of(1), of(2), of(1));
        let take = |environment: &Rc<Environment>| {
            let _entered = environment.enter();
            [random::<u64>(), random(), random()]
        };
        assert_eq!(take(&one), take(&again));
        assert_ne!(take(&one), take(&other));

        one.step_wall(-2_000);
        let wall_of = |environment: &Rc<Environment>| {
            let _entered = environment.enter();
            wall().as_millis()
        };
        assert!((3_000..4_000).contains(&wall_of(&one)));
        assert!((5_000..6_000).contains(&wall_of(&other)));
        assert!(wall().as_millis() > 1_600_000_000_000, "outside of them the machine's clock is in force");
    }
    /// Sends its value when it is stepped.
    struct Sends(std::sync::mpsc::Sender<u8>);

    impl Worker for Sends {
        fn work(&mut self, _: bool) -> bool {
            self.0.send(7).is_ok()
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_busy_disk_delays_workers_and_blocking_work_and_blocks_no_thread() {
        let environment = Environment::new(now(), Timestamp::from_millis(5_000), 1);
        let _entered = environment.enter();
        let (sender, values) = std::sync::mpsc::channel();
        let _running = start("worker", Sends(sender)).unwrap();
        let began = now();
        environment.occupy_disk(Duration::from_secs(5));
        environment.step_workers();
        assert!(values.try_recv().is_err(), "the worker waits for the disk");

        // The work makes the disk busy once more: what it has done is seen only afterwards.
        let result = blocking(move || {
            let started = now();
            assert!(occupy_disk(Duration::from_secs(3)));
            (started, crate::receive(&values).unwrap())
        });
        let (started, value) = result.await.unwrap();
        assert_eq!((started - began).as_secs(), 5);
        assert_eq!(((now() - began).as_secs(), value), (8, 7));
        assert!(!disk_is_busy());

        environment.occupy_disk(Duration::from_secs(1 << 30));
        assert!(disk_is_busy());
        environment.free_disk();
        blocking(|| ()).await.unwrap();
        assert_eq!((now() - began).as_secs(), 8, "a disk that is freed is used at once");
    }
}
