//! Edits of the guest's table words, in every way in which a guest or its hypervisor may store.

use super::{
    actor::Actor,
    guest::{LINK, Leaf, PTE_USER, PTE_WRITE, Word},
    history::{ACCESSED_DIRTY, Stamp},
};
use crate::{
    addr::{PAGE_SIZE, PHYS_MASK},
    error::Result,
    op::{Op, OpKind, Outcome},
    paging::{PTE_NX, PTE_PRESENT},
    vm::Cpu,
};

/// The store that makes an edit.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Store {
    gpa: u64,
    value: u64,
    size: u32,
}

impl Actor<'_> {
    /// What the word holds, A and D aside. For its editor.
    fn held(&self, word: Word) -> u64 {
        self.guest.log(word).newest() & !ACCESSED_DIRTY
    }

    /// One guest store of the whole word.
    pub(super) fn edit(&mut self, cpu: &mut Cpu<'_>, word: Word, value: u64) -> Result<()> {
        self.edit_with(cpu, &[(word, value)], Store { gpa: word.gpa, value, size: 8 })
    }

    /// A guest store by which these words get these values.
    fn edit_with(&mut self, cpu: &mut Cpu<'_>, words: &[(Word, u64)], store: Store) -> Result<()> {
        self.edits += 1;
        self.figures.edits += words.len() as u64;
        for &(word, value) in words {
            self.guest.log(word).begin(value, Stamp::new(self.vcpu, self.edits, false));
        }
        self.window_store(cpu, store.gpa, store.value, store.size)?;
        self.clock.done(self.vcpu, self.edits);
        Ok(())
    }

    /// The hypervisor stores the word: shadow entries made from the old value are dropped, and everybody flushes. Of the guest's own
    /// tables the hardware hears nothing.
    fn edit_by_host(&mut self, cpu: &mut Cpu<'_>, word: Word, value: u64) -> Result<()> {
        // A store of the value that is there drops nothing: what is stale stays so.
        let drops = (self.held(word) ^ value) & !ACCESSED_DIRTY != 0 && !cpu.is_tdp();
        self.edits += 1;
        self.figures.edits += 1;
        self.figures.host_operations += 1;
        self.guest.log(word).begin(value, Stamp::new(self.vcpu, self.edits, drops));
        let op = Op { value, ..Op::new(OpKind::HostStore, word.gpa) };
        let outcome = self.execute(cpu, op, &[])?;
        self.expect("host store", &op, outcome, Outcome::Ok(0));
        self.clock.done(self.vcpu, self.edits);
        Ok(())
    }

    /// A last-level entry as it might be.
    pub(super) fn leaf_value(&mut self) -> u64 {
        match self.rng.u8(..32) {
            0 | 1 => 0,
            // A frame of no memslot: an exit to the device model.
            2 => ((self.guest.pages + self.rng.u64(1..9)) * PAGE_SIZE) | LINK,
            _ => {
                let frame = self.guest.frames[self.rng.usize(..self.guest.frames.len())];
                let entry = self.without(frame | LINK | ACCESSED_DIRTY, PTE_WRITE, 48);
                let entry = self.without(entry, PTE_USER, 24);
                let entry = self.without(entry, ACCESSED_DIRTY, 128);
                if self.rng.u8(..) < 24 { entry | PTE_NX } else { entry }
            }
        }
    }

    /// Edits one of this vCPU's last-level entries, and mostly shoots its page down.
    pub(super) fn edit_leaf(&mut self, cpu: &mut Cpu<'_>) -> Result<()> {
        let leaves = &self.guest.estates[self.vcpu].leaves;
        if leaves.is_empty() {
            return Ok(());
        }
        let number = self.rng.usize(..leaves.len());
        let leaf = leaves[number];
        if leaf.home.is_some_and(|home| !self.reuse[home].is_linked()) {
            return Ok(());
        }
        if self.rng.u8(..) < 32 {
            self.check_held(cpu, leaf.word)?;
        }
        // What is cached before may be stale after.
        self.touch_again(cpu, leaf.gva)?;
        self.change_leaf(cpu, leaf, leaves.get(number + 1).copied())?;
        match self.rng.u8(..8) {
            0..4 => self.shoot_down(cpu, Some(leaf.gva), None)?,
            4 => self.shoot_down(cpu, None, None)?,
            5 => self.invlpg(cpu, leaf.gva)?,
            _ => return Ok(()),
        }
        self.touch_again(cpu, leaf.gva)
    }

    fn change_leaf(&mut self, cpu: &mut Cpu<'_>, leaf: Leaf, next: Option<Leaf>) -> Result<()> {
        let word = leaf.word;
        let held = self.held(word);
        match self.rng.u8(..20) {
            0 => self.edit(cpu, word, 0),
            // No frame, no rights to change.
            1 if held & PHYS_MASK != 0 => {
                // Rights, A and D in one byte; the entry stays what it is otherwise.
                let byte = held & 0xff ^ self.rng.u64(..) & (PTE_PRESENT | PTE_WRITE | PTE_USER);
                let store = Store { gpa: word.gpa, value: byte, size: 1 };
                self.edit_with(cpu, &[(word, held & !0xff | byte)], store)
            }
            2 => {
                let low = self.leaf_value() & 0xffff_ffff;
                let store = Store { gpa: word.gpa, value: low, size: 4 };
                self.edit_with(cpu, &[(word, held >> 32 << 32 | low)], store)
            }
            // The entry stays, and is clean and old again.
            3 | 4 => self.edit(cpu, word, held),
            5 => {
                // The byte with NX: not at an entry's start, so it counts as misaligned (C.6).
                let value = held ^ PTE_NX;
                let store = Store { gpa: word.gpa + 7, value: value >> 56, size: 1 };
                self.edit_with(cpu, &[(word, value)], store)
            }
            6 => match next.filter(|next| next.word.gpa == word.gpa + 8 && next.home == leaf.home) {
                // Half of this entry and half of the next.
                Some(next) => {
                    let (high, low) = (self.rng.u64(..) & 1 << 31, self.leaf_value() & 0xffff_ffff);
                    let store = Store { gpa: word.gpa + 4, value: low << 32 | high, size: 8 };
                    let words =
                        [(word, held & 0xffff_ffff | high << 32), (next.word, self.held(next.word) >> 32 << 32 | low)];
                    self.edit_with(cpu, &words, store)
                }
                None => Ok(()),
            },
            7 => {
                let value = self.leaf_value();
                self.edit_by_host(cpu, word, value)
            }
            _ => {
                let value = self.leaf_value();
                self.edit(cpu, word, value)
            }
        }
    }

    /// Edits one of this vCPU's upper entries; now and then so often that the write flooding is noticed.
    pub(super) fn edit_branch(&mut self, cpu: &mut Cpu<'_>) -> Result<()> {
        let branches = &self.guest.estates[self.vcpu].branches;
        if branches.is_empty() {
            return Ok(());
        }
        let branch = &branches[self.rng.usize(..branches.len())];
        if branch.home.is_some_and(|home| !self.reuse[home].is_linked()) {
            return Ok(());
        }
        let times = if self.rng.u8(..8) == 0 { 4 } else { 1 };
        for _ in 0..times {
            let choice = branch.choices[self.rng.usize(..branch.choices.len())];
            let value = self.link_to(choice);
            if self.rng.u8(..8) == 0 {
                self.edit_by_host(cpu, branch.word, value)?;
            } else {
                self.edit(cpu, branch.word, value)?;
            }
        }
        match self.rng.u8(..4) {
            0..2 => self.shoot_down(cpu, None, None),
            2 => self.reload_cr3(cpu),
            _ => Ok(()),
        }
    }

    /// E105: what was stored is still there; only A and D may have been set by a walk.
    fn check_held(&mut self, cpu: &mut Cpu<'_>, word: Word) -> Result<()> {
        let stored = self.guest.log(word).newest();
        let found = self.window_load(cpu, word.gpa)?;
        if (found ^ stored) & !ACCESSED_DIRTY != 0 || stored & ACCESSED_DIRTY & !found != 0 {
            self.report("memory", format!("the entry at {:#x}: stored {stored:#x}, found {found:#x}", word.gpa));
        }
        Ok(())
    }

    /// Flags of an entry: each taken away with this chance in 256.
    pub(super) fn without(&mut self, entry: u64, flag: u64, chance: u8) -> u64 {
        if self.rng.u8(..) < chance { entry & !flag } else { entry }
    }

    /// A link to a table or to nothing, with rights taken away now and then.
    pub(super) fn link_to(&mut self, choice: u64) -> u64 {
        if choice == 0 {
            return 0;
        }
        let entry = self.without(choice | LINK, PTE_WRITE, 24);
        let entry = self.without(entry, PTE_USER, 10);
        if self.rng.u8(..) < 10 { entry | PTE_NX } else { entry }
    }
}
