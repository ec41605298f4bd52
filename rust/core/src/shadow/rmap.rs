//! Reverse maps: for each guest frame, the leaf SPTEs that map it.
//!
//! KVM: `struct kvm_rmap_head` (C.7). One tagged word a frame; a list only from the second mapping on.

use crate::{
    addr::{Gfn, SpId, SpteRef},
    error::{Error, Result},
};

/// More mappings than this of one frame are recycled (E147).
pub(crate) const RECYCLE: usize = 1000;

/// Frames that [`Rmaps::for_each`] looks at before it asks again whether it is to stop.
const STRIDE: usize = 4096;

const ONE: u64 = 1;
const MANY: u64 = 2;

/// The reverse maps of all memslots.
#[derive(Debug, Default)]
pub(crate) struct Rmaps {
    slots: Vec<SlotRmaps>,
    lists: Vec<Vec<SpteRef>>,
    free_lists: Vec<usize>,
}

#[derive(Debug)]
struct SlotRmaps {
    base: u64,
    heads: Box<[u64]>,
}

/// What one frame's head holds.
#[derive(Clone, Copy)]
enum Head {
    None,
    One(SpteRef),
    Many(usize),
}

impl Head {
    #[inline]
    fn decode(word: u64) -> Head {
        match word & 3 {
            ONE => Head::One(SpteRef::new(SpId::new((word >> 11) as u32), (word >> 2 & 511) as usize)),
            MANY => Head::Many((word >> 2) as usize),
            _ => Head::None,
        }
    }

    #[inline]
    fn encode(self) -> u64 {
        match self {
            Head::None => 0,
            Head::One(spte) => u64::from(spte.sp.get()) << 11 | u64::from(spte.index) << 2 | ONE,
            Head::Many(list) => (list as u64) << 2 | MANY,
        }
    }
}

impl Rmaps {
    /// Makes room for a new slot's frames.
    pub(crate) fn add_slot(&mut self, base: Gfn, pages: u64) -> Result<()> {
        let bytes = pages * 8;
        let heads = bytemuck::try_zeroed_slice_box(pages as usize)
            .map_err(|()| Error::OutOfMemory { what: "reverse maps", bytes })?;
        self.slots.push(SlotRmaps { base: base.get(), heads });
        Ok(())
    }

    /// Takes back the slot added last, whose memory could not be had.
    pub(crate) fn remove_last_slot(&mut self) {
        self.slots.pop();
    }

    #[inline]
    fn head(&mut self, gfn: Gfn) -> Option<&mut u64> {
        self.slots.iter_mut().find_map(|slot| slot.heads.get_mut(gfn.get().wrapping_sub(slot.base) as usize))
    }

    fn head_ref(&self, gfn: Gfn) -> Head {
        self.slots
            .iter()
            .find_map(|slot| slot.heads.get(gfn.get().wrapping_sub(slot.base) as usize))
            .map_or(Head::None, |&word| Head::decode(word))
    }

    /// Adds a mapping at the end of the frame's list and returns how many there are.
    #[inline]
    pub(crate) fn add(&mut self, gfn: Gfn, spte: SpteRef) -> usize {
        let Some(word) = self.head(gfn) else { return 0 };
        match Head::decode(*word) {
            Head::None => {
                *word = Head::One(spte).encode();
                1
            }
            Head::One(first) => {
                let list = self.free_lists.pop().unwrap_or_else(|| {
                    self.lists.push(Vec::new());
                    self.lists.len() - 1
                });
                self.lists[list].extend([first, spte]);
                if let Some(word) = self.head(gfn) {
                    *word = Head::Many(list).encode();
                }
                2
            }
            Head::Many(list) => {
                self.lists[list].push(spte);
                self.lists[list].len()
            }
        }
    }

    /// Removes a mapping, moving the list's last into its place.
    #[inline]
    pub(crate) fn remove(&mut self, gfn: Gfn, spte: SpteRef) {
        let head = self.head_ref(gfn);
        let new = match head {
            Head::One(only) if only == spte => Head::None,
            Head::Many(list) => {
                let entries = &mut self.lists[list];
                if let Some(at) = entries.iter().position(|&e| e == spte) {
                    entries.swap_remove(at);
                }
                match entries[..] {
                    [last] => {
                        entries.clear();
                        self.free_lists.push(list);
                        Head::One(last)
                    }
                    _ => head,
                }
            }
            Head::None | Head::One(_) => head,
        };
        if let Some(word) = self.head(gfn) {
            *word = new.encode();
        }
    }

    /// Mapping number `at` of a frame, in list order.
    #[inline]
    pub(crate) fn get(&self, gfn: Gfn, at: usize) -> Option<SpteRef> {
        match self.head_ref(gfn) {
            Head::One(spte) if at == 0 => Some(spte),
            Head::Many(list) => self.lists[list].get(at).copied(),
            Head::None | Head::One(_) => None,
        }
    }

    /// All mappings of all frames, for the audit.
    pub(crate) fn for_each(&self, stop: impl Fn() -> bool, mut each: impl FnMut(Gfn, SpteRef)) {
        for slot in &self.slots {
            for (frame, &word) in slot.heads.iter().enumerate() {
                if frame.is_multiple_of(STRIDE) && stop() {
                    return;
                }
                let gfn = Gfn::new(slot.base + frame as u64);
                match Head::decode(word) {
                    Head::None => {}
                    Head::One(spte) => each(gfn, spte),
                    Head::Many(list) => self.lists[list].iter().for_each(|&spte| each(gfn, spte)),
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn i1_add_and_remove_keep_the_set_and_the_order_rule() {
        let mut rmaps = Rmaps::default();
        rmaps.add_slot(Gfn::new(0x10), 4).unwrap();
        let gfn = Gfn::new(0x12);
        let spte = |n: usize| SpteRef::new(SpId::new(n as u32 + 70_000), n);
        for n in 0..5 {
            assert_eq!(rmaps.add(gfn, spte(n)), n + 1);
        }
        rmaps.remove(gfn, spte(1));
        let list = |rmaps: &Rmaps| (0..).map_while(|at| rmaps.get(gfn, at)).map(SpteRef::at).collect::<Vec<_>>();
        assert_eq!(list(&rmaps), [0, 4, 2, 3]);
        for n in [0, 4, 3] {
            rmaps.remove(gfn, spte(n));
        }
        assert_eq!(list(&rmaps), [2]);
        rmaps.remove(gfn, spte(2));
        assert_eq!(rmaps.get(gfn, 0), None);
        assert_eq!(rmaps.add(Gfn::new(0x99), spte(0)), 0, "no slot, no map");
    }
}
