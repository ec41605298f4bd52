"""An explained walk to a page that the guest may only read."""

import pytest
from tests.api.test_walk import GVA, MODES, SIZE, USED, Guest, P, W

from shadow_mmu import MemoryRangeError, MmioExit, Vm
from shadow_mmu.pagewalk import Verdict
from shadow_mmu.types import AccessKind

A, D = 1 << 5, 1 << 6


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


def rom_tables(vm: Vm, bits: int) -> None:
    """Give a 4-level guest tables that are all read-only, their entries with these bits, and switch to them."""
    rom = vm.add_memslot(1 << 30, 1 << 20, read_only=True).gpa
    for level in range(4, 0, -1):
        table = rom + (level << 12)
        target = rom + (level - 1 << 12) if level > 1 else 0x5000
        vm.memory.write(table + 8 * (GVA >> (3 + 9 * level) & 511), (target | bits).to_bytes(8, "little"))
    vm.vcpus[0].write_cr3(rom + (4 << 12))


@pytest.mark.parametrize(
    ("bits", "kind", "notes"),
    [
        (P | W, "read", ["the hardware may not set A in a read-only table: each access exits", "A clear: 0x40004000 (level 4)"]),
        (P | W | A, "write", ["the direct tables map the page", "D is clear in a read-only table, 0x40001000 (level 1): each write exits"]),
        (P | W | A | D, "write", ["the direct tables map the page"]),
    ],
)  # fmt: skip
def test_e107_read_only_tables_in_two_dimensions_are_told_with_the_exits_that_they_cost(
    bits: int, kind: AccessKind, notes: list[str]
) -> None:
    with Vm(SIZE, vcpus=1, policy="lru:3,mmu=tdp") as vm:
        rom_tables(vm, bits)
        cpu = vm.vcpus[0]
        for each in ("read", kind):
            assert cpu.access(GVA, each) == 0x5000 | GVA & 0xFFF
        told = "\n".join(vm.walk(GVA, kind=kind).notes)
        assert all(note in told for note in notes), told
        assert ("is made for the guest" in told) is (len(notes) > 1)
        before = vm.stats.counters["pf_emulate"]
        cpu.access(GVA, kind)
        assert vm.stats.counters["pf_emulate"] - before == len(notes) - 1, "what the notes say is what happens"


def test_a_gpa_that_cannot_be_is_refused() -> None:
    with Vm(SIZE, vcpus=1) as vm:
        assert not any(map(vm.memory.is_read_only, (-1, 0, 1 << 70)))
        for gpa in ("x", 1.5, None):
            with pytest.raises(MemoryRangeError):
                vm.memory.is_read_only(gpa)  # type: ignore[arg-type]
