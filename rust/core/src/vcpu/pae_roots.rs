//! Roots of four entries: which pages they lead to and which PDPTRs they were made of (E040, E043).
//!
//! KVM: `mmu->pae_root`, of which there is one. Here each vCPU has as many tables of four entries as it may have roots, so that
//! such a root can be parked in the cache like any other; a root names its table by its address.

use super::roots::RootCache;
use crate::{
    addr::{Gva, Hpa, SpId},
    mmu::Shared,
    role::PageRole,
};

/// A table of four entries. A line of its own: tables of two vCPUs may be neighbours on the heap.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(align(64))]
pub struct PaeRoot {
    /// The pages of the four GiB, [`Hpa::default`] where there is none.
    pub pages: [Hpa; 4],
    /// The PDPTRs that it was made of; zeroes if the guest has none.
    pub pdptrs: [u64; 4],
}

impl PaeRoot {
    /// Its shadow pages with the number of their entries.
    fn entries(&self) -> impl Iterator<Item = (usize, SpId)> + '_ {
        self.pages.iter().enumerate().filter_map(|(gib, page)| page.shadow_page().map(|sp| (gib, sp)))
    }

    /// Whether it serves a vCPU with this root role that has loaded these PDPTRs: made of the same ones (F-10), and each page of
    /// the wanted role, the whole word, so that an obsolete page never serves (E024).
    pub(crate) fn serves(&self, shared: &Shared, role: PageRole, pdptrs: &[u64; 4]) -> bool {
        let has_role = |(gib, sp)| shared.arena.header(sp).role() == role.pae_root(gib);
        self.pdptrs == *pdptrs && self.entries().all(has_role)
    }
}

/// The tables of one vCPU.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PaeRoots(Box<[PaeRoot]>);

impl PaeRoots {
    /// So many tables, all empty.
    pub fn new(count: usize) -> Self {
        Self(vec![PaeRoot::default(); count].into_boxed_slice())
    }

    /// The table of a root, if it is a PAE root.
    pub fn get(&self, root: Hpa) -> Option<&PaeRoot> {
        root.pae_table().and_then(|at| self.0.get(at))
    }

    /// The page in which the walk of `gva` begins under a PAE root.
    #[inline]
    pub fn page_for(&self, root: Hpa, gva: Gva) -> Option<SpId> {
        self.get(root)?.pages[gva.gib()].shadow_page()
    }

    /// The pages of a PAE root, none under another root.
    pub fn pages(&self, root: Hpa) -> impl Iterator<Item = SpId> + '_ {
        self.get(root).into_iter().flat_map(|table| table.entries().map(|(_, sp)| sp))
    }

    /// Fills the lowest table that is no root's, and names it. There is one while the current root is invalid.
    pub fn fill(&mut self, roots: &RootCache, table: PaeRoot) -> Hpa {
        let in_use = |hpa: Hpa| roots.iter().any(|root| root.hpa == hpa);
        let Some(at) = (0..self.0.len()).find(|&at| !in_use(Hpa::pae_root(at))) else { return Hpa::INVALID };
        self.0[at] = table;
        Hpa::pae_root(at)
    }

    /// Empties the table of a root and returns its four entries; those of another root are none.
    pub fn take(&mut self, root: Hpa) -> [Hpa; 4] {
        let table = root.pae_table().and_then(|at| self.0.get_mut(at));
        table.map(core::mem::take).unwrap_or_default().pages
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vcpu::roots::RootInfo;

    fn table(page: u32) -> PaeRoot {
        PaeRoot {
            pages: [SpId::new(page).hpa(), Hpa::default(), Hpa::default(), SpId::new(page + 1).hpa()],
            pdptrs: [7; 4],
        }
    }

    #[test]
    fn e040_each_root_has_the_lowest_table_that_is_free_and_its_own_four_entries() {
        let (mut tables, mut roots) = (PaeRoots::new(3), RootCache::new(2));
        let names: Vec<Hpa> = (0..2)
            .map(|number| {
                let hpa = tables.fill(&roots, table(10 * number));
                roots.previous[number as usize] = RootInfo { pgd: 0, hpa };
                hpa
            })
            .collect();
        assert_eq!(names, [Hpa::PAE_ROOT, Hpa::pae_root(1)]);
        assert!(names.iter().all(|name| name.is_pae() && name.is_valid() && name.shadow_page().is_none()));
        assert_eq!(tables.pages(names[1]).collect::<Vec<_>>(), [SpId::new(10), SpId::new(11)]);
        assert_eq!(tables.page_for(names[1], Gva::new(3 << 30)), Some(SpId::new(11)));
        assert_eq!(tables.page_for(names[1], Gva::new(1 << 30)), None);
        assert_eq!(tables.take(names[0]), table(0).pages);
        assert_eq!(tables.pages(names[0]).count(), 0);
        roots.previous[0].hpa = Hpa::INVALID;
        assert_eq!(tables.fill(&roots, table(20)), names[0]);
        assert_eq!((tables.take(Hpa::DUMMY_ROOT), tables.get(Hpa::INVALID)), ([Hpa::default(); 4], None));
    }
}
