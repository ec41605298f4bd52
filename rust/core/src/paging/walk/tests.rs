//! The walk over small tables in a plain map.

use std::{cell::RefCell, collections::HashMap};

use super::*;
use crate::{
    paging::{PTE_LARGE, PermissionRules, ReservedBits},
    regs::ControlRegs,
};

/// Guest memory as a map of words; frames of 2^20 and above are in no slot.
#[derive(Default)]
struct Tables {
    words: RefCell<HashMap<u64, u64>>,
    interfere: RefCell<Option<(u64, u64)>>,
    read_only: RefCell<Vec<Gfn>>,
}

impl TableMemory for Tables {
    type Place<'a> = (&'a Self, Gpa);

    fn place(&self, gpa: Gpa) -> Option<(&Self, Gpa)> {
        (gpa.gfn().get() < 1 << 20).then_some((self, Gpa::new(gpa.get() & !7)))
    }

    fn load((memory, at): (&Self, Gpa)) -> u64 {
        memory.words.borrow().get(&at.get()).copied().unwrap_or(0)
    }

    fn update_entry(&self, gpa: Gpa, old: u64, new: u64) -> Update {
        if self.read_only.borrow().contains(&gpa.gfn()) {
            return Update::ReadOnly;
        }
        if let Some((at, value)) = self.interfere.borrow_mut().take() {
            self.words.borrow_mut().insert(at, value);
        }
        let mut words = self.words.borrow_mut();
        let word = words.entry(gpa.get()).or_default();
        if *word != old {
            return Update::Changed;
        }
        *word = new;
        Update::Done
    }

    fn update_half(&self, gpa: Gpa, old: u32, new: u32) -> Update {
        let at = Gpa::new(gpa.get() & !7);
        let (word, shift) = (self.read_entry(at).unwrap_or(0), (gpa.get() & 4) * 8);
        let with = |half: u32| word & !(0xffff_ffff << shift) | u64::from(half) << shift;
        self.update_entry(at, with(old), with(new))
    }
}

fn entry_gpa(table: Gfn, level: Level, gva: Gva) -> Gpa {
    Pte64::entry_gpa(table, level, gva)
}

const GVA: Gva = Gva::new((1 << 48) | (2 << 39) | (3 << 30) | (4 << 21) | (5 << 12) | 0x678);

/// Tables at frames `level` * 16 for `GVA`, leaf at `leaf_level` with the address `target`.
fn tables(top: u8, leaf_level: u8, bits: u64, target: u64) -> Tables {
    let memory = Tables::default();
    for number in (leaf_level..=top).rev() {
        let level = Level::new(number);
        let at = entry_gpa(Gfn::new(u64::from(number) * 16), level, GVA).get();
        let value = if number == leaf_level {
            target | bits | if number > 1 { PTE_LARGE } else { 0 }
        } else {
            (((u64::from(number) - 1) * 16) << 12) | bits
        };
        memory.words.borrow_mut().insert(at, value);
    }
    memory
}

fn context(top: u8) -> WalkContext<'static> {
    WalkContext {
        mode: if top == 5 { PagingMode::Long5 } else { PagingMode::Long4 },
        largest: Level::PDPT,
        reserved: const { &ReservedBits::long_mode(46, true, true) },
        rules: PermissionRules::guest(&ControlRegs::default()),
        keyed: false,
        keep_write_when_clean: false,
        leaf_rights_only: false,
    }
}

fn go(memory: &Tables, top: u8, kind: AccessKind) -> Result<GuestWalk, FaultCode> {
    walk(memory, &context(top), (u64::from(top) * 16) << 12, GVA, kind, AccessFlags::USER)
}

#[test]
fn e100_four_and_five_levels_reach_4k_2m_and_1g_leaves() {
    for top in [4, 5] {
        for (leaf, frames) in [(1, 1_u64), (2, 512), (3, 512 * 512)] {
            let memory = tables(top, leaf, 7, frames << 12);
            let found = go(&memory, top, AccessKind::Read).unwrap();
            assert_eq!(found.leaf_level, Level::new(leaf));
            assert_eq!(found.gfn.get(), frames | (GVA.page() & (frames - 1)));
        }
    }
}

#[test]
fn e104_accessed_at_all_levels_dirty_at_the_leaf_on_write() {
    let memory = tables(4, 1, 7, 0x9000);
    let read = go(&memory, 4, AccessKind::Read).unwrap();
    assert!((1..=4).all(|l| read.pte[l] & PTE_ACCESSED != 0 && read.pte[l] & PTE_DIRTY == 0));
    assert!(!read.access.contains(Access::WRITE), "a clean leaf gives no W to a read");
    let write = go(&memory, 4, AccessKind::Write).unwrap();
    assert_eq!((1..=4).map(|l| write.pte[l] & PTE_DIRTY != 0).collect::<Vec<_>>(), [true, false, false, false]);
    assert!(write.access.contains(Access::WRITE));
    let stored = memory.words.borrow()[&entry_gpa(write.table_gfn[1], Level::PT, GVA).get()];
    assert_eq!(stored, 0x9000 | 7 | PTE_ACCESSED | PTE_DIRTY);
}

#[test]
fn e105_an_entry_that_changes_before_its_update_restarts_the_walk() {
    let memory = tables(4, 1, 7, 0x9000);
    let leaf = entry_gpa(Gfn::new(16), Level::PT, GVA).get();
    *memory.interfere.borrow_mut() = Some((leaf, 0xa000 | 7));
    let found = go(&memory, 4, AccessKind::Write).unwrap();
    assert_eq!(found.gfn, Gfn::new(0xa), "the racing write is not lost");
    assert_eq!(memory.words.borrow()[&leaf], 0xa000 | 7 | PTE_ACCESSED | PTE_DIRTY);
}

#[test]
fn e106_a_faulting_walk_writes_nothing() {
    for (leaf, kind) in [(0x9000 | 5, AccessKind::Write), (0x9000 | 3, AccessKind::Read), (0, AccessKind::Read)] {
        let memory = tables(4, 1, 7, 0x9000);
        memory.words.borrow_mut().insert(entry_gpa(Gfn::new(16), Level::PT, GVA).get(), leaf);
        let before = memory.words.borrow().clone();
        assert!(go(&memory, 4, kind).is_err());
        assert_eq!(*memory.words.borrow(), before);
    }
}

#[test]
fn e107_a_read_only_table_keeps_a_and_d_and_the_walk_goes_on() {
    for level in 1..=4_u64 {
        let memory = tables(4, 1, 7, 0x9000);
        memory.read_only.borrow_mut().push(Gfn::new(level * 16));
        let read = go(&memory, 4, AccessKind::Read).unwrap();
        assert!(!read.access.contains(Access::WRITE), "D is clear: the first write is to fault");
        let write = go(&memory, 4, AccessKind::Write).unwrap();
        assert!(write.access.contains(Access::WRITE), "level {level}: nobody will set D, and the write has its right");
        for at in 1..=4 {
            let set = if at == level { 0 } else { PTE_ACCESSED | if at == 1 { PTE_DIRTY } else { 0 } };
            let level = Level::new(at as u8);
            let stored = memory.words.borrow()[&entry_gpa(write.table_gfn[level.at()], level, GVA).get()];
            assert_eq!((stored & (PTE_ACCESSED | PTE_DIRTY), write.pte[level.at()]), (set, stored));
        }
    }
}

#[test]
fn e109_error_codes_bit_by_bit() {
    let code = |pte: u64, kind| {
        let memory = tables(4, 1, 7, 0x9000);
        memory.words.borrow_mut().insert(entry_gpa(Gfn::new(16), Level::PT, GVA).get(), pte);
        go(&memory, 4, kind).unwrap_err().bits()
    };
    assert_eq!(code(0, AccessKind::Read), 4);
    assert_eq!(code(0, AccessKind::Write), 6);
    assert_eq!(code(0, AccessKind::Fetch), 0x14);
    assert_eq!(code(0x9005, AccessKind::Write), 7);
    assert_eq!(code(0x9003, AccessKind::Read), 5);
    assert_eq!(code(0x9007 | 1 << 63, AccessKind::Fetch), 0x15);
    assert_eq!(code(0x9007 | 1 << 50, AccessKind::Read), 0xd);
}

#[test]
fn e109_nx_is_reserved_and_fetch_unreported_without_efer_nx() {
    let memory = tables(4, 1, 7 | 1 << 63, 0x9000);
    let regs = ControlRegs { efer: 0x500, ..ControlRegs::default() };
    let context = WalkContext {
        reserved: const { &ReservedBits::long_mode(46, false, true) },
        rules: PermissionRules::guest(&regs),
        ..context(4)
    };
    let code = walk(&memory, &context, 64 << 12, GVA, AccessKind::Fetch, AccessFlags::USER).unwrap_err();
    assert_eq!(code, FaultCode::PRESENT | FaultCode::RSVD | FaultCode::USER);
}

#[test]
fn e114_rights_fold_from_all_ancestors_and_parents_exclude_their_own() {
    let memory = tables(4, 1, 7, 0x9000);
    let pdpt = entry_gpa(Gfn::new(48), Level::PDPT, GVA).get();
    memory.words.borrow_mut().insert(pdpt, 32 << 12 | 5);
    let found = go(&memory, 4, AccessKind::Read).unwrap();
    let read_only = Access::USER | Access::EXEC;
    assert_eq!(found.parent_access[1..=4], [read_only, read_only, Access::all(), Access::all()]);
    assert_eq!(found.access, read_only);
    assert_eq!(go(&memory, 4, AccessKind::Write).unwrap_err().bits(), 7);
}

#[test]
fn b2_a_table_outside_memory_is_a_not_present_fault() {
    let memory = tables(4, 1, 7, 0x9000);
    memory.words.borrow_mut().insert(entry_gpa(Gfn::new(48), Level::PDPT, GVA).get(), 1 << 40 | 7);
    assert_eq!(go(&memory, 4, AccessKind::Read).unwrap_err().bits(), 4);
}

const NARROW: Gva = Gva::new(0xc0c0_5678);

fn narrow(mode: PagingMode, pse: bool) -> WalkContext<'static> {
    let reserved = match (mode, pse) {
        (PagingMode::Bits32, true) => const { &ReservedBits::bits32(true, true) },
        (PagingMode::Bits32, false) => const { &ReservedBits::bits32(false, true) },
        _ => const { &ReservedBits::pae(46, true) },
    };
    let largest = if mode == PagingMode::Bits32 && !pse { Level::PT } else { Level::PD };
    WalkContext { mode, largest, reserved, ..context(4) }
}

/// A page directory at frame 16 whose entry for `NARROW` is `pde`, and a table at frame 32 whose entry leads to frame 9.
fn narrow_tables(mode: PagingMode, pde: u64) -> Tables {
    let memory = Tables::default();
    let put = |frame, level, pte: u64| match mode {
        PagingMode::Bits32 => {
            let at = Pte32::entry_gpa(Gfn::new(frame), level, NARROW);
            *memory.words.borrow_mut().entry(at.get() & !7).or_default() |= pte << ((at.get() & 4) * 8);
        }
        _ => {
            memory.words.borrow_mut().insert(Pte64::entry_gpa(Gfn::new(frame), level, NARROW).get(), pte);
        }
    };
    put(16, Level::PD, pde);
    put(32, Level::PT, 0x9000 | 7);
    memory
}

#[test]
fn e101_pae_starts_from_the_pdptr_and_takes_no_rights_from_it() {
    let memory = narrow_tables(PagingMode::Pae, 32 << 12 | 7);
    let pae = narrow(PagingMode::Pae, true);
    let go = |pdptr| walk(&memory, &pae, pdptr, NARROW, AccessKind::Write, AccessFlags::USER);
    let found = go(16 << 12 | 1).unwrap();
    assert_eq!((found.gfn, found.leaf_level, found.access), (Gfn::new(9), Level::PT, Access::all()));
    assert!(!found.changed(&memory, Level::PD, NARROW));
    memory.words.borrow_mut().insert(Pte64::entry_gpa(Gfn::new(16), Level::PD, NARROW).get(), 0);
    assert!(found.changed(&memory, Level::PD, NARROW));
    assert_eq!(go(16 << 12), Err(FaultCode::WRITE | FaultCode::USER), "a PDPTR that is not present");
}

#[test]
fn e102_32_bit_tables_of_4_byte_entries_with_and_without_pse() {
    let large = 0x0040_0000 | 3 << 13 | PTE_LARGE | 7;
    for (pde, pse, target) in [(32 << 12 | 7, true, 9), (large, true, 3 << 20 | 0x400 | 5)] {
        let memory = narrow_tables(PagingMode::Bits32, pde);
        let context = narrow(PagingMode::Bits32, pse);
        let found = walk(&memory, &context, 16 << 12, NARROW, AccessKind::Write, AccessFlags::USER).unwrap();
        assert_eq!(found.gfn, Gfn::new(target), "{pde:#x}");
        let entry = Pte32::read(&memory, Pte32::entry_gpa(Gfn::new(16), Level::PD, NARROW)).unwrap();
        assert_eq!(entry & !pde, PTE_ACCESSED | if found.leaf_level == Level::PD { PTE_DIRTY } else { 0 });
    }
    // Without CR4.PSE bit 7 of a directory entry means nothing.
    let memory = narrow_tables(PagingMode::Bits32, 32 << 12 | PTE_LARGE | 7);
    let found =
        walk(&memory, &narrow(PagingMode::Bits32, false), 16 << 12, NARROW, AccessKind::Read, AccessFlags::USER);
    assert_eq!(found.unwrap().gfn, Gfn::new(9));
}

#[test]
fn e103_without_paging_an_address_is_what_it_says() {
    let none = WalkContext { mode: PagingMode::None, ..narrow(PagingMode::Bits32, false) };
    let found = walk(&Tables::default(), &none, 0, NARROW, AccessKind::Write, AccessFlags::USER).unwrap();
    assert_eq!((found.gfn.get(), found.access), (NARROW.page(), Access::all()));
    assert!(!found.changed(&Tables::default(), Level::PD, NARROW));
}
