"""Guest page tables built by the workloads, walked by the model and by the core."""

from typing import Any

import pytest

from shadow_mmu import ConfigError, MemoryRangeError, PageFault, Vm
from shadow_mmu.workloads.address_space import DIRTY, USER, WRITABLE, AddressSpace, FrameAllocator, Image

GVA = 0x7000_0040_0000
SIZE = 8 << 20


def space(levels: int = 4) -> AddressSpace:
    return AddressSpace(Image(SIZE), FrameAllocator(0x10000, 0x100000), levels=levels)


@pytest.mark.parametrize("levels", [4, 5])
@pytest.mark.parametrize(("level", "gpa"), [(1, 0x5000), (2, 0x20_0000), (3, 0)])
def test_what_is_mapped_is_reached_on_the_machine(levels: int, level: int, gpa: int) -> None:
    tables = space(levels)
    gva = GVA & ~((0x1000 << 9 * (level - 1)) - 1)
    tables.map(gva, gpa, level=level, user=True)
    with Vm(SIZE, vcpus=1) as vm:
        vm.memory.write(0, tables.memory.words)  # type: ignore[attr-defined]
        vcpu = vm.vcpus[0]
        if levels == 5:
            vm.run([_five_levels()])
        vcpu.write_cr3(tables.root)
        assert vcpu.access(gva + 0x123, "write", user=True) == gpa + 0x123 == tables.translate(gva + 0x123)


def _five_levels() -> Any:  # noqa: ANN401  a program
    from shadow_mmu.ops import program, write_cr4

    return program([write_cr4(0x1020, host=True)])


def test_the_tables_may_lie_in_a_running_machine() -> None:
    with Vm(SIZE, vcpus=1) as vm:
        tables = AddressSpace(vm.memory, FrameAllocator(0x10000, 0x100000))
        tables.map(GVA, 0x5000, pages=2)
        vcpu = vm.vcpus[0]
        vcpu.write_cr3(tables.root)
        assert vcpu.access(GVA + 0x1000) == 0x6000
        tables.unmap(GVA + 0x1000)
        with pytest.raises(PageFault):
            vcpu.access(GVA + 0x1000)


def test_rights_are_set_and_cleared() -> None:
    tables = space()
    tables.map(GVA, 0x5000, write=False, execute=False)
    assert tables.entry(GVA) == 0x5000 | 1 | 0x20 | 1 << 63
    tables.protect(GVA, set_bits=USER | WRITABLE | DIRTY, clear_bits=1 << 63)
    assert tables.entry(GVA) == 0x5067


def test_top_entries_can_be_shared() -> None:
    one = space()
    one.map(GVA, 0x5000)
    two = AddressSpace(one.memory, one.frames)
    two.share(GVA, one)
    one.map(GVA + 0x1000, 0x7000)
    assert two.translate(GVA + 0x1000) == 0x7000


def test_what_makes_no_sense_is_refused() -> None:
    tables = space()
    with pytest.raises(ConfigError, match="level 4"):
        tables.map(0, 0, level=4)
    with pytest.raises(ConfigError, match="multiples of 0x200000"):
        tables.map(0x1000, 0, level=2)
    with pytest.raises(ConfigError, match="3 levels"):
        space(3)
    with pytest.raises(MemoryRangeError, match="not mapped"):
        tables.translate(GVA)
    with pytest.raises(MemoryRangeError, match="no level-3 table"):
        tables.unmap(GVA)
    tables.map(0, 0, level=2)
    with pytest.raises(MemoryRangeError, match="large page"):
        tables.map(0x1000, 0)
    with pytest.raises(MemoryRangeError, match="bytes left"):
        FrameAllocator(0, 0x1000).take(size=0x2000)
    with pytest.raises(ConfigError, match="multiple of 4096"):
        Image(100)
    with pytest.raises(MemoryRangeError, match="the image has"):
        Image(4096).write(4090, b"1234567")
