//! Hints: to the processor, that memory is about to be read. Nothing that a program computes depends on them.

/// Asks for the cache line of `place`, which is about to be read. Nothing happens where the processor has no such instruction.
///
/// ```
/// let word = 7_u64;
/// shadow_mmu_sys::hint::prefetch(&word);
/// assert_eq!(word, 7);
/// ```
#[inline]
pub fn prefetch<T>(place: &T) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: the instruction reads nothing that the program sees and faults at no address; it is part of every x86-64 processor.
    unsafe {
        use core::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T0>(core::ptr::from_ref(place).cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = place;
}
