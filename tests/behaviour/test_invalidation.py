"""Syncs, flushes and INVLPG (E050-E074)."""

import itertools
from collections.abc import Callable

import pytest
from tests.behaviour.guest import CACHING, PAGE, POLICIES, RWU, USED, A, Guest, GuestMaker, P, U
from tests.behaviour.machines import AnyMachine

from shadow_mmu.model.constants import (
    REQ_FREE_OBSOLETE_ROOTS,
    REQ_LOAD_MMU_PGD,
    REQ_MMU_SYNC,
    REQ_TLB_FLUSH,
    REQ_TLB_FLUSH_CURRENT,
    REQ_TLB_FLUSH_GUEST,
    REQ_TRIPLE_FAULT,
)
from shadow_mmu.types import OpFlag, OpKind, OutcomeCode

USER = int(OpFlag.USER)


def unsync_guest(guest: GuestMaker, policy: str) -> tuple[Guest[AnyMachine], list[int], int, int]:
    """Return a guest whose root A has an unsync table: (guest, roots, gpa of PAGE's entry, where the guest writes it)."""
    one, roots = guest(policy)
    entry = one.entry(roots[0], PAGE)
    window = one.window(roots[0], entry)
    one.visit(roots[1], roots[0])
    one.store((window & ~0xFFF) + 8 * 511, 0)  # any entry but PAGE's
    assert one.page(entry & ~0xFFF)["unsync"]
    return one, roots, entry, window


def test_e053_the_audit_runs_under_the_lock_and_never_on_the_skip_path(guest: GuestMaker) -> None:
    one, (a, b) = guest("lru:3")
    one.visit(a, b, a)
    assert one.lock_reasons()["audit"] == 0
    with one.moved() as moved:
        one.audit()
    assert moved == {"lock.audit": 1}


@pytest.mark.parametrize("policy", CACHING)
def test_e057_cached_roots_are_kept_and_synced_on_use(guest: GuestMaker, policy: str) -> None:
    one, (a, b) = guest(policy)
    entry = one.entry(a, PAGE)
    window = one.window(b, entry)
    one.visit(b, a, b)
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
def test_e062_invlpg_of_a_non_canonical_address_does_nothing(guest: GuestMaker, policy: str, gva: int) -> None:
    one, *_ = unsync_guest(guest, policy)
    before = one.machine.state_words()
    one.invlpg(gva)
    assert one.machine.state_words() == before


@pytest.mark.parametrize("policy", ["lru:0", "lru:3"])
def test_e063_modern_invlpg_keeps_a_clean_entry_and_drops_a_changed_one(guest: GuestMaker, policy: str) -> None:
    one, _, entry, window = unsync_guest(guest, policy)
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
def test_e063_old_invlpg_zaps_and_refills_without_a_fault(guest: GuestMaker, policy: str) -> None:
    one, _, entry, window = unsync_guest(guest, policy)
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
def test_e063_invlpg_takes_the_lock_once_for_each_root_it_looks_at(guest: GuestMaker, policy: str) -> None:
    one, _, _, _ = unsync_guest(guest, policy)
    with one.moved() as moved:
        one.invlpg(0x5000)
    assert moved["lock.invlpg"] == (2 if policy == "lru:3" else 1)


@pytest.mark.parametrize("policy", POLICIES)
def test_e063_without_invlpg_the_old_page_may_be_reached_and_after_it_not(guest: GuestMaker, policy: str) -> None:
    one, _, _, window = unsync_guest(guest, policy)
    one.read(PAGE)
    one.store(window, 0x500000 | USED)
    assert one.read(PAGE).value == 0x400000
    one.invlpg(PAGE)
    assert one.read(PAGE).value == 0x500000


@pytest.mark.parametrize("policy", POLICIES)
def test_e070_an_injected_fault_evicts_the_faulting_address(guest: GuestMaker, policy: str) -> None:
    one, _, _, window = unsync_guest(guest, policy)
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


def test_e070_a_not_present_fault_takes_no_lock(guest: GuestMaker) -> None:
    one, (a, b) = guest("lru:3")
    one.visit(a, b)
    with one.moved() as moved:
        assert one.read(0x9000).code == OutcomeCode.PAGE_FAULT
    assert moved == {"pf_taken": 1, "pf_guest": 1}


def test_e074_a_guest_flush_frees_only_the_unsync_previous_roots(guest: GuestMaker) -> None:
    one, tables = guest("lru:3", 3)
    a, b, c = tables
    entry = one.entry(a, PAGE)
    window = one.window(c, entry)
    one.visit(a, b, c)
    one.store(window, 0x500000 | USED)
    one.run(OpKind.WRITE_CR4, 0x20 | 1 << 7)
    with one.moved() as moved:
        one.enter()
    assert moved["lock.free"] == 1
    assert one.cached() == [b, None, None]
    one.audit()


def locks(moved: dict[str, int]) -> dict[str, int]:
    """Return the lock acquisitions among what moved."""
    return {name: count for name, count in moved.items() if name.startswith("lock.")}


@pytest.mark.parametrize("policy", CACHING)
def test_e050_sync_of_a_clean_root_takes_no_lock(guest: GuestMaker, policy: str) -> None:
    one, (a, b) = guest(policy)
    one.visit(a, b)
    with one.moved() as moved:
        one.cr3(b)  # the same value: nothing but the sync and the flush
        one.enter()
    assert moved == {"tlb_flush": 1}


@pytest.mark.parametrize("policy", POLICIES)
def test_e050_sync_of_an_unsync_root_takes_it_once(guest: GuestMaker, policy: str) -> None:
    one, (a, _), _, _ = unsync_guest(guest, policy)
    with one.moved() as moved:
        one.cr3(a)
        one.enter()
    assert locks(moved) == {"lock.sync": 1}
    with one.moved() as moved:
        one.cr3(a)
        one.enter()
    assert locks(moved) == ({"lock.sync": 1} if policy == "locked" else {})


def requesting_guest(guest: GuestMaker) -> tuple[Guest[AnyMachine], dict[str, Callable[[], object]]]:
    """Return a guest, and operations that raise every request but the triple fault without entering it."""
    one, (a, b, c) = guest("lru:3", 3)
    entry = one.entry(b, PAGE)
    window = one.window(a, entry)
    one.visit(c, b, a)
    one.store(window, 0x500000 | USED)  # B is unsync: the sync has work
    return one, {
        "MMU_SYNC, LOAD_MMU_PGD, TLB_FLUSH_CURRENT": lambda: one.cr3(b),
        "TLB_FLUSH_GUEST": lambda: one.run(OpKind.WRITE_CR4, 0x20 | 1 << 7),
        "FREE_OBSOLETE_ROOTS": lambda: one.run(OpKind.ZAP_GFN, c >> 12),
        "TLB_FLUSH": lambda: one.poke(one.entry(a, PAGE), 0x600000 | USED),
    }


def test_e074_every_order_of_raising_the_requests_gives_the_same_state(guest: GuestMaker) -> None:
    every = (
        REQ_FREE_OBSOLETE_ROOTS | REQ_MMU_SYNC | REQ_LOAD_MMU_PGD | REQ_TLB_FLUSH
        | REQ_TLB_FLUSH_CURRENT | REQ_TLB_FLUSH_GUEST
    )  # fmt: skip
    states = set()
    for order in itertools.permutations(range(4)):
        one, raising = requesting_guest(guest)
        operations = list(raising.values())
        for number in order:
            operations[number]()
        assert one.state().requests == every
        with one.moved() as moved:
            one.enter()
        assert one.state().requests == 0
        assert moved["tlb_flush"] == 2  # TLB_FLUSH includes TLB_FLUSH_CURRENT; TLB_FLUSH_GUEST comes on top
        assert one.read(PAGE).value == 0x500000
        states.add(one.machine.state_words())
        one.audit()
    assert len(states) == 1


def test_e074_a_triple_fault_comes_before_every_other_request(guest: GuestMaker) -> None:
    one, (a, b) = guest("seed")
    one.visit(a, b)
    one.run(OpKind.ZAP_GFN, a >> 12)
    one.cr3(0x7000000)
    pending = one.state().requests
    assert pending & REQ_FREE_OBSOLETE_ROOTS
    assert pending & REQ_TRIPLE_FAULT
    assert one.enter().code == OutcomeCode.TRIPLE_FAULT
    assert one.state().requests == pending & ~REQ_TRIPLE_FAULT


def test_e074_a_flush_of_everything_includes_the_current_one(guest: GuestMaker) -> None:
    one, (a, b) = guest("lru:3")
    one.visit(b, a)
    one.cr3(a)
    one.poke(one.entry(b, PAGE), 0x500000 | USED)
    assert one.state().requests == REQ_MMU_SYNC | REQ_TLB_FLUSH | REQ_TLB_FLUSH_CURRENT
    with one.moved() as moved:
        one.enter()
    assert moved == {"tlb_flush": 1}
