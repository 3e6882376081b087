//! The machine's clocks and random numbers, as a simulation sets them.
//!
//! Our crates take both from `postroad-env`. Those below take them from the C library: std the seeds of its hash maps,
//! tokio that of `select!`, hyper the `Date` of a response. In a program that links this crate they get them from here, on
//! each thread that has [entered](enter), so that a program with one thread does the same again. A thread that has not
//! entered gets the system's.
//!
//! [`Counting`] counts what a thread allocates, so that the memory of each simulated process can be bounded.
//!
//! Never link it into anything but a simulation: it makes secrets predictable.
#![expect(unsafe_code, reason = "functions of the C library are replaced")]

use std::{
    alloc::{GlobalAlloc, Layout},
    cell::RefCell,
    time::Duration,
};

use libc::{c_int, c_void, clockid_t, size_t, ssize_t, timespec};

/// The generator's constants (Steele, Lea, Flood: Fast Splittable Pseudorandom Number Generators, 2014).
const GAMMA: u64 = 0x9e37_79b9_7f4a_7c15;
const MIX: [u64; 2] = [0xbf58_476d_1ce4_e5b9, 0x94d0_49bb_1331_11eb];

thread_local! {
    /// The state of this thread's generator and its time, once it has entered.
    static ENTERED: RefCell<Option<(u64, Duration)>> = const { RefCell::new(None) };
    /// Bytes that this thread has allocated and not freed, and the most there were since [`take_peak`].
    static ALLOCATED: RefCell<(i64, i64)> = const { RefCell::new((0, 0)) };
}

/// Gives this thread random numbers from a seed, and clocks that stand still at `time`.
pub fn enter(seed: u64, time: Duration) {
    ENTERED.set(Some((seed, time)));
}

/// Sets the clocks of this thread, which must have entered.
///
/// # Panics
/// The thread has not entered.
pub fn set_time(time: Duration) {
    let (state, _) = ENTERED.with_borrow(|entered| *entered).expect("the thread has entered");
    ENTERED.set(Some((state, time)));
}

/// Takes the place of `getrandom(2)`; std looks the C library's function up as a weak symbol for this purpose.
///
/// # Safety
/// `buffer` has room for `length` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn getrandom(buffer: *mut c_void, length: size_t, flags: u32) -> ssize_t {
    let Some((mut state, time)) = ENTERED.with_borrow(|entered| *entered) else {
        // SAFETY: the arguments are those of the caller, which keeps the contract of getrandom(2).
        return unsafe { libc::syscall(libc::SYS_getrandom, buffer, length, flags) as ssize_t };
    };
    // SAFETY: the caller promises the room, as that of getrandom(2) does.
    let bytes = unsafe { std::slice::from_raw_parts_mut(buffer.cast::<u8>(), length) };
    for chunk in bytes.chunks_mut(8) {
        state = state.wrapping_add(GAMMA);
        chunk.copy_from_slice(&mixed(state).to_le_bytes()[..chunk.len()]);
    }
    ENTERED.set(Some((state, time)));
    length.cast_signed()
}

/// Takes the place of `clock_gettime(2)`: all clocks show the time that was set.
///
/// # Safety
/// `time` has room for one.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn clock_gettime(clock: clockid_t, time: *mut timespec) -> c_int {
    let Some((_, set)) = ENTERED.with_borrow(|entered| *entered) else {
        // SAFETY: the arguments are those of the caller, which keeps the contract of clock_gettime(2).
        return unsafe { libc::syscall(libc::SYS_clock_gettime, clock, time) as c_int };
    };
    let set = timespec { tv_sec: set.as_secs().cast_signed(), tv_nsec: i64::from(set.subsec_nanos()) };
    // SAFETY: the caller promises the room, as that of clock_gettime(2) does.
    unsafe { time.write(set) };
    0
}

/// An allocator that counts for each thread what is allocated from another one. Memory that another thread frees is counted
/// there.
#[derive(Debug)]
pub struct Counting<A>(pub A);

impl<A> Counting<A> {
    fn count(bytes: i64) {
        let (now, peak) = ALLOCATED.with_borrow(|counted| *counted);
        ALLOCATED.set((now + bytes, peak.max(now + bytes)));
    }
}

// SAFETY: every call is the inner allocator's, with the arguments of the caller.
unsafe impl<A: GlobalAlloc> GlobalAlloc for Counting<A> {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        Self::count(layout.size().cast_signed() as i64);
        // SAFETY: the caller keeps the contract.
        unsafe { self.0.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        Self::count(layout.size().cast_signed() as i64);
        // SAFETY: the caller keeps the contract.
        unsafe { self.0.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        Self::count(-(layout.size().cast_signed() as i64));
        // SAFETY: the caller keeps the contract.
        unsafe { self.0.dealloc(block, layout) }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, bytes: usize) -> *mut u8 {
        Self::count(bytes.cast_signed() as i64 - layout.size().cast_signed() as i64);
        // SAFETY: the caller keeps the contract.
        unsafe { self.0.realloc(block, layout, bytes) }
    }
}

/// Returns the bytes that this thread has allocated and not freed.
#[must_use]
pub fn allocated() -> i64 {
    ALLOCATED.with_borrow(|counted| *counted).0
}

/// Returns the most bytes that were allocated at a time since the last call.
#[must_use]
pub fn take_peak() -> i64 {
    let (now, peak) = ALLOCATED.with_borrow(|counted| *counted);
    ALLOCATED.set((now, now));
    peak
}

fn mixed(state: u64) -> u64 {
    let mixed = (state ^ (state >> 30)).wrapping_mul(MIX[0]);
    let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(MIX[1]);
    mixed ^ (mixed >> 31)
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "they are what is tested")]
mod tests {
    use std::{
        collections::HashMap,
        thread,
        time::{Instant, SystemTime, UNIX_EPOCH},
    };

    use super::*;

    #[global_allocator]
    static ALLOCATOR: Counting<std::alloc::System> = Counting(std::alloc::System);

    #[test]
    fn what_a_thread_allocates_is_counted_until_it_is_freed() {
        let before = allocated();
        let _ = take_peak();
        let kept = vec![1_u8; 1000];
        drop(vec![0_u8; 5000]);
        assert_eq!(allocated() - before, 1000);
        assert_eq!(take_peak() - before, 6000);
        assert_eq!(take_peak() - before, 1000);
        drop(kept);
        assert_eq!(allocated(), before);
    }

    #[test]
    fn hash_maps_of_threads_with_one_seed_have_one_order() {
        let order_of = |seed| {
            let list = move || {
                enter(seed, Duration::ZERO);
                let map: HashMap<u32, ()> = (0..100).map(|key| (key, ())).collect();
                map.into_keys().collect::<Vec<_>>()
            };
            thread::spawn(list).join().unwrap()
        };
        assert_eq!(order_of(1), order_of(1));
        assert_ne!(order_of(1), order_of(2));
    }

    #[test]
    fn both_clocks_show_what_was_set_on_this_thread_only() {
        let read = || {
            enter(1, Duration::from_millis(5_000));
            let before = Instant::now();
            set_time(Duration::from_millis(7_500));
            (SystemTime::now().duration_since(UNIX_EPOCH).unwrap(), before.elapsed())
        };
        let expected = (Duration::from_millis(7_500), Duration::from_millis(2_500));
        assert_eq!(thread::spawn(read).join().unwrap(), expected);
        assert!(SystemTime::now() > UNIX_EPOCH + Duration::from_hours(400_000));
    }
}
