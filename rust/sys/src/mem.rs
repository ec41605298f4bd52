//! Large zeroed arrays: guest memory, SPTE arenas, per-gfn side arrays.
//!
//! The allocator gets zero pages from the kernel and nothing touches them, so memory is paid for when
//! the guest first uses it, as on a real host. A size that cannot be had is an error, never an abort.

use bytemuck::Zeroable;

use shadow_mmu_sync::{AtomicU32, AtomicU64};

/// The memory asked for cannot be had.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("cannot allocate {count} zeroed elements of {size} bytes")]
pub struct OutOfMemory {
    /// Elements asked for.
    pub count: usize,
    /// Bytes of one element.
    pub size: usize,
}

fn zeroed<T: Zeroable>(count: usize) -> Result<Box<[T]>, OutOfMemory> {
    bytemuck::try_zeroed_slice_box(count).map_err(|()| OutOfMemory { count, size: size_of::<T>() })
}

/// `count` 8-byte words, all 0.
///
/// ```
/// use shadow_mmu_sync::Ordering;
/// use shadow_mmu_sys::mem::zeroed_words;
///
/// let words = zeroed_words(1 << 20)?;
/// assert_eq!(words[12_345].load(Ordering::Relaxed), 0);
/// assert!(zeroed_words(usize::MAX / 8).is_err());
/// # Ok::<(), shadow_mmu_sys::mem::OutOfMemory>(())
/// ```
///
/// # Errors
///
/// [`OutOfMemory`] when the allocator refuses or the size does not fit the address space.
pub fn zeroed_words(count: usize) -> Result<Box<[AtomicU64]>, OutOfMemory> {
    zeroed(count)
}

/// `count` 4-byte words, all 0.
///
/// # Errors
///
/// As [`zeroed_words`].
pub fn zeroed_u32(count: usize) -> Result<Box<[AtomicU32]>, OutOfMemory> {
    zeroed(count)
}
