//! What one thread loads, stores, and does as read-modify-write, in a build with `count-sync`.
//!
//! The counters belong to the calling thread, so a test resets them, runs a path, and reads exactly
//! what that path did. A failed compare-exchange counts as a read-modify-write: it takes the line.

use std::cell::Cell;

/// What a thread did since its last [`reset`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Atomic loads.
    pub loads: u64,
    /// Atomic stores.
    pub stores: u64,
    /// Swaps, compare-exchanges and `fetch_*`.
    pub rmws: u64,
    /// Fences of any order.
    pub fences: u64,
    /// Acquisitions of a lock; what it does itself is counted too, unless it is of another crate.
    pub locks: u64,
}

thread_local! {
    static COUNTS: Cell<Counts> = const { Cell::new(Counts { loads: 0, stores: 0, rmws: 0, fences: 0, locks: 0 }) };
}

/// Sets the counters of the calling thread to 0.
pub fn reset() {
    COUNTS.set(Counts::default());
}

/// The counters of the calling thread.
#[must_use]
pub fn snapshot() -> Counts {
    COUNTS.get()
}

/// Changes the counters of the calling thread.
pub(crate) fn note(change: impl FnOnce(&mut Counts)) {
    let mut counts = COUNTS.get();
    change(&mut counts);
    COUNTS.set(counts);
}
