//! The guest page walk with all checks, A/D updates included (B.2).

use super::{
    PTE_ACCESSED, PTE_DIRTY,
    format::{EntryFormat, Pte32, Pte64, TableMemory, Update},
    step::{Asked, Rights, Step, WalkContext, step},
};
use crate::{
    access::{Access, AccessFlags, AccessKind, FaultCode, ProtectionKey},
    addr::{Gfn, Gpa, Gva, Level},
    regs::PagingMode,
};

/// A finished walk. KVM: `struct guest_walker`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct GuestWalk {
    /// The mode in which it was made.
    pub mode: PagingMode,
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
    /// Protection key of the page.
    pub key: ProtectionKey,
}

impl GuestWalk {
    /// Linear address = physical address (E103): no tables, no rights, nothing to go stale.
    const fn identity(gva: Gva) -> Self {
        Self {
            mode: PagingMode::None,
            leaf_level: Level::PD,
            gfn: Gfn::new(gva.page()),
            access: Access::all(),
            parent_access: [Access::all(); 6],
            table_gfn: [Gfn::new(0); 6],
            pte: [0; 6],
            key: ProtectionKey::NONE,
        }
    }

    /// What direct tables are to have for a guest-physical address: itself, with all rights and from the top.
    pub(crate) const fn direct(gpa: Gpa) -> Self {
        Self { leaf_level: Level::PML4, ..Self::identity(Gva::new(gpa.get())) }
    }

    /// Whether the leaf says that it was written through; what no entry maps is as if.
    #[inline]
    pub(crate) const fn is_dirty(&self) -> bool {
        matches!(self.mode, PagingMode::None) || self.pte[self.leaf_level.at()] & PTE_DIRTY != 0
    }

    /// Whether the guest's entry at `level` is no longer the one walked.
    #[inline]
    pub(crate) fn changed(&self, memory: &impl TableMemory, level: Level, gva: Gva) -> bool {
        let (table, seen) = (self.table_gfn[level.at()], self.pte[level.at()]);
        match self.mode {
            PagingMode::Pae | PagingMode::Long4 | PagingMode::Long5 => {
                Pte64::read(memory, Pte64::entry_gpa(table, level, gva)) != Some(seen)
            }
            PagingMode::Bits32 => Self::half_changed(memory, Pte32::entry_gpa(table, level, gva), seen),
            PagingMode::None => false,
        }
    }

    #[inline(never)]
    fn half_changed(memory: &impl TableMemory, gpa: Gpa, seen: u64) -> bool {
        Pte32::read(memory, gpa) != Some(seen)
    }
}

/// Walks the guest's tables, as the guest's processor would. `root` is CR3, under PAE paging the PDPTR for `gva`.
///
/// A and D are written only after every check passed (step 11); the leaf's gpa itself need not be in a slot.
///
/// # Errors
/// The error code of the page fault to inject.
#[inline]
pub(crate) fn walk(
    memory: &impl TableMemory,
    context: &WalkContext<'_>,
    root: u64,
    gva: Gva,
    kind: AccessKind,
    flags: AccessFlags,
) -> Result<GuestWalk, FaultCode> {
    match context.mode {
        PagingMode::Pae | PagingMode::Long4 | PagingMode::Long5 => {
            walk_with::<Pte64>(memory, context, root, gva, kind, flags)
        }
        PagingMode::None | PagingMode::Bits32 => walk_rarely(memory, context, root, gva, kind, flags),
    }
}

/// The modes of which a guest makes little use; apart, so that the others' walk stays one piece with the fault that makes it.
#[inline(never)]
fn walk_rarely(
    memory: &impl TableMemory,
    context: &WalkContext<'_>,
    root: u64,
    gva: Gva,
    kind: AccessKind,
    flags: AccessFlags,
) -> Result<GuestWalk, FaultCode> {
    match context.mode {
        PagingMode::Bits32 => walk_with::<Pte32>(memory, context, root, gva, kind, flags),
        _ => Ok(GuestWalk::identity(gva)),
    }
}

#[inline]
fn walk_with<F: EntryFormat>(
    memory: &impl TableMemory,
    context: &WalkContext<'_>,
    root: u64,
    gva: Gva,
    kind: AccessKind,
    flags: AccessFlags,
) -> Result<GuestWalk, FaultCode> {
    let asked = Asked::new(context.rules, kind, flags);
    loop {
        let mut walk = GuestWalk {
            mode: context.mode,
            leaf_level: context.top(),
            gfn: Gfn::new(0),
            access: Access::all(),
            parent_access: [Access::all(); 6],
            table_gfn: [Gfn::new(0); 6],
            pte: [0; 6],
            key: ProtectionKey::NONE,
        };
        (walk.gfn, walk.access) =
            descend::<F>(memory, context, asked, context.top(), root, gva, |level, table, above, pte| {
                walk.leaf_level = level;
                walk.table_gfn[level.at()] = table;
                walk.parent_access[level.at()] = above.access();
                walk.pte[level.at()] = pte;
            })?;
        if context.keyed {
            walk.key = ProtectionKey::of_entry(walk.pte[walk.leaf_level.at()]);
        }
        // A value that changed under us restarts the walk (step 10, E105).
        if update_accessed_dirty::<F>(memory, context, &mut walk, gva, kind) {
            return Ok(walk);
        }
    }
}

/// Steps 1 to 9, which change nothing: the frame that the access reaches and its rights. `seen` gets each entry on the way:
/// level, table, the rights above, the entry.
#[inline(always)]
#[expect(clippy::inline_always, reason = "a top level that the compiler knows makes a walk without a loop")]
pub(super) fn descend<F: EntryFormat>(
    memory: &impl TableMemory,
    context: &WalkContext<'_>,
    asked: Asked,
    top: Level,
    root: u64,
    gva: Gva,
    mut seen: impl FnMut(Level, Gfn, Rights, u64),
) -> Result<(Gfn, Access), FaultCode> {
    let mut level = top;
    let mut table = context.first_table(root).ok_or(asked.not_present)?;
    let mut rights = Rights::ALL;
    loop {
        // A table outside memory is a not-present style fault (step 2).
        let pte = F::read(memory, F::entry_gpa(table, level, gva)).ok_or(asked.not_present)?;
        seen(level, table, rights, pte);
        match step::<F>(context, asked, gva, level, rights, pte)? {
            Step::Leaf(gfn, access) => return Ok((gfn, access)),
            Step::Table(next, so_far) => (table, rights, level) = (next, so_far, level.down()),
        }
    }
}

/// Steps 9 and 10: sets A at every level and D at a written leaf, but in read-only tables (E107); false if an entry had changed.
#[inline]
fn update_accessed_dirty<F: EntryFormat>(
    memory: &impl TableMemory,
    context: &WalkContext<'_>,
    walk: &mut GuestWalk,
    gva: Gva,
    kind: AccessKind,
) -> bool {
    let mut level = context.top();
    loop {
        let at_leaf = level == walk.leaf_level;
        let old = walk.pte[level.at()];
        let want = PTE_ACCESSED | if at_leaf && kind.is_write() { PTE_DIRTY } else { 0 };
        if old & want != want {
            let new = old | want;
            match F::update(memory, F::entry_gpa(walk.table_gfn[level.at()], level, gva), old, new) {
                Update::Done => walk.pte[level.at()] = new,
                Update::Changed => return false,
                Update::ReadOnly => {}
            }
        }
        if at_leaf {
            break;
        }
        level = level.down();
    }
    // The first write must fault so that D can be set (step 9). The D of a write may be clear still, in a read-only table.
    if walk.pte[level.at()] & PTE_DIRTY == 0 && !kind.is_write() && !context.keep_write_when_clean {
        walk.access.remove(Access::WRITE);
    }
    true
}

#[cfg(test)]
mod tests;
