//! The walk over small tables in a plain map.

use std::{cell::RefCell, collections::HashMap};

use super::*;
use crate::regs::ControlRegs;

/// Guest memory as a map of words; frames of 2^20 and above are in no slot.
#[derive(Default)]
struct Words {
    words: RefCell<HashMap<u64, u64>>,
    interfere: RefCell<Option<(u64, u64)>>,
}

impl TableMemory for Words {
    fn read_entry(&self, gpa: Gpa) -> Option<u64> {
        (gpa.gfn().get() < 1 << 20).then(|| self.words.borrow().get(&gpa.get()).copied().unwrap_or(0))
    }

    fn update_entry(&self, gpa: Gpa, old: u64, new: u64) -> bool {
        if let Some((at, value)) = self.interfere.borrow_mut().take() {
            self.words.borrow_mut().insert(at, value);
        }
        let mut words = self.words.borrow_mut();
        let word = words.entry(gpa.get()).or_default();
        let same = *word == old;
        if same {
            *word = new;
        }
        same
    }
}

const GVA: Gva = Gva::new((1 << 48) | (2 << 39) | (3 << 30) | (4 << 21) | (5 << 12) | 0x678);

/// Tables at frames `level` * 16 for `GVA`, leaf at `leaf_level` with the address `target`.
fn tables(top: u8, leaf_level: u8, bits: u64, target: u64) -> Words {
    let memory = Words::default();
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

fn context(top: u8) -> WalkContext {
    WalkContext {
        root_level: Level::new(top),
        reserved: ReservedBits::long_mode(46, true),
        rules: PermissionRules::guest(&ControlRegs::default()),
        keep_write_when_clean: false,
        leaf_rights_only: false,
    }
}

fn go(memory: &Words, top: u8, kind: AccessKind) -> Result<GuestWalk, FaultCode> {
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
    let stored = memory.words.borrow()[&write.entry_gpa(Level::PT, GVA).get()];
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
        reserved: ReservedBits::long_mode(46, false),
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
