"""Whether a translation that differs from the recorded one was a legal stale one (D.5).

A TLB, or a shadow page that is out of sync, may answer from the past. The exact rule: a translation is legal if *each* entry
that it uses held that value at some instant since this vCPU last invalidated the page; the levels may come from different
instants, because hardware caches the upper levels too. "Some word on the path has changed" is much weaker and hides bugs.

The history of every page-table word is rebuilt from the program only when a difference has to be judged. Values count as
recorded, modulo the accessed and dirty bits, which hardware sets without a row of its own.
"""

from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from shadow_mmu.ops import Pages, Program
from shadow_mmu.types import OpFlag, OpKind

_PRESENT, _WRITE, _USER, _LARGE, _NX = 1, 2, 4, 1 << 7, 1 << 63
_ACCESSED_DIRTY: Final = 1 << 5 | 1 << 6
_FRAME: Final = (1 << 52) - (1 << 12)
_CR0_WP, _CR4_PSE, _CR4_PAE, _CR4_LA57, _CR4_SMEP, _CR4_SMAP, _EFER_NXE = (
    1 << bit for bit in (16, 4, 5, 12, 20, 21, 11)
)
_EFER_LME: Final = 1 << 8
_START: Final = {OpKind.WRITE_CR0: 0x80050033, OpKind.WRITE_CR3: 0, OpKind.WRITE_CR4: 0x20, OpKind.WRITE_EFER: 0xD00}
_ACCESSES: Final = frozenset((OpKind.READ, OpKind.WRITE, OpKind.FETCH, OpKind.LOAD, OpKind.STORE))
_WRITES: Final = frozenset((OpKind.WRITE, OpKind.STORE))


@dataclass(frozen=True, slots=True)
class _Paging:
    """How tables are walked (B.1)."""

    levels: int
    index_bits: int
    entry_bytes: int
    top: int
    """Level of the first table."""
    largest: int
    """Highest level with large pages."""

    @classmethod
    def of(cls, cr4: int, efer: int) -> "_Paging":
        """Return the paging mode of these registers, paging being on."""
        if efer & _EFER_LME:
            levels = 5 if cr4 & _CR4_LA57 else 4
            return cls(levels, 9, 8, levels, 3)
        if cr4 & _CR4_PAE:
            return cls(3, 9, 8, 2, 2)
        return cls(2, 10, 4, 2, 2 if cr4 & _CR4_PSE else 1)

    def place(self, table: int, number: int) -> int:
        """Return the gpa of the entry of a table that has this number, modulo the size of the table."""
        return table + self.entry_bytes * (number & (1 << self.index_bits) - 1)

    def frame(self, entry: int, level: int, span: int) -> int:
        """Return where the page of a leaf begins."""
        high = (entry >> 13 & 0xF) << 32 if self.levels == 2 and level == 2 else 0
        return entry & _FRAME & ~(span - 1) | high


class History:
    """Every value that every page-table word held, by operation index.

    Parameters
    ----------
    ops : numpy.ndarray
        A program in which every STORE is one aligned 8-byte store whose ``expect`` is the gpa that it writes.
    pages : numpy.ndarray
        What HOST_PAGE operations refer to.
    faults : iterable of int
        Operations that ended in an injected #PF: each evicts its page, as hardware does.
    maxphyaddr : int
        Bits at and above it are reserved.

    """

    def __init__(self, ops: Program, pages: Pages, faults: Iterable[int] = (), maxphyaddr: int = 46) -> None:
        self._ops = ops
        self._pages = pages
        self._reserved = (1 << 52) - (1 << maxphyaddr)
        kind, vcpu = ops["kind"], ops["vcpu"]
        # Word number -> (operation indices, values), ascending.
        self._stores: dict[int, tuple[list[int], list[int]]] = defaultdict(lambda: ([], []))
        for index in np.flatnonzero((kind == OpKind.STORE) | (kind == OpKind.HOST_STORE)).tolist():
            gpa = int(ops["expect" if kind[index] == OpKind.STORE else "addr"][index])
            indices, values = self._stores[gpa >> 3]
            indices.append(index)
            values.append(int(ops["value"][index]))
        # Frame -> (operation indices, rows of the page array), ascending.
        self._arrivals: dict[int, tuple[list[int], list[int]]] = defaultdict(lambda: ([], []))
        for index in np.flatnonzero(kind == OpKind.HOST_PAGE).tolist():
            indices, rows = self._arrivals[int(ops["addr"][index]) >> 12]
            indices.append(index)
            rows.append(int(ops["aux"][index]))
        # vCPU -> indices of what invalidates everything; (vCPU, page) -> indices of what invalidates that page.
        self._registers = {
            register: {
                cpu: np.flatnonzero((kind == register) & (vcpu == cpu)).tolist() for cpu in np.unique(vcpu).tolist()
            }
            for register in _START
        }
        self._flushes = {
            cpu: sorted(index for register in _START for index in self._registers[register][cpu])
            for cpu in np.unique(vcpu).tolist()
        }
        self._evictions: dict[tuple[int, int], list[int]] = defaultdict(list)
        evicting = np.concatenate([np.flatnonzero(kind == OpKind.INVLPG), np.fromiter(faults, np.int64)])
        for index in np.unique(evicting).tolist():
            self._evictions[int(vcpu[index]), int(ops["addr"][index]) >> 12].append(index)

    def last_invalidation(self, index: int) -> int:
        """Return the last operation before ``index`` by which its vCPU invalidated its page, or -1."""
        row = self._ops[index]
        cpu, page = int(row["vcpu"]), int(row["addr"]) >> 12
        found = -1
        for indices in (self._flushes[cpu], self._evictions.get((cpu, page), [])):
            position = bisect_left(indices, index)
            if position:
                found = max(found, indices[position - 1])
        return found

    def values(self, gpa: int, since: int, until: int) -> set[int]:
        """Return the values of the word at ``gpa`` after operation ``since`` and before operation ``until``."""
        changes = []
        indices, stored = self._stores.get(gpa >> 3, ([], []))
        changes += _window(indices, stored, since, until)
        indices, rows = self._arrivals.get(gpa >> 12, ([], []))
        word = gpa >> 3 & 511
        changes += [(at, int(self._pages[row, word])) for at, row in _window(indices, rows, since, until)]
        # The latest change at or before ``since`` is the value at that instant; guest memory starts as zeroes.
        past = max(((at, value) for at, value in changes if at <= since), default=(-1, 0))
        return {past[1] & ~_ACCESSED_DIRTY} | {value & ~_ACCESSED_DIRTY for at, value in changes if at > since}

    def is_legal(self, index: int, gpa: int) -> bool:
        """Whether the access of operation ``index`` may have reached ``gpa``, perhaps by a stale translation."""
        return self._reaches(index, gpa, self.last_invalidation(index))

    def is_current(self, index: int, gpa: int) -> bool:
        """Whether the tables as they are when operation ``index`` begins lead its access to ``gpa``."""
        return self._reaches(index, gpa, index - 1)

    def _reaches(self, index: int, gpa: int, since: int) -> bool:
        """Whether entries of values that they held after ``since`` lead the access to ``gpa`` and permit it."""
        kind, flags, cpu, _, gva, _, _ = (int(part) for part in self._ops[index].tolist())
        if kind not in _ACCESSES:
            return False
        cr0, cr3, cr4, efer = (self._register(register, cpu, index) for register in _START)
        paging = _Paging.of(cr4, efer)
        # Each step of the frontier: a table and the rights (W, U, X) that the entries above it leave.
        frontier = {(table, True, True, True) for table in self._first_tables(index, cpu, cr3, gva, paging)}
        for level in range(paging.top, 0, -1):
            span = 1 << (12 + paging.index_bits * (level - 1))
            below = set()
            for table, write, user, execute in frontier:
                for entry in self._entries(paging.place(table, gva // span), since, index, paging):
                    if not entry & _PRESENT or self._is_reserved(entry, level, efer, paging):
                        continue
                    rights = (
                        write and bool(entry & _WRITE),
                        user and bool(entry & _USER),
                        execute and not entry & _NX,
                    )
                    if level > 1 and not (entry & _LARGE and level <= paging.largest):
                        below.add((entry & _FRAME, *rights))
                    elif paging.frame(entry, level, span) | (gva & (span - 1)) == gpa and _permits(
                        rights, kind, flags, cr0, cr4
                    ):
                        return True
            frontier = below
        return False

    def _first_tables(self, index: int, cpu: int, cr3: int, gva: int, paging: "_Paging") -> set[int]:
        """Return the first tables of a walk: CR3's, or under PAE that of the PDPTR as it was when CR3 was last written."""
        if paging.levels != 3:
            return {cr3 & _FRAME}
        loads = self._registers[OpKind.WRITE_CR3][cpu]
        position = bisect_left(loads, index)
        loaded = loads[position - 1] if position else 0
        pdptrs = self.values((cr3 & 0xFFFF_FFE0) + 8 * (gva >> 30), loaded, loaded)
        return {pdptr & _FRAME for pdptr in pdptrs if pdptr & _PRESENT}

    def _entries(self, gpa: int, since: int, until: int, paging: "_Paging") -> set[int]:
        """Return the values of an entry, 4 or 8 bytes wide."""
        words = self.values(gpa & ~7, since, until)
        if paging.entry_bytes == 8:
            return words
        return {word >> 8 * (gpa & 4) & 0xFFFF_FFFF & ~_ACCESSED_DIRTY for word in words}

    def _register(self, register: OpKind, cpu: int, index: int) -> int:
        written = self._registers[register][cpu]
        position = bisect_left(written, index)
        return int(self._ops["addr"][written[position - 1]]) if position else _START[register]

    def _is_reserved(self, entry: int, level: int, efer: int, paging: "_Paging") -> bool:
        if paging.levels == 2:
            # PSE-36: bits 21:17 of a 4 MiB entry.
            return level == 2 and paging.largest == 2 and bool(entry & _LARGE) and bool(entry & 0x3E_0000)
        mask = self._reserved if efer & _EFER_NXE else self._reserved | _NX
        if paging.levels == 3:
            mask |= (1 << 63) - (1 << 52)
        if level >= 4:
            mask |= _LARGE
        elif level > 1 and entry & _LARGE:
            # Below the frame of a large page only bit 12 (PAT) has a meaning.
            mask |= (1 << (12 + 9 * (level - 1))) - (1 << 13)
        return bool(entry & mask)


def _window(indices: Sequence[int], values: Sequence[int], since: int, until: int) -> list[tuple[int, int]]:
    """Return the last change at or before ``since`` and those after it, up to ``until`` (left out)."""
    first = max(bisect_right(indices, since) - 1, 0)
    last = bisect_left(indices, until)
    return list(zip(indices[first:last], values[first:last], strict=True))


def _permits(rights: tuple[bool, bool, bool], kind: int, flags: int, cr0: int, cr4: int) -> bool:
    """Whether a leaf with these accumulated rights permits the access (CR0.WP, SMEP, SMAP and AC, NX)."""
    write, user, execute = rights
    by_user = bool(flags & OpFlag.USER)
    if by_user and not user:
        return False
    if kind == OpKind.FETCH:
        return execute and not (user and not by_user and cr4 & _CR4_SMEP)
    if user and not by_user and cr4 & _CR4_SMAP and (flags & OpFlag.IMPLICIT or not flags & OpFlag.AC):
        return False
    return write or kind not in _WRITES or not (by_user or cr0 & _CR0_WP)


def split_legal(
    ops: Program, pages: Pages, differences: Sequence[tuple[int, int, int]], faults: Iterable[int] = ()
) -> tuple[list[int], list[int]]:
    """Divide differences into legal staleness and mismatches.

    A recorded gpa is what the tables of that moment give. Where they do not, the recording is wrong, and what the machine
    reached cannot be called stale.

    Parameters
    ----------
    ops, pages, faults
        As for :class:`History`.
    differences : sequence of (int, int, int)
        Operation index, gpa reached, gpa recorded.

    Returns
    -------
    legal, wrong : list of int
        Positions in ``differences``.

    """
    if not differences:
        return [], []
    history = History(ops, pages, faults)
    legal: list[int] = []
    wrong: list[int] = []
    for position, (index, reached, recorded) in enumerate(differences):
        stale = history.is_current(index, recorded) and history.is_legal(index, reached)
        (legal if stale else wrong).append(position)
    return legal, wrong
