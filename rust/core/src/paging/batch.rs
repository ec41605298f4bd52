//! Looks at many translations together.
//!
//! A walk waits for four or five loads, each of which needs the one before; many walks have nothing to wait for in each other. So each
//! goes as far as what it will read is at hand, asks for that, and waits in a queue while those behind it do the same. And neighbours
//! share their upper tables, which need not be walked again: a batch keeps those that it saw last, as a processor does in its
//! paging-structure caches, and like it only what led on with every check passed.

use core::marker::PhantomData;

use super::{
    format::{EntryFormat, FrameMemory},
    look::{Look, reached},
    step::{Rights, Step, step},
};
use crate::{
    access::{FaultCode, TranslateError, Translation},
    addr::{Gfn, Gva, Level},
};

/// Tables of each kind that are kept: as many page tables as fit the processor's own cache, so that none of them is waited for.
const KEPT: usize = 64;
/// Walks that wait for a directory's entry, and for a page table's, which is seldom in cache (docs/performance.md). Fewer leave the
/// memory idle, more than the processor can wait for at once.
const AHEAD: [usize; 2] = [8, 24];

/// A table on the way of all addresses of a region, and the rights so far.
#[derive(Clone, Copy)]
struct Start<T> {
    region: u64,
    table: T,
    rights: Rights,
}

/// The tables that were seen last, each in the place of its region.
struct Kept<T>([Option<Start<T>>; KEPT]);

impl<T: Copy> Kept<T> {
    #[inline]
    fn find(&self, region: u64) -> Option<(T, Rights)> {
        self.0[region as usize % KEPT].filter(|start| start.region == region).map(|start| (start.table, start.rights))
    }

    #[inline]
    fn keep(&mut self, region: u64, table: T, rights: Rights) {
        self.0[region as usize % KEPT] = Some(Start { region, table, rights });
    }
}

/// A walk that waits for its next entry.
#[derive(Clone, Copy)]
struct Waiting<P> {
    number: usize,
    gva: Gva,
    place: P,
    rights: Rights,
}

/// Walks in the order in which they began to wait.
struct Queue<P, const LENGTH: usize> {
    waiting: [Option<Waiting<P>>; LENGTH],
    next: usize,
}

impl<P: Copy, const LENGTH: usize> Queue<P, LENGTH> {
    const fn new() -> Self {
        Self { waiting: [None; LENGTH], next: 0 }
    }

    /// Takes the place of the one that has waited longest, if all are taken.
    #[inline]
    fn push(&mut self, walk: Waiting<P>) -> Option<Waiting<P>> {
        let longest = self.waiting[self.next].replace(walk);
        self.next = if self.next + 1 == LENGTH { 0 } else { self.next + 1 };
        longest
    }

    /// The one that has waited longest.
    fn pop(&mut self) -> Option<Waiting<P>> {
        for _ in 0..LENGTH {
            let longest = self.waiting[self.next].take();
            self.next = if self.next + 1 == LENGTH { 0 } else { self.next + 1 };
            if longest.is_some() {
                return longest;
            }
        }
        None
    }
}

/// The looks of one call.
pub(super) struct Batch<'b, 'm, F, M: FrameMemory + 'm> {
    look: &'b Look<'b>,
    memory: &'m M,
    /// Level-2 tables.
    directories: Kept<M::Frame<'m>>,
    /// Level-1 tables.
    tables: Kept<M::Frame<'m>>,
    at_directory: Queue<M::Place<'m>, { AHEAD[0] }>,
    at_table: Queue<M::Place<'m>, { AHEAD[1] }>,
    format: PhantomData<F>,
}

impl<'b, 'm, F: EntryFormat, M: FrameMemory> Batch<'b, 'm, F, M> {
    #[inline]
    pub(super) fn new(look: &'b Look<'b>, memory: &'m M) -> Self {
        Self {
            look,
            memory,
            directories: Kept([None; KEPT]),
            tables: Kept([None; KEPT]),
            at_directory: Queue::new(),
            at_table: Queue::new(),
            format: PhantomData,
        }
    }

    /// Translates them all.
    #[inline]
    pub(super) fn translate(mut self, gvas: impl Iterator<Item = Gva>, each: &mut impl FnMut(usize, Translation)) {
        for (number, gva) in gvas.enumerate() {
            let gva = match self.look.formed(gva) {
                Ok(gva) => gva,
                Err(error) => {
                    each(number, Err(error));
                    continue;
                }
            };
            if let Some((table, rights)) = self.tables.find(region::<F>(gva, Level::PT)) {
                let place = M::place_in(table, F::entry_gpa(Gfn::new(0), Level::PT, gva));
                self.end(Waiting { number, gva, place, rights }, each);
            } else {
                self.begin(number, gva, each);
            }
        }
        while let Some(walk) = self.at_directory.pop() {
            self.go_on(walk, each);
        }
        while let Some(walk) = self.at_table.pop() {
            self.end(walk, each);
        }
    }

    /// Begins a walk: at its directory if that was seen.
    #[inline]
    fn begin(&mut self, number: usize, gva: Gva, each: &mut impl FnMut(usize, Translation)) {
        let region = region::<F>(gva, Level::PD);
        let (table, rights) = match self.directories.find(region) {
            Some(found) => found,
            None => match self.descend(gva) {
                Ok(Step::Leaf(gfn, _)) => return each(number, Ok(reached(gfn, gva))),
                Ok(Step::Table(table, rights)) => match self.memory.frame(table) {
                    Some(table) => {
                        self.directories.keep(region, table, rights);
                        (table, rights)
                    }
                    None => return each(number, Err(TranslateError::PageFault(self.look.asked.not_present))),
                },
                Err(code) => return each(number, Err(TranslateError::PageFault(code))),
            },
        };
        let place = M::place_in(table, F::entry_gpa(Gfn::new(0), Level::PD, gva));
        M::prefetch(place);
        if let Some(walk) = self.at_directory.push(Waiting { number, gva, place, rights }) {
            self.go_on(walk, each);
        }
    }

    /// The levels above the directories.
    #[inline(never)]
    fn descend(&self, gva: Gva) -> Result<Step, FaultCode> {
        let Look { context, asked, .. } = self.look;
        let mut table = context.first_table(self.look.root(gva)).ok_or(asked.not_present)?;
        let (mut level, mut rights) = (context.top(), Rights::ALL);
        while level > Level::PD {
            let pte = F::read(self.memory, F::entry_gpa(table, level, gva)).ok_or(asked.not_present)?;
            match step::<F>(context, *asked, gva, level, rights, pte)? {
                Step::Table(next, so_far) => (table, rights, level) = (next, so_far, level.down()),
                leaf @ Step::Leaf(..) => return Ok(leaf),
            }
        }
        Ok(Step::Table(table, rights))
    }

    /// Takes the step of a directory's entry.
    #[inline]
    fn go_on(&mut self, walk: Waiting<M::Place<'m>>, each: &mut impl FnMut(usize, Translation)) {
        let Waiting { number, gva, .. } = walk;
        let found = match self.step(&walk, Level::PD) {
            Ok(Step::Table(table, rights)) => match self.memory.frame(table) {
                Some(table) => {
                    self.tables.keep(region::<F>(gva, Level::PT), table, rights);
                    let place = M::place_in(table, F::entry_gpa(Gfn::new(0), Level::PT, gva));
                    M::prefetch(place);
                    if let Some(walk) = self.at_table.push(Waiting { number, gva, place, rights }) {
                        self.end(walk, each);
                    }
                    return;
                }
                None => Err(self.look.asked.not_present),
            },
            Ok(Step::Leaf(gfn, _)) => Ok(reached(gfn, gva)),
            Err(code) => Err(code),
        };
        each(number, found.map_err(TranslateError::PageFault));
    }

    /// Takes the last step.
    #[inline]
    fn end(&self, walk: Waiting<M::Place<'m>>, each: &mut impl FnMut(usize, Translation)) {
        let found = match self.step(&walk, Level::PT) {
            Ok(Step::Leaf(gfn, _) | Step::Table(gfn, _)) => Ok(reached(gfn, walk.gva)),
            Err(code) => Err(TranslateError::PageFault(code)),
        };
        each(walk.number, found);
    }

    #[inline]
    fn step(&self, walk: &Waiting<M::Place<'m>>, level: Level) -> Result<Step, FaultCode> {
        let pte = F::of_word(M::load(walk.place), F::entry_gpa(Gfn::new(0), level, walk.gva));
        step::<F>(&self.look.context, self.look.asked, walk.gva, level, walk.rights, pte)
    }
}

/// The number of the region that a table of this level maps.
#[inline]
const fn region<F: EntryFormat>(gva: Gva, level: Level) -> u64 {
    gva.page() >> (F::INDEX_BITS * level.get() as u32)
}
