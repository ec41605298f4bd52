//! The page fault under the lock: building the shadow path for a guest walk.
//!
//! KVM: `FNAME(fetch)`, `validate_direct_spte` (C.4).

use super::{
    MmuLocked, Requests,
    child::Child,
    set_spte::{Leaf, Maker, SetSpte},
};
use crate::{
    access::FaultCode,
    addr::{Gfn, Gva, Hpa, Level, SpId, SpteRef},
    config::Mutant,
    error::Result,
    memory::Near,
    paging::GuestWalk,
    role::{Directness, PageRole},
};

/// What the fault handler did. KVM: `RET_PF_*`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum FaultOutcome {
    /// Something changed meanwhile: try the access again.
    Retry,
    /// An SPTE was installed or changed.
    Fixed,
    /// The SPTE was already right.
    Spurious,
    /// The frame is a write-protected table and the access writes: emulate it.
    Emulate,
}

/// A fault for the guest.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct GuestFault {
    /// Its error code.
    pub(crate) code: FaultCode,
}

impl MmuLocked<'_> {
    /// Builds the shadow path of `walk` under `root` and installs its leaf.
    ///
    /// `root` is the root itself, `top` the shadow page in which the walk of `gva` begins.
    pub(crate) fn fetch(
        &mut self,
        root: Hpa,
        top: Option<SpId>,
        walk: &GuestWalk,
        gva: Gva,
        write: bool,
    ) -> Result<FaultOutcome> {
        // A root without a page of its own is as obsolete as the request says.
        if root.is_pae() && self.is_requested(Requests::FREE_OBSOLETE_ROOTS) {
            return Ok(FaultOutcome::Retry);
        }
        let Some(top) = top else {
            // The dummy root, or a PDPTR whose table was in no slot: it may exist by now, so load the root anew (E016).
            self.cx.requests |= Requests::FREE_OBSOLETE_ROOTS;
            return Ok(FaultOutcome::Retry);
        };
        let role = self.state.pages.page(top).role;
        let memory = self.shared.memory.near(walk.table_gfn[role.level().at()]);
        // An obsolete root waits for its request to be serviced; nothing is built under it (F-28).
        if (role.is_invalid() && !root.is_pae()) || walk.changed(&memory, role.level(), gva) {
            return Ok(FaultOutcome::Retry);
        }
        let Some((sp, role)) = self.fetch_tables(memory, (top, role), walk, gva)? else {
            return Ok(FaultOutcome::Retry);
        };
        let sp = if role.level().is_last() { sp } else { self.fetch_direct(sp, role, walk, gva)? };
        let at = SpteRef::new(sp, Level::PT.index(gva));
        let leaf = Leaf { gfn: walk.gfn, access: walk.access, key: walk.key };
        Ok(match self.set_spte(at, leaf, Maker::Fault { write }) {
            SetSpte::Fixed => FaultOutcome::Fixed,
            SetSpte::Spurious => FaultOutcome::Spurious,
            SetSpte::WriteProtected => FaultOutcome::Emulate,
        })
    }

    /// Whether this vCPU has the request pending, from itself or from others.
    fn is_requested(&self, request: Requests) -> bool {
        let others = self.cx.vcpu.map_or(0, |index| self.shared.modes[index].pending());
        (self.cx.requests | Requests::from_bits_truncate(others)).contains(request)
    }

    /// The pages that shadow the guest's tables, down to the one that holds the guest's leaf, and its role; `None` to retry.
    #[inline]
    fn fetch_tables(
        &mut self,
        memory: Near<'_>,
        top: (SpId, PageRole),
        walk: &GuestWalk,
        gva: Gva,
    ) -> Result<Option<(SpId, PageRole)>> {
        let (mut sp, mut role) = top;
        let mut level = role.level();
        while level > walk.leaf_level {
            self.shared.arena.header(sp).clear_flooding();
            let at = SpteRef::new(sp, level.index(gva));
            let below = level.down();
            let table = walk.table_gfn[below.at()];
            let wanted = role.child(walk.parent_access[below.at()], Directness::Indirect, at.at());
            let linked = self.linked_child(at, table, wanted);
            let (child, its_role) = match linked {
                Some(found) => found,
                None => (self.get_synced_page(at, table, wanted)?, wanted),
            };
            // From here on a change of the entry is trapped or marked; one that came before makes the walk void.
            if walk.changed(&memory, below, gva) {
                return Ok(None);
            }
            if linked.is_none() {
                self.link_child(at, child);
            }
            (sp, role, level) = (child, its_role, below);
        }
        Ok(Some((sp, role)))
    }

    /// A page that is to be linked at `at`, without stale entries.
    #[inline(never)]
    fn get_synced_page(&mut self, at: SpteRef, table: Gfn, role: PageRole) -> Result<SpId> {
        let child = self.get_page(table, role, Some(at))?;
        // Never link stale entries: the guest owes no flush for non-present to present (E142, F-14).
        let unsync = self.shared.arena.header(child).sync_state().children_locked() != 0;
        if unsync && !self.shared.mutated(Mutant::LinkWithoutSync) {
            self.sync_children(child);
        }
        Ok(child)
    }

    /// Below a large guest leaf: direct pages, since host pages are small (E132).
    #[inline(never)]
    fn fetch_direct(&mut self, sp: SpId, role: PageRole, walk: &GuestWalk, gva: Gva) -> Result<SpId> {
        let (mut sp, mut role) = (sp, role);
        while !role.level().is_last() {
            let level = role.level();
            self.shared.arena.header(sp).clear_flooding();
            let at = SpteRef::new(sp, level.index(gva));
            self.validate_direct(at, walk);
            role = role.child(walk.access, Directness::Direct(walk.key), at.at());
            sp = match self.get_child(at, walk.gfn.round_down(level), role)? {
                Child::Linked(child) => child,
                Child::Unlinked(child) => {
                    self.link_child(at, child);
                    child
                }
            };
        }
        Ok(sp)
    }

    /// Drops a linked direct page whose rights or key are not those wanted (E133). KVM: `validate_direct_spte`.
    fn validate_direct(&mut self, at: SpteRef, walk: &GuestWalk) {
        if let Some(child) = self.spte(at).child() {
            let role = self.state.pages.page(child).role;
            if role.is_direct() && (role.access() != walk.access || role.key() != walk.key) {
                self.unlink_child(at, child);
                self.shared.flush_remote(self.cx);
            }
        }
    }
}
