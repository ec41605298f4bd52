"""A host of 32 bits, ``host=pae``: no long mode, no shadow of more than three levels (A.8, E042, E043)."""

import pytest
from tests.behaviour.guest import Guest, GuestMaker
from tests.behaviour.machines import AnyMachine
from tests.behaviour.narrow import CR0, CR0_OFF, DATA, LME, NXE, PAE, map32, pae_map, pae_root, reached

from shadow_mmu import UnsupportedModeError, stress
from shadow_mmu.contend import contend
from shadow_mmu.cpu import CpuModel
from shadow_mmu.model.constants import CR4_LA57, CR4_PSE, EFER_LMA, INVALID_ROOT, PAE_ROOT
from shadow_mmu.types import OpFlag, OpKind, OutcomeCode
from shadow_mmu.workloads.churn import run_churn
from shadow_mmu.workloads.runner import run_kpti

POLICIES = ["locked,host=pae", "seed,host=pae", "lru:3,host=pae", "lru:3,pae_roots=cached,host=pae"]


def levels(one: Guest[AnyMachine]) -> set[int]:
    """Return the levels of the shadow pages."""
    return {page["level"] for page in one.machine.shadow_pages()}


@pytest.mark.parametrize("policy", POLICIES)
def test_e043_a_vcpu_starts_under_pae_paging_with_no_pdptr_present(guest: GuestMaker, policy: str) -> None:
    one = guest.bare(policy)
    state = one.state()
    assert (state.cr0, state.cr3, state.cr4, state.efer) == (CR0, 0, PAE, NXE)
    assert (state.pdptrs, state.roots[0]) == ((0, 0, 0, 0), (0, INVALID_ROOT))
    assert one.read(0x1000) == (OutcomeCode.PAGE_FAULT, 0x1000, 0)
    assert one.state().roots[0][1] == PAE_ROOT


@pytest.mark.parametrize("flags", [0, int(OpFlag.HOST)])
@pytest.mark.parametrize("policy", POLICIES)
def test_e043_the_bits_of_long_mode_are_gp_as_on_a_processor_without_it(
    guest: GuestMaker, policy: str, flags: int
) -> None:
    one = guest.bare(policy)
    assert one.run(OpKind.WRITE_CR0, CR0_OFF, flags=int(OpFlag.HOST)).code == OutcomeCode.OK
    for kind, value in (
        (OpKind.WRITE_EFER, LME),
        (OpKind.WRITE_EFER, EFER_LMA | NXE),
        (OpKind.WRITE_EFER, LME | EFER_LMA | NXE),
        (OpKind.WRITE_CR4, PAE | CR4_LA57),
    ):
        before = one.machine.state_words()
        assert one.run(kind, value, flags=flags) == (OutcomeCode.GP, 0, 0)
        assert one.machine.state_words() == before
    assert one.run(OpKind.WRITE_EFER, NXE | 1, flags=flags).code == OutcomeCode.OK


@pytest.mark.parametrize("policy", POLICIES)
def test_e042_e043_pae_32_bit_and_no_paging_are_shadowed_by_three_levels(guest: GuestMaker, policy: str) -> None:
    one = guest.bare(policy)
    directory, root = one.table(), one.table()
    pae_map(one, directory, 0x1000, DATA)
    map32(one, root, 0x1000, DATA + 0x1000)
    assert one.cr3(pae_root(one, directory)).code == OutcomeCode.OK
    assert one.read(0x1000) == reached(DATA)
    assert one.run(OpKind.WRITE_CR4, CR4_PSE).code == OutcomeCode.OK
    one.cr3(root)
    assert one.read(0x1000) == reached(DATA + 0x1000)
    assert one.run(OpKind.WRITE_CR0, CR0_OFF).code == OutcomeCode.OK
    assert one.read(0x1000) == reached(0x1000)
    assert levels(one) == {1, 2}, "the third is the four entries, which are no shadow page"
    one.audit()


def test_e043_the_host_decides_whatever_the_processor_was_to_be(guest: GuestMaker) -> None:
    small, wide = CpuModel(long_mode=False), CpuModel()
    words = []
    for policy, cpu in (("lru:3,host=pae", wide), ("lru:3,host=pae", small), ("lru:3", small)):
        one = guest.bare(policy, cpu=cpu)
        assert one.run(OpKind.WRITE_CR4, PAE | CR4_LA57, flags=int(OpFlag.HOST)).code == OutcomeCode.GP
        assert one.run(OpKind.WRITE_EFER, LME, flags=int(OpFlag.HOST)).code == OutcomeCode.GP
        one.read(0x1000)
        words.append(one.machine.state_words())
    assert words[0] == words[1] == words[2]


def test_what_runs_a_64_bit_guest_refuses_the_host_and_says_why() -> None:
    for run in (
        lambda policy: run_kpti([policy], switches=10),
        lambda policy: run_churn("fork", [policy]),
        lambda policy: contend(workloads=["kpti"], policies=[policy], vcpus=[1], switches=1),
        lambda policy: stress(policy=policy, steps=1),
    ):
        with pytest.raises(UnsupportedModeError, match=r"long mode, and a vCPU of policy 'seed,host=pae' has none"):
            run("seed,host=pae")
