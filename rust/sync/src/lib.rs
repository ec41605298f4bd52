//! The one place that chooses where atomics come from.
//!
//! * native: `core`'s, in types of the same layout;
//! * native with the feature `count-sync`: the same, and they count what the calling thread does;
//! * `--cfg loom`: loom's, so that a model checker runs the production types.
//!
//! Beside them [`lock`]: the raw lock of the `mmu_lock`, an algorithm over these atomics.
#![cfg_attr(not(loom), forbid(unsafe_code))]

pub mod lock;

#[cfg(all(feature = "count-sync", not(loom)))]
pub mod count;
#[cfg(not(loom))]
mod native;

#[cfg(not(loom))]
pub(crate) use self::native::count;
#[cfg(not(loom))]
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
    pub fn wait(&mut self) {
        if self.spins < Self::SPINS {
            self.spins += 1;
            spin_loop();
        } else {
            yield_now();
        }
    }
}
