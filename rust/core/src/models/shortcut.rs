//! P1c: two faults that mark one page, the second by the short cut "already unsync" without the lock.
//!
//! In this machine every fault holds the `mmu_lock` exclusively, so the short cut is taken under it. The model has what
//! KVM has, faults side by side with a lock for the marking only, so that a shared `mmu_lock` needs no new proof.

use shadow_mmu_sync::lock::QueuedLock;

use super::{
    Model, breaks, holds,
    orders::{AllSeqCst, FencesOnly, MarkPageRelaxed, ShortCutRelaxed},
};
use crate::{
    shadow::publish::{
        KvmOrder,
        entry::{PublishOrder, WritePermit, publish_writable_as, walk_load_as},
        marks::{MarkOrder, SyncState},
    },
    sync::{AtomicU64, Ordering, fence},
};

const SKIPPED: &str = "a flush would skip the sync of a page that is written";

/// What the algorithm does, apart from the orders.
#[derive(Clone, Copy, PartialEq)]
enum Steps {
    Right,
    /// The page's own mark first, then the ancestors': KVM's order.
    LeafFirst,
    /// The same, and no short cut: the lock is always taken.
    LeafFirstNoShortCut,
    /// A release fence before the SPTE (`smp_wmb`).
    Wmb,
}

const WRITABLE: u64 = 0x4027;

/// One page under one root, mapped through two SPTEs.
struct Machine<O> {
    steps: Steps,
    unsync_lock: QueuedLock,
    page: SyncState<O>,
    root: SyncState<O>,
    sptes: [AtomicU64; 2],
}

impl<O: PublishOrder + MarkOrder> Machine<O> {
    fn try_to_unsync(&self) {
        if self.steps != Steps::LeafFirstNoShortCut && self.page.is_marked() {
            return;
        }
        let (grant, _) = self.unsync_lock.acquire();
        if !self.page.is_unsync_locked() {
            let mark_root = || {
                self.root.add_unsync_child();
            };
            if matches!(self.steps, Steps::LeafFirst | Steps::LeafFirstNoShortCut) {
                self.page.mark_unsync(|| ());
                mark_root();
            } else {
                self.page.mark_unsync(mark_root);
            }
        }
        self.unsync_lock.release(grant);
    }

    fn fault(&self, number: usize) {
        self.try_to_unsync();
        if self.steps == Steps::Wmb {
            fence(Ordering::Release);
        }
        publish_writable_as::<O>(&self.sptes[number], WRITABLE, &WritePermit::granted());
    }

    fn first_fault(&self) {
        self.fault(0);
    }

    fn second_fault(&self) {
        self.fault(1);
    }

    /// Stores through the second mapping, and flushes.
    fn store_and_flush(&self) {
        if walk_load_as::<O>(&self.sptes[1]) == WRITABLE {
            assert!(self.root.observe(), "{SKIPPED}");
        }
    }
}

fn p1c<O: PublishOrder + MarkOrder + 'static>(steps: Steps) -> Model {
    let machine = Machine::<O> {
        steps,
        unsync_lock: QueuedLock::new(),
        page: SyncState::new(),
        root: SyncState::new(),
        sptes: [AtomicU64::new(0), AtomicU64::new(0)],
    };
    Model::new(machine, [Machine::first_fault, Machine::second_fault, Machine::store_and_flush])
}

#[test]
fn p1c_who_takes_the_short_cut_has_the_marks_of_the_ancestors() {
    holds("P1c", || p1c::<KvmOrder>(Steps::Right));
    holds("P1c, leaf first, no short cut", || p1c::<MarkPageRelaxed>(Steps::LeafFirstNoShortCut));
}

#[test]
fn p1c_twin_short_cut_relaxed() {
    breaks("P1c twin, short cut Relaxed", SKIPPED, || p1c::<ShortCutRelaxed>(Steps::Right));
}

#[test]
fn p1c_twin_leaf_mark_relaxed() {
    breaks("P1c twin, leaf mark Relaxed", SKIPPED, || p1c::<MarkPageRelaxed>(Steps::Right));
}

#[test]
fn p1c_twin_only_a_write_barrier() {
    breaks("P1c twin, wmb only", SKIPPED, || p1c::<FencesOnly>(Steps::Wmb));
}

#[test]
fn p1c_twin_leaf_before_its_ancestors() {
    breaks("P1c twin, leaf first", SKIPPED, || p1c::<KvmOrder>(Steps::LeafFirst));
}

#[test]
fn p1c_twin_leaf_first_with_seqcst_everywhere() {
    breaks("P1c twin, leaf first, SeqCst", SKIPPED, || p1c::<AllSeqCst>(Steps::LeafFirst));
}
