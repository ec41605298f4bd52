"""Paging off, and changes of the paging mode (E024, E042, E103, F-37)."""

import itertools

import pytest
from tests.behaviour.guest import RWU, USED, GuestMaker
from tests.behaviour.narrow import (
    CR0,
    CR0_OFF,
    DATA,
    LME,
    NXE,
    PAE,
    POLICIES,
    SMAP,
    SMEP,
    USER,
    narrow,
    pae_map,
    pae_root,
    reached,
)

from shadow_mmu.model.constants import CR4_PSE, INVALID_ROOT, PAE_ROOT
from shadow_mmu.types import OpKind, OutcomeCode


@pytest.mark.parametrize("policy", POLICIES)
def test_e103_e042_without_paging_an_address_is_a_gpa_through_four_direct_roots(guest: GuestMaker, policy: str) -> None:
    one = guest.bare(policy)
    one.host_cr(OpKind.WRITE_CR0, CR0_OFF)
    for gva in (0x1234, DATA | 0x10, 0xFFF_FFFF_0000_1234):
        assert one.write(gva, USER) == reached(gva & 0xFFFF_FFFF)
    assert one.store(0x5008, 77) == reached(0x5008)
    assert one.load(0x5008) == 77
    assert one.read(0xC000_0000) == (OutcomeCode.MMIO, 0xC000_0000, 0)
    assert one.state().roots[0] == (0, PAE_ROOT)
    roots = [page for page in one.machine.shadow_pages() if page["root_count"]]
    assert [(page["gfn"], page["level"], page["direct"]) for page in roots] == [(i << 18, 2, True) for i in range(4)]
    one.audit()


def test_e103_smep_and_smap_mean_nothing_without_paging(guest: GuestMaker) -> None:
    one = guest.bare()
    one.host_cr(OpKind.WRITE_CR4, PAE | SMEP | SMAP)
    one.host_cr(OpKind.WRITE_CR0, CR0_OFF)
    assert one.fetch(0x1000) == reached(0x1000)
    assert one.read(0x1000) == reached(0x1000)


@pytest.mark.parametrize("policy", ["seed", "lru:3"])
def test_e042_a_cr3_write_without_paging_never_finds_a_cached_root(guest: GuestMaker, policy: str) -> None:
    one = guest.bare(policy)
    one.host_cr(OpKind.WRITE_CR0, CR0_OFF)
    for value in (0x1000, 0x2000, 0x1000):
        one.cr3(value)
        assert one.read(0x3000) == reached(0x3000)
    cr3 = one.machine.stats()["cr3"]
    assert (cr3["writes"], cr3["lockless"]) == (2, 0)
    assert set(one.cached()) == {None}


def test_a_guest_turns_paging_on_and_off_and_reaches_what_each_mode_says(guest: GuestMaker) -> None:
    """The way that every PC boots: paging off, then on by a MOV to CR0; and PAE's PDPTRs are loaded by that MOV."""
    one = guest.bare()
    one.host_cr(OpKind.WRITE_CR0, CR0_OFF)
    one.host_cr(OpKind.WRITE_EFER, NXE)
    directory = one.table()
    root = pae_root(one, directory)
    pae_map(one, directory, 0x1000, DATA)
    assert one.cr3(root).code == OutcomeCode.OK
    assert one.read(0x1000) == reached(0x1000)
    assert one.run(OpKind.WRITE_CR0, CR0).code == OutcomeCode.OK
    assert one.read(0x1000) == reached(DATA)
    assert one.run(OpKind.WRITE_CR0, CR0_OFF).code == OutcomeCode.OK
    assert one.read(0x1000) == reached(0x1000)
    one.audit()


@pytest.mark.parametrize("policy", POLICIES)
def test_f37_pages_of_one_mode_are_not_used_by_another(guest: GuestMaker, policy: str) -> None:
    """The same frames are tables of a 32-bit, a PAE and a 4-level guest in turn, and each time its own format counts."""
    one = guest.bare(policy)
    directory, table = one.table(), one.table()
    root = pae_root(one, directory)
    one.poke(directory, table | RWU)
    one.poke(table + 8, DATA | USED)
    modes = {"PAE": (PAE, NXE), "32-bit": (CR4_PSE, NXE), "4-level": (PAE, NXE | LME)}
    for first, second in itertools.permutations(modes, 2):
        for name in (first, second, first):
            cr4, efer = modes[name]
            one.host_cr(OpKind.WRITE_CR0, CR0_OFF)
            one.host_cr(OpKind.WRITE_CR4, cr4)
            one.host_cr(OpKind.WRITE_EFER, efer)
            one.cr3(directory if name == "32-bit" else root)
            one.host_cr(OpKind.WRITE_CR0, CR0)
            outcome = one.read(0x1000)
            # 32-bit: entry 1 of the table is the upper half of its first word, which is empty.
            assert outcome == (reached(DATA) if name == "PAE" else (OutcomeCode.PAGE_FAULT, 0x1000, 0)), (first, name)
            one.audit()


def test_e024_four_and_five_levels_keep_their_pages_apart(guest: GuestMaker) -> None:
    one = guest.bare()
    root = one.table()
    one.map(root, 0x1000, DATA, USED)
    one.go(root)
    assert one.read(0x1000) == reached(DATA)
    one.host_cr(OpKind.WRITE_CR4, PAE | 1 << 12)
    assert one.read(0x1000).code == OutcomeCode.PAGE_FAULT
    one.host_cr(OpKind.WRITE_CR4, PAE)
    assert one.read(0x1000) == reached(DATA)
    one.audit()


@pytest.mark.parametrize(
    ("cr4", "efer", "kind", "value"),
    [
        (PAE, NXE | LME, OpKind.WRITE_CR0, CR0_OFF),
        (PAE, NXE | LME, OpKind.WRITE_CR4, 0),
        (PAE, NXE | LME, OpKind.WRITE_CR4, PAE | 1 << 12),
        (PAE, NXE | LME, OpKind.WRITE_EFER, NXE),
        (PAE, NXE, OpKind.WRITE_EFER, NXE | LME),
        (0, NXE, OpKind.WRITE_EFER, NXE | LME),
    ],
)
def test_a_guest_may_not_leave_or_enter_long_mode_under_paging(
    guest: GuestMaker, cr4: int, efer: int, kind: OpKind, value: int
) -> None:
    one = guest.bare()
    one.host_cr(OpKind.WRITE_CR4, cr4)
    one.host_cr(OpKind.WRITE_EFER, efer)
    state = one.machine.state_words()
    assert one.run(kind, value) == (OutcomeCode.GP, 0, 0)
    assert one.machine.state_words() == state


def test_paging_with_lme_needs_pae(guest: GuestMaker) -> None:
    one = guest.bare()
    one.host_cr(OpKind.WRITE_CR0, CR0_OFF)
    one.host_cr(OpKind.WRITE_CR4, 0)
    assert one.run(OpKind.WRITE_CR0, CR0) == (OutcomeCode.GP, 0, 0)
    one.host_cr(OpKind.WRITE_CR4, PAE)
    assert one.run(OpKind.WRITE_CR0, CR0).code == OutcomeCode.OK
    assert one.state().efer & 0x400, "LMA"


def test_a_freed_root_is_invalid_and_has_no_entries(guest: GuestMaker) -> None:
    one = narrow(guest, "lru:3", PAE)
    one.cr3(pae_root(one, one.table()))
    one.enter()
    one.run(OpKind.WRITE_CR4, PAE | SMEP)
    assert one.state().roots[0] == (0, INVALID_ROOT)
    assert one.state().pae[0] == (0, 0, 0, 0)
    one.audit()
