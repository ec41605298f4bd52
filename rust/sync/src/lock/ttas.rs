//! The test-and-test-and-set lock: one flag, no order among those who wait.
//!
//! * lock: while the flag reads set, wait; then set it and see whether it was clear;
//! * unlock: clear it, Release.
//!
//! The test before the set keeps waiters from taking the line from the holder again and again. Nothing stops one thread
//! from getting the lock each time: what the fair locks are compared with.
//!
//! | access | order | why |
//! |---|---|---|
//! | the test | Relaxed | a guess; the exchange decides |
//! | the exchange that sets the flag | Acquire | the holder sees all that earlier holders did |
//! | the store that clears it | Release | ... because this store comes after it |

use core::marker::PhantomData;

use super::{Grant, Padded};
use crate::{AtomicBool, Backoff, Ordering};

/// The two orders the lock lives by; a parameter so that tests can weaken each one.
pub trait TtasOrder {
    /// The exchange that sets the flag.
    const SET: Ordering;
    /// The store that clears it.
    const CLEAR: Ordering;
}

/// Acquire and Release: the only orders used outside tests.
#[derive(Debug)]
pub enum Handover {}

impl TtasOrder for Handover {
    const SET: Ordering = Ordering::Acquire;
    const CLEAR: Ordering = Ordering::Release;
}

/// The raw lock; see the [module](self).
#[derive(Debug)]
pub struct TtasLock<O = Handover> {
    held: Padded<AtomicBool>,
    order: PhantomData<O>,
}

impl<O: TtasOrder> TtasLock<O> {
    /// A free lock.
    #[cfg(not(any(loom, explored)))]
    #[must_use]
    pub const fn new() -> Self {
        Self { held: Padded(AtomicBool::new(false)), order: PhantomData }
    }

    /// A free lock.
    #[cfg(any(loom, explored))]
    #[must_use]
    pub fn new() -> Self {
        Self { held: Padded::default(), order: PhantomData }
    }

    /// Takes the lock; the flag is true if it was not free at once.
    #[inline]
    pub fn acquire(&self) -> (Grant, bool) {
        if let Some(grant) = self.try_acquire() {
            return (grant, false);
        }
        (self.wait(), true)
    }

    #[cold]
    fn wait(&self) -> Grant {
        let mut backoff = Backoff::new();
        loop {
            backoff.wait();
            if let Some(grant) = self.try_acquire() {
                return grant;
            }
        }
    }

    /// Takes the lock if it is free.
    #[inline]
    pub fn try_acquire(&self) -> Option<Grant> {
        // ORDERING(mmu-lock-ttas): the set is the exchange's, so that it alone needs an order.
        let taken = !self.is_held() && self.held.0.compare_exchange(false, true, O::SET, Ordering::Relaxed).is_ok();
        taken.then(|| Grant::new(0))
    }

    /// Clears the flag. `grant` must be of this lock.
    #[inline]
    #[allow(clippy::needless_pass_by_value, reason = "a grant ends here: it must not be usable twice")]
    pub fn release(&self, grant: Grant) {
        let Grant(_) = grant;
        // ORDERING(mmu-lock-ttas): the next holder sees what was done under this grant.
        self.held.0.store(false, O::CLEAR);
    }

    /// Whether somebody holds the lock (a moment ago).
    #[inline]
    #[must_use]
    pub fn is_held(&self) -> bool {
        // ORDERING(mmu-lock-ttas): a guess, and a figure for people.
        self.held.0.load(Ordering::Relaxed)
    }
}

impl<O: TtasOrder> Default for TtasLock<O> {
    fn default() -> Self {
        Self::new()
    }
}
