"""A small guest for the API tests: one address space on a machine."""

from shadow_mmu import Vm
from shadow_mmu.workloads.address_space import AddressSpace, FrameAllocator

SIZE = 4 << 20
GVA, READ_ONLY, OUTSIDE = 0x40_0000, 0x40_1000, 0x40_2000
PT_GVA = 0x40_4000
DATA = 0x20_0000


def boot(vm: Vm, *vcpus: int) -> AddressSpace:
    """Build page tables and load them on the vCPUs: data, a read-only page, a page outside memory, the page table."""
    space = AddressSpace(vm.memory, FrameAllocator(0x10000, 0x100000))
    space.map(GVA, DATA, user=True)
    space.map(READ_ONLY, DATA + 0x1000, write=False)
    space.map(OUTSIDE, 0x3000_0000)
    space.map(PT_GVA, space.slot(GVA) & ~0xFFF)
    for vcpu in vcpus or range(len(vm.vcpus)):
        vm.vcpus[vcpu].write_cr3(space.root)
    return space
