//! The stores and loads of shadow entries.

use core::marker::PhantomData;

use super::KvmOrder;
use crate::sync::{AtomicU64, Ordering};

/// The orders of an entry; a twin in a test overrides one and must fail.
pub(crate) trait PublishOrder {
    /// The store of an SPTE that gives rights.
    const STORE_SPTE: Ordering = Ordering::Release;
    /// The load of an SPTE by the hardware walk.
    const WALK_SPTE: Ordering = Ordering::Acquire;
}

impl PublishOrder for KvmOrder {}

/// The proof that a gfn may be mapped writable: every shadow page of it is marked, up to its roots, or it has none.
///
/// Born where the marking is done (`try_to_unsync`), under the lock, whose guard `'l` is; it does not outlive it.
#[must_use = "a permit is there to publish a writable entry"]
#[derive(Debug)]
pub(crate) struct WritePermit<'l>(PhantomData<&'l ()>);

impl WritePermit<'_> {
    /// For the code that marks, and for no other.
    pub(crate) fn granted() -> Self {
        Self(PhantomData)
    }
}

const PRESENT_WRITABLE: u64 = 0b11;

/// Stores a leaf entry that may be written through. The permit shows that the marks come before.
#[inline]
pub(crate) fn publish_writable(slot: &AtomicU64, spte: u64, permit: &WritePermit<'_>) {
    publish_writable_as::<KvmOrder>(slot, spte, permit);
}

pub(crate) fn publish_writable_as<O: PublishOrder>(slot: &AtomicU64, spte: u64, _: &WritePermit<'_>) {
    // ORDERING(publish-spte): Release: whoever walks through this entry carries the marks along.
    slot.store(spte, O::STORE_SPTE);
}

/// Stores a leaf entry without write permission where none or a narrower one was.
#[inline]
pub(crate) fn publish_read_only(slot: &AtomicU64, spte: u64) {
    debug_assert_ne!(
        spte & PRESENT_WRITABLE,
        PRESENT_WRITABLE,
        "{spte:#x} is writable: publish_writable takes a permit"
    );
    // ORDERING(publish-spte): Release, as every entry that gives rights.
    slot.store(spte, KvmOrder::STORE_SPTE);
}

/// Stores a link to a lower shadow page, whose entries are in place. [`publish_link`](super::publish_link) puts the
/// marks on the right side of it.
#[inline]
pub(crate) fn publish_table<O: PublishOrder>(slot: &AtomicU64, spte: u64) {
    // ORDERING(publish-spte, link-unsync): Release: the walk that follows the link finds the child's entries.
    slot.store(spte, O::STORE_SPTE);
}

/// Stores an entry that gives fewer rights than the one there, or none. A remote flush makes it count.
#[inline]
pub(crate) fn withdraw(slot: &AtomicU64, spte: u64) {
    debug_assert_ne!(spte & PRESENT_WRITABLE, PRESENT_WRITABLE, "{spte:#x} is writable: nothing is withdrawn");
    // ORDERING(kick-mode): Relaxed: the SeqCst fence of the remote flush orders it against guest accesses.
    slot.store(spte, Ordering::Relaxed);
}

/// Takes `bits` away from an entry in one step; the entry found. A remote flush makes it count.
///
/// For entries that others change without the lock meanwhile: A and D that the hardware sets are not lost, and W that
/// a fast fault has just restored is taken away with the rest (D.3, "clearing MMU-writable").
#[inline]
pub(crate) fn protect(slot: &AtomicU64, bits: u64) -> u64 {
    // ORDERING(kick-mode): Relaxed, as `withdraw`.
    slot.fetch_and(!bits, Ordering::Relaxed)
}

/// Loads an entry as the hardware walk and every walk without the lock do.
#[inline]
pub(crate) fn walk_load(slot: &AtomicU64) -> u64 {
    walk_load_as::<KvmOrder>(slot)
}

#[inline]
pub(crate) fn walk_load_as<O: PublishOrder>(slot: &AtomicU64) -> u64 {
    // ORDERING(walk-spte): Acquire: a vCPU that signals after writing through this entry hands on the marks.
    slot.load(O::WALK_SPTE)
}

/// Loads an entry with the lock held.
#[inline]
pub(crate) fn load_locked(slot: &AtomicU64) -> u64 {
    // ORDERING(publish-spte): Relaxed: only the A and D bits change without the lock, and they carry nothing.
    slot.load(Ordering::Relaxed)
}

/// The hardware's setting of A and D: `Ok` with the new entry, or `Err` with the entry found, which is another than
/// the one walked: a changed entry is never brought back, and its access must not be made.
#[inline]
pub(crate) fn set_accessed_dirty(slot: &AtomicU64, seen: u64, bits: u64) -> Result<u64, u64> {
    let new = seen | bits;
    // ORDERING(set-dirty): Relaxed: the walk's load has acquired what the entry carries, and as a read-modify-write
    // this is part of the release sequence of the store that published it: later walks acquire through it.
    slot.compare_exchange(seen, new, Ordering::Relaxed, Ordering::Relaxed).map(|_| new)
}

#[cfg(all(test, not(any(loom, explored))))]
mod tests {
    use super::*;

    #[test]
    fn accessed_and_dirty_never_bring_a_changed_entry_back() {
        let slot = AtomicU64::new(0x1003);
        assert_eq!(set_accessed_dirty(&slot, 0x1003, 0x60), Ok(0x1063));
        assert_eq!(protect(&slot, 2), 0x1063);
        assert_eq!(set_accessed_dirty(&slot, 0x1063, 0), Err(0x1061));
        withdraw(&slot, 0);
        assert_eq!(set_accessed_dirty(&slot, 0x1063, 0x60), Err(0));
        assert_eq!(walk_load(&slot), 0);
    }

    #[test]
    #[cfg(debug_assertions)]
    #[should_panic(expected = "publish_writable takes a permit")]
    fn a_writable_entry_needs_a_permit() {
        publish_read_only(&AtomicU64::new(0), 0x1003);
    }
}
