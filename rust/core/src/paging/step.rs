//! One step of a walk: what one entry leads to (B.2, steps 3 to 7). Every walk of the guest's tables is made of it.

use super::{PTE_LARGE, PTE_PRESENT, PermissionRules, ReservedBits, entry_access, format::EntryFormat};
use crate::{
    access::{Access, AccessFlags, AccessKind, FaultCode},
    addr::{Gfn, Gpa, Gva, Level, PHYS_MASK},
    regs::PagingMode,
};

/// What decides a walk beside the tables.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct WalkContext<'a> {
    /// The paging mode.
    pub mode: PagingMode,
    /// Highest level whose entries map pages if bit 7 is set.
    pub largest: Level,
    /// Reserved bits.
    pub reserved: &'a ReservedBits,
    /// Permissions.
    pub rules: PermissionRules,
    /// W is kept in the result although the leaf's D is 0 (a mutant; false in every real machine).
    pub keep_write_when_clean: bool,
    /// The entries above the leaf limit no right (a mutant; false in every real machine).
    pub leaf_rights_only: bool,
}

impl WalkContext<'_> {
    /// Level of the first table that is read; under PAE the one that a PDPTR leads to.
    #[inline]
    pub(super) const fn top(&self) -> Level {
        match self.mode {
            PagingMode::Long5 => Level::PML5,
            PagingMode::Long4 => Level::PML4,
            PagingMode::None | PagingMode::Bits32 | PagingMode::Pae => Level::PD,
        }
    }

    /// The first table, that CR3 or under PAE a PDPTR leads to. The bits of a PDPTR give no rights, but it must be present (step 1).
    #[inline]
    pub(super) fn first_table(&self, root: u64) -> Option<Gfn> {
        (self.mode != PagingMode::Pae || root & PTE_PRESENT != 0).then(|| Gpa::new(root & PHYS_MASK).gfn())
    }
}

/// The access that a walk is made for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Asked {
    kind: AccessKind,
    flags: AccessFlags,
    /// The error code of an entry that is not present; W, U and F are in every other too.
    pub(super) not_present: FaultCode,
}

impl Asked {
    /// F is told only where the processor defines it.
    #[inline]
    pub(crate) fn new(rules: PermissionRules, kind: AccessKind, flags: AccessFlags) -> Self {
        let mut not_present = FaultCode::of(kind, flags);
        not_present.set(FaultCode::FETCH, kind.is_fetch() && rules.reports_fetch());
        Self { kind, flags, not_present }
    }
}

/// Where an entry leads.
#[derive(Clone, Copy, Debug)]
pub(super) enum Step {
    /// To a table of the next level down, with the rights so far.
    Table(Gfn, Access),
    /// To the frame of the address, with all rights; the access is permitted.
    Leaf(Gfn, Access),
}

/// Takes one step: checks the entry that was read at `level` under rights so far, and the access if it is the leaf.
#[inline]
pub(super) fn step<F: EntryFormat>(
    context: &WalkContext<'_>,
    asked: Asked,
    gva: Gva,
    level: Level,
    access: Access,
    pte: u64,
) -> Result<Step, FaultCode> {
    if pte & PTE_PRESENT == 0 {
        return Err(asked.not_present);
    }
    if context.reserved.violates(pte, level) {
        return Err(asked.not_present | FaultCode::PRESENT | FaultCode::RSVD);
    }
    let access = if context.leaf_rights_only { entry_access(pte) } else { access & entry_access(pte) };
    // The walk ends at level 1 whatever bit 7 says (F-30).
    if level.is_last() || (pte & PTE_LARGE != 0 && level <= context.largest) {
        if !context.rules.permits(access, asked.kind, asked.flags) {
            return Err(asked.not_present | FaultCode::PRESENT);
        }
        return Ok(Step::Leaf(F::target(pte, level, gva), access));
    }
    Ok(Step::Table(Gpa::new(pte & PHYS_MASK).gfn(), access))
}
