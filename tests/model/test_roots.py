"""The root cache and what a CR3 write costs and does, under each policy (E001-E026, E032)."""

import pytest
from tests.model.support import RWU, USED, Guest

from shadow_mmu.model.constants import (
    DUMMY_ROOT,
    INVALID_ROOT,
    REQ_LOAD_MMU_PGD,
    REQ_MMU_SYNC,
    REQ_TLB_FLUSH_CURRENT,
    WORD,
)
from shadow_mmu.model.roots import fast_pgd_switch, free_all_roots, free_roots, is_usable
from shadow_mmu.types import OpKind, OutcomeCode

CACHING = ["seed", "lru:1", "lru:3", "lru:16"]
POLICIES = ["locked", "seed", "lru:0", "lru:3"]
PAGE = 0x1000


def guest(
    policy: str,
    roots: int = 2,
    *,
    vcpus: int = 1,
    memory: int = 16 << 20,
    tlb_entries: int = 1536,
    trace: bool = False,
) -> tuple[Guest, list[int]]:
    """Return a guest with so many roots, each mapping ``PAGE`` to a frame of its own, and none entered yet."""
    one = Guest(policy, vcpus, memory, tlb_entries=tlb_entries, trace=trace)
    tables = [one.table() for _ in range(roots)]
    for number, root in enumerate(tables):
        one.map(root, PAGE, 0x400000 + (number << 12), USED)
    return one, tables


def visit(one: Guest, *roots: int) -> None:
    """Switch to each root in turn and fetch there."""
    for root in roots:
        one.cr3(root)
        assert one.fetch(PAGE).code == OutcomeCode.OK


@pytest.mark.parametrize("policy", CACHING)
def test_e001_return_to_the_previous_cr3_takes_no_lock(policy: str) -> None:
    one, (a, b) = guest(policy)
    visit(one, a, b)
    before = one.locks()
    visit(one, a, b, a)
    assert one.locks() == before


def test_e001_before_the_patch_every_switch_takes_three() -> None:
    one, (a, b) = guest("locked")
    visit(one, a, b)
    with one.moved() as moved:
        visit(one, a)
    assert {name: count for name, count in moved.items() if name.startswith("lock.")} == {
        "lock.free": 1,
        "lock.load": 1,
        "lock.sync": 1,
    }


def test_e002_previous_root_and_tag_start_invalid_and_a_context_init_forgets_them() -> None:
    one, (a, b) = guest("seed")
    assert one.roots()[1] == (WORD, INVALID_ROOT)
    visit(one, a, b)
    assert one.roots()[1][0] == a
    one.run(OpKind.WRITE_CR0, 0x80040033)
    assert one.roots()[1] == (WORD, INVALID_ROOT)
    before = one.lock_reasons()["load"]
    visit(one, a)
    assert one.lock_reasons()["load"] == before + 1


@pytest.mark.parametrize("policy", CACHING)
def test_e003_roots_are_freed_selectively(policy: str) -> None:
    one, (a, b) = guest(policy)
    visit(one, a, b)
    vm, vcpu = one.machine.vm, one.machine.vm.vcpus[0]
    current = vcpu.root.hpa
    free_roots(vm, vcpu, previous=(0,))
    assert (vcpu.root.hpa, vcpu.previous[0].hpa) == (current, INVALID_ROOT)
    one.audit()
    free_roots(vm, vcpu, current=True)
    assert vcpu.root.hpa == INVALID_ROOT
    one.audit()


def test_e004_freeing_nothing_valid_takes_no_lock() -> None:
    one, (a, b) = guest("lru:3")
    visit(one, a, b)
    vm, vcpu = one.machine.vm, one.machine.vm.vcpus[0]
    with one.moved() as moved:
        free_all_roots(vm, vcpu)
    assert moved == {"lock.free": 1}
    with one.moved() as moved:
        free_all_roots(vm, vcpu)
    assert moved == {}


@pytest.mark.parametrize("policy", ["seed", "lru:1"])
def test_e005_a_miss_swaps_the_outgoing_root_into_the_cache(policy: str) -> None:
    one, (a, b, c) = guest(policy, 3)
    visit(one, a, b)
    visit(one, c)
    assert one.cached() == [b]
    assert one.page(a)["root_count"] == 0
    before = one.locks()
    visit(one, b)
    assert one.locks() == before
    with one.moved() as moved:
        visit(one, a)
    assert moved["lock.load"] == 1


def test_e006_the_tag_is_recorded_also_after_the_slow_path() -> None:
    one, (a, b) = guest("seed")
    visit(one, a)
    with one.moved() as slow:
        visit(one, b)
    assert slow["lock.load"] == 1
    with one.moved() as fast:
        visit(one, a)
    assert not [name for name in fast if name.startswith("lock.")]


def test_e007_seed_defect_s1_a_failed_check_leaves_tag_and_root_apart() -> None:
    one, (a, b) = guest("seed")
    visit(one, b, a)
    root_of_b = one.roots()[1][1]
    one.cr3(0x7000000)  # outside memory: no swap, the current root is freed, and the tag becomes A's all the same
    assert one.roots() == [(0, INVALID_ROOT), (a, root_of_b)]
    one.cr3(a)
    assert one.roots()[0][1] == root_of_b  # a hit on the wrong tables
    assert one.fetch(PAGE).code == OutcomeCode.TRIPLE_FAULT  # which is what masks it


def test_e007_tag_and_root_stay_together_in_the_modern_cache() -> None:
    one, (a, b) = guest("lru:1")
    visit(one, b, a)
    hpa = dict(one.roots())
    one.cr3(0x7000000)
    one.enter()
    assert one.roots() == [(0x7000000, DUMMY_ROOT), (a, hpa[a])]
    visit(one, a)
    assert one.fetch(PAGE).value == 0x400000


@pytest.mark.parametrize("policy", POLICIES)
def test_e008_same_value_write_syncs_and_flushes_and_switches_nothing(policy: str) -> None:
    one, (a, _) = guest(policy)
    entry = one.entry(a, PAGE)
    window = one.window(a, entry)
    visit(one, a)
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
def test_e011_bit_63_is_stripped_without_pcid(policy: str) -> None:
    one, (a, b) = guest(policy)
    visit(one, a)
    assert one.cr3(b | 1 << 63).code == OutcomeCode.OK
    assert one.machine.vm.vcpus[0].registers.cr3 == b
    assert one.fetch(PAGE).value == 0x401000


def test_e012_bit_63_is_gp_without_pcid() -> None:
    one, (a, b) = guest("lru:3")
    visit(one, a)
    before = one.machine.state_words()
    for value in (a | 1 << 63, b | 1 << 63):
        assert one.cr3(value) == (OutcomeCode.GP, 0, 0)
        assert one.machine.state_words() == before


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("bit", [46, 51, 52, 62])
def test_e014_reserved_cr3_bits_are_gp_before_any_effect(policy: str, bit: int) -> None:
    one, (a, b) = guest(policy)
    visit(one, a, b)
    before = one.machine.state_words()
    assert one.cr3(a | 1 << bit) == (OutcomeCode.GP, 0, 0)
    assert one.machine.state_words() == before


@pytest.mark.parametrize("policy", ["locked", "seed"])
def test_e015_a_root_outside_memory_is_a_triple_fault(policy: str) -> None:
    one, (a, _) = guest(policy)
    visit(one, a)
    assert one.cr3(0x7000000).code == OutcomeCode.OK
    assert one.fetch(PAGE).code == OutcomeCode.TRIPLE_FAULT
    one.cr3(a)
    assert one.fetch(PAGE).code == OutcomeCode.TRIPLE_FAULT  # for good
    assert one.enter().code == OutcomeCode.TRIPLE_FAULT


def test_e016_a_root_outside_memory_is_the_dummy_root() -> None:
    one, (a, _) = guest("lru:3")
    visit(one, a)
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
    visit(one, a)
    one.audit()


def test_e019_a_hit_syncs_in_the_switch_under_seed_and_requests_it_under_lru() -> None:
    for policy in ("seed", "lru:3"):
        one, (a, b) = guest(policy)
        entry = one.entry(a, PAGE)
        window = one.window(a, entry)
        visit(one, b, a)
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
def test_e020_a_hit_clears_the_roots_flooding_count(policy: str) -> None:
    one, (a, b) = guest(policy)
    window = one.window(a, a)
    visit(one, b, a)
    one.store(window + 8 * 300, 0)
    one.store(window + 8 * 301, 0)
    flooding = one.page(a)["flooding"]
    assert flooding == 1  # the second write found the count zeroed by the fault on its own path, and counted itself
    one.cr3(b)
    assert one.page(a)["flooding"] == 1
    one.cr3(a)
    assert one.page(a)["flooding"] == 0


def test_e022_the_hardware_load_is_a_request_serviced_at_entry() -> None:
    one, (a, b) = guest("lru:3")
    visit(one, a, b)
    one.cr3(a)
    vcpu = one.machine.vm.vcpus[0]
    assert vcpu.requests == REQ_LOAD_MMU_PGD | REQ_MMU_SYNC | REQ_TLB_FLUSH_CURRENT
    one.run(OpKind.WRITE_CR0, 0x80040033)  # a mode change between the switch and the entry
    one.enter()
    assert vcpu.requests == 0
    page = one.machine.vm.books.page_at(vcpu.root.hpa)
    assert (page.gfn << 12, page.role) == (a, vcpu.root_role)
    assert not page.role & 1 << 13


def test_e024_every_bit_of_the_role_word_must_match() -> None:
    one, (a, b) = guest("lru:3")
    visit(one, a, b)
    vm, vcpu = one.machine.vm, one.machine.vm.vcpus[0]
    assert is_usable(vm, vcpu.previous[0], a, vcpu.root_role)
    for bit in range(32):
        assert not is_usable(vm, vcpu.previous[0], a, vcpu.root_role ^ 1 << bit)
    assert not is_usable(vm, vcpu.previous[0], a | 8, vcpu.root_role)
    vcpu.root_role ^= 1 << 13
    assert not fast_pgd_switch(vm, vcpu, a)


def test_e025_three_previous_roots_serve_four_cr3s_and_not_five() -> None:
    one, tables = guest("lru:3", 5)
    a, b, c, d, e = tables
    visit(one, a, b, c, d)
    with one.moved() as moved:
        visit(one, a)
    assert "lock.load" not in moved
    visit(one, b, c, d, e)
    with one.moved() as moved:
        visit(one, a)
    assert moved["lock.load"] == 1


@pytest.mark.parametrize(("target", "after"), [(0, "C210"), (1, "2C10"), (2, "1C20"), (3, "0C21"), (4, "4C21")])
def test_e026_rotation_order_of_a_hit_at_each_position_and_of_a_miss(target: int, after: str) -> None:
    one, tables = guest("lru:3", 5)
    names = dict(zip(tables, "012C4", strict=True))
    visit(one, *tables[:4])
    one.cr3({0: tables[3], 1: tables[2], 2: tables[1], 3: tables[0], 4: tables[4]}[target])
    one.enter()
    order = "".join(names[pgd] for pgd, _ in one.roots())
    assert order == after
    one.audit()


@pytest.mark.parametrize("current", [0, 1, 2])
def test_e026_a_hit_without_a_current_root_closes_the_gap(current: int) -> None:
    one, tables = guest("lru:3", 4)
    visit(one, *tables)
    vcpu = one.machine.vm.vcpus[0]
    free_roots(one.machine.vm, vcpu, current=True)
    cached = [pgd for pgd, _ in one.roots()[1:]]
    assert fast_pgd_switch(one.machine.vm, vcpu, cached[current])
    assert one.roots()[0][0] == cached[current]
    assert one.cached() == [pgd for at, pgd in enumerate(cached) if at != current] + [None]
    assert not fast_pgd_switch(one.machine.vm, vcpu, 0x9000)


@pytest.mark.parametrize("size", range(17))
def test_e032_the_cache_holds_n_roots(size: int) -> None:
    one, tables = guest(f"lru:{size}", size + 2)
    visit(one, *tables)
    with one.moved() as moved:
        visit(one, *tables[:0:-1])  # the N + 1 most recent ones, from the current one on
    assert "lock.load" not in moved
    with one.moved() as moved:
        visit(one, tables[0])
    assert moved["lock.load"] == 1
    assert len(one.roots()) == size + 1
    one.audit()
