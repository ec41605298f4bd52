"""Rules whose absence was once a bug (F-...), or that the wider scenarios do not reach."""

import pytest
from tests.model.support import NX, RWU, USED, A, Guest, P, U, W
from tests.model.test_roots import PAGE, guest, visit

from shadow_mmu.model import role as roles
from shadow_mmu.model import spte as sptes
from shadow_mmu.model.constants import CR4_SMEP, INVALID_ROOT
from shadow_mmu.model.leaf import make_spte
from shadow_mmu.model.lookup import get_child, get_page, link
from shadow_mmu.model.pages import ShadowPage
from shadow_mmu.model.roots import fast_pgd_switch, free_roots
from shadow_mmu.types import OpFlag, OpKind, OutcomeCode

USER = int(OpFlag.USER)


def shadow(one: Guest, gpa: int) -> ShadowPage:
    """Return the newest valid shadow page of a table as the model keeps it."""
    return one.machine.vm.books.indirect_pages(gpa >> 12)[0]


def test_f05_a_child_never_inherits_invalid() -> None:
    root = 4 | 7 << 8 | roles.EFER_NX | roles.CR0_WP
    child = roles.child_role(root | roles.INVALID | roles.DIRECT, 5, direct=False)
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


def test_e035_a_pinned_page_is_zapped_again_only_by_its_last_put() -> None:
    one, (a, b) = guest("lru:0", vcpus=2)
    for one.vcpu in (0, 1):
        visit(one, a)
    with one.moved() as moved:
        one.run(OpKind.ZAP_GFN, a >> 12)
        one.vcpu = 0
        one.cr3(b)
    assert moved["mmu_shadow_zapped"] == 1
    with one.moved() as moved:
        one.vcpu = 1
        one.cr3(b)
    assert moved["mmu_shadow_zapped"] == 1
    one.audit()


def test_e151_a_valid_current_root_is_not_loaded_anew() -> None:
    one, (a, b) = guest("lru:3")
    visit(one, a, b)
    one.run(OpKind.ZAP_GFN, a >> 12)
    with one.moved() as moved:
        one.enter()
    assert moved == {"lock.free": 1, "remote_tlb_flush_requests": 1, "mmu_shadow_zapped": 1, "tlb_flush": 1}


def test_e063_invlpg_drops_the_tlb_entry_also_where_nothing_is_flushed() -> None:
    one, (a, _) = guest("lru:3")
    window = one.window(a, one.entry(a, PAGE))
    visit(one, a)
    one.read(PAGE, USER)
    one.store(window, 0x400000 | USED & ~U)
    assert one.read(PAGE, USER).code == OutcomeCode.OK
    with one.moved() as moved:
        one.invlpg(PAGE)
    assert moved == {"invlpg": 1, "lock.invlpg": 1}
    assert one.read(PAGE, USER).code == OutcomeCode.PAGE_FAULT


def test_e063_a_refilled_entry_gets_its_accessed_bit_from_the_walk_and_a_sync_leaves_it_alone() -> None:
    one, (a, b) = guest("seed")
    entry = one.entry(a, PAGE)
    window = one.window(a, entry)
    visit(one, b, a)
    one.store(window, 0x500000 | USED)
    one.invlpg(PAGE)
    refilled = shadow(one, entry).sptes[1]
    assert not refilled & sptes.A
    one.cr3(b)
    one.cr3(a)
    one.enter()
    assert shadow(one, entry).sptes[1] == refilled
    one.read(PAGE)
    assert shadow(one, entry).sptes[1] == refilled | sptes.A


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


def test_f15_a_frame_that_becomes_a_table_is_no_longer_writable_through_any_tlb() -> None:
    one, (a, b) = guest("lru:3", vcpus=2)
    frame = one.table()
    one.map(a, 0x7000, frame, USED)
    one.vcpu = 1
    visit(one, a)
    one.store(0x7000, 0)
    one.vcpu = 0
    one.poke(one.entry(b, 1 << 30, 2), frame | RWU)  # not present -> present
    one.poke(frame, 0x500000 | USED)
    one.cr3(b)
    with one.moved() as moved:
        assert one.read(1 << 30).value == 0x500000
    assert moved["remote_tlb_flush_requests"] == 1
    one.vcpu = 1
    with one.moved() as moved:
        one.store(0x7000, 0x600000 | USED)
    assert moved["mmu_unsync"] == 1
    one.audit()


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


def test_e138_an_unsync_table_that_becomes_an_upper_table_is_zapped() -> None:
    one, (a, b) = guest("lru:3")
    entry = one.entry(a, PAGE)
    table = entry & ~0xFFF
    window = one.window(a, entry)
    visit(one, a)
    one.store(window, 0x500000 | RWU)
    assert shadow(one, entry).unsync
    one.poke(one.entry(b, 1 << 39, 3), table | RWU)  # the same frame as a level-2 table
    one.cr3(b)
    one.poke(0x500000, 0x700000 | RWU)
    assert one.read(1 << 39 | PAGE << 9).value == 0x700000
    assert [page["level"] for page in one.pages(table)] == [2]
    one.cr3(a)
    with one.moved() as moved:
        one.store(window, 0x500000 | RWU)
    assert moved["pf_emulate"] == 1
    one.audit()


def test_b5_a_page_that_a_supervisor_wrote_with_wp_0_is_not_executable_under_smep() -> None:
    one, (a, _) = guest("lru:3")
    one.map(a, 0x7000, 0x480000, P | U | A)
    one.run(OpKind.WRITE_CR4, 0x20 | CR4_SMEP)
    one.run(OpKind.WRITE_CR0, 0x80040033)
    one.cr3(a)
    assert one.write(0x7000).code == OutcomeCode.OK
    assert one.fetch(0x7000) == (OutcomeCode.PAGE_FAULT, 0x7000, 1 | 16)
    with one.moved() as moved:
        assert one.read(0x7000, USER).code == OutcomeCode.OK
    assert moved["remote_tlb_flush_requests"] == 1  # the entry lost its W (F-42)
    assert one.write(0x7000, USER).code == OutcomeCode.PAGE_FAULT
    assert one.write(0x7000).code == OutcomeCode.OK
    one.audit()


def test_f42_a_leaf_that_changes_its_frame_is_flushed_everywhere() -> None:
    one, (a, _) = guest("lru:3", vcpus=2)
    at = one.map(a, 0x7000, 0x480000, P | W | U | A)
    window = one.window(a, at)
    visit(one, a)
    one.read(0x7000)  # D is clear: no W in the shadow entry
    one.store(window, 0x490000 | P | W | U | A)
    with one.moved() as moved:
        assert one.write(0x7000).value == 0x490000
    assert moved["remote_tlb_flush_requests"] == 1
    one.audit()


def test_c4_a_writable_leaf_keeps_w_without_a_lookup() -> None:
    one, (a, _) = guest("lru:3")
    entry = one.entry(a, PAGE)
    window = one.window(a, entry)
    visit(one, a)
    one.store(window, 0x500000 | USED)
    vm, vcpu = one.machine.vm, one.machine.vm.vcpus[0]
    gfn = entry >> 12
    old, refused = make_spte(vm, vcpu, 7, gfn, 0, prefetch=False)
    assert (refused, bool(old & sptes.W)) == (False, True)
    new, refused = make_spte(vm, vcpu, 3, gfn, old, prefetch=True, synchronizing=True)
    assert (refused, bool(new & sptes.W)) == (False, True)
    new, refused = make_spte(vm, vcpu, 3, gfn, 0, prefetch=True, synchronizing=True)
    assert (refused, bool(new & sptes.W)) == (True, False)


def test_c4_a_fault_over_a_leaf_updates_the_recorded_access() -> None:
    one, (a, _) = guest("lru:3")
    entry = one.map(a, 0x7000, 0x480000, P | W | U)
    visit(one, a)
    one.read(0x7000)
    assert shadow(one, entry).translations[7] == (0x480, 5)
    one.write(0x7000)
    assert shadow(one, entry).translations[7] == (0x480, 7)


def test_e139_sync_drops_an_entry_with_a_reserved_bit_that_is_no_address_bit() -> None:
    one, (a, _) = guest("lru:3")
    one.run(OpKind.WRITE_EFER, 0x500)
    entry = one.entry(a, PAGE)
    window = one.window(a, entry)
    visit(one, a)
    one.store(window, 0x400000 | USED | NX)
    one.cr3(a)
    one.enter()
    assert 1 not in shadow(one, entry).sptes
    assert one.read(PAGE) == (OutcomeCode.PAGE_FAULT, PAGE, 9)
    one.audit()
