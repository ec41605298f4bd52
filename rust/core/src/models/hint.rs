//! P2: the first shadow page of a guest table against an emulated write to it.

use shadow_mmu_sync::lock::QueuedLock;

use super::{
    Model, STALE, breaks, holds,
    orders::{HintFencesAcqRel, NoAccountFence, NoHintFences, NoWriteFence},
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
    lock: QueuedLock,
    hint: TrackHint<O>,
    guest_entry: AtomicU64,
    leaf: AtomicU64,
}

impl<O: HintOrder> Tracked<O> {
    fn take_over(&self) {
        if self.guest_entry.load(Ordering::Relaxed) == 0 {
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
        self.guest_entry.store(0, Ordering::Relaxed);
        if self.hint.is_needed_after_store() {
            let (grant, _) = self.lock.acquire();
            self.take_over();
            self.lock.release(grant);
        }
    }
}

/// One of the two takes the new value over.
fn p2<O: HintOrder + 'static>(read_first: bool) -> Model {
    let tracked = Tracked::<O> {
        read_first,
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
