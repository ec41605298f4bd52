"""Guest tables that hold every combination of entry bits at once: one translation for each case.

A *set* is one address space. In a *focus* set one level has every combination of its bits, the levels above give all rights,
and the leaf below has each combination of W, U and NX. In the *rights* set every level has each combination of W, U and NX, so
that rights are folded from every pair of levels. In the *pair* set level 2 has every combination and so has level 1.
"""

from dataclasses import dataclass, field
from itertools import product

import numpy as np
import numpy.typing as npt
from tests.matrix import sdm
from tests.matrix.sdm import ACCESSED, DIRTY, NO_EXECUTE, PAGE_SIZE, PRESENT, USER, WRITABLE, Words

# Where pages and large pages of the guest lie, apart from its tables.
DATA = 1 << 30
DATA_BYTES = 8 << 20
_OPEN = PRESENT | WRITABLE | USER
_RIGHTS = [_OPEN & ~cleared | nx for cleared, nx in product((0, WRITABLE, USER, WRITABLE | USER), (0, NO_EXECUTE))]


def _combinations(*bits: int) -> list[int]:
    return [sum(chosen) for chosen in product(*((0, bit) for bit in bits))]


def every_entry(paging: sdm.Paging, level: int) -> list[int]:
    """Return every combination of the bits that mean something at a level; of large pages with a reserved bit of theirs."""
    common: tuple[int, ...] = (PRESENT, WRITABLE, USER, ACCESSED, DIRTY)
    if paging.entry_bytes == 8:
        common = (*common, NO_EXECUTE, 1 << (62 if paging.name == "PAE" else 51))
    if not 1 < level <= paging.largest:
        return _combinations(*common, PAGE_SIZE)  # PAT at level 1, reserved at levels 4 and 5, ignored without PSE
    small = _combinations(*common)
    # The lowest reserved bit of a large entry; in a small one it is a part of the address.
    reserved = 1 << (13 if paging.entry_bytes == 8 else 17)
    return small + [word | PAGE_SIZE | extra for word in small for extra in (0, reserved)]


def _rights(paging: sdm.Paging) -> list[int]:
    return [word for word in _RIGHTS if not word >> 8 * paging.entry_bytes]


def _frame(paging: sdm.Paging, level: int) -> int:
    return DATA + 0x1000 if level == 1 else DATA + (paging.span(level) if level == 2 else 0)


@dataclass(slots=True)
class CaseSet:
    """One address space.

    Attributes
    ----------
    root : int
        The gpa of its root.
    variants : list of list of int
        What the entries of each level are, from level 1 up.
    linear : array
        One address for each combination of entries.
    used : list of array
        For each level the word of the image that each address uses.

    """

    name: str
    root: int
    variants: list[list[int]]
    linear: Words
    used: list[npt.NDArray[np.intp]]

    def entries(self, image: Words) -> list[Words]:
        """Return the entries that each address uses, from level 1 up."""
        return [image[words] for words in self.used]

    def edges(self, fault: sdm.Mask) -> sdm.Mask:
        """Return the cases of which some neighbour, one entry bit away, is permitted where they fault or the reverse."""
        shape = [len(words) for words in self.variants]
        cube = fault.reshape(shape)
        found = np.zeros(shape, bool)
        for level, words in enumerate(self.variants):
            place = {word: at for at, word in enumerate(words)}
            pairs = [
                (at, place[word ^ 1 << bit])
                for at, word in enumerate(words)
                for bit in range(64)
                if word ^ 1 << bit in place
            ]
            if not pairs:
                continue
            one, other = np.array(pairs).T
            differs = cube.take(one, axis=level) != cube.take(other, axis=level)
            where = (slice(None),) * level
            for number, at in enumerate(one):
                found[(*where, at)] |= differs[(*where, number)]
        return found.reshape(-1)


@dataclass(slots=True)
class Tables:
    """An image of the guest's tables, from gpa 0, and the sets in it."""

    paging: sdm.Paging
    rotation: int | None = None
    """Every entry of a level has protection key ``rotation`` + level, modulo 4; ``None``: all have key 0."""
    pages: list[list[int]] = field(default_factory=list)
    sets: list[CaseSet] = field(default_factory=list)

    @classmethod
    def build(cls, paging: sdm.Paging, rotation: int | None = None) -> "Tables":
        """Lay out every set for a paging mode."""
        tables, rights = cls(paging, rotation), _rights(paging)
        tables.pages.append([])  # gpa 0 stays empty
        for level in range(1, paging.levels + 1):
            tables._add(f"focus {level}", {level: every_entry(paging, level), **({1: rights} if level > 1 else {})})
        tables._add("rights", dict.fromkeys(range(1, paging.levels + 1), rights))
        tables._add("pair", {1: every_entry(paging, 1), 2: every_entry(paging, 2)})
        return tables

    @property
    def words(self) -> int:
        """Return how many entries a table has."""
        return 4096 // self.paging.entry_bytes

    @property
    def image(self) -> Words:
        """Return the entries of all tables."""
        return np.array([page + [0] * (self.words - len(page)) for page in self.pages], np.uint64).reshape(-1)

    def to_bytes(self, image: Words) -> bytes:
        """Return an image as it lies in memory: page-directory pointers are 8 bytes, as PAE's other entries."""
        return image.astype(f"<u{self.paging.entry_bytes}").tobytes()

    def from_bytes(self, data: bytes) -> Words:
        """Return the entries of tables as they lie in memory."""
        return np.frombuffer(data, f"<u{self.paging.entry_bytes}").astype(np.uint64)

    def _add(self, name: str, given: dict[int, list[int]]) -> None:
        levels = self.paging.levels
        variants = [given.get(level, [_OPEN]) for level in range(1, levels + 1)]
        first, child = len(self.pages), 0
        for level, words in enumerate(variants, 1):
            leaf = [level == 1 or (level <= self.paging.largest and bool(word & PAGE_SIZE)) for word in words]
            frame = _frame(self.paging, level)
            key = 0 if self.rotation is None else ((self.rotation + level) % 4) << sdm.KEY_SHIFT
            self.pages.append([word | key | (frame if ends else child) for word, ends in zip(words, leaf, strict=True)])
            child = (len(self.pages) - 1) << 12
        if self.paging.name == "PAE":
            self.pages.append([child | PRESENT])  # the page-directory pointers: no rights, and only the first is there
            child = (len(self.pages) - 1) << 12
        indices = np.indices([len(words) for words in variants]).reshape(levels, -1)
        places = (indices[at].astype(np.uint64) << np.uint64(12 + self.paging.index_bits * at) for at in range(levels))
        linear = np.asarray(sum(places, np.uint64(0)), np.uint64)
        used = [(first + at) * self.words + indices[at] for at in range(levels)]
        self.sets.append(CaseSet(name, child, variants, linear, used))


def marked(image: Words, cases: CaseSet, verdict: sdm.Verdict, access: sdm.Access) -> Words:
    """Return the image after all these accesses: A in every entry used, D in the entry that maps a written page (4.8)."""
    after = image.copy()
    for at, words in enumerate(cases.used):
        level = at + 1
        through = ~verdict.fault & (verdict.leaf <= level)
        after[words[through]] |= np.uint64(ACCESSED)
        if access.kind == "write":
            after[words[~verdict.fault & (verdict.leaf == level)]] |= np.uint64(DIRTY)
    return after
