"""PAE guests: PDPTRs and a root of four entries (E010, E017, E040, E043, E052, E101, F-10)."""

import pytest
from tests.behaviour.guest import RWU, USED, A, D, GuestMaker, P
from tests.behaviour.narrow import (
    CR0,
    DATA,
    PAE,
    PGE,
    POLICIES,
    SMAP,
    SMEP,
    USER,
    narrow,
    pae_map,
    pae_root,
    reached,
)

from shadow_mmu.model.constants import PAE_ROOT
from shadow_mmu.types import OpFlag, OpKind, OutcomeCode


@pytest.mark.parametrize("policy", POLICIES)
def test_e043_e040_a_pae_guest_is_shadowed_below_four_entries_and_a_missing_pdpte_is_0(
    guest: GuestMaker, policy: str
) -> None:
    one = narrow(guest, policy, PAE)
    low, high = one.table(), one.table()
    root = pae_root(one, low, 0, high)
    pae_map(one, low, 0x1000, DATA)
    pae_map(one, high, 0x8000_3000, DATA + 0x1000)
    assert one.cr3(root).code == OutcomeCode.OK
    assert one.read(0x1004, USER) == reached(DATA + 4)
    assert one.write(0x8000_3000) == reached(DATA + 0x1000)
    assert one.read(0x4000_0000) == (OutcomeCode.PAGE_FAULT, 0x4000_0000, 0)
    assert one.read(0xC000_0000) == (OutcomeCode.PAGE_FAULT, 0xC000_0000, 0)
    roots = [page for page in one.machine.shadow_pages() if page["root_count"]]
    assert [(page["gfn"], page["level"]) for page in roots] == [(low >> 12, 2), (high >> 12, 2)]
    assert one.state().roots[0][1] == PAE_ROOT
    one.audit()


@pytest.mark.parametrize("policy", POLICIES)
def test_e101_e010_an_edit_of_a_pdpte_is_not_seen_until_it_is_loaded(guest: GuestMaker, policy: str) -> None:
    one = narrow(guest, policy, PAE)
    old, new = one.table(), one.table()
    root = pae_root(one, old)
    pae_map(one, old, 0x1000, DATA)
    pae_map(one, new, 0x1000, DATA + 0x1000)
    one.cr3(root)
    assert one.read(0x1000) == reached(DATA)
    one.poke(root, new | P)
    one.invlpg(0x1000)
    assert one.read(0x1000) == reached(DATA)
    one.cr3(root)  # E010: the value is the same, the PDPTRs are not
    assert one.read(0x1000) == reached(DATA + 0x1000)
    one.audit()


@pytest.mark.parametrize("policy", POLICIES)
def test_f10_a_write_to_cr4_or_cr0_loads_the_pdptrs_and_the_root_follows(guest: GuestMaker, policy: str) -> None:
    one = narrow(guest, policy, PAE)
    directories = [one.table() for _ in range(3)]
    root = pae_root(one, directories[0])
    for number, directory in enumerate(directories):
        pae_map(one, directory, 0x1000, DATA + number * 0x1000)
    one.cr3(root)
    assert one.read(0x1000) == reached(DATA)
    one.poke(root, directories[1] | P)
    assert one.run(OpKind.WRITE_CR4, PAE | PGE).code == OutcomeCode.OK
    assert one.read(0x1000) == reached(DATA + 0x1000)
    one.poke(root, directories[2] | P)
    assert one.run(OpKind.WRITE_CR0, CR0 | 1 << 30).code == OutcomeCode.OK
    assert one.read(0x1000) == reached(DATA + 0x2000)
    one.audit()


@pytest.mark.parametrize("bit", [1, 2, 5, 6, 7, 8, 46, 51, 62, 63])
@pytest.mark.parametrize("policy", POLICIES)
def test_e108_a_reserved_bit_in_a_present_pdpte_makes_the_load_fault(guest: GuestMaker, policy: str, bit: int) -> None:
    one = narrow(guest, policy, PAE)
    directory = one.table()
    good, bad = pae_root(one, directory), pae_root(one, directory)
    pae_map(one, directory, 0x1000, DATA)
    one.poke(bad, directory | P | 1 << bit)
    one.cr3(good)
    assert one.read(0x1000) == reached(DATA)
    state = one.machine.state_words()
    assert one.cr3(bad) == (OutcomeCode.GP, 0, 0)
    assert one.cr3(0x3F00_0000) == (OutcomeCode.GP, 0, 0), "PDPTRs outside memory"
    assert one.machine.state_words() == state
    one.poke(bad, 1 << bit)  # not present: nothing is reserved
    assert one.cr3(bad).code == OutcomeCode.OK
    assert one.read(0x1000).code == OutcomeCode.PAGE_FAULT


@pytest.mark.parametrize("policy", ["seed", "lru:1", "lru:3"])
def test_e017_every_switch_of_a_pae_guest_takes_the_lock_and_the_cache_stays_empty(
    guest: GuestMaker, policy: str
) -> None:
    one = narrow(guest, policy, PAE)
    directory = one.table()
    pae_map(one, directory, 0x1000, DATA)
    roots = [pae_root(one, directory) for _ in range(2)]
    for root in roots * 3:
        one.cr3(root)
        assert one.read(0x1000) == reached(DATA)
    cr3 = one.machine.stats()["cr3"]
    assert (cr3["writes"], cr3["lockless"], cr3["locked_miss"]) == (5, 0, 5)
    assert set(one.cached()) == {None}
    one.audit()


@pytest.mark.parametrize("policy", POLICIES)
def test_e052_a_sync_covers_the_four_roots_one_by_one_always_locked(guest: GuestMaker, policy: str) -> None:
    one = narrow(guest, policy, PAE)
    directories = [one.table() for _ in range(4)]
    root = pae_root(one, *directories)
    entries = [pae_map(one, d, (gib << 30) + 0x1000, DATA + gib * 0x1000) for gib, d in enumerate(directories)]
    windows = [(1 << 30) + (0x10 + gib << 12) for gib in range(4)]
    for gva, entry in zip(windows, entries, strict=True):
        pae_map(one, directories[1], gva, entry & ~0xFFF)
    one.cr3(root)
    for gib in range(4):
        assert one.read((gib << 30) + 0x1000) == reached(DATA + gib * 0x1000)
    one.store(windows[2] + (entries[2] & 0xFFF), DATA + 0x9000 | USED)
    assert one.counters()["mmu_unsync"] == 1
    with one.moved() as moved:
        one.cr3(root)
        assert one.read((2 << 30) + 0x1000) == reached(DATA + 0x9000)
    assert moved["lock.sync"] >= 1
    with one.moved() as clean:
        one.cr3(root)
        one.enter()
    assert clean["lock.sync"] == 1, "with nothing to sync too"
    one.audit()


@pytest.mark.parametrize("policy", POLICIES)
def test_a_pdpte_whose_directory_is_in_no_slot_faults_until_the_slot_is_there(guest: GuestMaker, policy: str) -> None:
    one = narrow(guest, policy, PAE)
    far = 0x4000_0000
    one.cr3(pae_root(one, far))
    assert one.read(0x1000) == (OutcomeCode.PAGE_FAULT, 0x1000, 0)
    one.machine.add_memslot(far, 0x10000)
    one.poke(far, far + 0x1000 | RWU)
    one.poke(far + 0x1008, DATA | USED)
    assert one.read(0x1000) == reached(DATA)
    one.audit()


def test_e112_e113_wp_smep_and_smap_toggle_under_pae(guest: GuestMaker) -> None:
    one = narrow(guest, "lru:3", PAE)
    directory = one.table()
    pae_map(one, directory, 0x1000, DATA, P | 4 | A | D)
    one.cr3(pae_root(one, directory))
    assert one.write(0x1000).code == OutcomeCode.PAGE_FAULT
    assert one.run(OpKind.WRITE_CR0, CR0 & ~(1 << 16)).code == OutcomeCode.OK
    assert one.write(0x1000) == reached(DATA)
    assert one.run(OpKind.WRITE_CR0, CR0).code == OutcomeCode.OK
    assert one.write(0x1000).code == OutcomeCode.PAGE_FAULT
    assert one.fetch(0x1000) == reached(DATA)
    assert one.run(OpKind.WRITE_CR4, PAE | SMEP).code == OutcomeCode.OK
    assert one.fetch(0x1000).code == OutcomeCode.PAGE_FAULT
    assert one.fetch(0x1000, USER) == reached(DATA)
    assert one.run(OpKind.WRITE_CR4, PAE | SMAP).code == OutcomeCode.OK
    assert one.read(0x1000).code == OutcomeCode.PAGE_FAULT
    assert one.read(0x1000, int(OpFlag.AC)) == reached(DATA)
    one.audit()
