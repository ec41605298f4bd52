//! The role word of a shadow page, as it is read without the lock (P5, P10).

use crate::sync::{AtomicU32, Ordering};

/// The role word. It changes under the lock only: when the page begins a life, and to invalid when it is zapped.
///
/// Who reads it has a reference to the page (a root, current or parked), or walks to it in a bracketed section, so
/// the page is not reused meanwhile, and its first word was stored before the reader got there. That a valid page
/// became invalid is told by a request: the word first, then `FREE_OBSOLETE_ROOTS`
/// ([`request`](crate::requests::GuestMode::request), Release); the vCPU takes the request (Acquire), then looks here.
#[derive(Debug)]
pub(crate) struct RoleWord(AtomicU32);

impl RoleWord {
    /// A page that was never used.
    pub(crate) fn new() -> Self {
        Self(AtomicU32::new(0))
    }

    /// The word.
    #[inline]
    pub(crate) fn load(&self) -> u32 {
        // ORDERING(obsolete-root): Relaxed: the request that told of a change was taken with Acquire.
        self.0.load(Ordering::Relaxed)
    }

    /// Changes the word; lock held.
    pub(crate) fn store(&self, word: u32) {
        // ORDERING(obsolete-root): Relaxed: the request that follows is raised with Release.
        self.0.store(word, Ordering::Relaxed);
    }
}
