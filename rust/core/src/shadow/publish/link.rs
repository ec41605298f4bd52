//! Bringing an already-unsync page under another root (P12; D.3, "link an already-unsync SP").
//!
//! The guest writes such a page without a fault, so its stores race with the sync that precedes the link:
//!
//! ```text
//! fault, lock held        guest A                    guest B, which runs on the new root
//! mark the new parents    store into the table       sees A's signal
//! fence(SeqCst)           signal                     flush: fence(SeqCst), root.observe()
//! sync: read the table
//! link (Release)                                     walk_load(link), then the page's leaves
//! ```
//!
//! Either the sync reads A's store, or B finds its root marked. With the mark after the sync, as in [`KvmOrder`] of
//! [`LinkPolicy`], B can flush in between and find the root clean; no order of the accesses repairs that.

use super::{
    KvmOrder,
    entry::{PublishOrder, publish_table},
};
use crate::{
    link::LinkPolicy,
    sync::{AtomicU64, Ordering, fence},
};

/// The two fences of a store-buffering pair: both are needed, and nothing below `SeqCst` will do.
pub(crate) trait LinkOrder {
    /// Between the marks and the first look at the guest table.
    const MARK_FENCE: Option<Ordering> = Some(Ordering::SeqCst);
    /// In a flush, between the guest's stores and the test of the root.
    const FLUSH_FENCE: Option<Ordering> = Some(Ordering::SeqCst);
}

impl LinkOrder for KvmOrder {}

/// What is done to an unsync page before it is linked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum LinkStep {
    /// Mark the entry that will lead to it, and that entry's ancestors.
    Mark,
    /// Write-protect its table, wait for the accesses under way, and take its own mark away: it is unsync no more.
    Protect,
    /// Make its entries agree with the guest's table.
    Sync,
}

/// Makes an unsync page fit to be linked; false if a step failed, which ends it: the page is gone.
pub(crate) fn before_link<O: LinkOrder>(policy: LinkPolicy, mut step: impl FnMut(LinkStep) -> bool) -> bool {
    match policy {
        LinkPolicy::KvmOrder => {}
        LinkPolicy::MarkFirst => {
            if !step(LinkStep::Mark) {
                return false;
            }
            if let Some(order) = O::MARK_FENCE {
                // ORDERING(link-unsync): store buffering: SeqCst, pairs with the fence of a flush.
                fence(order);
            }
        }
        LinkPolicy::FullSync => {
            if !step(LinkStep::Protect) {
                return false;
            }
        }
    }
    step(LinkStep::Sync)
}

/// Links the page: the mark on the side of the link that the policy says. `mark` does nothing if the page is, and
/// leads to, nothing unsync.
pub(crate) fn publish_link<O: PublishOrder>(policy: LinkPolicy, slot: &AtomicU64, spte: u64, mark: impl FnOnce()) {
    match policy {
        LinkPolicy::KvmOrder => {
            publish_table::<O>(slot, spte);
            mark();
        }
        LinkPolicy::MarkFirst | LinkPolicy::FullSync => {
            mark();
            publish_table::<O>(slot, spte);
        }
    }
}

/// In a flush, between the guest's stores and [`SyncState::observe`](super::SyncState::observe): x86's CR3 write and
/// INVLPG are such a barrier.
#[inline]
pub(crate) fn barrier_before_observe<O: LinkOrder>() {
    if let Some(order) = O::FLUSH_FENCE {
        // ORDERING(link-unsync): store buffering: SeqCst, pairs with the fence of `before_link`.
        fence(order);
    }
}

#[cfg(all(test, not(any(loom, explored))))]
mod tests {
    use super::*;

    fn steps(policy: LinkPolicy) -> Vec<LinkStep> {
        let mut steps = Vec::new();
        assert!(before_link::<KvmOrder>(policy, |step| {
            steps.push(step);
            true
        }));
        steps
    }

    #[test]
    fn each_policy_has_its_steps_before_the_link_and_its_side_for_the_mark() {
        assert_eq!(steps(LinkPolicy::KvmOrder), [LinkStep::Sync]);
        assert_eq!(steps(LinkPolicy::MarkFirst), [LinkStep::Mark, LinkStep::Sync]);
        assert_eq!(steps(LinkPolicy::FullSync), [LinkStep::Protect, LinkStep::Sync]);
        for (policy, linked_at_the_mark) in
            [(LinkPolicy::KvmOrder, 7), (LinkPolicy::MarkFirst, 0), (LinkPolicy::FullSync, 0)]
        {
            let slot = AtomicU64::new(0);
            publish_link::<KvmOrder>(policy, &slot, 7, || {
                assert_eq!(slot.load(Ordering::Relaxed), linked_at_the_mark, "{policy:?}");
            });
            assert_eq!(slot.load(Ordering::Relaxed), 7);
        }
    }

    #[test]
    fn a_step_that_fails_is_the_last() {
        for policy in LinkPolicy::ALL {
            let mut taken = 0;
            assert!(!before_link::<KvmOrder>(policy, |_| {
                taken += 1;
                false
            }));
            assert_eq!(taken, 1, "{policy:?}");
        }
    }
}
