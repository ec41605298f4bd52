//! CR0, CR4 and EFER writes and what they do to the MMU (A.5, docs/machine.md, 4).

use super::{
    Vcpu,
    roots::{RootInfo, RootSet},
};
use crate::{
    config::Policy,
    mmu::{PagingContext, Requests, Shared},
    op::Outcome,
    regs::{ControlRegs, Effects, GeneralProtection, PagingMode, PkruRefused, Writer},
};

impl Vcpu {
    /// MOV to CR0.
    pub(crate) fn write_cr0(&mut self, shared: &Shared, value: u64, writer: Writer) -> Outcome {
        self.write_register(shared, |regs| regs.set_cr0(value, writer, &shared.config.cpu))
    }

    /// MOV to CR4.
    pub(crate) fn write_cr4(&mut self, shared: &Shared, value: u64, writer: Writer) -> Outcome {
        self.write_register(shared, |regs| regs.set_cr4(value, writer, &shared.config.cpu))
    }

    /// WRMSR to EFER.
    pub(crate) fn write_efer(&mut self, shared: &Shared, value: u64, writer: Writer) -> Outcome {
        self.write_register(shared, |regs| regs.set_efer(value, writer, &shared.config.cpu))
    }

    /// WRPKRU: it leaves for no hypervisor, and the next access knows it.
    pub(crate) fn write_pkru(&mut self, shared: &Shared, value: u64, writer: Writer) -> Outcome {
        match self.regs.set_pkru(value, writer, &shared.config.cpu) {
            Ok(()) => {
                self.derive_context(shared);
                Outcome::Ok(0)
            }
            Err(PkruRefused::InvalidOpcode) => Outcome::InvalidOpcode,
            Err(PkruRefused::GeneralProtection) => Outcome::GeneralProtection,
        }
    }

    /// The host sets CR3: no instruction, so no switch; the roots of another value go. KVM: `__set_sregs_common`.
    pub(crate) fn set_cr3(&mut self, shared: &Shared, value: u64) -> Outcome {
        let mode = self.regs.mode();
        let value = if mode.is_long() { value } else { value & 0xffff_ffff };
        if !self.regs.cr3_is_legal(value, shared.config.cpu.maxphyaddr) {
            return Outcome::GeneralProtection;
        }
        if mode == PagingMode::Pae {
            let Some(pdptrs) = Self::read_pdptrs(shared, value) else { return Outcome::GeneralProtection };
            self.use_pdptrs(shared, pdptrs);
        }
        if value != self.regs.cr3 {
            self.regs.cr3 = value;
            self.reset_context(shared);
        }
        Outcome::Ok(0)
    }

    fn write_register(
        &mut self,
        shared: &Shared,
        set: impl FnOnce(&mut ControlRegs) -> Result<Effects, GeneralProtection>,
    ) -> Outcome {
        let mut regs = self.regs;
        let Ok(effects) = set(&mut regs) else { return Outcome::GeneralProtection };
        if effects.load_pdptrs {
            let Some(pdptrs) = Self::read_pdptrs(shared, regs.cr3) else { return Outcome::GeneralProtection };
            self.use_pdptrs(shared, pdptrs);
        }
        let old = core::mem::replace(&mut self.regs, regs);
        if effects.reset_context && self.tdp && self.keeps_direct_root(shared, &old) {
            self.derive_context(shared);
        } else if effects.reset_context {
            self.reset_context(shared);
        }
        if effects.flush_guest {
            self.cx.requests |= Requests::TLB_FLUSH_GUEST;
        }
        if effects.flush_current {
            self.cx.requests |= Requests::TLB_FLUSH_CURRENT;
        }
        Outcome::Ok(0)
    }

    /// Drops every root and derives the context anew. KVM: `kvm_mmu_reset_context` (E037).
    fn reset_context(&mut self, shared: &Shared) {
        self.free_roots(shared, RootSet::ALL);
        debug_assert!(self.roots.iter().all(|root| !root.hpa.is_valid()), "E046: unload leaves no root");
        if shared.config.policy == Policy::Seed {
            // Every context initialisation of the seed voids the tag (E002).
            self.roots.previous[0] = RootInfo::NEVER;
        }
        self.derive_context(shared);
        self.tlb.flush();
    }

    pub(super) fn derive_context(&mut self, shared: &Shared) {
        self.cx.paging = Some(PagingContext::derive(&self.regs, &shared.config));
    }
}
