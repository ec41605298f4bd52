//! The `mmu_lock`: taken for a reason, counted per vCPU, held as a value.
//!
//! The lock itself is a raw lock of `shadow-mmu-sys` behind `lock_api`; its kind is chosen here, when the machine is made.

use core::fmt;
use std::time::Instant;

use shadow_mmu_sys::lock::{self, RawMmuLock, ReadGuard, WriteGuard, lock_observed, read_observed};

use super::{MmuCx, MmuState, Shared, view::MmuView, watch};
use crate::{
    config::LockKind,
    stats::{LockPhase, LockReason, LockUser},
};

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
    reason: LockReason,
    since: Option<Instant>,
}

/// The `mmu_lock`, shared with others who only look.
pub(crate) struct MmuReading<'a> {
    shared: &'a Shared,
    cx: &'a mut MmuCx,
    state: ReadGuard<'a, MmuState>,
    reason: LockReason,
    since: Option<Instant>,
}

impl fmt::Debug for MmuLocked<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MmuLocked(vcpu {:?})", self.cx.vcpu)
    }
}

impl fmt::Debug for MmuReading<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MmuReading(vcpu {:?})", self.cx.vcpu)
    }
}

impl Shared {
    /// Takes the `mmu_lock`.
    #[inline]
    pub(crate) fn lock<'a>(&'a self, cx: &'a mut MmuCx, reason: LockReason) -> MmuLocked<'a> {
        let asked = self.ask(cx, reason);
        let (state, contended) = lock_observed(&self.state.0);
        let since = self.took(cx, reason, LockPhase::Holding, contended, asked);
        MmuLocked { shared: self, cx, state, reason, since }
    }

    /// Takes the `mmu_lock` to look only. A kind that has no readers is taken alone.
    pub(crate) fn lock_shared<'a>(&'a self, cx: &'a mut MmuCx, reason: LockReason) -> MmuReading<'a> {
        let asked = self.ask(cx, reason);
        let (state, contended) = read_observed(&self.state.0);
        let readers = self.config.lock.has_readers();
        let phase = if readers { LockPhase::Sharing } else { LockPhase::Holding };
        let since = self.took(cx, reason, phase, contended, asked);
        cx.stats.lock.shared += u64::from(readers);
        MmuReading { shared: self, cx, state, reason, since }
    }

    #[inline]
    fn ask(&self, cx: &mut MmuCx, reason: LockReason) -> Option<Instant> {
        cx.took_lock = true;
        cx.stats.lock.acquisitions[reason as usize] += 1;
        self.watch.as_ref().map(|watch| watch.show(cx, LockPhase::Waiting, reason))
    }

    #[inline]
    fn took(
        &self,
        cx: &mut MmuCx,
        reason: LockReason,
        phase: LockPhase,
        contended: bool,
        asked: Option<Instant>,
    ) -> Option<Instant> {
        cx.stats.lock.contended += u64::from(contended);
        Some(Self::took_timed(self.watch.as_ref()?, cx, reason, phase, asked?))
    }

    #[inline(never)]
    fn took_timed(
        watch: &watch::LockWatch,
        cx: &mut MmuCx,
        reason: LockReason,
        phase: LockPhase,
        asked: Instant,
    ) -> Instant {
        let now = watch.show(cx, phase, reason);
        if let Some(times) = &mut cx.stats.lock.times {
            times.waited(now - asked, cx.vcpu, reason);
        }
        now
    }

    #[inline]
    fn gives_back(&self, cx: &mut MmuCx, reason: LockReason, since: Option<Instant>) {
        if let Some(since) = since {
            self.gives_back_timed(cx, reason, since);
        }
    }

    #[inline(never)]
    fn gives_back_timed(&self, cx: &mut MmuCx, reason: LockReason, since: Instant) {
        if let Some(times) = &mut cx.stats.lock.times {
            times.held(since.elapsed(), cx.vcpu, reason);
        }
        if let Some(watch) = &self.watch {
            watch.hide(cx);
        }
    }

    /// The locked state of a machine at rest, for those who look at it from outside: no reason, no count.
    pub(crate) fn peek(&self) -> ReadGuard<'_, MmuState> {
        self.state.0.read()
    }

    /// As [`peek`](Self::peek), for who takes something away.
    pub(crate) fn peek_mut(&self) -> WriteGuard<'_, MmuState> {
        self.state.0.write()
    }

    /// Who waits for and who holds the lock, if that is watched.
    pub(crate) fn lock_users(&self) -> Option<Vec<LockUser>> {
        self.watch.as_ref().map(watch::LockWatch::users)
    }
}

impl MmuReading<'_> {
    /// What there is to look at.
    pub(crate) fn view(&self) -> MmuView<'_> {
        MmuView { shared: self.shared, state: &self.state }
    }
}

impl MmuLocked<'_> {
    /// What there is to look at: whoever holds the lock alone may look too.
    pub(super) fn view(&self) -> MmuView<'_> {
        MmuView { shared: self.shared, state: &self.state }
    }
}

impl Drop for MmuLocked<'_> {
    #[inline]
    fn drop(&mut self) {
        self.shared.gives_back(self.cx, self.reason, self.since);
    }
}

impl Drop for MmuReading<'_> {
    fn drop(&mut self) {
        self.shared.gives_back(self.cx, self.reason, self.since);
    }
}
