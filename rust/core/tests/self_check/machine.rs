//! One machine under random operations, each access held against a walk of the guest's tables as they are.
//!
//! A translation may be stale until its page is invalidated, so an access is *judged* in full right after an INVLPG of its page on its
//! vCPU, or after a CR3 write: then address, error code, loaded and stored values, and the A and D bits of every entry must be those
//! of a fresh walk. Any other access may reach an old page; but its faults must be those of a fresh walk too, for nothing that
//! faults is ever cached.

use std::collections::{BTreeSet, VecDeque};

use shadow_mmu::regs::{
    CR0_PG as PG, CR4_PAE as PAE, CR4_PGE as PGE, CR4_PKE as PKE, CR4_PSE as PSE, CR4_SMEP as SMEP, ControlRegs,
    EFER_LME as LME,
};
use shadow_mmu::{FaultCode, Gpa, Gva, Op, OpKind, Outcome, Vm, VmConfig};

use super::{
    rom::Rom,
    tables::{self, Guest, Kind},
    walk::{self, Access, End, Mode, View, Walk},
};

pub(super) const VCPUS: usize = 2;
pub(super) const USER: u8 = 1;
pub(super) const AC: u8 = 2;
pub(super) const IMPLICIT: u8 = 4;
/// Operations of which a failure tells.
const TOLD: usize = 24;

/// What a run did.
#[derive(Clone, Default, Debug)]
pub(super) struct Figures {
    pub(super) operations: u64,
    pub(super) judged: u64,
    pub(super) judged_ok: u64,
    pub(super) judged_faults: u64,
    pub(super) denied_by_key: u64,
    pub(super) mmio: u64,
    /// Accesses that a read-only memslot made other than they were: writes to it, walks that left A clear in it.
    pub(super) of_rom: u64,
    /// Accesses without an invalidation before them that reached what a walk does not.
    pub(super) stale: u64,
    /// Judged accesses that reached what the shadow tables cannot take back ([`View::lenient`]).
    pub(super) lenient: u64,
    pub(super) refused: u64,
    /// Changes of the paging mode.
    pub(super) changes: BTreeSet<(Mode, Mode)>,
}

impl Figures {
    pub(super) fn join(&mut self, other: Figures) {
        self.operations += other.operations;
        self.judged += other.judged;
        self.judged_ok += other.judged_ok;
        self.judged_faults += other.judged_faults;
        self.denied_by_key += other.denied_by_key;
        self.mmio += other.mmio;
        self.of_rom += other.of_rom;
        self.stale += other.stale;
        self.lenient += other.lenient;
        self.refused += other.refused;
        self.changes.extend(other.changes);
    }
}

/// A machine, its guest, and what the check knows.
pub(super) struct Machine {
    pub(super) vm: Vm,
    pub(super) guest: Guest,
    rom: Rom,
    pub(super) regs: [ControlRegs; VCPUS],
    pdptrs: [[u64; 4]; VCPUS],
    /// The last pages used: cached translations matter most.
    pub(super) recent: VecDeque<(Mode, u64)>,
    tail: VecDeque<(Op, Outcome)>,
    seed: u64,
    pub(super) figures: Figures,
}

impl Machine {
    pub(super) fn new(seed: u64, config: &VmConfig) -> Self {
        let rom = Rom::draw(seed);
        let maxphyaddr = u32::from(config.cpu.maxphyaddr);
        let vm = Vm::new(VmConfig { slots: rom.slots(), vcpus: VCPUS, ..config.clone() }).unwrap();
        let mut guest = Guest { rng: fastrand::Rng::with_seed(seed), maxphyaddr, keys: config.cpu.pku };
        for (gpa, word) in guest.setup() {
            vm.host_write(Gpa::new(gpa), &word.to_le_bytes()).unwrap();
        }
        let mut machine = Self {
            regs: core::array::from_fn(|vcpu| *vm.cpu(vcpu).unwrap().regs()),
            vm,
            guest,
            rom,
            pdptrs: [[0; 4]; VCPUS],
            recent: VecDeque::new(),
            tail: VecDeque::new(),
            seed,
            figures: Figures::default(),
        };
        for vcpu in 0..VCPUS {
            let mode = machine.guest.rng.choice(Mode::ALL).unwrap();
            machine.change_mode(vcpu, mode);
        }
        machine
    }

    /// Runs until so many operations are done, and audits.
    pub(super) fn run(&mut self, operations: u64) {
        while self.figures.operations < operations {
            self.scene();
        }
        assert_eq!(self.vm.audit().unwrap(), Vec::new(), "{}", self.told());
    }

    pub(super) fn told(&self) -> String {
        let ops: Vec<_> = self.tail.iter().map(|(op, outcome)| format!("{op:x?} -> {outcome:x?}")).collect();
        format!(
            "seed {}, operation {}, {:x?}:\n{}",
            self.seed,
            self.figures.operations,
            self.vm.config(),
            ops.join("\n")
        )
    }

    pub(super) fn execute(&mut self, vcpu: usize, op: Op) -> Outcome {
        let outcome = self.vm.cpu(vcpu).unwrap().execute(&Op { vcpu: vcpu as u16, ..op }, &[]).unwrap();
        self.figures.operations += 1;
        if self.tail.len() == TOLD {
            self.tail.pop_front();
        }
        self.tail.push_back((Op { vcpu: vcpu as u16, ..op }, outcome));
        outcome
    }

    pub(super) fn view(&self, vcpu: usize) -> View<'_> {
        View {
            vm: &self.vm,
            regs: self.regs[vcpu],
            pdptrs: self.pdptrs[vcpu],
            cpu: self.vm.config().cpu,
            is_lenient: false,
        }
    }

    pub(super) fn mode(&self, vcpu: usize) -> Mode {
        Mode::of(&self.regs[vcpu])
    }

    pub(super) fn access_of(op: &Op) -> Access {
        Access {
            gva: op.addr,
            write: matches!(op.kind().unwrap(), OpKind::Write | OpKind::Store),
            fetch: op.kind().unwrap() == OpKind::Fetch,
            user: op.has(USER),
            lifts_smap: op.has(AC) && !op.has(IMPLICIT),
        }
    }

    /// Executes an access and holds it against a walk.
    pub(super) fn check(&mut self, vcpu: usize, op: Op, fresh: bool) {
        let access = Self::access_of(&op);
        let walk = self.view(vcpu).walk(&access);
        let outcome = self.execute(vcpu, op);
        self.figures.judged += u64::from(fresh);
        let reached = matches!(outcome, Outcome::Ok(_));
        let told = |what: &str| {
            format!("{what}: {outcome:x?}, a walk gives {walk:x?}\n{:x?}\n{}", self.regs[vcpu], self.told())
        };
        if outcome == self.outcome_of(vcpu, &op, walk.end) {
            if fresh {
                self.check_memory(&op, &walk, outcome, &told);
            }
            self.figures.of_rom += u64::from(self.rom.meets(&walk, access.write));
            self.figures.judged_ok += u64::from(fresh && reached);
            if let (true, Outcome::PageFault { code, .. }) = (fresh, outcome) {
                self.figures.judged_faults += 1;
                self.figures.denied_by_key += u64::from(code.contains(FaultCode::PK));
            }
            self.figures.mmio += u64::from(matches!(outcome, Outcome::Mmio(_)));
            return;
        }
        assert!(reached, "{}", told("a fault or an exit that is none"));
        // The gpa of a write is no guest's affair to keep: it is judged however old the translation is.
        let written = if let (Outcome::Ok(gpa), true) = (outcome, access.write) { self.rom.has(gpa) } else { false };
        assert!(!written, "{}", told("wrote read-only memory"));
        if fresh {
            let lenient = self.view(vcpu).lenient().walk(&access);
            let has_a_reason = matches!(walk.end, End::Fault(_)) && outcome == self.outcome_of(vcpu, &op, lenient.end);
            assert!(has_a_reason, "{}", told("reached what it may not"));
            self.figures.lenient += 1;
        } else {
            self.figures.stale += 1;
        }
    }

    /// The outcome that the end of a walk stands for, after the access: a load gives what is in memory.
    fn outcome_of(&self, vcpu: usize, op: &Op, end: End) -> Outcome {
        match end {
            End::NotCanonical => Outcome::GeneralProtection,
            End::Fault(code) => {
                let address = Gva::new(self.mode(vcpu).effective(op.addr));
                Outcome::PageFault { address, code: FaultCode::from_bits_retain(code) }
            }
            End::Gpa(gpa) if Self::access_of(op).write && self.rom.has(gpa) => Outcome::Mmio(Gpa::new(gpa)),
            End::Gpa(gpa) => match walk::read(&self.vm, gpa & !7, 8) {
                None => Outcome::Mmio(Gpa::new(gpa)),
                Some(value) if op.kind() == Ok(OpKind::Load) => Outcome::Ok(value),
                Some(_) => Outcome::Ok(gpa),
            },
        }
    }

    /// Holds memory after a judged access against what the walk found before it.
    fn check_memory(&self, op: &Op, walk: &Walk, outcome: Outcome, told: &dyn Fn(&str) -> String) {
        let places: BTreeSet<u64> = walk.used.iter().map(|used| used.0).collect();
        // A table that is its own child has an entry on the path twice: the walk begins anew when it has marked it.
        if places.len() != walk.used.len() {
            return;
        }
        if let (End::Gpa(gpa), Outcome::Ok(_), Ok(OpKind::Store)) = (walk.end, outcome, op.kind()) {
            let bytes = op.aux as usize;
            let value = op.value & (u64::MAX >> (64 - 8 * bytes));
            assert_eq!(walk::read(&self.vm, gpa, bytes), Some(value), "{}", told("the value stored"));
            if tables::kind_of(gpa) != Kind::Data {
                return; // it may have changed the path itself
            }
        }
        // An exit to the device model comes after the walk, which marks as for any access.
        let arrived = matches!(outcome, Outcome::Ok(_) | Outcome::Mmio(_));
        let written = arrived && Self::access_of(op).write;
        for (number, &(at, bytes, entry)) in walk.used.iter().enumerate() {
            let leaf = number + 1 == walk.used.len();
            let wanted = u64::from(arrived) << 5 | u64::from(written && leaf) << 6;
            let marks = if self.rom.has(at) { 0 } else { wanted };
            let now = walk::read(&self.vm, at, bytes);
            assert_eq!(now, Some(entry | marks), "{}", told(&format!("A and D of the entry at {at:#x}")));
        }
    }

    /// The PDPTRs at a CR3 value; `None` if one has a reserved bit (B.3).
    fn pointers(&self, cr3: u64) -> Option<[u64; 4]> {
        let pointers = core::array::from_fn(|n| walk::read(&self.vm, (cr3 & 0xffff_ffe0) + 8 * n as u64, 8).unwrap());
        let reserved = !0_u64 << self.guest.maxphyaddr | 0x1e6;
        pointers.iter().all(|one| one & 1 == 0 || one & reserved == 0).then_some(pointers)
    }

    /// Writes a register; `after` is what the registers hold if it does not fault. Whether it did not.
    fn write(&mut self, vcpu: usize, kind: OpKind, value: u64, host: bool, after: ControlRegs) -> bool {
        let (before, mode) = (self.regs[vcpu], Mode::of(&after));
        let changed = [before.cr0 ^ after.cr0, before.cr4 ^ after.cr4];
        let loads = mode == Mode::Pae
            && (kind == OpKind::WriteCr3
                || changed[0] & (PG | 3 << 29) != 0
                || changed[1] & (PGE | PSE | PAE | SMEP) != 0
                || Mode::of(&before) != Mode::Pae && kind == OpKind::WriteEfer);
        let pointers = if loads { self.pointers(after.cr3) } else { Some(self.pdptrs[vcpu]) };
        let expected = if pointers.is_some() { Outcome::Ok(0) } else { Outcome::GeneralProtection };
        let outcome = self.execute(vcpu, Op::new(kind, value).with_flags(if host { Op::HOST } else { 0 }));
        assert_eq!(outcome, expected, "{}", self.told());
        let Some(pointers) = pointers else {
            self.figures.refused += 1;
            return false;
        };
        (self.regs[vcpu], self.pdptrs[vcpu]) = (after, pointers);
        assert_eq!(*self.vm.cpu(vcpu).unwrap().regs(), after, "{}", self.told());
        true
    }

    pub(super) fn write_cr0(&mut self, vcpu: usize, value: u64, host: bool) -> bool {
        let after = with_lma(ControlRegs { cr0: value, ..self.regs[vcpu] });
        self.write(vcpu, OpKind::WriteCr0, value, host, after)
    }

    pub(super) fn write_cr4(&mut self, vcpu: usize, value: u64, host: bool) -> bool {
        let after = with_lma(ControlRegs { cr4: value, ..self.regs[vcpu] });
        self.write(vcpu, OpKind::WriteCr4, value, host, after)
    }

    pub(super) fn write_efer(&mut self, vcpu: usize, value: u64, host: bool) -> bool {
        let after = with_lma(ControlRegs { efer: value | self.regs[vcpu].efer & 1 << 10, ..self.regs[vcpu] });
        self.write(vcpu, OpKind::WriteEfer, value, host, after)
    }

    pub(super) fn write_cr3(&mut self, vcpu: usize, value: u64, host: bool) -> bool {
        self.write(vcpu, OpKind::WriteCr3, value, host, ControlRegs { cr3: value, ..self.regs[vcpu] })
    }

    /// Writes PKRU, which a guest can with CR4.PKE only, and nobody without keys.
    pub(super) fn write_pkru(&mut self, vcpu: usize, value: u64, host: bool) {
        let expected = if !host && self.regs[vcpu].cr4 & PKE == 0 {
            Outcome::InvalidOpcode
        } else if self.guest.keys && value >> 32 == 0 {
            Outcome::Ok(0)
        } else {
            Outcome::GeneralProtection
        };
        let outcome = self.execute(vcpu, Op::new(OpKind::WritePkru, value).with_flags(if host { Op::HOST } else { 0 }));
        assert_eq!(outcome, expected, "{}", self.told());
        if outcome == Outcome::Ok(0) {
            self.regs[vcpu].pkru = value as u32;
        }
        assert_eq!(*self.vm.cpu(vcpu).unwrap().regs(), self.regs[vcpu], "{}", self.told());
    }
}

/// EFER.LMA as the processor keeps it.
fn with_lma(mut regs: ControlRegs) -> ControlRegs {
    let active = regs.cr0 & PG != 0 && regs.efer & LME != 0 && regs.cr4 & PAE != 0;
    regs.efer = regs.efer & !(1 << 10) | u64::from(active) << 10;
    regs
}
