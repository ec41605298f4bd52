//! The guest that is stressed: its tables, its data frames, and which vCPU edits which word.
//!
//! ```text
//! PML4 slot 0    shared by all roots: one page directory of
//!                  leaf regions      (one table each, its entries edited by all vCPUs in turn)
//!                  toggle regions    (the entry leads to either of two tables, to a 2 MiB page, or nowhere)
//!                  chameleon regions (one for each vCPU: its table is data now and then)
//! PML4 slot 1    private to the process: a page directory with two tables. Two processes are run by everybody, each vCPU has
//!                one more of its own, whose page directory is a chameleon too
//! PML4 slot 256  all of memory in 2 MiB pages \ supervisor only, in the kernel's root of each KPTI pair:
//! PML4 slot 257  all of memory in 4 KiB pages / the windows through which tables are edited and signals given
//! ```

use super::history::WordLog;
use crate::{
    addr::{ENTRIES, PAGE_SIZE},
    error::{Error, Result},
    paging::{PTE_ACCESSED, PTE_LARGE, PTE_NX, PTE_PRESENT},
};

/// W of a guest entry.
pub(super) const PTE_WRITE: u64 = 2;
/// U of a guest entry.
pub(super) const PTE_USER: u64 = 4;
/// What a link to a table has when nothing is taken away.
pub(super) const LINK: u64 = PTE_PRESENT | PTE_WRITE | PTE_USER | PTE_ACCESSED;
/// First byte of the window of 2 MiB pages.
pub(super) const DIRECT: u64 = 0xffff_8000_0000_0000;
/// First byte of the window of 4 KiB pages.
pub(super) const ALIAS: u64 = 0xffff_8080_0000_0000;
/// The word of a data frame that holds its signature: nobody writes it.
pub(super) const SIGNATURE_WORD: u64 = 511;
/// Most vCPUs: each has words of its own in every data frame, and acknowledges to each other one.
pub const MAX_STRESS_VCPUS: usize = 256;

const PAGES: usize = 6;
const FRAMES: usize = 24;
const LEAF_REGIONS: usize = 3;
const TOGGLE_REGIONS: usize = 2;
const SHARED_PROCESSES: usize = 2;
const LARGE_PAGES: u64 = 512;
const SLOT: u64 = 1 << 39;
const REGION: u64 = 2 << 20;

/// A table word: where it is, and its log.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Word {
    pub(super) gpa: u64,
    pub(super) log: u32,
}

/// A last-level entry that one vCPU edits.
#[derive(Clone, Copy, Debug)]
pub(super) struct Leaf {
    pub(super) gva: u64,
    pub(super) word: Word,
    /// The chameleon whose table it is in, by its number among its vCPU's.
    pub(super) home: Option<usize>,
}

/// An entry above the last level that one vCPU edits.
#[derive(Clone, Debug)]
pub(super) struct Branch {
    pub(super) word: Word,
    /// What it may lead to; 0 is nowhere.
    pub(super) choices: Vec<u64>,
    pub(super) home: Option<usize>,
}

/// A table that its vCPU unlinks, uses as data, fills anew and links again.
#[derive(Clone, Debug)]
pub(super) struct Chameleon {
    /// The entry that leads to it.
    pub(super) parent: Word,
    /// Its own address.
    pub(super) gpa: u64,
    /// What its tracked entries lead to; empty: they are leaves.
    pub(super) links: Vec<u64>,
    pub(super) words: Vec<Word>,
}

/// What one vCPU edits.
#[derive(Clone, Debug, Default)]
pub(super) struct Estate {
    pub(super) leaves: Vec<Leaf>,
    pub(super) branches: Vec<Branch>,
    pub(super) chameleons: Vec<Chameleon>,
}

/// A KPTI pair of roots and the pages that it has.
#[derive(Clone, Debug)]
pub(super) struct Process {
    pub(super) kernel: u64,
    pub(super) user: u64,
    pub(super) pages: Vec<u64>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Table {
    first: u32,
    len: u32,
}

/// The whole guest, fixed but for what the logs say.
#[derive(Debug)]
pub(super) struct Guest {
    pub(super) vcpus: usize,
    /// Pages of memory.
    pub(super) pages: u64,
    pub(super) processes: Vec<Process>,
    pub(super) estates: Vec<Estate>,
    /// Gpas of the data frames.
    pub(super) frames: Vec<u64>,
    /// Gpas of all tables.
    pub(super) tables: Vec<u64>,
    /// Words that each vCPU owns in every data frame.
    pub(super) own_words: usize,
    /// Every tracked word.
    pub(super) words: Vec<Word>,
    signals: u64,
    tracked: Vec<Table>,
    frame_number: Vec<Option<u16>>,
    logs: Vec<WordLog>,
}

impl Guest {
    /// Lays a guest out for `vcpus` vCPUs in `bytes` of memory; also returns the words of memory to begin with.
    ///
    /// # Errors
    /// [`Error::Config`] for no vCPU, too many, or too little memory.
    pub(super) fn new(vcpus: usize, bytes: u64) -> Result<(Self, Vec<(u64, u64)>)> {
        if !(1..=MAX_STRESS_VCPUS).contains(&vcpus) {
            let expected = format!("1..={MAX_STRESS_VCPUS}");
            return Err(Error::Config { what: "vcpus", got: vcpus.to_string(), expected });
        }
        let needed = Self::bytes_needed(vcpus);
        if bytes < needed {
            let most = (1..vcpus).rev().find(|&fewer| Self::bytes_needed(fewer) <= bytes).unwrap_or(0);
            let expected = format!("at most {most} with {bytes} bytes of memory ({vcpus} need {needed})");
            return Err(Error::Config { what: "vcpus", got: vcpus.to_string(), expected });
        }
        Ok(Builder::new(vcpus, bytes / PAGE_SIZE).build())
    }

    /// Bytes of memory that `vcpus` vCPUs need: a multiple of 2 MiB.
    pub(super) fn bytes_needed(vcpus: usize) -> u64 {
        let signals = Self::signal_pages(vcpus);
        let shared = 5 + LEAF_REGIONS + 2 * TOGGLE_REGIONS + FRAMES + 2;
        let processes = (SHARED_PROCESSES + vcpus) * 6;
        let pages = (shared + processes + vcpus) as u64 + signals;
        // The tables of the 4 KiB window, the 2 MiB page, and a round number.
        let pages = pages + pages.div_ceil(LARGE_PAGES) + 2 + LARGE_PAGES;
        pages.next_multiple_of(LARGE_PAGES) * PAGE_SIZE
    }

    fn signal_pages(vcpus: usize) -> u64 {
        (vcpus as u64 * (vcpus as u64 + 2) * 8).div_ceil(PAGE_SIZE)
    }

    /// The log of a word.
    pub(super) fn log(&self, word: Word) -> &WordLog {
        &self.logs[word.log as usize]
    }

    /// The log of the entry `index` of the table at `gfn`; none if it is never used.
    #[inline]
    pub(super) fn entry(&self, gfn: u64, index: usize) -> Option<&WordLog> {
        let table = self.tracked.get(gfn as usize)?;
        (index < table.len as usize).then(|| &self.logs[table.first as usize + index])
    }

    /// The number of the data frame at `gpa`.
    pub(super) fn frame_at(&self, gpa: u64) -> Option<usize> {
        self.frame_number.get((gpa / PAGE_SIZE) as usize).copied().flatten().map(usize::from)
    }

    /// What the signature word of a data frame holds.
    pub(super) fn signature(frame: u64) -> u64 {
        (frame / PAGE_SIZE) | (0x51a7 << 48)
    }

    /// The word of a data frame that is number `number` of `vcpu`'s own.
    pub(super) fn own_word(&self, vcpu: usize, number: usize) -> u64 {
        (vcpu * self.own_words + number) as u64
    }

    /// Where `initiator` puts the number of its shoot-down; what to invalidate is in the word after it.
    pub(super) fn signal(&self, initiator: usize) -> u64 {
        self.signals + (initiator * (self.vcpus + 2)) as u64 * 8
    }

    /// Where `responder` acknowledges it.
    pub(super) fn acknowledgement(&self, initiator: usize, responder: usize) -> u64 {
        self.signal(initiator) + 16 + responder as u64 * 8
    }
}

struct Builder {
    guest: Guest,
    next: u64,
    memory: Vec<(u64, u64)>,
    /// Gpa of the 2 MiB page.
    block: u64,
}

impl Builder {
    fn new(vcpus: usize, pages: u64) -> Self {
        // The 2 MiB page is the last of memory that is aligned.
        let block = (pages / LARGE_PAGES - 1) * LARGE_PAGES;
        let guest = Guest {
            vcpus,
            pages,
            processes: Vec::new(),
            estates: vec![Estate::default(); vcpus],
            frames: Vec::new(),
            tables: Vec::new(),
            own_words: (SIGNATURE_WORD as usize / vcpus).min(4),
            words: Vec::new(),
            signals: 0,
            tracked: vec![Table::default(); pages as usize],
            frame_number: vec![None; pages as usize],
            logs: Vec::new(),
        };
        Self { guest, next: 1, memory: Vec::new(), block: block * PAGE_SIZE }
    }

    fn pages(&mut self, count: u64) -> u64 {
        let gpa = self.next * PAGE_SIZE;
        self.next += count;
        assert!(gpa + count * PAGE_SIZE <= self.block, "bytes_needed counts every page");
        gpa
    }

    fn table(&mut self) -> u64 {
        let gpa = self.pages(1);
        self.guest.tables.push(gpa);
        gpa
    }

    fn frame(&mut self, gpa: u64) {
        self.guest.frame_number[(gpa / PAGE_SIZE) as usize] = Some(self.guest.frames.len() as u16);
        self.guest.frames.push(gpa);
        self.memory.push((gpa + SIGNATURE_WORD * 8, Guest::signature(gpa)));
    }

    /// Fills the first entries of a table and tracks them.
    fn track(&mut self, table: u64, values: &[u64]) -> Vec<Word> {
        let first = self.guest.logs.len() as u32;
        self.guest.tracked[(table / PAGE_SIZE) as usize] = Table { first, len: values.len() as u32 };
        let words: Vec<Word> =
            (0..values.len()).map(|i| Word { gpa: table + i as u64 * 8, log: first + i as u32 }).collect();
        self.memory.extend(words.iter().zip(values).map(|(word, &value)| (word.gpa, value)));
        self.guest.logs.extend(values.iter().map(|&value| WordLog::new(value)));
        self.guest.words.extend(&words);
        words
    }

    /// A last-level table whose leaves belong to `owner`; each in turn to another vCPU if that is `None`.
    fn leaves(&mut self, base: u64, owner: Option<usize>, home: Option<usize>) -> (u64, Vec<Word>) {
        let table = self.table();
        let frames = self.guest.frames.len();
        let values: Vec<u64> =
            (0..PAGES).map(|i| self.guest.frames[(self.guest.logs.len() + i) % frames] | LINK).collect();
        let words = self.track(table, &values);
        for (number, &word) in words.iter().enumerate() {
            let owner = owner.unwrap_or((word.log as usize) % self.guest.vcpus);
            let leaf = Leaf { gva: base + number as u64 * PAGE_SIZE, word, home };
            self.guest.estates[owner].leaves.push(leaf);
        }
        (table, words)
    }

    fn page_addresses(base: u64) -> impl Iterator<Item = u64> {
        (0..PAGES as u64).map(move |page| base + page * PAGE_SIZE)
    }

    fn build(mut self) -> (Guest, Vec<(u64, u64)>) {
        let vcpus = self.guest.vcpus;
        self.guest.signals = self.pages(Guest::signal_pages(vcpus));
        for _ in 0..FRAMES {
            let gpa = self.pages(1);
            self.frame(gpa);
        }
        for page in 0..PAGES as u64 {
            self.frame(self.block + page * PAGE_SIZE);
        }
        let windows = [self.direct(), self.alias()];
        let (shared, mut pages) = self.shared();
        pages.sort_unstable();
        for number in 0..SHARED_PROCESSES + vcpus {
            self.process(number.checked_sub(SHARED_PROCESSES), shared, windows, &pages);
        }
        (self.guest, self.memory)
    }

    /// The page directory pointer table of the window of 2 MiB pages.
    fn direct(&mut self) -> u64 {
        let (pdpt, directory) = (self.table(), self.table());
        self.memory.push((pdpt, directory | LINK & !PTE_USER));
        for large in 0..self.guest.pages / LARGE_PAGES {
            let value = (large * LARGE_PAGES * PAGE_SIZE) | (LINK & !PTE_USER) | PTE_LARGE;
            self.memory.push((directory + large * 8, value));
        }
        pdpt
    }

    /// The page directory pointer table of the window of 4 KiB pages.
    fn alias(&mut self) -> u64 {
        let (pdpt, directory) = (self.table(), self.table());
        self.memory.push((pdpt, directory | LINK & !PTE_USER));
        for region in 0..self.guest.pages.div_ceil(LARGE_PAGES) {
            let table = self.table();
            self.memory.push((directory + region * 8, table | LINK & !PTE_USER));
            for page in 0..LARGE_PAGES.min(self.guest.pages - region * LARGE_PAGES) {
                let gpa = (region * LARGE_PAGES + page) * PAGE_SIZE;
                self.memory.push((table + page * 8, gpa | LINK & !PTE_USER));
            }
        }
        pdpt
    }

    /// The page directory pointer table of slot 0, and the pages below it.
    fn shared(&mut self) -> (u64, Vec<u64>) {
        let vcpus = self.guest.vcpus;
        let (pdpt, directory) = (self.table(), self.table());
        let mut entries = Vec::new();
        let mut pages = Vec::new();
        let mut choices = Vec::new();
        let regions = LEAF_REGIONS + TOGGLE_REGIONS + vcpus;
        for region in 0..regions {
            let base = region as u64 * REGION;
            pages.extend(Self::page_addresses(base));
            let owner = region.checked_sub(LEAF_REGIONS + TOGGLE_REGIONS);
            let (table, words) = self.leaves(base, owner, owner.map(|_| 0));
            entries.push(table | LINK);
            choices.push(match owner {
                None if region < LEAF_REGIONS => vec![table],
                None => {
                    let (other, _) = self.leaves(base, None, None);
                    vec![table, other, self.block | PTE_LARGE, 0]
                }
                Some(owner) => {
                    // Filled in below, when the word of its entry is known.
                    let parent = Word { gpa: directory + region as u64 * 8, log: 0 };
                    let chameleon = Chameleon { parent, gpa: table, links: Vec::new(), words };
                    self.guest.estates[owner].chameleons.push(chameleon);
                    Vec::new()
                }
            });
        }
        let words = self.track(directory, &entries);
        for (region, (&word, choices)) in words.iter().zip(choices).enumerate() {
            match region.checked_sub(LEAF_REGIONS + TOGGLE_REGIONS) {
                Some(owner) => self.guest.estates[owner].chameleons[0].parent = word,
                None => self.guest.estates[region % vcpus].branches.push(Branch { word, choices, home: None }),
            }
        }
        let top = self.track(pdpt, &[directory | LINK]);
        let branch = Branch { word: top[0], choices: vec![directory], home: None };
        self.guest.estates[vcpus - 1].branches.push(branch);
        (pdpt, pages)
    }

    /// One KPTI pair with its private tables; `owner` edits all of them, or everybody.
    fn process(&mut self, owner: Option<usize>, shared: u64, windows: [u64; 2], pages: &[u64]) {
        let (kernel, user, pdpt, directory) = (self.table(), self.table(), self.table(), self.table());
        let home = owner.map(|_| 1);
        let mut own = pages.to_vec();
        let mut tables = Vec::new();
        for region in 0..2 {
            let base = SLOT + region * REGION;
            own.extend(Self::page_addresses(base));
            tables.push(self.leaves(base, owner, None).0);
        }
        let entries: Vec<u64> = tables.iter().map(|table| table | LINK).collect();
        let words = self.track(directory, &entries);
        for (number, (&word, &table)) in words.iter().zip(&tables).enumerate() {
            let editor = owner.unwrap_or(number % self.guest.vcpus);
            let choices = vec![table, tables[1 - number], 0];
            self.guest.estates[editor].branches.push(Branch { word, choices, home });
        }
        let top = self.track(pdpt, &[directory | LINK])[0];
        if let Some(owner) = owner {
            let chameleon = Chameleon { parent: top, gpa: directory, links: tables, words };
            self.guest.estates[owner].chameleons.push(chameleon);
        } else {
            let branch = Branch { word: top, choices: vec![directory], home: None };
            self.guest.estates[0].branches.push(branch);
        }
        // Linux makes the user half of the kernel's root not executable.
        self.track(kernel, &[shared | LINK | PTE_NX, pdpt | LINK | PTE_NX]);
        self.track(user, &[shared | LINK, pdpt | LINK]);
        for (slot, window) in windows.into_iter().enumerate() {
            self.memory.push((kernel + (ENTRIES / 2 + slot) as u64 * 8, window | LINK & !PTE_USER));
        }
        self.guest.processes.push(Process { kernel, user, pages: own });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_fits_into_what_it_says_it_needs_and_every_word_has_one_editor() {
        for vcpus in [1, 2, 3, 8, 64, MAX_STRESS_VCPUS] {
            let (guest, memory) = Guest::new(vcpus, Guest::bytes_needed(vcpus)).unwrap();
            let mut owned: Vec<u64> = Vec::new();
            for estate in &guest.estates {
                owned.extend(estate.leaves.iter().map(|leaf| leaf.word.gpa));
                owned.extend(estate.branches.iter().map(|branch| branch.word.gpa));
                owned.extend(estate.chameleons.iter().map(|chameleon| chameleon.parent.gpa));
            }
            let count = owned.len();
            owned.sort_unstable();
            owned.dedup();
            assert_eq!(owned.len(), count, "{vcpus}: an entry with two editors");
            // All but the two entries of each root.
            assert_eq!(count, guest.words.len() - guest.processes.len() * 4, "{vcpus}");
            assert!(memory.iter().all(|&(gpa, _)| gpa < guest.pages * PAGE_SIZE));
            assert!(guest.own_word(vcpus - 1, guest.own_words - 1) < SIGNATURE_WORD);
        }
    }

    #[test]
    fn no_vcpu_too_many_and_too_little_memory_are_refused_with_what_is_accepted() {
        let needed = Guest::bytes_needed(8);
        for (vcpus, bytes, expected) in [
            (0, needed, "1..=256"),
            (257, 1 << 30, "1..=256"),
            (200, needed, "at most"),
            (1, 4096, "at most 0 with 4096 bytes"),
        ] {
            let error = Guest::new(vcpus, bytes).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
    }
}
