//! Memory that is not atomic: what a shadow page is to its users, as far as its life goes.
//!
//! Two accesses that nothing orders are reported by the checker, wherever they fall in time: an atomic word would
//! show only those that an execution happens to overlap.

use loom::cell::UnsafeCell;

/// In the message of the checker when two accesses are not ordered.
pub(super) const RACE: &str = "Causality violation";

/// One place in memory without a value.
pub(super) struct Plain(UnsafeCell<()>);

impl Plain {
    pub(super) fn new() -> Self {
        Self(UnsafeCell::new(()))
    }

    /// A read, by someone who uses what is there.
    pub(super) fn read(&self) {
        self.0.with(|_| ());
    }

    /// A write: it is initialised, freed, or used for something else.
    pub(super) fn write(&self) {
        self.0.with_mut(|_| ());
    }
}
