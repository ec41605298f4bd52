"""Entry rules of the enumeration and of the walk (B.1 to B.4, SDM 3A 4.5), each alone and both against the model."""

import random
import tracemalloc
from array import array
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from time import perf_counter

import numpy as np
import pytest
from tests.dumps.images import NX, PAGE, PS, A, D, G, P, U, W, chain, flat, table

from shadow_mmu import DumpError, MemoryDump, open_dump
from shadow_mmu.dumps.leaves import LEAF
from shadow_mmu.model.constants import PF_P, PF_RSVD, WORD
from shadow_mmu.model.memory import GuestMemory
from shadow_mmu.model.permissions import Access, gpte_access
from shadow_mmu.model.walk import GuestWalk
from shadow_mmu.model.walk import walk as model_walk
from shadow_mmu.pagewalk import EntryKind, Rights, WalkDimension

Raw = Callable[..., MemoryDump]
ROOT = 0x1000
READ = Access(write=False, fetch=False, user=False, override=True)


@pytest.fixture
def raw(tmp_path: Path) -> Raw:
    """Return a function that makes a raw image of pages and opens it."""

    def make(pages: Mapping[int, bytes], size: int = 0x10000) -> MemoryDump:
        path = tmp_path / "memory.raw"
        path.write_bytes(flat(pages, size))
        return open_dump(path)

    return make


def with_entry(levels: int, level: int, entry: int, index: int = 0) -> dict[int, bytes]:
    """Return a chain of tables whose table of one level has this entry instead."""
    pages = chain(levels)
    pages[ROOT + (levels - level << 12)] = table({index: entry})
    return pages


@pytest.mark.parametrize("levels", [4, 5])
@pytest.mark.parametrize(("level", "size"), [(1, 1 << 12), (2, 1 << 21), (3, 1 << 30)])
def test_a_page_ends_the_walk_at_levels_1_to_3(raw: Raw, levels: int, level: int, size: int) -> None:
    base = 3 << 30
    # At level 1 bit 7 is PAT, and ends nothing (F-30).
    for ps in (0, PS) if level == 1 else (PS,):
        with raw(with_entry(levels, level, base | ps | P | W | U | G, index=5)) as dump:
            tables = dump.page_tables(ROOT, levels=levels)
            (one,) = tables.maps()
            assert (one.start, one.end, one.page_size, one.gpa) == (5 * size, 6 * size, size, base)
            assert (one.rights, one.is_global, one.pages) == (Rights(True, True, True), True, 1)
            offset = size - 9
            found = tables.walk(5 * size + offset).guest
            assert (found.address, found.page_size, found.end) == (base + offset, size, EntryKind.PAGE)


@pytest.mark.parametrize(("levels", "level"), [(4, 4), (5, 4), (5, 5)])
def test_bit_7_above_level_3_is_reserved(raw: Raw, levels: int, level: int) -> None:
    entry = 0x2000 | PS | P | W | U
    with raw(with_entry(levels, level, entry)) as dump:
        tables = dump.page_tables(ROOT, levels=levels)
        leaves = tables.leaves()
        assert (len(leaves), leaves.reserved.count, leaves.reserved.first) == (0, 1, ((0, level, entry),))
        assert tables.walk(0).guest.end is EntryKind.RESERVED


@pytest.mark.parametrize(("level", "bits"), [(2, range(13, 21)), (3, range(13, 30))])
def test_address_bits_below_a_large_page_are_reserved_but_for_pat(raw: Raw, level: int, bits: range) -> None:
    with raw(with_entry(4, level, 0xC0000000 | 1 << 12 | PS | P)) as dump:
        assert dump.maps(ROOT)[0].gpa == 0xC0000000
        assert dump.walk(0, ROOT).guest.steps[-1].flags == ("P", "PS", "PAT")
    for bit in bits:
        with raw(with_entry(4, level, 0xC0000000 | 1 << bit | PS | P)) as dump:
            assert dump.page_tables(ROOT).leaves().reserved.count == 1
            assert dump.walk(0, ROOT).guest.result == f"reserved bit set at level {level}"


@pytest.mark.parametrize("level", [1, 2, 3, 4])
def test_an_address_above_maxphyaddr_is_reserved(raw: Raw, level: int) -> None:
    with raw(with_entry(4, level, 1 << 40 | P)) as dump:
        assert dump.page_tables(ROOT, maxphyaddr=40).leaves().reserved.count == 1
        assert dump.page_tables(ROOT, maxphyaddr=40).walk(0).guest.end is EntryKind.RESERVED
        wider = dump.page_tables(ROOT, maxphyaddr=41)
        assert wider.leaves().reserved.count == 0
        assert wider.walk(0).guest.end is (EntryKind.PAGE if level == 1 else EntryKind.ABSENT)


@pytest.mark.parametrize("levels", [4, 5])
def test_rights_are_what_every_level_allows(raw: Raw, levels: int) -> None:
    for level in range(1, levels + 1):
        target = 0x7000 if level == 1 else ROOT + (levels - level + 1 << 12)
        for entry, rights in (
            (target | P | W | U, Rights(True, True, True)),
            (target | P | U, Rights(False, True, True)),
            (target | P | W, Rights(True, True, False)),
            (target | P | W | U | NX, Rights(True, False, True)),
        ):
            with raw(with_entry(levels, level, entry)) as dump:
                tables = dump.page_tables(ROOT, levels=levels)
                (one,) = tables.maps()
                found = tables.walk(0).guest
                assert one.rights == found.rights == rights
                # Above that level nothing is taken away.
                assert {step.rights for step in found.steps if step.level > level} <= {Rights(True, True, True)}


@pytest.mark.parametrize(("levels", "low_end"), [(4, 0x0000_7FFF_FFFF_F000), (5, 0x00FF_FFFF_FFFF_F000)])
def test_addresses_are_canonical_and_come_in_order(raw: Raw, levels: int, low_end: int) -> None:
    pages = {
        ROOT + (n << 12): table({0: ROOT + (n + 1 << 12) | 7, 511: ROOT + (n + 1 << 12) | 7}) for n in range(levels)
    }
    top = dict.fromkeys((0, 255, 256, 511), 0x2007)
    pages[ROOT] = table(top)
    with raw(pages) as dump:
        tables = dump.page_tables(ROOT, levels=levels)
        gvas = tables.leaves().rows["gva"].tolist()
        assert gvas == sorted(gvas)
        assert {0, low_end, WORD ^ low_end ^ 0xFFF, WORD & ~0xFFF} <= set(gvas)
        assert len(gvas) == 4 << levels - 1
        assert tables.maps()[-1].end == 1 << 64
        for gva in gvas:
            assert tables.walk(gva | 0xABC).guest.address == ROOT + (levels << 12) | 0xABC
        for gva in (low_end + PAGE, WORD & ~low_end - PAGE & ~0xFFF, 1 << 63):
            found = tables.walk(gva).guest
            assert (found.end, found.steps, found.result) == (EntryKind.NON_CANONICAL, (), "non-canonical address")


def test_a_table_that_is_not_in_the_dump_is_told(raw: Raw) -> None:
    pages = chain(4)
    pages[ROOT] = table({0: 0x2007, 3: 0x10_0000 | 7, 256: 0x20_0000 | 7})
    with raw(pages) as dump:
        tables = dump.page_tables(ROOT)
        leaves = tables.leaves()
        assert len(leaves) == 1
        assert leaves.absent.count == 2
        assert set(leaves.absent.first) == {(3 << 39, 3, 0x10_0000), (0xFFFF_8000_0000_0000, 3, 0x20_0000)}
        found = tables.walk(3 << 39).guest
        assert (found.end, found.result) == (EntryKind.ABSENT, "table not in memory at level 3")
        assert (found.steps[-1].table, found.address, found.rights, found.page_size) == (0x10_0000, None, None, None)


def test_a_page_of_two_ranges_that_touch_is_one_table(tmp_path: Path) -> None:
    from tests.dumps.images import ElfImage, Segment

    pages = chain(4)
    whole = b"".join(pages[gpa] for gpa in sorted(pages))
    path = tmp_path / "dump"
    # The second half lies before the first in the file: the ranges touch in memory only.
    path.write_bytes(ElfImage([Segment(0x1000 + 0x1800, whole[0x1800:]), Segment(0x1000, whole[:0x1800])]).build())
    with open_dump(path) as dump:
        assert [str(one) for one in dump.memory.ranges] == ["0x1000-0x2800", "0x2800-0x5000"]
        assert len(dump.maps()) == 1
        assert dump.walk(0x123).guest.address == 0x7123


def test_trouble_is_counted_and_the_first_kept(raw: Raw) -> None:
    pages = chain(4)
    pages[ROOT] = table(dict.fromkeys(range(512), 0x2000 | PS | P))
    with raw(pages) as dump:
        trouble = dump.page_tables(ROOT).leaves().reserved
        assert (trouble.count, len(trouble.first)) == (512, 16)


def test_a_table_that_maps_itself_is_walked_through(raw: Raw) -> None:
    """Windows maps its own tables so: one entry of the top table leads to the top table."""
    pages = chain(4)
    pages[ROOT] = table({0: 0x2007, 0x1ED: ROOT | 7})
    with raw(pages) as dump:
        tables = dump.page_tables(ROOT)
        rows = tables.leaves().rows
        # Through the top table's own entry each table is a page: PT, PD, PDPT, and itself, all in one region.
        assert sorted(rows["gpa"].tolist()) == [0x1000, 0x2000, 0x3000, 0x4000, 0x7000]
        itself = 0xFFFF_0000_0000_0000 | 0x1ED << 39 | 0x1ED << 30 | 0x1ED << 21 | 0x1ED << 12
        assert tables.walk(itself).guest.address == ROOT
        assert rows[rows["gpa"] == ROOT]["gva"].tolist() == [itself]


@pytest.mark.parametrize("levels", [4, 5])
def test_tables_that_lead_back_512_times_are_stopped(raw: Raw, levels: int) -> None:
    """2^36 and 2^45 pages in one table of 4 KiB."""
    with raw({ROOT: table(dict.fromkeys(range(512), ROOT | 7))}) as dump:
        tables = dump.page_tables(ROOT, levels=levels)
        start = perf_counter()
        with pytest.raises(
            DumpError, match=r"too many pages mapped: .* found more than 100,000, expected at most 100,000"
        ):
            tables.leaves(limit=100_000)
        assert perf_counter() - start < 20
        assert tables.walk(0x1234_5678).guest.address == ROOT | 0x678


def test_tables_that_lead_back_and_map_nothing_are_stopped(raw: Raw) -> None:
    """512^3 empty tables: no page is found, and still it ends."""
    pages = {ROOT + (n << 12): table(dict.fromkeys(range(512), ROOT + (n + 1 << 12) | 7)) for n in range(3)}
    with raw(pages) as dump, pytest.raises(DumpError, match=r"too many tables to read: .* expected at most 4,096"):
        dump.page_tables(ROOT).leaves(limit=1000)


@pytest.mark.parametrize("limit", [1 << 14, 1 << 18])
def test_a_listing_costs_at_most_60_bytes_a_page_and_16_mib(raw: Raw, limit: int) -> None:
    """Both where it is refused, and where there are just as many pages as are allowed."""
    pages = chain(4)
    pages[0x3000] = table(dict.fromkeys(range(512), 0x4007))
    pages[0x2000] = table(dict.fromkeys(range(limit >> 18), 0x3007) or {0: 0x3007})
    pages[0x4000] = table(dict.fromkeys(range(512 if limit >> 18 else limit >> 9), 0x7007))
    pages[0x8000] = table(dict.fromkeys(range(512), 0x8007))
    peaks = []
    with raw(pages) as dump:
        for root in (ROOT, 0x8000):
            tables = dump.page_tables(root)
            tracemalloc.start()
            try:
                if root == ROOT:
                    assert tables.maps(limit=limit).leaves == limit
                else:
                    with pytest.raises(DumpError, match="too many pages"):
                        tables.maps(limit=limit)
                peaks.append(tracemalloc.get_traced_memory()[1])
            finally:
                tracemalloc.stop()
    assert max(peaks) <= (16 << 20) + 60 * limit
    assert max(peaks) > 4 << 20


def test_the_limit_is_the_most_pages_that_are_listed(raw: Raw) -> None:
    pages = chain(4)
    pages[0x4000] = table(dict.fromkeys(range(100), 0x7007))
    with raw(pages) as dump:
        assert len(dump.page_tables(ROOT).leaves(limit=100)) == 100
        with pytest.raises(DumpError, match="found more than 99, expected at most 99"):
            dump.maps(ROOT, limit=99)


def test_nothing_mapped_is_no_range(raw: Raw) -> None:
    with raw({ROOT: table({})}) as dump:
        maps = dump.maps(ROOT)
        assert (len(maps), list(maps), maps.leaves, maps.tables) == (0, [], 0, 1)
        assert "nothing mapped in 0 ranges" in repr(maps)


def test_ranges_merge_as_told(raw: Raw) -> None:
    pages = chain(4)
    pages[0x4000] = table(
        {0: 0x7007, 1: 0x8007, 2: 0x5007, 3: 0x6003, 4: 0x7003 | G, 5: 0x8003 | G | NX, 7: 0x9003 | G | NX}
    )
    with raw(pages) as dump:
        merged = [(one.start >> 12, one.pages, str(one.rights), one.is_global, one.runs) for one in dump.maps(ROOT)]
        assert merged == [
            (0, 3, "rwx u", False, 2),
            (3, 1, "rwx s", False, 1),
            (4, 1, "rwx s", True, 1),
            (5, 1, "rw- s", True, 1),
            (7, 1, "rw- s", True, 1),
        ]
        apart = [(one.start >> 12, one.pages, one.gpa) for one in dump.maps(ROOT, contiguous=True)]
        assert apart[:2] == [(0, 2, 0x7000), (2, 1, 0x5000)]
        assert len(apart) == 6
        maps = dump.maps(ROOT)
        assert maps[1:3] == (maps[1], maps[2])
        assert maps[-1] == list(maps)[-1]


def random_pages(rng: random.Random, frames: int) -> dict[int, bytes]:
    """Return tables with a few entries each, most of them present, some with reserved bits, some leading out of memory."""
    pages = {}
    for frame in range(1, frames):
        entries = {}
        for _ in range(rng.randint(2, 5)):
            entry = rng.randrange(1, frames + 2) << 12 | rng.choice((P, P, P, P, P, P, 0))
            for bit, odds in ((W, 0.7), (U, 0.7), (A, 0.5), (D, 0.5), (PS, 0.2), (G, 0.2), (NX, 0.2), (1 << 45, 0.05)):
                entry |= bit if rng.random() < odds else 0
            if entry & PS and rng.random() < 0.7:
                entry &= ~((1 << 30) - (1 << 13)) if rng.random() < 0.5 else ~((1 << 21) - (1 << 13))
            entries[rng.choice((0, 1, 511))] = entry
        pages[frame << 12] = table(entries)
    return pages


def model_memory(pages: Mapping[int, bytes], frames: int) -> GuestMemory:
    """Return the model's memory with these pages; the model sets A and D bits in it."""
    memory = GuestMemory([(0, frames << 12)], 1 << 40)
    memory.pages |= {gpa >> 12: array("Q", data) for gpa, data in pages.items()}
    return memory


def covering(by_gva: Mapping[int, np.void], gva: int) -> np.void | None:
    """Return the page that an address is in."""
    for level in (1, 2, 3):
        row = by_gva.get(gva & ~((1 << 12 + 9 * (level - 1)) - 1))
        if row is not None and row["level"] >= level:
            return row
    return None


@pytest.mark.parametrize("levels", [4, 5])
def test_enumeration_walk_and_model_agree_on_random_tables(raw: Raw, levels: int) -> None:
    ends: Counter[tuple[EntryKind, int]] = Counter()
    for seed in range(100):
        rng = random.Random(seed)  # noqa: S311  a repeatable test, no secret
        frames = 24
        pages = random_pages(rng, frames)
        with raw(pages, frames << 12) as dump:
            tables = dump.page_tables(ROOT, levels=levels, maxphyaddr=44)
            rows = tables.leaves().rows
            assert rows.dtype == LEAF
            assert (rows["gva"][1:] > rows["gva"][:-1]).all()
            by_gva = {int(row["gva"]): row for row in rows}
            for _ in range(150):
                if by_gva and rng.random() < 0.4:
                    gva = rng.choice(list(by_gva)) + rng.randrange(PAGE)
                else:
                    gva = sum(rng.choice((0, 1, 511)) << 12 + 9 * level for level in range(levels))
                    gva |= WORD << 12 + 9 * levels & WORD if gva >> 11 + 9 * levels else 0
                found = tables.walk(gva).guest
                ends[found.end, found.steps[-1].level] += 1
                expected = model_walk(model_memory(pages, frames), tables.context, ROOT >> 12, gva, READ)
                compare(found, covering(by_gva, gva), expected, gva)
    seen = {(EntryKind.PAGE, level) for level in (1, 2, 3)}
    seen |= {(kind, level) for kind in (EntryKind.RESERVED, EntryKind.NOT_PRESENT) for level in range(1, levels + 1)}
    seen |= {(EntryKind.ABSENT, level) for level in range(1, levels)}
    assert seen == set(ends)


def compare(found: WalkDimension, row: np.void | None, expected: GuestWalk | int, gva: int) -> None:
    """Check that the walk, the enumeration and the model say the same of an address."""
    if not isinstance(expected, GuestWalk):
        assert row is None
        assert (found.end is EntryKind.RESERVED) == (expected == PF_P | PF_RSVD)
        assert found.end is not EntryKind.PAGE
        assert (found.address, found.rights) == (None, None)
        return
    rights = expected.parent_access[expected.level] & gpte_access(expected.gptes[expected.level])
    assert found.address == expected.gfn << 12 | gva & 0xFFF
    assert found.rights == Rights.of_access(rights)
    assert row is not None
    assert (int(row["gpa"]), int(row["level"]), int(row["access"])) == (found.steps[-1].target, expected.level, rights)
