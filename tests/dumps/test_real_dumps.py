"""The dumps of real guests against what QEMU itself said: every page, every range, every register, every KPTI pair."""

from itertools import pairwise

import numpy as np
import pytest
from tests.dumps.conftest import RealDump, unpacked

from shadow_mmu import MemoryDump, open_dump
from shadow_mmu.dumps import PageTables
from shadow_mmu.dumps.leaves import Leaves
from shadow_mmu.model.constants import ACC_W, GPTE_D, PAGE_SHIFT
from shadow_mmu.model.memory import GuestMemory
from shadow_mmu.model.permissions import Access
from shadow_mmu.model.walk import GuestWalk, walk
from shadow_mmu.pagewalk import EntryKind, Rights

# The letters of `info tlb` and their bits in the entry.
TLB_LETTERS = tuple(zip("XGPDACTUW", (63, 8, 7, 6, 5, 4, 3, 2, 1), strict=True))


def as_tlb(leaves: Leaves) -> tuple[tuple[int, int, str], ...]:
    """Return pages as `info tlb` shows them."""
    rows = zip(*(leaves.rows[name].tolist() for name in ("gva", "gpa", "entry")), strict=True)
    return tuple(
        (gva, gpa, "".join(c if entry >> bit & 1 else "-" for c, bit in TLB_LETTERS)) for gva, gpa, entry in rows
    )


def tables_of(dump: MemoryDump, real: RealDump, cr3: str) -> PageTables:
    return dump.page_tables(int(cr3, 16), levels=real.levels)


@pytest.mark.parametrize("form", ["elf", "lime"])
def test_every_leaf_is_that_of_qemus_info_tlb(real: RealDump, form: str) -> None:
    assert len(real.info_tlb) == {4: 6297, 5: 6302}[real.levels]
    with open_dump(getattr(real, form)) as dump:
        assert dump.format == form
        tables = dump.page_tables() if form == "elf" else tables_of(dump, real, real.facts["cpus"][0]["cr3"])
        assert as_tlb(tables.leaves()) == real.info_tlb


def test_every_tree_has_the_pages_and_tables_that_were_counted(real: RealDump) -> None:
    with open_dump(real.elf) as dump:
        for facts in real.facts["cpus"]:
            kernel = tables_of(dump, real, facts["cr3"]).leaves()
            assert (len(kernel), kernel.tables) == (facts["leaves"], facts["pt_pages"])
            assert kernel.by_level == {int(level): count for level, count in facts["by_level"].items()}
            user = tables_of(dump, real, facts["pti_pair"]).leaves()
            assert (len(user), user.tables) == (facts["pti_pair_leaves"], facts["pti_pair_pt_pages"])
            for leaves in (kernel, user):
                assert (leaves.absent.count, leaves.reserved.count) == (0, 0)
        assert dump.memory.size == real.facts["pages"] * 4096


def test_registers_come_from_qemus_notes(real: RealDump) -> None:
    with open_dump(real.elf) as dump:
        assert len(dump.cpus) == 2
        for cpu, facts in zip(dump.cpus, real.facts["cpus"], strict=True):
            for name in ("cr0", "cr2", "cr3", "cr4"):
                assert getattr(cpu, name) == int(facts[name], 16)
            assert (cpu.cpu, cpu.levels, cpu.cpl) == (facts["cpu"], real.levels, 0)
            # From `info registers`: both vCPUs were halted in the idle loop.
            assert (cpu.rip, cpu.rflags) == (0xFFFFFFFF81A17A0B, 0x246)


@pytest.mark.parametrize("real", ["la48"], indirect=True)  # there is no `info mem` of the other
def test_ranges_of_one_right_are_those_of_qemus_info_mem(real: RealDump) -> None:
    said = []
    for line in unpacked(f"{real.name}.info_mem.txt").decode().splitlines():
        span, size, rights = line.split()
        start, end = (int(one, 16) for one in span.split("-"))
        assert (end - start) % (1 << 64) == int(size, 16)
        said.append((start, end, rights))
    with open_dump(real.elf) as dump:
        maps = dump.maps()
    # QEMU tells neither X nor the page size apart.
    ours: list[tuple[int, int, str]] = []
    for one in maps:
        rights = f"{'u' if one.rights.user else '-'}r{'w' if one.rights.writable else '-'}"
        if ours and ours[-1][1:] == (one.start, rights):
            ours[-1] = (ours[-1][0], one.end, rights)
        else:
            ours.append((one.start, one.end, rights))
    mask = (1 << 64) - 1
    assert [(start, end & mask, rights) for start, end, rights in ours] == [
        (start, end & mask, rights) for start, end, rights in said
    ]
    assert len(said) > 50


@pytest.mark.parametrize("contiguous", [False, True])
def test_ranges_are_the_leaves_and_no_two_could_be_one(real: RealDump, contiguous: bool) -> None:  # noqa: FBT001  a test's parameter
    with open_dump(real.elf) as dump:
        tables = dump.page_tables()
        maps, leaves = tables.maps(contiguous=contiguous), tables.leaves()
    pages = [
        (at, one.page_size, one.rights, one.is_global)
        for one in maps
        for at in range(one.start, one.end, one.page_size)
    ]
    assert pages == [
        (int(row["gva"]), 1 << 12 + 9 * (int(row["level"]) - 1), Rights.of_access(int(row["access"])), bool(row["entry"] >> np.uint64(8) & np.uint64(1)))
        for row in leaves.rows
    ]  # fmt: skip
    gpa_of = dict(zip(leaves.rows["gva"].tolist(), leaves.rows["gpa"].tolist(), strict=True))
    for one in maps:
        inside = [gpa_of[at] for at in range(one.start, one.end, one.page_size)]
        assert one.gpa == inside[0]
        assert one.runs == 1 + sum(b != a + one.page_size for a, b in pairwise(inside))
        assert one.runs == 1 or not contiguous
    for a, b in pairwise(maps):
        alike = (a.end, a.page_size, a.rights, a.is_global) == (b.start, b.page_size, b.rights, b.is_global)
        assert not alike or (contiguous and a.gpa + (a.end - a.start) != b.gpa)


def test_the_walk_of_one_address_finds_what_the_enumeration_found(real: RealDump) -> None:
    with open_dump(real.elf) as dump:
        tables = dump.page_tables()
        for row in tables.leaves().rows:
            offset = 0x123 << 9 * (int(row["level"]) - 1)
            found = tables.walk(int(row["gva"]) + offset).guest
            assert found.end is EntryKind.PAGE
            last = found.steps[-1]
            assert (found.address, last.level, last.entry, last.target) == (
                int(row["gpa"]) + offset,
                int(row["level"]),
                int(row["entry"]),
                int(row["gpa"]),
            )
            assert found.rights == Rights.of_access(int(row["access"]))
            assert len(found.steps) == real.levels - last.level + 1


def test_the_model_translates_every_page_alike(real: RealDump) -> None:
    with open_dump(real.elf) as dump:
        tables = dump.page_tables()
        memory = GuestMemory([(one.start, one.end - one.start) for one in dump.memory.ranges], 1 << 40)
        for one in dump.memory.ranges:
            for gpa, word in memory.words_of(one.start, dump.memory.read(one.start, one.end - one.start)):
                memory.set_word(gpa, word)
        read = Access(write=False, fetch=False, user=False, override=True)
        for row in tables.leaves().rows:
            found = walk(memory, tables.context, tables.cr3 >> 12, int(row["gva"]), read)
            assert isinstance(found, GuestWalk)
            # A read may not write until D is set (B.2 step 9).
            access = int(row["access"]) & (0xFF if int(row["entry"]) & GPTE_D else ~ACC_W)
            assert (found.gfn << PAGE_SHIFT, found.level, found.access) == (int(row["gpa"]), int(row["level"]), access)


def test_kpti_pairs_are_recognised_from_either_half(real: RealDump) -> None:
    with open_dump(real.elf) as dump:
        expected = []
        for facts in real.facts["cpus"]:
            kernel, user = int(facts["cr3"], 16), int(facts["pti_pair"], 16)
            expected += [(kernel, "kernel", user, (facts["cpu"],)), (user, "user", kernel, ())]
            # PCID bits do not hide a pair.
            for half, of_half, other in ((kernel, "user", user), (user | 0x801, "kernel", kernel)):
                found = dump.other_half(half)
                assert found is not None
                assert (found.half, found.cr3, found.cpus) == (of_half, other, ())
        assert [(root.cr3, root.half, root.pair, root.cpus) for root in dump.roots] == expected
        # Two tables beside each other are no pair by that alone.
        tables = dump.memory.ranges[0].start
        assert dump.other_half(tables) is None


def test_the_user_half_maps_user_pages_alike_and_may_run_them(real: RealDump) -> None:
    with open_dump(real.elf) as dump:
        facts = real.facts["cpus"][0]
        kernel, user = (tables_of(dump, real, facts[name]).leaves().rows for name in ("cr3", "pti_pair"))
        low = [rows[rows["gva"] < np.uint64(1 << 63)] for rows in (kernel, user)]
        for name in ("gva", "gpa", "entry"):
            assert (low[0][name] == low[1][name]).all()
        # The kernel's half has NX above every user page; U stays.
        assert not (low[0]["access"] & 1).any()
        assert (low[1]["access"] & 1).any()
        assert (low[0]["access"] >> 1 == low[1]["access"] >> 1).all()
