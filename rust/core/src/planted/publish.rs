//! The SPTE that makes a frame writable and the link to a table, each with what it publishes.

use shadow_mmu_planted::{Plain, apart, race};

use super::until;
use crate::{
    shadow::publish::{
        KvmOrder,
        entry::{PublishOrder, WritePermit, publish_table, publish_writable_as, set_accessed_dirty, walk_load_as},
        fast_fault::{FastFault, restore_write},
        harvest::harvest,
    },
    sync::{AtomicU64, Ordering},
};

enum StoreRelaxed {}
impl PublishOrder for StoreRelaxed {
    const STORE_SPTE: Ordering = Ordering::Relaxed;
}

enum WalkRelaxed {}
impl PublishOrder for WalkRelaxed {
    const WALK_SPTE: Ordering = Ordering::Relaxed;
}

const WRITABLE: u64 = 0x4027;
const ACCESSED: u64 = 0x20;
const LINKED: u64 = 0x6827;
/// MMU-writable, but without W or D.
const LOGGED: u64 = 0x4425;

/// P1b: the marks (here plain data) come before the SPTE; who walks through it has them.
fn writable_entry<O: PublishOrder>() {
    apart(|| {
        let (marks, spte) = (Plain::new(), AtomicU64::new(0));
        let fault = || {
            marks.write(1);
            publish_writable_as::<O>(&spte, WRITABLE, &WritePermit::granted());
        };
        let walk = || {
            until(|| walk_load_as::<O>(&spte) == WRITABLE);
            assert_eq!(marks.read(), 1);
        };
        race([&fault, &walk]);
    });
}

/// P1: a vCPU that only walks and signals hands the marks on to a third.
fn signalled<O: PublishOrder>() {
    apart(|| {
        let (marks, spte, signal) = (Plain::new(), AtomicU64::new(0), AtomicU64::new(0));
        let fault = || {
            marks.write(1);
            publish_writable_as::<O>(&spte, WRITABLE, &WritePermit::granted());
        };
        let store_and_signal = || {
            until(|| walk_load_as::<O>(&spte) == WRITABLE);
            // As the guest's stores and loads (tag `guest-tso`).
            signal.store(1, Ordering::Release);
        };
        let flush = || {
            until(|| signal.load(Ordering::Acquire) == 1);
            assert_eq!(marks.read(), 1);
        };
        race([&fault, &store_and_signal, &flush]);
    });
}

/// The walk that sets A or D hands on what the entry published, to who finds the entry with them.
fn accessed_entry<O: PublishOrder>() {
    apart(|| {
        let (marks, spte) = (Plain::new(), AtomicU64::new(0));
        let fault = || {
            marks.write(1);
            publish_writable_as::<O>(&spte, WRITABLE & !ACCESSED, &WritePermit::granted());
        };
        let first_walk = || until(|| set_accessed_dirty(&spte, WRITABLE & !ACCESSED, ACCESSED).is_ok());
        let second_walk = || {
            until(|| walk_load_as::<O>(&spte) == WRITABLE);
            assert_eq!(marks.read(), 1);
        };
        race([&fault, &first_walk, &second_walk]);
    });
}

/// An entry that a fast page fault or a dirty harvest has changed, Relaxed but by one exchange, still brings what it published.
fn changed_entry<O: PublishOrder>(protected: u64, change: fn(&AtomicU64), found: u64) {
    apart(|| {
        let (marks, spte) = (Plain::new(), AtomicU64::new(0));
        let fault = || {
            marks.write(1);
            publish_writable_as::<O>(&spte, protected, &WritePermit::granted());
        };
        let other = || {
            until(|| spte.load(Ordering::Relaxed) != 0);
            change(&spte);
        };
        let walk = || {
            until(|| walk_load_as::<O>(&spte) == found);
            assert_eq!(marks.read(), 1);
        };
        race([&fault, &other, &walk]);
    });
}

fn restored_entry<O: PublishOrder>() {
    let restore = |spte: &AtomicU64| assert_eq!(restore_write(spte, LOGGED), FastFault::Fixed(LOGGED | 2));
    changed_entry::<O>(LOGGED, restore, LOGGED | 2);
}

fn harvested_entry<O: PublishOrder>() {
    let harvest = |spte: &AtomicU64| assert!(harvest(spte, || ()));
    changed_entry::<O>(LOGGED | 0x42, harvest, LOGGED);
}

/// The entries of a table (here plain data) are in place before the link to it.
fn linked_table<O: PublishOrder>() {
    apart(|| {
        let (entries, link) = (Plain::new(), AtomicU64::new(0));
        let fault = || {
            entries.write(WRITABLE);
            publish_table::<O>(&link, LINKED);
        };
        let walk = || {
            until(|| walk_load_as::<O>(&link) == LINKED);
            assert_eq!(entries.read(), WRITABLE);
        };
        race([&fault, &walk]);
    });
}

#[test]
fn p1b_who_walks_through_the_entry_has_the_marks() {
    writable_entry::<KvmOrder>();
}

#[test]
fn p1_the_marks_reach_a_third_vcpu_by_the_guests_signal() {
    signalled::<KvmOrder>();
}

#[test]
fn e105_an_accessed_bit_keeps_what_the_entry_published() {
    accessed_entry::<KvmOrder>();
}

#[test]
fn p8_an_entry_made_writable_again_keeps_what_it_published() {
    restored_entry::<KvmOrder>();
}

#[test]
fn p8b_a_harvested_entry_keeps_what_it_published() {
    harvested_entry::<KvmOrder>();
}

#[test]
fn p6_who_follows_a_link_has_the_entries() {
    linked_table::<KvmOrder>();
}

#[test]
#[ignore = "a data race on purpose: make tsan"]
fn weak_p1b_spte_store_relaxed() {
    writable_entry::<StoreRelaxed>();
}

#[test]
#[ignore = "a data race on purpose: make tsan"]
fn weak_p1b_walk_relaxed() {
    writable_entry::<WalkRelaxed>();
}

#[test]
#[ignore = "a data race on purpose: make tsan"]
fn weak_p1_spte_store_relaxed() {
    signalled::<StoreRelaxed>();
}

#[test]
#[ignore = "a data race on purpose: make tsan"]
fn weak_p1_walk_relaxed() {
    signalled::<WalkRelaxed>();
}

#[test]
#[ignore = "a data race on purpose: make tsan"]
fn weak_e105_spte_store_relaxed() {
    accessed_entry::<StoreRelaxed>();
}

#[test]
#[ignore = "a data race on purpose: make tsan"]
fn weak_e105_walk_relaxed() {
    accessed_entry::<WalkRelaxed>();
}

#[test]
#[ignore = "a data race on purpose: make tsan"]
fn weak_p6_link_relaxed() {
    linked_table::<StoreRelaxed>();
}

#[test]
#[ignore = "a data race on purpose: make tsan"]
fn weak_p6_walk_relaxed() {
    linked_table::<WalkRelaxed>();
}

#[test]
#[ignore = "a data race on purpose: make tsan"]
fn weak_p8_spte_store_relaxed() {
    restored_entry::<StoreRelaxed>();
}

#[test]
#[ignore = "a data race on purpose: make tsan"]
fn weak_p8_walk_relaxed() {
    restored_entry::<WalkRelaxed>();
}

#[test]
#[ignore = "a data race on purpose: make tsan"]
fn weak_p8b_walk_relaxed() {
    harvested_entry::<WalkRelaxed>();
}
