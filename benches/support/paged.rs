//! A guest of any paging mode that maps consecutive pages to frames of its own, in no order, and the same tables for a walk that
//! checks nothing.

use shadow_mmu::{Gpa, Gva, MemoryRegion, Op, OpKind, Outcome, Vm, VmConfig};
use shadow_mmu_sync::{AtomicU64, Ordering};
use shadow_mmu_sys::{hint, mem::zeroed_words};

use super::measure::Random;

const PAGE: u64 = 0x1000;
/// Present, writable, user, accessed, dirty.
const USED: u64 = 0x67;
const FRAME_MASK: u64 = 0x000f_ffff_ffff_f000;

/// A paging mode: its name, the registers that turn it on, bits of an index, bytes of an entry, levels above the PDPTRs.
#[derive(Clone, Copy, Debug)]
pub struct Mode {
    /// As the rows call it.
    pub name: &'static str,
    cr4: u64,
    efer: u64,
    index_bits: u32,
    levels: u32,
    /// Whether four PDPTRs stand above the levels.
    pae: bool,
}

/// Every mode with tables.
pub const MODES: [Mode; 4] = [
    Mode { name: "32-bit", cr4: 0x10, efer: 0, index_bits: 10, levels: 2, pae: false },
    Mode { name: "PAE", cr4: 0x20, efer: 0x800, index_bits: 9, levels: 2, pae: true },
    Mode { name: "4-level", cr4: 0x20, efer: 0x900, index_bits: 9, levels: 4, pae: false },
    Mode { name: "5-level", cr4: 0x1020, efer: 0x900, index_bits: 9, levels: 5, pae: false },
];

impl Mode {
    /// The mode of this name.
    pub fn named(name: &str) -> Self {
        *MODES.iter().find(|mode| mode.name == name).expect("a mode of the table")
    }

    const fn entry_bytes(self) -> u64 {
        PAGE >> self.index_bits
    }
}

/// The guest.
pub struct Paged {
    /// The machine, whose vCPU 0 is in the mode.
    pub vm: Vm,
    mode: Mode,
    pages: u64,
    root: u64,
    tables: Box<[AtomicU64]>,
}

impl Paged {
    /// Maps `pages` pages from gva 0 on.
    pub fn new(mode: Mode, pages: u64) -> Self {
        let mut counts = vec![pages];
        for _ in 0..mode.levels {
            counts.push(counts[counts.len() - 1].div_ceil(1 << mode.index_bits));
        }
        // From the root down: where each level's tables begin. Page 0 has the PDPTRs.
        let mut first = vec![1];
        for count in counts[1..].iter().rev() {
            first.push(first[first.len() - 1] + count);
        }
        let table_pages = first[first.len() - 1];
        let mut image = Image { words: vec![0; (table_pages * 512) as usize], entry: mode.entry_bytes() };
        for level in 0..mode.levels as usize {
            let below = counts[mode.levels as usize - 1 - level];
            for entry in 0..below {
                let leaf = level + 1 == mode.levels as usize;
                let target = if leaf { frame(entry, pages) } else { first[level + 1] + entry };
                image.set(first[level] * PAGE + entry * image.entry, target << 12 | USED);
            }
        }
        let mut root = first[0] * PAGE;
        if mode.pae {
            // The directories are next to each other: a PDPTR for each.
            let directories = counts[mode.levels as usize];
            (0..directories).for_each(|gib| image.set(gib * 8, (first[0] + gib) << 12 | 1));
            root = 0;
        }
        let slots = vec![MemoryRegion::ram(Gpa::new(0), table_pages * PAGE)];
        let vm = Vm::new(VmConfig { slots, ..VmConfig::default() }).expect("the configuration is valid");
        let bytes: Vec<u8> = image.words.iter().flat_map(|word| word.to_le_bytes()).collect();
        vm.host_write(Gpa::new(0), &bytes).expect("tables are in memory");
        let mut cpu = vm.cpu(0).expect("nobody else drives the vCPU");
        let registers = [(OpKind::WriteCr4, mode.cr4), (OpKind::WriteEfer, mode.efer), (OpKind::WriteCr3, root)];
        for (kind, value) in registers {
            let op = Op::new(kind, value).with_flags(Op::HOST);
            assert_eq!(cpu.execute(&op, &[]), Ok(Outcome::Ok(0)), "{kind:?} {value:#x}");
        }
        drop(cpu);
        // The same kind of memory for both.
        let tables = zeroed_words(image.words.len()).expect("there is memory");
        hint::huge_pages(&tables);
        tables.iter().zip(&image.words).for_each(|(word, &value)| word.store(value, Ordering::Relaxed));
        Self { vm, mode, pages, root, tables }
    }

    /// Bytes of tables.
    pub fn table_bytes(&self) -> usize {
        self.tables.len() * 8
    }

    /// Addresses in mapped pages, in no order.
    pub fn addresses(&self, count: usize) -> Vec<Gva> {
        let mut random = Random(self.pages);
        (0..count).map(|_| Gva::new(random.below(self.pages * PAGE))).collect()
    }

    /// Where an address leads.
    pub fn expected(&self, gva: Gva) -> u64 {
        frame(gva.page(), self.pages) << 12 | gva.offset()
    }

    /// The gpa by a walk that looks at the P bits only; `None` where one is clear or a table is outside.
    #[inline]
    pub fn naive(&self, gva: Gva) -> Option<u64> {
        match (self.mode.levels, self.mode.pae) {
            (2, false) => self.naive_32(gva.get()),
            (2, true) => self.naive_64(&[21, 12], self.word(gva.get() >> 30 << 3)?, gva.get()),
            (4, _) => self.naive_64(&[39, 30, 21, 12], self.root, gva.get()),
            _ => self.naive_64(&[48, 39, 30, 21, 12], self.root, gva.get()),
        }
    }

    #[inline]
    fn word(&self, gpa: u64) -> Option<u64> {
        Some(self.tables.get((gpa >> 3) as usize)?.load(Ordering::Acquire))
    }

    #[inline]
    fn naive_64(&self, shifts: &[u32], root: u64, gva: u64) -> Option<u64> {
        let mut table = root;
        for shift in shifts {
            table = self.word(table & FRAME_MASK | (gva >> shift & 511) << 3).filter(|entry| entry & 1 != 0)?;
        }
        Some(table & FRAME_MASK | gva & 0xfff)
    }

    #[inline]
    fn naive_32(&self, gva: u64) -> Option<u64> {
        let mut table = self.root;
        for shift in [22, 12] {
            let at = table & 0xffff_f000 | (gva >> shift & 1023) << 2;
            table = self.word(at)? >> ((at & 4) * 8) & 0xffff_ffff;
            if table & 1 == 0 {
                return None;
            }
        }
        Some(table & 0xffff_f000 | gva & 0xfff)
    }
}

/// The frame of a page: each page has another, and neighbours have none beside each other. No memslot has most of them: a look at a
/// translation reads no page.
const fn frame(page: u64, pages: u64) -> u64 {
    page * 0x9e37 % pages.next_power_of_two()
}

struct Image {
    words: Vec<u64>,
    entry: u64,
}

impl Image {
    fn set(&mut self, gpa: u64, entry: u64) {
        let shift = if self.entry == 4 { (gpa & 4) * 8 } else { 0 };
        self.words[(gpa >> 3) as usize] |= entry << shift;
    }
}
