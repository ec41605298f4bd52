//! Memory errors that AddressSanitizer and LeakSanitizer must report: `make asan` runs each, and wants it to fail.
//!
//! Ignored in every other run, where they would be what they are. The stage knows each by name, with the words of its report.

use std::hint::black_box;

const WORDS: usize = 16;

fn words() -> *mut u64 {
    Box::into_raw(vec![7_u64; WORDS].into_boxed_slice()).cast()
}

/// Gives the words back.
fn free(words: *mut u64) {
    // SAFETY: what `words` made. That it is given back once is what these tests break.
    drop(unsafe { Box::from_raw(std::ptr::slice_from_raw_parts_mut(words, WORDS)) });
}

#[test]
#[ignore = "an error on purpose: make asan"]
fn heap_use_after_free() {
    let words = black_box(words());
    free(words);
    // SAFETY: none: the planted error.
    black_box(unsafe { words.read_volatile() });
}

#[test]
#[ignore = "an error on purpose: make asan"]
fn heap_buffer_overflow() {
    let words = black_box(words());
    // SAFETY: none: the planted error.
    black_box(unsafe { words.add(black_box(WORDS)).read_volatile() });
    free(words);
}

#[test]
#[ignore = "an error on purpose: make asan"]
fn double_free() {
    let words = black_box(words());
    free(words);
    free(words);
}

#[test]
#[ignore = "an error on purpose: make asan"]
fn stack_buffer_overflow() {
    let words = black_box([7_u64; WORDS]);
    // SAFETY: none: the planted error.
    black_box(unsafe { words.as_ptr().add(black_box(WORDS)).read_volatile() });
}

#[test]
#[ignore = "an error on purpose: make asan"]
fn leak() {
    // Nobody keeps the address: to LeakSanitizer, a block that is reachable at the end is no leak.
    let words = words();
    assert!(!black_box(words).is_null());
}

#[test]
fn the_same_without_the_error() {
    let words = black_box(words());
    // SAFETY: the last of the words.
    assert_eq!(unsafe { words.add(black_box(WORDS - 1)).read_volatile() }, 7);
    free(words);
}
