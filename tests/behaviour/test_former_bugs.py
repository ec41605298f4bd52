"""Rules whose absence was once a bug (F-...), or that the wider scenarios do not reach."""

import pytest
from tests.behaviour.guest import NX, PAGE, POLICIES, RWU, USED, A, D, GuestMaker, P, U, W

from shadow_mmu.model import spte as sptes
from shadow_mmu.model.constants import CR0_WP, CR4_SMAP, CR4_SMEP, EFER_NXE
from shadow_mmu.types import OpFlag, OpKind, OutcomeCode

USER = int(OpFlag.USER)
FRAME = 0x500000
"""A frame that holds no table."""


def test_e035_a_pinned_page_is_zapped_again_only_by_its_last_put(guest: GuestMaker) -> None:
    one, (a, b) = guest("lru:0", vcpus=2)
    for one.vcpu in (0, 1):
        one.visit(a)
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


def test_e151_a_valid_current_root_is_not_loaded_anew(guest: GuestMaker) -> None:
    one, (a, b) = guest("lru:3")
    one.visit(a, b)
    one.run(OpKind.ZAP_GFN, a >> 12)
    with one.moved() as moved:
        one.enter()
    assert moved == {"lock.free": 1, "remote_tlb_flush_requests": 1, "mmu_shadow_zapped": 1, "tlb_flush": 1}


def test_e063_invlpg_drops_the_tlb_entry_also_where_nothing_is_flushed(guest: GuestMaker) -> None:
    one, (a, _) = guest("lru:3")
    window = one.window(a, one.entry(a, PAGE))
    one.visit(a)
    one.read(PAGE, USER)
    one.store(window, 0x400000 | USED & ~U)
    assert one.read(PAGE, USER).code == OutcomeCode.OK
    with one.moved() as moved:
        one.invlpg(PAGE)
    assert moved == {"invlpg": 1, "lock.invlpg": 1}
    assert one.read(PAGE, USER).code == OutcomeCode.PAGE_FAULT


def test_f15_a_frame_that_becomes_a_table_is_no_longer_writable_through_any_tlb(guest: GuestMaker) -> None:
    one, (a, b) = guest("lru:3", vcpus=2)
    frame = one.table()
    one.map(a, 0x7000, frame, USED)
    one.vcpu = 1
    one.visit(a)
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


def test_b5_a_page_that_a_supervisor_wrote_with_wp_0_is_not_executable_under_smep(guest: GuestMaker) -> None:
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


def test_f42_a_leaf_that_changes_its_frame_is_flushed_everywhere(guest: GuestMaker) -> None:
    one, (a, _) = guest("lru:3", vcpus=2)
    at = one.map(a, 0x7000, 0x480000, P | W | U | A)
    window = one.window(a, at)
    one.visit(a)
    one.read(0x7000)  # D is clear: no W in the shadow entry
    one.store(window, 0x490000 | P | W | U | A)
    with one.moved() as moved:
        assert one.write(0x7000).value == 0x490000
    assert moved["remote_tlb_flush_requests"] == 1
    one.audit()


def test_e063_a_refilled_entry_gets_its_accessed_bit_from_the_walk_and_a_sync_leaves_it_alone(
    guest: GuestMaker,
) -> None:
    one, (a, b) = guest("seed")
    entry = one.entry(a, PAGE)
    window = one.window(a, entry)
    one.visit(b, a)
    one.store(window, 0x500000 | USED)
    one.invlpg(PAGE)
    refilled = one.page(entry & ~0xFFF)["sptes"][1]
    assert not refilled & sptes.A
    one.cr3(b)
    one.cr3(a)
    one.enter()
    assert one.page(entry & ~0xFFF)["sptes"][1] == refilled
    one.read(PAGE)
    assert one.page(entry & ~0xFFF)["sptes"][1] == refilled | sptes.A


def test_e138_an_unsync_table_that_becomes_an_upper_table_is_zapped(guest: GuestMaker) -> None:
    one, (a, b) = guest("lru:3")
    entry = one.entry(a, PAGE)
    table = entry & ~0xFFF
    window = one.window(a, entry)
    one.visit(a)
    one.store(window, 0x500000 | RWU)
    assert one.page(table)["unsync"]
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


def test_e139_sync_drops_an_entry_with_a_reserved_bit_that_is_no_address_bit(guest: GuestMaker) -> None:
    one, (a, _) = guest("lru:3")
    one.run(OpKind.WRITE_EFER, 0x500)
    entry = one.entry(a, PAGE)
    window = one.window(a, entry)
    one.visit(a)
    one.store(window, 0x400000 | USED | NX)
    one.cr3(a)
    one.enter()
    assert 1 not in one.page(entry & ~0xFFF)["sptes"]
    assert one.read(PAGE) == (OutcomeCode.PAGE_FAULT, PAGE, 9)
    one.audit()


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("level", [2, 3])
def test_f31_each_large_page_over_a_range_gets_its_own_dirty_bit(guest: GuestMaker, policy: str, level: int) -> None:
    """Two clean large pages share a direct page without W; the first write through one must not open the other."""
    one, (a, _) = guest(policy)
    size = 1 << (3 + 9 * level)
    entries = [one.map(a, page, FRAME & -size, RWU | A, level) for page in (4 * size, 5 * size)]
    gvas = [page + FRAME % size for page in (4 * size, 5 * size)]
    one.visit(a)
    for gva in gvas:
        assert one.read(gva) == (OutcomeCode.OK, FRAME, 0)
    for number, gva in enumerate(gvas):
        assert [bool(one.peek(entry) & D) for entry in entries] == [number > 0, False]
        assert one.write(gva) == (OutcomeCode.OK, FRAME, 0)
    assert all(one.peek(entry) & D for entry in entries)
    one.audit()


@pytest.mark.parametrize("policy", POLICIES)
def test_f33_a_supervisors_write_under_wp_0_sets_d_of_each_read_only_large_page(guest: GuestMaker, policy: str) -> None:
    one, (a, _) = guest(policy)
    size = 2 << 20
    entries = [one.map(a, page, FRAME & -size, P | U | A, 2) for page in (4 * size, 5 * size)]
    gvas = [page + FRAME % size for page in (4 * size, 5 * size)]
    one.visit(a)
    cr0 = one.state().cr0
    assert one.run(OpKind.WRITE_CR0, cr0 & ~CR0_WP).code == OutcomeCode.OK
    for gva, entry in zip(gvas, entries, strict=True):
        assert one.read(gva, USER) == (OutcomeCode.OK, FRAME, 0)
        assert not one.peek(entry) & D
        assert one.write(gva) == (OutcomeCode.OK, FRAME, 0)
        assert one.peek(entry) & D
        assert one.write(gva, USER) == (OutcomeCode.PAGE_FAULT, gva, 7)
        one.audit()
    assert one.run(OpKind.WRITE_CR0, cr0).code == OutcomeCode.OK
    for gva in gvas:
        assert one.write(gva) == (OutcomeCode.PAGE_FAULT, gva, 3)
        assert one.read(gva, USER) == (OutcomeCode.OK, FRAME, 0)
    one.audit()


@pytest.mark.parametrize("policy", POLICIES)
def test_f34_smep_keeps_what_was_written_under_wp_0_from_execution_without_nx_too(
    guest: GuestMaker, policy: str
) -> None:
    one, (a, _) = guest(policy)
    one.map(a, 0x7000, FRAME, P | U | A)
    one.visit(a)
    state = one.state()
    one.run(OpKind.WRITE_CR0, state.cr0 & ~CR0_WP)
    one.run(OpKind.WRITE_CR4, state.cr4 | CR4_SMEP)
    one.run(OpKind.WRITE_EFER, state.efer & ~EFER_NXE)
    assert one.write(0x7000) == (OutcomeCode.OK, FRAME, 0)
    # The NX that keeps it from execution is the shadow's own: no reserved bit for the guest, and F because of SMEP.
    assert one.fetch(0x7000) == (OutcomeCode.PAGE_FAULT, 0x7000, 0x11)
    assert one.read(0x7000) == (OutcomeCode.OK, FRAME, 0)
    assert one.fetch(0x7000, USER) == (OutcomeCode.OK, FRAME, 0)
    one.audit()


@pytest.mark.parametrize("policy", POLICIES)
def test_f35_smap_set_after_a_write_under_wp_0_still_finds_a_user_page(guest: GuestMaker, policy: str) -> None:
    one, (a, _) = guest(policy)
    one.map(a, 0x7000, FRAME, P | U | A)
    one.visit(a)
    state = one.state()
    one.run(OpKind.WRITE_CR0, state.cr0 & ~CR0_WP)
    assert one.write(0x7000) == (OutcomeCode.OK, FRAME, 0)
    one.run(OpKind.WRITE_CR4, state.cr4 | CR4_SMAP)
    assert one.read(0x7000) == (OutcomeCode.PAGE_FAULT, 0x7000, 1)
    assert one.read(0x7000, OpFlag.AC | OpFlag.IMPLICIT) == (OutcomeCode.PAGE_FAULT, 0x7000, 1)
    assert one.read(0x7000, OpFlag.AC) == (OutcomeCode.OK, FRAME, 0)
    assert one.read(0x7000, USER) == (OutcomeCode.OK, FRAME, 0)
    one.audit()


@pytest.mark.parametrize("policy", POLICIES)
def test_e113_e112_f36_a_toggle_of_wp_holds_from_the_next_access_on(guest: GuestMaker, policy: str) -> None:
    """With and without shadow tables: in two dimensions it is the walker that must not go by an older CR0."""
    for text in (policy, f"{policy},mmu=tdp"):
        one, (a, b) = guest(text)
        for root in (a, b):
            one.map(root, 0x7000, FRAME, P | U | A)
        one.visit(a, b)
        cr0 = one.state().cr0
        for root in (a, b, a):
            one.visit(root)
            for value, expected in [
                (cr0 & ~CR0_WP, (OutcomeCode.OK, FRAME, 0)),
                (cr0, (OutcomeCode.PAGE_FAULT, 0x7000, 3)),
            ]:
                assert one.run(OpKind.WRITE_CR0, value).code == OutcomeCode.OK
                assert one.write(0x7000) == expected
                assert one.write(0x7000, USER) == (OutcomeCode.PAGE_FAULT, 0x7000, 7)
        one.audit()
