//! What the sanitizers must find: a cell without any protection, and (in `tests/`) errors on purpose.
//!
//! A dev-dependency of other crates and nothing else. [`Plain`] is *unsound by design*: safe code can race on it, so that a
//! test of the core, which forbids `unsafe`, can publish plain data by the core's own functions and let ThreadSanitizer say
//! whether their orders carry it.

#![deny(unsafe_op_in_unsafe_fn, clippy::undocumented_unsafe_blocks)]

use std::{cell::UnsafeCell, panic::resume_unwind, thread};

/// Plain data that several threads reach. Only what the test publishes it by keeps the accesses apart.
#[derive(Debug, Default)]
pub struct Plain(UnsafeCell<u64>);

// SAFETY: none, on purpose: it is for the orders of the protocol under test to make this right.
unsafe impl Sync for Plain {}

impl Plain {
    /// Zero.
    #[must_use]
    pub const fn new() -> Self {
        Self(UnsafeCell::new(0))
    }

    /// Reads the data. A function of its own: the stage looks for its name in the report.
    #[inline(never)]
    #[must_use]
    pub fn read(&self) -> u64 {
        // SAFETY: the address is valid. Whether somebody writes at the same time is what is being asked.
        unsafe { self.0.get().read() }
    }

    /// Writes the data.
    #[inline(never)]
    pub fn write(&self, value: u64) {
        // SAFETY: as `read`.
        unsafe { self.0.get().write(value) }
    }
}

/// Runs the body of a test on a thread of its own.
///
/// `libtest` has false reports of its own, which the stage suppresses by the frames `test::` of the test's thread. That
/// would hide a true race of the same thread; a thread below it has no such frame.
///
/// # Panics
/// As the body.
pub fn apart<R: Send>(body: impl FnOnce() -> R + Send) -> R {
    thread::scope(|scope| scope.spawn(body).join()).unwrap_or_else(|panic| resume_unwind(panic))
}

/// Runs each body on a thread of its own, and joins them all.
///
/// # Panics
/// As the first body that does.
pub fn race<const N: usize>(bodies: [&(dyn Fn() + Sync); N]) {
    thread::scope(|scope| {
        // Joined one by one: only `pthread_join` is an order that ThreadSanitizer sees.
        for thread in bodies.map(|body| scope.spawn(body)) {
            thread.join().unwrap_or_else(|panic| resume_unwind(panic));
        }
    });
}
