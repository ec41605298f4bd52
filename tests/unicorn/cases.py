"""Random tables and accesses, and the comparison of whoever is judged with the judge."""

import random
import struct
from array import array
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from tests.unicorn.judge import CODE_SLOT, DATA, MEMORY, TABLES, UNIT, Judge, Mode, Seen

from shadow_mmu.model.constants import GPTE_A, GPTE_P
from shadow_mmu.model.memory import GuestMemory
from shadow_mmu.model.permissions import Access, Context, make_context
from shadow_mmu.model.registers import Registers
from shadow_mmu.model.walk import GuestWalk, entry_gpa, walk

ROOT = 0x1000
INDICES = (0, 0, 1, 1, 2, 511)
# Frames by the number of levels, and by the level of the table that they are.
FRAMES = {
    4: {4: range(1, 2), 3: range(2, 6), 2: range(6, 13), 1: range(13, TABLES + 1)},
    5: {5: range(1, 2), 4: range(2, 5), 3: range(5, 9), 2: range(9, 15), 1: range(15, TABLES + 1)},
}
P, W, U, A, D, PS, G, NX = 1, 2, 4, 1 << 5, 1 << 6, 1 << 7, 1 << 8, 1 << 63
PS_ODDS = {1: 0.2, 2: 0.3, 3: 0.25, 4: 0.04, 5: 0.04}
BITS = ((P, 0.94), (W, 0.75), (U, 0.65), (A, 0.5), (D, 0.5), (G, 0.2), (NX, 0.12))


@dataclass(frozen=True)
class Case:
    """One access."""

    mode: Mode
    gva: int
    kind: str
    user: bool

    @property
    def address(self) -> int:
        """The address of the access: a read is of the number in the unit, a write of its last byte."""
        return self.gva + {"read": 1, "write": UNIT - 1, "fetch": 0}[self.kind]


def random_entry(rng: random.Random, levels: int, level: int) -> int:
    """Return an entry of a table of this level: mostly what belongs there, now and then what does not."""
    entry = sum(bit for bit, odds in BITS if rng.random() < odds)
    ps = PS if rng.random() < PS_ODDS[level] else 0
    if level > 1 and rng.random() < 0.03:
        return entry | ps | rng.choice((MEMORY + 0x5000, 1 << 35))  # a table outside memory reads as zeros
    if rng.random() < 0.04:
        entry |= 1 << rng.randrange(40, 52)
    if level == 1:
        return entry | ps | rng.randrange(DATA >> 12, MEMORY >> 12) << 12
    if ps and level < 4:
        base = rng.choice((0, 2 << 20)) if level == 2 else 0
        odd = 1 << rng.randrange(12, 12 + 9 * (level - 1)) if rng.random() < 0.1 else 0
        return entry | ps | base | odd
    below = level - 1 if rng.random() < 0.95 else rng.randint(1, levels)
    return entry | ps | rng.choice(FRAMES[levels][below]) << 12


def random_tables(rng: random.Random, levels: int, code_entry: int) -> bytes:
    """Return the frames of the tables."""
    frames = []
    for level in range(levels, 0, -1):
        for _ in FRAMES[levels][level]:
            words = [0] * 512
            for index in set(INDICES):
                words[index] = random_entry(rng, levels, level)
            frames.append(words)
    frames[0][CODE_SLOT] = code_entry
    return b"".join(struct.pack("<512Q", *words) for words in frames)


def random_case(rng: random.Random, levels: int) -> Case:
    """Return an access with registers of its own."""
    gva = sum(rng.choice(INDICES) << 12 + 9 * level for level in range(levels)) | rng.randrange(0, 4096, UNIT)
    gva |= (1 << 64) - (1 << 12 + 9 * levels) if gva >> 11 + 9 * levels else 0
    wp, nx, smep, smap, ac = (rng.random() < odds for odds in (0.6, 0.8, 0.4, 0.4, 0.4))
    mode = Mode(wp, nx, smep, smap, ac, levels)
    return Case(mode, gva, rng.choice(("read", "write", "fetch")), rng.random() < 0.5)


def model_memory(tables: bytes) -> GuestMemory:
    """Return the model's memory with these tables."""
    memory = GuestMemory([(0, MEMORY)], 1 << 40)
    memory.pages |= {frame: array("Q", tables[(frame - 1) << 12 : frame << 12]) for frame in range(1, TABLES + 1)}
    return memory


class Subject(Protocol):
    """What is judged."""

    def load(self, tables: bytes) -> None:
        """Begin anew with these tables."""

    def tables(self) -> bytes:
        """Return the tables as they are now."""

    def access(self, case: Case) -> Seen:
        """Make one access."""

    def excuse(self, case: Case, seen: Seen, told: Seen) -> str | None:
        """Return why the judge saw something else, if that is known and listed; ``None`` if not."""


class ModelWalk:
    """The walk of the model alone."""

    def __init__(self, maxphyaddr: int) -> None:
        self._maxphyaddr = maxphyaddr
        self.load(bytes(TABLES << 12))

    def load(self, tables: bytes) -> None:
        """Begin anew with these tables."""
        self.memory = model_memory(tables)

    def tables(self) -> bytes:
        """Return the tables as they are now."""
        return b"".join(self.memory.page(frame).tobytes() for frame in range(1, TABLES + 1))

    def access(self, case: Case) -> Seen:
        """Make one access."""
        found = self.walk(case)
        return (
            seen_of(case, found.gfn << 12 | case.gva & 0xFFF)
            if isinstance(found, GuestWalk)
            else seen_of(case, None, found)
        )

    def excuse(self, case: Case, seen: Seen, told: Seen) -> None:
        """Return ``None``: the walk has no excuse."""

    def walk(self, case: Case) -> GuestWalk | int:
        """Walk for an access."""
        return walk(self.memory, self.context(case.mode), ROOT >> 12, case.gva, access_of(case))

    def context(self, mode: Mode) -> Context:
        """Return the rules of a mode."""
        return make_context(Registers(mode.cr0, ROOT, mode.cr4, mode.efer), self._maxphyaddr)


def access_of(case: Case) -> Access:
    """Return the access as the model's checks see it."""
    return Access(write=case.kind == "write", fetch=case.kind == "fetch", user=case.user, override=case.mode.ac)


def seen_of(case: Case, reached: int | None, error_code: int | None = None) -> Seen:
    """Return what is to be seen of an access: CR2 is the address of the access itself, not that of its unit."""
    return Seen(reached, error_code, None if error_code is None else case.address)


def path(memory: GuestMemory, context: Context, gva: int) -> Iterator[int]:
    """Give the addresses of the entries that a walk may use: those of present entries, from the top down."""
    table = ROOT
    for level in range(context.top, 0, -1):
        if not 0 < table >> 12 <= TABLES:
            return
        at = entry_gpa(context, table >> 12, gva, level)
        entry = memory.word(at)
        if not entry & GPTE_P:
            return
        yield at
        table = entry & ((1 << 52) - (1 << 12))


def differing(before: bytes, after: bytes) -> dict[int, int]:
    """Return the bits that differ, by physical address of the word."""
    if before == after:
        return {}
    pairs = zip(memoryview(before).cast("Q"), memoryview(after).cast("Q"), strict=True)
    return {0x1000 + 8 * place: one ^ other for place, (one, other) in enumerate(pairs) if one != other}


class DisagreementError(AssertionError):
    """The subject and the judge do not agree."""


def compare(judge: Judge, subject: Subject, case: Case, ends: Counter[str]) -> None:
    """Make one access on both; count how it ended.

    The exceptions, each with the manual's verdict:

    - ``A above a fault``: the judge sets A in the entries above the one that faults. SDM 3A 4.8: the processor sets A
      "whenever" it uses an entry for a translation, and nothing there excludes a translation that then faults. Both are
      right; the model's rule is KVM's: nothing is written unless every check passes (E107, B.2 step 11).
    - what the subject excuses.
    """
    # A walk of its own says where a page would be, so that the judge's mark can be looked for there.
    ahead = ModelWalk(judge.maxphyaddr)
    ahead.load(subject.tables())
    found = ahead.walk(case)
    expected = found.gfn << 12 | case.gva & 0xFFF if isinstance(found, GuestWalk) else None
    if expected is not None and not DATA <= expected < MEMORY:
        # A page that holds a table or no memory at all: the judge could not tell it apart.
        ends["skipped"] += 1
        return
    told = subject.access(case)
    seen = judge.access(case.mode, case.gva, case.kind, user=case.user, expected=expected)
    if seen != told:
        excuse = subject.excuse(case, seen, told)
        if excuse is None:
            raise DisagreementError(f"{case}: judge {seen}, subject {told}")
        ends[excuse] += 1
    tables = subject.tables()
    differ = differing(tables, judge.tables)
    if differ and seen.error_code is not None:
        allowed = set(path(ahead.memory, ahead.context(case.mode), case.gva))
        if all(bits == GPTE_A and at in allowed for at, bits in differ.items()):
            ends["A above a fault"] += 1
            judge.tables = tables
            differ = {}
    if differ:
        words = ", ".join(f"{at:#x}: {bits:#x}" for at, bits in differ.items())
        raise DisagreementError(f"{case}: bits of the tables differ: {words}")
    if seen != told:
        return
    ended = f"ok at level {found.level}" if isinstance(found, GuestWalk) else f"fault {found:#x}"
    ends[f"{case.kind} {ended}"] += 1


def run(judge: Judge, subject: Subject, seed: int, count: int, each: int = 25) -> Counter[str]:
    """Make ``count`` accesses, ``each`` to one set of tables, and count how they ended."""
    ends: Counter[str] = Counter()
    done = number = 0
    while done < count:
        number += 1
        rng = random.Random(f"{seed}:{number}")  # noqa: S311  a repeatable test, no secret
        judge.tables = random_tables(rng, judge.levels, judge.code_entry)
        subject.load(judge.tables)
        for _ in range(each):
            skipped = ends["skipped"]
            try:
                compare(judge, subject, random_case(rng, judge.levels), ends)
            except DisagreementError as error:
                error.add_note(f"seed {seed}, tables {number}")
                raise
            done += ends["skipped"] == skipped
    return ends
