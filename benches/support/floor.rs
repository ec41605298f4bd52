//! What the work costs at least: the same loads and stores without the rules. Not peers, floors.

use shadow_mmu_sync::{AtomicBool, AtomicU32, Ordering};
use shadow_mmu_sys::lock::Mutex;

use super::guest::Flat;

// ------------------------------------------------------------------------------------------------ row 1

/// What a root's header shows to a switch.
#[derive(Default)]
#[repr(align(64))]
pub struct RootFlags {
    unsync: AtomicBool,
    unsync_children: AtomicU32,
}

/// A vCPU that can only switch.
pub struct Switcher {
    cr3: u64,
    root: usize,
    previous_cr3: u64,
    previous_root: usize,
    generation: u64,
}

impl Switcher {
    /// In `current`, having been in `previous`.
    pub const fn new(current: u64, previous: u64) -> Self {
        Self { cr3: current, root: 0, previous_cr3: previous, previous_root: 1, generation: 0 }
    }

    /// A fast switch as a bare function: four loads of which two Acquire, five stores, one bounds check.
    #[inline(never)]
    pub fn switch(&mut self, roots: &[RootFlags], cr3: u64) -> bool {
        if cr3 != self.previous_cr3 {
            return false;
        }
        let Some(flags) = roots.get(self.previous_root) else { return false };
        if flags.unsync.load(Ordering::Acquire) || flags.unsync_children.load(Ordering::Acquire) != 0 {
            return false;
        }
        core::mem::swap(&mut self.root, &mut self.previous_root);
        self.previous_cr3 = self.cr3;
        self.cr3 = cr3;
        self.generation += 1;
        true
    }
}

// ------------------------------------------------------------------------------------------------ row 12

/// First touch without roles, rights, A/D bits or checks: guest walk, lock, shadow walk, SPTE, reverse map.
pub struct FaultFloor {
    tables: Box<[u64]>,
    cr3: u64,
    state: Mutex<Shadow>,
}

struct Shadow {
    sptes: Box<[u64]>,
    used: usize,
    rmap: Box<[u64]>,
}

impl FaultFloor {
    /// Over a copy of the guest's tables, with nothing shadowed.
    pub fn new(guest: &Flat, pages: u64) -> Self {
        let mut bytes = vec![0; guest.table_bytes as usize];
        guest.vm.host_read(shadow_mmu::Gpa::new(0), &mut bytes).expect("tables are in memory");
        let tables = bytes.as_chunks::<8>().0.iter().map(|word| u64::from_le_bytes(*word)).collect();
        // Zeroed memory that nobody touched: the first touch of a page is part of both contenders' work.
        let zeroed = |words: u64| vec![0; words as usize].into_boxed_slice();
        let shadow_tables = pages.div_ceil(512) + pages.div_ceil(512 * 512) + 3;
        let frames = (guest.data >> 12) + pages;
        let shadow = Shadow { sptes: zeroed(shadow_tables * 512), used: 1, rmap: zeroed(frames) };
        Self { tables, cr3: guest.cr3, state: Mutex::new(shadow) }
    }

    /// Installs the page of `gva` and returns its gpa; `None` where the guest maps nothing.
    #[inline(never)]
    pub fn fault(&self, gva: u64) -> Option<u64> {
        let mut table = self.cr3;
        for shift in [39, 30, 21, 12] {
            let entry = *self.tables.get(((table & 0x000f_ffff_ffff_f000) >> 3 | gva >> shift & 511) as usize)?;
            if entry & 1 == 0 {
                return None;
            }
            table = entry;
        }
        let gpa = table & 0x000f_ffff_ffff_f000;
        let mut shadow = self.state.lock();
        let shadow = &mut *shadow;
        let mut page = 0;
        for shift in [39, 30, 21] {
            let at = page * 512 + (gva >> shift & 511) as usize;
            if shadow.sptes[at] == 0 {
                shadow.sptes[at] = shadow.used as u64;
                shadow.used += 1;
            }
            page = shadow.sptes[at] as usize;
        }
        let at = page * 512 + (gva >> 12 & 511) as usize;
        shadow.sptes[at] = gpa | 7;
        shadow.rmap[(gpa >> 12) as usize] = at as u64;
        Some(gpa | gva & 0xfff)
    }

    /// Frames that are mapped now.
    pub fn mapped(&self) -> usize {
        self.state.lock().rmap.iter().filter(|&&head| head != 0).count()
    }
}
