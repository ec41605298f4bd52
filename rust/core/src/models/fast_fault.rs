//! P8: write permission restored without the lock, against the protection by the lock's holder.

use shadow_mmu_sync::lock::QueuedLock;

use super::{Model, breaks, holds};
use crate::{
    shadow::publish::{
        entry::{WritePermit, load_locked, protect, publish_writable, walk_load},
        fast_fault::{FastFault, restore_write},
        harvest::harvest,
        marks::SyncState,
    },
    sync::{AtomicU64, Ordering},
};

const WRITABLE: u64 = 1 << 1;
const DIRTY: u64 = 1 << 6;
const MMU_WRITABLE: u64 = 1 << 10;
/// Read-only only because its page is logged.
const LOGGED: u64 = 0x4001 | MMU_WRITABLE;
const LOST: &str = "a write protection was undone";
const SKIPPED: &str = "a flush would skip the sync of a page that is written";

/// What the algorithm does.
#[derive(Clone, Copy, PartialEq)]
enum Steps {
    Right,
    /// W is set by a store instead of an exchange.
    RestoreByStore,
    /// MMU-writable is not asked for.
    RestoreAlways,
    /// W and D are taken away by a load and a store.
    HarvestByStore,
}

/// An entry that maps a guest table, and the root of that table's shadow page.
struct Machine {
    steps: Steps,
    lock: QueuedLock,
    root: SyncState,
    spte: AtomicU64,
}

impl Machine {
    fn new(steps: Steps, spte: u64) -> Self {
        Self { steps, lock: QueuedLock::new(), root: SyncState::new(), spte: AtomicU64::new(spte) }
    }

    fn restore(&self) {
        let seen = walk_load(&self.spte);
        match self.steps {
            Steps::RestoreByStore if seen & (WRITABLE | MMU_WRITABLE) == MMU_WRITABLE => {
                self.spte.store(seen | WRITABLE, Ordering::Relaxed);
            }
            Steps::RestoreAlways => {
                let _ = self.spte.compare_exchange(seen, seen | WRITABLE, Ordering::Relaxed, Ordering::Relaxed);
            }
            _ => {
                let mut seen = seen;
                while let FastFault::Changed(found) = restore_write(&self.spte, seen) {
                    seen = found;
                }
            }
        }
    }

    /// The MMU protects the page for good.
    fn protect_it(&self) {
        let (grant, _) = self.lock.acquire();
        protect(&self.spte, WRITABLE | MMU_WRITABLE);
        self.lock.release(grant);
    }

    /// A fault makes an unsync page writable; the dirty log takes W away again.
    fn publish_and_log(&self) {
        let (grant, _) = self.lock.acquire();
        self.root.add_unsync_child();
        publish_writable(&self.spte, LOGGED | WRITABLE | DIRTY, &WritePermit::granted());
        if self.steps == Steps::HarvestByStore {
            self.spte.store(load_locked(&self.spte) & !(WRITABLE | DIRTY), Ordering::Relaxed);
        } else {
            harvest(&self.spte, || ());
        }
        self.lock.release(grant);
    }

    /// A guest that stores through the entry and flushes.
    fn store_and_flush(&self) {
        if walk_load(&self.spte) & WRITABLE != 0 {
            assert!(self.root.observe(), "{SKIPPED}");
        }
    }
}

/// A fast fault against a protection.
fn p8(steps: Steps) -> Model {
    Model::checked(Machine::new(steps, LOGGED), [Machine::restore, Machine::protect_it], |machine| {
        let spte = machine.spte.load(Ordering::Relaxed);
        assert_eq!(spte & (WRITABLE | MMU_WRITABLE), 0, "{LOST}");
    })
}

/// What a restored entry hands on: the marks of whoever published it.
fn p8_marks(steps: Steps) -> Model {
    Model::new(Machine::new(steps, 0), [Machine::publish_and_log, Machine::restore, Machine::store_and_flush])
}

#[test]
fn p8_a_protection_is_never_undone() {
    holds("P8", || p8(Steps::Right));
}

#[test]
fn p8_a_restored_entry_hands_the_marks_on() {
    holds("P8, marks", || p8_marks(Steps::Right));
}

#[test]
fn p8_twin_restored_by_a_store() {
    breaks("P8 twin, restored by a store", LOST, || p8(Steps::RestoreByStore));
}

#[test]
fn p8_twin_mmu_writable_not_asked_for() {
    breaks("P8 twin, MMU-writable ignored", LOST, || p8(Steps::RestoreAlways));
}

#[test]
fn p8_twin_marks_lost_by_a_restoring_store() {
    breaks("P8 twin, restoring store drops the marks", SKIPPED, || p8_marks(Steps::RestoreByStore));
}

#[test]
fn p8_twin_marks_lost_by_a_harvesting_store() {
    breaks("P8 twin, harvesting store drops the marks", SKIPPED, || p8_marks(Steps::HarvestByStore));
}
