"""Each difference of the table, shown: what unicorn does, what the machine does, and whom the SDM supports."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from tests.behaviour.machines import MachineMaker, model, native
from tests.unicorn import differences as known
from tests.unicorn.cases import Case
from tests.unicorn.differences import DIFFERENCES, Difference, Verdict, explain
from tests.unicorn.judge import Judge, Seen
from tests.unicorn.modes import DATA, HIGH, PAGINGS, ROOT, Mode
from tests.unicorn.oracle import sdm_says
from tests.unicorn.subjects import REFUSED, ShadowMmu

from shadow_mmu import _native

ROOT_OF_THE_TREE = Path(__file__).parent.parent.parent
USED = 0x67
NX = 1 << 63
MACHINES = pytest.mark.parametrize("make", [model, native(_native)], ids=["model", "core"])


class Both:
    """The judge and a machine over the same tables: the first entry of each of the first frames leads to the next one."""

    def __init__(self, mode: str, make: MachineMaker) -> None:
        self.paging = PAGINGS[mode]
        self.judge = Judge(self.paging)
        self.machine = ShadowMmu(make, self.paging)
        self.mode = Mode(self.paging)
        self.judge.map_first_page(DATA | USED)
        self.machine.load(self.judge.tables)

    def store(self, level: int, entry: int, index: int = 0) -> None:
        """Write an entry of the table of a level into both."""
        at = ROOT + (self.paging.levels - level << 12) + self.paging.entry_bytes * index
        self.judge.store(at, entry)
        self.machine.machine.memory.write(at, entry.to_bytes(self.paging.entry_bytes, "little"))

    def access(
        self, kind: str, mode: Mode | None = None, gva: int = 0, *, user: bool = False
    ) -> tuple[Case, Seen, Seen]:
        """Make an access on both; what the judge saw, and what the machine's guest was told."""
        case = Case(mode or self.mode, gva, kind, user)
        seen = self.judge.access(case.mode, gva, kind, user=user, expected=DATA)
        return case, seen, self.machine.access(case)

    def differ(self, kind: str, mode: Mode, *, user: bool = False) -> tuple[Case, Seen, Seen, Difference | None]:
        """Make an access that ends differently, and say why."""
        case, seen, told = self.access(kind, mode, user=user)
        return case, seen, told, explain(self.machine, case, seen, told)


def fault(code: int, gva: int) -> Seen:
    return Seen(None, code, gva)


def show_a_above_a_fault(make: MachineMaker) -> None:
    for mode in known.A_ABOVE_A_FAULT.modes:
        both = Both(mode, make)
        top = both.paging.levels
        for level in range(2, top + 1):
            both.store(level, (top - level + 2 << 12) | (1 if both.paging.pae and level == top else 7))
        both.store(1, 0)
        _, seen, told = both.access("read")
        assert seen == told == fault(0, 1)
        tables = memoryview(both.machine.tables())
        assert both.judge.tables != tables
        for level in range(2, top + 1):
            at = top - level << 12
            marked = 0 if both.paging.pae and level == top else 0x20
            assert both.judge.tables[at] == tables[at] | marked
            assert not tables[at] & 0x20


def show_nx_became_reserved(make: MachineMaker) -> None:
    for mode in known.NX_BECAME_RESERVED.modes:
        both = Both(mode, make)
        both.store(1, DATA | USED | NX)
        _, seen, told = both.access("read")
        assert seen == told == Seen(DATA, None, None)
        case, seen, told, why = both.differ("read", replace(both.mode, nx=False))
        assert (seen, told) == (fault(9, 1), Seen(DATA, None, None))
        assert why is known.NX_BECAME_RESERVED
        path = [DATA | USED | NX, *[USED] * (both.paging.levels - 1 - both.paging.pae)]
        assert sdm_says(case, path) == seen


def show_smap_let_through(make: MachineMaker) -> None:
    for mode in known.SMAP_LET_THROUGH.modes:
        both = Both(mode, make)
        both.store(1, DATA | USED & ~2)
        lax = replace(both.mode, wp=False, smap=True, ac=True)
        _, seen, told = both.access("write", lax)
        assert seen == told == Seen(DATA, None, None)
        case, seen, told, why = both.differ("read", replace(lax, ac=False))
        assert (seen, told) == (fault(1, 1), Seen(DATA, None, None))
        assert why is known.SMAP_LET_THROUGH
        path = [DATA | USED & ~2, *[USED] * (both.paging.levels - 1 - both.paging.pae)]
        assert sdm_says(case, path) == seen


def show_pse36_above_36_bits(make: MachineMaker) -> None:
    for bit, base in enumerate(HIGH, 17):
        both = Both("32-bit", make)
        both.store(2, 1 << bit | USED | 0x80)
        _, seen, told, why = both.differ("read", both.mode)
        assert (seen, told) == (Seen(base, None, None), fault(9, 1))
        assert why is known.PSE36_ABOVE_36_BITS
        both.store(2, 1 << 21 | USED | 0x80)
        _, seen, told = both.access("read")
        assert seen == told == fault(9, 1)


def show_f_without_pae(make: MachineMaker) -> None:
    for mode in known.F_WITHOUT_PAE.modes:
        both = Both(mode, make)
        both.store(1, 0)
        case, seen, told, why = both.differ("fetch", both.mode, user=True)
        assert (seen, told) == (fault(4, 0), fault(0x14, 0))
        assert why is known.F_WITHOUT_PAE
        assert sdm_says(case, [0, USED]) == seen
        for agreed, code in ((replace(both.mode, nx=False), 4), (replace(both.mode, smep=True), 0x14)):
            _, seen, told = both.access("fetch", agreed, user=True)
            assert seen == told == fault(code, 0)


def show_reserved_bit_of_a_pdptr(make: MachineMaker) -> None:
    for bit in (1, 2, 5, 6, 7, 8, *range(40, 64)):
        both = Both("PAE", make)
        both.store(3, 0x2001 | 1 << bit)
        _, seen, told, why = both.differ("read", both.mode)
        assert (seen, told) == (fault(9, 1) if bit >= 40 else Seen(DATA, None, None), REFUSED), bit
        assert why is known.RESERVED_PDPTR
        both.store(3, 1 << bit & ~1)
        _, seen, told = both.access("read")
        assert seen == told == fault(0, 1), "one that is not present has no reserved bits"


def show_pdptr_read_again(make: MachineMaker) -> None:
    both = Both("PAE", make)
    both.store(1, DATA + 0x1000 | USED, index=1)
    _, seen, told = both.access("read")
    assert seen == told == Seen(DATA, None, None)
    both.store(3, 0)
    # Another page of the same pointer, with no write to a register between.
    case = Case(both.mode, 0x1000, "read", user=False)
    assert both.judge.access(case.mode, 0x1000, "read", user=False, expected=None, as_it_is=True) == fault(0, 0x1001)
    assert both.machine.access_as_it_is(case) == Seen(DATA + 0x1000, None, None)
    _, seen, told = both.access("read", gva=0x1000)
    assert seen == told == fault(0, 0x1001)


SHOWN: dict[str, Callable[[MachineMaker], None]] = {
    known.A_ABOVE_A_FAULT.name: show_a_above_a_fault,
    known.NX_BECAME_RESERVED.name: show_nx_became_reserved,
    known.SMAP_LET_THROUGH.name: show_smap_let_through,
    known.PSE36_ABOVE_36_BITS.name: show_pse36_above_36_bits,
    known.F_WITHOUT_PAE.name: show_f_without_pae,
    known.RESERVED_PDPTR.name: show_reserved_bit_of_a_pdptr,
    known.PDPTR_READ_AGAIN.name: show_pdptr_read_again,
}


@MACHINES
@pytest.mark.parametrize("difference", DIFFERENCES, ids=lambda one: one.name)
def test_a_difference_that_is_listed_is_there(difference: Difference, make: MachineMaker) -> None:
    SHOWN[difference.name](make)


def test_the_table_says_all_of_each_difference() -> None:
    assert set(SHOWN) == {one.name for one in DIFFERENCES}
    assert len(SHOWN) == len(DIFFERENCES)
    for one in DIFFERENCES:
        assert set(one.modes) <= set(PAGINGS)
        assert isinstance(one.verdict, Verdict)
        assert all((one.judge, one.machine, one.sdm, one.rule))


def test_the_documents_list_the_same_differences() -> None:
    text = (ROOT_OF_THE_TREE / "docs" / "testing.md").read_text()
    section = text[text.index("| difference | modes |") :].split("\n\n")[0]
    rows = [row.split("|")[1].strip() for row in section.splitlines()[2:]]
    assert rows == [one.name for one in DIFFERENCES]


def test_what_looks_like_a_difference_and_is_none_is_not_explained() -> None:
    both = Both("32-bit", model)
    case = Case(replace(both.mode, smep=True), 0, "fetch", user=True)
    assert explain(both.machine, case, fault(4, 0), fault(0x14, 0)) is None, "SMEP is a reason for F"
    assert explain(both.machine, case, Seen(DATA, None, None), Seen(DATA + 0x1000, None, None)) is None
    assert explain(both.machine, case, fault(4, 0), REFUSED) is None
    assert explain(both.machine, case, Seen(1 << 36, None, None), fault(0x1D, 0)) is None, "no such bit is set"
    wide = Both("4-level", model)
    read = Case(replace(wide.mode, nx=False), 0, "read", user=False)
    assert explain(wide.machine, read, fault(9, 1), Seen(DATA + 0x1000, None, None)) is None
    through = Case(replace(wide.mode, smap=True), 0, "read", user=False)
    assert explain(wide.machine, through, fault(1, 1), Seen(DATA, None, None)) is None, "WP was set"
