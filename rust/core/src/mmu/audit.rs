//! The audit: invariants of the whole shadow state, checked with the lock held and every vCPU at rest.
//!
//! A superset of what KVM's `mmu_audit.c` checked (C.10, C.11, E162). It reports, it never repairs.

mod entries;
mod pages;

use core::fmt;

use rustc_hash::FxHashMap;

use super::{MmuView, Requests};
use crate::{
    addr::{ENTRIES, Gfn, Hpa, SpId, SpteRef},
    shadow::page::{Life, SpLocked},
    spte::Spte,
};

/// One broken invariant.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Violation {
    /// Its id in C.11 (`I1`…), or `T1` and `T2` for the TLB's.
    pub id: &'static str,
    /// What was found and what was expected.
    pub text: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.id, self.text)
    }
}

/// What the audit needs to know of a vCPU.
#[derive(Clone, Debug)]
pub(crate) struct VcpuView {
    /// Current root first, then the previous ones.
    pub roots: Vec<RootView>,
    /// The PDPTRs that the current root must be made of, if it is a PAE root.
    pub pdptrs: [u64; 4],
    /// Whether the tags belong to the roots (not so for the seed, whose tag stands apart: S1).
    pub tagged: bool,
    /// Whether a previous root may be a PAE root.
    pub caches_pae: bool,
    /// Requests pending.
    pub pending: Requests,
    /// Valid TLB entries: page number and SPTE value.
    pub tlb: Vec<(u64, u64)>,
}

/// What the audit needs to know of a root.
#[derive(Clone, Debug)]
pub(crate) struct RootView {
    /// The CR3 value that it belongs to.
    pub tag: u64,
    /// What the vCPU knows it by.
    pub hpa: Hpa,
    /// Its shadow pages: one, of a PAE root up to four, of another none.
    pub pages: Vec<SpId>,
    /// The PDPTRs that a PAE root was made of.
    pub pdptrs: [u64; 4],
}

/// Frames looked at before the audit asks again whether it is to stop.
const FRAMES_A_LOOK: u64 = 4096;

/// Where violations are gathered.
#[derive(Default)]
struct Findings(Vec<Violation>);

impl Findings {
    fn check(&mut self, holds: bool, id: &'static str, text: impl FnOnce() -> String) {
        if !holds {
            self.0.push(Violation { id, text: text() });
        }
    }
}

impl MmuView<'_> {
    /// Checks every invariant; ends early, with what it has found so far, once `stop` says so.
    pub(crate) fn audit(&self, vcpus: &[VcpuView], stop: &dyn Fn() -> bool) -> Vec<Violation> {
        let mut findings = Findings::default();
        let mut books = Books::default();
        for (id, page) in self.state.pages.iter() {
            if stop() {
                return findings.0;
            }
            if page.life == Life::Zapped {
                findings.check(false, "I7", || format!("shadow page {} is still on the zap list", id.get()));
            }
            self.audit_page(id, page, &mut books, &mut findings);
            for index in 0..ENTRIES {
                let at = SpteRef::new(id, index);
                let spte = self.spte(at);
                if spte.is_present() {
                    self.audit_entry(at, page, spte, &mut books, &mut findings);
                }
            }
        }
        self.audit_books(&books, &mut findings, stop);
        if stop() {
            return findings.0;
        }
        self.audit_vcpus(vcpus, &mut findings);
        findings.0
    }

    /// I1, I2, I7, I8, I9, I16: what was counted page by page against what the books say.
    fn audit_books(&self, books: &Books, findings: &mut Findings, stop: &dyn Fn() -> bool) {
        let mut mapped = 0_u64;
        self.state.rmaps.for_each(stop, |gfn, at| {
            mapped += 1;
            let spte = self.spte(at);
            let right = spte.is_present() && spte.child().is_none() && spte.pfn() == gfn.pfn();
            findings.check(right, "I1", || format!("the rmap of gfn {gfn} has {at:?}, which holds {spte:?}"));
        });
        if stop() {
            return;
        }
        findings.check(mapped == books.leaves, "I1", || format!("{mapped} rmap entries, {} leaf SPTEs", books.leaves));
        let used = self.state.pages.used();
        findings.check(used == books.used, "I7", || format!("{used} pages counted as used, {} found", books.used));
        let indirect = self.shared.indirect_shadow_pages.count_locked();
        findings.check(indirect == books.indirect, "I8", || {
            format!("indirect_shadow_pages is {indirect}, {} found", books.indirect)
        });
        for slot in self.shared.memory.iter() {
            for frame in slot.base().get()..slot.end() {
                if frame % FRAMES_A_LOOK == 0 && stop() {
                    return;
                }
                let gfn = Gfn::new(frame);
                let counted = slot.write_track(gfn);
                if counted == 0 {
                    continue;
                }
                let found = books.tracked.get(&frame).copied().unwrap_or(0);
                findings
                    .check(counted == found, "I9", || format!("write_track of gfn {gfn} is {counted}, {found} found"));
            }
        }
        for (&frame, &found) in &books.tracked {
            let gfn = Gfn::new(frame);
            let counted = self.shared.memory.slot(gfn).map_or(0, |slot| slot.write_track(gfn));
            findings.check(counted != 0, "I9", || format!("write_track of gfn {gfn} is 0, {found} found"));
        }
        for (gfn, ids) in self.state.pages.buckets() {
            for &id in ids {
                let page = self.state.pages.page(id);
                findings.check(page.gfn == gfn && page.life == Life::Active, "I16", || {
                    format!("page {} of gfn {} ({:?}) is in the bucket of gfn {gfn}", id.get(), page.gfn, page.life)
                });
            }
        }
        for (&(child, at), &links) in &books.links {
            let parents = self.state.pages.page(child).parents.iter().filter(|&&p| p == at.into()).count() as u32;
            findings.check(parents == links, "I2", || {
                format!("{links} link from {:?} to page {}, {parents} in parent_ptes", SpteRef::from(at), child.get())
            });
        }
    }

    /// I6, I17, I18, T1.
    fn audit_vcpus(&self, vcpus: &[VcpuView], findings: &mut Findings) {
        let mut references: FxHashMap<SpId, u32> = FxHashMap::default();
        for (number, vcpu) in vcpus.iter().enumerate() {
            for (position, root) in vcpu.roots.iter().enumerate() {
                let allowed = match root.hpa.shadow_page() {
                    None if root.hpa.is_pae() => position == 0 || vcpu.caches_pae,
                    None => position == 0 || !root.hpa.is_valid(),
                    Some(_) => true,
                };
                findings.check(allowed, "I17", || format!("vCPU {number} caches a root without page at {position}"));
                let own_table = vcpu.roots[..position].iter().all(|other| !root.hpa.is_pae() || other.hpa != root.hpa);
                findings.check(own_table, "I17", || format!("vCPU {number} has two roots in table {:?}", root.hpa));
                for &sp in &root.pages {
                    *references.entry(sp).or_default() += 1;
                    let pending = vcpu.pending.contains(Requests::FREE_OBSOLETE_ROOTS);
                    findings.check(!self.state.pages.page(sp).role.is_invalid() || pending, "I18", || {
                        format!("vCPU {number} keeps the obsolete root {} and no request is pending", sp.get())
                    });
                }
                let twin = vcpu.roots[..position].iter().any(|other| self.are_twins(other, root));
                findings.check(!(twin && vcpu.tagged), "I17", || {
                    format!("vCPU {number} has two roots for pgd {:#x} and the same roles", root.tag)
                });
            }
            let current = &vcpu.roots[0];
            findings.check(!current.hpa.is_pae() || current.pdptrs == vcpu.pdptrs, "I17", || {
                format!(
                    "vCPU {number} runs on a root of the PDPTRs {:x?}, loaded are {:x?}",
                    current.pdptrs, vcpu.pdptrs
                )
            });
            self.audit_tlb(number, vcpu, findings);
        }
        for (id, page) in self.state.pages.iter() {
            let found = references.get(&id).copied().unwrap_or(0);
            findings.check(page.root_refs.count() == found, "I6", || {
                format!("page {} has root_count {}, vCPUs refer to it {found} times", id.get(), page.root_refs.count())
            });
        }
    }

    /// Whether two roots are of the same CR3, the same PDPTRs, and pages of the same roles: one of them would do.
    fn are_twins(&self, one: &RootView, other: &RootView) -> bool {
        let roles = |root: &RootView| root.pages.iter().map(|&sp| self.state.pages.page(sp).role).collect::<Vec<_>>();
        !one.pages.is_empty() && one.tag == other.tag && one.pdptrs == other.pdptrs && roles(one) == roles(other)
    }

    /// T1: unless a flush is pending, no TLB entry lets a synced guest table be written (F-15). T2: where the hardware walks the
    /// guest's tables, none outlives the direct leaf of its frame.
    fn audit_tlb(&self, number: usize, vcpu: &VcpuView, findings: &mut Findings) {
        let flushes = Requests::TLB_FLUSH | Requests::TLB_FLUSH_CURRENT | Requests::TLB_FLUSH_GUEST;
        if vcpu.pending.intersects(flushes) {
            return;
        }
        for &(page, value) in &vcpu.tlb {
            let spte = Spte::from_raw(value);
            let gfn = spte.pfn().gfn();
            let mapped = !self.shared.config.mmu.is_tdp() || self.state.rmaps.get(gfn, 0).is_some();
            findings.check(mapped, "T2", || {
                format!("vCPU {number} reaches gfn {gfn} through page {page:#x}, and no direct entry maps it")
            });
            if spte.is_writable() {
                let synced = self.synced_table(gfn);
                findings.check(synced.is_none(), "T1", || {
                    format!("vCPU {number} may write the synced table at gfn {gfn} through page {page:#x}")
                });
            }
        }
    }

    /// A valid, synced page that shadows the table at `gfn`.
    fn synced_table(&self, gfn: Gfn) -> Option<SpId> {
        self.state
            .pages
            .valid_indirect(gfn)
            .into_iter()
            .find(|&sp| !self.shared.arena.header(sp).sync_state().is_unsync_locked())
    }
}

/// What is counted page by page.
#[derive(Default)]
struct Books {
    leaves: u64,
    used: u64,
    indirect: u64,
    tracked: FxHashMap<u64, u32>,
    links: FxHashMap<(SpId, LinkAt), u32>,
}

/// An [`SpteRef`] that can be hashed.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct LinkAt(SpId, u16);

impl From<SpteRef> for LinkAt {
    fn from(at: SpteRef) -> Self {
        LinkAt(at.sp, at.index)
    }
}

impl From<LinkAt> for SpteRef {
    fn from(at: LinkAt) -> Self {
        SpteRef { sp: at.0, index: at.1 }
    }
}

/// Whether lookups find the page.
const fn is_valid(page: &SpLocked) -> bool {
    matches!(page.life, Life::Active)
}
