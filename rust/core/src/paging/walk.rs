//! The guest page walk with all checks, A/D updates included (B.2).

use super::{PTE_ACCESSED, PTE_DIRTY, PTE_LARGE, PTE_PRESENT, PermissionRules, ReservedBits, entry_access};
use crate::{
    access::{Access, AccessFlags, AccessKind, FaultCode},
    addr::{Gfn, Gpa, Gva, Level, PHYS_MASK},
};

/// Where guest tables live.
pub(crate) trait TableMemory {
    /// Reads the entry at `gpa` (8-byte aligned) with Acquire; `None` where no memslot has it.
    fn read_entry(&self, gpa: Gpa) -> Option<u64>;
    /// Replaces the entry by compare-and-exchange; false if it no longer held `old`.
    fn update_entry(&self, gpa: Gpa, old: u64, new: u64) -> bool;
}

/// What decides a walk beside the tables.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct WalkContext {
    /// Level of the root table.
    pub root_level: Level,
    /// Reserved bits.
    pub reserved: ReservedBits,
    /// Permissions.
    pub rules: PermissionRules,
    /// W is kept in the result although the leaf's D is 0 (a mutant; false in every real machine).
    pub keep_write_when_clean: bool,
    /// The entries above the leaf limit no right (a mutant; false in every real machine).
    pub leaf_rights_only: bool,
}

/// A finished walk. KVM: `struct guest_walker`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct GuestWalk {
    /// Level of the leaf.
    pub leaf_level: Level,
    /// The frame reached, the in-page frame of a large leaf included.
    pub gfn: Gfn,
    /// Rights of the translation; W dropped if the leaf is clean and the access is no write (step 9).
    pub access: Access,
    /// Rights accumulated over the entries above each level's table (F-20).
    pub parent_access: [Access; 6],
    /// Frame of each level's table.
    pub table_gfn: [Gfn; 6],
    /// Each level's entry as it was left.
    pub pte: [u64; 6],
}

impl GuestWalk {
    /// Address of the entry that the walk used at `level`.
    #[inline]
    pub(crate) fn entry_gpa(&self, level: Level, gva: Gva) -> Gpa {
        entry_gpa(self.table_gfn[level.at()], level, gva)
    }
}

#[inline]
fn entry_gpa(table: Gfn, level: Level, gva: Gva) -> Gpa {
    Gpa::new(table.gpa().get() | (level.index(gva) as u64) << 3)
}

/// Walks the guest's tables from `cr3`, as the guest's processor would.
///
/// A and D are written only after every check passed (step 11); the leaf's gpa itself need not be in a slot.
///
/// # Errors
/// The error code of the page fault to inject.
pub(crate) fn walk(
    memory: &impl TableMemory,
    context: &WalkContext,
    cr3: u64,
    gva: Gva,
    kind: AccessKind,
    flags: AccessFlags,
) -> Result<GuestWalk, FaultCode> {
    loop {
        let mut result = descend(memory, context, cr3, gva, kind, flags)?;
        // A value that changed under us restarts the walk (step 10, E105).
        if update_accessed_dirty(memory, context, &mut result, gva, kind) {
            return Ok(result);
        }
    }
}

/// Steps 1 to 9: everything but the A/D update.
#[inline]
fn descend(
    memory: &impl TableMemory,
    context: &WalkContext,
    cr3: u64,
    gva: Gva,
    kind: AccessKind,
    flags: AccessFlags,
) -> Result<GuestWalk, FaultCode> {
    let mut fault = FaultCode::of(kind, flags);
    fault.set(FaultCode::FETCH, kind.is_fetch() && context.rules.reports_fetch());
    let mut walk = GuestWalk {
        leaf_level: context.root_level,
        gfn: Gfn::new(0),
        access: Access::all(),
        parent_access: [Access::all(); 6],
        table_gfn: [Gfn::new(0); 6],
        pte: [0; 6],
    };
    let mut level = context.root_level;
    let mut table = Gpa::new(cr3 & PHYS_MASK).gfn();
    let mut access = Access::all();
    loop {
        walk.table_gfn[level.at()] = table;
        walk.parent_access[level.at()] = access;
        // A table outside memory is a not-present style fault (step 2).
        let pte = memory.read_entry(entry_gpa(table, level, gva)).ok_or(fault)?;
        if pte & PTE_PRESENT == 0 {
            return Err(fault);
        }
        if context.reserved.violates(pte, level) {
            return Err(fault | FaultCode::PRESENT | FaultCode::RSVD);
        }
        walk.pte[level.at()] = pte;
        access = if context.leaf_rights_only { entry_access(pte) } else { access & entry_access(pte) };
        // The walk ends at level 1 whatever bit 7 says (F-30).
        if level.is_last() || pte & PTE_LARGE != 0 {
            if !context.rules.permits(access, kind, flags) {
                return Err(fault | FaultCode::PRESENT);
            }
            let base = Gpa::new(pte & PHYS_MASK).gfn().round_down(level);
            let within = gva.page() & (level.frames_per_entry() - 1);
            walk.leaf_level = level;
            walk.gfn = Gfn::new(base.get() | within);
            walk.access = access;
            return Ok(walk);
        }
        table = Gpa::new(pte & PHYS_MASK).gfn();
        level = level.down();
    }
}

/// Steps 9 and 10: sets A at every level and D at a written leaf; false if an entry had changed.
#[inline]
fn update_accessed_dirty(
    memory: &impl TableMemory,
    context: &WalkContext,
    walk: &mut GuestWalk,
    gva: Gva,
    kind: AccessKind,
) -> bool {
    let mut level = context.root_level;
    loop {
        let at_leaf = level == walk.leaf_level;
        let old = walk.pte[level.at()];
        let want = PTE_ACCESSED | if at_leaf && kind.is_write() { PTE_DIRTY } else { 0 };
        if old & want != want {
            let new = old | want;
            if !memory.update_entry(walk.entry_gpa(level, gva), old, new) {
                return false;
            }
            walk.pte[level.at()] = new;
        }
        if at_leaf {
            break;
        }
        level = level.down();
    }
    // The first write must fault so that D can be set (step 9).
    if walk.pte[level.at()] & PTE_DIRTY == 0 && !context.keep_write_when_clean {
        walk.access.remove(Access::WRITE);
    }
    true
}

#[cfg(test)]
mod tests;
