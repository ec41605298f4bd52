//! Classifies each CR3 write by whether it cost the `mmu_lock` (docs/machine.md, 8).
//!
//! A write is lock-free only if neither it nor what it caused took the lock before the next guest access, so its
//! class is settled at the next guest entry, or at the next CR3 write if that comes first.

use std::time::Instant;

use crate::stats::VcpuStats;

/// The CR3 write whose class is open, if any.
#[derive(Debug, Default)]
pub(crate) struct Cr3Watch {
    open: Option<Open>,
    /// The first write of a vCPU is not counted.
    begun: bool,
}

#[derive(Debug)]
struct Open {
    counted: bool,
    result: SwitchResult,
    locked: bool,
    nanos: u64,
}

/// What the switch itself found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum SwitchResult {
    /// The value that was there.
    Same,
    /// A cached root.
    Hit,
    /// No cached root.
    Miss,
}

/// A running measurement, if times are wanted.
#[derive(Debug)]
pub(crate) struct Stopwatch(Option<Instant>);

impl Stopwatch {
    pub(crate) fn start(stats: &VcpuStats) -> Self {
        Self(stats.cr3_write.as_ref().map(|_| Instant::now()))
    }

    fn nanos(&self) -> u64 {
        self.0.map_or(0, |since| since.elapsed().as_nanos() as u64)
    }
}

impl Cr3Watch {
    /// Opens the class of a write that has just been made.
    #[inline]
    pub(crate) fn open(&mut self, result: SwitchResult, locked: bool, stopwatch: &Stopwatch) {
        self.open = Some(Open { counted: self.begun, result, locked, nanos: stopwatch.nanos() });
        self.begun = true;
    }

    /// Adds what the guest entry after the write did.
    pub(crate) fn entered(&mut self, locked: bool, loaded: bool, stopwatch: &Stopwatch) {
        if let Some(open) = &mut self.open {
            open.locked |= locked;
            if loaded && open.result == SwitchResult::Hit {
                open.result = SwitchResult::Miss;
            }
            open.nanos += stopwatch.nanos();
        }
    }

    /// Settles the open class.
    #[inline]
    pub(crate) fn settle(&mut self, stats: &mut VcpuStats) {
        let Some(open) = self.open.take().filter(|open| open.counted) else { return };
        let cr3 = &mut stats.cr3;
        cr3.writes += 1;
        match (open.result, open.locked) {
            (SwitchResult::Same, locked) => {
                cr3.same += 1;
                cr3.same_locked += u64::from(locked);
            }
            (SwitchResult::Hit | SwitchResult::Miss, false) => cr3.lockless += 1,
            (SwitchResult::Miss, true) => cr3.locked_miss += 1,
            (SwitchResult::Hit, true) => cr3.locked_unsync += 1,
        }
        if let Some(times) = &mut stats.cr3_write {
            times.record(open.nanos);
        }
    }
}
