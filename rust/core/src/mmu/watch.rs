//! Who waits for and who holds the `mmu_lock`: one word for each vCPU and one for the host, to be read at any time.
//!
//! Figures for a watchdog: a stuck lock must be explained without taking it. Off, it costs nothing.

use std::time::Instant;

use super::MmuCx;
use crate::{
    stats::{LockPhase, LockReason, LockUser},
    sync::{AtomicU64, Ordering},
};

/// Phase + 1 in 2 bits, reason in 6, since when in 56: nanoseconds of two years. 0 = nothing to do with the lock.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Slot(AtomicU64);

/// The words of a machine.
#[derive(Debug)]
pub(super) struct LockWatch {
    /// The clock of the words begins here.
    epoch: Instant,
    /// The vCPUs', then the host's.
    slots: Box<[Slot]>,
}

impl LockWatch {
    pub(super) fn new(vcpus: usize) -> Self {
        Self { epoch: Instant::now(), slots: (0..=vcpus).map(|_| Slot::default()).collect() }
    }

    fn slot(&self, cx: &MmuCx) -> &AtomicU64 {
        &self.slots[cx.vcpu.unwrap_or(self.slots.len() - 1)].0
    }

    /// Shows what the vCPU does from now on; returns the time.
    #[cold]
    pub(super) fn show(&self, cx: &MmuCx, phase: LockPhase, reason: LockReason) -> Instant {
        let now = Instant::now();
        let since = (now - self.epoch).as_nanos() as u64;
        let word = since << 8 | (reason as u64) << 2 | (phase as u64 + 1);
        // ORDERING(lock-watch): Relaxed: the word is complete in itself and nothing is concluded from it.
        self.slot(cx).store(word, Ordering::Relaxed);
        now
    }

    /// Shows that the vCPU has nothing to do with the lock any more.
    pub(super) fn hide(&self, cx: &MmuCx) {
        // ORDERING(lock-watch): as above.
        self.slot(cx).store(0, Ordering::Relaxed);
    }

    /// Everyone who waits or holds, vCPUs in order, then the host.
    pub(super) fn users(&self) -> Vec<LockUser> {
        let now = self.epoch.elapsed().as_nanos() as u64;
        let host = self.slots.len() - 1;
        let user = |(index, slot): (usize, &Slot)| {
            // ORDERING(lock-watch): as above.
            let word = slot.0.load(Ordering::Relaxed);
            let phase = *LockPhase::ALL.get((word as usize & 3).checked_sub(1)?)?;
            let reason = *LockReason::ALL.get(word as usize >> 2 & 63)?;
            let vcpu = (index != host).then_some(index);
            // A user that began after the clock was read has waited for 0 ns.
            Some(LockUser { vcpu, phase, reason, nanos: now.saturating_sub(word >> 8) })
        };
        self.slots.iter().enumerate().filter_map(user).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::VmConfig;

    #[test]
    fn a_word_says_who_does_what_for_what() {
        let watch = LockWatch::new(2);
        let config = VmConfig::default();
        let (vcpu, host) = (MmuCx::new(Some(1), &config), MmuCx::new(None, &config));
        assert_eq!(watch.users(), []);
        for phase in LockPhase::ALL {
            for reason in LockReason::ALL {
                watch.show(&vcpu, phase, reason);
                let users = watch.users();
                assert_eq!(users.len(), 1);
                assert_eq!((users[0].vcpu, users[0].phase, users[0].reason), (Some(1), phase, reason));
                assert!(users[0].nanos < 10_000_000_000);
            }
        }
        watch.show(&host, LockPhase::Waiting, LockReason::Host);
        assert_eq!(watch.users().iter().map(|user| user.vcpu).collect::<Vec<_>>(), [Some(1), None]);
        watch.hide(&vcpu);
        watch.hide(&host);
        assert_eq!(watch.users(), []);
    }
}
