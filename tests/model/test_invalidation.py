"""Syncs, flushes and INVLPG (E050-E074)."""

import itertools

import pytest
from tests.model.support import RWU, USED, A, Guest, P, U
from tests.model.test_roots import CACHING, PAGE, POLICIES, guest, visit

from shadow_mmu.model.constants import (
    REQ_FREE_OBSOLETE_ROOTS,
    REQ_LOAD_MMU_PGD,
    REQ_MMU_SYNC,
    REQ_TLB_FLUSH,
    REQ_TLB_FLUSH_CURRENT,
    REQ_TLB_FLUSH_GUEST,
)
from shadow_mmu.model.roots import sync_roots
from shadow_mmu.types import OpFlag, OpKind, OutcomeCode

USER = int(OpFlag.USER)


def unsync_guest(policy: str) -> tuple[Guest, list[int], int, int]:
    """Return a guest whose root A has an unsync table: (guest, roots, gpa of PAGE's entry, where the guest writes it)."""
    one, roots = guest(policy)
    entry = one.entry(roots[0], PAGE)
    window = one.window(roots[0], entry)
    visit(one, roots[1], roots[0])
    one.store((window & ~0xFFF) + 8 * 511, 0)  # any entry but PAGE's
    assert one.page(entry & ~0xFFF)["unsync"]
    return one, roots, entry, window


@pytest.mark.parametrize("policy", CACHING)
def test_e050_sync_of_a_clean_root_takes_no_lock(policy: str) -> None:
    one, (a, b) = guest(policy)
    visit(one, a, b)
    with one.moved() as moved:
        sync_roots(one.machine.vm, one.machine.vm.vcpus[0])
    assert moved == {}


@pytest.mark.parametrize("policy", POLICIES)
def test_e050_sync_of_an_unsync_root_takes_it_once(policy: str) -> None:
    one, *_ = unsync_guest(policy)
    with one.moved() as moved:
        sync_roots(one.machine.vm, one.machine.vm.vcpus[0])
    assert moved["lock.sync"] == 1
    with one.moved() as moved:
        sync_roots(one.machine.vm, one.machine.vm.vcpus[0])
    assert moved == ({"lock.sync": 1} if policy == "locked" else {})


def test_e053_the_audit_runs_under_the_lock_and_never_on_the_skip_path() -> None:
    one, (a, b) = guest("lru:3")
    visit(one, a, b, a)
    assert one.lock_reasons()["audit"] == 0
    with one.moved() as moved:
        one.audit()
    assert moved == {"lock.audit": 1}


@pytest.mark.parametrize("policy", CACHING)
def test_e057_cached_roots_are_kept_and_synced_on_use(policy: str) -> None:
    one, (a, b) = guest(policy)
    entry = one.entry(a, PAGE)
    window = one.window(b, entry)
    visit(one, b, a, b)
    root = one.roots()[1]
    assert root[0] == a
    one.store(window, 0x500000 | USED)
    assert one.roots()[1] == root
    one.cr3(a)
    assert one.roots()[0][1] == root[1]
    assert one.read(PAGE).value == 0x500000
    one.audit()


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("gva", [1 << 47, (1 << 64) - (1 << 47) - 1, 1 << 63])
def test_e062_invlpg_of_a_non_canonical_address_does_nothing(policy: str, gva: int) -> None:
    one, *_ = unsync_guest(policy)
    before = one.machine.state_words()
    one.invlpg(gva)
    assert one.machine.state_words() == before


@pytest.mark.parametrize("policy", ["lru:0", "lru:3"])
def test_e063_modern_invlpg_keeps_a_clean_entry_and_drops_a_changed_one(policy: str) -> None:
    one, _, entry, window = unsync_guest(policy)
    one.read(PAGE)
    before = one.page(entry & ~0xFFF)["sptes"][1]
    one.invlpg(PAGE)
    assert one.page(entry & ~0xFFF)["sptes"][1] == before
    one.store(window, 0x500000 | USED)
    one.invlpg(PAGE)
    assert 1 not in one.page(entry & ~0xFFF)["sptes"]
    with one.moved() as moved:
        assert one.read(PAGE).value == 0x500000
    assert moved["pf_fixed"] == 1
    one.audit()


@pytest.mark.parametrize("policy", ["locked", "seed"])
def test_e063_old_invlpg_zaps_and_refills_without_a_fault(policy: str) -> None:
    one, _, entry, window = unsync_guest(policy)
    one.read(PAGE)
    one.invlpg(PAGE)
    refilled = one.page(entry & ~0xFFF)["sptes"][1]
    assert refilled & A == 0
    one.store(window, 0x500000 | USED)
    one.invlpg(PAGE)
    with one.moved() as moved:
        assert one.read(PAGE).value == 0x500000
    assert "pf_taken" not in moved
    one.store(window, 0x600000 | RWU)  # not accessed yet: not refilled
    one.invlpg(PAGE)
    with one.moved() as moved:
        assert one.read(PAGE).value == 0x600000
    assert moved["pf_fixed"] == 1
    one.audit()


@pytest.mark.parametrize("policy", POLICIES)
def test_e063_invlpg_takes_the_lock_once_for_each_root_it_looks_at(policy: str) -> None:
    one, _, _, _ = unsync_guest(policy)
    with one.moved() as moved:
        one.invlpg(0x5000)
    assert moved["lock.invlpg"] == (2 if policy == "lru:3" else 1)


@pytest.mark.parametrize("policy", POLICIES)
def test_e063_without_invlpg_the_old_page_may_be_reached_and_after_it_not(policy: str) -> None:
    one, _, _, window = unsync_guest(policy)
    one.read(PAGE)
    one.store(window, 0x500000 | USED)
    assert one.read(PAGE).value == 0x400000
    one.invlpg(PAGE)
    assert one.read(PAGE).value == 0x500000


@pytest.mark.parametrize("policy", POLICIES)
def test_e070_an_injected_fault_evicts_the_faulting_address(policy: str) -> None:
    one, _, _, window = unsync_guest(policy)
    one.store(window, 0x400000 | P | A)  # a supervisor page
    one.invlpg(PAGE)
    assert one.read(PAGE).code == OutcomeCode.OK
    one.store(window, 0x500000 | P | A)  # moved, not invalidated: the old frame may still be reached
    assert one.read(PAGE).value == 0x400000
    with one.moved() as moved:
        assert one.read(PAGE, USER) == (OutcomeCode.PAGE_FAULT, PAGE, 5)
    assert moved["lock.invlpg"] == 1
    assert "invlpg" not in moved
    assert one.read(PAGE).value == 0x500000
    one.store(window, 0x600000 | P | A | U)  # the guest's fault handler repairs the entry, without INVLPG
    assert one.read(PAGE, USER).value == 0x600000


def test_e070_a_not_present_fault_takes_no_lock() -> None:
    one, (a, b) = guest("lru:3")
    visit(one, a, b)
    with one.moved() as moved:
        assert one.read(0x9000).code == OutcomeCode.PAGE_FAULT
    assert moved == {"pf_taken": 1, "pf_guest": 1}


REQUESTS = (
    REQ_FREE_OBSOLETE_ROOTS,
    REQ_MMU_SYNC,
    REQ_LOAD_MMU_PGD,
    REQ_TLB_FLUSH,
    REQ_TLB_FLUSH_CURRENT,
    REQ_TLB_FLUSH_GUEST,
)


def shadow_state(one: Guest) -> object:
    """Return what the guest can reach: pages with their entries, roots, TLB content."""
    vcpu = one.machine.vm.vcpus[0]
    pages = [(p["gfn"], p["role"], p["unsync"], p["root_count"], p["sptes"]) for p in one.machine.shadow_pages()]
    return pages, one.roots(), vcpu.tlb.entries


def test_e074_every_order_of_raising_the_requests_gives_the_same_state() -> None:
    states = []
    for order in itertools.permutations(REQUESTS):
        one, _, _, window = unsync_guest("lru:3")
        one.store(window, 0x500000 | USED)
        for request in order:
            one.machine.vm.vcpus[0].requests |= request
        one.enter()
        assert one.machine.vm.vcpus[0].requests == 0
        states.append(one.machine.state_words())
    assert len(set(states)) == 1


@pytest.mark.parametrize("order", list(itertools.permutations(REQUESTS, 3)))
def test_e074_requests_serviced_one_by_one_give_the_same_state_as_together(order: tuple[int, ...]) -> None:
    together, _, _, window = unsync_guest("lru:3")
    together.store(window, 0x500000 | USED)
    together.machine.vm.vcpus[0].requests |= sum(order)
    together.enter()
    single, _, _, window = unsync_guest("lru:3")
    single.store(window, 0x500000 | USED)
    for request in order:
        single.machine.vm.vcpus[0].requests |= request
        single.enter()
    assert shadow_state(single) == shadow_state(together)


def test_e074_a_flush_of_everything_includes_the_current_one() -> None:
    one, (a, _) = guest("lru:3")
    visit(one, a)
    one.machine.vm.vcpus[0].requests |= REQ_TLB_FLUSH | REQ_TLB_FLUSH_CURRENT
    with one.moved() as moved:
        one.enter()
    assert moved == {"tlb_flush": 1}


def test_e074_a_guest_flush_frees_only_the_unsync_previous_roots() -> None:
    one, tables = guest("lru:3", 3)
    a, b, c = tables
    entry = one.entry(a, PAGE)
    window = one.window(c, entry)
    visit(one, a, b, c)
    one.store(window, 0x500000 | USED)
    one.run(OpKind.WRITE_CR4, 0x20 | 1 << 7)
    with one.moved() as moved:
        one.enter()
    assert moved["lock.free"] == 1
    assert one.cached() == [b, None, None]
    one.audit()
