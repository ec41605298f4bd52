"""32-bit guests: tables of 4-byte entries, quadrants, PSE and PSE-36 (E102, E131)."""

import pytest
from tests.behaviour.guest import PS, RWU, USED, A, D, GuestMaker
from tests.behaviour.narrow import (
    DATA,
    POLICIES,
    get32,
    map32,
    narrow,
    reached,
    set32,
)

from shadow_mmu.model.constants import CR4_PSE
from shadow_mmu.types import OpKind, OutcomeCode


@pytest.mark.parametrize("policy", POLICIES)
def test_e131_a_32_bit_directory_has_four_shadow_pages_and_each_table_two(guest: GuestMaker, policy: str) -> None:
    one = narrow(guest, policy, CR4_PSE)
    root = one.table()
    gvas = [0x1000, 0x20_1000, 0x4000_1000, 0x8060_0000, 0xFFFF_F000]
    for number, gva in enumerate(gvas):
        map32(one, root, gva, DATA + number * 0x1000)
    one.cr3(root)
    for number, gva in enumerate(gvas):
        assert one.read(gva) == reached(DATA + number * 0x1000)
    assert sorted(page["role"] >> 5 & 3 for page in one.pages(root, level=2)) == [0, 1, 2, 3]
    table = get32(one, root) & ~0xFFF
    assert sorted(page["role"] >> 5 & 3 for page in one.pages(table, level=1)) == [0, 1]
    one.audit()


@pytest.mark.parametrize("policy", POLICIES)
def test_e102_4_mib_pages_by_pse_and_above_4_gib_by_pse_36(guest: GuestMaker, policy: str) -> None:
    one = narrow(guest, policy, CR4_PSE)
    one.machine.add_memslot(0x3_0040_0000, 0x40_0000)
    root = one.table()
    set32(one, root + 4, 0x40_0000 | 3 << 13 | PS | RWU)
    one.cr3(root)
    for gva in (0x40_0000, 0x5F_F123, 0x60_0000, 0x7F_FFFF):
        assert one.write(gva) == reached(0x3_0000_0000 | gva)
    assert get32(one, root + 4) & (A | D) == A | D
    assert sorted((page["gfn"], page["direct"]) for page in one.machine.shadow_pages() if page["level"] == 1) == [
        (0x300400, True),
        (0x300600, True),
    ]
    one.audit()


@pytest.mark.parametrize("bit", range(12, 22))
def test_e108_bits_21_to_17_of_a_4_mib_entry_are_reserved(guest: GuestMaker, bit: int) -> None:
    one = narrow(guest, "lru:3", CR4_PSE)
    root = one.table()
    set32(one, root, PS | RWU | 1 << bit)
    one.cr3(root)
    expected = OutcomeCode.PAGE_FAULT if bit >= 17 else OutcomeCode.MMIO if bit >= 13 else OutcomeCode.OK
    assert one.read(0x1000).code == expected
    if bit >= 17:
        assert one.read(0x1000).error == 9


def test_e102_without_pse_bit_7_of_a_directory_entry_means_nothing(guest: GuestMaker) -> None:
    one = narrow(guest, "lru:3", 0)
    root = one.table()
    map32(one, root, 0x1000, DATA)
    set32(one, root, get32(one, root) | PS)
    one.cr3(root)
    assert one.read(0x1000) == reached(DATA)


@pytest.mark.parametrize("policy", [*POLICIES, "seed,pae_roots=cached", "lru:3,pae_roots=cached"])
def test_e024_a_change_of_pse_finds_no_page_that_was_made_before(guest: GuestMaker, policy: str) -> None:
    """A directory entry is a 4 MiB page, then leads to a table, then is a page again; KVM finds the pages of the other meaning."""
    one = narrow(guest, policy, CR4_PSE)
    root, other = one.table(), one.table()
    set32(one, root + 4, DATA | USED | PS)
    set32(one, DATA + 4, other | USED)
    one.cr3(root)
    for cr4, gpa in [(CR4_PSE, DATA + 0x1008), (0, other + 8), (CR4_PSE, DATA + 0x1008), (0, other + 8)]:
        assert one.run(OpKind.WRITE_CR4, cr4).code == OutcomeCode.OK
        assert one.read(DATA + 0x1008) == one.write(DATA + 0x1008) == reached(gpa)
        one.audit()


@pytest.mark.parametrize("policy", POLICIES)
def test_e143_an_emulated_write_to_a_32_bit_directory_zaps_both_halves_of_its_4_mib(
    guest: GuestMaker, policy: str
) -> None:
    one = narrow(guest, policy, CR4_PSE)
    root, other = one.table(), one.table()
    map32(one, root, 0x1000, DATA)
    map32(one, root, 0x20_1000, DATA + 0x1000)
    map32(one, other, 0x1000, DATA + 0x2000)
    map32(one, other, 0x20_1000, DATA + 0x3000)
    map32(one, root, 0x80_0000, root)  # the directory itself, through the guest's own mapping
    one.cr3(root)
    assert one.read(0x1000) == reached(DATA)
    assert one.read(0x20_1000) == reached(DATA + 0x1000)
    with one.moved() as moved:
        assert one.store(0x80_0000, get32(one, other), 4) == reached(root)
    assert moved["mmu_pte_write"] == 1
    assert moved["mmu_pde_zapped"] == 2
    one.invlpg(0x1000)
    one.invlpg(0x20_1000)
    assert one.read(0x1000) == reached(DATA + 0x2000)
    assert one.read(0x20_1000) == reached(DATA + 0x3000)
    one.audit()


def test_e144_an_8_byte_write_to_4_byte_entries_is_misaligned_and_zaps_the_page(guest: GuestMaker) -> None:
    one = narrow(guest, "lru:3", CR4_PSE)
    root = one.table()
    map32(one, root, 0x1000, DATA)
    map32(one, root, 0x80_0000, root)
    one.cr3(root)
    assert one.read(0x1000) == reached(DATA)
    with one.moved() as moved:
        one.store(0x80_0000, one.peek(root))
    assert moved["mmu_flooded"] == 4, "each quadrant of the directory"
    assert one.read(0x1000) == reached(DATA)
    one.audit()


@pytest.mark.parametrize("policy", POLICIES)
def test_e135_a_32_bit_table_goes_unsync_in_both_quadrants_and_invlpg_syncs_the_entry(
    guest: GuestMaker, policy: str
) -> None:
    one = narrow(guest, policy, CR4_PSE)
    root = one.table()
    entry = map32(one, root, 0x1000, DATA)
    map32(one, root, 0x20_1000, DATA + 0x1000)
    map32(one, root, 0x80_0000, entry & ~0xFFF)
    one.cr3(root)
    assert one.read(0x1000) == reached(DATA)
    assert one.read(0x20_1000) == reached(DATA + 0x1000)
    assert one.store(0x80_0000 | entry & 0xFFF, DATA + 0x5000 | USED, 4) == reached(entry)
    assert one.counters()["mmu_unsync"] == 2
    one.invlpg(0x1000)
    assert one.read(0x1000) == reached(DATA + 0x5000)
    assert one.read(0x20_1000) == reached(DATA + 0x1000)
    one.audit()


def test_e109_nx_is_no_right_of_32_bit_entries_and_kvm_still_reports_the_fetch(guest: GuestMaker) -> None:
    one = narrow(guest, "lru:3", CR4_PSE)
    root = one.table()
    map32(one, root, 0x1000, DATA)
    one.cr3(root)
    assert one.fetch(0x1000) == reached(DATA)
    assert one.fetch(0x2000) == (OutcomeCode.PAGE_FAULT, 0x2000, 16)
    one.host_cr(OpKind.WRITE_EFER, 0)
    assert one.fetch(0x2000) == (OutcomeCode.PAGE_FAULT, 0x2000, 0)
