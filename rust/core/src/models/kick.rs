//! P3: a sync against a guest store under way, and the guest-mode handshake between them.

use shadow_mmu_sync::lock::QueuedLock;

use super::{
    Model, STALE, breaks, give_way, holds,
    orders::{ClearRelaxed, FencesAcqRel, LeaveRelaxed, NoEnterFence, NoKickFence, ObserveRelaxed, WaitRelaxed},
};
use crate::{
    requests::{GuestMode, HandshakeOrder, KvmHandshake, kick_and_wait},
    shadow::publish::{
        KvmOrder,
        entry::{protect, walk_load, withdraw},
        marks::{MarkOrder, SyncState},
    },
    sync::{AtomicU64, Ordering},
};

/// What the algorithm does, apart from the orders.
#[derive(Clone, Copy, PartialEq)]
enum Steps {
    Right,
    /// The request is raised, nobody is waited for.
    NoWait,
    /// The mapping stays writable.
    NoProtect,
    /// The vCPU takes the request and keeps its TLB.
    NoFlush,
    /// The guest table is read, and the mark taken away, before the mapping is write-protected.
    SyncFirst,
}

const FLUSH: u32 = 8;
const WRITABLE: u64 = 0x4027;
const WRITE_BITS: u64 = 1 << 1 | 1 << 10;
const OLD_LEAF: u64 = 0x5025;

/// An unsync guest table, mapped writable, with that mapping in the vCPU's TLB.
struct Machine<H, O> {
    steps: Steps,
    lock: QueuedLock,
    root: SyncState<O>,
    spte: AtomicU64,
    guest_entry: AtomicU64,
    leaf: AtomicU64,
    mode: GuestMode<H>,
}

impl<H: HandshakeOrder, O: MarkOrder> Machine<H, O> {
    fn kick(&self) {
        if self.steps == Steps::NoWait {
            self.mode.request(FLUSH);
        } else {
            kick_and_wait([&self.mode], None, FLUSH);
        }
    }

    fn read_guest_entry(&self) {
        if self.guest_entry.load(Ordering::Relaxed) == 0 {
            withdraw(&self.leaf, 0);
        }
        self.root.sub_unsync_child();
    }

    fn sync(&self) {
        let (grant, _) = self.lock.acquire();
        if self.root.children_locked() != 0 {
            if self.steps == Steps::SyncFirst {
                self.read_guest_entry();
            }
            if self.steps != Steps::NoProtect {
                protect(&self.spte, WRITE_BITS);
            }
            self.kick();
            if self.steps != Steps::SyncFirst {
                self.read_guest_entry();
            }
        }
        self.lock.release(grant);
    }

    /// One guest store into its table by TLB or walk, if they let it, and then a flush.
    fn store_and_flush(&self) {
        let mut cached = Some(WRITABLE);
        while !self.mode.enter() {
            self.mode.take(FLUSH);
            if self.steps != Steps::NoFlush {
                cached = None;
            }
        }
        let stored = cached.unwrap_or_else(|| walk_load(&self.spte)) == WRITABLE;
        if stored {
            self.guest_entry.store(0, Ordering::Relaxed);
        }
        self.mode.leave();
        // Loom looks for races with the last access to a word only, and the sync reads each mark before it clears it:
        // here the sync gets its chance to be the last.
        give_way();
        if stored {
            if self.root.observe() {
                let (grant, _) = self.lock.acquire();
                if self.root.children_locked() != 0 {
                    self.read_guest_entry();
                }
                self.lock.release(grant);
            }
            assert_eq!(walk_load(&self.leaf), 0, "{STALE}");
        }
    }
}

/// A store in flight against the sync of the page it goes to.
fn p3<H: HandshakeOrder + 'static, O: MarkOrder + 'static>(steps: Steps) -> Model {
    let machine = Machine::<H, O> {
        steps,
        lock: QueuedLock::new(),
        root: SyncState::new(),
        spte: AtomicU64::new(WRITABLE),
        guest_entry: AtomicU64::new(1),
        leaf: AtomicU64::new(OLD_LEAF),
        mode: GuestMode::new(),
    };
    machine.root.add_unsync_child();
    Model::new(machine, [Machine::sync, Machine::store_and_flush])
}

#[test]
fn p3_a_sync_waits_for_the_stores_under_way() {
    holds("P3", || p3::<KvmHandshake, KvmOrder>(Steps::Right));
}

#[test]
fn p3_twin_without_the_fence_of_enter() {
    breaks("P3 twin, no enter fence", STALE, || p3::<NoEnterFence, KvmOrder>(Steps::Right));
}

#[test]
fn p3_twin_without_the_fence_of_the_kick() {
    breaks("P3 twin, no kick fence", STALE, || p3::<NoKickFence, KvmOrder>(Steps::Right));
}

#[test]
fn p3_twin_fences_acquire_release() {
    breaks("P3 twin, fences AcqRel", STALE, || p3::<FencesAcqRel, KvmOrder>(Steps::Right));
}

#[test]
fn p3_twin_leave_relaxed() {
    breaks("P3 twin, leave Relaxed", STALE, || p3::<LeaveRelaxed, KvmOrder>(Steps::Right));
}

#[test]
fn p3_twin_wait_relaxed() {
    breaks("P3 twin, wait Relaxed", STALE, || p3::<WaitRelaxed, KvmOrder>(Steps::Right));
}

#[test]
fn p3_twin_without_a_wait() {
    breaks("P3 twin, no wait", STALE, || p3::<KvmHandshake, KvmOrder>(Steps::NoWait));
}

#[test]
fn p3_twin_without_protection() {
    breaks("P3 twin, no protection", STALE, || p3::<KvmHandshake, KvmOrder>(Steps::NoProtect));
}

#[test]
fn p3_twin_without_the_tlb_flush() {
    breaks("P3 twin, no TLB flush", STALE, || p3::<KvmHandshake, KvmOrder>(Steps::NoFlush));
}

#[test]
fn p3_twin_synced_before_protection() {
    breaks("P3 twin, sync first", STALE, || p3::<KvmHandshake, KvmOrder>(Steps::SyncFirst));
}

#[test]
fn p3_twin_clear_relaxed() {
    breaks("P3 twin, clear Relaxed", STALE, || p3::<KvmHandshake, ClearRelaxed>(Steps::Right));
}

#[test]
fn p3_twin_test_relaxed() {
    breaks("P3 twin, test Relaxed", STALE, || p3::<KvmHandshake, ObserveRelaxed>(Steps::Right));
}
