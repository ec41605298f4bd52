//! The raw locks that the `mmu_lock` can be: algorithms over the facade's atomics, without `unsafe`.
//!
//! * [`QueuedLock`]: first come, first served, each waiter on a line of its own: the kernel's kind;
//! * [`TicketLock`]: first come, first served, all waiters on one line;
//! * [`TtasLock`]: test-and-test-and-set: whoever is quickest.
//!
//! What `lock_api` needs of them is in `shadow_mmu_sys::lock`. Each lock takes its orders from a trait of constants
//! with one implementation outside tests, so that the models run the shipped code with one order weakened: under loom
//! (`models.rs`) and, without a bound, under the checker of this crate (`models/without_bound.rs`).

pub mod queued;
pub mod ticket;
pub mod ttas;

pub use self::{queued::QueuedLock, ticket::TicketLock, ttas::TtasLock};

/// One acquisition, with what its lock must remember of it. It cannot be copied, and `release` takes it back.
#[derive(Debug)]
#[must_use = "the lock stays held until the grant is released"]
pub struct Grant(u64);

impl Grant {
    /// To be called when the lock was taken, and only then: it counts the acquisition.
    fn new(ticket: u64) -> Self {
        count_acquisition();
        Self(ticket)
    }
}

/// Counts an acquisition on the calling thread, in the build that counts: for the locks of other crates.
#[inline]
pub fn count_acquisition() {
    #[cfg(not(any(loom, explored)))]
    crate::count!(locks);
}

/// 128 bytes: processors fetch lines in pairs.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Padded<T>(T);

#[cfg(all(test, loom))]
mod models;
#[cfg(all(test, explored))]
#[path = "lock/models/without_bound.rs"]
mod models;
#[cfg(all(test, not(any(loom, explored))))]
mod tests;
