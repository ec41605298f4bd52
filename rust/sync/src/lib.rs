//! The one place that chooses where atomics come from.
//!
//! * native: `core`'s, in types of the same layout;
//! * native with the feature `count-sync`: the same, and they count what the calling thread does;
//! * native with the feature `scheduled`: the same, and the scheduler in `schedule` says which thread goes on;
//! * `--cfg loom`: loom's, so that a model checker runs the production types;
//! * `--cfg explored`: those of the checker in `explored`, which has no bound on preemptions.
//!
//! Beside them [`lock`]: the raw lock of the `mmu_lock`, an algorithm over these atomics.
#![cfg_attr(not(loom), forbid(unsafe_code))]

pub mod lock;

#[cfg(all(feature = "count-sync", not(any(loom, explored))))]
pub mod count;
#[cfg(explored)]
pub mod explored;
#[cfg(not(any(loom, explored)))]
mod native;

#[cfg(all(feature = "scheduled", not(any(loom, explored))))]
pub mod schedule;

#[cfg(explored)]
pub use self::explored::{AtomicBool, AtomicU32, AtomicU64, fence, spin_loop, yield_now};
#[cfg(not(any(loom, explored)))]
pub(crate) use self::native::count;
#[cfg(not(any(loom, explored)))]
pub use self::native::{AtomicBool, AtomicU32, AtomicU64, fence, spin_loop, yield_now};

#[cfg(loom)]
pub use loom::{
    hint::spin_loop,
    sync::atomic::{AtomicBool, AtomicU32, AtomicU64, fence},
    thread::yield_now,
};

pub use core::sync::atomic::Ordering;

/// How a thread waits for another: it spins for about a microsecond, then gives the processor away.
///
/// More threads than processors is the normal case here, so whoever is waited for may not be running.
#[derive(Debug, Default)]
pub struct Backoff {
    spins: u32,
}

impl Backoff {
    /// Under loom a spin is a yield already.
    const SPINS: u32 = 100;

    /// A wait that has just begun.
    #[must_use]
    pub const fn new() -> Self {
        Self { spins: 0 }
    }

    /// Waits a little; to be called each time the condition was found false.
    #[cfg_attr(explored, track_caller)]
    pub fn wait(&mut self) {
        if self.spins < Self::SPINS {
            self.spins += 1;
            spin_loop();
        } else {
            yield_now();
        }
    }
}

/// Waits until a condition holds: one load (or one compare-exchange) of what another thread will store.
///
/// It changes nothing while it does not hold. That is what lets a checker take the wait for one step.
#[inline]
pub fn wait_until(mut holds: impl FnMut() -> bool) {
    #[cfg(explored)]
    explored::wait_until(&mut holds);
    #[cfg(not(explored))]
    {
        let mut backoff = Backoff::new();
        while !holds() {
            backoff.wait();
        }
    }
}
