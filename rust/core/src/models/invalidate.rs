//! P7: host memory that is taken back against a fault that looks the host page up without the lock.

use shadow_mmu_sync::lock::QueuedLock;

use super::{
    Model, breaks, holds,
    orders::{AdvanceRelaxed, SnapshotRelaxed},
};
use crate::{
    shadow::{
        invalidate::{InvalidateOrder, InvalidateSeq},
        publish::{
            KvmOrder,
            entry::{publish_read_only, withdraw},
        },
    },
    sync::{AtomicU64, Ordering},
};

/// What the algorithm does, apart from the orders.
#[derive(Clone, Copy, PartialEq)]
enum Steps {
    Right,
    /// The snapshot is taken after the look-up.
    SnapshotLate,
    /// The comparison is made before the lock is taken.
    ComparedUnlocked,
    /// The fault compares the sequence and does not ask for what is in progress.
    InProgressIgnored,
    /// The notifier never advances the sequence.
    NotAdvanced,
    /// The range of the invalidation leaves out the gfn.
    WrongRange,
}

const GFN: u64 = 7;
const OLD_PAGE: u64 = 0x1001;
const NEW_PAGE: u64 = 0x2001;
const GONE: &str = "an SPTE maps a host page that was given back";

/// A gfn that the fault maps while the host takes its page back.
struct Machine<O> {
    steps: Steps,
    lock: QueuedLock,
    seq: InvalidateSeq<O>,
    /// What the host has at the gfn.
    host: AtomicU64,
    spte: AtomicU64,
}

impl<O: InvalidateOrder> Machine<O> {
    fn locked<T>(&self, work: impl FnOnce() -> T) -> T {
        let (grant, _) = self.lock.acquire();
        let result = work();
        self.lock.release(grant);
        result
    }

    fn take_back(&self) {
        self.locked(|| {
            let gfns = if self.steps == Steps::WrongRange { GFN + 1..GFN + 2 } else { GFN..GFN + 1 };
            self.seq.begin(gfns);
            withdraw(&self.spte, 0);
        });
        self.host.store(NEW_PAGE, Ordering::Relaxed);
        self.locked(|| match self.steps {
            Steps::NotAdvanced => self.seq.leave(),
            _ => self.seq.end(),
        });
    }

    fn fault(&self) {
        let early = self.seq.snapshot();
        let page = self.host.load(Ordering::Relaxed);
        let snapshot = if self.steps == Steps::SnapshotLate { self.seq.snapshot() } else { early };
        let stale = || match self.steps {
            Steps::InProgressIgnored => self.seq.must_retry(snapshot, GFN + 100),
            _ => self.seq.must_retry(snapshot, GFN),
        };
        let unlocked = (self.steps == Steps::ComparedUnlocked).then(stale);
        self.locked(|| {
            if !unlocked.unwrap_or_else(stale) {
                publish_read_only(&self.spte, page);
            }
        });
    }
}

fn p7<O: InvalidateOrder + 'static>(steps: Steps) -> Model {
    let machine = Machine::<O> {
        steps,
        lock: QueuedLock::new(),
        seq: InvalidateSeq::new(),
        host: AtomicU64::new(OLD_PAGE),
        spte: AtomicU64::new(0),
    };
    Model::checked(machine, [Machine::take_back, Machine::fault], |machine| {
        assert_ne!(machine.spte.load(Ordering::Relaxed), OLD_PAGE, "{GONE}");
    })
}

#[test]
fn p7_no_spte_of_a_page_that_was_given_back_survives() {
    holds("P7", || p7::<KvmOrder>(Steps::Right));
}

#[test]
fn p7_twin_snapshot_relaxed() {
    breaks("P7 twin, snapshot Relaxed", GONE, || p7::<SnapshotRelaxed>(Steps::Right));
}

#[test]
fn p7_twin_advance_relaxed() {
    breaks("P7 twin, advance Relaxed", GONE, || p7::<AdvanceRelaxed>(Steps::Right));
}

#[test]
fn p7_twin_snapshot_after_the_look_up() {
    breaks("P7 twin, snapshot late", GONE, || p7::<KvmOrder>(Steps::SnapshotLate));
}

#[test]
fn p7_twin_compared_outside_the_lock() {
    breaks("P7 twin, compared unlocked", GONE, || p7::<KvmOrder>(Steps::ComparedUnlocked));
}

#[test]
fn p7_twin_in_progress_not_asked_for() {
    breaks("P7 twin, in progress ignored", GONE, || p7::<KvmOrder>(Steps::InProgressIgnored));
}

#[test]
fn p7_twin_sequence_not_advanced() {
    breaks("P7 twin, not advanced", GONE, || p7::<KvmOrder>(Steps::NotAdvanced));
}

#[test]
fn p7_twin_range_without_the_frame() {
    breaks("P7 twin, wrong range", GONE, || p7::<KvmOrder>(Steps::WrongRange));
}
