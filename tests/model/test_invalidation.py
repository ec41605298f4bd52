"""Syncs, flushes and INVLPG (E050-E074)."""

import itertools

import pytest
from tests.model.support import CACHING, PAGE, POLICIES, USED, Guest, guest, visit

from shadow_mmu.model.constants import (
    REQ_FREE_OBSOLETE_ROOTS,
    REQ_LOAD_MMU_PGD,
    REQ_MMU_SYNC,
    REQ_TLB_FLUSH,
    REQ_TLB_FLUSH_CURRENT,
    REQ_TLB_FLUSH_GUEST,
)
from shadow_mmu.model.roots import sync_roots
from shadow_mmu.types import OpFlag

USER = int(OpFlag.USER)

REQUESTS = (
    REQ_FREE_OBSOLETE_ROOTS,
    REQ_MMU_SYNC,
    REQ_LOAD_MMU_PGD,
    REQ_TLB_FLUSH,
    REQ_TLB_FLUSH_CURRENT,
    REQ_TLB_FLUSH_GUEST,
)


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
