"""The comparison of whoever is judged with the judge."""

import random
from collections import Counter
from collections.abc import Iterator

import numpy as np
from tests.unicorn.cases import Case, random_case, random_tables
from tests.unicorn.differences import A_ABOVE_A_FAULT, explain, found_at
from tests.unicorn.judge import Judge
from tests.unicorn.modes import ROOT, TABLES, is_data
from tests.unicorn.subjects import REFUSED, ModelWalk, Subject, context_of

from shadow_mmu.model.constants import GPTE_A, GPTE_P
from shadow_mmu.model.walk import GuestWalk, entry_gpa, read_entry

SKIPPED = "skipped"
"""A page that holds a table or no memory at all: the judge could not tell it apart."""


def path(ahead: ModelWalk, case: Case) -> Iterator[int]:
    """Give the addresses of the entries that a walk may use: those of present entries, from the top down."""
    memory, context = ahead.memory, context_of(case.mode)
    frame = ahead.first_table(case)
    for level in range(context.top, 0, -1):
        if frame is None or not 0 < frame <= TABLES:
            return
        at = entry_gpa(context, frame, case.gva, level)
        entry = read_entry(memory, context, at)
        if not entry & GPTE_P:
            return
        yield at
        frame = (entry & ((1 << 52) - 1)) >> 12


def differing(before: bytes, after: bytes, entry_bytes: int) -> dict[int, int]:
    """Return the bits that differ, by physical address of the entry."""
    if before == after:
        return {}
    one, other = (np.frombuffer(data, f"<u{entry_bytes}") for data in (before, after))
    places = np.flatnonzero(one != other)
    return {ROOT + entry_bytes * int(place): int(one[place] ^ other[place]) for place in places}


class DisagreementError(AssertionError):
    """The subject and the judge do not agree."""


def compare(judge: Judge, subject: Subject, case: Case, ends: Counter[str]) -> bool:
    """Make one access on both; count how it ended. Whether both saw the same, A and D of every entry included.

    What the table of differences lists is counted by its name.
    """
    # A walk of its own says where a page would be, so that the judge's mark can be looked for there.
    before = subject.tables()
    ahead = ModelWalk(judge.paging)
    ahead.load(before)
    found = ahead.walk(case)
    expected = found_at(found, case.gva)
    if expected is not None and not is_data(expected):
        ends[SKIPPED] += 1
        return False
    told = subject.access(case)
    seen = judge.access(case.mode, case.gva, case.kind, user=case.user, expected=expected)
    tables = subject.tables()
    if seen != told:
        difference = explain(subject, case, seen, told)
        if difference is None:
            raise DisagreementError(f"{case}: judge {seen}, subject {told}")
        ends[difference.name] += 1
        if told == REFUSED and tables != before:
            raise DisagreementError(f"{case}: refused, and yet the tables changed")
    differ = differing(tables, judge.tables, judge.paging.entry_bytes)
    may_have_a = seen.error_code is not None or seen != told
    if differ and may_have_a:
        ahead.load(before)
        allowed = set(path(ahead, case))
        # Of an access that the judge lets through, and the subject does not, D too.
        bits_allowed = GPTE_A | (0x40 if seen.error_code is None else 0)
        if all(bits & ~bits_allowed == 0 and at in allowed for at, bits in differ.items()):
            ends[A_ABOVE_A_FAULT.name] += seen == told
            judge.tables = tables
            differ = {}
    if differ:
        words = ", ".join(f"{at:#x}: {bits:#x}" for at, bits in differ.items())
        raise DisagreementError(f"{case}: bits of the tables differ: {words}")
    if seen != told:
        return False
    ended = f"ok at level {found.level}" if isinstance(found, GuestWalk) else f"fault {found:#x}"
    ends[f"{case.kind} {ended}"] += 1
    return True


def run(judge: Judge, subject: Subject, seed: int, count: int, each: int = 25) -> Counter[str]:
    """Make accesses, ``each`` to one set of tables, until ``count`` have ended alike, and count how they ended."""
    ends: Counter[str] = Counter()
    done = number = 0
    while done < count:
        number += 1
        rng = random.Random(f"{seed}:{number}")  # noqa: S311  a repeatable test, no secret
        judge.tables = random_tables(rng, judge.paging, judge.code_entry)
        subject.load(judge.tables)
        for _ in range(each):
            try:
                done += compare(judge, subject, random_case(rng, judge.paging), ends)
            except DisagreementError as error:
                error.add_note(f"{judge.paging}: seed {seed}, tables {number}")
                raise
    return ends
