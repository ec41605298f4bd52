"""An explained walk to a page that the guest may only read."""

import pytest
from tests.api.test_walk import GVA, MODES, SIZE, USED, Guest

from shadow_mmu import MmioExit, Vm
from shadow_mmu.pagewalk import Verdict


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("policy", ["lru:3", "seed,mmu=tdp"])
def test_e107_a_write_to_a_read_only_memslot_is_told(mode: str, policy: str) -> None:
    with Vm(SIZE, vcpus=1, policy=policy) as vm:
        written(Guest(vm, mode))


def written(guest: Guest) -> None:
    rom = guest.vm.add_memslot(1 << 30, 4096, read_only=True)
    guest.set(1, rom.gpa | USED)
    guest.cpu.access(GVA)
    walk = guest.walk(kind="write")
    assert (walk.verdict, str(walk.access)) == (
        Verdict.AGREE, f"supervisor write: MMIO: gpa {rom.gpa + 5:#x}, in a read-only memslot"
    )  # fmt: skip
    assert "the memslot is read-only: a write that the guest's tables allow is an MMIO exit" in walk.notes
    assert walk.shadow is not None
    assert not {"W", "host-writable"} & set(walk.shadow.steps[-1].flags)
    assert str(guest.walk(kind="read").access) == f"supervisor read: allowed: gpa {rom.gpa + 5:#x}"
    assert guest.cpu.access(GVA + 5, "write") == MmioExit(rom.gpa + 5)
