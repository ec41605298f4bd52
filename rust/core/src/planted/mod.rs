//! Plain data handed on by the production protocols, for ThreadSanitizer (`make tsan`).
//!
//! What vCPUs share is atomic, and no sanitizer calls a wrong order on an atomic a race. So each test hands on a plain word
//! beside it, as a hypervisor's own data would be: with the shipped orders that is no race, and with one order weakened it
//! must be reported (the `weak_` tests, which are ignored in every other run: `docs/testing.md`). Who comes first is told by
//! Relaxed flags, which order nothing.

mod invalidate;
mod kick;
mod marks;
mod publish;

use crate::sync::Backoff;

/// Waits for a condition that another thread brings about.
fn until(condition: impl Fn() -> bool) {
    let mut backoff = Backoff::new();
    while !condition() {
        backoff.wait();
    }
}
