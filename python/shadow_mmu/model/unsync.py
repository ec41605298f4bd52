"""Unsync pages: when a guest table may be written without a trap, and how the roots above come to know (C.5, D.1)."""

from collections.abc import Iterator

from .constants import EVENT_UNSYNC_PAGE, SYNC_BATCH
from .pages import ShadowPage, unsync_bits
from .vcpu import Vcpu
from .vm import SharedState


def mark_unsync(page: ShadowPage, index: int) -> None:
    """Mark the entry, and every page above that was clean, as leading to something unsync.

    It stops at a set bit or at a count that was not 0: there all ancestors are marked already (C.5).
    """
    if page.unsync_bitmap >> index & 1:
        return
    page.unsync_bitmap |= 1 << index
    page.unsync_children += 1
    if page.unsync_children == 1:
        mark_parents_unsync(page)


def mark_parents_unsync(page: ShadowPage) -> None:
    """Mark every entry that links to the page."""
    for parent, index in page.parents:
        mark_unsync(parent, index)


def try_to_unsync(vm: SharedState, vcpu: Vcpu, gfn: int, *, synchronizing: bool, prefetch: bool) -> bool:
    """Whether a writable leaf for ``gfn`` may be made; the pages that shadow the gfn are unsync afterwards (E135-E137).

    The marks stand up to the roots before the caller stores the writable entry (D.1).
    """
    if gfn in vm.books.write_track:
        return False
    for page in vm.books.indirect_pages(gfn):
        if synchronizing:
            return False
        if page.unsync:
            continue
        if prefetch and vm.policy.kind == "lru":
            return False
        vm.event(vcpu, EVENT_UNSYNC_PAGE, page)
        vcpu.counters["mmu_unsync"] += 1
        vcpu.unsync_marks += 1
        page.unsync = True
        mark_parents_unsync(page)
    return True


def clear_unsync(vcpu: Vcpu, page: ShadowPage) -> None:
    """Take the flag from a leaf page; the caller has told the trace."""
    vcpu.counters["mmu_unsync"] -= 1
    page.unsync = False


def clear_child_bit(page: ShadowPage, index: int) -> None:
    """Clear one set bit of the unsync bitmap."""
    assert page.unsync_bitmap >> index & 1, f"{page!r}: unsync bit {index} is clear already"
    page.unsync_bitmap &= ~(1 << index)
    page.unsync_children -= 1


class UnsyncBatch:
    """Up to 16 records of one walk over what is unsync below a page (KVM: mmu_unsync_walk).

    The root counts as a record, each inner page that is entered too, and each unsync leaf page once.
    """

    __slots__ = ("found", "full", "leaves", "records")

    def __init__(self, vm: SharedState, root: ShadowPage) -> None:
        self.records = 1
        self.full = False
        self.found = 0
        self.leaves: list[tuple[ShadowPage, list[tuple[ShadowPage, int]]]] = []
        """Each leaf page with the entries that lead to it, from the lowest up to the root of the walk."""
        if root.unsync_children:
            self.found = self._walk(vm, root, [])

    def __bool__(self) -> bool:
        """Whether there is work: leaves, or a walk that was cut off and must go on."""
        return self.full or self.found > 0

    def _record(self) -> bool:
        """Count a record; true if it is the last that fits."""
        self.records += 1
        self.full = self.records == SYNC_BATCH
        return self.full

    def _walk(self, vm: SharedState, page: ShadowPage, path: list[tuple[ShadowPage, int]]) -> int:
        """Collect leaves below ``page``, clear stale bits on the way; return how many leaf links were found."""
        found = 0
        for index in unsync_bits(page):
            child = vm.books.child(page, index)
            if child is None:
                clear_child_bit(page, index)
                continue
            here = [(page, index), *path]
            if child.unsync_children:
                if self._record():
                    return found
                below = self._walk(vm, child, here)
                if self.full:
                    return found
                if not below:
                    clear_child_bit(page, index)
                found += below
            elif child.unsync:
                found += 1
                if all(leaf is not child for leaf, _ in self.leaves):
                    self.leaves.append((child, here))
                    if self._record():
                        return found
            else:
                clear_child_bit(page, index)
        return found

    def __iter__(self) -> Iterator[tuple[ShadowPage, list[tuple[ShadowPage, int]]]]:
        """Give each leaf page and its path."""
        return iter(self.leaves)


def clear_path(path: list[tuple[ShadowPage, int]]) -> None:
    """Clear the bits on a recorded path upwards, as far as pages became clean."""
    for page, index in path:
        clear_child_bit(page, index)
        if page.unsync_children:
            return
