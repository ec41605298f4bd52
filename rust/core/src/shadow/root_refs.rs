//! The references that keep a root alive (P10; KVM's `root_count`, E034, E035, E149).

/// How many current and previous roots of vCPUs are this page; read and changed under the `mmu_lock` only.
///
/// A vCPU looks at its roots without the lock (role word, marks, entries): a switch back to a parked root is no more
/// than that. What makes it safe is here: *a parked root keeps its reference*, and a page with references is never
/// freed. A zapper that finds one marks the page invalid and leaves the freeing to whoever gives the last one back.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct RootRefs(u32);

/// What becomes of a page that is zapped.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Fate {
    /// Nobody has it as a root: it is freed after a flush that waits.
    Free,
    /// Some vCPU has it as a root: it stays, invalid.
    Pinned,
}

impl RootRefs {
    /// A page that is nobody's root.
    pub(crate) const NONE: Self = Self(0);

    /// So many references, for the models.
    #[cfg(test)]
    pub(crate) const fn of(count: u32) -> Self {
        Self(count)
    }

    /// One vCPU has it as a root now; it gives the reference back when it frees the root, not when it parks it.
    pub(crate) fn get(&mut self) {
        self.0 += 1;
    }

    /// Gives a reference back; true if it was the last.
    pub(crate) fn put(&mut self) -> bool {
        debug_assert_ne!(self.0, 0, "a root is given back once too often");
        self.0 -= 1;
        self.0 == 0
    }

    /// What a zapper may do with the page.
    pub(crate) const fn fate(self) -> Fate {
        if self.0 == 0 { Fate::Free } else { Fate::Pinned }
    }

    /// The number of references.
    pub(crate) const fn count(self) -> u32 {
        self.0
    }
}

#[cfg(all(test, not(any(loom, explored))))]
mod tests {
    use super::*;

    #[test]
    fn e149_a_page_is_pinned_until_its_last_reference_goes() {
        let mut refs = RootRefs::NONE;
        assert_eq!(refs.fate(), Fate::Free);
        refs.get();
        refs.get();
        assert!(!refs.put());
        assert_eq!((refs.fate(), refs.count()), (Fate::Pinned, 1));
        assert_eq!(refs, RootRefs::of(1));
        assert!(refs.put());
        assert_eq!(refs.fate(), Fate::Free);
    }
}
