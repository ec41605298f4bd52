//! P4: a root that another vCPU has synced and found clean.

use shadow_mmu_sync::lock::QueuedLock;

use super::{
    Model, STALE, breaks, holds,
    orders::{ClearRelaxed, ObserveRelaxed},
};
use crate::{
    shadow::publish::{
        KvmOrder,
        entry::{PublishOrder, walk_load_as, withdraw},
        marks::{MarkOrder, SyncState},
    },
    sync::{AtomicU64, Ordering, fence},
};

/// What the algorithm does, apart from the orders.
#[derive(Clone, Copy, PartialEq)]
enum Steps {
    Right,
    /// The marks go before the leaf is synced.
    ClearFirst,
    /// An acquire fence before the test, where KVM has its read barrier.
    FenceBefore,
    /// An acquire fence after the test.
    FenceAfter,
    /// The root is marked itself, as a root of level 1 would be: no child of it.
    OwnMark,
}

const OLD_LEAF: u64 = 0x5025;

/// The guest's entry is 0 already, the root is marked, the shadow leaf is old.
struct Machine<O> {
    steps: Steps,
    lock: QueuedLock,
    root: SyncState<O>,
    leaf: AtomicU64,
}

impl<O: PublishOrder + MarkOrder> Machine<O> {
    fn sync(&self) {
        let (grant, _) = self.lock.acquire();
        if self.root.is_unsync_locked() {
            withdraw(&self.leaf, 0);
            self.root.clear_unsync();
        }
        if self.root.children_locked() != 0 {
            if self.steps == Steps::ClearFirst {
                self.root.sub_unsync_child();
            }
            withdraw(&self.leaf, 0);
            if self.steps != Steps::ClearFirst {
                self.root.sub_unsync_child();
            }
        }
        self.lock.release(grant);
    }

    fn flush_and_walk(&self) {
        if self.steps == Steps::FenceBefore {
            fence(Ordering::Acquire);
        }
        if self.root.observe() {
            self.sync();
        }
        if self.steps == Steps::FenceAfter {
            fence(Ordering::Acquire);
        }
        assert_eq!(walk_load_as::<O>(&self.leaf), 0, "{STALE}");
    }
}

/// One vCPU syncs, another relies on the clean root.
fn p4<O: PublishOrder + MarkOrder + 'static>(steps: Steps) -> Model {
    let machine =
        Machine::<O> { steps, lock: QueuedLock::new(), root: SyncState::new(), leaf: AtomicU64::new(OLD_LEAF) };
    if steps == Steps::OwnMark {
        machine.root.mark_unsync(|| ());
    } else {
        machine.root.add_unsync_child();
    }
    Model::new(machine, [Machine::sync, Machine::flush_and_walk])
}

#[test]
fn p4_a_root_seen_clean_has_its_leaves_synced() {
    holds("P4", || p4::<KvmOrder>(Steps::Right));
    holds("P4, test Relaxed and a fence after it", || p4::<ObserveRelaxed>(Steps::FenceAfter));
}

#[test]
fn p4_twin_clear_relaxed() {
    breaks("P4 twin, clear Relaxed", STALE, || p4::<ClearRelaxed>(Steps::Right));
}

#[test]
fn p4_a_root_that_was_unsync_itself_has_its_leaves_synced() {
    holds("P4, own mark", || p4::<KvmOrder>(Steps::OwnMark));
}

#[test]
fn p4_twin_own_mark_cleared_relaxed() {
    breaks("P4 twin, own mark cleared Relaxed", STALE, || p4::<ClearRelaxed>(Steps::OwnMark));
}

#[test]
fn p4_twin_test_relaxed() {
    breaks("P4 twin, test Relaxed", STALE, || p4::<ObserveRelaxed>(Steps::Right));
}

#[test]
fn p4_twin_fence_before_the_test_only() {
    breaks("P4 twin, fence before the test", STALE, || p4::<ObserveRelaxed>(Steps::FenceBefore));
}

#[test]
fn p4_twin_cleared_before_the_sync() {
    breaks("P4 twin, clear first", STALE, || p4::<KvmOrder>(Steps::ClearFirst));
}
