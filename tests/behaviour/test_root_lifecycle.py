"""Life and death of root pages, and the KPTI case (E034-E049)."""

from itertools import pairwise

import pytest
from tests.behaviour.guest import CACHING, PAGE, POLICIES, USED, Guest, GuestMaker
from tests.behaviour.machines import AnyMachine

from shadow_mmu.model.constants import EVENT_GET_PAGE, INVALID_ROOT
from shadow_mmu.types import OpKind, OutcomeCode


def test_e034_a_valid_root_without_references_is_found_again_with_its_content(guest: GuestMaker) -> None:
    one, (a, b) = guest("locked")
    one.visit(a)
    page = one.page(a)
    one.visit(b)
    assert one.page(a)["root_count"] == 0
    one.trace()
    with one.moved() as moved:
        one.visit(a)
    assert one.page(a)["sptes"] == page["sptes"]
    assert one.page(a)["id"] == page["id"]
    assert "mmu_cache_miss" not in moved
    assert "pf_taken" not in moved
    assert [(kind, gfn << 12, value) for kind, _, _, _, gfn, value in one.trace()] == [(EVENT_GET_PAGE, a, 0)]


def test_e035_a_zapped_root_lives_until_its_last_reference_is_put(guest: GuestMaker) -> None:
    one, (a, b) = guest("lru:3", vcpus=2)
    for one.vcpu in (0, 1):
        one.visit(a)
    used = len(one.machine.shadow_pages())
    one.run(OpKind.ZAP_GFN, a >> 12)
    pinned = [page for page in one.machine.shadow_pages() if page["invalid"]]
    assert [(page["gfn"] << 12, page["root_count"]) for page in pinned] == [(a, 2)]
    assert len(one.machine.shadow_pages()) == used
    one.vcpu = 0
    one.cr3(b)
    assert len(one.machine.shadow_pages()) == used  # it is a pinned previous root now
    one.enter()
    assert [page["root_count"] for page in one.machine.shadow_pages() if page["invalid"]] == [1]
    one.vcpu = 1
    one.enter()
    assert not [page for page in one.machine.shadow_pages() if page["invalid"]]
    one.audit()


@pytest.mark.parametrize(("policy", "roots"), [("lru:0", 1), ("lru:1", 2), ("lru:3", 4)])
def test_e035_eviction_from_the_cache_frees_a_zapped_root(guest: GuestMaker, policy: str, roots: int) -> None:
    one, tables = guest(policy, 5)
    one.visit(*tables[:roots])
    one.run(OpKind.ZAP_GFN, tables[0] >> 12)  # the oldest of the cache, or the current root where there is none
    used = len(one.machine.shadow_pages())
    one.cr3(tables[4])  # before the request is serviced
    assert len(one.machine.shadow_pages()) == used - 1
    one.audit()


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize(
    ("kind", "value"),
    [(OpKind.WRITE_CR0, 0x80040033), (OpKind.WRITE_CR4, 0x20 | 1 << 20), (OpKind.WRITE_EFER, 0x500)],
)
def test_e037_a_mode_change_unloads_every_root(guest: GuestMaker, policy: str, kind: OpKind, value: int) -> None:
    one, (a, b) = guest(policy)
    one.visit(a, b)
    assert one.run(kind, value).code == OutcomeCode.OK
    assert all(hpa == INVALID_ROOT for _, hpa in one.roots())
    assert all(page["root_count"] == 0 for page in one.machine.shadow_pages())
    one.audit()


@pytest.mark.parametrize(("policy", "processes", "flat"), [("seed", 1, True), ("lru:3", 2, True), ("seed", 2, False)])
def test_e041_kpti_system_calls_take_no_lock(guest: GuestMaker, policy: str, processes: int, flat: bool) -> None:  # noqa: FBT001
    one, tables = guest(policy, 2 * processes)
    pairs = list(zip(tables[::2], tables[1::2], strict=True))
    for kernel, user in pairs:
        one.visit(user, kernel, user)
    before = one.locks()
    for _ in range(20):
        for kernel, user in pairs:
            one.visit(kernel, user, kernel, user)
    assert (one.locks() == before) == flat
    cr3 = one.machine.stats()["cr3"]
    assert cr3["writes"] == 83 * processes - 1  # the first is left out
    assert cr3["writes"] == cr3["same"] + cr3["lockless"] + cr3["locked"]
    assert (cr3["lockless"] >= 80 * processes) == flat


def test_e047_a_same_value_write_never_reaches_the_fast_path(guest: GuestMaker) -> None:
    one, (a, b) = guest("seed")
    one.visit(a, b)
    before = one.roots()
    one.cr3(b)
    assert one.roots() == before
    assert one.machine.stats()["cr3"]["same"] == 1


@pytest.mark.parametrize("policy", CACHING)
def test_e048_tags_are_the_outgoing_cr3_values(guest: GuestMaker, policy: str) -> None:
    one, tables = guest(policy, 4)
    values = [root | low for root, low in zip(tables, (0, 8, 0x18, 0x10), strict=True)]
    for before, after in pairwise(values):
        one.visit(before)
        one.cr3(after)
        assert one.roots()[1][0] == before


def toggle_mode(one: Guest[AnyMachine]) -> None:
    """Let the vCPU change its mode and change it back, which frees all its roots."""
    one.run(OpKind.WRITE_CR0, 0x80040033)
    one.run(OpKind.WRITE_CR0, 0x80050033)


@pytest.mark.parametrize("policy", POLICIES)
def test_e036_a_load_always_syncs_and_flushes(guest: GuestMaker, policy: str) -> None:
    one, (a, b) = guest(policy)
    entry = one.entry(a, PAGE)
    window_b = one.window(b, entry)
    one.window(a, entry)
    one.visit(a)
    toggle_mode(one)
    one.visit(b)
    one.store(window_b, 0x500000 | USED)
    assert one.page(entry & ~0xFFF)["unsync"]
    toggle_mode(one)
    one.cr3(a)
    assert one.read(PAGE).value == 0x500000
    one.audit()


@pytest.mark.parametrize("policy", [*POLICIES, "lru:16"])
def test_e046_an_unload_leaves_no_valid_root_of_this_vcpu(guest: GuestMaker, policy: str) -> None:
    one, (a, b) = guest(policy, vcpus=2)
    for one.vcpu in (0, 1):
        one.visit(a, b, a)
    other = one.roots(1)
    one.vcpu = 0
    toggle_mode(one)
    assert all(hpa == INVALID_ROOT for _, hpa in one.roots())
    assert one.roots(1) == other
    one.audit()


def test_e049_the_cache_is_per_vcpu_and_the_pages_are_shared(guest: GuestMaker) -> None:
    one, (a, b) = guest("lru:3", vcpus=2)
    for one.vcpu in (0, 1, 0, 1):
        one.visit(a, b)
    for root in (a, b):
        assert [page["root_count"] for page in one.pages(root)] == [2]
    assert one.roots(0) == one.roots(1)
    toggle_mode(one)
    assert [page["root_count"] for page in one.pages(a)] == [1]
    one.audit()
