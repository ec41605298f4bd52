//! The dirty harvest: which pages were written, with none forgotten (P8b; C.8, E156).
//!
//! Dirty logging is not built yet and will use it.

use crate::sync::{AtomicU64, Ordering};

const WRITABLE: u64 = 1 << 1;
const DIRTY: u64 = 1 << 6;

/// Takes W and D away from the entry in one step and shoots down; true if the page was written and must be copied now.
///
/// ```text
/// harvester, lock held            guest access (a bracketed section)
/// take W and D: one exchange      walk: W
/// shoot_down(): flush and wait    set D: exchange against the walked entry; failed = no store
/// copy the page if D was set      store the data
/// ```
///
/// An access that set D before the exchange is waited for, so the copy has its data. One that lost the exchange has
/// not stored, and faults. So the value that the one step found is the whole answer: nothing is read again after the
/// wait. A load and a store instead of the one step would forget a D that is set in between.
///
/// `shoot_down` raises the flush and returns when every access under way has ended
/// ([`kick_and_wait`](crate::requests::kick_and_wait)).
pub(crate) fn harvest(slot: &AtomicU64, shoot_down: impl FnOnce()) -> bool {
    // ORDERING(dirty-harvest): Relaxed: the fence of the shoot-down orders it against guest accesses; as a
    // read-modify-write it keeps the release sequence, and so the marks, of a page that may be logged and unsync.
    let found = slot.fetch_and(!(WRITABLE | DIRTY), Ordering::Relaxed);
    shoot_down();
    found & DIRTY != 0
}

#[cfg(all(test, not(any(loom, explored))))]
mod tests {
    use super::*;
    use crate::shadow::publish::set_accessed_dirty;

    #[test]
    fn e156_a_written_page_is_reported_once_and_write_protected_before_the_shoot_down() {
        let slot = AtomicU64::new(0x1003);
        assert_eq!(set_accessed_dirty(&slot, 0x1003, DIRTY), Ok(0x1043));
        assert!(harvest(&slot, || assert_eq!(slot.load(Ordering::Relaxed), 0x1001)));
        assert!(!harvest(&slot, || ()));
        assert_eq!(set_accessed_dirty(&slot, 0x1043, DIRTY), Err(0x1001));
    }
}
