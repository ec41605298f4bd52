//! Looks at translations: walks that change nothing, one address at a time or many in lock-step.
//!
//! A walk waits for four or five loads, each of which needs the one before. Many walks have nothing to wait for in each other: in
//! lock-step all take a step, then the next, and what each will read is asked for a whole round before it is read.

use super::{
    format::{EntryFormat, Pte32, Pte64, TableMemory},
    step::{Asked, Rights, Step, WalkContext, step},
    walk::descend,
};
use crate::{
    access::{FaultCode, TranslateError, Translation},
    addr::{Gfn, Gpa, Gva, Level},
    regs::PagingMode,
};

/// Walks that go in lock-step. Fewer leave the memory idle, more fall out of the first-level cache (docs/performance.md).
const LANES: usize = 32;

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

/// Walks on their way: each one's address, the entry that it reads next (`None`: in no memslot), the rights so far.
struct Lanes<P> {
    gva: [Gva; LANES],
    place: [Option<P>; LANES],
    rights: [Rights; LANES],
    /// Those that are not at their end, a bit each.
    live: u32,
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
    pub(crate) fn at_each(&self, memory: &impl TableMemory, gvas: &[Gva], each: impl FnMut(usize, Translation)) {
        match self.context.mode {
            PagingMode::None => self.one_by_one(memory, gvas, each),
            PagingMode::Bits32 => self.in_lock_step::<Pte32, _>(memory, gvas, each),
            PagingMode::Pae | PagingMode::Long4 | PagingMode::Long5 => {
                self.in_lock_step::<Pte64, _>(memory, gvas, each);
            }
        }
    }

    /// The address as an instruction of this mode forms it (E116).
    #[inline]
    fn formed(&self, gva: Gva) -> Result<Gva, TranslateError> {
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
    fn root(&self, gva: Gva) -> u64 {
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
    fn one_by_one(&self, memory: &impl TableMemory, gvas: &[Gva], mut each: impl FnMut(usize, Translation)) {
        for (number, &gva) in gvas.iter().enumerate() {
            each(number, self.at(memory, gva));
        }
    }

    #[inline]
    fn in_lock_step<F: EntryFormat, M: TableMemory>(
        &self,
        memory: &M,
        gvas: &[Gva],
        mut each: impl FnMut(usize, Translation),
    ) {
        let mut lanes =
            Lanes { gva: [Gva::new(0); LANES], place: [const { None }; LANES], rights: [Rights::ALL; LANES], live: 0 };
        for (group, some) in gvas.chunks(LANES).enumerate() {
            let mut level = self.context.top();
            for (lane, &gva) in some.iter().enumerate() {
                match self.formed(gva) {
                    Ok(gva) => {
                        let table = self.context.first_table(self.root(gva));
                        lanes.send::<F, M>(memory, lane, gva, level, table, Rights::ALL);
                        lanes.live |= 1 << lane;
                    }
                    Err(error) => each(group * LANES + lane, Err(error)),
                }
            }
            while lanes.live != 0 {
                let mut left = lanes.live;
                while left != 0 {
                    let lane = left.trailing_zeros() as usize % LANES;
                    left &= left - 1;
                    let gva = lanes.gva[lane];
                    let pte = lanes.place[lane]
                        .map(|place| F::of_word(M::load(place), F::entry_gpa(Gfn::new(0), level, gva)))
                        .ok_or(self.asked.not_present);
                    let found =
                        pte.and_then(|pte| step::<F>(&self.context, self.asked, gva, level, lanes.rights[lane], pte));
                    if let Ok(Step::Table(table, rights)) = found {
                        lanes.send::<F, M>(memory, lane, gva, level.down(), Some(table), rights);
                        continue;
                    }
                    lanes.live &= !(1 << lane);
                    let number = group * LANES + lane;
                    match found {
                        Ok(Step::Leaf(gfn, _)) => each(number, Ok(reached(gfn, gva))),
                        Err(code) => each(number, Err(TranslateError::PageFault(code))),
                        Ok(Step::Table(..)) => {}
                    }
                }
                if lanes.live != 0 {
                    level = level.down();
                }
            }
        }
    }
}

impl<P: Copy> Lanes<P> {
    /// Sends a walk to a table: asks for its entry there.
    #[inline]
    fn send<'m, F: EntryFormat, M: TableMemory<Place<'m> = P> + 'm>(
        &mut self,
        memory: &'m M,
        lane: usize,
        gva: Gva,
        level: Level,
        table: Option<Gfn>,
        rights: Rights,
    ) {
        let place = table.and_then(|table| memory.place(F::entry_gpa(table, level, gva)));
        if let Some(place) = place {
            M::prefetch(place);
        }
        (self.gva[lane], self.place[lane], self.rights[lane]) = (gva, place, rights);
    }
}

#[inline]
const fn reached(gfn: Gfn, gva: Gva) -> Gpa {
    Gpa::new(gfn.gpa().get() | gva.offset())
}
