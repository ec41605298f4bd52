//! The notifier's sequence: a fault that will not retry has the host's page as the notifier left it (P7).

use shadow_mmu_planted::{Plain, apart, race};

use super::until;
use crate::{
    shadow::{
        invalidate::{InvalidateOrder, InvalidateSeq},
        publish::KvmOrder,
    },
    sync::Ordering,
};

enum AdvanceRelaxed {}
impl InvalidateOrder for AdvanceRelaxed {
    const ADVANCE: Ordering = Ordering::Relaxed;
}

enum SnapshotRelaxed {}
impl InvalidateOrder for SnapshotRelaxed {
    const SNAPSHOT: Ordering = Ordering::Relaxed;
}

/// The host's page (here plain data) changes while the invalidation is in progress.
fn taken_back<O: InvalidateOrder + Sync>() {
    apart(|| {
        let (page, sequence) = (Plain::new(), InvalidateSeq::<O>::new());
        let before = sequence.snapshot();
        let notifier = || {
            sequence.begin(4..5);
            page.write(1);
            sequence.end();
        };
        let fault = || {
            until(|| sequence.snapshot() != before);
            assert_eq!(page.read(), 1);
        };
        race([&notifier, &fault]);
    });
}

#[test]
fn p7_who_has_the_new_sequence_has_the_new_page() {
    taken_back::<KvmOrder>();
}

#[test]
#[ignore = "a data race on purpose: make tsan"]
fn weak_p7_advance_relaxed() {
    taken_back::<AdvanceRelaxed>();
}

#[test]
#[ignore = "a data race on purpose: make tsan"]
fn weak_p7_snapshot_relaxed() {
    taken_back::<SnapshotRelaxed>();
}
