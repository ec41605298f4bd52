//! Invariants of one shadow page.

use super::{Books, Findings, is_valid};
use crate::{
    addr::SpId,
    mmu::MmuView,
    shadow::page::{Life, SpLocked},
};

impl MmuView<'_> {
    /// I2 (one half), I3, I4, I5, I7, I8, I9, I15.
    pub(super) fn audit_page(&self, id: SpId, page: &SpLocked, books: &mut Books, findings: &mut Findings) {
        let sync = self.shared.arena.header(id).sync_state();
        let (unsync, children) = (sync.is_unsync_locked(), sync.children_locked());
        let bits = page.unsync_bitmap.count();
        findings
            .check(bits == children, "I3", || format!("page {}: {bits} bits, unsync_children {children}", id.get()));
        findings.check(!unsync || (page.role.level().is_last() && !page.role.is_direct()), "I4", || {
            format!("page {} of role {:#x} is unsync", id.get(), page.role.word())
        });
        for &parent in &page.parents {
            let holds = self.spte(parent).child() == Some(id);
            findings
                .check(holds, "I2", || format!("page {} has parent {parent:?}, which does not lead to it", id.get()));
            let marked = self.state.pages.page(parent.sp).unsync_bitmap.contains(parent.at());
            findings.check(marked || !(unsync || children > 0), "I5", || {
                format!("page {} is or leads to an unsync page, its parent {parent:?} is not marked", id.get())
            });
        }
        let invalid = page.role.is_invalid();
        findings.check(invalid != is_valid(page), "I15", || {
            format!("page {} is {:?} with role {:#x}", id.get(), page.life, page.role.word())
        });
        books.used += u64::from(matches!(page.life, Life::Active | Life::PinnedInvalid));
        if !page.role.is_direct() && !invalid {
            books.indirect += 1;
            if !page.role.level().is_last() {
                *books.tracked.entry(page.gfn.get()).or_default() += 1;
            }
        }
    }
}
