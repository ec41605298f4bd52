//! Classifies each CR3 write by whether it cost the `mmu_lock` (docs/machine.md, 8).
//!
//! A write is lock-free only if neither it nor what it caused took the lock before the next guest access, so its
//! class is settled at the next guest entry, or at the next CR3 write if that comes first.

use std::time::Instant;

use bitflags::bitflags;

use crate::stats::VcpuStats;

bitflags! {
    /// What is known of an open write. One word: what is stored in parts and loaded in one waits for the stores.
    #[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
    struct Open: u32 {
        /// A write is open.
        const SOME = 1;
        /// It is counted.
        const COUNTED = 2;
        /// It wrote the value that was there.
        const SAME = 4;
        /// It found a cached root.
        const HIT = 8;
        /// It, or what it caused, took the lock.
        const LOCKED = 16;
    }
}

/// The CR3 write whose class is open, if any.
#[derive(Debug, Default)]
pub(crate) struct Cr3Watch {
    open: Open,
    /// The first write of a vCPU is not counted.
    begun: bool,
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
        let mut open = match result {
            SwitchResult::Same => Open::SOME | Open::SAME,
            SwitchResult::Hit => Open::SOME | Open::HIT,
            SwitchResult::Miss => Open::SOME,
        };
        open.set(Open::COUNTED, self.begun);
        open.set(Open::LOCKED, locked);
        self.open = open;
        self.nanos = stopwatch.nanos();
        self.begun = true;
    }

    /// Adds what the guest entry after the write did.
    #[inline]
    pub(crate) fn entered(&mut self, locked: bool, loaded: bool, stopwatch: &Stopwatch) {
        if !self.open.is_empty() {
            let mut open = self.open;
            open.set(Open::LOCKED, locked || open.contains(Open::LOCKED));
            open.set(Open::HIT, !loaded && open.contains(Open::HIT));
            self.open = open;
            self.nanos += stopwatch.nanos();
        }
    }

    /// Settles the open class.
    #[inline]
    pub(crate) fn settle(&mut self, stats: &mut VcpuStats) {
        let open = self.open;
        self.open = Open::empty();
        if !open.contains(Open::COUNTED) {
            return;
        }
        let cr3 = &mut stats.cr3;
        cr3.writes += 1;
        let locked = open.contains(Open::LOCKED);
        if open.contains(Open::SAME) {
            cr3.same += 1;
            cr3.same_locked += u64::from(locked);
        } else if !locked {
            cr3.lockless += 1;
        } else if open.contains(Open::HIT) {
            cr3.locked_unsync += 1;
        } else {
            cr3.locked_miss += 1;
        }
        if let Some(times) = &mut stats.cr3_write {
            times.record(self.nanos);
        }
    }
}
