"""Machines and programs that are busy for long, and what a machine must still be able to do afterwards."""

import numpy as np
from tests.api.guest import DATA, GVA, READ_ONLY, SIZE, boot

from shadow_mmu import OpKind, Vm, ops

ROUND = ops.program([ops.store(GVA, 1), ops.load(GVA), ops.invlpg(GVA), ops.access(READ_ONLY)])
BUSY = np.tile(ROUND, 50_000)
"""Faults, flushes and locks without a pause, for some tenths of a second."""
LONG = np.tile(np.concatenate([ROUND, ops.program([ops.work(1_000_000)])]), 60_000)
"""A minute of guest work: whoever waits for its end has waited too long."""


def machine(*, vcpus: int = 2, policy: str = "lru:3") -> Vm:
    """Return a booted machine."""
    vm = Vm(SIZE, vcpus=vcpus, policy=policy)
    boot(vm)
    return vm


def usable(vm: Vm) -> bool:
    """Whether every vCPU translates, a program runs, guest memory reads back, and the audit is clean."""
    right = all(vcpu.access(GVA) == DATA for vcpu in vm.vcpus)
    done = vm.run([BUSY[:400]] * len(vm.vcpus)).ops_done
    vm.memory.write(DATA, b"still here")
    return right and set(done) == {400} and vm.memory.read(DATA, 10) == b"still here" and vm.audit() == []


def large_machine() -> Vm:
    """Return a machine with more than a thousand shadow pages, all of their entries present."""
    vm = Vm("16MiB", vcpus=1, tlb_entries=0)
    tables, leaves = 1028, 1028 * 512
    present = 0x67
    root, upper, directories, first = 0x1000, 0x2000, 0x3000, 0x10000
    vm.memory.write(root, np.array([upper | present], "<u8"))
    vm.memory.write(upper, np.arange(3, dtype="<u8") * 0x1000 + directories | present)
    vm.memory.write(directories, np.arange(tables, dtype="<u8") * 0x1000 + first | present)
    vm.memory.write(first, np.arange(leaves, dtype="<u8") % 4096 * 0x1000 | present)
    vm.vcpus[0].write_cr3(root)
    reads = np.zeros(leaves, ops.OP)
    reads["kind"] = OpKind.READ
    reads["addr"] = np.arange(leaves, dtype="<u8") * 0x1000
    assert vm.run([reads]).faults == 0
    return vm


def switches_of_a_new_machine(count: int) -> int:
    """Do ``count`` CR3 writes on a machine of this process, and return how many it counted after the first."""
    with machine() as vm:
        for _ in range(count):
            vm.vcpus[0].write_cr3(vm.vcpus[0].cr3)
        return vm.stats.cr3.writes
