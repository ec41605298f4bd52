//! Looks at translations: walks that change nothing, one address at a time or many in lock-step.
//!
//! A walk waits for four or five loads, each of which needs the one before. Many walks have nothing to wait for in each other: those of
//! a group all take a step, then the next, and what each will read is asked for a whole round before it is read. The groups are at
//! different levels, so that the leaves of one, which are seldom in cache, arrive while others walk the tables above theirs, which are.

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

/// Walks of a group, and groups (docs/performance.md). Fewer leave the memory idle, more than the processor can wait for at once.
const LANES: usize = 16;
const GROUPS: usize = 4;

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

/// A group of walks, all at one level: each one's address, the entry that it reads next (`None`: in no memslot), the rights so far.
struct Group<P> {
    /// Number of the first one's address.
    first: usize,
    level: Level,
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
        let mut groups: [Group<M::Place<'_>>; GROUPS] = core::array::from_fn(|_| Group::new());
        let mut rest = gvas.chunks(LANES).enumerate();
        // The first ones begin one after the other, and so stay apart.
        let mut begun = 0;
        loop {
            begun = GROUPS.min(begun + 1);
            for group in &mut groups[..begun] {
                if group.live != 0 {
                    self.advance::<F, M>(memory, group, &mut each);
                } else if let Some((number, some)) = rest.next() {
                    self.begin::<F, M>(memory, group, number * LANES, some, &mut each);
                }
            }
            if rest.len() == 0 && groups.iter().all(|group| group.live == 0) {
                return;
            }
        }
    }

    /// Begins the walks of some addresses.
    #[inline]
    fn begin<'m, F: EntryFormat, M: TableMemory>(
        &self,
        memory: &'m M,
        group: &mut Group<M::Place<'m>>,
        first: usize,
        gvas: &[Gva],
        each: &mut impl FnMut(usize, Translation),
    ) {
        (group.first, group.level) = (first, self.context.top());
        for (lane, &gva) in gvas.iter().enumerate() {
            match self.formed(gva) {
                Ok(gva) => {
                    let table = self.context.first_table(self.root(gva));
                    group.send::<F, M>(memory, lane, gva, self.context.top(), table, Rights::ALL);
                    group.live |= 1 << lane;
                }
                Err(error) => each(first + lane, Err(error)),
            }
        }
    }

    /// Takes a step of each walk of a group.
    #[inline]
    fn advance<'m, F: EntryFormat, M: TableMemory>(
        &self,
        memory: &'m M,
        group: &mut Group<M::Place<'m>>,
        each: &mut impl FnMut(usize, Translation),
    ) {
        let level = group.level;
        let mut left = group.live;
        while left != 0 {
            let lane = left.trailing_zeros() as usize % LANES;
            left &= left - 1;
            let gva = group.gva[lane];
            let pte = group.place[lane]
                .map(|place| F::of_word(M::load(place), F::entry_gpa(Gfn::new(0), level, gva)))
                .ok_or(self.asked.not_present);
            match pte.and_then(|pte| step::<F>(&self.context, self.asked, gva, level, group.rights[lane], pte)) {
                Ok(Step::Table(table, rights)) => {
                    group.send::<F, M>(memory, lane, gva, level.down(), Some(table), rights);
                }
                Ok(Step::Leaf(gfn, _)) => {
                    group.live &= !(1 << lane);
                    each(group.first + lane, Ok(reached(gfn, gva)));
                }
                Err(code) => {
                    group.live &= !(1 << lane);
                    each(group.first + lane, Err(TranslateError::PageFault(code)));
                }
            }
        }
        if group.live != 0 {
            group.level = level.down();
        }
    }
}

impl<P: Copy> Group<P> {
    const fn new() -> Self {
        Self {
            first: 0,
            level: Level::PT,
            gva: [Gva::new(0); LANES],
            place: [None; LANES],
            rights: [Rights::ALL; LANES],
            live: 0,
        }
    }

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
