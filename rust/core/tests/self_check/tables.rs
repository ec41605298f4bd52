//! A small, crowded guest with tables for every paging mode, and how to draw what is put into them.
//!
//! Tables of 4-byte entries and of 8-byte entries are apart: the A and D bits that a walk sets in one width are frame bits of the
//! other, and no MMU tracks those.

use fastrand::Rng;

use super::walk::Mode;

pub(super) const LOW_BYTES: u64 = 2 << 20;
pub(super) const HIGH_SLOT: u64 = 1 << 30;
pub(super) const HIGH_BYTES: u64 = 64 << 10;
const OUTSIDE: u64 = 0x3000_0000;
const DATA: u64 = 0x80;
const DATA_FRAMES: u64 = 12;
/// The entry of every root, and of each table on the way, that leads to the window: memory one to one.
const WINDOW: u64 = 3;
const USED: u64 = 0x67;

/// What a frame is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Kind {
    /// A table of this level, of entries of 8 bytes.
    Wide(u32),
    /// PDPTRs.
    Pointers,
    /// A table of this level, of entries of 4 bytes.
    Narrow(u32),
    Data,
}

/// First frame and number of each kind of table.
const FRAMES: [(Kind, u64, u64); 8] = [
    (Kind::Wide(5), 0x10, 2),
    (Kind::Wide(4), 0x12, 3),
    (Kind::Wide(3), 0x15, 3),
    (Kind::Wide(2), 0x18, 4),
    (Kind::Wide(1), 0x1c, 5),
    (Kind::Pointers, 0x21, 3),
    (Kind::Narrow(2), 0x24, 3),
    (Kind::Narrow(1), 0x27, 5),
];
/// The tables of the window: levels 4 to 1 of 8-byte entries, level 1 of 4-byte ones.
const WINDOW_WIDE: [u64; 5] = [0, 0x33, 0x32, 0x31, 0x30];
const WINDOW_NARROW: u64 = 0x34;

fn frames(kind: Kind) -> core::ops::Range<u64> {
    let &(_, first, count) = FRAMES.iter().find(|(one, ..)| *one == kind).expect("a kind of table");
    first..first + count
}

/// What the frame at a gpa is.
pub(super) fn kind_of(gpa: u64) -> Kind {
    let frame = gpa >> 12;
    FRAMES
        .iter()
        .find(|&&(_, first, count)| (first..first + count).contains(&frame))
        .map_or(Kind::Data, |&(kind, ..)| kind)
}

/// Whether the window stands on this frame: nothing may be written there.
pub(super) fn is_of_the_window(gpa: u64) -> bool {
    (0x30..=WINDOW_NARROW).contains(&(gpa >> 12))
}

/// The guest of one machine.
#[derive(Debug)]
pub(super) struct Guest {
    pub(super) rng: Rng,
    pub(super) maxphyaddr: u32,
    /// The processor has protection keys.
    pub(super) keys: bool,
}

impl Guest {
    fn chance(&mut self, odds: f64) -> bool {
        self.rng.f64() < odds
    }

    fn choose<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.rng.usize(..from.len())]
    }

    fn one_of(&mut self, range: core::ops::Range<u64>) -> u64 {
        self.rng.u64(range)
    }

    /// The value of CR3 for a mode.
    pub(super) fn root(&mut self, mode: Mode) -> u64 {
        let frame = match mode {
            Mode::Off | Mode::Long4 => self.one_of(frames(Kind::Wide(4))),
            Mode::Long5 => self.one_of(frames(Kind::Wide(5))),
            Mode::Pae => self.one_of(frames(Kind::Pointers)),
            Mode::Bits32 => self.one_of(frames(Kind::Narrow(2))),
        };
        frame << 12 | self.choose(&[0, 0, 0x8, 0x18])
    }

    /// The entries of a table that addresses use.
    fn index(&mut self, kind: Kind) -> u64 {
        match kind {
            Kind::Pointers => self.rng.u64(..3),
            Kind::Wide(4 | 5) => self.choose(&[0, 1, 255, 256, 511]),
            Kind::Wide(_) | Kind::Data => self.choose(&[0, 1, 2, 511]),
            Kind::Narrow(2) => self.choose(&[0, 1, 511, 512, 1023]),
            Kind::Narrow(_) => self.choose(&[0, 1, 2, 1023]),
        }
    }

    /// One of a few hundred pages.
    pub(super) fn page(&mut self, mode: Mode) -> u64 {
        let index = |guest: &mut Self, level| match mode {
            Mode::Bits32 => guest.index(Kind::Narrow(level)),
            Mode::Pae if level == 3 => guest.index(Kind::Pointers),
            _ => guest.index(Kind::Wide(level)),
        };
        match mode {
            Mode::Off if self.chance(0.1) => OUTSIDE,
            Mode::Off => self.one_of(0x10..DATA + DATA_FRAMES) << 12,
            _ => {
                let levels = mode.top() + u32::from(mode == Mode::Pae);
                let gva = (1..=levels)
                    .map(|level| index(self, level) << (12 + mode.index_bits() * (level - 1)))
                    .fold(0, |gva, part| gva | part);
                canonical(mode, gva)
            }
        }
    }

    /// Where a mode's window shows a gpa below [`LOW_BYTES`].
    pub(super) fn window(mode: Mode, gpa: u64) -> u64 {
        match mode {
            Mode::Off => gpa,
            Mode::Bits32 => WINDOW << 22 | gpa,
            Mode::Pae => WINDOW << 30 | gpa,
            Mode::Long4 => WINDOW << 39 | gpa,
            Mode::Long5 => WINDOW << 48 | gpa,
        }
    }

    /// The gpa of an entry of some table, and what its table is.
    pub(super) fn place(&mut self) -> (u64, Kind) {
        let leaf = self.chance(0.5);
        let kind = match self.rng.u32(..4) {
            0 if leaf => Kind::Narrow(1),
            0 => Kind::Narrow(2),
            _ if leaf => Kind::Wide(1),
            _ => self.choose(&[Kind::Wide(5), Kind::Wide(4), Kind::Wide(3), Kind::Wide(2), Kind::Pointers]),
        };
        let bytes = if matches!(kind, Kind::Narrow(_)) { 4 } else { 8 };
        ((self.one_of(frames(kind)) << 12) + self.index(kind) * bytes, kind)
    }

    fn low_bits(&mut self) -> u64 {
        const CHANCES: [(u64, f64); 8] =
            [(1, 0.985), (2, 0.95), (4, 0.92), (0x20, 0.6), (0x40, 0.5), (8, 0.03), (0x10, 0.03), (0x100, 0.05)];
        CHANCES.iter().fold(0, |bits, &(bit, odds)| bits | if self.chance(odds) { bit } else { 0 })
    }

    fn page_frame(&mut self, tables: &[Kind]) -> u64 {
        match self.rng.u32(..100) {
            0..60 => self.one_of(DATA..DATA + DATA_FRAMES) << 12,
            60..90 => {
                let kind = self.choose(tables);
                self.one_of(frames(kind)) << 12
            }
            90..97 => HIGH_SLOT + (self.one_of(0..HIGH_BYTES >> 12) << 12),
            _ => OUTSIDE,
        }
    }

    /// An entry for a table of this kind, mostly one that leads somewhere.
    pub(super) fn entry(&mut self, kind: Kind) -> u64 {
        const ALIASED: [Kind; 8] = [
            Kind::Wide(1),
            Kind::Wide(1),
            Kind::Wide(2),
            Kind::Wide(3),
            Kind::Narrow(1),
            Kind::Narrow(2),
            Kind::Pointers,
            Kind::Wide(4),
        ];
        if self.chance(0.04) {
            return 0;
        }
        let low = self.low_bits();
        match kind {
            Kind::Data => self.rng.u64(..),
            Kind::Pointers => {
                let bad = if self.chance(0.003) { 1 << self.choose(&[1, 2, 5, 63]) } else { 0 };
                self.one_of(frames(Kind::Wide(2))) << 12 | 1 | bad
            }
            Kind::Narrow(1) => self.page_frame(&ALIASED) | low,
            Kind::Narrow(_) if self.chance(0.12) => {
                let odd = if self.chance(0.05) { self.choose(&[1 << 12, 1 << 13, 1 << 17, 1 << 21]) } else { 0 };
                self.choose(&[0, HIGH_SLOT]) | low | 0x80 | odd
            }
            Kind::Narrow(_) => {
                let leads = self.choose(&[Kind::Narrow(1), Kind::Narrow(1), Kind::Narrow(1), Kind::Narrow(2)]);
                self.one_of(frames(leads)) << 12 | low
            }
            Kind::Wide(level) => {
                let nx = if self.chance(0.03) { 1 << 63 } else { 0 };
                let reserved =
                    if self.chance(0.01) { 1 << self.choose(&[self.maxphyaddr.min(51), 51, 7, 52, 56, 62]) } else { 0 };
                // Reserved under PAE, whose tables these are too; ignored above the leaf.
                let key = if self.keys && self.chance(0.2) { self.rng.u64(..16) << 59 } else { 0 };
                let low = low | nx | reserved | key;
                if level == 1 {
                    return self.page_frame(&ALIASED) | low;
                }
                if level <= 3 && self.chance(0.12) {
                    let odd = if self.chance(0.05) { self.choose(&[1 << 12, 1 << 13, 1 << 17]) } else { 0 };
                    return self.choose(&[0, HIGH_SLOT]) | low | 0x80 | odd;
                }
                // Seldom a table of another level, perhaps itself.
                let leads = if self.chance(0.96) { level - 1 } else { self.rng.u32(1..=5) };
                self.one_of(frames(Kind::Wide(leads))) << 12 | low
            }
        }
    }

    /// A value for PKRU: it denies nothing, something to one key or to many, or it is none.
    pub(super) fn pkru(&mut self, key: u64) -> u64 {
        let bits = u64::from(self.rng.u32(..));
        match self.rng.u32(..16) {
            0 => bits << 32,
            1..5 => 0,
            5 => bits,
            6..12 => self.rng.u64(1..4) << (2 * key),
            _ => bits & u64::from(self.rng.u32(..)) & u64::from(self.rng.u32(..)),
        }
    }

    /// The 8-byte word at a place of a table: one entry, or two.
    pub(super) fn word(&mut self, kind: Kind) -> u64 {
        if matches!(kind, Kind::Narrow(_)) {
            self.entry(kind) & 0xffff_ffff | self.entry(kind) << 32
        } else {
            self.entry(kind)
        }
    }

    /// Every word of every table, the window among them.
    pub(super) fn setup(&mut self) -> Vec<(u64, u64)> {
        let mut words = Vec::new();
        for (kind, first, count) in FRAMES {
            for frame in first..first + count {
                for _ in 0..8 {
                    let bytes = if matches!(kind, Kind::Narrow(_)) { 4 } else { 8 };
                    let at = (self.index(kind) * bytes) & !7;
                    words.push((frame << 12 | at, self.word(kind)));
                }
                let window = match kind {
                    Kind::Wide(level @ (4 | 5)) => WINDOW_WIDE[level as usize - 1] << 12 | USED,
                    Kind::Pointers => WINDOW_WIDE[2] << 12 | 1,
                    // The upper half of the word that has the entry.
                    Kind::Narrow(2) => WINDOW_NARROW << 44 | USED << 32,
                    _ => continue,
                };
                let bytes = if matches!(kind, Kind::Narrow(_)) { 4 } else { 8 };
                words.push((frame << 12 | ((WINDOW * bytes) & !7), window));
            }
        }
        for level in 2..=4 {
            words.push((WINDOW_WIDE[level] << 12, WINDOW_WIDE[level - 1] << 12 | USED));
        }
        for frame in 0..512 {
            words.push(((WINDOW_WIDE[1] << 12) + frame * 8, frame << 12 | USED));
        }
        for pair in 0..512 {
            let [low, high] = [2 * pair, 2 * pair + 1].map(|frame| frame << 12 | USED);
            words.push(((WINDOW_NARROW << 12) + pair * 8, low | high << 32));
        }
        words
    }
}

fn canonical(mode: Mode, gva: u64) -> u64 {
    if !mode.is_long() {
        return gva;
    }
    let unused = 64 - (12 + 9 * mode.top());
    ((gva << unused).cast_signed() >> unused).cast_unsigned()
}
