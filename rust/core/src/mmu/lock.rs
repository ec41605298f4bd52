//! The `mmu_lock`: taken for a reason, counted per vCPU, held as a value.
//!
//! The lock itself is a raw lock of `shadow-mmu-sys` behind `lock_api`; its kind is chosen here, when the machine is made.

use core::fmt;
use std::time::Instant;

use shadow_mmu_sys::lock::{self, RawMmuLock, WriteGuard, lock_observed};

use super::{MmuCx, MmuState, Shared};
use crate::{config::LockKind, stats::LockReason};

/// The `mmu_lock` and what it protects.
pub(super) struct MmuLock(lock::MmuLock<MmuState>);

impl fmt::Debug for MmuLock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("MmuLock")
    }
}

impl MmuLock {
    pub(super) fn new(kind: LockKind, state: MmuState) -> Self {
        let raw = match kind {
            LockKind::Queued => RawMmuLock::queued(),
            LockKind::Ticket => RawMmuLock::ticket(),
            LockKind::Ttas => RawMmuLock::ttas(),
            LockKind::Mutex => RawMmuLock::mutex(),
            LockKind::RwLock => RawMmuLock::read_write(),
        };
        Self(lock::MmuLock::from_raw(raw, state))
    }
}

/// The `mmu_lock`, held on behalf of one vCPU or of the host.
pub(crate) struct MmuLocked<'a> {
    pub(crate) shared: &'a Shared,
    pub(crate) cx: &'a mut MmuCx,
    pub(crate) state: WriteGuard<'a, MmuState>,
    since: Option<Instant>,
}

impl fmt::Debug for MmuLocked<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MmuLocked(vcpu {:?})", self.cx.vcpu)
    }
}

impl Shared {
    /// Takes the `mmu_lock`.
    pub(crate) fn lock<'a>(&'a self, cx: &'a mut MmuCx, reason: LockReason) -> MmuLocked<'a> {
        cx.took_lock = true;
        let stats = &mut cx.stats.lock;
        stats.acquisitions[reason as usize] += 1;
        let asked = stats.times.as_ref().map(|_| Instant::now());
        let (state, contended) = lock_observed(&self.state.0);
        stats.contended += u64::from(contended);
        let since = asked.map(|asked| {
            let now = Instant::now();
            if let Some(times) = &mut stats.times {
                times.wait.record((now - asked).as_nanos() as u64);
            }
            now
        });
        MmuLocked { shared: self, cx, state, since }
    }
}

impl Shared {
    /// The locked state of a machine at rest, for those who look at it from outside: no reason, no count.
    pub(crate) fn peek(&self) -> WriteGuard<'_, MmuState> {
        self.state.0.write()
    }
}

impl Drop for MmuLocked<'_> {
    fn drop(&mut self) {
        if let (Some(since), Some(times)) = (self.since, &mut self.cx.stats.lock.times) {
            times.hold.record(since.elapsed().as_nanos() as u64);
        }
    }
}
