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

WORDS = 512
MAXPHYADDR = 46
# Where pages and large pages of the guest lie, apart from its tables.
DATA = 1 << 30
DATA_BYTES = 8 << 20
_OPEN = PRESENT | WRITABLE | USER
_RIGHTS = [_OPEN & ~cleared | nx for cleared, nx in product((0, WRITABLE, USER, WRITABLE | USER), (0, NO_EXECUTE))]
_HIGH = 1 << 51


def _combinations(*bits: int) -> list[int]:
    return [sum(chosen) for chosen in product(*((0, bit) for bit in bits))]


def every_entry(level: int) -> list[int]:
    """Return every combination of the bits that mean something at a level; at 2 and 3 with the reserved bit of a large page."""
    common = (PRESENT, WRITABLE, USER, ACCESSED, DIRTY, NO_EXECUTE, _HIGH)
    if level not in (2, 3):
        return _combinations(*common, PAGE_SIZE)  # PAT at level 1, reserved at levels 4 and 5
    small = _combinations(*common)
    # Bit 13 is the lowest reserved bit of a large entry; in a small one it is a part of the address.
    return small + [word | PAGE_SIZE | extra for word in small for extra in (0, 1 << 13)]


def _frame(level: int) -> int:
    return {1: DATA + 0x1000, 2: DATA + (2 << 20), 3: DATA}[level]


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

    levels: int
    pages: list[list[int]] = field(default_factory=list)
    sets: list[CaseSet] = field(default_factory=list)

    @classmethod
    def build(cls, levels: int) -> "Tables":
        """Lay out every set for 4 or 5 levels."""
        tables = cls(levels)
        tables.pages.append([])  # gpa 0 stays empty
        for level in range(1, levels + 1):
            tables._add(f"focus {level}", {level: every_entry(level), **({1: _RIGHTS} if level > 1 else {})})
        tables._add("rights", dict.fromkeys(range(1, levels + 1), _RIGHTS))
        tables._add("pair", {1: every_entry(1), 2: every_entry(2)})
        return tables

    @property
    def image(self) -> Words:
        """Return the words of all tables."""
        return np.array([page + [0] * (WORDS - len(page)) for page in self.pages], np.uint64).reshape(-1)

    @property
    def gfns(self) -> range:
        """Return the frames of the tables."""
        return range(1, len(self.pages))

    def _add(self, name: str, given: dict[int, list[int]]) -> None:
        variants = [given.get(level, [_OPEN]) for level in range(1, self.levels + 1)]
        child = 0
        for level, words in enumerate(variants, 1):
            leaf = [level == 1 or (level in (2, 3) and bool(word & PAGE_SIZE)) for word in words]
            self.pages.append(
                [word | (_frame(level) if ends else child) for word, ends in zip(words, leaf, strict=True)]
            )
            child = (len(self.pages) - 1) << 12
        indices = np.indices([len(words) for words in variants]).reshape(self.levels, -1)
        linear = sum(
            (indices[at].astype(np.uint64) << np.uint64(12 + 9 * at) for at in range(self.levels)), np.uint64(0)
        )
        first = len(self.pages) - self.levels
        used = [(first + at) * WORDS + indices[at] for at in range(self.levels)]
        self.sets.append(CaseSet(name, child, variants, np.asarray(linear, np.uint64), used))


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
