"""The software TLB of one vCPU, which stands for the hardware's (``docs/machine.md`` §5).

Set associative with round-robin replacement, so that the same entries survive in every implementation. At a first reading
it can be taken as a dictionary from page number to leaf SPTE.
"""

from typing import Final

MAX_WAYS: Final = 12


class Tlb:
    """Pages and the leaf entries that translate them.

    Parameters
    ----------
    entries : int
        Size; 0 keeps nothing.

    """

    def __init__(self, entries: int) -> None:
        self.ways = next((ways for ways in range(MAX_WAYS, 0, -1) if entries and entries % ways == 0), 1)
        self.sets = entries // self.ways
        self.entries: dict[int, int] = {}
        """The leaf SPTE of each page number that is kept."""
        self.pages: list[int | None] = [None] * entries
        """The page number in each slot, set by set."""
        self.pointers = [0] * self.sets
        """The slot of each set that is replaced next."""
        self.full_flushes = 0

    def fill(self, page: int, spte: int) -> None:
        """Keep the entry of a page."""
        if not self.sets:
            return
        if page not in self.entries:
            index = page % self.sets
            pointer = self.pointers[index]
            slot = index * self.ways + pointer
            victim = self.pages[slot]
            if victim is not None:
                del self.entries[victim]
            self.pages[slot] = page
            self.pointers[index] = (pointer + 1) % self.ways
        self.entries[page] = spte

    def drop(self, page: int) -> None:
        """Forget one page; the pointer of its set stays."""
        if self.entries.pop(page, None) is not None:
            first = page % self.sets * self.ways
            self.pages[self.pages.index(page, first, first + self.ways)] = None

    def flush(self) -> None:
        """Forget every page; the pointers stay."""
        self.full_flushes += 1
        if self.entries:
            self.entries.clear()
            self.pages = [None] * len(self.pages)

    def set_words(self, index: int) -> list[int]:
        """Return the state words of one set: pointer, then page number + 1 and value of each slot (0, 0 if empty)."""
        words = [self.pointers[index]]
        for page in self.pages[index * self.ways : (index + 1) * self.ways]:
            words += (0, 0) if page is None else (page + 1, self.entries[page])
        return words
