//! P8b: the dirty harvest against a guest store under way.

use shadow_mmu_sync::lock::QueuedLock;

use super::{
    Model, breaks, holds,
    orders::{FencesAcqRel, LeaveRelaxed, NoEnterFence, NoKickFence, WaitRelaxed},
};
use crate::{
    requests::{GuestMode, HandshakeOrder, KvmHandshake, kick_and_wait},
    shadow::publish::{
        entry::{set_accessed_dirty, walk_load},
        harvest::harvest,
    },
    sync::{AtomicU64, Ordering},
};

/// What the algorithm does, apart from the orders.
#[derive(Clone, Copy, PartialEq)]
enum Steps {
    Right,
    /// W and D are taken away by a load and a store.
    HarvestByStore,
    /// The walk sets D by a store.
    DirtyByStore,
    /// The walk sets D after the guest's store.
    DirtyLate,
    /// The walk does not set D.
    NoDirty,
    /// The page is copied before the harvest.
    CopyFirst,
    /// Nobody is waited for.
    NoWait,
    /// The vCPU takes the request and keeps its TLB.
    NoFlush,
}

const FLUSH: u32 = 8;
const WRITABLE: u64 = 1 << 1;
const DIRTY: u64 = 1 << 6;
const CLEAN: u64 = 0x4001 | WRITABLE;
const LOST: &str = "a written page was lost by the dirty log";

/// A page, the entry that maps it, and the copy that a migration has made of it.
struct Machine<H> {
    steps: Steps,
    lock: QueuedLock,
    /// What the vCPU's TLB has, if anything.
    cached: Option<u64>,
    mode: GuestMode<H>,
    spte: AtomicU64,
    data: AtomicU64,
    copy: AtomicU64,
}

impl<H: HandshakeOrder> Machine<H> {
    fn copy(&self) {
        self.copy.store(self.data.load(Ordering::Relaxed), Ordering::Relaxed);
    }

    fn shoot_down(&self) {
        if self.steps == Steps::NoWait {
            self.mode.request(FLUSH);
        } else {
            kick_and_wait([&self.mode], None, FLUSH);
        }
    }

    fn harvest_and_copy(&self) {
        let (grant, _) = self.lock.acquire();
        if self.steps == Steps::CopyFirst {
            self.copy();
        }
        let dirty = if self.steps == Steps::HarvestByStore {
            let found = self.spte.load(Ordering::Relaxed);
            self.spte.store(found & !(WRITABLE | DIRTY), Ordering::Relaxed);
            self.shoot_down();
            found & DIRTY != 0
        } else {
            harvest(&self.spte, || self.shoot_down())
        };
        if dirty && self.steps != Steps::CopyFirst {
            self.copy();
        }
        self.lock.release(grant);
    }

    /// The hardware's walk for a write: whether the store may be made.
    fn walk_for_write(&self) -> bool {
        let seen = walk_load(&self.spte);
        if seen & WRITABLE == 0 {
            return false;
        }
        match self.steps {
            Steps::DirtyByStore => self.spte.store(seen | DIRTY, Ordering::Relaxed),
            Steps::NoDirty | Steps::DirtyLate => {}
            _ => return set_accessed_dirty(&self.spte, seen, DIRTY).is_ok(),
        }
        true
    }

    fn access(&self) {
        let mut cached = self.cached;
        while !self.mode.enter() {
            self.mode.take(FLUSH);
            if self.steps != Steps::NoFlush {
                cached = None;
            }
        }
        if cached.is_some() || self.walk_for_write() {
            self.data.store(1, Ordering::Relaxed);
            if self.steps == Steps::DirtyLate {
                let _ = set_accessed_dirty(&self.spte, CLEAN, DIRTY);
            }
        }
        self.mode.leave();
    }
}

/// `cached`: the entry is dirty already and in the vCPU's TLB, so that the store does not touch it.
fn p8b<H: HandshakeOrder + 'static>(steps: Steps, cached: bool) -> Model {
    let spte = if cached { CLEAN | DIRTY } else { CLEAN };
    let machine = Machine::<H> {
        steps,
        lock: QueuedLock::new(),
        cached: cached.then_some(spte),
        mode: GuestMode::new(),
        spte: AtomicU64::new(spte),
        data: AtomicU64::new(0),
        copy: AtomicU64::new(0),
    };
    Model::checked(machine, [Machine::harvest_and_copy, Machine::access], |machine| {
        // What is dirty still is copied by the next harvest.
        let spte = machine.spte.load(Ordering::Relaxed);
        let copied = machine.data.load(Ordering::Relaxed) == machine.copy.load(Ordering::Relaxed);
        assert!(copied || spte & DIRTY != 0, "{LOST}");
        assert_eq!(spte & WRITABLE, 0, "{LOST}: it is writable without a fault");
    })
}

#[test]
fn p8b_no_written_page_is_forgotten() {
    holds("P8b", || p8b::<KvmHandshake>(Steps::Right, false));
    holds("P8b, from the TLB", || p8b::<KvmHandshake>(Steps::Right, true));
}

#[test]
fn p8b_twin_harvested_by_a_store() {
    breaks("P8b twin, harvested by a store", LOST, || p8b::<KvmHandshake>(Steps::HarvestByStore, false));
}

#[test]
fn p8b_twin_dirty_set_by_a_store() {
    breaks("P8b twin, D by a store", LOST, || p8b::<KvmHandshake>(Steps::DirtyByStore, false));
}

#[test]
fn p8b_twin_dirty_set_after_the_store() {
    breaks("P8b twin, D late", LOST, || p8b::<KvmHandshake>(Steps::DirtyLate, false));
}

#[test]
fn p8b_twin_dirty_not_set() {
    breaks("P8b twin, no D", LOST, || p8b::<KvmHandshake>(Steps::NoDirty, false));
}

#[test]
fn p8b_twin_copied_before_the_harvest() {
    breaks("P8b twin, copied first", LOST, || p8b::<KvmHandshake>(Steps::CopyFirst, false));
}

#[test]
fn p8b_twin_without_a_wait() {
    breaks("P8b twin, no wait", LOST, || p8b::<KvmHandshake>(Steps::NoWait, false));
}

#[test]
fn p8b_twin_without_the_tlb_flush() {
    breaks("P8b twin, no TLB flush", LOST, || p8b::<KvmHandshake>(Steps::NoFlush, true));
}

#[test]
fn p8b_twin_without_the_fence_of_enter() {
    breaks("P8b twin, no enter fence", LOST, || p8b::<NoEnterFence>(Steps::Right, true));
}

#[test]
fn p8b_twin_without_the_fence_of_the_kick() {
    breaks("P8b twin, no kick fence", LOST, || p8b::<NoKickFence>(Steps::Right, true));
}

#[test]
fn p8b_twin_fences_acquire_release() {
    breaks("P8b twin, fences AcqRel", LOST, || p8b::<FencesAcqRel>(Steps::Right, true));
}

#[test]
fn p8b_twin_leave_relaxed() {
    breaks("P8b twin, leave Relaxed", LOST, || p8b::<LeaveRelaxed>(Steps::Right, false));
}

#[test]
fn p8b_twin_wait_relaxed() {
    breaks("P8b twin, wait Relaxed", LOST, || p8b::<WaitRelaxed>(Steps::Right, false));
}
