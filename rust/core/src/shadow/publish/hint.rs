//! Whether guest tables are shadowed at all: KVM's `indirect_shadow_pages`, read without the lock (P2, F-16).

use core::marker::PhantomData;

use super::KvmOrder;
use crate::sync::{AtomicU64, Ordering, fence};

/// The two fences of a store-buffering pair: both are needed, and nothing below `SeqCst` will do.
pub(crate) trait HintOrder {
    /// Between the count and the first look at the guest table.
    const ACCOUNT_FENCE: Option<Ordering> = Some(Ordering::SeqCst);
    /// Between the store to guest memory and the look at the count.
    const WRITE_FENCE: Option<Ordering> = Some(Ordering::SeqCst);
    /// The store of a count that goes up.
    const COUNT: Ordering = Ordering::Relaxed;
    /// The writer's look at the count.
    const LOOK: Ordering = Ordering::Relaxed;
}

impl HintOrder for KvmOrder {}

/// The number of indirect shadow pages, which spares an emulated write the lock while it is 0.
///
/// Two sides, each storing first and then loading what the other stores: the shadower counts the page, then reads
/// the guest table; the writer stores into it, then reads the count. One of them sees the other (D.3, first row).
#[derive(Debug)]
pub(crate) struct TrackHint<O = KvmOrder> {
    pages: AtomicU64,
    order: PhantomData<O>,
}

impl<O: HintOrder> TrackHint<O> {
    /// Nothing is shadowed.
    pub(crate) fn new() -> Self {
        Self { pages: AtomicU64::new(0), order: PhantomData }
    }

    /// Counts one shadow page more, lock held; guest tables read after this are not older than the writes that missed it.
    pub(crate) fn account(&self) {
        let pages = self.count_locked() + 1;
        // ORDERING(track-hint): Relaxed and a SeqCst fence before the guest table is read.
        self.pages.store(pages, O::COUNT);
        if let Some(order) = O::ACCOUNT_FENCE {
            // ORDERING(track-hint): store buffering: SeqCst, pairs with the fence of `is_needed_after_store`.
            fence(order);
        }
    }

    /// Counts one shadow page less, lock held.
    pub(crate) fn unaccount(&self) {
        let pages = self.count_locked() - 1;
        // ORDERING(track-hint): Relaxed: a count that is too high for a moment costs one lock.
        self.pages.store(pages, Ordering::Relaxed);
    }

    /// The writer's test, after its store to guest memory: false if no shadow page needs to hear of it.
    pub(crate) fn is_needed_after_store(&self) -> bool {
        if let Some(order) = O::WRITE_FENCE {
            // ORDERING(track-hint): store buffering: SeqCst, pairs with the fence of `account`.
            fence(order);
        }
        // ORDERING(track-hint): Relaxed behind a SeqCst fence.
        self.pages.load(O::LOOK) != 0
    }

    /// The number of indirect shadow pages, lock held.
    pub(crate) fn count_locked(&self) -> u64 {
        // ORDERING(track-hint): Relaxed: all writers hold the lock.
        self.pages.load(Ordering::Relaxed)
    }
}

impl<O: HintOrder> Default for TrackHint<O> {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(all(test, not(any(loom, explored))))]
mod tests {
    use super::*;

    #[test]
    fn the_hint_is_up_while_a_page_is_counted() {
        let hint = TrackHint::<KvmOrder>::new();
        assert!(!hint.is_needed_after_store());
        hint.account();
        assert!(hint.is_needed_after_store());
        hint.unaccount();
        assert!(!hint.is_needed_after_store());
    }
}
