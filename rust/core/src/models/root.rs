//! P10: the life of a root that a vCPU has parked, against a zap and against another vCPU that gives it back.

use shadow_mmu_sync::lock::QueuedLock;

use super::{
    Model, breaks, holds,
    plain::{Plain, RACE},
};
use crate::{
    shadow::{
        publish::marks::SyncState,
        role_word::RoleWord,
        root_refs::{Fate, RootRefs},
    },
    sync::{AtomicU32, Ordering},
};

/// What the algorithm does.
#[derive(Clone, Copy, PartialEq)]
enum Steps {
    Right,
    /// The reference is given back when the root is parked.
    ParkedWithoutReference,
    /// The zapper frees whatever the count is.
    ZapIgnoresCount,
    /// Whoever gives a reference back frees an invalid page, the last or not.
    EveryPutFrees,
}

const VALID: u32 = 4;
const INVALID: u32 = 4 | 1 << 11;

/// A shadow page that is the root of two vCPUs: parked by the first, current on the second, which zaps it.
struct Machine {
    steps: Steps,
    lock: QueuedLock,
    /// The count of a [`RootRefs`]; under the lock.
    refs: AtomicU32,
    role: RoleWord,
    marks: SyncState,
    memory: Plain,
}

impl Machine {
    fn locked(&self, work: impl FnOnce(&mut RootRefs)) {
        let (grant, _) = self.lock.acquire();
        let mut refs = RootRefs::of(self.refs.load(Ordering::Relaxed));
        work(&mut refs);
        self.refs.store(refs.count(), Ordering::Relaxed);
        self.lock.release(grant);
    }

    fn free(&self) {
        self.memory.write();
    }

    fn zap(&self) {
        self.locked(|refs| {
            self.role.store(INVALID);
            if refs.fate() == Fate::Free || self.steps == Steps::ZapIgnoresCount {
                self.free();
            }
        });
    }

    fn zap_and_put(&self) {
        self.zap();
        self.put();
    }

    fn put(&self) {
        self.locked(|refs| {
            let last = refs.put() || self.steps == Steps::EveryPutFrees;
            if last && self.role.load() == INVALID {
                self.free();
            }
        });
    }

    /// The fast switch back to the parked root: no lock.
    fn switch_back(&self) {
        let _usable = self.role.load() == VALID && !self.marks.observe();
        self.memory.read();
    }

    fn first_vcpu(&self) {
        if self.steps == Steps::ParkedWithoutReference {
            self.put();
        }
        self.switch_back();
        if self.steps != Steps::ParkedWithoutReference {
            self.put();
        }
    }
}

/// `shared`: the zapper's vCPU has the root as well, and gives it back.
fn p10(steps: Steps, shared: bool) -> Model {
    let machine = Machine {
        steps,
        lock: QueuedLock::new(),
        refs: AtomicU32::new(if shared { 2 } else { 1 }),
        role: RoleWord::new(),
        marks: SyncState::new(),
        memory: Plain::new(),
    };
    machine.role.store(VALID);
    let zapper = if shared { Machine::zap_and_put } else { Machine::zap };
    Model::new(machine, [zapper, Machine::first_vcpu])
}

#[test]
fn p10_a_parked_root_is_not_freed() {
    holds("P10", || p10(Steps::Right, false));
    holds("P10, another vCPU gives it back", || p10(Steps::Right, true));
}

#[test]
fn p10_twin_reference_dropped_when_parked() {
    breaks("P10 twin, parked without a reference", RACE, || p10(Steps::ParkedWithoutReference, false));
}

#[test]
fn p10_twin_zapper_ignores_the_count() {
    breaks("P10 twin, zapper ignores the count", RACE, || p10(Steps::ZapIgnoresCount, false));
}

#[test]
fn p10_twin_every_reference_frees() {
    breaks("P10 twin, every put frees", RACE, || p10(Steps::EveryPutFrees, true));
}
