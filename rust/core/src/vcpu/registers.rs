//! CR0, CR4 and EFER writes and what they do to the MMU (A.5, docs/machine.md, 4).

use super::{
    Vcpu,
    roots::{RootInfo, RootSet},
};
use crate::{
    config::Policy,
    error::{Error, Result},
    mmu::{PagingContext, Requests, Shared},
    op::Outcome,
    regs::{Effects, Refused, Writer},
};

impl Vcpu {
    /// MOV to CR0.
    pub(crate) fn write_cr0(&mut self, shared: &Shared, value: u64, writer: Writer) -> Result<Outcome> {
        let effects = self.regs.set_cr0(value, writer);
        self.apply(shared, effects)
    }

    /// MOV to CR4.
    pub(crate) fn write_cr4(&mut self, shared: &Shared, value: u64, writer: Writer) -> Result<Outcome> {
        let effects = self.regs.set_cr4(value, writer);
        self.apply(shared, effects)
    }

    /// WRMSR to EFER.
    pub(crate) fn write_efer(&mut self, shared: &Shared, value: u64, writer: Writer) -> Result<Outcome> {
        let effects = self.regs.set_efer(value, writer);
        self.apply(shared, effects)
    }

    fn apply(&mut self, shared: &Shared, effects: Result<Effects, Refused>) -> Result<Outcome> {
        let effects = match effects {
            Ok(effects) => effects,
            Err(Refused::GeneralProtection) => return Ok(Outcome::GeneralProtection),
            Err(Refused::Unsupported(reason)) => return Err(Error::UnsupportedMode { reason }),
        };
        if effects.reset_context {
            self.reset_context(shared);
        }
        if effects.flush_guest {
            self.cx.requests |= Requests::TLB_FLUSH_GUEST;
        }
        if effects.flush_current {
            self.cx.requests |= Requests::TLB_FLUSH_CURRENT;
        }
        Ok(Outcome::Ok(0))
    }

    /// Drops every root and derives the context anew. KVM: `kvm_mmu_reset_context` (E037).
    fn reset_context(&mut self, shared: &Shared) {
        self.free_roots(shared, RootSet::ALL);
        debug_assert!(self.roots.iter().all(|root| !root.hpa.is_valid()), "E046: unload leaves no root");
        if shared.config.policy == Policy::Seed {
            // Every context initialisation of the seed voids the tag (E002).
            self.roots.previous[0] = RootInfo::NEVER;
        }
        self.cx.paging = PagingContext::derive(&self.regs, shared.config.maxphyaddr);
        self.tlb.flush();
    }
}
