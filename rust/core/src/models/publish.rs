//! P1, P1b and P4: the marks of a root against the SPTE that makes a guest table writable, and against its sync.

use shadow_mmu_sync::lock::QueuedLock;

use super::{Model, STALE, breaks, holds};
use crate::{
    shadow::publish::{KvmOrder, PublishOrder, SyncState, WritePermit, publish_writable_as, walk_load_as, withdraw},
    sync::{AtomicU64, Ordering, fence},
};

struct StoreRelaxed;
impl PublishOrder for StoreRelaxed {
    const STORE_SPTE: Ordering = Ordering::Relaxed;
}

struct WalkRelaxed;
impl PublishOrder for WalkRelaxed {
    const WALK_SPTE: Ordering = Ordering::Relaxed;
}

struct ClearRelaxed;
impl PublishOrder for ClearRelaxed {
    const CLEAR_CHILDREN: Ordering = Ordering::Relaxed;
}

struct ObserveRelaxed;
impl PublishOrder for ObserveRelaxed {
    const OBSERVE: Ordering = Ordering::Relaxed;
}

/// No order but that of explicit fences: KVM's write and read barrier taken literally.
struct FencesOnly;
impl PublishOrder for FencesOnly {
    const STORE_SPTE: Ordering = Ordering::Relaxed;
    const WALK_SPTE: Ordering = Ordering::Relaxed;
    const OBSERVE: Ordering = Ordering::Relaxed;
}

/// What the algorithm does, apart from the orders.
#[derive(Clone, Copy, PartialEq)]
enum Steps {
    Right,
    /// The entry becomes writable before the marks.
    SpteFirst,
    /// The page is marked, the root only after the entry.
    RootLate,
    /// The root is never marked.
    RootNever,
    /// The root is tested before the signal is awaited.
    TestEarly,
    /// A release fence before the entry, an acquire fence before the test.
    LiteralBarriers,
    /// P4: the marks go before the leaf is synced.
    ClearFirst,
    /// P4: an acquire fence, but before the test.
    FenceBeforeTest,
}

const WRITABLE: u64 = 0x4027;
const OLD_LEAF: u64 = 0x5025;

/// One guest table under one root. The guest takes a page away (its entry becomes 0): the shadow leaf must go.
struct Machine<O> {
    steps: Steps,
    /// The orders of the guest's own signalling: store and load.
    signalling: (Ordering, Ordering),
    lock: QueuedLock,
    page: SyncState<O>,
    root: SyncState<O>,
    /// Maps the guest table.
    spte: AtomicU64,
    /// The entry in the guest table, and the shadow leaf made from it.
    guest_entry: AtomicU64,
    leaf: AtomicU64,
    signal: AtomicU64,
}

impl<O: PublishOrder> Machine<O> {
    fn new(steps: Steps, signalling: (Ordering, Ordering), guest_entry: u64) -> Self {
        Self {
            steps,
            signalling,
            lock: QueuedLock::new(),
            page: SyncState::new(),
            root: SyncState::new(),
            spte: AtomicU64::new(0),
            guest_entry: AtomicU64::new(guest_entry),
            leaf: AtomicU64::new(OLD_LEAF),
            signal: AtomicU64::new(0),
        }
    }

    /// The fault that lets the guest write its table.
    fn make_writable(&self) {
        let publish = || publish_writable_as::<O>(&self.spte, WRITABLE, &WritePermit::granted());
        let (grant, _) = self.lock.acquire();
        if self.steps == Steps::SpteFirst {
            publish();
        }
        self.page.mark_unsync();
        if !matches!(self.steps, Steps::RootLate | Steps::RootNever) {
            self.root.add_unsync_child();
        }
        if self.steps == Steps::LiteralBarriers {
            fence(Ordering::Release);
        }
        if self.steps != Steps::SpteFirst {
            publish();
        }
        if self.steps == Steps::RootLate {
            self.root.add_unsync_child();
        }
        self.lock.release(grant);
    }

    /// The guest's store into its table, if the walk lets it.
    fn store_through_the_mapping(&self) -> bool {
        let writable = walk_load_as::<O>(&self.spte) == WRITABLE;
        if writable {
            // Relaxed: the protocol needs nothing of this store.
            self.guest_entry.store(0, Ordering::Relaxed);
        }
        writable
    }

    fn store_and_signal(&self) {
        if self.store_through_the_mapping() {
            self.signal.store(1, self.signalling.0);
        }
    }

    fn sync(&self) {
        let (grant, _) = self.lock.acquire();
        if self.root.children_locked() != 0 {
            if self.steps == Steps::ClearFirst {
                self.root.sub_unsync_child();
            }
            self.page.clear_unsync();
            if self.guest_entry.load(Ordering::Relaxed) == 0 {
                withdraw(&self.leaf, 0);
            }
            if self.steps != Steps::ClearFirst {
                self.root.sub_unsync_child();
            }
        }
        self.lock.release(grant);
    }

    /// A flush: the lock-free test, a sync if it is due, then a walk.
    fn flush_and_walk(&self) {
        if matches!(self.steps, Steps::LiteralBarriers | Steps::FenceBeforeTest) {
            fence(Ordering::Acquire);
        }
        self.sync_if_due_and_walk(self.root.observe());
    }

    fn sync_if_due_and_walk(&self, due: bool) {
        if due {
            self.sync();
        }
        assert_eq!(walk_load_as::<O>(&self.leaf), 0, "{STALE}");
    }

    fn await_signal_and_flush(&self) {
        let early = (self.steps == Steps::TestEarly).then(|| self.root.observe());
        if self.signal.load(self.signalling.1) == 1 {
            match early {
                Some(due) => self.sync_if_due_and_walk(due),
                None => self.flush_and_walk(),
            }
        }
    }
}

/// The guest's own signalling on x86: stores release, loads acquire.
const TSO: (Ordering, Ordering) = (Ordering::Release, Ordering::Acquire);

/// Three vCPUs: one faults, one stores and signals, one flushes.
fn p1_signalled<O: PublishOrder + 'static>(steps: Steps, signalling: (Ordering, Ordering)) -> Model {
    let machine = Machine::<O>::new(steps, signalling, 1);
    Model::new(machine, [Machine::make_writable, Machine::store_and_signal, Machine::await_signal_and_flush])
}

fn p1<O: PublishOrder + 'static>(steps: Steps) -> Model {
    p1_signalled::<O>(steps, TSO)
}

/// Two vCPUs: the one that stores is the one that flushes.
fn p1b<O: PublishOrder + 'static>(steps: Steps) -> Model {
    let store_and_flush = |machine: &Machine<O>| {
        if machine.store_through_the_mapping() {
            machine.flush_and_walk();
        }
    };
    Model::new(Machine::<O>::new(steps, TSO, 1), [Machine::make_writable, store_and_flush])
}

/// The guest table is changed and marked; one vCPU syncs, another relies on the clean root.
fn p4<O: PublishOrder + 'static>(steps: Steps) -> Model {
    let machine = Machine::<O>::new(steps, TSO, 0);
    machine.page.mark_unsync();
    machine.root.add_unsync_child();
    Model::new(machine, [Machine::sync, Machine::flush_and_walk])
}

#[test]
fn p1_a_flush_that_saw_the_signal_sees_the_marks() {
    holds("P1", || p1::<KvmOrder>(Steps::Right));
    // The test itself may be Relaxed here: happens-before reaches it already. P4 is what its Acquire is for.
    holds("P1, test Relaxed", || p1::<ObserveRelaxed>(Steps::Right));
}

#[test]
fn p1_twin_spte_store_relaxed() {
    breaks("P1 twin, SPTE store Relaxed", STALE, || p1::<StoreRelaxed>(Steps::Right));
}

#[test]
fn p1_twin_walk_relaxed() {
    breaks("P1 twin, walk Relaxed", STALE, || p1::<WalkRelaxed>(Steps::Right));
}

#[test]
fn p1_twin_guest_signal_store_relaxed() {
    breaks("P1 twin, signal store Relaxed", STALE, || {
        p1_signalled::<KvmOrder>(Steps::Right, (Ordering::Relaxed, Ordering::Acquire))
    });
}

#[test]
fn p1_twin_guest_signal_load_relaxed() {
    breaks("P1 twin, signal load Relaxed", STALE, || {
        p1_signalled::<KvmOrder>(Steps::Right, (Ordering::Release, Ordering::Relaxed))
    });
}

#[test]
fn p1_twin_spte_before_marks() {
    breaks("P1 twin, SPTE first", STALE, || p1::<KvmOrder>(Steps::SpteFirst));
}

#[test]
fn p1_twin_root_marked_late() {
    breaks("P1 twin, root late", STALE, || p1::<KvmOrder>(Steps::RootLate));
}

#[test]
fn p1_twin_root_not_marked() {
    breaks("P1 twin, root never", STALE, || p1::<KvmOrder>(Steps::RootNever));
}

#[test]
fn p1_twin_root_tested_before_the_signal() {
    breaks("P1 twin, test early", STALE, || p1::<KvmOrder>(Steps::TestEarly));
}

#[test]
fn p1b_the_vcpu_that_stored_sees_the_marks() {
    holds("P1b", || p1b::<KvmOrder>(Steps::Right));
    // KVM's barriers taken literally are enough for two: no third vCPU has to carry the marks on.
    holds("P1b, wmb and rmb only", || p1b::<FencesOnly>(Steps::LiteralBarriers));
}

#[test]
fn p1b_twin_spte_store_relaxed() {
    breaks("P1b twin, SPTE store Relaxed", STALE, || p1b::<StoreRelaxed>(Steps::Right));
}

#[test]
fn p1b_twin_walk_relaxed() {
    breaks("P1b twin, walk Relaxed", STALE, || p1b::<WalkRelaxed>(Steps::Right));
}

#[test]
fn p1b_twin_spte_before_marks() {
    breaks("P1b twin, SPTE first", STALE, || p1b::<KvmOrder>(Steps::SpteFirst));
}

#[test]
fn p4_a_root_seen_clean_has_its_leaves_synced() {
    holds("P4", || p4::<KvmOrder>(Steps::Right));
}

#[test]
fn p4_twin_clear_relaxed() {
    breaks("P4 twin, clear Relaxed", STALE, || p4::<ClearRelaxed>(Steps::Right));
}

#[test]
fn p4_twin_test_relaxed() {
    breaks("P4 twin, test Relaxed", STALE, || p4::<ObserveRelaxed>(Steps::Right));
}

#[test]
fn p4_twin_fence_before_the_test_only() {
    breaks("P4 twin, fence before the test", STALE, || p4::<ObserveRelaxed>(Steps::FenceBeforeTest));
}

#[test]
fn p4_twin_cleared_before_the_sync() {
    breaks("P4 twin, clear first", STALE, || p4::<KvmOrder>(Steps::ClearFirst));
}
