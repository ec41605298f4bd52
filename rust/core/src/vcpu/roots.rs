//! The root cache of one vCPU: a pure structure, no locks and no atomics, owned by the vCPU's thread.
//!
//! KVM: `struct kvm_mmu { root, prev_roots[] }`, `cached_root_find_and_keep_current`,
//! `cached_root_find_without_current` (A.5); for the seed `prev_root_hpa` and `prev_cr3` (A.1).

use smallvec::{SmallVec, smallvec};

use crate::{addr::Hpa, config::MAX_PREV_ROOTS};

/// A root and the CR3 value that it was loaded for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RootInfo {
    /// The whole CR3 value. Under the seed the previous entry's is `prev_cr3`, which does not move with the root.
    pub pgd: u64,
    /// The root, or [`Hpa::INVALID`].
    pub hpa: Hpa,
}

impl RootInfo {
    /// A slot never used.
    pub const NEVER: RootInfo = RootInfo { pgd: u64::MAX, hpa: Hpa::INVALID };
    /// A current root that was freed.
    pub const NONE: RootInfo = RootInfo { pgd: 0, hpa: Hpa::INVALID };
}

/// Current and previous roots.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RootCache {
    /// The root in use.
    pub current: RootInfo,
    /// Previous roots, the most recent first. In place, not on the heap: allocations of two vCPUs can share a line, and
    /// every switch stores here.
    pub previous: SmallVec<[RootInfo; MAX_PREV_ROOTS as usize]>,
}

/// Which roots to free. KVM: `KVM_MMU_ROOT_CURRENT`, `KVM_MMU_ROOT_PREVIOUS(i)`, `KVM_MMU_ROOTS_ALL` (E003).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RootSet(u32);

impl RootSet {
    /// Only the current root.
    pub const CURRENT: RootSet = RootSet(1);
    /// Every root.
    pub const ALL: RootSet = RootSet(u32::MAX);

    /// Previous root `index`.
    pub const fn previous(index: usize) -> RootSet {
        RootSet(2 << index)
    }

    /// No root.
    pub const fn none() -> RootSet {
        RootSet(0)
    }

    /// Both sets together.
    #[must_use]
    pub const fn with(self, other: RootSet) -> RootSet {
        RootSet(self.0 | other.0)
    }

    /// Whether it contains the whole of `other`.
    pub const fn contains(self, other: RootSet) -> bool {
        self.0 & other.0 == other.0
    }
}

impl RootCache {
    /// A cache with `previous` empty slots.
    pub fn new(previous: usize) -> Self {
        Self { current: RootInfo::NONE, previous: smallvec![RootInfo::NEVER; previous] }
    }

    /// Rotates the cache until `usable` accepts the current root; the current one is tried first (E027). On a miss the
    /// least recently used root stands in `current`, for the caller to free (E025, E026).
    pub fn find_keeping_current(&mut self, usable: impl Fn(RootInfo) -> bool) -> bool {
        if usable(self.current) {
            return true;
        }
        for slot in &mut self.previous {
            core::mem::swap(&mut self.current, slot);
            if usable(self.current) {
                return true;
            }
        }
        false
    }

    /// With no current root: takes the first usable previous one and closes the gap (E029).
    pub fn find_without_current(&mut self, usable: impl Fn(RootInfo) -> bool) -> bool {
        let Some(at) = self.previous.iter().position(|&root| usable(root)) else { return false };
        core::mem::swap(&mut self.current, &mut self.previous[at]);
        self.previous[at..].rotate_left(1);
        let Some((last, rest)) = self.previous.split_last_mut() else { return true };
        // The slot that became free keeps the tag of its neighbour, as after a move up; only its hpa is void.
        if at < rest.len() {
            last.pgd = rest[rest.len() - 1].pgd;
        }
        last.hpa = Hpa::INVALID;
        true
    }

    /// All entries, the current one first.
    pub fn iter(&self) -> impl Iterator<Item = RootInfo> + '_ {
        core::iter::once(self.current).chain(self.previous.iter().copied())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::addr::SpId;

    fn root(number: u32) -> RootInfo {
        RootInfo { pgd: u64::from(number) << 12, hpa: SpId::new(number).hpa() }
    }

    fn cache(numbers: &[u32]) -> RootCache {
        let mut cache = RootCache::new(numbers.len() - 1);
        cache.current = root(numbers[0]);
        for (slot, &number) in cache.previous.iter_mut().zip(&numbers[1..]) {
            *slot = root(number);
        }
        cache
    }

    fn numbers(cache: &RootCache) -> Vec<Option<u32>> {
        cache.iter().map(|root| root.hpa.shadow_page().map(SpId::get)).collect()
    }

    #[test]
    fn e026_rotation_order_at_all_positions_and_on_a_miss() {
        for (wanted, order) in
            [(9, [9, 0, 1, 2]), (0, [0, 9, 1, 2]), (1, [1, 9, 0, 2]), (2, [2, 9, 0, 1]), (7, [2, 9, 0, 1])]
        {
            let mut cache = cache(&[9, 0, 1, 2]);
            let hit = cache.find_keeping_current(|r| r == root(wanted));
            assert_eq!(hit, wanted != 7);
            assert_eq!(numbers(&cache), order.map(Some), "wanted {wanted}");
        }
    }

    #[test]
    fn e029_without_current_the_gap_is_closed() {
        let mut cache = cache(&[9, 0, 1, 2]);
        cache.current = RootInfo::NONE;
        assert!(cache.find_without_current(|r| r == root(1)));
        assert_eq!(numbers(&cache), [Some(1), Some(0), Some(2), None]);
        assert_eq!(cache.previous[2].pgd, root(2).pgd);
        let before = cache.clone();
        assert!(!cache.find_without_current(|r| r == root(5)));
        assert_eq!(cache, before);
    }

    #[test]
    fn e032_a_cache_of_zero_never_hits_another_root() {
        let mut cache = cache(&[9]);
        assert!(!cache.find_keeping_current(|r| r == root(1)));
        assert_eq!(numbers(&cache), [Some(9)]);
    }

    #[test]
    fn e003_root_sets_select() {
        let set = RootSet::CURRENT.with(RootSet::previous(1));
        assert!(set.contains(RootSet::CURRENT) && set.contains(RootSet::previous(1)));
        assert!(!set.contains(RootSet::previous(0)));
        assert!((0..16).all(|i| RootSet::ALL.contains(RootSet::previous(i))));
    }
}
