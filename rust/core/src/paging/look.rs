//! Looks at translations: walks that change nothing, one address at a time or many together.

use super::{
    batch::Batch,
    format::{EntryFormat, FrameMemory, Pte32, Pte64, TableMemory},
    step::{Asked, WalkContext},
    walk::descend,
};
use crate::{
    access::{FaultCode, TranslateError, Translation},
    addr::{Gfn, Gpa, Gva, Level},
    regs::PagingMode,
};

/// Fewer addresses than it takes to make a batch worth its tables (docs/performance.md).
const FEW: usize = 96;

/// What decides a look beside the tables and the addresses.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Look<'a> {
    /// The mode and its rules.
    pub context: WalkContext<'a>,
    /// The access that is asked about.
    pub asked: Asked,
    /// Width of linear addresses.
    pub va_bits: u32,
    /// Where walks start.
    pub cr3: u64,
    /// Where they start under PAE.
    pub pdptrs: &'a [u64; 4],
}

impl Look<'_> {
    /// Where one address leads.
    #[inline(always)]
    #[expect(
        clippy::inline_always,
        reason = "a walk without a loop, and what is the same for many looks stays in registers: half the time"
    )]
    pub(crate) fn at(&self, memory: &impl TableMemory, gva: Gva) -> Translation {
        let gva = self.formed(gva)?;
        // A level that the compiler knows makes a walk without a loop: it takes half the time.
        let found = match self.context.mode {
            PagingMode::None => Ok(Gfn::new(gva.page())),
            PagingMode::Bits32 => self.descend::<Pte32>(memory, Level::PD, gva),
            PagingMode::Pae => self.descend::<Pte64>(memory, Level::PD, gva),
            PagingMode::Long4 => self.descend::<Pte64>(memory, Level::PML4, gva),
            PagingMode::Long5 => self.descend::<Pte64>(memory, Level::PML5, gva),
        };
        found.map(|gfn| reached(gfn, gva)).map_err(TranslateError::PageFault)
    }

    /// Where each address leads: `each` gets the number of every one, once, in no order, and its translation.
    #[inline]
    pub(crate) fn at_each(
        &self,
        memory: &impl FrameMemory,
        gvas: impl ExactSizeIterator<Item = Gva>,
        mut each: impl FnMut(usize, Translation),
    ) {
        match self.context.mode {
            _ if gvas.len() < FEW => self.one_by_one(memory, gvas, each),
            PagingMode::None => self.one_by_one(memory, gvas, each),
            PagingMode::Bits32 => Batch::<Pte32, _>::new(self, memory).translate(gvas, &mut each),
            PagingMode::Pae | PagingMode::Long4 | PagingMode::Long5 => {
                Batch::<Pte64, _>::new(self, memory).translate(gvas, &mut each);
            }
        }
    }

    /// The address as an instruction of this mode forms it (E116).
    #[inline]
    pub(super) fn formed(&self, gva: Gva) -> Result<Gva, TranslateError> {
        if self.va_bits == 32 {
            Ok(gva.truncated())
        } else if gva.is_canonical(self.va_bits) {
            Ok(gva)
        } else {
            Err(TranslateError::NotCanonical)
        }
    }

    /// CR3, under PAE the PDPTR for `gva`.
    #[inline]
    pub(super) fn root(&self, gva: Gva) -> u64 {
        if self.context.mode == PagingMode::Pae { self.pdptrs[gva.gib()] } else { self.cr3 }
    }

    #[inline(always)]
    #[expect(
        clippy::inline_always,
        reason = "a walk without a loop, and what is the same for many looks stays in registers: half the time"
    )]
    fn descend<F: EntryFormat>(&self, memory: &impl TableMemory, top: Level, gva: Gva) -> Result<Gfn, FaultCode> {
        descend::<F>(memory, &self.context, self.asked, top, self.root(gva), gva, |_, _, _, _| {}).map(|(gfn, _)| gfn)
    }

    #[inline(never)]
    fn one_by_one(
        &self,
        memory: &impl TableMemory,
        gvas: impl Iterator<Item = Gva>,
        mut each: impl FnMut(usize, Translation),
    ) {
        for (number, gva) in gvas.enumerate() {
            each(number, self.at(memory, gva));
        }
    }
}

/// The gpa of an address whose page is mapped to a frame.
#[inline]
pub(super) const fn reached(gfn: Gfn, gva: Gva) -> Gpa {
    Gpa::new(gfn.gpa().get() | gva.offset())
}
