//! The oracle: which outcomes of a guest access are right (D.5).
//!
//! A translation is right if *each* entry that it uses held its value at some instant since this vCPU last invalidated the
//! page, or everything; entries of different levels may be of different instants. A fault, and an exit to the device model,
//! must be what a walk gives with values that the entries held *during the access*: nothing that faults is ever cached.
//!
//! It walks the logs of the guest's words and knows nothing of shadow pages, nor of the core's own walk.

use smallvec::SmallVec;

use super::{
    guest::{Guest, PTE_USER, PTE_WRITE},
    history::{Forgotten, Known, Values},
};
use crate::{
    access::{Access, AccessFlags, AccessKind, FaultCode},
    addr::{Gva, Level, PAGE_SIZE, PHYS_MASK},
    op::Outcome,
    paging::{PTE_LARGE, PTE_NX, PTE_PRESENT},
    regs::{CR0_WP, CR4_SMEP, ControlRegs, EFER_NXE},
};

/// Gpas of pages; seldom more than one.
pub(super) type Pages = SmallVec<[u64; 4]>;

/// One access, and what its vCPU knows.
#[derive(Clone, Copy, Debug)]
pub(super) struct Query<'a> {
    pub(super) guest: &'a Guest,
    pub(super) regs: ControlRegs,
    pub(super) gva: Gva,
    pub(super) kind: AccessKind,
    pub(super) flags: AccessFlags,
    /// What was known when the page was last invalidated.
    pub(super) since: &'a Known,
    /// What was known when the access began.
    pub(super) start: &'a Known,
}

/// What the oracle says of an outcome.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Verdict {
    /// It is right.
    Right,
    /// It is wrong; what would have been right.
    Wrong(String),
    /// Too much has happened since: it cannot be told.
    Unknown,
}

/// Where a walk ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum End {
    Page(u64),
    Fault(FaultCode),
}

/// Which values an entry may be used with.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Epoch {
    /// Since the page was invalidated: what a TLB may hold.
    Cached,
    /// During the access: what a walk of the guest's tables finds.
    Current,
}

impl Query<'_> {
    /// The pages that the access may reach without a fault.
    pub(super) fn pages(&self) -> Result<Pages, Forgotten> {
        let mut pages = Pages::new();
        self.ends(Epoch::Cached, &mut |end| {
            if let End::Page(page) = end
                && page < self.guest.pages * PAGE_SIZE
                && !pages.contains(&page)
            {
                pages.push(page);
            }
        })?;
        Ok(pages)
    }

    /// Judges a fault or an exit to the device model.
    pub(super) fn judge_exit(&self, outcome: Outcome) -> Verdict {
        let mut ends: SmallVec<[End; 4]> = SmallVec::new();
        let found = self.ends(Epoch::Current, &mut |end| {
            if !ends.contains(&end) {
                ends.push(end);
            }
        });
        let right = ends.iter().any(|&end| match (end, outcome) {
            (End::Fault(code), Outcome::PageFault { address, code: got }) => code == got && address == self.gva,
            (End::Page(page), Outcome::Mmio(gpa)) => {
                page >= self.guest.pages * PAGE_SIZE && gpa.get() == (page | self.gva.offset())
            }
            _ => false,
        });
        match (right, found) {
            (true, _) => Verdict::Right,
            (false, Err(Forgotten)) => Verdict::Unknown,
            (false, Ok(())) => Verdict::Wrong(format!("a walk of the tables gives {ends:x?}")),
        }
    }

    fn ends(&self, epoch: Epoch, visit: &mut impl FnMut(End)) -> Result<(), Forgotten> {
        let root = (self.regs.cr3 & PHYS_MASK) / PAGE_SIZE;
        self.walk(epoch, Level::PML4, root, Access::all(), visit)
    }

    fn walk(
        &self,
        epoch: Epoch,
        level: Level,
        table: u64,
        rights: Access,
        visit: &mut impl FnMut(End),
    ) -> Result<(), Forgotten> {
        let mut values = Values::new();
        let since = if epoch == Epoch::Cached { self.since } else { self.start };
        match self.guest.entry(table, level.index(self.gva)) {
            Some(log) => log.values(since, self.start, &mut values)?,
            None => values.push(0),
        }
        for entry in values {
            if entry & PTE_PRESENT == 0 {
                visit(End::Fault(self.code()));
            } else if epoch == Epoch::Current && entry & PTE_NX != 0 && self.regs.efer & EFER_NXE == 0 {
                visit(End::Fault(self.code() | FaultCode::PRESENT | FaultCode::RSVD));
            } else {
                let rights = rights & rights_of(entry);
                let last = level.is_last() || (level == Level::PD && entry & PTE_LARGE != 0);
                if !last {
                    self.walk(epoch, level.down(), (entry & PHYS_MASK) / PAGE_SIZE, rights, visit)?;
                } else if self.permits(rights) {
                    let inside = level.frames_per_entry() * PAGE_SIZE - PAGE_SIZE;
                    visit(End::Page(entry & PHYS_MASK & !inside | self.gva.get() & inside));
                } else {
                    visit(End::Fault(self.code() | FaultCode::PRESENT));
                }
            }
        }
        Ok(())
    }

    /// CR0.WP, CR4.SMEP and the rights of the path (SDM vol. 3A, 4.6).
    fn permits(&self, rights: Access) -> bool {
        let user = self.flags.is_user();
        if user && !rights.contains(Access::USER) {
            return false;
        }
        match self.kind {
            AccessKind::Read => true,
            AccessKind::Write => rights.contains(Access::WRITE) || (!user && self.regs.cr0 & CR0_WP == 0),
            AccessKind::Fetch => {
                let smep = !user && rights.contains(Access::USER) && self.regs.cr4 & CR4_SMEP != 0;
                rights.contains(Access::EXEC) && !smep
            }
        }
    }

    /// W, U and F of a fault's code; F only where the processor has a reason to tell (SDM vol. 3A, 4.7).
    fn code(&self) -> FaultCode {
        let mut code = FaultCode::empty();
        code.set(FaultCode::WRITE, self.kind.is_write());
        code.set(FaultCode::USER, self.flags.is_user());
        let told = self.regs.efer & EFER_NXE != 0 || self.regs.cr4 & CR4_SMEP != 0;
        code.set(FaultCode::FETCH, self.kind.is_fetch() && told);
        code
    }
}

fn rights_of(entry: u64) -> Access {
    let mut rights = Access::empty();
    rights.set(Access::WRITE, entry & PTE_WRITE != 0);
    rights.set(Access::USER, entry & PTE_USER != 0);
    rights.set(Access::EXEC, entry & PTE_NX == 0);
    rights
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stress::{guest::LINK, history::Clock, history::Stamp};

    fn query<'a>(guest: &'a Guest, known: &'a Known, kind: AccessKind) -> Query<'a> {
        let process = &guest.processes[0];
        let regs = ControlRegs { cr3: process.user, ..ControlRegs::default() };
        Query {
            guest,
            regs,
            gva: Gva::new(process.pages[0]),
            kind,
            flags: AccessFlags::USER,
            since: known,
            start: known,
        }
    }

    #[test]
    fn d5_each_level_may_be_of_another_instant_and_a_fault_may_not() {
        let (guest, _) = Guest::new(1, Guest::bytes_needed(1)).unwrap();
        let clock = Clock::new(1);
        let (since, mut now) = (clock.nothing(), clock.nothing());
        let leaf = guest.estates[0].leaves.iter().find(|leaf| leaf.gva == guest.processes[0].pages[0]).unwrap();
        let old = guest.log(leaf.word).newest() & PHYS_MASK;
        guest.log(leaf.word).begin(0, Stamp::new(0, 1, false));
        clock.done(0, 1);
        clock.learn(0, &mut now);
        let cached = Query { since: &since, start: &now, ..query(&guest, &now, AccessKind::Read) };
        assert_eq!(cached.pages().unwrap().to_vec(), [old], "stale until invalidated");
        assert!(query(&guest, &now, AccessKind::Read).pages().unwrap().is_empty());
        let code = FaultCode::USER;
        let fault = Outcome::PageFault { address: cached.gva, code };
        assert_eq!(cached.judge_exit(fault), Verdict::Right);
        let write = Outcome::PageFault { address: cached.gva, code: code | FaultCode::WRITE };
        assert!(matches!(cached.judge_exit(write), Verdict::Wrong(_)));
        guest.log(leaf.word).begin(old | LINK, Stamp::new(0, 2, false));
        clock.done(0, 2);
        clock.learn(0, &mut now);
        assert!(matches!(query(&guest, &now, AccessKind::Read).judge_exit(fault), Verdict::Wrong(_)));
    }

    #[test]
    fn rights_are_those_of_the_whole_path_under_wp_smep_and_nx() {
        let (guest, _) = Guest::new(1, Guest::bytes_needed(1)).unwrap();
        let known = Clock::new(1).nothing();
        let branch = &guest.estates[0].branches[0];
        let value = guest.log(branch.word).newest();
        guest.log(branch.word).begin(value & !PTE_WRITE, Stamp::new(0, 0, false));
        let write = query(&guest, &known, AccessKind::Write);
        assert!(write.pages().unwrap().is_empty());
        let supervisor = Query { flags: AccessFlags::empty(), ..write };
        assert!(supervisor.pages().unwrap().is_empty());
        let mut regs = supervisor.regs;
        regs.cr0 &= !CR0_WP;
        assert_eq!(Query { regs, ..supervisor }.pages().unwrap().len(), 1);
        regs.cr4 |= CR4_SMEP;
        let fetch = Query { kind: AccessKind::Fetch, ..supervisor };
        assert_eq!(fetch.pages().unwrap().len(), 1);
        assert!(Query { regs, ..fetch }.pages().unwrap().is_empty());
        // The user half of the kernel's root is not executable, which is a reserved bit without EFER.NXE.
        regs.cr3 = guest.processes[0].kernel;
        regs.efer &= !EFER_NXE;
        let code = FaultCode::PRESENT | FaultCode::RSVD | FaultCode::WRITE;
        let kernel = Query { regs, ..supervisor };
        assert_eq!(kernel.judge_exit(Outcome::PageFault { address: kernel.gva, code }), Verdict::Right);
    }
}
