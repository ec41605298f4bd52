//! A table that becomes data and a table again: unlinked, shot down, written with rubbish that looks like entries, filled
//! anew and linked. Once all have acknowledged, nobody but its vCPU may touch a word of it, the walks' A and D included.

use super::{
    actor::Actor,
    guest::{LINK, Word},
    history::Stamp,
};
use crate::{
    addr::{ENTRIES, PHYS_MASK},
    error::Result,
    op::{Op, OpKind, Outcome},
    vm::Cpu,
};

/// Stores to a table that is data before it becomes a table again.
const DATA_STORES: u32 = 12;

/// Where a table is in its life.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Reuse {
    state: State,
    /// What its tracked words hold as data.
    data: Vec<u64>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    Linked,
    /// Unlinked, and somebody may still use it.
    Leaving,
    /// Data, with so many stores to come.
    Data(u32),
}

impl Reuse {
    pub(super) fn new(words: usize) -> Self {
        Self { state: State::Linked, data: vec![0; words] }
    }

    /// Whether its entries are entries.
    pub(super) fn is_linked(&self) -> bool {
        self.state == State::Linked
    }

    /// What its words hold if they are data.
    pub(super) fn data(&self) -> Option<&[u64]> {
        matches!(self.state, State::Data(_)).then_some(&self.data)
    }
}

impl Actor<'_> {
    /// One step in the life of one of this vCPU's tables.
    pub(super) fn advance_reuse(&mut self, cpu: &mut Cpu<'_>) -> Result<()> {
        let number = self.rng.usize(..self.reuse.len());
        match self.reuse[number].state {
            // A table leads a quiet life most of the time.
            State::Linked if self.rng.u8(..) < 80 => {
                let parent = self.guest.estates[self.vcpu].chameleons[number].parent;
                self.edit(cpu, parent, 0)?;
                self.reuse[number].state = State::Leaving;
                self.shoot_down(cpu, None, Some(number))
            }
            State::Linked | State::Leaving => Ok(()),
            State::Data(0) => self.link_again(cpu, number),
            State::Data(left) => {
                self.reuse[number].state = State::Data(left - 1);
                self.use_as_data(cpu, number)
            }
        }
    }

    /// Everybody has acknowledged: the table is data, and holds its entries as they are in memory.
    pub(super) fn table_is_data(&mut self, number: usize) {
        self.reuse[number].state = State::Data(DATA_STORES);
        // What the walks made of A and D is found out by the first load of each word.
        self.reuse[number].data.fill(u64::MAX);
    }

    fn use_as_data(&mut self, cpu: &mut Cpu<'_>, number: usize) -> Result<()> {
        let chameleon = &self.guest.estates[self.vcpu].chameleons[number];
        let at = self.rng.usize(..chameleon.words.len());
        let word = chameleon.words[at];
        let held = self.window_load(cpu, word.gpa)?;
        let before = self.reuse[number].data[at];
        if before != u64::MAX && held != before {
            self.report("reuse", format!("the word at {:#x} is data: stored {before:#x}, found {held:#x}", word.gpa));
        }
        // Present and writable, and leading to some frame: it would show if it were taken for an entry.
        let frame = self.guest.frames[self.rng.usize(..self.guest.frames.len())];
        let rubbish = frame | self.rng.u64(..) & 0x7ff | 3;
        self.window_store(cpu, word.gpa, rubbish, 8)?;
        self.reuse[number].data[at] = rubbish;
        // Where no entry is ever used it may stay.
        let unused = chameleon.gpa + self.rng.u64(chameleon.words.len() as u64..ENTRIES as u64) * 8;
        let rubbish = self.rng.u64(..);
        self.window_store(cpu, unused, rubbish, 8)
    }

    /// Fills the table, and only then links it.
    fn link_again(&mut self, cpu: &mut Cpu<'_>, number: usize) -> Result<()> {
        let chameleon = &self.guest.estates[self.vcpu].chameleons[number];
        let values: Vec<(Word, u64)> = chameleon
            .words
            .iter()
            .enumerate()
            .map(|(at, &word)| {
                let value = match chameleon.links.get(at) {
                    Some(&table) => self.link_to(table),
                    None => self.leaf_value(),
                };
                (word, value)
            })
            .collect();
        if self.rng.bool() {
            let mut page = [0; ENTRIES];
            for (at, &(_, value)) in values.iter().enumerate() {
                page[at] = value;
            }
            self.edits += 1;
            self.figures.edits += values.len() as u64;
            self.figures.host_operations += 1;
            for &(word, value) in &values {
                self.guest.log(word).begin(value, Stamp::new(self.vcpu, self.edits, false));
            }
            let op = Op::new(OpKind::HostPage, chameleon.gpa);
            let outcome = self.execute(cpu, op, &[page])?;
            self.expect("host page", &op, outcome, Outcome::Ok(0));
            self.clock.done(self.vcpu, self.edits);
        } else {
            for (word, value) in values {
                self.edit(cpu, word, value)?;
            }
        }
        self.edit(cpu, chameleon.parent, chameleon.gpa & PHYS_MASK | LINK)?;
        self.reuse[number].state = State::Linked;
        self.figures.table_reuses += 1;
        Ok(())
    }
}
