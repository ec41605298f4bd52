//! Roots under the lock: finding or making them, and giving them back.
//!
//! KVM: `mmu_alloc_root`, `mmu_free_root_page` (A.5).

use super::MmuLocked;
use crate::{
    addr::{Gfn, Hpa},
    error::Result,
    role::PageRole,
    shadow::page::Life,
};

impl MmuLocked<'_> {
    /// The root for the table at `gfn`, with one more reference.
    pub(crate) fn alloc_root(&mut self, gfn: Gfn, role: PageRole) -> Result<Hpa> {
        let sp = self.get_page(gfn, role, None)?;
        self.state.pages.page_mut(sp).root_refs.get();
        Ok(sp.hpa())
    }

    /// Gives back one reference. A valid page stays and can be found again (E034); an invalid one goes with its
    /// last reference (E035). The dummy root has no page.
    pub(crate) fn put_root(&mut self, root: Hpa) {
        let Some(sp) = root.shadow_page() else { return };
        let page = self.state.pages.page_mut(sp);
        if page.root_refs.put() && page.life == Life::PinnedInvalid {
            self.prepare_zap(sp);
        }
    }
}
