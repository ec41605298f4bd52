"""What a vCPU lacks, its registers refuse and its entries do not mean: CpuModel (SDM vol. 3A, 4.1.4; A.8, B.4)."""

from dataclasses import fields, replace

import pytest
from tests.behaviour.guest import USED, GuestMaker
from tests.behaviour.narrow import CR0, DATA, NXE, PAE, SMAP, SMEP, USER, reached

from shadow_mmu.cpu import DEFAULT_CPU
from shadow_mmu.model.constants import CR0_WP, CR4_COMMON, CR4_LA57, CR4_PSE, EFER_LMA, EFER_LME, EFER_SCE
from shadow_mmu.types import OpFlag, OpKind, OutcomeCode

HOST = int(OpFlag.HOST)
LONG = EFER_LMA | EFER_LME
_KEPT = ("maxphyaddr", "long_mode")
BARE = replace(DEFAULT_CPU, **{field.name: False for field in fields(DEFAULT_CPU) if field.name not in _KEPT})
"""A 64-bit processor that has none of the features."""
CR4_BITS = {"la57": CR4_LA57, "smep": SMEP, "smap": SMAP}


@pytest.mark.parametrize("flags", [0, HOST])
@pytest.mark.parametrize("feature", [None, *CR4_BITS])
def test_each_bit_of_cr4_is_accepted_iff_the_processor_has_it(
    guest: GuestMaker, feature: str | None, flags: int
) -> None:
    one = guest.bare(cpu=replace(BARE, **({feature: True} if feature else {})))
    has = CR4_COMMON | (CR4_BITS[feature] if feature else 0)
    one.host_cr(OpKind.WRITE_EFER, 0)  # outside long mode each bit may be set
    for bit in range(64):
        before = one.state().registers
        outcome = one.run(OpKind.WRITE_CR4, PAE | 1 << bit, flags=flags)
        assert (outcome.code == OutcomeCode.OK) == bool(has >> bit & 1), f"bit {bit}"
        if outcome.code != OutcomeCode.OK:
            assert one.state().registers == before, "a write that faults changes nothing"


@pytest.mark.parametrize("flags", [0, HOST])
@pytest.mark.parametrize("nx", [False, True])
def test_each_bit_of_efer_is_accepted_iff_the_processor_has_it(guest: GuestMaker, nx: bool, flags: int) -> None:  # noqa: FBT001
    one = guest.bare(cpu=replace(BARE, nx=nx))
    has = EFER_SCE | LONG | (NXE if nx else 0)
    for bit in range(64):
        before = one.state().registers
        outcome = one.run(OpKind.WRITE_EFER, EFER_LME | 1 << bit, flags=flags)
        assert (outcome.code == OutcomeCode.OK) == bool(has >> bit & 1), f"bit {bit}"
        if outcome.code != OutcomeCode.OK:
            assert one.state().registers == before, "a write that faults changes nothing"


def test_each_bit_of_cr0_above_31_faults_and_et_is_fixed(guest: GuestMaker) -> None:
    one = guest.bare()
    for bit in range(64):
        outcome = one.run(OpKind.WRITE_CR0, CR0 | 1 << bit)
        # CR0.NW needs CR0.CD.
        assert (outcome.code == OutcomeCode.GP) == (bit >= 32 or bit == 29), f"bit {bit}"
    one.run(OpKind.WRITE_CR0, CR0 & ~(1 << 4))
    assert one.state().registers[0] >> 4 & 1


@pytest.mark.parametrize("maxphyaddr", [36, 46, 52])
def test_e014_each_bit_of_cr3_at_or_above_maxphyaddr_faults(guest: GuestMaker, maxphyaddr: int) -> None:
    one = guest.bare(cpu=replace(DEFAULT_CPU, maxphyaddr=maxphyaddr))
    for bit in range(64):
        outcome = one.run(OpKind.WRITE_CR3, 1 << bit)
        assert (outcome.code == OutcomeCode.GP) == (bit >= maxphyaddr), f"bit {bit}"


def test_a_vcpu_starts_with_what_its_processor_has(guest: GuestMaker) -> None:
    cr0, _, cr4, efer = guest.bare(cpu=BARE).state().registers
    assert (cr0, cr4, efer) == (CR0 & ~CR0_WP, PAE, LONG)
    cr0, _, cr4, efer = guest.bare().state().registers
    assert (cr0, cr4, efer) == (CR0, PAE, LONG | NXE)


def test_e112_without_wp_the_supervisor_writes_to_every_page(guest: GuestMaker) -> None:
    """The 386's rule: the bit cannot be set, and a write that sets it is no fault."""
    one = guest.bare(cpu=replace(DEFAULT_CPU, wp=False))
    root = one.table()
    one.map(root, 0x1000, DATA, USED & ~2)
    one.go(root)
    assert one.run(OpKind.WRITE_CR0, CR0).code == OutcomeCode.OK
    assert not one.state().registers[0] & CR0_WP
    assert one.write(0x1000) == reached(DATA)
    assert one.write(0x1000, USER).error == 7
    one.audit()


def test_e108_without_1_gib_pages_bit_7_of_a_pdpte_is_reserved(guest: GuestMaker) -> None:
    for gib_pages, expected in ((True, (OutcomeCode.OK, 0)), (False, (OutcomeCode.PAGE_FAULT, 9))):
        one = guest.bare(cpu=replace(DEFAULT_CPU, gib_pages=gib_pages))
        root = one.table()
        one.map(root, 0, 0, USED | 1 << 7, level=3)
        one.go(root)
        outcome = one.read(0x5000)
        assert (outcome.code, outcome.error) == expected


def test_e109_without_nx_bit_63_is_reserved_and_f_is_not_reported(guest: GuestMaker) -> None:
    one = guest.bare(cpu=replace(DEFAULT_CPU, nx=False))
    root = one.table()
    one.map(root, 0x1000, DATA, USED | 1 << 63)
    one.go(root)
    assert one.read(0x1000).error == 9
    assert one.fetch(0x2000).error == 0


@pytest.mark.parametrize(("pse36", "low"), [(True, 17), (False, 13)])
def test_e102_the_reserved_bits_of_a_4_mib_entry_follow_pse_36(guest: GuestMaker, pse36: bool, low: int) -> None:  # noqa: FBT001
    one = guest.bare(cpu=replace(DEFAULT_CPU, pse36=pse36))
    one.host_cr(OpKind.WRITE_CR4, CR4_PSE)
    directory = one.table()
    one.go(directory)
    for bit in range(12, 22):
        one.poke(directory, USED | 1 << 7 | 1 << bit)
        outcome = one.read(0x3000)
        if bit >= low:
            assert (outcome.code, outcome.error) == (OutcomeCode.PAGE_FAULT, 9), f"bit {bit}"
        else:
            assert outcome.code in (OutcomeCode.OK, OutcomeCode.MMIO), f"bit {bit}"
