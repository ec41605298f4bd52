//! Which frames of a machine are read-only memory (E107).

use core::ops::Range;

use fastrand::Rng;
use shadow_mmu::{Gpa, MemoryRegion};

use super::{
    tables::{HIGH_BYTES, HIGH_SLOT, LOW_BYTES},
    walk::{End, Walk},
};

/// Frames that tables and data are in.
const USED: Range<u64> = 0x10..0x8c;
/// How many machines have read-only memory.
const ODDS: f64 = 0.35;

/// The read-only part of a guest's memory.
#[derive(Debug)]
pub(super) struct Rom {
    low: Range<u64>,
    high: bool,
}

impl Rom {
    /// Draws it: a few frames of tables or of data, and sometimes the high slot. Apart from all else that is drawn.
    pub(super) fn draw(seed: u64) -> Self {
        let mut rng = Rng::with_seed(!seed);
        if rng.f64() >= ODDS {
            return Self { low: 0..0, high: false };
        }
        let first = rng.u64(USED);
        Self { low: first..first + rng.u64(1..6), high: rng.bool() }
    }

    /// The memslots of a machine that has it.
    pub(super) fn slots(&self) -> Vec<MemoryRegion> {
        let (start, end) = (self.low.start << 12, self.low.end << 12);
        let piece = |read_only, range: Range<u64>| MemoryRegion {
            gpa: Gpa::new(range.start),
            bytes: range.end - range.start,
            read_only,
        };
        let all = [
            piece(false, 0..start),
            piece(true, start..end),
            piece(false, end..LOW_BYTES),
            piece(self.high, HIGH_SLOT..HIGH_SLOT + HIGH_BYTES),
        ];
        all.into_iter().filter(|region| region.bytes != 0).collect()
    }

    /// Whether a walk ends in it with a write, or would have set A in it.
    pub(super) fn meets(&self, walk: &Walk, write: bool) -> bool {
        let End::Gpa(gpa) = walk.end else { return false };
        let unmarked = |&(at, _, entry): &(u64, usize, u64)| self.has(at) && entry & 0x20 == 0;
        write && self.has(gpa) || walk.used.iter().any(unmarked)
    }

    /// Whether the guest may only read what is at a gpa.
    pub(super) fn has(&self, gpa: u64) -> bool {
        self.low.contains(&(gpa >> 12)) || self.high && (HIGH_SLOT..HIGH_SLOT + HIGH_BYTES).contains(&gpa)
    }
}
