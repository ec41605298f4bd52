//! The marks of a shadow page that are read without the lock: `sp->unsync` and `sp->unsync_children` (D.1, D.2).

use core::marker::PhantomData;

use super::KvmOrder;
use crate::sync::{AtomicBool, AtomicU32, Ordering};

/// The orders of the marks; a twin in a test overrides one and must fail.
pub(crate) trait MarkOrder {
    /// The store of a count that goes up: the Release store of the SPTE that follows carries it.
    const MARK_CHILDREN: Ordering = Ordering::Relaxed;
    /// The store of the page's own mark, which comes after the marks of its ancestors.
    const MARK_PAGE: Ordering = Ordering::Release;
    /// The test of a page's own mark that spares a second fault the marking.
    const SHORT_CUT: Ordering = Ordering::Acquire;
    /// The store that takes a mark away.
    const CLEAR: Ordering = Ordering::Release;
    /// The lock-free test of a root.
    const OBSERVE: Ordering = Ordering::Acquire;
}

impl MarkOrder for KvmOrder {}

/// The marks of one shadow page.
///
/// They change only under a lock held exclusively (the `mmu_lock`; in KVM also `mmu_unsync_pages_lock`), so a change
/// is a load and a store.
#[derive(Debug)]
pub(crate) struct SyncState<O = KvmOrder> {
    unsync: AtomicBool,
    unsync_children: AtomicU32,
    order: PhantomData<O>,
}

impl<O: MarkOrder> SyncState<O> {
    /// Both marks clear.
    pub(crate) fn new() -> Self {
        Self { unsync: AtomicBool::new(false), unsync_children: AtomicU32::new(0), order: PhantomData }
    }

    /// Marks this page unsync: first, by `ancestors`, every page above it up to the roots, then itself. The writable
    /// SPTE follows.
    ///
    /// The page's own mark is last, because whoever takes the short cut ([`is_marked`](Self::is_marked)) makes its
    /// own SPTE writable at once: with the own mark first it would do so before the roots are marked, whatever the
    /// orders (P1c; KVM's order is the other one).
    pub(crate) fn mark_unsync(&self, ancestors: impl FnOnce()) {
        ancestors();
        // ORDERING(mark-unsync): Release: who sees this mark without the lock sees those of the ancestors.
        self.unsync.store(true, O::MARK_PAGE);
    }

    /// Whether the page and all its ancestors are marked: no lock is needed to act on a yes.
    #[inline]
    pub(crate) fn is_marked(&self) -> bool {
        // ORDERING(mark-unsync): Acquire: the SPTE that is published next carries the ancestors' marks as well.
        self.unsync.load(O::SHORT_CUT)
    }

    /// Counts one more unsync child entry; returns the count before.
    pub(crate) fn add_unsync_child(&self) -> u32 {
        let before = self.children_locked();
        // ORDERING(publish-spte): Relaxed: the Release store of the SPTE carries the mark.
        self.unsync_children.store(before + 1, O::MARK_CHILDREN);
        before
    }

    /// Takes the unsync mark away: lock held. Roots are judged by their counts, so what is synced may come after.
    pub(crate) fn clear_unsync(&self) {
        // ORDERING(clean-root): the leaves stored before are seen by whoever sees this.
        self.unsync.store(false, O::CLEAR);
    }

    /// Counts one unsync child entry less; returns the count now. What the sync stored must come before.
    pub(crate) fn sub_unsync_child(&self) -> u32 {
        let now = self.children_locked() - 1;
        // ORDERING(clean-root): a flush that sees the root clean also sees the leaves that the sync stored.
        self.unsync_children.store(now, O::CLEAR);
        now
    }

    /// The lock-free test of a root: true if a sync is due (KVM's `is_unsync_root`).
    #[inline]
    pub(crate) fn observe(&self) -> bool {
        // ORDERING(observe-root): Acquire: seeing the root clean, the next walk sees the synced leaves.
        let unsync = self.unsync.load(O::OBSERVE);
        // ORDERING(observe-root): as above; for a 4- or 5-level root this is the word that counts.
        unsync || self.unsync_children.load(O::OBSERVE) != 0
    }

    /// The unsync mark, lock held.
    pub(crate) fn is_unsync_locked(&self) -> bool {
        // ORDERING(publish-spte): Relaxed: all writers hold the lock that the caller holds.
        self.unsync.load(Ordering::Relaxed)
    }

    /// The number of unsync child entries, lock held.
    pub(crate) fn children_locked(&self) -> u32 {
        // ORDERING(publish-spte): Relaxed: all writers hold the lock that the caller holds.
        self.unsync_children.load(Ordering::Relaxed)
    }
}

impl<O: MarkOrder> Default for SyncState<O> {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(all(test, not(any(loom, explored))))]
mod tests {
    use super::*;

    #[test]
    fn a_root_is_due_while_a_mark_stands() {
        let state = SyncState::<KvmOrder>::new();
        assert_eq!(size_of_val(&state), 8);
        assert!(!state.observe());
        assert_eq!(state.add_unsync_child(), 0);
        assert_eq!(state.add_unsync_child(), 1);
        assert_eq!(state.sub_unsync_child(), 1);
        assert!(state.observe());
        assert_eq!(state.sub_unsync_child(), 0);
        assert!(!state.observe());
        state.mark_unsync(|| assert!(!state.is_marked(), "the page's own mark is the last"));
        assert!(state.observe() && state.is_unsync_locked() && state.is_marked());
        state.clear_unsync();
        assert!(!state.observe());
    }
}
