//! The fair queued `mmu_lock` behind `lock_api`.

use shadow_mmu_sync::lock::{Grant, QueuedLock};

/// The queued lock as `lock_api` takes it.
#[derive(Debug)]
pub struct RawMmuLock(QueuedLock);

/// Data under a [`QueuedLock`]. A panic of the holder releases the lock; there is no poisoning.
pub type Mutex<T> = lock_api::Mutex<RawMmuLock, T>;
/// The proof that the lock is held.
pub type Guard<'a, T> = lock_api::MutexGuard<'a, RawMmuLock, T>;

// SAFETY: `acquire` and `try_acquire` return a grant only for a ticket that they drew and found
// granted. A ticket is drawn once, and granted once: by `release` of the ticket before, which
// consumes that grant. So between a lock and its unlock there is no other holder. The grant is a
// Release store read by an Acquire load. A forgotten grant leaves the lock held; the words of the
// lock hold no address, so it may be moved or dropped while held. Nothing here unwinds.
unsafe impl lock_api::RawMutex for RawMmuLock {
    const INIT: Self = Self(QueuedLock::new());
    type Guard = Grant;

    fn lock(&self) -> Grant {
        self.0.acquire().0
    }

    fn try_lock(&self) -> Option<Grant> {
        self.0.try_acquire()
    }

    unsafe fn unlock(&self, grant: Grant) {
        self.0.release(grant);
    }

    fn is_locked(&self) -> bool {
        self.0.is_held()
    }
}

/// Takes the lock, and tells whether it had to wait: KVM's `mmu_lock` contention, seen by the waiter.
///
/// ```
/// use shadow_mmu_sys::lock::{Mutex, lock_observed};
///
/// let state = Mutex::new(1);
/// let (mut guard, contended) = lock_observed(&state);
/// *guard += 1;
/// assert!(!contended);
/// assert!(state.is_locked() && state.try_lock().is_none());
/// ```
pub fn lock_observed<T: ?Sized>(mutex: &Mutex<T>) -> (Guard<'_, T>, bool) {
    // SAFETY: the raw lock is only acquired here, which leaves every guard valid.
    let (grant, contended) = unsafe { mutex.raw() }.0.acquire();
    // SAFETY: the grant is that of the acquisition just made, and no other guard stands for it.
    let guard = unsafe { mutex.make_guard_unchecked(grant) };
    (guard, contended)
}

#[cfg(test)]
mod tests;
