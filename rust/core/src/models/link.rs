//! P12 and P2: the two pairs that store and then load what the other side stores, so that only full fences help.

use shadow_mmu_sync::lock::QueuedLock;

use super::{Model, STALE, breaks, holds};
use crate::{
    shadow::publish::{
        KvmOrder, PublishOrder, SyncState, TrackHint, barrier, publish_table_as, walk_load_as, withdraw,
    },
    sync::{AtomicU64, Ordering},
};

struct NoBarrier;
impl PublishOrder for NoBarrier {
    const BARRIER: Option<Ordering> = None;
}

struct BarrierAcqRel;
impl PublishOrder for BarrierAcqRel {
    const BARRIER: Option<Ordering> = Some(Ordering::AcqRel);
}

struct LinkRelaxed;
impl PublishOrder for LinkRelaxed {
    const STORE_SPTE: Ordering = Ordering::Relaxed;
}

/// The order in which an unsync page is brought under a new root.
#[derive(Clone, Copy)]
enum Link {
    /// Mark, sync, link: the right one.
    MarkFirst,
    /// Sync, mark, link.
    MarkBetween,
    /// Sync, link, mark: KVM's.
    MarkLast,
    /// Sync, mark, link, sync.
    SyncTwice,
}

const LINKED: u64 = 0x6827;
const OLD_LEAF: u64 = 0x5025;

/// An unsync page that the guest writes without a fault, and a root that does not reach it yet.
struct Machine<O> {
    order: Link,
    lock: QueuedLock,
    root: SyncState<O>,
    link: AtomicU64,
    guest_entry: AtomicU64,
    leaf: AtomicU64,
    signal: AtomicU64,
}

impl<O: PublishOrder> Machine<O> {
    fn sync(&self) {
        if self.guest_entry.load(Ordering::Relaxed) == 0 {
            withdraw(&self.leaf, 0);
        }
    }

    fn mark(&self) {
        self.root.add_unsync_child();
    }

    fn bring_under_root(&self) {
        let (grant, _) = self.lock.acquire();
        match self.order {
            Link::MarkFirst => {
                self.mark();
                barrier::<O>();
                self.sync();
                publish_table_as::<O>(&self.link, LINKED);
            }
            Link::MarkLast => {
                self.sync();
                publish_table_as::<O>(&self.link, LINKED);
                self.mark();
            }
            Link::MarkBetween => {
                self.sync();
                self.mark();
                publish_table_as::<O>(&self.link, LINKED);
            }
            Link::SyncTwice => {
                self.sync();
                self.mark();
                publish_table_as::<O>(&self.link, LINKED);
                barrier::<O>();
                self.sync();
            }
        }
        self.lock.release(grant);
    }

    fn store_and_signal(&self) {
        self.guest_entry.store(0, Ordering::Relaxed);
        self.signal.store(1, Ordering::Release);
    }

    fn await_signal_and_flush(&self) {
        if self.signal.load(Ordering::Acquire) == 0 {
            return;
        }
        barrier::<O>();
        if self.root.observe() {
            let (grant, _) = self.lock.acquire();
            if self.root.children_locked() != 0 {
                self.sync();
            }
            self.lock.release(grant);
        }
        if walk_load_as::<O>(&self.link) == LINKED {
            assert_eq!(walk_load_as::<O>(&self.leaf), 0, "{STALE}");
        }
    }
}

/// Three vCPUs: one links, one stores and signals, one flushes and walks.
fn p12<O: PublishOrder + 'static>(order: Link) -> Model {
    let machine = Machine::<O> {
        order,
        lock: QueuedLock::new(),
        root: SyncState::new(),
        link: AtomicU64::new(0),
        guest_entry: AtomicU64::new(1),
        leaf: AtomicU64::new(OLD_LEAF),
        signal: AtomicU64::new(0),
    };
    Model::new(machine, [Machine::bring_under_root, Machine::store_and_signal, Machine::await_signal_and_flush])
}

/// A guest table and its first shadow page.
struct Tracked<O> {
    lock: QueuedLock,
    hint: TrackHint<O>,
    guest_entry: AtomicU64,
    leaf: AtomicU64,
}

impl<O: PublishOrder> Tracked<O> {
    fn take_over(&self) {
        if self.guest_entry.load(Ordering::Relaxed) == 0 {
            withdraw(&self.leaf, 0);
        }
    }

    fn shadow_it(&self) {
        let (grant, _) = self.lock.acquire();
        self.hint.account();
        self.take_over();
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

/// The first shadow page of a table against an emulated write to it: one of the two takes the new value over.
fn p2<O: PublishOrder + 'static>() -> Model {
    let tracked = Tracked::<O> {
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
fn p12_a_page_is_marked_then_synced_then_linked() {
    holds("P12", || p12::<KvmOrder>(Link::MarkFirst));
}

#[test]
fn p12_twin_without_barriers() {
    breaks("P12 twin, no barriers", STALE, || p12::<NoBarrier>(Link::MarkFirst));
}

#[test]
fn p12_twin_barriers_acquire_release() {
    breaks("P12 twin, barriers AcqRel", STALE, || p12::<BarrierAcqRel>(Link::MarkFirst));
}

#[test]
fn p12_twin_link_relaxed() {
    breaks("P12 twin, link Relaxed", STALE, || p12::<LinkRelaxed>(Link::MarkFirst));
}

#[test]
fn p12_twin_sync_link_mark() {
    breaks("P12 twin, sync link mark", STALE, || p12::<KvmOrder>(Link::MarkLast));
}

#[test]
fn p12_twin_sync_mark_link() {
    breaks("P12 twin, sync mark link", STALE, || p12::<KvmOrder>(Link::MarkBetween));
}

#[test]
fn p12_twin_sync_mark_link_sync() {
    breaks("P12 twin, sync mark link sync", STALE, || p12::<KvmOrder>(Link::SyncTwice));
}

#[test]
fn p2_the_shadower_or_the_writer_sees_the_other() {
    holds("P2", p2::<KvmOrder>);
}

#[test]
fn p2_twin_without_barriers() {
    breaks("P2 twin, no barriers", STALE, p2::<NoBarrier>);
}

#[test]
fn p2_twin_barriers_acquire_release() {
    breaks("P2 twin, barriers AcqRel", STALE, p2::<BarrierAcqRel>);
}
