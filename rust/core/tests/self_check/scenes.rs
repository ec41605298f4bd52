//! What is done to a machine: scenes of a few operations each, drawn from its guest.

use shadow_mmu::regs::{
    CR0_PG as PG, CR0_WP as WP, CR4_LA57 as LA57, CR4_PAE as PAE, CR4_PGE as PGE, CR4_PKE as PKE, CR4_PSE as PSE,
    CR4_SMAP as SMAP, CR4_SMEP as SMEP, ControlRegs, EFER_LME as LME, EFER_NXE as NXE,
};
use shadow_mmu::{Op, OpKind, Outcome};

use super::{
    machine::{AC, IMPLICIT, Machine, USER, VCPUS},
    tables::{self, Guest, Kind, LOW_BYTES},
    walk::{Access, End, Mode},
};

const CR0: u64 = 0x8005_0033;
const SCE: u64 = 1;

impl Machine {
    /// One of them.
    pub(super) fn scene(&mut self) {
        let vcpu = self.guest.rng.usize(..VCPUS);
        match self.guest.rng.u32(..100) {
            0..22 => self.judged(vcpu),
            22..46 => {
                let gva = self.page(vcpu);
                self.access(vcpu, gva, false);
            }
            46..62 => self.guest_edit(vcpu),
            62..67 => self.host_edit(vcpu),
            67..77 => self.switch(vcpu),
            77..80 => {
                let gva = self.page(vcpu);
                self.invlpg(vcpu, gva);
            }
            80..84 => self.registers(vcpu),
            84..86 => self.refused(vcpu),
            86 => {
                let (gpa, _) = self.guest.place();
                let _ = self.execute(vcpu, Op::new(OpKind::ZapGfn, gpa >> 12));
            }
            87 => self.flood(vcpu),
            88..95 => self.remap(vcpu),
            95 | 96 => self.keys(vcpu),
            _ => {
                let (before, mode) = (self.mode(vcpu), self.guest.rng.choice(Mode::ALL).unwrap());
                self.change_mode(vcpu, mode);
                let after = self.mode(vcpu);
                self.figures.changes.extend((before != after).then_some((before, after)));
            }
        }
    }

    fn page(&mut self, vcpu: usize) -> u64 {
        let mode = self.mode(vcpu);
        if self.guest.rng.f64() < 0.6 {
            let known: Vec<u64> = self.recent.iter().filter(|(of, _)| *of == mode).map(|&(_, gva)| gva).collect();
            if let Some(gva) = self.guest.rng.choice(known) {
                return gva;
            }
        }
        let gva = self.guest.page(mode);
        if self.recent.len() == 24 {
            self.recent.pop_front();
        }
        self.recent.push_back((mode, gva));
        gva
    }

    fn invlpg(&mut self, vcpu: usize, gva: u64) {
        let outcome = self.execute(vcpu, Op::new(OpKind::Invlpg, gva));
        assert_eq!(outcome, Outcome::Ok(0), "{}", self.told());
    }

    fn judged(&mut self, vcpu: usize) {
        let gva = self.page(vcpu);
        self.invlpg(vcpu, gva);
        self.access(vcpu, gva, true);
    }

    /// Makes an access to a page; `fresh`: it was invalidated.
    fn access(&mut self, vcpu: usize, page: u64, fresh: bool) {
        let rng = &mut self.guest.rng;
        let kinds = [OpKind::Read, OpKind::Write, OpKind::Fetch, OpKind::Load];
        let kind = rng.choice(kinds).unwrap();
        let mut flags = 0;
        if rng.u32(..20) == 0 && kind == OpKind::Read {
            flags = IMPLICIT;
        } else if rng.f64() < 0.3 {
            flags = USER;
        }
        flags |= if rng.bool() { AC } else { 0 };
        let mut op = Op::new(kind, page | (rng.u64(..0x200) << 3)).with_flags(flags);
        op.aux = if kind == OpKind::Load { 8 } else { 0 };
        self.check(vcpu, op, fresh);
    }

    /// Stores to a table through the window, which is invalidated first; what was mapped by it may be stale after it.
    fn guest_edit(&mut self, vcpu: usize) {
        let (place, kind) = self.guest.place();
        self.store(vcpu, place, kind);
        if self.guest.rng.bool() {
            let other = self.guest.rng.usize(..VCPUS);
            let gva = self.page(other);
            let judged = self.guest.rng.bool();
            if judged {
                self.invlpg(other, gva);
            }
            self.access(other, gva, judged);
        }
    }

    /// Uses a page, changes the entry that maps it, uses it again as it may be cached, and then as it must be.
    fn remap(&mut self, vcpu: usize) {
        let gva = self.page(vcpu);
        self.access(vcpu, gva, false);
        let Some((place, _)) = self.leaf(vcpu, gva) else { return };
        if place < LOW_BYTES && tables::kind_of(place) != Kind::Data {
            self.store(vcpu, place, tables::kind_of(place));
            self.access(vcpu, gva, false);
            self.invlpg(vcpu, gva);
            self.access(vcpu, gva, true);
        }
    }

    fn store(&mut self, vcpu: usize, place: u64, kind: Kind) {
        let narrow = matches!(kind, Kind::Narrow(_));
        let size = match self.guest.rng.u32(..10) {
            0 => 1,
            1 => 4,
            2 if narrow => 8,
            _ if narrow => 4,
            _ => 8,
        };
        self.store_value(vcpu, if size == 8 { place & !7 } else { place }, size, None);
    }

    /// Stores through the window: this value if it leads there, else what may be where it leads.
    fn store_value(&mut self, vcpu: usize, place: u64, size: u32, value: Option<u64>) {
        let gva = Guest::window(self.mode(vcpu), place);
        self.invlpg(vcpu, gva);
        let access = Access { gva, write: true, fetch: false, user: true, lifts_smap: false };
        // Where it arrives says what may be stored: entries of the right width.
        let End::Gpa(gpa) = self.view(vcpu).walk(&access).end else { return };
        if tables::is_of_the_window(gpa) {
            return;
        }
        let drawn = self.guest.word(tables::kind_of(gpa));
        let value = value.filter(|_| gpa == place).unwrap_or(drawn);
        let mut op = Op::new(OpKind::Store, gva).with_flags(USER);
        (op.aux, op.value) = (size, value);
        self.check(vcpu, op, true);
    }

    fn flood(&mut self, vcpu: usize) {
        let (place, kind) = self.guest.place();
        for _ in 0..self.guest.rng.u32(2..6) {
            self.store(vcpu, place, kind);
        }
    }

    fn host_edit(&mut self, vcpu: usize) {
        let (place, kind) = self.guest.place();
        let mut op = Op::new(OpKind::HostStore, place & !7);
        op.value = self.guest.word(kind);
        assert_eq!(self.execute(vcpu, op), Outcome::Ok(0), "{}", self.told());
    }

    /// Writes CR3, and judges an access without another invalidation if the guest did it: that invalidates all.
    fn switch(&mut self, vcpu: usize) {
        let mode = self.mode(vcpu);
        let root = if self.guest.rng.u32(..8) == 0 { self.regs[vcpu].cr3 } else { self.guest.root(mode) };
        let host = self.guest.rng.u32(..20) == 0;
        let done = self.write_cr3(vcpu, root, host);
        let gva = self.page(vcpu);
        self.access(vcpu, gva, done && !host);
    }

    fn registers(&mut self, vcpu: usize) {
        let (regs, host) = (self.regs[vcpu], self.guest.rng.bool());
        match self.guest.rng.u32(..6) {
            0 | 1 => self.write_cr0(vcpu, regs.cr0 ^ WP, host),
            2 => self.write_efer(vcpu, regs.efer & !(1 << 10) ^ NXE, host),
            _ => {
                let keys = if self.guest.keys { PKE } else { SMEP };
                let bit = self.guest.rng.choice([SMEP, SMAP, PGE, SMEP | SMAP, keys]).unwrap();
                self.write_cr4(vcpu, regs.cr4 ^ bit, host)
            }
        };
    }

    /// Uses a page, and uses it again after changes of its key, of the rights of keys and of what they depend on.
    fn keys(&mut self, vcpu: usize) {
        let gva = self.page(vcpu);
        self.invlpg(vcpu, gva);
        self.access(vcpu, gva, true);
        let cr4 = self.regs[vcpu].cr4;
        if self.guest.keys {
            match self.guest.rng.u32(..6) {
                0 => self.converted(vcpu, gva),
                1 => {
                    self.write_cr4(vcpu, cr4 & !PKE, false);
                }
                _ => {
                    self.write_cr4(vcpu, cr4 | PKE, false);
                }
            }
        }
        self.invlpg(vcpu, gva);
        for _ in 0..self.guest.rng.u32(2..5) {
            // No invalidation: they hold from the next access on.
            let (key, host) =
                (self.leaf(vcpu, gva).map_or(0, |(_, leaf)| leaf >> 59 & 15), self.guest.rng.u32(..8) == 0);
            let value = self.guest.pkru(key);
            self.write_pkru(vcpu, value, host);
            self.access(vcpu, gva, true);
            if self.guest.rng.u32(..3) == 0 {
                self.rekey(vcpu, gva);
            }
        }
    }

    /// Changes nothing but the key of a page.
    fn rekey(&mut self, vcpu: usize, gva: u64) {
        let Some((place, leaf)) = self.leaf(vcpu, gva) else { return };
        let is_table = place < LOW_BYTES && matches!(tables::kind_of(place), Kind::Wide(_));
        if self.guest.keys && self.mode(vcpu).is_long() && is_table {
            let value = leaf ^ self.guest.rng.u64(1..16) << 59;
            self.store_value(vcpu, place, 8, Some(value));
            self.access(vcpu, gva, false);
            self.invlpg(vcpu, gva);
            self.access(vcpu, gva, true);
        }
    }

    /// Lets a supervisor write to a page under WP = 0 while keys are off, and turns them on against it.
    fn converted(&mut self, vcpu: usize, gva: u64) {
        let ControlRegs { cr0, cr4, .. } = self.regs[vcpu];
        if self.write_cr0(vcpu, cr0 & !WP, false) && self.write_cr4(vcpu, cr4 & !PKE, false) {
            self.invlpg(vcpu, gva);
            self.check(vcpu, Op::new(OpKind::Write, gva).with_flags(AC), true);
        }
        if self.write_cr4(vcpu, cr4 | PKE, false) {
            self.write_pkru(vcpu, 0x5555_5555, false);
            self.invlpg(vcpu, gva);
            self.check(vcpu, Op::new(OpKind::Read, gva).with_flags(AC), true);
        }
        self.write_cr0(vcpu, cr0, false);
    }

    /// The last entry that a walk for an address uses: where it is, and what it holds.
    fn leaf(&self, vcpu: usize, gva: u64) -> Option<(u64, u64)> {
        let access = Self::access_of(&Op::new(OpKind::Read, gva));
        self.view(vcpu).walk(&access).used.last().map(|&(place, _, entry)| (place, entry))
    }

    fn refused(&mut self, vcpu: usize) {
        let (regs, gva) = (self.regs[vcpu], self.page(vcpu));
        let long = self.mode(vcpu).is_long();
        let (kind, value) = match self.guest.rng.u32(..6) {
            0 => (OpKind::WriteCr0, regs.cr0 & !(1 << 30) | 1 << 29),
            1 => (OpKind::WriteCr4, regs.cr4 | 1 << 15),
            2 => (OpKind::WriteEfer, regs.efer | 1 << 12),
            3 if long => (OpKind::WriteCr4, regs.cr4 ^ LA57),
            4 if long => (OpKind::WriteCr3, regs.cr3 | 1 << self.guest.maxphyaddr),
            _ => {
                self.access(vcpu, gva ^ 1 << 61, false);
                return;
            }
        };
        assert_eq!(self.execute(vcpu, Op::new(kind, value)), Outcome::GeneralProtection, "{}", self.told());
        assert_eq!(*self.vm.cpu(vcpu).unwrap().regs(), regs, "{}", self.told());
        self.figures.refused += 1;
    }

    /// Takes a vCPU to another mode: with paging off between, turned on by the guest itself; or in steps as a host sets registers.
    pub(super) fn change_mode(&mut self, vcpu: usize, mode: Mode) {
        let before = self.regs[vcpu];
        let cr4 = before.cr4 & (SMEP | SMAP | PGE | PKE)
            | self.guest.rng.choice([0, PSE]).unwrap()
            | match mode {
                Mode::Off => self.guest.rng.choice([0, PAE]).unwrap(),
                Mode::Bits32 => 0,
                Mode::Pae | Mode::Long4 => PAE,
                Mode::Long5 => PAE | LA57,
            };
        let efer = SCE | before.efer & NXE | if mode.is_long() { LME } else { 0 };
        let cr0 = CR0 & !WP | before.cr0 & WP;
        let cr3 = self.guest.root(mode);
        if self.guest.rng.bool() && mode != Mode::Off && self.mode(vcpu) != Mode::Off {
            self.change_mode_in_place(vcpu, mode, [cr3, cr4, efer]);
            return;
        }
        // Long mode is left by a reset only: a guest's own write would fault.
        if self.mode(vcpu) != Mode::Off {
            let host = self.mode(vcpu).is_long() || self.guest.rng.bool();
            self.write_cr0(vcpu, cr0 & !PG, host);
        }
        self.write_cr4(vcpu, cr4, false);
        self.write_efer(vcpu, efer, false);
        self.write_cr3(vcpu, cr3, false);
        if mode != Mode::Off {
            self.write_cr0(vcpu, cr0, false);
        }
    }

    /// The same with paging on all the time, as a host sets registers.
    fn change_mode_in_place(&mut self, vcpu: usize, mode: Mode, [cr3, cr4, efer]: [u64; 3]) {
        if mode == Mode::Pae && self.mode(vcpu) != Mode::Pae {
            // Nothing is accessed until the PDPTRs are loaded from there.
            self.write_cr3(vcpu, cr3, true);
        }
        // EFER first into long mode, CR4 first out of it: so none but PAE itself leads through PAE.
        let efer_at = usize::from(!mode.is_long());
        let done = (0..2).all(|step| {
            if step == efer_at { self.write_efer(vcpu, efer, true) } else { self.write_cr4(vcpu, cr4, true) }
        });
        let mode = if done { mode } else { self.mode(vcpu) };
        let cr3 = if done { cr3 } else { self.guest.root(mode) };
        self.write_cr3(vcpu, cr3, false);
    }
}
