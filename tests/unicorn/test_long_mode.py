"""4- and 5-level paging: the model's walk against unicorn's MMU: translation, error code, CR2, A and D bits."""

from collections import Counter
from collections.abc import Callable

import pytest
from tests.unicorn import cases
from tests.unicorn.judge import Judge

from shadow_mmu.model.constants import ACC_U, GPTE_D
from shadow_mmu.model.memory import GuestMemory
from shadow_mmu.model.permissions import Access, Context
from shadow_mmu.model.walk import GuestWalk, entry_gpa, walk

# Every way for an access to end in these modes: a page of each size, and each error code that there is for it.
ENDS = {
    *(f"{kind} ok at level {level}" for kind in ("read", "write", "fetch") for level in (1, 2, 3)),
    *(f"read fault {code:#x}" for code in (0, 1, 4, 5, 9, 0xD)),
    *(f"write fault {code:#x}" for code in (2, 3, 6, 7, 0xB, 0xF)),
    # Without NX and SMEP the processor does not define F.
    *(f"fetch fault {code:#x}" for code in (0, 4, 5, 9, 0xD, 0x10, 0x11, 0x14, 0x15, 0x19, 0x1D)),
}
EXCEPTIONS = {"A above a fault", "skipped"}


@pytest.fixture(scope="module", params=[4, 5])
def judge(request: pytest.FixtureRequest) -> Judge:
    return Judge(request.param)


def check(ends: Counter[str], count: int) -> None:
    """Check that as much was compared as was asked for, and every way to end was among it."""
    print(dict(sorted(ends.items())))
    assert sum(number for end, number in ends.items() if end not in EXCEPTIONS) >= count
    assert set(ends) - EXCEPTIONS == ENDS
    assert ends["skipped"] < count // 5


def test_2000_random_accesses_end_as_on_another_mmu(judge: Judge) -> None:
    check(cases.run(judge, 1, 2000), 2000)


@pytest.mark.soak
def test_100000_random_accesses_end_as_on_another_mmu(judge: Judge) -> None:
    check(cases.run(judge, 2, 100_000), 100_000)


def test_the_judge_has_the_widths_that_the_cases_count_on(judge: Judge) -> None:
    """Reserved bits are drawn from bit 40 on."""
    assert judge.maxphyaddr == 40


Walk = Callable[[GuestMemory, Context, int, int, Access], GuestWalk | int]


def without_smap(memory: GuestMemory, context: Context, cr3: int, gva: int, access: Access) -> GuestWalk | int:
    return walk(memory, context, cr3, gva, access._replace(override=True))


def without_dirty(memory: GuestMemory, context: Context, cr3: int, gva: int, access: Access) -> GuestWalk | int:
    found = walk(memory, context, cr3, gva, access)
    if isinstance(found, GuestWalk):
        at = entry_gpa(found.table_gfn[found.level], gva, found.level)
        memory.set_word(at, memory.word(at) & ~GPTE_D)
    return found


def with_another_code(memory: GuestMemory, context: Context, cr3: int, gva: int, access: Access) -> GuestWalk | int:
    found = walk(memory, context, cr3, gva, access)
    return found if isinstance(found, GuestWalk) else found & ~ACC_U


def without_the_offset_in_a_large_page(
    memory: GuestMemory, context: Context, cr3: int, gva: int, access: Access
) -> GuestWalk | int:
    found = walk(memory, context, cr3, gva, access)
    if isinstance(found, GuestWalk) and found.level == 2 and gva >> 12 & 511:
        return found._replace(gfn=(found.gfn & ~511) + 0x100)
    return found


@pytest.mark.parametrize("broken", [without_smap, without_dirty, with_another_code, without_the_offset_in_a_large_page])
def test_a_walk_that_is_wrong_is_found_out(judge: Judge, broken: Walk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cases, "walk", broken)
    with pytest.raises(cases.DisagreementError) as found:
        cases.run(judge, 1, 2000)
    assert "seed 1, tables " in found.value.__notes__[0]
