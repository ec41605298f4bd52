//! Errors on purpose behind C functions, for a Python that runs under a sanitizer (`make asan-python`, `make tsan-python`).

use std::{hint::black_box, thread};

use shadow_mmu_planted::Plain;

/// Reads a block that was given back.
#[unsafe(no_mangle)]
pub extern "C" fn heap_use_after_free() -> u64 {
    let word = black_box(Box::into_raw(Box::new(7_u64)));
    // SAFETY: made just above, given back once.
    drop(unsafe { Box::from_raw(word) });
    // SAFETY: none: the planted error.
    black_box(unsafe { word.read_volatile() })
}

/// Two threads write the same plain word.
#[unsafe(no_mangle)]
pub extern "C" fn race() -> u64 {
    static DATA: Plain = Plain::new();
    let threads = [1, 2].map(|value| thread::spawn(move || DATA.write(value)));
    threads.into_iter().map(|thread| u64::from(thread.join().is_ok())).sum()
}
