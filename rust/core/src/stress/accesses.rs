//! A vCPU's accesses, and their judgement.

use super::{
    actor::Actor,
    guest::{Guest, SIGNATURE_WORD},
    judge::{Query, Verdict},
};
use crate::{
    access::{AccessFlags, AccessKind, FaultCode},
    addr::{Gva, PAGE_SIZE},
    error::Result,
    op::{Op, OpKind, Outcome},
    vm::Cpu,
};

/// What an access does with its page.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Use {
    Translate(AccessKind),
    /// The signature tells the frame.
    LoadSignature(u64),
    /// Own word of this number.
    LoadOwn(usize),
    Store(usize),
}

impl Actor<'_> {
    /// One access to some page, judged.
    pub(super) fn touch(&mut self, cpu: &mut Cpu<'_>) -> Result<()> {
        let page = self.some_page();
        let user = !self.in_kernel || self.rng.u8(..) < 32;
        let number = self.rng.usize(..self.guest.own_words);
        let what = match self.rng.u8(..16) {
            0..5 => Use::Store(number),
            5..7 => Use::LoadOwn(number),
            7..10 => Use::LoadSignature(8),
            10 => Use::LoadSignature(2),
            11..13 => Use::Translate(AccessKind::Read),
            13..15 => Use::Translate(AccessKind::Write),
            _ => Use::Translate(AccessKind::Fetch),
        };
        self.access(cpu, page, user, what)
    }

    fn access(&mut self, cpu: &mut Cpu<'_>, page: u64, user: bool, what: Use) -> Result<()> {
        self.clock.learn(self.vcpu, &mut self.start);
        let own = |number| self.guest.own_word(self.vcpu, number) * 8;
        let mut op = match what {
            Use::Translate(AccessKind::Read) => Op::new(OpKind::Read, page),
            Use::Translate(AccessKind::Write) => Op::new(OpKind::Write, page),
            Use::Translate(AccessKind::Fetch) => Op::new(OpKind::Fetch, page),
            Use::LoadSignature(size) => Op { aux: size as u32, ..Op::new(OpKind::Load, page + SIGNATURE_WORD * 8) },
            Use::LoadOwn(number) => Op { aux: 8, ..Op::new(OpKind::Load, page + own(number)) },
            Use::Store(number) => {
                self.stored += 1;
                let value = (self.vcpu as u64) << 48 | self.stored;
                Op { aux: 8, value, ..Op::new(OpKind::Store, page + own(number)) }
            }
        };
        if user {
            op = op.with_flags(AccessFlags::USER.bits());
        }
        let outcome = self.execute(cpu, op, &[])?;
        self.judge(cpu, &op, outcome, what);
        Ok(())
    }

    fn judge(&mut self, cpu: &Cpu<'_>, op: &Op, outcome: Outcome, what: Use) {
        let gva = Gva::new(op.addr);
        let kind = match what {
            Use::Translate(kind) => kind,
            Use::Store(_) => AccessKind::Write,
            Use::LoadOwn(_) | Use::LoadSignature(_) => AccessKind::Read,
        };
        let page = self.pages.get(&gva.page()).filter(|(generation, _)| *generation == self.generation);
        let since = page.map_or(&self.base, |(_, known)| known);
        let query = Query {
            guest: self.guest,
            regs: *cpu.regs(),
            gva,
            kind,
            flags: op.access_flags(),
            since,
            start: &self.start,
        };
        let verdict = match outcome {
            Outcome::Ok(value) => {
                let pages = query.pages();
                if let Some(record) = &mut self.record {
                    record.note_legal(pages.as_deref().unwrap_or_default());
                }
                match pages {
                    Err(_) => Verdict::Unknown,
                    Ok(pages) if pages.iter().any(|&page| self.agrees(page | gva.offset(), value, what)) => {
                        Verdict::Right
                    }
                    Ok(pages) => Verdict::Wrong(format!("the page may be at {pages:x?}")),
                }
            }
            Outcome::PageFault { .. } | Outcome::Mmio(_) => query.judge_exit(outcome),
            Outcome::GeneralProtection | Outcome::InvalidOpcode | Outcome::TripleFault => {
                Verdict::Wrong("no such outcome is possible".into())
            }
        };
        match (outcome, what) {
            (Outcome::Ok(gpa), Use::Store(number)) => self.remember(gpa, number, op.value),
            (Outcome::PageFault { code, .. }, _) => {
                self.figures.faults += 1;
                if code.contains(FaultCode::PRESENT) && !code.contains(FaultCode::RSVD) {
                    // The injected fault evicts the page (E070).
                    self.invalidated(gva.get());
                }
            }
            _ => {}
        }
        match verdict {
            Verdict::Right => self.figures.accesses_checked += 1,
            Verdict::Unknown => self.figures.unjudged += 1,
            Verdict::Wrong(why) => {
                let root = if self.in_kernel { "kernel" } else { "user" };
                let text =
                    format!("{op:x?} under the {root}'s root of process {} came to {outcome:x?}: {why}", self.process);
                self.report("D.5", text);
            }
        }
    }

    /// Whether a right translation to `gpa` gives this result.
    fn agrees(&self, gpa: u64, value: u64, what: Use) -> bool {
        let frame = gpa & !(PAGE_SIZE - 1);
        match what {
            Use::Translate(_) | Use::Store(_) => value == gpa,
            Use::LoadSignature(8) => value == Guest::signature(frame),
            Use::LoadSignature(_) => value == Guest::signature(frame) & 0xffff,
            Use::LoadOwn(number) => self.last_stored(frame, number) == Some(value),
        }
    }

    fn last_stored(&self, frame: u64, number: usize) -> Option<u64> {
        self.guest.frame_at(frame).map(|at| self.last[at * self.guest.own_words + number])
    }

    fn remember(&mut self, gpa: u64, number: usize, value: u64) {
        if let Some(at) = self.guest.frame_at(gpa) {
            self.last[at * self.guest.own_words + number] = value;
        }
    }

    /// What this vCPU's words of the data frames must hold: (gpa, value).
    pub(super) fn words_stored(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        self.guest.frames.iter().enumerate().flat_map(move |(at, frame)| {
            (0..self.guest.own_words).map(move |number| {
                let gpa = frame + self.guest.own_word(self.vcpu, number) * 8;
                (gpa, self.last[at * self.guest.own_words + number])
            })
        })
    }

    /// Translates every page of every root with the tables as they are, all vCPUs at rest.
    pub(super) fn sweep(&mut self, cpu: &mut Cpu<'_>) -> Result<()> {
        for process in 0..self.guest.processes.len() {
            // Each vCPU its own processes and the shared ones: all together are many.
            let shared = self.guest.processes.len() - self.guest.vcpus;
            if process >= shared && process != shared + self.vcpu {
                continue;
            }
            self.process = process;
            for kernel in [true, false] {
                self.in_kernel = kernel;
                let roots = &self.guest.processes[process];
                self.flush_with(cpu, OpKind::WriteCr3, if kernel { roots.kernel } else { roots.user })?;
                for &page in &roots.pages {
                    for kind in [AccessKind::Read, AccessKind::Write, AccessKind::Fetch] {
                        self.access(cpu, page, true, Use::Translate(kind))?;
                        self.access(cpu, page, false, Use::Translate(kind))?;
                    }
                    self.figures.swept += 1;
                }
            }
        }
        Ok(())
    }

    /// Accesses a page that was just invalidated: what is stale shows before something else flushes it.
    pub(super) fn touch_again(&mut self, cpu: &mut Cpu<'_>, page: u64) -> Result<()> {
        for user in [true, false] {
            if self.rng.bool() {
                let kind = if self.rng.bool() { AccessKind::Write } else { AccessKind::Read };
                self.access(cpu, page, user, Use::Translate(kind))?;
            }
        }
        Ok(())
    }
}
