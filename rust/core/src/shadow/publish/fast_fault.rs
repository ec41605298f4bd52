//! The fast page fault: write permission restored without the lock (P8; C.8 and D.3, `fast_page_fault`).
//!
//! For entries that are read-only only because their page is logged or aged: MMU-writable says that the MMU itself
//! has nothing against writes. Dirty logging, which makes such entries, is not built yet and will use it.

use crate::sync::{AtomicU64, Ordering};

const WRITABLE: u64 = 1 << 1;
const MMU_WRITABLE: u64 = 1 << 10;

/// What a fault found that was handled without the lock.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum FastFault {
    /// The entry is writable now, by this call; the page must be recorded as dirty.
    Fixed(u64),
    /// It was writable already.
    Spurious,
    /// It changed under the look; look again.
    Changed(u64),
    /// The MMU has protected it: the lock is needed.
    Slow,
}

/// Sets W in the entry `seen` if it is MMU-writable, and only if it is still that entry.
///
/// Clearing MMU-writable (under the lock) makes the exchange fail, so a protection is never undone. The marks of the
/// page were published with the entry. Everyone who changes it while it is MMU-writable does so by a read-modify-write
/// ([`harvest`](super::harvest()), A and D, this one), so a walk that finds W here acquires them still.
pub(crate) fn restore_write(slot: &AtomicU64, seen: u64) -> FastFault {
    if seen & WRITABLE != 0 {
        return FastFault::Spurious;
    }
    if seen & MMU_WRITABLE == 0 {
        return FastFault::Slow;
    }
    let new = seen | WRITABLE;
    // ORDERING(fast-fault): Relaxed: it must not bring back a changed entry, and carries the marks on as part of the
    // release sequence of the store that published them.
    match slot.compare_exchange(seen, new, Ordering::Relaxed, Ordering::Relaxed) {
        Ok(_) => FastFault::Fixed(new),
        Err(found) => FastFault::Changed(found),
    }
}

#[cfg(all(test, not(any(loom, explored))))]
mod tests {
    use super::*;

    #[test]
    fn e157_write_permission_comes_back_only_where_the_mmu_allows_it() {
        let slot = AtomicU64::new(0x1000 | MMU_WRITABLE | 1);
        let seen = 0x1000 | MMU_WRITABLE | 1;
        assert_eq!(restore_write(&slot, seen), FastFault::Fixed(seen | WRITABLE));
        assert_eq!(restore_write(&slot, seen), FastFault::Changed(seen | WRITABLE));
        assert_eq!(restore_write(&slot, seen | WRITABLE), FastFault::Spurious);
        assert_eq!(restore_write(&slot, 0x1001), FastFault::Slow);
        assert_eq!(slot.load(Ordering::Relaxed), seen | WRITABLE);
    }
}
