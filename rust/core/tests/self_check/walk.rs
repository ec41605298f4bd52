//! A walk of the guest's tables as they are, by the rules of docs/machine.md, 5 and 7, and by nothing of the core.

use shadow_mmu::{CpuModel, Gpa, Vm, regs::ControlRegs};

/// What an access asks for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[expect(clippy::struct_excessive_bools, reason = "each is a bit of the instruction")]
pub(super) struct Access {
    pub(super) gva: u64,
    pub(super) write: bool,
    pub(super) fetch: bool,
    pub(super) user: bool,
    /// EFLAGS.AC with an explicit access: SMAP does not apply.
    pub(super) lifts_smap: bool,
}

/// Where a walk ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum End {
    Gpa(u64),
    /// The error code.
    Fault(u32),
    /// The address is not canonical: #GP.
    NotCanonical,
}

/// An entry that a walk used: where it is, how wide it is, what it held.
pub(super) type Used = (u64, usize, u64);

/// A walk: its end, and the entries that it used, the one that ended it last.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Walk {
    pub(super) end: End,
    pub(super) used: Vec<Used>,
}

/// The five paging modes.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub(super) enum Mode {
    Off,
    Bits32,
    Pae,
    Long4,
    Long5,
}

impl Mode {
    pub(super) const ALL: [Mode; 5] = [Mode::Off, Mode::Bits32, Mode::Pae, Mode::Long4, Mode::Long5];

    /// The mode that the registers select: CR0.PG, EFER.LMA, CR4.PAE, CR4.LA57.
    pub(super) fn of(regs: &ControlRegs) -> Mode {
        let [pg, lma, pae, la57] =
            [regs.cr0 >> 31, regs.efer >> 10, regs.cr4 >> 5, regs.cr4 >> 12].map(|bits| bits & 1 != 0);
        match (pg, lma, pae, la57) {
            (false, ..) => Mode::Off,
            (_, true, _, true) => Mode::Long5,
            (_, true, ..) => Mode::Long4,
            (_, _, true, _) => Mode::Pae,
            _ => Mode::Bits32,
        }
    }

    pub(super) fn is_long(self) -> bool {
        self >= Mode::Long4
    }

    /// Bytes of an entry.
    pub(super) fn entry_bytes(self) -> usize {
        if self == Mode::Bits32 { 4 } else { 8 }
    }

    /// Bits of an address that index one table.
    pub(super) fn index_bits(self) -> u32 {
        if self == Mode::Bits32 { 10 } else { 9 }
    }

    /// The level of the tables that CR3 leads to; under PAE of those that the PDPTRs lead to.
    pub(super) fn top(self) -> u32 {
        match self {
            Mode::Off => 0,
            Mode::Bits32 | Mode::Pae => 2,
            Mode::Long4 => 4,
            Mode::Long5 => 5,
        }
    }

    /// The address as an instruction of this mode forms it.
    pub(super) fn effective(self, gva: u64) -> u64 {
        if self.is_long() { gva } else { gva & 0xffff_ffff }
    }
}

/// Reads an entry; `None` where no memslot has it.
pub(super) fn read(vm: &Vm, gpa: u64, bytes: usize) -> Option<u64> {
    let mut word = [0; 8];
    vm.host_read(Gpa::new(gpa), &mut word[..bytes]).ok()?;
    Some(u64::from_le_bytes(word))
}

const fn bits(high: u32, low: u32) -> u64 {
    if high < low { 0 } else { (u64::MAX >> (63 - high)) & (u64::MAX << low) }
}

/// A vCPU as the walk sees it.
#[derive(Clone, Copy, Debug)]
pub(super) struct View<'a> {
    pub(super) vm: &'a Vm,
    pub(super) regs: ControlRegs,
    pub(super) pdptrs: [u64; 4],
    pub(super) cpu: CpuModel,
    /// As [`lenient`](Self::lenient) makes it.
    pub(super) is_lenient: bool,
}

impl View<'_> {
    pub(super) fn mode(&self) -> Mode {
        Mode::of(&self.regs)
    }

    fn nx(&self) -> bool {
        self.regs.efer >> 11 & 1 != 0
    }

    fn cr4(&self, bit: u32) -> bool {
        self.regs.cr4 >> bit & 1 != 0
    }

    /// The same with what the shadow tables cannot take back: EFER.NXE is in no role (C.1), nor what tells PAE from long mode, where
    /// bits 62:52 are ignored; and a supervisor's write under CR0.WP=0 makes its page a supervisor's, which SMAP lets through (B.5).
    pub(super) fn lenient(mut self) -> Self {
        self.is_lenient = true;
        self.regs.efer |= 1 << 11;
        if self.regs.cr0 >> 16 & 1 == 0 {
            self.regs.cr4 &= !(1 << 21);
        }
        self
    }

    fn reserved(&self, mode: Mode, level: u32, large: bool) -> u64 {
        if mode == Mode::Bits32 {
            return if large { bits(21, if self.cpu.pse36 { 17 } else { 13 }) } else { 0 };
        }
        let width = u32::from(self.cpu.maxphyaddr);
        let high = bits(if mode == Mode::Pae && !self.is_lenient { 62 } else { 51 }, width)
            | if self.nx() { 0 } else { 1 << 63 };
        match level {
            4.. => high | 1 << 7,
            3 if large => high | bits(29, 13) | if self.cpu.gib_pages { 0 } else { 1 << 7 },
            2 if large => high | bits(20, 13),
            _ => high,
        }
    }

    fn denied(&self, access: &Access, [write, user, exec]: [bool; 3]) -> bool {
        let supervisor_there = user && !access.user;
        (access.write && !write && (access.user || self.regs.cr0 >> 16 & 1 != 0))
            || (access.user && !user)
            || (access.fetch && !exec && self.nx())
            || (access.fetch && supervisor_there && self.cr4(20))
            || (!access.fetch && supervisor_there && self.cr4(21) && !access.lifts_smap)
    }

    /// Protection keys: those of the leaf, of data accesses to user pages (CR4.PKE, long mode).
    fn denied_by_key(&self, access: &Access, user: bool, leaf: u64) -> bool {
        let rights = self.regs.pkru >> (2 * (leaf >> 59 & 15));
        let writes = access.write && (access.user || self.regs.cr0 >> 16 & 1 != 0);
        self.cr4(22) && self.mode().is_long() && user && !access.fetch && (rights & 1 != 0 || rights & 2 != 0 && writes)
    }

    /// Walks for one access.
    pub(super) fn walk(&self, access: &Access) -> Walk {
        let mode = self.mode();
        let gva = mode.effective(access.gva);
        let mut used = Vec::new();
        let sign = 11 + 9 * mode.top();
        if mode.is_long() && !matches!(gva.cast_signed() >> sign, 0 | -1) {
            return Walk { end: End::NotCanonical, used };
        }
        if mode == Mode::Off {
            return Walk { end: End::Gpa(gva), used };
        }
        let tells_fetch = access.fetch && (self.nx() || self.cr4(20));
        let code = u32::from(access.write) << 1 | u32::from(access.user) << 2 | u32::from(tells_fetch) << 4;
        let root = if mode == Mode::Pae { self.pdptrs[(gva >> 30) as usize] } else { self.regs.cr3 | 1 };
        let mut end = End::Fault(code);
        let mut entry = root;
        let mut rights = [true; 3];
        for level in (1..=mode.top()).rev() {
            if entry & 1 == 0 {
                break;
            }
            let shift = 12 + mode.index_bits() * (level - 1);
            let index = gva >> shift & ((1 << mode.index_bits()) - 1);
            let at = (entry & bits(51, 12)) | (index * mode.entry_bytes() as u64);
            let Some(found) = read(self.vm, at, mode.entry_bytes()) else { break };
            entry = found;
            used.push((at, mode.entry_bytes(), entry));
            if entry & 1 == 0 {
                break;
            }
            let sized = entry >> 7 & 1 != 0 && (level == 2 || level == 3) && (mode != Mode::Bits32 || self.cr4(4));
            // Bit 7 of an entry of level 4 or 5 is reserved, and not a size.
            if entry & self.reserved(mode, level, sized) != 0 {
                end = End::Fault(code | 1 | 8);
                break;
            }
            rights =
                [rights[0] && entry >> 1 & 1 != 0, rights[1] && entry >> 2 & 1 != 0, rights[2] && entry >> 63 == 0];
            if sized || level == 1 {
                let within = (1_u64 << shift) - 1;
                let mut base = entry & bits(51, 12) & !within;
                if mode == Mode::Bits32 && level == 2 {
                    base |= (entry >> 13 & 0xf) << 32;
                }
                end = if self.denied_by_key(access, rights[1], entry) {
                    End::Fault(code | 1 | 32)
                } else if self.denied(access, rights) {
                    End::Fault(code | 1)
                } else {
                    End::Gpa(base | gva & within)
                };
                break;
            }
        }
        Walk { end, used }
    }
}
