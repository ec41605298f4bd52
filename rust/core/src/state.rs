//! The state words that the two implementations are compared by (docs/machine.md, 11).

use crate::{
    addr::{ENTRIES, Hpa, SpId, SpteRef},
    mmu::{MmuCx, Shared},
    shadow::page::SpLocked,
    vcpu::Vcpu,
};

/// All state words of a machine at rest.
pub(crate) fn words(shared: &Shared, vcpus: &[&mut Vcpu], host: &MmuCx) -> Vec<u64> {
    let mut out = Vec::new();
    let mut counters = host.stats.counters;
    let mut acquisitions = host.stats.lock.acquisitions;
    for vcpu in vcpus {
        vcpu_words(shared, vcpu, &mut out);
        counters.add(&vcpu.cx.stats.counters);
        for (sum, own) in acquisitions.iter_mut().zip(vcpu.cx.stats.lock.acquisitions) {
            *sum += own;
        }
    }
    let state = shared.peek();
    out.push(state.pages.live());
    for (id, page) in state.pages.iter() {
        page_words(shared, id, page, &mut out);
    }
    out.push(shared.indirect_shadow_pages.count_locked());
    out.extend(counters.values());
    out.extend(acquisitions);
    out
}

fn vcpu_words(shared: &Shared, vcpu: &Vcpu, out: &mut Vec<u64>) {
    let regs = &vcpu.regs;
    out.extend([regs.cr0, regs.cr3, regs.cr4, regs.efer, u64::from(regs.pkru)]);
    out.extend([u64::from(vcpu.pending(shared).bits()), u64::from(vcpu.shut_down)]);
    out.extend(vcpu.pdptrs);
    out.push(vcpu.roots.previous.len() as u64);
    for root in vcpu.roots.iter() {
        let table = vcpu.pae.get(root.hpa).copied().unwrap_or_default();
        out.extend([root.pgd, root.hpa.get()]);
        out.extend(table.pages.map(Hpa::get));
        out.extend(table.pdptrs);
    }
    out.push(vcpu.tlb.sets() as u64);
    for set in 0..vcpu.tlb.sets() {
        let (pointer, slots) = vcpu.tlb.set(set);
        out.push(u64::from(pointer));
        for (page, value) in slots {
            out.extend([page.map_or(0, |page| page + 1), value]);
        }
    }
}

fn page_words(shared: &Shared, id: SpId, page: &SpLocked, out: &mut Vec<u64>) {
    let header = shared.arena.header(id);
    let sync = header.sync_state();
    out.extend([u64::from(id.get()), page.gfn.get(), u64::from(page.role.word())]);
    out.extend([u64::from(sync.is_unsync_locked()), u64::from(sync.children_locked())]);
    out.extend([u64::from(header.flooding()), u64::from(page.root_refs.count())]);
    out.push(page.parents.len() as u64);
    for parent in &page.parents {
        out.extend([u64::from(parent.sp.get()), u64::from(parent.index)]);
    }
    out.extend(page.unsync_bitmap.words());
    let count_at = out.len();
    out.push(0);
    for index in 0..ENTRIES {
        let spte = shared.spte(SpteRef::new(id, index));
        if spte.raw() != 0 {
            let leaf = spte.child().is_none();
            let gfn = if leaf { page.entry_gfn(index).get() } else { 0 };
            let access = if leaf { u64::from(page.entry_access(index).bits()) } else { 0 };
            out.extend([index as u64, spte.raw(), gfn, access]);
            out[count_at] += 1;
        }
    }
}
