//! The ticket lock: what the kernel had before the queued one.
//!
//! * lock: `ticket = next.fetch_add(1)`; wait until `serving == ticket`;
//! * unlock by the holder of `ticket`: `serving = ticket + 1`, Release.
//!
//! First come, first served, like the queue; but every waiter reads the word that every release writes, so a release
//! costs each of them a miss. Tickets do not come round: at one a nanosecond 64 bits last five centuries.
//!
//! | access | order | why |
//! |---|---|---|
//! | `next.fetch_add`, the exchange of `try_acquire` | Relaxed | a ticket carries no data; atomicity alone gives the order |
//! | the load of `serving` | Acquire | the holder sees all that earlier holders did |
//! | the store of `serving` | Release | ... because this store comes after it |

use core::marker::PhantomData;

use super::{Grant, Padded};
use crate::{AtomicU64, Ordering, wait_until};

/// The two orders the lock lives by; a parameter so that tests can weaken each one.
pub trait TicketOrder {
    /// The load that finds the own ticket served.
    const OBSERVE_SERVING: Ordering;
    /// The store that serves the next ticket.
    const SERVE_NEXT: Ordering;
}

/// Acquire and Release: the only orders used outside tests.
#[derive(Debug)]
pub enum Handover {}

impl TicketOrder for Handover {
    const OBSERVE_SERVING: Ordering = Ordering::Acquire;
    const SERVE_NEXT: Ordering = Ordering::Release;
}

/// The two words lie on one line, as the kernel's do.
#[derive(Debug, Default)]
struct Words {
    next: AtomicU64,
    serving: AtomicU64,
}

/// The raw lock; see the [module](self).
#[derive(Debug)]
pub struct TicketLock<O = Handover> {
    words: Padded<Words>,
    order: PhantomData<O>,
}

impl<O: TicketOrder> TicketLock<O> {
    /// A free lock.
    #[cfg(not(any(loom, explored)))]
    #[must_use]
    pub const fn new() -> Self {
        Self { words: Padded(Words { next: AtomicU64::new(0), serving: AtomicU64::new(0) }), order: PhantomData }
    }

    /// A free lock.
    #[cfg(any(loom, explored))]
    #[must_use]
    pub fn new() -> Self {
        Self { words: Padded::default(), order: PhantomData }
    }

    fn is_served(&self, ticket: u64) -> bool {
        // ORDERING(mmu-lock-ticket): pairs with the store of the holder before.
        self.words.0.serving.load(O::OBSERVE_SERVING) == ticket
    }

    /// Takes the lock after all who asked before; the flag is true if it had to wait for one of them.
    #[inline]
    pub fn acquire(&self) -> (Grant, bool) {
        // ORDERING(mmu-lock-ticket): the ticket is a place in the queue and carries nothing else.
        let ticket = self.words.0.next.fetch_add(1, Ordering::Relaxed);
        let contended = !self.is_served(ticket);
        if contended {
            self.wait_for(ticket);
        }
        (Grant::new(ticket), contended)
    }

    #[cold]
    fn wait_for(&self, ticket: u64) {
        wait_until(|| self.is_served(ticket));
    }

    /// Takes the lock if it is free and nobody waits.
    #[inline]
    pub fn try_acquire(&self) -> Option<Grant> {
        let next = &self.words.0.next;
        // ORDERING(mmu-lock-ticket): only a guess; the exchange decides.
        let ticket = next.load(Ordering::Relaxed);
        // Tickets only grow: an exchange that finds `next` still at a ticket that is served owns that ticket.
        let taken = self.is_served(ticket)
            // ORDERING(mmu-lock-ticket): as in `acquire`; the data came with the load of `serving`.
            && next.compare_exchange(ticket, ticket + 1, Ordering::Relaxed, Ordering::Relaxed).is_ok();
        taken.then(|| Grant::new(ticket))
    }

    /// Serves the next ticket. `grant` must be of this lock.
    #[inline]
    #[allow(clippy::needless_pass_by_value, reason = "a grant ends here: it must not be usable twice")]
    pub fn release(&self, grant: Grant) {
        // ORDERING(mmu-lock-ticket): the next holder sees what was done under this grant.
        self.words.0.serving.store(grant.0 + 1, O::SERVE_NEXT);
    }

    /// Whether somebody holds the lock (a moment ago).
    #[must_use]
    pub fn is_held(&self) -> bool {
        // ORDERING(mmu-lock-ticket): a figure of a moment ago.
        !self.is_served(self.words.0.next.load(Ordering::Relaxed))
    }

    /// How many tickets were drawn.
    #[cfg(all(test, not(loom)))]
    pub(super) fn drawn(&self) -> u64 {
        // ORDERING(mmu-lock-ticket): for tests.
        self.words.0.next.load(Ordering::Relaxed)
    }
}

impl<O: TicketOrder> Default for TicketLock<O> {
    fn default() -> Self {
        Self::new()
    }
}
