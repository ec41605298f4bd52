//! One memslot: its words and its per-frame side array.
//!
//! KVM: `struct kvm_memory_slot`.

use core::fmt;

use shadow_mmu_sys::{hint, mem};

use crate::{
    access::AccessKind,
    addr::{Gfn, Gpa, PAGE_SIZE},
    config::MemoryRegion,
    error::{Error, Result},
    sync::{AtomicU32, AtomicU64, Ordering},
};

/// Words from which on a slot is on huge pages where the host has them, as numpy's arrays are: walks of less fit the processor's TLB,
/// and a guest that touches little of it should not pay for all.
const LARGE: usize = (4 << 20) / 8;

/// A contiguous piece of guest memory.
pub struct Memslot {
    index: usize,
    base: Gfn,
    pages: u64,
    read_only: bool,
    words: Box<[AtomicU64]>,
    /// Valid shadow pages above level 1 of each frame. Written under the `mmu_lock`, read by anyone as a hint.
    write_track: Box<[AtomicU32]>,
}

impl fmt::Debug for Memslot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = if self.read_only { ", read-only" } else { "" };
        write!(f, "Memslot({} pages at {}{kind})", self.pages, self.base.gpa())
    }
}

impl Memslot {
    /// A zeroed slot, whose memory costs nothing until it is touched.
    pub(super) fn new(index: usize, region: MemoryRegion) -> Result<Self> {
        let (base, pages, read_only) = (region.gpa.gfn(), region.bytes / PAGE_SIZE, region.read_only);
        let oom = || Error::OutOfMemory { what: "guest memory", bytes: pages.saturating_mul(PAGE_SIZE) };
        let count = usize::try_from(pages).map_err(|_| oom())?;
        let words = mem::zeroed_words(count.checked_mul(512).ok_or_else(oom)?).map_err(|_| oom())?;
        if words.len() >= LARGE {
            hint::huge_pages(&words);
        }
        let write_track = mem::zeroed_u32(count).map_err(|_| oom())?;
        Ok(Self { index, base, pages, read_only, words, write_track })
    }

    /// Position among the slots.
    pub const fn index(&self) -> usize {
        self.index
    }

    /// First frame.
    pub const fn base(&self) -> Gfn {
        self.base
    }

    /// Number of frames.
    pub const fn pages(&self) -> u64 {
        self.pages
    }

    /// The frame number after the last.
    pub const fn end(&self) -> u64 {
        self.base.get() + self.pages
    }

    /// Whether the guest may not write it (E107).
    #[inline]
    pub const fn is_read_only(&self) -> bool {
        self.read_only
    }

    /// Whether an access of this kind is one to memory; one that is not leaves for the device model (E107).
    #[inline]
    pub(crate) const fn admits(&self, kind: AccessKind) -> bool {
        !(self.read_only && kind.is_write())
    }

    /// Whether the slot has this frame.
    #[inline]
    pub const fn contains(&self, gfn: Gfn) -> bool {
        gfn.get().wrapping_sub(self.base.get()) < self.pages
    }

    pub(super) const fn overlaps(&self, first: u64, pages: u64) -> bool {
        first < self.end() && self.base.get() < first + pages
    }

    /// Index of a frame in this slot's arrays.
    #[inline]
    pub const fn frame(&self, gfn: Gfn) -> usize {
        (gfn.get() - self.base.get()) as usize
    }

    /// All words.
    #[inline]
    pub(super) fn words(&self) -> &[AtomicU64] {
        &self.words
    }

    /// The word that contains `gpa`, which is in this slot.
    #[inline]
    pub(crate) fn word(&self, gpa: Gpa) -> &AtomicU64 {
        &self.words[((gpa.get() - self.base.gpa().get()) >> 3) as usize]
    }

    /// Whether the frame is write-tracked: some valid shadow page above level 1 shadows it.
    #[inline]
    pub fn is_write_tracked(&self, gfn: Gfn) -> bool {
        // ORDERING(track-hint): only a hint without the lock; either answer leads to a correct path.
        self.write_track[self.frame(gfn)].load(Ordering::Relaxed) != 0
    }

    /// The count of [`is_write_tracked`](Self::is_write_tracked).
    pub fn write_track(&self, gfn: Gfn) -> u32 {
        // ORDERING(track-hint): as above.
        self.write_track[self.frame(gfn)].load(Ordering::Relaxed)
    }

    /// Changes the count. The caller holds the `mmu_lock`, so load and store suffice.
    pub(crate) fn adjust_write_track(&self, gfn: Gfn, by: i32) {
        let count = &self.write_track[self.frame(gfn)];
        // ORDERING(track-hint): as above.
        let now = count.load(Ordering::Relaxed).wrapping_add_signed(by);
        // ORDERING(track-hint): as above.
        count.store(now, Ordering::Relaxed);
    }
}
