//! One step of a walk: what one entry leads to (B.2, steps 3 to 7). Every walk of the guest's tables is made of it.

use super::{
    PTE_LARGE, PTE_NX, PTE_PRESENT, PermissionRules, ReservedBits, format::EntryFormat, permission::DeniedKeys,
};
use crate::{
    access::{Access, AccessFlags, AccessKind, FaultCode, ProtectionKey},
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
    /// Whether bits 62:59 of a leaf are its protection key: the processor has keys, and this is long mode.
    pub keyed: bool,
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
    /// The rights that count, and which of them must be there, as a walk has them: a check is one comparison.
    pub(super) counts: Rights,
    pub(super) needed: Rights,
    pub(super) denied_keys: DeniedKeys,
    /// The error code of an entry that is not present; W, U and F are in every other too.
    pub(super) not_present: FaultCode,
}

impl Asked {
    /// F is told only where the processor defines it.
    #[inline]
    pub(crate) fn new(rules: PermissionRules, kind: AccessKind, flags: AccessFlags) -> Self {
        let mut not_present = FaultCode::of(kind, flags);
        not_present.set(FaultCode::FETCH, kind.is_fetch() && rules.reports_fetch());
        let demand = rules.demand(kind, flags);
        Self {
            counts: Rights::from(demand.set.union(demand.clear)),
            needed: Rights::from(demand.set),
            denied_keys: rules.denied_keys(kind, flags),
            not_present,
        }
    }
}

/// Rights accumulated over the entries of a walk, as bits W, U and inverted NX where entries have them: a step is one AND.
#[derive(Clone, Copy, Default, Debug)]
pub(super) struct Rights(pub(super) u64);

impl Rights {
    /// Before the first entry.
    pub(super) const ALL: Self = Self(u64::MAX);

    /// NX counts inverted, so that rights accumulate by AND (B.2 step 3).
    #[inline]
    pub(super) const fn of(pte: u64) -> Self {
        Self(pte ^ PTE_NX)
    }

    /// No more than these, as bits.
    #[inline]
    pub(super) const fn from(access: Access) -> Self {
        let bits = access.bits() as u64;
        Self(bits << 63 | bits & 6)
    }

    /// The rights that an entry found under these leaves.
    #[inline]
    pub(super) const fn with(self, context: &WalkContext<'_>, pte: u64) -> Self {
        let only_these = cfg!(feature = "mutants") && context.leaf_rights_only;
        if only_these { Self::of(pte) } else { Self(self.0 & Self::of(pte).0) }
    }

    /// The rights told by name.
    #[inline]
    pub(super) const fn access(self) -> Access {
        Access::from_bits_truncate((self.0 >> 63 | self.0 & 6) as u8)
    }
}

/// Where an entry leads.
#[derive(Clone, Copy, Debug)]
pub(super) enum Step {
    /// To a table of the next level down, with the rights so far.
    Table(Gfn, Rights),
    /// To the frame of the address, with all rights; the access is permitted.
    Leaf(Gfn, Access),
}

/// The table that an entry leads to.
#[inline]
pub(super) const fn table_of(pte: u64) -> Gfn {
    Gpa::new(pte & PHYS_MASK).gfn()
}

/// Takes one step: checks the entry that was read at `level` under rights so far, and the access if it is the leaf.
#[inline(always)]
#[expect(clippy::inline_always, reason = "what is known of the level must be known here")]
pub(super) fn step<F: EntryFormat>(
    context: &WalkContext<'_>,
    asked: Asked,
    gva: Gva,
    level: Level,
    rights: Rights,
    pte: u64,
) -> Result<Step, FaultCode> {
    let plain = context.reserved.is_plain(pte, level);
    if !plain {
        if pte & PTE_PRESENT == 0 {
            return Err(asked.not_present);
        }
        if context.reserved.violates(pte, level) {
            return Err(asked.not_present | FaultCode::PRESENT | FaultCode::RSVD);
        }
    }
    let rights = rights.with(context, pte);
    // The walk ends at level 1 whatever bit 7 says (F-30).
    if level.is_last() || (!plain && pte & PTE_LARGE != 0 && level <= context.largest) {
        let access = rights.access();
        if asked.denied_keys.deny(access, ProtectionKey::of_entry(pte)) {
            return Err(asked.not_present | FaultCode::PRESENT | FaultCode::PK);
        }
        if (rights.0 ^ asked.needed.0) & asked.counts.0 != 0 {
            return Err(asked.not_present | FaultCode::PRESENT);
        }
        return Ok(Step::Leaf(F::target(pte, level, gva), access));
    }
    Ok(Step::Table(table_of(pte), rights))
}
