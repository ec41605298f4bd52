//! Hints: to the processor, that memory is about to be read; to the kernel, that memory is worth large pages. Nothing that a program
//! computes depends on them.

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

/// Asks the kernel for huge pages behind `memory`, which is used at random: a walk whose tables fill many pages waits for the
/// processor's own walks too. Nothing happens where there are none, or no such call.
pub fn huge_pages<T>(memory: &[T]) {
    #[cfg(target_os = "linux")]
    {
        // From the first whole page on; what is left over at the end the kernel leaves as it is.
        let start = memory.as_ptr().addr().next_multiple_of(4096);
        let length = memory.as_ptr_range().end.addr().saturating_sub(start) & !4095;
        // SAFETY: the range lies in `memory`, whose contents this advice leaves as they are. A refusal changes nothing.
        let _ = unsafe { libc::madvise(core::ptr::without_provenance_mut(start), length, libc::MADV_HUGEPAGE) };
    }
    #[cfg(not(target_os = "linux"))]
    let _ = memory;
}
