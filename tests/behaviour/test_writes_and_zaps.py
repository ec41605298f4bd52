"""Writes to guest tables, zaps, obsolete roots (E143-E151)."""

import pytest
from tests.behaviour.guest import PAGE, POLICIES, USED, GuestMaker
from tests.behaviour.test_shadow_pages import writable_table

from shadow_mmu.model import spte as sptes
from shadow_mmu.model.constants import (
    EVENT_GET_PAGE,
    EVENT_PREPARE_ZAP_PAGE,
    EVENT_SYNC_PAGE,
)
from shadow_mmu.types import OpFlag, OpKind

USER = int(OpFlag.USER)


@pytest.mark.parametrize("size", [8, 4])
def test_e143_an_emulated_write_zaps_exactly_the_entry(guest: GuestMaker, size: int) -> None:
    one, (a, _) = guest("lru:3")
    second = 1 << 21
    one.map(a, second, 0x402000, USED)
    table = one.entry(a, PAGE, 2) & ~0xFFF
    window = one.window(a, table)
    one.visit(a)
    one.read(second)
    assert {0, 1} <= set(one.page(table)["sptes"])
    with one.moved() as moved:
        one.store(window + 8, one.peek(table + 8), size)
    assert moved["mmu_pde_zapped"] == 1
    assert moved["remote_tlb_flush_requests"] == 1
    assert set(one.page(table)["sptes"]) == {0}
    assert one.read(second).value == 0x402000
    one.audit()


def test_e143_a_hypervisor_write_drops_what_was_made_from_the_words_it_changes(guest: GuestMaker) -> None:
    one, (a, _) = guest("lru:3")
    entry = one.entry(a, PAGE)
    one.map(a, PAGE + 0x1000, 0x402000, USED)
    one.visit(a)
    one.read(PAGE + 0x1000)
    with one.moved() as moved:
        one.poke(entry, one.peek(entry))
    assert moved == {"lock.host": 1}
    with one.moved() as moved:
        one.poke(entry, 0x500000 | USED)
    assert moved == {"lock.host": 1, "remote_tlb_flush_requests": 1}
    assert set(one.page(entry & ~0xFFF)["sptes"]) == {2}
    assert one.read(PAGE).value == 0x500000
    one.audit()


def test_e144_the_third_write_without_a_use_in_between_zaps_the_page(guest: GuestMaker) -> None:
    one, (a, _) = guest("lru:3")
    table = one.entry(a, PAGE, 2) & ~0xFFF
    window = one.window(a, table)
    one.visit(a)
    counts = []
    for index in range(100, 103):
        counts.append(one.page(table)["flooding"])
        one.store(window + 8 * index, 0)
    assert counts == [0, 1, 2]
    assert not one.pages(table)
    assert one.counters()["mmu_flooded"] == 1
    one.audit()


def test_e144_a_translated_write_counts_and_zaps_no_entry(guest: GuestMaker) -> None:
    one, (a, _) = guest("lru:3")
    table = one.entry(a, PAGE, 2) & ~0xFFF
    window = one.window(a, table)
    one.visit(a)
    before = one.page(table)["sptes"]
    for turn in (1, 2):
        with one.moved() as moved:
            one.write(window)
        assert (moved["pf_emulate"], moved["mmu_pte_write"], moved["lock.pte_write"]) == (1, 1, 1)
        assert "mmu_pde_zapped" not in moved
        assert one.page(table)["flooding"] == turn
        assert one.page(table)["sptes"] == before
    one.write(window)
    assert not one.pages(table)
    one.audit()


def test_e144_use_as_a_table_resets_the_count(guest: GuestMaker) -> None:
    one, (a, _) = guest("lru:3")
    table = one.entry(a, PAGE, 2) & ~0xFFF
    window = one.window(a, table)
    one.visit(a)
    for index in range(100, 110):
        one.store(window + 8 * index, 0)
        one.map(a, PAGE + (index << 12), 0x400000, USED)
        one.read(PAGE + (index << 12))  # a fault through the table
    assert one.counters()["mmu_flooded"] == 0
    one.audit()


@pytest.mark.parametrize(
    ("offset", "size", "zapped"),
    [
        (8, 1, False),
        (9, 1, True),
        (8, 2, True),
        (8, 4, False),
        (12, 4, False),
        (14, 4, True),
        (8, 8, False),
        (12, 8, True),
    ],
)
def test_e144_a_misaligned_write_zaps_the_page_at_once(guest: GuestMaker, offset: int, size: int, zapped: bool) -> None:  # noqa: FBT001
    one, (a, _) = guest("lru:3")
    table = one.entry(a, PAGE, 2) & ~0xFFF
    window = one.window(a, table)
    one.visit(a)
    one.store(window + 8 * 100 + offset, 0, size)
    assert (not one.pages(table)) == zapped
    assert one.counters()["mmu_flooded"] == zapped
    one.audit()


def test_e148_zapping_a_middle_page_unlinks_both_sides_and_keeps_the_rest(guest: GuestMaker) -> None:
    one, (a, b) = guest("lru:3")
    one.poke(b, one.peek(a))
    one.visit(a, b)
    level_2 = one.entry(a, PAGE, 2) & ~0xFFF
    leaf, level_3 = one.entry(a, PAGE) & ~0xFFF, one.entry(a, PAGE, 3) & ~0xFFF
    one.trace()
    one.run(OpKind.ZAP_GFN, level_2 >> 12)
    assert [(record[0], record[4] << 12) for record in one.trace()] == [(EVENT_PREPARE_ZAP_PAGE, level_2)]
    assert not one.pages(level_2)
    assert one.page(leaf)["parents"] == []
    assert one.page(level_3)["sptes"] == {}
    assert len(one.page(level_3)["parents"]) == 2
    one.audit()
    assert one.read(PAGE).value == 0x400000
    assert [(kind, gfn << 12, created) for kind, _, _, _, gfn, created in one.trace()][:2] == [
        (EVENT_GET_PAGE, level_2, 1),
        (EVENT_GET_PAGE, leaf, 0),
    ]
    one.audit()


def test_e148_zapping_takes_the_unsync_descendants_along(guest: GuestMaker) -> None:
    one, (a, _), entry, window = writable_table(guest)
    one.store(window, 0x500000 | USED)
    level_3 = one.entry(a, PAGE, 3) & ~0xFFF
    one.trace()
    one.run(OpKind.ZAP_GFN, level_3 >> 12)
    assert [(record[0], record[2]) for record in one.trace()] == [
        (EVENT_PREPARE_ZAP_PAGE, 3),
        (EVENT_PREPARE_ZAP_PAGE, 1),
        (EVENT_SYNC_PAGE, 1),
    ]
    assert not one.pages(entry & ~0xFFF)
    assert one.counters()["mmu_unsync"] == 0
    one.audit()


def test_e149_an_invalid_pinned_root_is_replaced_before_the_next_access(guest: GuestMaker) -> None:
    one, (a, _) = guest("lru:3")
    one.visit(a)
    old = one.roots()[0][1]
    one.run(OpKind.ZAP_GFN, a >> 12)
    assert one.roots()[0][1] == old
    with one.moved() as moved:
        assert one.read(PAGE).value == 0x400000
    assert (moved["lock.free"], moved["lock.load"]) == (1, 1)
    new = one.page(a)
    assert (new["invalid"], new["root_count"]) == (False, 1)
    one.audit()


@pytest.mark.parametrize("policy", ["seed", "lru:3"])
def test_e151_only_obsolete_roots_are_freed(guest: GuestMaker, policy: str) -> None:
    one, (a, b) = guest(policy)
    one.visit(a, b)
    one.run(OpKind.ZAP_GFN, a >> 12)
    current = one.roots()[0]
    one.enter()
    assert one.roots()[0] == current
    assert one.cached()[0] is None
    one.run(OpKind.ZAP_GFN, b >> 12)
    one.visit(a)
    one.audit()


@pytest.mark.parametrize("policy", POLICIES)
def test_e147_the_reverse_map_is_emptied_above_a_thousand_aliases(guest: GuestMaker, policy: str) -> None:
    one, (a, _) = guest(policy)
    one.cr3(a)
    first = one.map(a, 9 << 39, 0x480000, USED)
    second = one.map(a, (9 << 39) + (1 << 21), 0x480000, USED) & ~0xFFF
    for index in range(1001):
        one.poke((first if index < 512 else second) + 8 * (index & 511), 0x480000 | USED)
        one.read((9 << 39) + (index << 12))
    assert one.counters()["mmu_recycled"] == 1
    leaves = [spte for page in one.machine.shadow_pages() if page["level"] == 1 for spte in page["sptes"].values()]
    assert [sptes.leaf_gfn(spte) for spte in leaves].count(0x480) == 1  # the retried access put the last one back
    one.audit()
