//! What a node takes from the machine it runs on: time, random numbers and threads.
//!
//! Everything else takes them from here, which a lint checks (clippy.toml), so that a simulation can give every node an
//! [`Environment`] of its own: a clock that is wrong, a seed that repeats, no threads. Outside of a simulation there is
//! only the machine's, and each function is what it calls.
#![expect(clippy::disallowed_methods, reason = "this is where they are called")]

use std::{
    convert::Infallible,
    io,
    sync::{
        LazyLock,
        mpsc::{Receiver, RecvError},
    },
    thread::JoinHandle,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use postroad_core::Timestamp;
use rand::{
    Rng, RngExt, TryRng,
    distr::{Distribution, StandardUniform},
};
use tokio::task;

#[cfg(feature = "simulation")]
mod environment;

#[cfg(feature = "simulation")]
pub use environment::{Entered, Environment};

/// When this process first asked: the wall clock and the steady clock, read together.
static STARTED: LazyLock<Started> = LazyLock::new(|| Started { wall: machine_wall(), steady: now() });

/// When a node started, by both of its clocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Started {
    /// The wall clock.
    pub wall: Timestamp,
    /// The steady clock.
    pub steady: Instant,
}

/// Returns the steady clock, which never goes back: tokio's, so that time which a test has paused stands still here too.
#[must_use]
pub fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

/// Returns the time since a steady time.
#[must_use]
pub fn since(earlier: Instant) -> Duration {
    now().saturating_duration_since(earlier)
}

/// Returns the wall clock, which may jump.
#[must_use]
pub fn wall() -> Timestamp {
    #[cfg(feature = "simulation")]
    if let Some(wall) = environment::current(|current| current.wall(now())) {
        return wall;
    }
    machine_wall()
}

/// Returns the time since the machine booted, sleep included.
#[must_use]
pub fn since_boot() -> Duration {
    #[cfg(feature = "simulation")]
    if let Some(since) = environment::current(|current| current.since_start(now())) {
        return since;
    }
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    Duration::new(seconds, u32::try_from(time.tv_nsec).unwrap_or(0))
}

/// Returns the id of the machine's boot, 0 if it is unknown: [`since_boot`] of two processes is only comparable within one.
#[must_use]
pub fn boot_id() -> u128 {
    #[cfg(feature = "simulation")]
    if environment::is_simulated() {
        return random();
    }
    let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    u128::from_str_radix(&text.trim().replace('-', ""), 16).unwrap_or(0)
}

/// Returns when this node started, by both clocks.
#[must_use]
pub fn started() -> Started {
    #[cfg(feature = "simulation")]
    if let Some(started) = environment::current(Environment::started) {
        return started;
    }
    *STARTED
}

/// Returns a random value.
#[must_use]
pub fn random<T>() -> T
where
    StandardUniform: Distribution<T>,
{
    Random.random()
}

/// The source of random numbers.
#[derive(Clone, Copy, Debug, Default)]
pub struct Random;

impl Random {
    fn with<T>(work: impl FnOnce(&mut dyn Rng) -> T) -> T {
        #[cfg(feature = "simulation")]
        if environment::is_simulated() {
            return environment::with_rng(work);
        }
        work(&mut rand::rng())
    }
}

impl TryRng for Random {
    type Error = Infallible;

    fn try_next_u32(&mut self) -> Result<u32, Infallible> {
        Ok(Self::with(|rng| rng.next_u32()))
    }

    fn try_next_u64(&mut self) -> Result<u64, Infallible> {
        Ok(Self::with(|rng| rng.next_u64()))
    }

    fn try_fill_bytes(&mut self, bytes: &mut [u8]) -> Result<(), Infallible> {
        Self::with(|rng| rng.fill_bytes(bytes));
        Ok(())
    }
}

/// Runs work that blocks, such as a disk's, beside the tasks of the runtime. It begins whether anybody waits for it or not.
pub fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> task::JoinHandle<T> {
    #[cfg(feature = "simulation")]
    if environment::is_simulated() {
        return task::spawn(environment::blocking(work));
    }
    task::spawn_blocking(work)
}

/// A loop with a thread of its own, such as the one that writes the log.
pub trait Worker: Send + 'static {
    /// Does what is queued; if nothing is and it `waits`, waits until something is. Returns false once nothing more will come.
    fn work(&mut self, waits: bool) -> bool;
}

/// Runs a worker; in a simulation the simulation does, one step after the other.
///
/// # Errors
/// The machine has no thread left.
pub fn start(name: &str, mut worker: impl Worker) -> io::Result<Running> {
    #[cfg(feature = "simulation")]
    if environment::is_simulated() {
        environment::add(worker);
        return Ok(Running(None));
    }
    let thread = thread(name, move || while worker.work(true) {})?;
    Ok(Running(Some(thread)))
}

/// A worker that runs. When this is dropped, its thread is waited for: make its loop end before.
#[derive(Debug)]
pub struct Running(Option<JoinHandle<()>>);

impl Drop for Running {
    fn drop(&mut self) {
        // A worker may drop its own handle, and cannot wait for itself.
        if let Some(thread) = self.0.take()
            && thread.thread().id() != std::thread::current().id()
        {
            let _ = thread.join();
        }
    }
}

/// Waits for a value from a worker; only work of [`blocking`] and [`thread`] may.
///
/// # Errors
/// The sender is gone.
pub fn receive<T>(receiver: &Receiver<T>) -> Result<T, RecvError> {
    #[cfg(feature = "simulation")]
    if environment::is_simulated() {
        return environment::receive(receiver);
    }
    receiver.recv()
}

/// Starts a thread with a name.
///
/// # Errors
/// The machine has no thread left.
pub fn thread<T: Send + 'static>(
    name: &str,
    work: impl FnOnce() -> T + Send + 'static,
) -> io::Result<JoinHandle<T>> {
    std::thread::Builder::new().name(name.to_owned()).spawn(work)
}

/// Makes this node's disk busy for so long in a simulation: what uses it waits, no thread does. Returns false outside of
/// one, where a slow call is one that blocks.
pub fn occupy_disk(duration: Duration) -> bool {
    #[cfg(feature = "simulation")]
    if environment::is_simulated() {
        environment::current(|current| current.occupy_disk(duration));
        return true;
    }
    let _ = duration;
    false
}

/// Returns whether a call of this node's disk has not returned yet in a simulation, although its effect is there.
#[must_use]
pub fn disk_is_busy() -> bool {
    #[cfg(feature = "simulation")]
    return environment::current(Environment::disk_is_busy).unwrap_or_default();
    #[cfg(not(feature = "simulation"))]
    false
}

/// Makes this thread wait; only threads of [`thread`] and [`blocking`] may.
pub fn pause(duration: Duration) {
    std::thread::sleep(duration);
}

fn machine_wall() -> Timestamp {
    Timestamp::ZERO.after(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_steady_clock_is_the_one_that_tests_pause() {
        let before = now();
        tokio::time::sleep(Duration::from_secs(3600)).await;
        assert_eq!(now() - before, Duration::from_secs(3600));
    }

    #[tokio::test]
    async fn blocking_work_returns_its_result() {
        assert_eq!(blocking(|| 7).await.unwrap(), 7);
        assert!(blocking(|| panic!("on purpose")).await.is_err());
    }
}
