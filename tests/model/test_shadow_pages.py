"""Shadow pages: sharing, direct pages, unsync and sync, writes to tables, zaps (E130-E151)."""

import pytest
from tests.model.support import RWU, USED, Guest, P, U, W
from tests.model.test_roots import PAGE, POLICIES, guest, visit

from shadow_mmu.model import spte as sptes
from shadow_mmu.model.constants import (
    EVENT_GET_PAGE,
    EVENT_PREPARE_ZAP_PAGE,
    EVENT_SYNC_PAGE,
    EVENT_UNSYNC_PAGE,
    RAM_BASE_PFN,
)
from shadow_mmu.model.unsync import try_to_unsync
from shadow_mmu.types import OpFlag, OpKind, OutcomeCode

USER = int(OpFlag.USER)


def writable_table(policy: str = "lru:3", *, vcpus: int = 1, trace: bool = False) -> tuple[Guest, list[int], int, int]:
    """Return a guest that maps the level-1 table of PAGE: (guest, roots, gpa of PAGE's entry, gva of it)."""
    one, roots = guest(policy, vcpus=vcpus, trace=trace)
    entry = one.entry(roots[0], PAGE)
    window = one.window(roots[0], entry)
    visit(one, roots[0])
    return one, roots, entry, window


def spte(one: Guest, table: int, index: int) -> int:
    """Return an entry of the newest shadow page of a table."""
    return int(one.page(table & ~0xFFF)["sptes"].get(index, 0))


def test_e130_one_page_for_one_gfn_and_role_however_many_roots_and_vcpus() -> None:
    one, (a, b) = guest("lru:3", vcpus=2)
    one.poke(b, one.peek(a))  # both roots lead to A's tables
    for one.vcpu in (0, 1):
        visit(one, a, b)
    tables = [one.entry(a, PAGE, level) & ~0xFFF for level in (3, 2, 1)]
    assert [len(one.pages(table)) for table in tables] == [1, 1, 1]
    assert len(one.page(tables[0])["parents"]) == 2
    assert one.counters()["mmu_cache_miss"] == 5
    one.audit()


@pytest.mark.parametrize("level", [2, 3])
def test_e132_a_large_guest_leaf_gets_direct_pages_with_its_rights(level: int) -> None:
    one, (a, _) = guest("lru:3", memory=3 << 30)
    gva, base, span = 5 << 30, 1 << 30, 1 << (3 + 9 * level)
    one.map(a, gva, base, P | U | (1 << 5), level)
    one.cr3(a)
    offset = span // 2 + 0x5123
    assert one.read(gva + offset, USER).value == base + offset
    direct = sorted((p for p in one.machine.shadow_pages() if p["direct"]), key=lambda p: -p["level"])
    assert [p["level"] for p in direct] == list(range(level - 1, 0, -1))
    assert all(p["access"] == 5 for p in direct)
    for page in direct:
        assert page["gfn"] == (base + offset & ~((1 << (12 + 9 * page["level"])) - 1)) >> 12
    leaf = direct[-1]["sptes"][(gva + offset >> 12) & 511]
    assert sptes.leaf_gfn(leaf) == (base + offset) >> 12
    assert one.write(gva + offset, USER).code == OutcomeCode.PAGE_FAULT
    one.audit()


def test_e133_a_changed_leaf_right_replaces_the_direct_page() -> None:
    one, (a, _) = guest("lru:3", vcpus=2)
    gva = 5 << 30
    at = one.map(a, gva, 0x400000, RWU, level=2)
    one.cr3(a)
    one.read(gva)
    (clean,) = [p for p in one.machine.shadow_pages() if p["direct"]]
    assert clean["access"] == 5  # D is clear: no W
    with one.moved() as moved:
        assert one.write(gva).code == OutcomeCode.OK
    assert one.peek(at) & 1 << 6
    assert moved["remote_tlb_flush_requests"] == 1
    pages = {p["access"]: p for p in one.machine.shadow_pages() if p["direct"]}
    assert pages[7]["parents"] == clean["parents"]
    assert pages[5]["parents"] == []
    assert pages[7]["sptes"][0] & sptes.W
    one.audit()


@pytest.mark.parametrize("level", [4, 3, 2])
def test_e134_a_write_to_an_upper_table_always_traps(level: int) -> None:
    one, (a, _) = guest("lru:3")
    table = one.entry(a, PAGE, level) & ~0xFFF
    window = one.window(a, table)
    visit(one, a)
    for turn in range(2):
        with one.moved() as moved:
            one.store(window + 8 * (100 + turn), 0)
        assert moved["pf_emulate"] == moved["lock.pte_write"] == 1
        assert not one.page(table)["unsync"]
        one.fetch(PAGE)
    one.audit()


def test_e135_first_write_to_a_leaf_table_unsyncs_it_and_marks_up_to_the_root() -> None:
    one, (a, _), entry, window = writable_table(trace=True)
    one.trace()
    with one.moved() as moved:
        one.store(window, 0x500000 | USED)
    assert moved["mmu_unsync"] == moved["pf_fixed"] == 1
    assert "lock.pte_write" not in moved
    assert [record[0] for record in one.trace() if record[0] == EVENT_UNSYNC_PAGE] == [EVENT_UNSYNC_PAGE]
    assert one.page(entry & ~0xFFF)["unsync"]
    for level in (2, 3, 4):
        assert one.page(one.entry(a, PAGE, level) & ~0xFFF)["unsync_children"] == 1
    with one.moved() as moved:
        one.store(window, 0x600000 | USED)
    assert moved == {}  # the second write needs no exit
    one.audit()


def test_e136_two_roles_of_one_table_are_unsync_together() -> None:
    one, (a, _) = guest("lru:3")
    entry = one.entry(a, PAGE)
    other = 1 << 21
    one.poke(one.entry(a, other, 2), entry & ~0xFFF | P | W)  # the same table again, supervisor only
    window = one.window(a, entry)
    visit(one, a)
    one.read(other + PAGE)
    table = entry & ~0xFFF
    assert [p["access"] for p in one.pages(table)] == [7, 3]
    with one.moved() as moved:
        one.store(window, 0x500000 | USED)
    assert moved["mmu_unsync"] == 2
    assert [p["unsync"] for p in one.pages(table)] == [True, True]
    one.audit()


def test_e137_unsync_is_refused_for_a_tracked_gfn_while_syncing_and_on_prefetch() -> None:
    one, (a, _), entry, _ = writable_table()
    vm, vcpu = one.machine.vm, one.machine.vm.vcpus[0]
    table, root = entry >> 12, a >> 12
    assert not try_to_unsync(vm, vcpu, root, synchronizing=False, prefetch=False)
    assert not try_to_unsync(vm, vcpu, table, synchronizing=True, prefetch=False)
    assert not try_to_unsync(vm, vcpu, table, synchronizing=False, prefetch=True)
    assert not one.page(entry & ~0xFFF)["unsync"]
    assert try_to_unsync(vm, vcpu, 0x400, synchronizing=True, prefetch=True)  # no table
    assert try_to_unsync(vm, vcpu, table, synchronizing=False, prefetch=False)
    assert one.page(entry & ~0xFFF)["unsync"]
    one.audit()


@pytest.mark.parametrize("policy", ["locked", "seed"])
def test_e137_the_old_rule_lets_a_prefetch_unsync(policy: str) -> None:
    one, _, entry, _ = writable_table(policy)
    vm = one.machine.vm
    assert try_to_unsync(vm, vm.vcpus[0], entry >> 12, synchronizing=False, prefetch=True)


@pytest.mark.parametrize(
    ("gpte", "expected"),
    [
        (0x402000 | USED, "kept"),
        (0x402000 | USED | 1 << 9, "kept"),  # a bit that is no right
        (0, "dropped"),
        (0x402000 | USED & ~(1 << 5), "dropped"),  # A = 0
        (0x402000 | USED | 1 << 50, "dropped"),  # a reserved bit
        (0x403000 | USED, "dropped"),  # another frame
        (0x402000 | USED & ~W, "read only"),
        (0x402000 | USED & ~(1 << 6), "read only"),  # D = 0
        (0x402000 | USED & ~U, "supervisor"),
        (0x402000 | USED | 1 << 63, "no fetch"),
    ],
)
def test_e139_sync_by_entry(gpte: int, expected: str) -> None:
    one, (a, _), entry, window = writable_table()
    gva, neighbour = PAGE + 0x1000, PAGE + 0x2000
    one.map(a, gva, 0x402000, USED)
    one.map(a, neighbour, 0x404000, USED)
    one.write(gva)
    one.write(neighbour)
    before, beside = spte(one, entry, 2), spte(one, entry, 3)
    one.store(window + 8, gpte)
    one.cr3(a)
    one.enter()
    after = {
        "kept": before,
        "dropped": 0,
        "read only": before & ~(sptes.WRITABLE),
        "supervisor": before & ~sptes.U,
        "no fetch": before | sptes.NX,
    }[expected]
    assert spte(one, entry, 2) == after
    assert spte(one, entry, 3) == beside
    assert not one.page(entry & ~0xFFF)["unsync"]
    one.audit()


def test_e139_sync_never_makes_a_table_writable() -> None:
    one, (a, _), entry, window = writable_table()
    alias = one.map(a, PAGE + 0x1000, entry & ~0xFFF, P | U | 1 << 5)
    one.read(PAGE + 0x1000)
    one.store(
        window + 8, entry & ~0xFFF | USED
    )  # the read-only alias of the table becomes writable in the guest's eyes
    assert alias == entry + 8
    one.cr3(a)
    one.enter()
    assert not spte(one, entry, 2) & sptes.W
    one.audit()


def test_e140_sync_write_protects_and_flushes_before_it_reads() -> None:
    one, (a, _), _, window = writable_table(vcpus=2)
    one.vcpu = 1
    visit(one, a)
    one.store(window, 0x500000 | USED)  # vCPU 1 has the table writable in its TLB
    assert window >> 12 in one.machine.vm.vcpus[1].tlb.entries
    one.vcpu = 0
    one.cr3(a)
    with one.moved() as moved:
        one.enter()
    assert moved["remote_tlb_flush_requests"] == 2  # write protection, and the entry that was dropped
    one.vcpu = 1
    with one.moved() as moved:
        one.store(window, 0x600000 | USED)  # traps again: nothing is lost
    assert moved["mmu_unsync"] == 1
    one.vcpu = 0
    one.cr3(a)
    assert one.read(PAGE).value == 0x600000
    one.audit()


def test_e142_a_child_with_stale_entries_is_synced_before_it_is_linked() -> None:
    one, (a, b) = guest("lru:3")
    entry, beside = one.entry(a, PAGE), PAGE + 0x1000
    one.map(a, beside, 0x402000, USED)
    level_3_of_a = one.entry(a, PAGE, 3) & ~0xFFF
    window = one.window(b, entry)
    visit(one, a)
    one.read(beside)
    visit(one, b)
    one.store(window + 8, 0x500000 | USED)
    free_slot = one.entry(b, 7 << 39, 4)
    assert not one.peek(free_slot) & P
    one.poke(free_slot, level_3_of_a | RWU)  # not present -> present: the guest need not flush
    assert one.read((7 << 39) + PAGE).value == 0x400000  # this fault links it
    assert one.read((7 << 39) + beside).value == 0x500000
    one.audit()


@pytest.mark.parametrize("size", [8, 4])
def test_e143_an_emulated_write_zaps_exactly_the_entry(size: int) -> None:
    one, (a, _) = guest("lru:3")
    second = 1 << 21
    one.map(a, second, 0x402000, USED)
    table = one.entry(a, PAGE, 2) & ~0xFFF
    window = one.window(a, table)
    visit(one, a)
    one.read(second)
    assert {0, 1} <= set(one.page(table)["sptes"])
    with one.moved() as moved:
        one.store(window + 8, one.peek(table + 8), size)
    assert moved["mmu_pde_zapped"] == 1
    assert moved["remote_tlb_flush_requests"] == 1
    assert set(one.page(table)["sptes"]) == {0}
    assert one.read(second).value == 0x402000
    one.audit()


def test_e143_a_hypervisor_write_drops_what_was_made_from_the_words_it_changes() -> None:
    one, (a, _) = guest("lru:3")
    entry = one.entry(a, PAGE)
    one.map(a, PAGE + 0x1000, 0x402000, USED)
    visit(one, a)
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


def test_e144_the_third_write_without_a_use_in_between_zaps_the_page() -> None:
    one, (a, _) = guest("lru:3")
    table = one.entry(a, PAGE, 2) & ~0xFFF
    window = one.window(a, table)
    visit(one, a)
    counts = []
    for index in range(100, 103):
        counts.append(one.page(table)["flooding"])
        one.store(window + 8 * index, 0)
    assert counts == [0, 1, 2]
    assert not one.pages(table)
    assert one.counters()["mmu_flooded"] == 1
    one.audit()


def test_e144_a_translated_write_counts_and_zaps_no_entry() -> None:
    one, (a, _) = guest("lru:3")
    table = one.entry(a, PAGE, 2) & ~0xFFF
    window = one.window(a, table)
    visit(one, a)
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


def test_e144_use_as_a_table_resets_the_count() -> None:
    one, (a, _) = guest("lru:3")
    table = one.entry(a, PAGE, 2) & ~0xFFF
    window = one.window(a, table)
    visit(one, a)
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
def test_e144_a_misaligned_write_zaps_the_page_at_once(offset: int, size: int, zapped: bool) -> None:  # noqa: FBT001
    one, (a, _) = guest("lru:3")
    table = one.entry(a, PAGE, 2) & ~0xFFF
    window = one.window(a, table)
    visit(one, a)
    one.store(window + 8 * 100 + offset, 0, size)
    assert (not one.pages(table)) == zapped
    assert one.counters()["mmu_flooded"] == zapped
    one.audit()


def test_e148_zapping_a_middle_page_unlinks_both_sides_and_keeps_the_rest() -> None:
    one, (a, b) = guest("lru:3", trace=True)
    one.poke(b, one.peek(a))
    visit(one, a, b)
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


def test_e148_zapping_takes_the_unsync_descendants_along() -> None:
    one, (a, _), entry, window = writable_table(trace=True)
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


def test_e149_an_invalid_pinned_root_is_replaced_before_the_next_access() -> None:
    one, (a, _) = guest("lru:3")
    visit(one, a)
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
def test_e151_only_obsolete_roots_are_freed(policy: str) -> None:
    one, (a, b) = guest(policy)
    visit(one, a, b)
    one.run(OpKind.ZAP_GFN, a >> 12)
    current = one.roots()[0]
    one.enter()
    assert one.roots()[0] == current
    assert one.cached()[0] is None
    one.run(OpKind.ZAP_GFN, b >> 12)
    visit(one, a)
    one.audit()


@pytest.mark.parametrize("policy", POLICIES)
def test_e147_the_reverse_map_is_emptied_above_a_thousand_aliases(policy: str) -> None:
    one, (a, _) = guest(policy)
    one.cr3(a)
    for index in range(1001):
        gva = (9 << 39) + (index << 12)
        one.map(a, gva, 0x480000, USED)
        one.read(gva)
    assert one.counters()["mmu_recycled"] == 1
    assert len(one.machine.vm.books.rmaps[0x480]) == 1  # the retried access put the last one back
    one.audit()


def test_c2_pfn_is_not_gfn() -> None:
    one, (a, _) = guest("lru:3")
    visit(one, a)
    leaf = spte(one, one.entry(a, PAGE), 1)
    assert leaf >> 12 & 0xFFFFFFFFFF == 0x400 + RAM_BASE_PFN
