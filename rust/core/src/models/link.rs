//! P12: an already-unsync page is brought under another root, by each policy.

use shadow_mmu_sync::lock::QueuedLock;

use super::{
    Model, STALE, breaks, holds,
    orders::{LinkFencesAcqRel, NoFlushFence, NoLinkFences, NoMarkFence, StoreRelaxed, WalkRelaxed},
};
use crate::{
    link::LinkPolicy,
    requests::{GuestMode, KvmHandshake, kick_and_wait},
    shadow::publish::{
        KvmOrder,
        entry::{PublishOrder, protect, publish_table, walk_load_as, withdraw},
        link::{LinkOrder, LinkStep, barrier_before_observe, before_link, publish_link},
        marks::{MarkOrder, SyncState},
    },
    sync::{AtomicU64, Ordering},
};

/// The order of the steps.
#[derive(Clone, Copy, PartialEq)]
enum Link {
    /// That of a policy, by the production functions.
    Policy(LinkPolicy),
    /// Sync, mark, link.
    MarkBetween,
    /// Sync, mark, link, sync.
    SyncTwice,
    /// Full sync without the write protection.
    FullWithoutProtection,
    /// Full sync without the wait for the stores under way.
    FullWithoutWait,
}

const FLUSH: u32 = 8;
const LINKED: u64 = 0x6827;
const WRITABLE: u64 = 0x4027;
const WRITE_BITS: u64 = 1 << 1 | 1 << 10;
const OLD_LEAF: u64 = 0x5025;

/// An unsync page that the guest writes without a fault, and a root that does not reach it yet.
struct Machine<O> {
    order: Link,
    lock: QueuedLock,
    page: SyncState<O>,
    root: SyncState<O>,
    /// Maps the guest table.
    spte: AtomicU64,
    mode: GuestMode<KvmHandshake>,
    link: AtomicU64,
    guest_entry: AtomicU64,
    leaf: AtomicU64,
    signal: AtomicU64,
}

impl<O: PublishOrder + MarkOrder + LinkOrder> Machine<O> {
    fn sync(&self) {
        if self.guest_entry.load(Ordering::Relaxed) == 0 {
            withdraw(&self.leaf, 0);
        }
    }

    fn mark(&self) {
        if self.root.children_locked() == 0 {
            self.root.add_unsync_child();
        }
    }

    fn protect(&self) {
        if self.order != Link::FullWithoutProtection {
            protect(&self.spte, WRITE_BITS);
        }
        if self.order == Link::FullWithoutWait {
            self.mode.request(FLUSH);
        } else {
            kick_and_wait([&self.mode], None, FLUSH);
        }
        self.page.clear_unsync();
    }

    fn step(&self, step: LinkStep) -> bool {
        match step {
            LinkStep::Mark => self.mark(),
            LinkStep::Protect => self.protect(),
            LinkStep::Sync => self.sync(),
        }
        true
    }

    fn link_by(&self, policy: LinkPolicy) {
        before_link::<O>(policy, |step| self.step(step));
        publish_link::<O>(policy, &self.link, LINKED, || {
            if self.page.is_unsync_locked() {
                self.mark();
            }
        });
    }

    fn bring_under_root(&self) {
        let (grant, _) = self.lock.acquire();
        match self.order {
            Link::Policy(policy) => self.link_by(policy),
            Link::FullWithoutProtection | Link::FullWithoutWait => self.link_by(LinkPolicy::FullSync),
            Link::MarkBetween => {
                self.sync();
                self.mark();
                publish_table::<O>(&self.link, LINKED);
            }
            Link::SyncTwice => {
                self.sync();
                self.mark();
                publish_table::<O>(&self.link, LINKED);
                // With the fence that the right order has.
                before_link::<O>(LinkPolicy::MarkFirst, |step| step == LinkStep::Mark || self.step(step));
            }
        }
        self.lock.release(grant);
    }

    fn store_and_signal(&self) {
        self.guest_entry.store(0, Ordering::Relaxed);
        self.signal.store(1, Ordering::Release);
    }

    /// As [`store_and_signal`](Self::store_and_signal), as a guest access: by a walk, in a section.
    fn access_and_signal(&self) {
        while !self.mode.enter() {
            self.mode.take(FLUSH);
        }
        let stored = walk_load_as::<O>(&self.spte) == WRITABLE;
        if stored {
            self.guest_entry.store(0, Ordering::Relaxed);
        }
        self.mode.leave();
        if stored {
            self.signal.store(1, Ordering::Release);
        }
    }

    fn await_signal_and_flush(&self) {
        if self.signal.load(Ordering::Acquire) == 0 {
            return;
        }
        barrier_before_observe::<O>();
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

fn machine<O: PublishOrder + MarkOrder + LinkOrder>(order: Link) -> Machine<O> {
    let machine = Machine::<O> {
        order,
        lock: QueuedLock::new(),
        page: SyncState::new(),
        root: SyncState::new(),
        spte: AtomicU64::new(WRITABLE),
        mode: GuestMode::new(),
        link: AtomicU64::new(0),
        guest_entry: AtomicU64::new(1),
        leaf: AtomicU64::new(OLD_LEAF),
        signal: AtomicU64::new(0),
    };
    machine.page.mark_unsync(|| ());
    machine
}

/// Three vCPUs: one links, one stores and signals, one flushes and walks.
fn p12<O: PublishOrder + MarkOrder + LinkOrder + 'static>(order: Link) -> Model {
    Model::new(
        machine::<O>(order),
        [Machine::bring_under_root, Machine::store_and_signal, Machine::await_signal_and_flush],
    )
}

/// The same, for policies that take the writability of the table away: the store is an access in a section.
fn p12_accessed(order: Link) -> Model {
    Model::new(
        machine::<KvmOrder>(order),
        [Machine::bring_under_root, Machine::access_and_signal, Machine::await_signal_and_flush],
    )
}

const MARK_FIRST: Link = Link::Policy(LinkPolicy::MarkFirst);

#[test]
fn p12_a_page_is_marked_then_synced_then_linked() {
    holds("P12", || p12::<KvmOrder>(MARK_FIRST));
}

#[test]
fn p12_a_page_that_is_synced_for_good_needs_no_mark() {
    holds("P12, full sync", || p12_accessed(Link::Policy(LinkPolicy::FullSync)));
}

#[test]
fn p12_twin_without_the_fence_after_the_mark() {
    breaks("P12 twin, no mark fence", STALE, || p12::<NoMarkFence>(MARK_FIRST));
}

#[test]
fn p12_twin_without_the_fence_of_the_flush() {
    breaks("P12 twin, no flush fence", STALE, || p12::<NoFlushFence>(MARK_FIRST));
}

#[test]
fn p12_twin_without_fences() {
    breaks("P12 twin, no fences", STALE, || p12::<NoLinkFences>(MARK_FIRST));
}

#[test]
fn p12_twin_fences_acquire_release() {
    breaks("P12 twin, fences AcqRel", STALE, || p12::<LinkFencesAcqRel>(MARK_FIRST));
}

#[test]
fn p12_twin_link_relaxed() {
    breaks("P12 twin, link Relaxed", STALE, || p12::<StoreRelaxed>(MARK_FIRST));
}

#[test]
fn p12_twin_walk_relaxed() {
    breaks("P12 twin, walk Relaxed", STALE, || p12::<WalkRelaxed>(MARK_FIRST));
}

#[test]
fn p12_twin_kvms_order() {
    breaks("P12 twin, sync link mark", STALE, || p12::<KvmOrder>(Link::Policy(LinkPolicy::KvmOrder)));
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
fn p12_twin_full_sync_without_protection() {
    breaks("P12 twin, full sync, no protection", STALE, || p12_accessed(Link::FullWithoutProtection));
}

#[test]
fn p12_twin_full_sync_without_a_wait() {
    breaks("P12 twin, full sync, no wait", STALE, || p12_accessed(Link::FullWithoutWait));
}
