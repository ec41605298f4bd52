//! Memory that is not atomic: what a shadow page is to its users, as far as its life goes.
//!
//! Two accesses that nothing orders are reported by the checker, wherever they fall in time: an atomic word would
//! show only those that an execution happens to overlap.

#[cfg(loom)]
use loom::cell::UnsafeCell;
#[cfg(explored)]
use shadow_mmu_sync::explored::PlainU64;

/// In the message of the checker when two accesses are not ordered.
#[cfg(loom)]
pub(super) const RACE: &str = "Causality violation";
/// In the message of the checker when two accesses are not ordered.
#[cfg(explored)]
pub(super) const RACE: &str = "data race";

/// One place in memory without a value.
#[cfg(loom)]
pub(super) struct Plain(UnsafeCell<()>);
/// One place in memory; its value says nothing.
#[cfg(explored)]
pub(super) struct Plain(PlainU64);

#[cfg(loom)]
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

#[cfg(explored)]
impl Plain {
    pub(super) fn new() -> Self {
        Self(PlainU64::new(0))
    }

    /// A read, by someone who uses what is there.
    pub(super) fn read(&self) {
        let _ = self.0.get();
    }

    /// A write: it is initialised, freed, or used for something else.
    pub(super) fn write(&self) {
        self.0.set(0);
    }
}
