//! One simulated process: a paused runtime of its own, with its own clocks, random numbers and threads.

use std::{panic::AssertUnwindSafe, rc::Rc, time::Duration};

use postroad_core::Timestamp;
use postroad_env::Environment;
use tokio::{
    runtime::{Builder, Runtime},
    task::JoinHandle,
    time,
};

use crate::network::Host;

/// A process that runs until it is killed or ends by itself.
pub(crate) struct Process {
    pub(crate) host: Host,
    runtime: Option<Runtime>,
    environment: Rc<Environment>,
    main: JoinHandle<()>,
    /// How much faster its steady clock runs, in millionths.
    pub(crate) drift_ppm: i64,
    /// Its steady clock's time that is not a whole tick yet, in nanoseconds.
    owed_nanos: i64,
    memory: Memory,
}

/// What a process has allocated, in bytes. What it sends and writes is counted too, although others hold it: it is too much
/// rather than too little.
#[derive(Clone, Copy, Default)]
pub(crate) struct Memory {
    pub(crate) held: i64,
    /// The most that it has held since it started.
    pub(crate) peak: i64,
}

impl Memory {
    fn count<T>(&mut self, work: impl FnOnce() -> T) -> T {
        let before = postroad_machine::allocated();
        let _ = postroad_machine::take_peak();
        let result = work();
        self.peak = self.peak.max(self.held + postroad_machine::take_peak() - before);
        self.held += postroad_machine::allocated() - before;
        result
    }
}

impl Process {
    /// Starts a process with its wall clock and its seed.
    pub(crate) fn start(
        host: Host,
        seed: u64,
        wall: Timestamp,
        main: impl Future<Output = ()> + Send + 'static,
    ) -> Self {
        let built = Builder::new_current_thread().enable_time().start_paused(true).build();
        let runtime = built.expect("a runtime without I/O needs nothing from the system");
        let steady = runtime.block_on(async { postroad_env::now() });
        let environment = Environment::new(steady, wall, seed);
        let main = {
            let _entered = environment.enter();
            runtime.spawn(main)
        };
        let memory = Memory::default();
        Self { host, runtime: Some(runtime), environment, main, drift_ppm: 0, owed_nanos: 0, memory }
    }

    /// Lets the process run for a time, and then its threads.
    pub(crate) fn tick(&mut self, time: Duration) {
        let time = self.drifted(time);
        let _entered = self.environment.enter();
        let Some(runtime) = &self.runtime else { return };
        self.memory.count(|| {
            runtime.block_on(async { time::sleep(time).await });
            let _runtime = runtime.enter();
            self.environment.step_workers();
        });
    }

    /// Returns what it has allocated.
    pub(crate) fn memory(&self) -> Memory {
        self.memory
    }

    /// Returns whether a call of its disk has not returned yet.
    pub(crate) fn disk_is_busy(&self) -> bool {
        let _entered = self.environment.enter();
        let Some(runtime) = &self.runtime else { return false };
        let _runtime = runtime.enter();
        self.environment.disk_is_busy()
    }

    /// Lets it take a few steps without time passing; it may then be killed between any two of them.
    pub(crate) fn step(&mut self, steps: u32) {
        let _entered = self.environment.enter();
        let Some(runtime) = &self.runtime else { return };
        runtime.block_on(async {
            for _ in 0..steps {
                tokio::task::yield_now().await;
            }
        });
    }

    /// Lets the time pass while it was suspended: everything that was due happens at once.
    pub(crate) fn resume(&mut self, after: Duration) {
        let _entered = self.environment.enter();
        let Some(runtime) = &self.runtime else { return };
        runtime.block_on(async { time::advance(after).await });
    }

    /// Ends what keeps its disk busy.
    pub(crate) fn free_disk(&self) {
        self.environment.free_disk();
    }

    /// Sets the wall clock forward, or back.
    pub(crate) fn step_wall(&self, by_millis: i64) {
        self.environment.step_wall(by_millis);
    }

    /// Returns true once its main task has ended.
    pub(crate) fn has_ended(&self) -> bool {
        self.main.is_finished()
    }

    /// Kills it: nothing of it runs again.
    pub(crate) fn kill(mut self) {
        self.drop_runtime();
    }

    /// Dropping tasks may panic in a process that is broken already.
    fn drop_runtime(&mut self) {
        let _entered = self.environment.enter();
        let Some(runtime) = self.runtime.take() else { return };
        let dropped = std::panic::catch_unwind(AssertUnwindSafe(|| runtime.shutdown_background()));
        drop(dropped);
        self.environment.stop_workers();
    }

    fn drifted(&mut self, time: Duration) -> Duration {
        let nanos = i64::try_from(time.as_nanos()).unwrap_or(i64::MAX);
        self.owed_nanos += nanos + nanos * self.drift_ppm / 1_000_000;
        // The runtime's timers have whole milliseconds.
        let millis = (self.owed_nanos / 1_000_000).max(0);
        self.owed_nanos -= millis * 1_000_000;
        Duration::from_millis(millis.unsigned_abs())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.drop_runtime();
    }
}
