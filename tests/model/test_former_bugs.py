"""Rules whose absence was once a bug (F-...), or that the wider scenarios do not reach."""

import pytest
from tests.model.support import PAGE, USED, Guest, P, U, W, guest, visit

from shadow_mmu.model import role as roles
from shadow_mmu.model import spte as sptes
from shadow_mmu.model.constants import INVALID_ROOT
from shadow_mmu.model.leaf import make_spte
from shadow_mmu.model.lookup import get_child, get_page, link
from shadow_mmu.model.pages import ShadowPage
from shadow_mmu.model.roots import fast_pgd_switch, free_roots
from shadow_mmu.types import OpFlag

USER = int(OpFlag.USER)


def shadow(one: Guest, gpa: int) -> ShadowPage:
    """Return the newest valid shadow page of a table as the model keeps it."""
    return one.machine.vm.books.indirect_pages(gpa >> 12)[0]


def test_f05_a_child_never_inherits_invalid() -> None:
    root = 4 | 7 << 8 | roles.EFER_NX | roles.CR0_WP
    child = roles.child_role(root | roles.INVALID | roles.DIRECT, 5, direct=False, index=0)
    assert child == 3 | 5 << 8 | roles.EFER_NX | roles.CR0_WP


@pytest.mark.parametrize("bit", range(32))
def test_f37_a_page_of_another_mode_is_not_synced(bit: int) -> None:
    root = 4 | 7 << 8 | roles.EFER_NX
    free = bit in (*range(4), 5, 6, 8, 9, 10, 18)
    assert roles.may_sync(root ^ 1 << bit, root) == free


def test_f37_a_page_of_another_mode_is_zapped_by_a_sync() -> None:
    one, (a, _) = guest("lru:3")
    entry = one.entry(a, PAGE)
    window = one.window(a, entry)
    visit(one, a)
    one.store(window, 0x500000 | USED)
    shadow(one, entry).role ^= roles.SMEP_ANDNOT_WP
    one.cr3(a)
    assert one.read(PAGE).value == 0x500000
    assert one.counters()["mmu_shadow_zapped"] == 1
    one.audit()


def test_e027_the_current_root_is_reused_where_it_is() -> None:
    one, (a, b) = guest("lru:3")
    visit(one, a, b)
    before = one.roots()
    assert fast_pgd_switch(one.machine.vm, one.machine.vm.vcpus[0], b)
    assert one.roots() == before


def test_e003_a_freed_current_root_has_no_tag_and_a_freed_previous_one_keeps_its() -> None:
    one, (a, b) = guest("lru:1")
    visit(one, a, b)
    free_roots(one.machine.vm, one.machine.vm.vcpus[0], current=True, previous=(0,))
    assert one.roots() == [(0, INVALID_ROOT), (a, INVALID_ROOT)]


@pytest.mark.parametrize(("gfn", "access", "same"), [(0, 0, True), (1, 0, False), (0, 2, False)])
def test_f02_f03_a_linked_child_is_reused_only_with_its_gfn_and_role(gfn: int, access: int, same: bool) -> None:  # noqa: FBT001
    one, (a, _) = guest("lru:3")
    visit(one, a)
    vm, vcpu = one.machine.vm, one.machine.vm.vcpus[0]
    parent = shadow(one, one.entry(a, PAGE, 2))
    child = vm.books.child(parent, 0)
    assert child is not None
    wanted, rights = child.gfn ^ gfn, child.access ^ access
    found = get_child(vm, vcpu, parent, 0, gfn=wanted, direct=False, access=rights)
    assert (found is None) == same
    if found is not None:
        assert (found.gfn, found.access) == (wanted, rights)
        link(vm, vcpu, parent, 0, found)
        assert child.parents == []


def test_e144_a_lookup_hit_resets_the_flooding_count() -> None:
    one, (a, _) = guest("lru:3")
    visit(one, a)
    page = shadow(one, one.entry(a, PAGE, 2))
    page.flooding = 2
    assert get_page(one.machine.vm, one.machine.vm.vcpus[0], page.gfn, page.role) is page
    assert page.flooding == 0


def test_f41_linking_an_unsync_page_marks_the_new_parent() -> None:
    one, (a, b) = guest("lru:3")
    entry = one.entry(a, PAGE)
    window = one.window(a, entry)
    visit(one, b, a)
    one.store(window, 0x500000 | USED)
    vm, vcpu = one.machine.vm, one.machine.vm.vcpus[0]
    leaf, parent = shadow(one, entry), shadow(one, one.entry(b, PAGE, 2))
    link(vm, vcpu, parent, 9, leaf)
    assert parent.unsync_bitmap >> 9 & 1
    assert shadow(one, b).unsync_children == 1
    one.machine.vm.books.drop_link(parent, 9)


def test_d3_the_new_parent_is_marked_before_the_page_can_be_reached_through_it() -> None:
    one, (a, b) = guest("lru:3")
    entry = one.entry(a, PAGE)
    window = one.window(a, entry)
    visit(one, b, a)
    one.store(window, 0x500000 | USED)
    vm, vcpu = one.machine.vm, one.machine.vm.vcpus[0]
    leaf, parent = shadow(one, entry), shadow(one, one.entry(b, PAGE, 2))
    assert get_child(vm, vcpu, parent, 9, gfn=leaf.gfn, direct=False, access=leaf.access) is leaf
    assert parent.unsync_bitmap >> 9 & 1
    assert 9 not in parent.sptes
    assert leaf.unsync
    assert 1 not in leaf.sptes  # it was synced on the way: the changed entry is gone


def test_c4_a_writable_leaf_keeps_w_without_a_lookup() -> None:
    one, (a, _) = guest("lru:3")
    entry = one.entry(a, PAGE)
    window = one.window(a, entry)
    visit(one, a)
    one.store(window, 0x500000 | USED)
    vm, vcpu = one.machine.vm, one.machine.vm.vcpus[0]
    gfn = entry >> 12
    old, refused = make_spte(vm, vcpu, 7, gfn, key=0, old=0, prefetch=False)
    assert (refused, bool(old & sptes.W)) == (False, True)
    new, refused = make_spte(vm, vcpu, 3, gfn, key=0, old=old, prefetch=True, synchronizing=True)
    assert (refused, bool(new & sptes.W)) == (False, True)
    new, refused = make_spte(vm, vcpu, 3, gfn, key=0, old=0, prefetch=True, synchronizing=True)
    assert (refused, bool(new & sptes.W)) == (True, False)


def test_c4_a_fault_over_a_leaf_updates_the_recorded_access() -> None:
    one, (a, _) = guest("lru:3")
    entry = one.map(a, 0x7000, 0x480000, P | W | U)
    visit(one, a)
    one.read(0x7000)
    assert shadow(one, entry).translations[7] == (0x480, 5)
    one.write(0x7000)
    assert shadow(one, entry).translations[7] == (0x480, 7)
