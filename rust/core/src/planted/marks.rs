//! The marks of a page and of its root, with what stands for the other words that they tell of.

use shadow_mmu_planted::{Plain, apart, race};

use super::until;
use crate::{
    shadow::publish::{
        KvmOrder,
        marks::{MarkOrder, SyncState},
    },
    sync::Ordering,
};

enum ClearRelaxed {}
impl MarkOrder for ClearRelaxed {
    const CLEAR: Ordering = Ordering::Relaxed;
}

enum ObserveRelaxed {}
impl MarkOrder for ObserveRelaxed {
    const OBSERVE: Ordering = Ordering::Relaxed;
}

enum MarkPageRelaxed {}
impl MarkOrder for MarkPageRelaxed {
    const MARK_PAGE: Ordering = Ordering::Relaxed;
}

enum ShortCutRelaxed {}
impl MarkOrder for ShortCutRelaxed {
    const SHORT_CUT: Ordering = Ordering::Relaxed;
}

/// P4: the leaves (here plain data) are synced before the root's mark goes; who finds the root clean has them.
fn clean_root<O: MarkOrder + Sync>(mark: fn(&SyncState<O>), clear: fn(&SyncState<O>)) {
    apart(|| {
        let (leaves, root) = (Plain::new(), SyncState::<O>::new());
        mark(&root);
        let sync = || {
            leaves.write(1);
            clear(&root);
        };
        let flush = || {
            until(|| !root.observe());
            assert_eq!(leaves.read(), 1);
        };
        race([&sync, &flush]);
    });
}

fn clean_children<O: MarkOrder + Sync>() {
    clean_root::<O>(
        |root| {
            root.add_unsync_child();
        },
        |root| {
            root.sub_unsync_child();
        },
    );
}

fn clean_page<O: MarkOrder + Sync>() {
    clean_root::<O>(|page| page.mark_unsync(|| ()), SyncState::clear_unsync);
}

/// P1c: the ancestors' marks (here plain data) come before the page's own; who takes the short cut by it has them.
fn short_cut<O: MarkOrder + Sync>() {
    apart(|| {
        let (ancestors, page) = (Plain::new(), SyncState::<O>::new());
        let first = || page.mark_unsync(|| ancestors.write(1));
        let second = || {
            until(|| page.is_marked());
            assert_eq!(ancestors.read(), 1);
        };
        race([&first, &second]);
    });
}

#[test]
fn p4_who_finds_the_root_clean_has_the_leaves() {
    clean_children::<KvmOrder>();
    clean_page::<KvmOrder>();
}

#[test]
fn p1c_who_takes_the_short_cut_has_the_ancestors_marks() {
    short_cut::<KvmOrder>();
}

#[test]
#[ignore = "a data race on purpose: make tsan"]
fn weak_p4_clear_of_the_children_relaxed() {
    clean_children::<ClearRelaxed>();
}

#[test]
#[ignore = "a data race on purpose: make tsan"]
fn weak_p4_test_of_the_children_relaxed() {
    clean_children::<ObserveRelaxed>();
}

#[test]
#[ignore = "a data race on purpose: make tsan"]
fn weak_p4_clear_of_the_page_relaxed() {
    clean_page::<ClearRelaxed>();
}

#[test]
#[ignore = "a data race on purpose: make tsan"]
fn weak_p4_test_of_the_page_relaxed() {
    clean_page::<ObserveRelaxed>();
}

#[test]
#[ignore = "a data race on purpose: make tsan"]
fn weak_p1c_own_mark_relaxed() {
    short_cut::<MarkPageRelaxed>();
}

#[test]
#[ignore = "a data race on purpose: make tsan"]
fn weak_p1c_short_cut_relaxed() {
    short_cut::<ShortCutRelaxed>();
}
