//! The notifier's sequence: host memory that is taken back while a fault looks it up (P7; C.8, D.3, E159).
//!
//! ```text
//! notifier                          fault
//! begin(range), lock held           snapshot()                     no lock
//! zap the range's SPTEs, flush      look the host page up          no lock
//! the host takes the pages back     lock
//! end(), lock held                  must_retry(snapshot, gfn) ?    then away with what was found
//!                                   publish the SPTE
//! ```
//!
//! KVM: `mmu_invalidate_seq`, `mmu_invalidate_in_progress`, `mmu_invalidate_retry_gfn`. Host memory does not move yet
//! in this machine; the notifier and the fault's look-up will use it.

use core::{marker::PhantomData, ops::Range};

use super::publish::KvmOrder;
use crate::sync::{AtomicU64, Ordering};

/// The orders of the sequence; a twin in a test overrides one and must fail.
pub(crate) trait InvalidateOrder {
    /// The store that advances the sequence.
    const ADVANCE: Ordering = Ordering::Release;
    /// The fault's snapshot, taken without the lock.
    const SNAPSHOT: Ordering = Ordering::Acquire;
}

impl InvalidateOrder for KvmOrder {}

/// The sequence before the host page was looked up.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use = "a snapshot is there to be compared under the lock"]
pub(crate) struct Snapshot(u64);

/// Invalidations of host memory: how many have ended, how many are in progress, and where.
///
/// All words change under the lock; the sequence alone is read without it.
#[derive(Debug)]
pub(crate) struct InvalidateSeq<O = KvmOrder> {
    sequence: AtomicU64,
    in_progress: AtomicU64,
    /// The gfns of the invalidations in progress: from, to (exclusive). With several at once, what spans them all.
    from: AtomicU64,
    to: AtomicU64,
    order: PhantomData<O>,
}

impl<O: InvalidateOrder> InvalidateSeq<O> {
    /// Nothing was ever taken back.
    pub(crate) fn new() -> Self {
        let word = || AtomicU64::new(0);
        Self { sequence: word(), in_progress: word(), from: word(), to: word(), order: PhantomData }
    }

    /// Lock held. The SPTEs of `gfns` are zapped after this, before the lock is released.
    pub(crate) fn begin(&self, gfns: Range<u64>) {
        let others = self.in_progress();
        let spanned = if others == 0 {
            gfns
        } else {
            let range = self.range();
            range.start.min(gfns.start)..range.end.max(gfns.end)
        };
        // ORDERING(invalidate-seq): Relaxed, these three: read and written under the lock only.
        self.in_progress.store(others + 1, Ordering::Relaxed);
        // ORDERING(invalidate-seq): as above.
        self.from.store(spanned.start, Ordering::Relaxed);
        // ORDERING(invalidate-seq): as above.
        self.to.store(spanned.end, Ordering::Relaxed);
    }

    /// Lock held, after the host has taken the pages back.
    pub(crate) fn end(&self) {
        // ORDERING(invalidate-seq): Release: a fault whose snapshot has this invalidation in it, and which therefore
        // will not retry, looks the page up as the host left it. The lock is no help: the fault does not hold it.
        self.sequence.store(self.sequence_locked() + 1, O::ADVANCE);
        self.leave();
    }

    /// The second half of [`end`](Self::end), nothing by itself: one less is in progress.
    pub(crate) fn leave(&self) {
        let others = self.in_progress() - 1;
        // ORDERING(invalidate-seq): Relaxed: under the lock only.
        self.in_progress.store(others, Ordering::Relaxed);
    }

    /// No lock. The look-up of the host page comes after.
    pub(crate) fn snapshot(&self) -> Snapshot {
        // ORDERING(invalidate-seq): Acquire, pairs with `end`: what is looked up now is not older than this.
        Snapshot(self.sequence.load(O::SNAPSHOT))
    }

    /// Lock held: whether what was looked up since `snapshot` for `gfn` may have been taken back.
    pub(crate) fn must_retry(&self, snapshot: Snapshot, gfn: u64) -> bool {
        let covered = self.in_progress() != 0 && self.range().contains(&gfn);
        covered || self.sequence_locked() != snapshot.0
    }

    fn in_progress(&self) -> u64 {
        // ORDERING(invalidate-seq): Relaxed: under the lock only.
        self.in_progress.load(Ordering::Relaxed)
    }

    fn range(&self) -> Range<u64> {
        // ORDERING(invalidate-seq): Relaxed: under the lock only.
        let from = self.from.load(Ordering::Relaxed);
        // ORDERING(invalidate-seq): as above.
        from..self.to.load(Ordering::Relaxed)
    }

    fn sequence_locked(&self) -> u64 {
        // ORDERING(invalidate-seq): Relaxed: all writers hold the lock that the caller holds.
        self.sequence.load(Ordering::Relaxed)
    }
}

#[cfg(all(test, not(any(loom, explored))))]
mod tests {
    use super::*;

    #[test]
    fn e159_a_fault_retries_while_its_frame_is_taken_back_and_once_after() {
        let seq = InvalidateSeq::<KvmOrder>::new();
        let before = seq.snapshot();
        assert!(!seq.must_retry(before, 7));
        seq.begin(4..8);
        let during = seq.snapshot();
        assert!(seq.must_retry(during, 7));
        assert!(!seq.must_retry(during, 8), "another frame is not held up");
        seq.end();
        assert!(seq.must_retry(before, 7) && seq.must_retry(during, 7), "what was found meanwhile is void");
        assert!(!seq.must_retry(seq.snapshot(), 7));
    }

    #[test]
    fn e159_invalidations_at_once_cover_what_spans_them() {
        let seq = InvalidateSeq::<KvmOrder>::new();
        seq.begin(10..12);
        seq.begin(2..4);
        assert!([2, 7, 11].iter().all(|&gfn| seq.must_retry(seq.snapshot(), gfn)));
        assert!(!seq.must_retry(seq.snapshot(), 12));
        seq.end();
        assert!(seq.must_retry(seq.snapshot(), 2), "one is still in progress");
        seq.end();
        seq.begin(20..21);
        assert!(!seq.must_retry(seq.snapshot(), 2), "an old range does not linger");
        seq.end();
    }
}
