//! The locks behind `lock_api`: the `mmu_lock`, whose kind is chosen when the machine is made, and a small [`Mutex`].

use lock_api::{RawMutex, RawRwLock};
use shadow_mmu_sync::lock::{Grant, QueuedLock, TicketLock, TtasLock, count_acquisition};

/// A lock word of another crate, alone on its line as those of `shadow_mmu_sync` are.
#[derive(Debug)]
#[repr(align(128))]
struct Line<T>(T);

#[allow(clippy::large_enum_variant, reason = "one lock a machine, and a box would put another line on the way to it")]
enum Kind {
    Queued(QueuedLock),
    Ticket(TicketLock),
    Ttas(TtasLock),
    Mutex(Line<parking_lot::RawMutex>),
    ReadWrite(Line<parking_lot::RawRwLock>),
}

/// The `mmu_lock` of any kind. Only [`read_write`](Self::read_write) can be shared: with the other kinds a shared
/// acquisition excludes all others too.
pub struct RawMmuLock(Kind);

impl core::fmt::Debug for RawMmuLock {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        let kind = match &self.0 {
            Kind::Queued(_) => "queued",
            Kind::Ticket(_) => "ticket",
            Kind::Ttas(_) => "ttas",
            Kind::Mutex(_) => "mutex",
            Kind::ReadWrite(_) => "read-write",
        };
        f.debug_struct("RawMmuLock").field("kind", &kind).finish_non_exhaustive()
    }
}

/// One acquisition of a [`RawMmuLock`]. It stays on its thread, as `parking_lot`'s do.
#[allow(missing_debug_implementations, reason = "the state of parking_lot has none")]
pub struct Held(By);

enum By {
    /// A lock of `shadow_mmu_sync`.
    Grant(Grant),
    /// A lock of `parking_lot`; their state for all modes is this one.
    Parking(lock_api::GuardNoSend),
}

fn granted((grant, contended): (Grant, bool)) -> (Held, bool) {
    (Held(By::Grant(grant)), contended)
}

fn parking(at_once: Option<lock_api::GuardNoSend>, wait: impl FnOnce() -> lock_api::GuardNoSend) -> (Held, bool) {
    let contended = at_once.is_none();
    let state = at_once.unwrap_or_else(wait);
    count_acquisition();
    (Held(By::Parking(state)), contended)
}

impl RawMmuLock {
    /// First come, first served, each waiter on a line of its own: the kernel's kind.
    #[must_use]
    pub const fn queued() -> Self {
        Self(Kind::Queued(QueuedLock::new()))
    }

    /// First come, first served, all waiters on one line.
    #[must_use]
    pub const fn ticket() -> Self {
        Self(Kind::Ticket(TicketLock::new()))
    }

    /// Test-and-test-and-set: no order among the waiters.
    #[must_use]
    pub const fn ttas() -> Self {
        Self(Kind::Ttas(TtasLock::new()))
    }

    /// `parking_lot`'s mutex: waiters sleep; handed over in order about every half millisecond, else to the quickest.
    #[must_use]
    pub const fn mutex() -> Self {
        Self(Kind::Mutex(Line(parking_lot::RawMutex::INIT)))
    }

    /// `parking_lot`'s reader-writer lock. A waiting writer keeps new readers out, so it is not starved.
    #[must_use]
    pub const fn read_write() -> Self {
        Self(Kind::ReadWrite(Line(parking_lot::RawRwLock::INIT)))
    }

    /// Takes the lock for writing; the flag is true if it had to wait.
    #[inline]
    fn acquire(&self) -> (Held, bool) {
        match &self.0 {
            Kind::Queued(lock) => granted(lock.acquire()),
            Kind::Ticket(lock) => granted(lock.acquire()),
            Kind::Ttas(lock) => granted(lock.acquire()),
            Kind::Mutex(Line(lock)) => parking(lock.try_lock(), || lock.lock()),
            Kind::ReadWrite(Line(lock)) => parking(lock.try_lock_exclusive(), || lock.lock_exclusive()),
        }
    }

    /// Takes the lock for reading; the flag is true if it had to wait.
    #[inline]
    fn acquire_shared(&self) -> (Held, bool) {
        match &self.0 {
            Kind::ReadWrite(Line(lock)) => parking(lock.try_lock_shared(), || lock.lock_shared()),
            _ => self.acquire(),
        }
    }
}

// SAFETY: a lock of `shadow_mmu_sync` returns a grant only to the one thread that won it, by Acquire, and lets the next
// one win only after `release`, by Release, consumed that grant; the loom models of that crate check both. A shared
// acquisition of such a lock is an exclusive one, and is released as one. `parking_lot`'s locks fulfil this contract
// themselves, in the mode asked for. No lock holds an address of itself, so it may be moved or dropped while held; a
// forgotten guard leaves it held. The only panic is for a guard that is not of this lock, which the contract excludes.
unsafe impl RawRwLock for RawMmuLock {
    #[allow(clippy::declare_interior_mutable_const, reason = "the trait has it so")]
    const INIT: Self = Self::queued();
    type SharedGuard = Held;
    type ExclusiveGuard = Held;

    fn lock_shared(&self) -> Held {
        self.acquire_shared().0
    }

    fn try_lock_shared(&self) -> Option<Held> {
        match &self.0 {
            Kind::ReadWrite(Line(lock)) => lock.try_lock_shared().map(|state| Held(By::Parking(state))),
            _ => self.try_lock_exclusive(),
        }
    }

    unsafe fn unlock_shared(&self, held: Held) {
        match (&self.0, held.0) {
            // SAFETY: the caller has this lock shared; `Held` is the state of that acquisition.
            (Kind::ReadWrite(Line(lock)), By::Parking(state)) => unsafe { lock.unlock_shared(state) },
            // SAFETY: with the other kinds a shared acquisition is an exclusive one.
            (_, by) => unsafe { self.unlock_exclusive(Held(by)) },
        }
    }

    #[inline]
    fn lock_exclusive(&self) -> Held {
        self.acquire().0
    }

    fn try_lock_exclusive(&self) -> Option<Held> {
        let by = match &self.0 {
            Kind::Queued(lock) => lock.try_acquire().map(By::Grant),
            Kind::Ticket(lock) => lock.try_acquire().map(By::Grant),
            Kind::Ttas(lock) => lock.try_acquire().map(By::Grant),
            Kind::Mutex(Line(lock)) => lock.try_lock().map(By::Parking),
            Kind::ReadWrite(Line(lock)) => lock.try_lock_exclusive().map(By::Parking),
        };
        by.map(Held)
    }

    #[inline]
    unsafe fn unlock_exclusive(&self, held: Held) {
        match (&self.0, held.0) {
            (Kind::Queued(lock), By::Grant(grant)) => lock.release(grant),
            (Kind::Ticket(lock), By::Grant(grant)) => lock.release(grant),
            (Kind::Ttas(lock), By::Grant(grant)) => lock.release(grant),
            // SAFETY: the caller holds this lock; `Held` is the state of that acquisition.
            (Kind::Mutex(Line(lock)), By::Parking(state)) => unsafe { lock.unlock(state) },
            // SAFETY: as above, exclusively.
            (Kind::ReadWrite(Line(lock)), By::Parking(state)) => unsafe { lock.unlock_exclusive(state) },
            (_, By::Grant(_) | By::Parking(_)) => unreachable!("the guard of another lock than {self:?}"),
        }
    }

    fn is_locked(&self) -> bool {
        match &self.0 {
            Kind::Queued(lock) => lock.is_held(),
            Kind::Ticket(lock) => lock.is_held(),
            Kind::Ttas(lock) => lock.is_held(),
            Kind::Mutex(Line(lock)) => lock.is_locked(),
            Kind::ReadWrite(Line(lock)) => lock.is_locked(),
        }
    }

    fn is_locked_exclusive(&self) -> bool {
        match &self.0 {
            Kind::ReadWrite(Line(lock)) => lock.is_locked_exclusive(),
            _ => self.is_locked(),
        }
    }
}

/// Data under a [`RawMmuLock`]. A panic of the holder releases the lock; there is no poisoning.
pub type MmuLock<T> = lock_api::RwLock<RawMmuLock, T>;
/// The proof that the lock is held for writing.
pub type WriteGuard<'a, T> = lock_api::RwLockWriteGuard<'a, RawMmuLock, T>;
/// The proof that the lock is held for reading.
pub type ReadGuard<'a, T> = lock_api::RwLockReadGuard<'a, RawMmuLock, T>;

/// Takes the lock, and tells whether it had to wait: KVM's `mmu_lock` contention, seen by the waiter.
///
/// ```
/// use shadow_mmu_sys::lock::{MmuLock, RawMmuLock, lock_observed};
///
/// let state = MmuLock::from_raw(RawMmuLock::ticket(), 1);
/// let (mut guard, contended) = lock_observed(&state);
/// *guard += 1;
/// assert!(!contended);
/// assert!(state.is_locked_exclusive() && state.try_read().is_none());
/// ```
#[inline]
pub fn lock_observed<T: ?Sized>(lock: &MmuLock<T>) -> (WriteGuard<'_, T>, bool) {
    // SAFETY: the raw lock is only acquired here, which leaves every guard valid.
    let (held, contended) = unsafe { lock.raw() }.acquire();
    // SAFETY: this is the state of the exclusive acquisition just made, and no other guard stands for it.
    (unsafe { lock.make_write_guard_unchecked(held) }, contended)
}

/// As [`lock_observed`], for reading.
#[inline]
pub fn read_observed<T: ?Sized>(lock: &MmuLock<T>) -> (ReadGuard<'_, T>, bool) {
    // SAFETY: as in `lock_observed`.
    let (held, contended) = unsafe { lock.raw() }.acquire_shared();
    // SAFETY: this is the state of the shared acquisition just made, and no other guard stands for it.
    (unsafe { lock.make_read_guard_unchecked(held) }, contended)
}

/// A ticket lock as `lock_api` takes it.
#[derive(Debug)]
pub struct RawTicket(TicketLock);

/// Data under a fair lock of one line: for what is rarely waited for, as a vCPU is (KVM: `vcpu->mutex`).
pub type Mutex<T> = lock_api::Mutex<RawTicket, T>;
/// The proof that a [`Mutex`] is held.
pub type Guard<'a, T> = lock_api::MutexGuard<'a, RawTicket, T>;

// SAFETY: as for `RawMmuLock`: a grant is of one acquisition, is won by Acquire and given back by Release.
unsafe impl RawMutex for RawTicket {
    const INIT: Self = Self(TicketLock::new());
    type Guard = Grant;

    fn lock(&self) -> Grant {
        self.0.acquire().0
    }

    #[inline]
    fn try_lock(&self) -> Option<Grant> {
        self.0.try_acquire()
    }

    #[inline]
    unsafe fn unlock(&self, grant: Grant) {
        self.0.release(grant);
    }

    fn is_locked(&self) -> bool {
        self.0.is_held()
    }
}

#[cfg(test)]
mod tests;
