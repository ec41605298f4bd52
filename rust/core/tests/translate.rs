//! Looks at translations: together and one at a time they come to the same in every mode, and they change nothing.

use shadow_mmu::{
    AccessFlags, AccessKind, Cpu, Error, Gpa, Gva, MemoryRegion, Op, OpKind, Outcome, TranslateError, Translation, Vm,
    VmConfig,
};

const PAGES: u64 = 64;
const LOOKS: usize = 1000;
/// Register values that turn on paging off, 32-bit without and with PSE, PAE, 4 and 5 levels: CR0, CR4, EFER.
const MODES: [[u64; 3]; 6] = [
    [0x0005_0033, 0, 0],
    [0x8005_0033, 0, 0x800],
    [0x8005_0033, 0x10, 0x800],
    [0x8005_0033, 0x20, 0x800],
    [0x8005_0033, 0x20, 0xd00],
    [0x8005_0033, 0x1020, 0xd00],
];

/// Pages full of entries that lead to each other, a few of them not present, reserved, large, read-only, of the supervisor.
fn machine(random: &mut fastrand::Rng, words: u64) -> Vm {
    // Two memslots: the tables of a walk are in both.
    let slots = [0, PAGES / 2].map(|page| MemoryRegion::ram(Gpa::new(page << 12), PAGES << 11)).to_vec();
    let vm = Vm::new(VmConfig { slots, ..VmConfig::default() }).unwrap();
    for page in 1..PAGES {
        let mut bytes = Vec::new();
        for _ in 0..4096 / words {
            // One in 65 leads out of memory.
            let mut entry = random.u64(0..=PAGES) << 12 | 7;
            for bit in [0, 1, 2, 7, 14, 50, 63] {
                entry ^= u64::from(random.u8(..40) == 0) << bit;
            }
            bytes.extend_from_slice(&entry.to_le_bytes()[..words as usize]);
        }
        vm.host_write(Gpa::new(page << 12), &bytes).unwrap();
    }
    // PDPTRs must have no reserved bit.
    for gib in 0..4 {
        vm.host_write(Gpa::new(gib * 8), &((gib + 1) << 12 | u64::from(gib != 3)).to_le_bytes()).unwrap();
    }
    vm
}

fn set(cpu: &mut Cpu<'_>, kind: OpKind, value: u64) {
    let op = Op::new(kind, value).with_flags(Op::HOST);
    assert_eq!(cpu.execute(&op, &[]), Ok(Outcome::Ok(0)), "{kind:?} {value:#x}");
}

#[test]
fn looks_together_are_looks_one_at_a_time_in_every_mode() {
    let mut random = fastrand::Rng::with_seed(7);
    for [cr0, cr4, efer] in MODES {
        let vm = machine(&mut random, if cr4 & 0x20 == 0 { 4 } else { 8 });
        let mut cpu = vm.cpu(0).unwrap();
        set(&mut cpu, OpKind::WriteCr4, cr4);
        set(&mut cpu, OpKind::WriteEfer, efer);
        set(&mut cpu, OpKind::WriteCr0, cr0);
        set(&mut cpu, OpKind::WriteCr3, if cr4 == 0x20 && efer & 0x100 == 0 { 0 } else { 0x1000 });
        // Of the lower half.
        let canonical = if cr4 & 0x1000 == 0 { 0x7fff_ffff_ffff } else { 0xff_ffff_ffff_ffff };
        let (mut reached, mut faults, mut wrong) = (0, 0, 0);
        for round in 0..30 {
            let kind =
                random.choice([AccessKind::Read, AccessKind::Write, AccessKind::Fetch]).unwrap_or(AccessKind::Read);
            let flags = AccessFlags::from_bits_truncate(random.u8(..8));
            // Every third time neighbours, which share their tables, and whose regions have their places in a batch in common.
            let far = [(); 4].map(|()| random.u64(..) & !0x0fff_ffff);
            let address = |_| match round % 3 {
                0 => random.u64(..),
                1 => random.u64(..) & canonical,
                _ => (random.choice(far).unwrap_or(0) | random.u64(..0x100_0000)) & canonical,
            };
            let gvas: Vec<Gva> = (0..LOOKS + round).map(address).map(Gva::new).collect();
            let mut found = vec![Err(TranslateError::NotCanonical); gvas.len()];
            cpu.translate_many(&gvas, kind, flags, &mut found).unwrap();
            for (&gva, &found) in gvas.iter().zip(&found) {
                assert_eq!(found, cpu.translate(gva, kind, flags), "{gva:?} in CR4 {cr4:#x}, EFER {efer:#x}");
            }
            let count = |which: fn(&Translation) -> bool| found.iter().filter(|one| which(one)).count();
            reached += count(Result::is_ok);
            faults += count(|one| matches!(one, Err(TranslateError::PageFault(_))));
            wrong += count(|one| *one == Err(TranslateError::NotCanonical));
        }
        assert!(reached > 200, "{reached} translations in CR4 {cr4:#x}, EFER {efer:#x}");
        assert_eq!(faults > 500, cr0 >> 31 == 1, "{faults} page faults");
        assert_eq!(wrong > 500, efer & 0x400 != 0, "{wrong} addresses that are not canonical");
    }
}

#[test]
fn looks_take_no_lock_and_count_and_write_nothing() {
    let vm = machine(&mut fastrand::Rng::with_seed(8), 8);
    let gvas: Vec<Gva> = (0..5000).map(|page| Gva::new(page << 30)).collect();
    let memory = || {
        let mut bytes = vec![0; (PAGES << 12) as usize];
        vm.host_read(Gpa::new(0), &mut bytes).map(|()| bytes)
    };
    set(&mut vm.cpu(0).unwrap(), OpKind::WriteCr3, 0x1000);
    let before = (vm.state_words(), memory(), vm.stats().map(|stats| stats.total.lock.total()));
    {
        let cpu = vm.cpu(0).unwrap();
        let mut found = vec![Err(TranslateError::NotCanonical); gvas.len()];
        cpu.translate_many(&gvas, AccessKind::Write, AccessFlags::empty(), &mut found).unwrap();
        assert!(found.iter().any(Result::is_ok));
    }
    assert_eq!((vm.state_words(), memory(), vm.stats().map(|stats| stats.total.lock.total())), before);
}

#[test]
fn arrays_of_different_lengths_are_refused() {
    let vm = machine(&mut fastrand::Rng::with_seed(9), 8);
    let cpu = vm.cpu(0).unwrap();
    let mut found = [Err(TranslateError::NotCanonical); 3];
    let refused = cpu.translate_many(&[Gva::new(0)], AccessKind::Read, AccessFlags::empty(), &mut found);
    assert!(matches!(refused, Err(Error::BadOp { .. })), "{refused:?}");
    assert!(found.iter().all(|one| *one == Err(TranslateError::NotCanonical)));
}
