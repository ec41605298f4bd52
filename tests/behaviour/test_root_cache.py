"""The root cache and what a CR3 write costs and does, under each policy (E001-E026, E032)."""

import pytest
from tests.behaviour.guest import CACHING, PAGE, POLICIES, RWU, USED, GuestMaker

from shadow_mmu.model.constants import (
    DUMMY_ROOT,
    INVALID_ROOT,
    REQ_LOAD_MMU_PGD,
    REQ_MMU_SYNC,
    REQ_TLB_FLUSH_CURRENT,
    WORD,
)
from shadow_mmu.types import OpKind, OutcomeCode


@pytest.mark.parametrize("policy", CACHING)
def test_e001_return_to_the_previous_cr3_takes_no_lock(guest: GuestMaker, policy: str) -> None:
    one, (a, b) = guest(policy)
    one.visit(a, b)
    before = one.locks()
    one.visit(a, b, a)
    assert one.locks() == before


def test_e001_before_the_patch_every_switch_takes_three(guest: GuestMaker) -> None:
    one, (a, b) = guest("locked")
    one.visit(a, b)
    with one.moved() as moved:
        one.visit(a)
    assert {name: count for name, count in moved.items() if name.startswith("lock.")} == {
        "lock.free": 1,
        "lock.load": 1,
        "lock.sync": 1,
    }


def test_e002_previous_root_and_tag_start_invalid_and_a_context_init_forgets_them(guest: GuestMaker) -> None:
    one, (a, b) = guest("seed")
    assert one.roots()[1] == (WORD, INVALID_ROOT)
    one.visit(a, b)
    assert one.roots()[1][0] == a
    one.run(OpKind.WRITE_CR0, 0x80040033)
    assert one.roots()[1] == (WORD, INVALID_ROOT)
    before = one.lock_reasons()["load"]
    one.visit(a)
    assert one.lock_reasons()["load"] == before + 1


@pytest.mark.parametrize("policy", ["seed", "lru:1"])
def test_e005_a_miss_swaps_the_outgoing_root_into_the_cache(guest: GuestMaker, policy: str) -> None:
    one, (a, b, c) = guest(policy, 3)
    one.visit(a, b)
    one.visit(c)
    assert one.cached() == [b]
    assert one.page(a)["root_count"] == 0
    before = one.locks()
    one.visit(b)
    assert one.locks() == before
    with one.moved() as moved:
        one.visit(a)
    assert moved["lock.load"] == 1


def test_e006_the_tag_is_recorded_also_after_the_slow_path(guest: GuestMaker) -> None:
    one, (a, b) = guest("seed")
    one.visit(a)
    with one.moved() as slow:
        one.visit(b)
    assert slow["lock.load"] == 1
    with one.moved() as fast:
        one.visit(a)
    assert not [name for name in fast if name.startswith("lock.")]


def test_e007_seed_defect_s1_a_failed_check_leaves_tag_and_root_apart(guest: GuestMaker) -> None:
    one, (a, b) = guest("seed")
    one.visit(b, a)
    root_of_b = one.roots()[1][1]
    one.cr3(0x7000000)  # outside memory: no swap, the current root is freed, and the tag becomes A's all the same
    assert one.roots() == [(0, INVALID_ROOT), (a, root_of_b)]
    one.cr3(a)
    assert one.roots()[0][1] == root_of_b  # a hit on the wrong tables
    assert one.fetch(PAGE).code == OutcomeCode.TRIPLE_FAULT  # which is what masks it


def test_e007_tag_and_root_stay_together_in_the_modern_cache(guest: GuestMaker) -> None:
    one, (a, b) = guest("lru:1")
    one.visit(b, a)
    hpa = dict(one.roots())
    one.cr3(0x7000000)
    one.enter()
    assert one.roots() == [(0x7000000, DUMMY_ROOT), (a, hpa[a])]
    one.visit(a)
    assert one.fetch(PAGE).value == 0x400000


@pytest.mark.parametrize("policy", POLICIES)
def test_e008_same_value_write_syncs_and_flushes_and_switches_nothing(guest: GuestMaker, policy: str) -> None:
    one, (a, _) = guest(policy)
    entry = one.entry(a, PAGE)
    window = one.window(a, entry)
    one.visit(a)
    one.store(window, 0x500000 | USED)
    assert one.page(entry & ~0xFFF)["unsync"]
    assert one.read(PAGE).value == 0x400000  # stale, and legally so
    before = one.roots()
    one.cr3(a)
    assert one.roots() == before
    assert one.read(PAGE).value == 0x500000
    assert one.machine.stats()["cr3"]["same"] == 1
    one.audit()


@pytest.mark.parametrize("policy", ["locked", "seed"])
def test_e011_bit_63_is_stripped_without_pcid(guest: GuestMaker, policy: str) -> None:
    one, (a, b) = guest(policy)
    one.visit(a)
    assert one.cr3(b | 1 << 63).code == OutcomeCode.OK
    assert one.state().cr3 == b
    assert one.fetch(PAGE).value == 0x401000


def test_e012_bit_63_is_gp_without_pcid(guest: GuestMaker) -> None:
    one, (a, b) = guest("lru:3")
    one.visit(a)
    before = one.machine.state_words()
    for value in (a | 1 << 63, b | 1 << 63):
        assert one.cr3(value) == (OutcomeCode.GP, 0, 0)
        assert one.machine.state_words() == before


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("bit", [46, 51, 52, 62])
def test_e014_reserved_cr3_bits_are_gp_before_any_effect(guest: GuestMaker, policy: str, bit: int) -> None:
    one, (a, b) = guest(policy)
    one.visit(a, b)
    before = one.machine.state_words()
    assert one.cr3(a | 1 << bit) == (OutcomeCode.GP, 0, 0)
    assert one.machine.state_words() == before


@pytest.mark.parametrize("policy", ["locked", "seed"])
def test_e015_a_root_outside_memory_is_a_triple_fault(guest: GuestMaker, policy: str) -> None:
    one, (a, _) = guest(policy)
    one.visit(a)
    assert one.cr3(0x7000000).code == OutcomeCode.OK
    assert one.fetch(PAGE).code == OutcomeCode.TRIPLE_FAULT
    one.cr3(a)
    assert one.fetch(PAGE).code == OutcomeCode.TRIPLE_FAULT  # for good
    assert one.enter().code == OutcomeCode.TRIPLE_FAULT


def test_e016_a_root_outside_memory_is_the_dummy_root(guest: GuestMaker) -> None:
    one, (a, _) = guest("lru:3")
    one.visit(a)
    before = one.lock_reasons()
    one.cr3(0x7000000)
    assert one.fetch(PAGE) == (OutcomeCode.PAGE_FAULT, PAGE, 16)
    assert one.roots()[0] == (0x7000000, DUMMY_ROOT)
    assert one.lock_reasons() == before
    one.machine.add_memslot(0x7000000, 0x10000)
    for table in range(3):
        one.poke(0x7000000 + (table << 12), 0x7000000 + (table + 1 << 12) | RWU)
    one.poke(0x7003000 + (PAGE >> 9), 0x400000 | RWU)
    assert one.fetch(PAGE).value == 0x400000  # the same CR3: the slot exists by now
    one.visit(a)
    one.audit()


def test_e019_a_hit_syncs_in_the_switch_under_seed_and_requests_it_under_lru(guest: GuestMaker) -> None:
    for policy in ("seed", "lru:3"):
        one, (a, b) = guest(policy)
        entry = one.entry(a, PAGE)
        window = one.window(a, entry)
        one.visit(b, a)
        one.store(window, 0x500000 | USED)
        one.cr3(b)
        one.enter()
        with one.moved() as switch:
            one.cr3(a)
        with one.moved() as entered:
            one.enter()
        assert ("lock.sync" in switch, "lock.sync" in entered) == ((True, False) if policy == "seed" else (False, True))
        assert one.read(PAGE).value == 0x500000


@pytest.mark.parametrize("policy", CACHING)
def test_e020_a_hit_clears_the_roots_flooding_count(guest: GuestMaker, policy: str) -> None:
    one, (a, b) = guest(policy)
    window = one.window(a, a)
    one.visit(b, a)
    one.store(window + 8 * 300, 0)
    one.store(window + 8 * 301, 0)
    flooding = one.page(a)["flooding"]
    assert flooding == 1  # the second write found the count zeroed by the fault on its own path, and counted itself
    one.cr3(b)
    assert one.page(a)["flooding"] == 1
    one.cr3(a)
    assert one.page(a)["flooding"] == 0


def test_e025_three_previous_roots_serve_four_cr3s_and_not_five(guest: GuestMaker) -> None:
    one, tables = guest("lru:3", 5)
    a, b, c, d, e = tables
    one.visit(a, b, c, d)
    with one.moved() as moved:
        one.visit(a)
    assert "lock.load" not in moved
    one.visit(b, c, d, e)
    with one.moved() as moved:
        one.visit(a)
    assert moved["lock.load"] == 1


@pytest.mark.parametrize(("target", "after"), [(0, "C210"), (1, "2C10"), (2, "1C20"), (3, "0C21"), (4, "4C21")])
def test_e026_rotation_order_of_a_hit_at_each_position_and_of_a_miss(
    guest: GuestMaker, target: int, after: str
) -> None:
    one, tables = guest("lru:3", 5)
    names = dict(zip(tables, "012C4", strict=True))
    one.visit(*tables[:4])
    one.cr3({0: tables[3], 1: tables[2], 2: tables[1], 3: tables[0], 4: tables[4]}[target])
    one.enter()
    order = "".join(names[pgd] for pgd, _ in one.roots())
    assert order == after
    one.audit()


@pytest.mark.parametrize("size", range(17))
def test_e032_the_cache_holds_n_roots(guest: GuestMaker, size: int) -> None:
    one, tables = guest(f"lru:{size}", size + 2)
    one.visit(*tables)
    with one.moved() as moved:
        one.visit(*tables[:0:-1])  # the N + 1 most recent ones, from the current one on
    assert "lock.load" not in moved
    with one.moved() as moved:
        one.visit(tables[0])
    assert moved["lock.load"] == 1
    assert len(one.roots()) == size + 1
    one.audit()


@pytest.mark.parametrize("policy", CACHING)
def test_e003_a_previous_root_is_freed_alone_and_so_is_the_current_one(guest: GuestMaker, policy: str) -> None:
    one, (a, b) = guest(policy)
    one.visit(a, b)
    current = one.roots()[0][1]
    one.run(OpKind.ZAP_GFN, a >> 12)
    one.enter()
    assert [hpa for _, hpa in one.roots()[:2]] == [current, INVALID_ROOT]
    one.visit(a, b)
    previous = one.roots()[1]
    one.run(OpKind.ZAP_GFN, b >> 12)
    with one.moved() as moved:
        one.enter()
    assert (moved["lock.free"], moved["lock.load"]) == (1, 1)
    assert one.roots()[1] == previous
    assert one.roots()[0][1] == one.page(b)["hpa"]
    one.audit()


def test_e004_freeing_nothing_valid_takes_no_lock(guest: GuestMaker) -> None:
    one, (a, b) = guest("lru:3")
    one.visit(a, b)
    with one.moved() as moved:
        one.run(OpKind.WRITE_CR0, 0x80040033)
    assert moved == {"lock.free": 1}
    with one.moved() as moved:
        one.run(OpKind.WRITE_CR0, 0x80050033)
    assert moved == {}


def test_e022_the_hardware_load_is_a_request_serviced_at_entry(guest: GuestMaker) -> None:
    one, (a, b) = guest("lru:3")
    one.visit(a, b)
    one.cr3(a)
    assert one.state().requests == REQ_LOAD_MMU_PGD | REQ_MMU_SYNC | REQ_TLB_FLUSH_CURRENT
    one.run(OpKind.WRITE_CR0, 0x80040033)  # a mode change between the switch and the entry
    one.enter()
    assert one.state().requests == 0
    (root,) = [page for page in one.machine.shadow_pages() if page["hpa"] == one.roots()[0][1]]
    assert root["gfn"] << 12 == a
    assert not root["role"] & 1 << 13  # cr0_wp, as it is now


@pytest.mark.parametrize("policy", ["lru:1", "lru:3"])
def test_e024_a_root_whose_role_word_differs_is_no_hit(guest: GuestMaker, policy: str) -> None:
    one, (a, b) = guest(policy)
    one.visit(b, a)
    one.run(OpKind.ZAP_GFN, b >> 12)  # pinned by this vCPU's cache; `invalid` is a bit of its role word
    one.cr3(b)
    assert one.roots()[0] == (0, INVALID_ROOT)
    with one.moved() as moved:
        one.enter()
    assert (moved["lock.load"], moved["mmu_cache_miss"]) == (1, 1)
    assert one.roots()[0] == (b, one.page(b)["hpa"])
    one.audit()


@pytest.mark.parametrize("wanted", [0, 1, 2, None])
def test_e026_a_switch_without_a_current_root_closes_the_gap(guest: GuestMaker, wanted: int | None) -> None:
    one, tables = guest("lru:3", 4)
    one.visit(*tables)
    one.cr3(0x7000000)
    one.enter()
    assert (
        one.roots()[0][1] == DUMMY_ROOT
    )  # it has no shadow page and never enters the cache: the switch frees it first
    cached = [pgd for pgd, _ in one.roots()[1:]]
    one.cr3(tables[0] if wanted is None else cached[wanted])
    if wanted is None:
        assert one.roots()[0][1] == INVALID_ROOT
        assert one.cached() == cached
    else:
        assert one.roots()[0][0] == cached[wanted]
        assert one.cached() == [pgd for at, pgd in enumerate(cached) if at != wanted] + [None]
    one.enter()
    one.audit()
