//! Invariants of one present SPTE.

use super::{Books, Findings, is_valid};
use crate::{
    access::{Access, ProtectionKey},
    addr::{Gfn, Gpa, Gva, PHYS_MASK, SpId, SpteRef},
    mmu::MmuView,
    paging::{
        PTE_ACCESSED, PTE_DIRTY, PTE_LARGE, PTE_PRESENT, entry_access,
        format::{EntryFormat, Pte32, Pte64},
    },
    role::{Directness, PageRole},
    shadow::page::SpLocked,
    spte::Spte,
};

impl MmuView<'_> {
    /// I1 and I2 (the other halves), I11 to I15.
    pub(super) fn audit_entry(
        &self,
        at: SpteRef,
        page: &SpLocked,
        spte: Spte,
        books: &mut Books,
        findings: &mut Findings,
    ) {
        if let Some(child) = spte.child() {
            *books.links.entry((child, at.into())).or_default() += 1;
            self.audit_link(at, page, child, findings);
        } else {
            books.leaves += 1;
            self.audit_leaf(at, page, spte, findings);
        }
    }

    /// What the guest's table says at this entry, for a synced table.
    fn synced_entry(&self, at: SpteRef, page: &SpLocked) -> Option<u64> {
        let synced = !self.shared.arena.header(at.sp).sync_state().is_unsync_locked();
        if page.role.is_direct() || !synced || !is_valid(page) {
            return None;
        }
        self.shadowed_entry(at)
    }

    fn audit_link(&self, at: SpteRef, page: &SpLocked, child: SpId, findings: &mut Findings) {
        let below = self.state.pages.page(child);
        findings.check(is_valid(below), "I15", || {
            format!("{at:?} leads to page {}, which is {:?}", child.get(), below.life)
        });
        let expected = page.role.child(
            below.role.access(),
            if below.role.is_direct() { Directness::Direct(below.role.key()) } else { Directness::Indirect },
            at.at(),
        );
        findings.check(same_but_invalid(below.role, expected), "I13", || {
            format!("{at:?} leads to role {:#x}, expected {:#x}", below.role.word(), expected.word())
        });
        findings.check(page.role.access().contains(below.role.access()) || !page.role.has_wp(), "I13", || {
            format!("{at:?} gives more rights ({:?}) than its page ({:?})", below.role.access(), page.role.access())
        });
        if page.role.is_direct() {
            let level = page.role.level();
            let wanted = page.gfn.get() + ((at.at() as u64) << (9 * (level.get() - 1)));
            let part = below.gfn.get() == wanted && below.role.access() == page.role.access();
            findings.check(part, "I13", || format!("{at:?} leads to gfn {}, expected {wanted:#x}", below.gfn));
        }
        if let Some(pte) = self.synced_entry(at, page) {
            let (level, four_byte) = (page.role.level(), page.role.has_four_byte_entries());
            let large = pte & PTE_LARGE != 0 && !level.is_last() && page.role.has_large_entries();
            let within = Gva::new((at.at() as u64 & 1) << 21);
            let wanted = match (large, four_byte) {
                (false, _) => Gpa::new(pte & PHYS_MASK).gfn(),
                (true, false) => Pte64::target(pte, level, Gva::new(0)),
                (true, true) => Pte32::target(pte, level, within),
            };
            let key =
                if large && self.shared.config.cpu.pku { ProtectionKey::of_entry(pte) } else { ProtectionKey::NONE };
            let holds = pte & PTE_PRESENT != 0
                && below.role.is_direct() == large
                && below.gfn == wanted
                && below.role.key() == key;
            findings.check(holds, "I13", || {
                format!(
                    "{at:?} leads to gfn {} (direct {}), the guest's entry is {pte:#x}",
                    below.gfn,
                    below.role.is_direct()
                )
            });
        }
    }

    fn audit_leaf(&self, at: SpteRef, page: &SpLocked, spte: Spte, findings: &mut Findings) {
        let flags_hold =
            (!spte.is_writable() || spte.is_mmu_writable()) && (!spte.is_mmu_writable() || spte.is_host_writable());
        findings.check(flags_hold, "I11", || format!("{at:?} holds {spte:?}"));
        let gfn = page.entry_gfn(at.at());
        findings.check(spte.is_host_writable() != self.shared.memory.is_read_only(gfn), "I11", || {
            format!("{at:?} holds {spte:?} of gfn {gfn}, whose memslot says otherwise")
        });
        findings.check(spte.pfn() == gfn.pfn(), "I1", || format!("{at:?} holds {spte:?}, recorded gfn {gfn}"));
        if spte.is_mmu_writable() {
            self.audit_writable(at, gfn, findings);
        }
        if page.role.is_direct() {
            let rights_hold = page.role.access().contains(spte.access()) || (!page.role.has_wp() && !spte.is_user());
            findings.check(rights_hold && gfn.get() == page.gfn.get() + at.at() as u64, "I14", || {
                format!("{at:?} holds {spte:?} in a direct page of role {:#x}", page.role.word())
            });
        }
        if let Some(pte) = self.synced_entry(at, page) {
            // Nobody sets A and D where the guest may not write its table (E107).
            let marked = !self.shared.memory.is_read_only(page.gfn);
            let mut most = page.role.access() & entry_access(pte);
            if pte & PTE_DIRTY == 0 && marked {
                most.remove(Access::WRITE);
            }
            // With CR0.WP=0 a supervisor write makes W out of a read-only entry, and takes U away (B.5).
            let rights_hold = most.contains(spte.access()) || (!page.role.has_wp() && !spte.is_user());
            let key = if self.shared.config.cpu.pku { ProtectionKey::of_entry(pte) } else { ProtectionKey::NONE };
            let holds = pte & PTE_PRESENT != 0
                && spte.key() == key
                && (pte & PTE_ACCESSED != 0 || !marked)
                && Gpa::new(pte & PHYS_MASK).gfn() == gfn
                && rights_hold;
            findings.check(holds, "I14", || format!("{at:?} holds {spte:?}, the guest's entry is {pte:#x}"));
        }
    }

    /// I12: the frame is no synced guest table.
    fn audit_writable(&self, at: SpteRef, gfn: Gfn, findings: &mut Findings) {
        if let Some(table) = self.synced_table(gfn) {
            findings.check(false, "I12", || {
                format!("{at:?} may write gfn {gfn}, shadowed and synced by page {}", table.get())
            });
        }
    }
}

const fn same_but_invalid(left: PageRole, right: PageRole) -> bool {
    left.invalidated().word() == right.invalidated().word()
}
