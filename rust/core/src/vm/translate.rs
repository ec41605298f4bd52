//! Looking at translations: what the guest's tables say now, without an access (docs/machine.md, 16). KVM: `KVM_TRANSLATE`.

use super::Cpu;
use crate::{
    access::{AccessFlags, AccessKind, TranslateError, Translation},
    addr::{Gpa, Gva},
    error::{Error, Result},
    memory::Near,
    paging::Look,
};

/// Looks at translations for one kind of access of one vCPU, as its registers are. Everything that does not depend on the
/// address is worked out, so a loop of looks is best made with one of these.
#[derive(Clone, Copy, Debug)]
pub struct Translator<'a> {
    /// `None` in the host's context, which no vCPU has.
    look: Option<Look<'a>>,
    memory: Near<'a>,
}

impl Translator<'_> {
    /// Where the guest's tables lead an access to `gva` now, with every check of it. Nothing changes by it.
    ///
    /// # Errors
    /// What the access would raise.
    #[inline(always)]
    #[expect(clippy::inline_always, reason = "what is the same in a loop of looks stays in registers: half the time")]
    pub fn at(&self, gva: Gva) -> Translation {
        self.look.as_ref().map_or(Err(TranslateError::NotCanonical), |look| look.at(&self.memory, gva))
    }

    /// The same for many addresses together: `each` gets the number of every one, once, in no order, and its translation. An entry
    /// that many of them share may be read once for all.
    #[inline]
    pub fn each(&self, gvas: impl ExactSizeIterator<Item = Gva>, mut each: impl FnMut(usize, Translation)) {
        match &self.look {
            Some(look) => look.at_each(&self.memory, gvas, each),
            None => (0..gvas.len()).for_each(|number| each(number, Err(TranslateError::NotCanonical))),
        }
    }
}

impl Cpu<'_> {
    /// What looks at translations for one kind of access.
    #[inline]
    pub fn translator(&self, kind: AccessKind, flags: AccessFlags) -> Translator<'_> {
        let look = self.vcpu.look(self.shared, kind, flags);
        Translator { look, memory: self.shared.memory.near(Gpa::new(self.vcpu.regs.cr3).gfn()) }
    }

    /// Where the guest's tables lead an access now, with every check of it. Nothing changes by it: no A or D bit, shadow page,
    /// TLB entry or counter, and the `mmu_lock` is not taken. TLB and shadow tables may still have what the tables said before.
    ///
    /// # Errors
    /// What the access would raise.
    ///
    /// ```
    /// use shadow_mmu::{AccessFlags, AccessKind, Gpa, Gva, MemoryRegion, TranslateError, Vm, VmConfig};
    ///
    /// let vm = Vm::new(VmConfig { slots: vec![MemoryRegion::ram(Gpa::new(0), 1 << 20)], ..VmConfig::default() })?;
    /// // CR3 is 0: four tables that lead to each other, and a page that no memslot has.
    /// for (table, entry) in [(0, 0x1007_u64), (0x1000, 0x2007), (0x2000, 0x3007), (0x3000, 0x7000_0005)] {
    ///     vm.host_write(Gpa::new(table), &entry.to_le_bytes())?;
    /// }
    /// let cpu = vm.cpu(0)?;
    /// let look = |kind| cpu.translate(Gva::new(0x123), kind, AccessFlags::USER);
    /// assert_eq!(look(AccessKind::Read), Ok(Gpa::new(0x7000_0123)));
    /// assert!(matches!(look(AccessKind::Write), Err(TranslateError::PageFault(code)) if code.bits() == 7));
    /// # Ok::<(), shadow_mmu::Error>(())
    /// ```
    #[inline]
    pub fn translate(&self, gva: Gva, kind: AccessKind, flags: AccessFlags) -> Translation {
        self.translator(kind, flags).at(gva)
    }

    /// The same for many addresses, by [`Translator::each`]: `out[i]` is the translation of `gvas[i]`.
    ///
    /// # Errors
    /// [`Error::BadOp`] for arrays of different lengths; nothing is translated then.
    pub fn translate_many(
        &self,
        gvas: &[Gva],
        kind: AccessKind,
        flags: AccessFlags,
        out: &mut [Translation],
    ) -> Result<()> {
        if out.len() != gvas.len() {
            let (got, expected) = (out.len().to_string(), gvas.len().to_string());
            return Err(Error::BadOp { what: "length of the translations", got, expected });
        }
        self.translator(kind, flags).each(gvas.iter().copied(), |number, translation| out[number] = translation);
        Ok(())
    }
}
