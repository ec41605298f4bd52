//! A run in turns, written down: each operation, what it came to, and which pages it might have reached.

use crate::{
    op::{Op, OpKind, Outcome, OutcomeRecord},
    vm::PageWords,
};

/// Operations in their order.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Record {
    /// The operations; row numbers refer to [`pages`](Self::pages).
    pub ops: Vec<Op>,
    /// What each came to.
    pub outcomes: Vec<OutcomeRecord>,
    /// Pages that the host wrote.
    pub pages: Vec<PageWords>,
    /// Index of an operation and a gpa of a page that its access might reach, for each that did not fault.
    pub legal: Vec<(u64, u64)>,
}

impl Record {
    pub(super) fn push(&mut self, op: Op, outcome: Outcome, pages: &[PageWords]) {
        let mut op = op;
        if op.kind == OpKind::HostPage as u8 {
            self.pages.push(pages[op.aux as usize]);
            op.aux = self.pages.len() as u32 - 1;
        }
        self.ops.push(op);
        self.outcomes.push(outcome.into());
    }

    /// The last operation might have reached these pages.
    pub(super) fn note_legal(&mut self, pages: &[u64]) {
        let index = self.ops.len() as u64 - 1;
        self.legal.extend(pages.iter().map(|&page| (index, page)));
    }

    /// Moves everything of `other` behind what is here.
    pub(super) fn append(&mut self, other: &mut Record) {
        let (ops, rows) = (self.ops.len() as u64, self.pages.len() as u32);
        self.ops.extend(other.ops.drain(..).map(|mut op| {
            if op.kind == OpKind::HostPage as u8 {
                op.aux += rows;
            }
            op
        }));
        self.outcomes.append(&mut other.outcomes);
        self.pages.append(&mut other.pages);
        self.legal.extend(other.legal.drain(..).map(|(index, page)| (index + ops, page)));
    }
}
