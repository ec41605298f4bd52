//! P2: the first shadow page of a guest table against an emulated write to it.

use shadow_mmu_sync::lock::QueuedLock;

#[cfg(explored)]
use super::orders::HintAccessesSeqCst;
use super::{
    Model, STALE, breaks, holds,
    orders::{HintAccessesRelAcq, HintFencesAcqRel, NoAccountFence, NoHintFences, NoWriteFence},
};
use crate::{
    shadow::publish::{
        KvmOrder,
        entry::withdraw,
        hint::{HintOrder, TrackHint},
    },
    sync::{AtomicU64, Ordering},
};

const OLD_LEAF: u64 = 0x5025;

/// A guest table and its first shadow page. The write makes the guest's entry 0.
struct Tracked<O> {
    /// The guest's entry is read before the page is counted.
    read_first: bool,
    /// The orders of the guest's entry: store and load.
    entry_orders: (Ordering, Ordering),
    lock: QueuedLock,
    hint: TrackHint<O>,
    guest_entry: AtomicU64,
    leaf: AtomicU64,
}

impl<O: HintOrder> Tracked<O> {
    fn take_over(&self) {
        if self.guest_entry.load(self.entry_orders.1) == 0 {
            withdraw(&self.leaf, 0);
        }
    }

    fn shadow_it(&self) {
        let (grant, _) = self.lock.acquire();
        if self.read_first {
            self.take_over();
        }
        self.hint.account();
        if !self.read_first {
            self.take_over();
        }
        self.lock.release(grant);
    }

    fn emulate_a_write(&self) {
        self.guest_entry.store(0, self.entry_orders.0);
        if self.hint.is_needed_after_store() {
            let (grant, _) = self.lock.acquire();
            self.take_over();
            self.lock.release(grant);
        }
    }
}

/// One of the two takes the new value over.
fn p2<O: HintOrder + 'static>(read_first: bool) -> Model {
    p2_entry::<O>(read_first, (Ordering::Relaxed, Ordering::Relaxed))
}

fn p2_entry<O: HintOrder + 'static>(read_first: bool, entry_orders: (Ordering, Ordering)) -> Model {
    let tracked = Tracked::<O> {
        read_first,
        entry_orders,
        lock: QueuedLock::new(),
        hint: TrackHint::new(),
        guest_entry: AtomicU64::new(1),
        leaf: AtomicU64::new(OLD_LEAF),
    };
    Model::checked(tracked, [Tracked::shadow_it, Tracked::emulate_a_write], |tracked| {
        assert_eq!(tracked.leaf.load(Ordering::Relaxed), 0, "{STALE}");
    })
}

#[test]
fn p2_the_shadower_or_the_writer_sees_the_other() {
    holds("P2", || p2::<KvmOrder>(false));
}

/// Right too, and not used: loom takes a `SeqCst` access for `AcqRel` and would refuse it.
#[test]
#[cfg(explored)]
fn p2_seqcst_accesses_without_fences_would_do() {
    holds("P2, SeqCst accesses", || p2_entry::<HintAccessesSeqCst>(false, (Ordering::SeqCst, Ordering::SeqCst)));
}

#[test]
fn p2_twin_release_and_acquire_accesses() {
    breaks("P2 twin, Release and Acquire accesses", STALE, || {
        p2_entry::<HintAccessesRelAcq>(false, (Ordering::Release, Ordering::Acquire))
    });
}

#[test]
fn p2_twin_without_the_shadowers_fence() {
    breaks("P2 twin, no account fence", STALE, || p2::<NoAccountFence>(false));
}

#[test]
fn p2_twin_without_the_writers_fence() {
    breaks("P2 twin, no write fence", STALE, || p2::<NoWriteFence>(false));
}

#[test]
fn p2_twin_without_fences() {
    breaks("P2 twin, no fences", STALE, || p2::<NoHintFences>(false));
}

#[test]
fn p2_twin_fences_acquire_release() {
    breaks("P2 twin, fences AcqRel", STALE, || p2::<HintFencesAcqRel>(false));
}

#[test]
fn p2_twin_guest_entry_read_first() {
    breaks("P2 twin, guest entry read first", STALE, || p2::<KvmOrder>(true));
}
