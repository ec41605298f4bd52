//! The fair queued `mmu_lock`.
//!
//! An array queue (Anderson's lock) with 64-bit tickets:
//!
//! * lock: `ticket = tail.fetch_add(1)`; wait until `slots[ticket % SLOTS] == ticket`;
//! * unlock by the holder of `ticket`: `slots[(ticket + 1) % SLOTS] = ticket + 1`, Release.
//!
//! All words start at 0, which is the grant of ticket 0 and of no other.
//!
//! Fair, as the kernel's queued spinlock is: grants follow the order of the `fetch_add`s, and each
//! waiter watches a line of its own, so a release disturbs one waiter only.
//!
//! # More waiters than slots
//!
//! Tickets `t` and `t + SLOTS` share a slot, and stay correct: a slot holds a whole ticket, so neither
//! can take the other's grant for its own; and a grant cannot be overwritten unread, because
//! `t + SLOTS` is granted by the holder of `t + SLOTS - 1`, who comes after the holder of `t` in the
//! queue. They only share the line. Tickets do not come round: at one a nanosecond 64 bits last
//! five centuries.
//!
//! # Orderings
//!
//! | access | order | why |
//! |---|---|---|
//! | `tail.fetch_add`, the exchange of `try_lock` | Relaxed | a ticket carries no data; atomicity alone gives the order |
//! | the load of a slot | Acquire | the holder sees all that earlier holders did |
//! | the store of a grant | Release | ... because this store comes after it |

use core::marker::PhantomData;

use crate::{AtomicU64, Backoff, Ordering};

/// Slots of the queue: so many waiters have a line of their own.
#[cfg(not(loom))]
pub const SLOTS: usize = 64;
/// Slots of the queue: few, so that the model has waiters that share a slot.
#[cfg(loom)]
pub const SLOTS: usize = 2;

/// The two orders the lock lives by; a parameter so that tests can weaken each one.
pub trait LockOrder {
    /// The load of a slot that finds the own ticket.
    const OBSERVE_GRANT: Ordering;
    /// The store that hands the lock over.
    const GRANT: Ordering;
}

/// Acquire and Release: the only orders used outside tests.
#[derive(Debug)]
pub enum Handover {}

impl LockOrder for Handover {
    const OBSERVE_GRANT: Ordering = Ordering::Acquire;
    const GRANT: Ordering = Ordering::Release;
}

/// 128 bytes: processors fetch lines in pairs.
#[derive(Debug)]
#[repr(align(128))]
struct Padded(AtomicU64);

/// One acquisition: the ticket that was granted. It cannot be copied, and [`QueuedLock::release`] takes it back.
#[derive(Debug)]
#[must_use = "the lock stays held until the grant is released"]
pub struct Grant(u64);

/// The raw lock; see the [module](self). `shadow_mmu_sys::lock::Mutex` protects data with it.
#[derive(Debug)]
pub struct QueuedLock<O = Handover> {
    tail: Padded,
    slots: [Padded; SLOTS],
    order: PhantomData<O>,
}

impl<O: LockOrder> QueuedLock<O> {
    /// A free lock.
    #[cfg(not(loom))]
    #[must_use]
    pub const fn new() -> Self {
        Self {
            tail: Padded(AtomicU64::new(0)),
            slots: [const { Padded(AtomicU64::new(0)) }; SLOTS],
            order: PhantomData,
        }
    }

    /// A free lock.
    #[cfg(loom)]
    #[must_use]
    pub fn new() -> Self {
        let word = || Padded(AtomicU64::new(0));
        Self { tail: word(), slots: std::array::from_fn(|_| word()), order: PhantomData }
    }

    fn slot(&self, ticket: u64) -> &AtomicU64 {
        &self.slots[ticket as usize % SLOTS].0
    }

    fn is_granted(&self, ticket: u64) -> bool {
        self.slot(ticket).load(O::OBSERVE_GRANT) == ticket
    }

    fn granted(ticket: u64) -> Grant {
        #[cfg(not(loom))]
        crate::count!(locks);
        Grant(ticket)
    }

    /// Takes the lock after all who asked before; the flag is true if it had to wait for one of them.
    pub fn acquire(&self) -> (Grant, bool) {
        let ticket = self.tail.0.fetch_add(1, Ordering::Relaxed);
        let contended = !self.is_granted(ticket);
        if contended {
            self.wait_for(ticket);
        }
        (Self::granted(ticket), contended)
    }

    #[cold]
    fn wait_for(&self, ticket: u64) {
        let mut backoff = Backoff::new();
        while !self.is_granted(ticket) {
            backoff.wait();
        }
    }

    /// Takes the lock if it is free and nobody waits.
    pub fn try_acquire(&self) -> Option<Grant> {
        let ticket = self.tail.0.load(Ordering::Relaxed);
        // Tickets only grow: an exchange that finds `tail` still at a granted ticket owns the grant.
        let taken = self.is_granted(ticket)
            && self.tail.0.compare_exchange(ticket, ticket + 1, Ordering::Relaxed, Ordering::Relaxed).is_ok();
        taken.then(|| Self::granted(ticket))
    }

    /// Hands the lock to the next in the queue. `grant` must be of this lock.
    #[allow(clippy::needless_pass_by_value, reason = "a grant ends here: it must not be usable twice")]
    pub fn release(&self, grant: Grant) {
        let next = grant.0 + 1;
        self.slot(next).store(next, O::GRANT);
    }

    /// How often the lock was asked for (a moment ago).
    #[must_use]
    pub fn tickets(&self) -> u64 {
        self.tail.0.load(Ordering::Relaxed)
    }

    /// Whether somebody holds the lock (a moment ago).
    #[must_use]
    pub fn is_held(&self) -> bool {
        !self.is_granted(self.tail.0.load(Ordering::Relaxed))
    }
}

impl<O: LockOrder> Default for QueuedLock<O> {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(all(test, loom))]
mod models;
