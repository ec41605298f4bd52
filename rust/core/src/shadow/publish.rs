//! The publication protocol: what is shared without the `mmu_lock`, and in which order (D.1 to D.4).
//!
//! A vCPU that flushes decides *without the lock* whether its root must be synced: it looks at two words
//! of the root ([`SyncState::observe`]). That is right only if nobody can have written a guest page table
//! through a writable SPTE whose marks that vCPU does not see:
//!
//! ```text
//! fault, lock held            guest A                      guest B
//! mark unsync up to the root
//! publish_writable(spte)  --> walk_load(spte): W
//!                             store into the guest table
//!                             signal                   --> sees the signal
//!                                                          flush: root.observe()  must see the marks
//! ```
//!
//! and the other way round, if it sees the root clean because somebody else synced it, it must see what the
//! sync stored:
//!
//! ```text
//! sync, lock held                          guest B
//! withdraw / publish the leaves
//! root.sub_unsync_child(): now 0       --> root.observe() is false; walk_load(leaf) must be the new one
//! ```
//!
//! The Release therefore sits on the SPTE store, not on the marks (a release orders what is before it), and on
//! the store that clears the root's count; the Acquire sits on the walk's load and on the flag test. Each order
//! is a constant of [`PublishOrder`] so that the loom models run these very functions and, in twins that must
//! fail, weaken one order at a time. `docs/memory-ordering.md` has a row for each `ORDERING` tag.
//!
//! Everything that stores a shadow entry goes through this file, and nothing else does.

use core::marker::PhantomData;

use crate::sync::{AtomicBool, AtomicU32, AtomicU64, Ordering, fence};

/// The orders of the protocol, with the right ones as defaults: a twin in a test overrides one and must fail.
///
/// [`KvmOrder`] is the only implementation outside tests.
pub(crate) trait PublishOrder {
    /// The store of an SPTE that gives rights.
    const STORE_SPTE: Ordering = Ordering::Release;
    /// The load of an SPTE by the hardware walk.
    const WALK_SPTE: Ordering = Ordering::Acquire;
    /// The store that takes a mark away.
    const CLEAR_CHILDREN: Ordering = Ordering::Release;
    /// The lock-free test of the marks.
    const OBSERVE: Ordering = Ordering::Acquire;
    /// The fences of a store-buffering pair: needed on both sides, and nothing below `SeqCst` will do.
    const BARRIER: Option<Ordering> = Some(Ordering::SeqCst);
}

/// What KVM's barriers and x86's own order come to in the language's model.
#[derive(Clone, Copy, Debug)]
pub(crate) enum KvmOrder {}

impl PublishOrder for KvmOrder {}

pub(crate) fn barrier<O: PublishOrder>() {
    if let Some(order) = O::BARRIER {
        // ORDERING(link-unsync, track-hint): store buffering: only SeqCst fences on both sides help.
        fence(order);
    }
}

// ------------------------------------------------------------------------------------------- marks

/// The marks of one shadow page that are read without the lock: KVM's `sp->unsync` and `sp->unsync_children`.
///
/// They change under the `mmu_lock` only, held exclusively, so a change is a load and a store.
#[derive(Debug)]
pub(crate) struct SyncState<O = KvmOrder> {
    unsync: AtomicBool,
    unsync_children: AtomicU32,
    order: PhantomData<O>,
}

impl<O: PublishOrder> SyncState<O> {
    /// Both marks clear.
    pub(crate) fn new() -> Self {
        Self { unsync: AtomicBool::new(false), unsync_children: AtomicU32::new(0), order: PhantomData }
    }

    /// Marks this page unsync. The marks of the parents and then [`publish_writable`] follow.
    pub(crate) fn mark_unsync(&self) {
        // ORDERING(publish-spte): Relaxed: the Release store of the SPTE carries the mark.
        self.unsync.store(true, Ordering::Relaxed);
    }

    /// Counts one more unsync child entry; returns the count before.
    pub(crate) fn add_unsync_child(&self) -> u32 {
        let before = self.children_locked();
        // ORDERING(publish-spte): Relaxed, as `mark_unsync`.
        self.unsync_children.store(before + 1, Ordering::Relaxed);
        before
    }

    /// Takes the unsync mark away: lock held.
    pub(crate) fn clear_unsync(&self) {
        // ORDERING(clean-root): the leaves stored before are seen by whoever sees this.
        self.unsync.store(false, O::CLEAR_CHILDREN);
    }

    /// Counts one unsync child entry less; returns the count now. What the sync stored must come before.
    pub(crate) fn sub_unsync_child(&self) -> u32 {
        let now = self.children_locked() - 1;
        // ORDERING(clean-root): a flush that sees the root clean also sees the leaves that the sync stored.
        self.unsync_children.store(now, O::CLEAR_CHILDREN);
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

impl<O: PublishOrder> Default for SyncState<O> {
    fn default() -> Self {
        Self::new()
    }
}

// ------------------------------------------------------------------------------------------ entries

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

/// Stores a link to a lower shadow page, whose entries are in place; an unsync one was marked before (D.3).
#[inline]
pub(crate) fn publish_table(slot: &AtomicU64, spte: u64) {
    publish_table_as::<KvmOrder>(slot, spte);
}

pub(crate) fn publish_table_as<O: PublishOrder>(slot: &AtomicU64, spte: u64) {
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
/// the one walked: a changed entry is never brought back.
#[inline]
pub(crate) fn set_accessed_dirty(slot: &AtomicU64, seen: u64, bits: u64) -> Result<u64, u64> {
    let new = seen | bits;
    // ORDERING(walk-spte): AcqRel: as the walk's load, and it keeps the release sequence of the entry going.
    slot.compare_exchange(seen, new, Ordering::AcqRel, Ordering::Acquire).map(|_| new)
}

// ------------------------------------------------------------------------------------------- fences

/// Before an already-unsync page is synced to be linked: its new parents are marked, and the guest tables are read
/// only now (D.3). Pairs with [`barrier_before_observe`].
#[inline]
pub(crate) fn barrier_after_mark() {
    barrier::<KvmOrder>();
}

/// In a flush, between the guest's stores and [`SyncState::observe`]: x86's CR3 write and INVLPG are such a barrier.
#[inline]
pub(crate) fn barrier_before_observe() {
    barrier::<KvmOrder>();
}

/// Whether guest tables are shadowed at all: KVM's `indirect_shadow_pages`, which spares an emulated write the lock.
///
/// Two sides, each storing first and then loading what the other stores: the shadower counts the page, then reads
/// the guest table; the writer stores into it, then reads the count. One of them sees the other (D.3, first row).
#[derive(Debug)]
pub(crate) struct TrackHint<O = KvmOrder> {
    pages: AtomicU64,
    order: PhantomData<O>,
}

impl<O: PublishOrder> TrackHint<O> {
    /// Nothing is shadowed.
    pub(crate) fn new() -> Self {
        Self { pages: AtomicU64::new(0), order: PhantomData }
    }

    /// Counts one shadow page more, lock held; guest tables read after this are not older than the writes that missed it.
    pub(crate) fn account(&self) {
        let pages = self.count_locked() + 1;
        // ORDERING(track-hint): Relaxed and a SeqCst fence before the guest table is read.
        self.pages.store(pages, Ordering::Relaxed);
        barrier::<O>();
    }

    /// Counts one shadow page less, lock held.
    pub(crate) fn unaccount(&self) {
        let pages = self.count_locked() - 1;
        // ORDERING(track-hint): Relaxed: a count that is too high for a moment costs one lock.
        self.pages.store(pages, Ordering::Relaxed);
    }

    /// The writer's test, after its store to guest memory: false if no shadow page needs to hear of it.
    pub(crate) fn is_needed_after_store(&self) -> bool {
        barrier::<O>();
        // ORDERING(track-hint): Relaxed behind a SeqCst fence.
        self.pages.load(Ordering::Relaxed) != 0
    }

    /// The number of indirect shadow pages, lock held.
    pub(crate) fn count_locked(&self) -> u64 {
        // ORDERING(track-hint): Relaxed: all writers hold the lock.
        self.pages.load(Ordering::Relaxed)
    }
}

impl<O: PublishOrder> Default for TrackHint<O> {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(all(test, not(loom)))]
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
        state.mark_unsync();
        assert!(state.observe() && state.is_unsync_locked());
        state.clear_unsync();
        assert!(!state.observe());
    }

    #[test]
    fn accessed_and_dirty_never_bring_a_changed_entry_back() {
        let slot = AtomicU64::new(0x1003);
        assert_eq!(set_accessed_dirty(&slot, 0x1003, 0x60), Ok(0x1063));
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
