//! Looks at many translations together.
//!
//! A walk waits for four or five loads, each of which needs the one before; many walks have nothing to wait for in each other. So each
//! goes as far as its page table, asks for its entry there, and waits while those behind it come as far. And neighbours share their
//! upper tables, which need not be walked again: a batch keeps those that it saw last, as a processor does in its paging-structure
//! caches (SDM vol. 3A, 4.10.3), and like it only what led on with every check passed, with the rights so far. Each walk still reads an
//! upper entry before a lower one, and both after the call began: what a processor may do that invalidated its caches then.

use core::marker::PhantomData;

use super::{
    format::{EntryFormat, FrameMemory},
    look::{Look, reached},
    plain::{PlainLeaf, PlainLeaves},
    step::{Rights, Step, step, table_of},
};
use crate::{
    access::{FaultCode, TranslateError, Translation},
    addr::{Gfn, Gva, Level},
};

/// Tables of each kind that are kept: as many page tables as fit the processor's own cache, so that none of them is waited for.
const KEPT: usize = 64;
/// Walks that wait at a time. Fewer leave the memory idle, more than the processor can wait for at once (docs/performance.md).
const AHEAD: usize = 64;
/// Walks that go by their directories when a page table is not kept, the first of them included: the next ones mostly find none either,
/// and those that would, wait no longer by it.
const OTHERS: usize = 32;

/// A table on the way of all addresses of a region, the rights so far, and what they make of its entries.
#[derive(Clone, Copy)]
struct Start<T, E> {
    region: u64,
    /// `None` where none was seen yet.
    table: Option<T>,
    rights: Rights,
    entries: E,
}

/// The tables that were seen last, each in the place of its region.
struct Kept<T, E>([Start<T, E>; KEPT]);

impl<T: Copy, E: Copy + Default> Kept<T, E> {
    /// None yet; all zero, which is quickly made.
    fn new() -> Self {
        Self([Start { region: 0, table: None, rights: Rights::default(), entries: E::default() }; KEPT])
    }

    /// What is in the place of a region, be it this one's or not.
    #[inline]
    fn at(&self, region: u64) -> &Start<T, E> {
        &self.0[region as usize % KEPT]
    }

    #[inline]
    fn keep(&mut self, start: Start<T, E>) {
        self.0[start.region as usize % KEPT] = start;
    }
}

/// A walk that waits for its last entry.
#[derive(Clone, Copy)]
struct Waiting<P> {
    number: usize,
    gva: Gva,
    /// `None` of none.
    place: Option<P>,
    rights: Rights,
}

/// The looks of one call.
pub(super) struct Batch<'b, 'm, F, M: FrameMemory + 'm> {
    look: &'b Look<'b>,
    memory: &'m M,
    plain: PlainLeaves,
    /// Level-2 tables.
    directories: Kept<M::Frame<'m>, ()>,
    /// Level-1 tables.
    tables: Kept<M::Frame<'m>, PlainLeaf>,
    /// Walks in the order in which they began to wait, from `oldest` on and round.
    waiting: [Waiting<M::Place<'m>>; AHEAD],
    oldest: usize,
    format: PhantomData<F>,
}

impl<'b, 'm, F: EntryFormat, M: FrameMemory> Batch<'b, 'm, F, M> {
    #[inline]
    pub(super) fn new(look: &'b Look<'b>, memory: &'m M) -> Self {
        let none = Waiting { number: 0, gva: Gva::new(0), place: None, rights: Rights::default() };
        Self {
            look,
            memory,
            plain: PlainLeaves::new(&look.context, look.asked),
            directories: Kept::new(),
            tables: Kept::new(),
            waiting: [none; AHEAD],
            oldest: 0,
            format: PhantomData,
        }
    }

    /// Translates them all.
    #[inline(never)]
    pub(super) fn translate(&mut self, gvas: impl Iterator<Item = Gva>, each: &mut impl FnMut(usize, Translation)) {
        let mut gvas = gvas.enumerate();
        let mut others = [(0, Gva::new(0)); OTHERS];
        while let Some((number, gva)) = gvas.next() {
            let region = region::<F>(gva, Level::PT);
            let start = self.tables.at(region);
            if start.region == region
                && let Some(table) = start.table
            {
                let pte = Self::entry(table, Level::PT, gva);
                if start.entries.is(pte) {
                    each(number, Ok(reached(F::target(pte, Level::PT, gva), gva)));
                } else {
                    each(number, self.end_oddly(gva, start.rights, pte));
                }
                continue;
            }
            others[0] = (number, gva);
            let mut count = 1;
            for (other, next) in others[1..].iter_mut().zip(gvas.by_ref()) {
                *other = next;
                count += 1;
            }
            self.begin(&others[..count], each);
        }
        for at in 0..AHEAD {
            let walk = self.waiting[at];
            self.waiting[at].place = None;
            self.end(&walk, each);
        }
    }

    /// Begins walks at their directories, to wait for their page tables' entries, and ends as many that have waited longest.
    #[inline(never)]
    fn begin(&mut self, walks: &[(usize, Gva)], each: &mut impl FnMut(usize, Translation)) {
        for &(number, gva) in walks {
            let at = self.oldest % AHEAD;
            self.oldest += 1;
            let longest = self.waiting[at];
            self.end(&longest, each);
            let region = region::<F>(gva, Level::PD);
            let start = self.directories.at(region);
            if start.region == region
                && let Some(directory) = start.table
            {
                let pte = Self::entry(directory, Level::PD, gva);
                if self.look.context.reserved.is_plain(pte, Level::PD) {
                    let rights = start.rights.with(&self.look.context, pte);
                    if let Some(table) = self.memory.frame(table_of(pte)) {
                        self.wait(at, number, gva, table, rights);
                        continue;
                    }
                }
            }
            self.begin_oddly(at, number, gva, each);
        }
    }

    /// Lets a walk wait for its entry in a page table.
    #[inline]
    fn wait(&mut self, at: usize, number: usize, gva: Gva, table: M::Frame<'m>, rights: Rights) {
        let place = M::place_in(table, F::entry_gpa(Gfn::new(0), Level::PT, gva));
        M::prefetch(place);
        self.waiting[at] = Waiting { number, gva, place: Some(place), rights };
        // Among more tables than can be kept few are met again, so not every one is worth the work.
        let region = region::<F>(gva, Level::PT);
        if at.is_multiple_of(8) || self.tables.at(region).table.is_none() {
            self.tables.keep(Start { region, table: Some(table), rights, entries: self.plain.under(rights) });
        }
    }

    /// Begins a walk whose directory was not seen, or has no plain entry for it.
    #[inline(never)]
    fn begin_oddly(&mut self, at: usize, number: usize, gva: Gva, each: &mut impl FnMut(usize, Translation)) {
        self.waiting[at].place = None;
        match self.descend(gva) {
            Ok(Step::Table(table, rights)) => match self.memory.frame(table) {
                Some(table) => self.wait(at, number, gva, table, rights),
                None => each(number, Err(TranslateError::PageFault(self.look.asked.not_present))),
            },
            Ok(Step::Leaf(gfn, _)) => each(number, Ok(reached(gfn, gva))),
            Err(error) => each(number, Err(error)),
        }
    }

    /// The levels above the page tables, from the directory on if it was seen.
    #[inline]
    fn descend(&mut self, gva: Gva) -> Result<Step, TranslateError> {
        let at = region::<F>(gva, Level::PD);
        let start = *self.directories.at(at);
        if start.region == at
            && let Some(directory) = start.table
        {
            return self.directory(gva, directory, start.rights).map_err(TranslateError::PageFault);
        }
        let gva = self.look.formed(gva)?;
        let not_present = self.look.asked.not_present;
        match self.descend_to_directory(gva).map_err(TranslateError::PageFault)? {
            Step::Table(table, rights) => {
                let directory = self.memory.frame(table).ok_or(TranslateError::PageFault(not_present))?;
                self.directories.keep(Start { region: at, table: Some(directory), rights, entries: () });
                self.directory(gva, directory, rights).map_err(TranslateError::PageFault)
            }
            leaf @ Step::Leaf(..) => Ok(leaf),
        }
    }

    /// The entry for an address in a table.
    #[inline(always)]
    #[expect(clippy::inline_always, reason = "the whole of most looks")]
    fn entry(table: M::Frame<'m>, level: Level, gva: Gva) -> u64 {
        let gpa = F::entry_gpa(Gfn::new(0), level, gva);
        F::of_word(M::load(M::place_in(table, gpa)), gpa)
    }

    /// The step from a directory.
    fn directory(&self, gva: Gva, directory: M::Frame<'m>, rights: Rights) -> Result<Step, FaultCode> {
        let pte = Self::entry(directory, Level::PD, gva);
        step::<F>(&self.look.context, self.look.asked, gva, Level::PD, rights, pte)
    }

    /// The levels above the directories.
    fn descend_to_directory(&self, gva: Gva) -> Result<Step, FaultCode> {
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

    /// Takes the last step of a walk, if it is one.
    #[inline]
    fn end(&self, walk: &Waiting<M::Place<'m>>, each: &mut impl FnMut(usize, Translation)) {
        let Some(place) = walk.place else { return };
        let pte = F::of_word(M::load(place), F::entry_gpa(Gfn::new(0), Level::PT, walk.gva));
        if self.plain.has(walk.rights, pte) {
            each(walk.number, Ok(reached(F::target(pte, Level::PT, walk.gva), walk.gva)));
        } else {
            each(walk.number, self.end_oddly(walk.gva, walk.rights, pte));
        }
    }

    /// Takes the last step from an entry that is no plain leaf.
    #[inline(never)]
    fn end_oddly(&self, gva: Gva, rights: Rights, pte: u64) -> Translation {
        match step::<F>(&self.look.context, self.look.asked, gva, Level::PT, rights, pte) {
            Ok(Step::Leaf(gfn, _) | Step::Table(gfn, _)) => Ok(reached(gfn, gva)),
            Err(code) => Err(TranslateError::PageFault(code)),
        }
    }
}

/// The number of the region that a table of this level maps.
#[inline]
const fn region<F: EntryFormat>(gva: Gva, level: Level) -> u64 {
    gva.page() >> (F::INDEX_BITS * level.get() as u32)
}
