//! One vCPU of a machine, and everything that it can be made to do.

use shadow_mmu_sys::lock::Guard;

use super::PageWords;
use crate::{
    access::{AccessFlags, AccessKind},
    addr::{Gfn, Gpa, Gva, PAGE_SIZE},
    error::{Error, Result},
    health::Watch,
    mmu::Shared,
    op::{Op, OpKind, Outcome},
    regs::{ControlRegs, Writer},
    run::{MAX_WORK, work},
    stats::LockReason,
    vcpu::{
        Vcpu,
        access::{Action, check_size},
    },
};

/// Exclusive use of one vCPU.
#[derive(Debug)]
pub struct Cpu<'a> {
    pub(super) shared: &'a Shared,
    // Before the guard: whoever gets the vCPU after a panic finds the machine broken.
    pub(super) _watch: Watch<'a>,
    pub(crate) vcpu: Guard<'a, Vcpu>,
}

impl Cpu<'_> {
    /// Carries out one operation. `pages` are the rows that [`OpKind::HostPage`] names.
    ///
    /// # Errors
    /// Host misuse; nothing is changed then.
    #[inline]
    pub fn execute(&mut self, op: &Op, pages: &[PageWords]) -> Result<Outcome> {
        let kind = op.kind()?;
        let writer = if op.has(Op::HOST) { Writer::Host } else { Writer::Guest };
        let (shared, vcpu) = (self.shared, &mut *self.vcpu);
        match kind {
            OpKind::WriteCr3 if writer == Writer::Host => Ok(vcpu.set_cr3(shared, op.addr)),
            OpKind::WriteCr3 => Ok(vcpu.write_cr3(shared, op.addr)),
            OpKind::Read => self.access(Gva::new(op.addr), AccessKind::Read, op.access_flags()),
            OpKind::Write => self.access(Gva::new(op.addr), AccessKind::Write, op.access_flags()),
            OpKind::Fetch => self.access(Gva::new(op.addr), AccessKind::Fetch, op.access_flags()),
            OpKind::Load => self.load(Gva::new(op.addr), u64::from(op.aux), op.access_flags()),
            OpKind::Store => self.store(Gva::new(op.addr), op.value, u64::from(op.aux), op.access_flags()),
            OpKind::Invlpg => Ok(vcpu.invlpg(shared, Gva::new(op.addr))),
            OpKind::HostStore => self.host_words(Gpa::new(op.addr), core::slice::from_ref(&op.value), 8),
            OpKind::HostPage => {
                let page = pages.get(op.aux as usize).ok_or_else(|| Error::BadOp {
                    what: "page row",
                    got: op.aux.to_string(),
                    expected: format!("below {}", pages.len()),
                })?;
                self.host_words(Gpa::new(op.addr), page, PAGE_SIZE)
            }
            OpKind::Nop => Ok(Outcome::Ok(0)),
            OpKind::WriteCr0 => Ok(vcpu.write_cr0(shared, op.addr, writer)),
            OpKind::WriteCr4 => Ok(vcpu.write_cr4(shared, op.addr, writer)),
            OpKind::WriteEfer => Ok(vcpu.write_efer(shared, op.addr, writer)),
            OpKind::WritePkru => Ok(vcpu.write_pkru(shared, op.addr, writer)),
            OpKind::SyncTlb => vcpu.enter_once(shared),
            OpKind::Work => {
                if op.value > MAX_WORK {
                    let expected = format!("at most {MAX_WORK} ns");
                    return Err(Error::BadOp { what: "work", got: op.value.to_string(), expected });
                }
                work(op.value, || false);
                Ok(Outcome::Ok(0))
            }
            OpKind::ZapGfn => {
                shared.lock(&mut vcpu.cx, LockReason::Zap).zap_gfn(Gfn::new(op.addr));
                Ok(Outcome::Ok(0))
            }
        }
    }

    fn host_words(&mut self, gpa: Gpa, words: &[u64], align: u64) -> Result<Outcome> {
        if !gpa.get().is_multiple_of(align) {
            return Err(Error::BadOp { what: "gpa", got: gpa.to_string(), expected: format!("a multiple of {align}") });
        }
        self.shared.memory.require(gpa, words.len() as u64 * 8)?;
        self.shared.host_write_words(&mut self.vcpu.cx, gpa, words);
        Ok(Outcome::Ok(0))
    }

    /// MOV to CR3.
    ///
    /// # Errors
    /// None today; the signature is that of the other register writes.
    #[inline]
    pub fn write_cr3(&mut self, value: u64) -> Result<Outcome> {
        Ok(self.vcpu.write_cr3(self.shared, value))
    }

    /// MOV to CR0.
    ///
    /// # Errors
    /// None today, as for [`write_cr3`](Self::write_cr3).
    pub fn write_cr0(&mut self, value: u64) -> Result<Outcome> {
        Ok(self.vcpu.write_cr0(self.shared, value, Writer::Guest))
    }

    /// MOV to CR4.
    ///
    /// # Errors
    /// As [`write_cr0`](Self::write_cr0).
    pub fn write_cr4(&mut self, value: u64) -> Result<Outcome> {
        Ok(self.vcpu.write_cr4(self.shared, value, Writer::Guest))
    }

    /// WRMSR to EFER.
    ///
    /// # Errors
    /// As [`write_cr0`](Self::write_cr0).
    pub fn write_efer(&mut self, value: u64) -> Result<Outcome> {
        Ok(self.vcpu.write_efer(self.shared, value, Writer::Guest))
    }

    /// WRPKRU, of EDX:EAX.
    ///
    /// # Errors
    /// As [`write_cr0`](Self::write_cr0).
    pub fn write_pkru(&mut self, value: u64) -> Result<Outcome> {
        Ok(self.vcpu.write_pkru(self.shared, value, Writer::Guest))
    }

    /// INVLPG.
    ///
    /// # Errors
    /// None today, as for [`write_cr3`](Self::write_cr3).
    pub fn invlpg(&mut self, gva: Gva) -> Result<Outcome> {
        Ok(self.vcpu.invlpg(self.shared, gva))
    }

    /// Translates an access as the guest would make it; [`Outcome::Ok`] has the gpa.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`] and [`Error::OutOfShadowPages`] if a shadow page cannot be had.
    #[inline]
    pub fn access(&mut self, gva: Gva, kind: AccessKind, flags: AccessFlags) -> Result<Outcome> {
        self.vcpu.access(self.shared, gva, kind, flags, Action::Translate)
    }

    /// Guest load of 1, 2, 4 or 8 bytes; [`Outcome::Ok`] has the value.
    ///
    /// # Errors
    /// As [`access`](Self::access); [`Error::BadOp`] for another size, [`Error::PageCrossing`].
    #[inline]
    pub fn load(&mut self, gva: Gva, size: u64, flags: AccessFlags) -> Result<Outcome> {
        let size = check_size(gva, size)?;
        self.vcpu.access(self.shared, gva, AccessKind::Read, flags, Action::Load(size))
    }

    /// Guest store of 1, 2, 4 or 8 bytes; [`Outcome::Ok`] has the gpa. It may hit a page table.
    ///
    /// # Errors
    /// As [`load`](Self::load).
    #[inline]
    pub fn store(&mut self, gva: Gva, value: u64, size: u64, flags: AccessFlags) -> Result<Outcome> {
        let size = check_size(gva, size)?;
        self.vcpu.access(self.shared, gva, AccessKind::Write, flags, Action::Store { value, size })
    }

    /// Whether the hardware walks the guest's own tables.
    pub(crate) fn is_tdp(&self) -> bool {
        self.shared.config.mmu.is_tdp()
    }

    /// Times that the last access had to be tried again.
    pub(crate) fn tries(&self) -> u32 {
        self.vcpu.tries
    }

    /// Forgets the tries of earlier accesses.
    pub(crate) fn forget_tries(&mut self) {
        self.vcpu.tries = 0;
    }

    /// The control registers.
    pub fn regs(&self) -> &ControlRegs {
        &self.vcpu.regs
    }

    /// Current root first, then the previous ones: (pgd, hpa).
    pub fn roots(&self) -> Vec<(u64, u64)> {
        self.vcpu.roots.iter().map(|root| (root.pgd, root.hpa.get())).collect()
    }
}
