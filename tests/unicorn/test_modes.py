"""Every paging mode against unicorn's MMU: translation, error code, CR2, A and D bits of every entry of every table.

Judged are the model's walk alone, and the whole shadow MMU, as model and as compiled core: what its guest sees. What may differ
is listed in :mod:`.differences`, and counted.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import pytest
from tests.behaviour.machines import MachineMaker, model, native
from tests.unicorn import subjects
from tests.unicorn.compare import SKIPPED, DisagreementError, run
from tests.unicorn.differences import DIFFERENCES
from tests.unicorn.judge import Judge
from tests.unicorn.modes import MAXPHYADDR, PAGINGS, Paging
from tests.unicorn.subjects import ModelWalk, ShadowMmu, Subject

from shadow_mmu import _native
from shadow_mmu.model.constants import ACC_U, GPTE_D
from shadow_mmu.model.memory import GuestMemory
from shadow_mmu.model.permissions import Access, Context
from shadow_mmu.model.walk import GuestWalk, entry_gpa, walk

CI, SOAK = 2_000, 100_000
KINDS = ("read", "write", "fetch")


def ends_of(paging: Paging) -> set[str]:
    """Return every way for an access to end in a mode: a page of each size, and each error code that there is for it."""
    if not paging.levels:
        return {f"{kind} ok at level 3" for kind in KINDS}
    sizes = {f"{kind} ok at level {level}" for kind in KINDS for level in range(1, paging.largest + 1)}
    reserved = paging.entry_bytes == 8 or paging.largest == 2
    read = (0, 1, 4, 5, *((9, 0xD) if reserved else ()))
    write = (2, 3, 6, 7, *((0xB, 0xF) if reserved else ()))
    # Without NX and SMEP the processor does not define F; a supervisor's fetch is denied by one of them only.
    fetch = {code & ~1 | bit | code & 1 for code in read for bit in (0, 0x10)} - {1}
    keyed = (("read", (0x21, 0x25)), ("write", (0x23, 0x27))) if paging.long else ()
    told = (("read", read), ("write", write), ("fetch", fetch), *keyed)
    return sizes | {f"{kind} fault {code:#x}" for kind, codes in told for code in codes}


@pytest.fixture(scope="module", params=PAGINGS.values(), ids=str)
def judge(request: pytest.FixtureRequest) -> Judge:
    return Judge(request.param)


def walk_of_the_model(paging: Paging) -> Subject:
    return ModelWalk(paging)


def shadow(make: MachineMaker) -> Callable[[Paging], Subject]:
    return lambda paging: ShadowMmu(make, paging)


SUBJECTS = pytest.mark.parametrize(
    "subject", [walk_of_the_model, shadow(model), shadow(native(_native))], ids=["walk", "model", "core"]
)


def check(ends: Counter[str], paging: Paging, count: int, *, shadowed: bool) -> Counter[str]:
    """Check that as much was compared as was asked for, with every way to end among it; return the differences met."""
    met = Counter({one.name: ends[one.name] for one in DIFFERENCES if ends[one.name]})
    print(f"{paging}: {dict(sorted(ends.items()))}")
    for one in DIFFERENCES:
        if met[one.name]:
            print(f"  {met[one.name]} times {one.name}: {one.verdict.value} ({one.sdm})")
    alike = {end: number for end, number in ends.items() if end not in met and end != SKIPPED}
    assert sum(alike.values()) >= count
    assert set(alike) == ends_of(paging)
    assert ends[SKIPPED] < count // 5
    possible = {one.name for one in DIFFERENCES if paging.name in one.modes and (shadowed or not one.shadow_only)}
    assert set(met) <= possible
    return met


@SUBJECTS
def test_2000_random_accesses_end_as_on_another_mmu(judge: Judge, subject: Callable[[Paging], Subject]) -> None:
    judged = subject(judge.paging)
    shadowed = isinstance(judged, ShadowMmu)
    check(run(judge, judged, 1, CI), judge.paging, CI, shadowed=shadowed)
    if isinstance(judged, ShadowMmu):
        assert judged.machine.audit() == []


@pytest.mark.soak
@SUBJECTS
def test_100000_random_accesses_end_as_on_another_mmu(judge: Judge, subject: Callable[[Paging], Subject]) -> None:
    judged = subject(judge.paging)
    shadowed = isinstance(judged, ShadowMmu)
    met = check(run(judge, judged, 2, SOAK), judge.paging, SOAK, shadowed=shadowed)
    drawn = [one for one in DIFFERENCES if one.drawn and (shadowed or not one.shadow_only)]
    assert set(met) >= {one.name for one in drawn if judge.paging.name in one.modes}


def test_the_judge_has_the_width_that_the_cases_count_on(judge: Judge) -> None:
    if judge.paging.entry_bytes == 8 and judge.paging.levels:
        top = 62 if judge.paging.pae else 51
        refused = [judge.refuses_address_bit(bit) for bit in range(32, top + 1)]
        assert refused == [bit >= MAXPHYADDR for bit in range(32, top + 1)]


Walk = Callable[[GuestMemory, Context, int | None, int, Access], GuestWalk | int]


def without_smap(memory: GuestMemory, context: Context, first: int | None, gva: int, access: Access) -> GuestWalk | int:
    return walk(memory, context, first, gva, access._replace(override=True))


def without_keys(memory: GuestMemory, context: Context, first: int | None, gva: int, access: Access) -> GuestWalk | int:
    return walk(memory, replace(context, keys=False, pkru=0), first, gva, access)


def without_dirty(
    memory: GuestMemory, context: Context, first: int | None, gva: int, access: Access
) -> GuestWalk | int:
    found = walk(memory, context, first, gva, access)
    if isinstance(found, GuestWalk) and found.table_gfn:
        at = entry_gpa(context, found.table_gfn[found.level], gva, found.level)
        memory.store(at, memory.load(at, 4) & ~GPTE_D, 4)
    return found


def with_another_code(
    memory: GuestMemory, context: Context, first: int | None, gva: int, access: Access
) -> GuestWalk | int:
    found = walk(memory, context, first, gva, access)
    return found if isinstance(found, GuestWalk) else found & ~ACC_U


def without_the_offset_in_a_page(
    memory: GuestMemory, context: Context, first: int | None, gva: int, access: Access
) -> GuestWalk | int:
    found = walk(memory, context, first, gva, access)
    if isinstance(found, GuestWalk) and gva >> 12 & 511:
        return found._replace(gfn=(found.gfn & ~511) + 0x100)
    return found


BROKEN = (without_smap, without_keys, without_dirty, with_another_code, without_the_offset_in_a_page)


@pytest.mark.parametrize("broken", BROKEN)
def test_a_walk_that_is_wrong_is_found_out(judge: Judge, broken: Walk, monkeypatch: pytest.MonkeyPatch) -> None:
    if not judge.paging.levels and broken is not without_the_offset_in_a_page:
        return  # there are no entries and no faults to be wrong about
    if broken is without_keys and not judge.paging.long:
        return
    monkeypatch.setattr(subjects, "walk", broken)
    with pytest.raises(DisagreementError) as found:
        run(judge, ModelWalk(judge.paging), 1, CI)
    assert f"{judge.paging}: seed 1, tables " in found.value.__notes__[0]
