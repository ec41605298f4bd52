"""Shadow pages: sharing, direct pages, unsync and sync, writes to tables, zaps (E130-E151)."""

import pytest
from tests.behaviour.guest import PAGE, RWU, USED, Guest, GuestMaker, P, U, W
from tests.behaviour.machines import AnyMachine

from shadow_mmu.model import spte as sptes
from shadow_mmu.model.constants import (
    EVENT_UNSYNC_PAGE,
    RAM_BASE_PFN,
)
from shadow_mmu.types import OpFlag, OutcomeCode

USER = int(OpFlag.USER)


def writable_table(
    guest: GuestMaker, policy: str = "lru:3", *, vcpus: int = 1
) -> tuple[Guest[AnyMachine], list[int], int, int]:
    """Return a guest that maps the level-1 table of PAGE: (guest, roots, gpa of PAGE's entry, gva of it)."""
    one, roots = guest(policy, vcpus=vcpus)
    entry = one.entry(roots[0], PAGE)
    window = one.window(roots[0], entry)
    one.visit(roots[0])
    return one, roots, entry, window


def spte(one: Guest[AnyMachine], table: int, index: int) -> int:
    """Return an entry of the newest shadow page of a table."""
    return int(one.page(table & ~0xFFF)["sptes"].get(index, 0))


def test_e130_one_page_for_one_gfn_and_role_however_many_roots_and_vcpus(guest: GuestMaker) -> None:
    one, (a, b) = guest("lru:3", vcpus=2)
    one.poke(b, one.peek(a))  # both roots lead to A's tables
    for one.vcpu in (0, 1):
        one.visit(a, b)
    tables = [one.entry(a, PAGE, level) & ~0xFFF for level in (3, 2, 1)]
    assert [len(one.pages(table)) for table in tables] == [1, 1, 1]
    assert len(one.page(tables[0])["parents"]) == 2
    assert one.counters()["mmu_cache_miss"] == 5
    one.audit()


@pytest.mark.parametrize("level", [2, 3])
def test_e132_a_large_guest_leaf_gets_direct_pages_with_its_rights(guest: GuestMaker, level: int) -> None:
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


def test_e133_a_changed_leaf_right_replaces_the_direct_page(guest: GuestMaker) -> None:
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
def test_e134_a_write_to_an_upper_table_always_traps(guest: GuestMaker, level: int) -> None:
    one, (a, _) = guest("lru:3")
    table = one.entry(a, PAGE, level) & ~0xFFF
    window = one.window(a, table)
    one.visit(a)
    for turn in range(2):
        with one.moved() as moved:
            one.store(window + 8 * (100 + turn), 0)
        assert moved["pf_emulate"] == moved["lock.pte_write"] == 1
        assert not one.page(table)["unsync"]
        one.fetch(PAGE)
    one.audit()


def test_e135_first_write_to_a_leaf_table_unsyncs_it_and_marks_up_to_the_root(guest: GuestMaker) -> None:
    one, (a, _), entry, window = writable_table(guest)
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


def test_e136_two_roles_of_one_table_are_unsync_together(guest: GuestMaker) -> None:
    one, (a, _) = guest("lru:3")
    entry = one.entry(a, PAGE)
    other = 1 << 21
    one.poke(one.entry(a, other, 2), entry & ~0xFFF | P | W)  # the same table again, supervisor only
    window = one.window(a, entry)
    one.visit(a)
    one.read(other + PAGE)
    table = entry & ~0xFFF
    assert [p["access"] for p in one.pages(table)] == [7, 3]
    with one.moved() as moved:
        one.store(window, 0x500000 | USED)
    assert moved["mmu_unsync"] == 2
    assert [p["unsync"] for p in one.pages(table)] == [True, True]
    one.audit()


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
def test_e139_sync_by_entry(guest: GuestMaker, gpte: int, expected: str) -> None:
    one, (a, _), entry, window = writable_table(guest)
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


def test_e139_sync_never_makes_a_table_writable(guest: GuestMaker) -> None:
    one, (a, _), entry, window = writable_table(guest)
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


def test_e142_a_child_with_stale_entries_is_synced_before_it_is_linked(guest: GuestMaker) -> None:
    one, (a, b) = guest("lru:3")
    entry, beside = one.entry(a, PAGE), PAGE + 0x1000
    one.map(a, beside, 0x402000, USED)
    level_3_of_a = one.entry(a, PAGE, 3) & ~0xFFF
    window = one.window(b, entry)
    one.visit(a)
    one.read(beside)
    one.visit(b)
    one.store(window + 8, 0x500000 | USED)
    free_slot = one.entry(b, 7 << 39, 4)
    assert not one.peek(free_slot) & P
    one.poke(free_slot, level_3_of_a | RWU)  # not present -> present: the guest need not flush
    assert one.read((7 << 39) + PAGE).value == 0x400000  # this fault links it
    assert one.read((7 << 39) + beside).value == 0x500000
    one.audit()


def test_e137_unsync_is_refused_for_a_tracked_gfn(guest: GuestMaker) -> None:
    one, (a, _) = guest("lru:3")
    window = one.window(a, a)
    one.visit(a)
    with one.moved() as moved:
        one.store(window + 8 * 300, 0)
    assert (moved["pf_emulate"], "mmu_unsync" in moved) == (1, False)
    assert not any(page["unsync"] for page in one.machine.shadow_pages())


@pytest.mark.parametrize("policy", ["locked", "seed", "lru:3"])
def test_e137_only_the_old_rule_lets_a_prefetch_unsync(guest: GuestMaker, policy: str) -> None:
    """INVLPG prefetches under the old rule: the entry it refills maps a synced table writable."""
    one, (a, _), _, window = writable_table(guest, policy)
    beside = one.map(a, 1 << 30, 0x402000, USED) & ~0xFFF
    one.read(1 << 30)
    one.store(window + 8, beside | USED)
    assert not one.page(beside)["unsync"]
    with one.moved() as moved:
        one.invlpg(PAGE + 0x1000)
    assert moved.get("mmu_unsync", 0) == one.page(beside)["unsync"] == (policy != "lru:3")
    one.audit()


def test_e140_sync_write_protects_and_flushes_before_it_reads(guest: GuestMaker) -> None:
    one, (a, _), _, window = writable_table(guest, vcpus=2)
    one.vcpu = 1
    one.visit(a)
    one.store(window, 0x500000 | USED)  # vCPU 1 has the table writable in its TLB
    assert window >> 12 in one.state().tlb
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


def test_c2_pfn_is_not_gfn(guest: GuestMaker) -> None:
    one, (a, _) = guest("lru:3")
    one.visit(a)
    leaf = spte(one, one.entry(a, PAGE), 1)
    assert leaf >> 12 & 0xFFFFFFFFFF == 0x400 + RAM_BASE_PFN
