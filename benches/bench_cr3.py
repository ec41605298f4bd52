"""Rows 4 and 5: the CR3 switch from Python, one call a switch and in a batch, beside unicorn's."""

import itertools
import struct
from typing import Any

import numpy as np
import pytest
from benches.conftest import KERNEL, USER, Measure

from shadow_mmu import Vm
from shadow_mmu.ops import OP
from shadow_mmu.types import OpKind

SCALAR = 100_000
BATCH = 1_000_000
CODE = 0x1_0000
# mov cr3, rax; mov cr3, rbx; dec ecx; jnz to the start
PING_PONG = bytes.fromhex("0f22d8 0f22db ffc9 75f6")


def lock_free(vm: Vm) -> tuple[int, int]:
    """Return the CR3 writes that took no lock so far, and the acquisitions of the ``mmu_lock``."""
    stats = vm.stats
    return stats.cr3.lockless, stats.lock.total


def test_scalar_write(seed_vm: Vm, measure: Measure) -> None:
    write_cr3 = seed_vm.vcpus[0].write_cr3
    before, locks = lock_free(seed_vm)

    def switch() -> None:
        for _ in itertools.repeat(None, SCALAR // 2):
            write_cr3(USER)
            write_cr3(KERNEL)

    measure("scalar", switch, operations=SCALAR)
    after, locks_after = lock_free(seed_vm)
    assert after - before >= 10 * SCALAR
    assert locks_after == locks
    assert seed_vm.vcpus[0].access(0x123, "fetch") == KERNEL + 0x4123


def test_batch(seed_vm: Vm, measure: Measure) -> None:
    program = np.zeros(BATCH, OP)
    program["kind"] = OpKind.WRITE_CR3
    program["addr"] = np.resize(np.array([USER, KERNEL]), BATCH)
    before, locks = lock_free(seed_vm)
    # CPU time of the process: the switches are made by a thread of the core's.
    measure("batch", seed_vm.run, [program], operations=BATCH, process=True)
    after, locks_after = lock_free(seed_vm)
    assert after - before >= 10 * BATCH
    assert locks_after == locks
    assert seed_vm.vcpus[0].access(0x123, "fetch") == KERNEL + 0x4123


@pytest.fixture
def emulator() -> Any:  # noqa: ANN401  unicorn has no types
    """An emulated processor in 64-bit mode, paging on, with the same two roots beside an identity map of the code."""
    unicorn = pytest.importorskip("unicorn")
    x86 = pytest.importorskip("unicorn.x86_const")
    uc = unicorn.Uc(unicorn.UC_ARCH_X86, unicorn.UC_MODE_64)
    uc.mem_map(0, 4 << 20)
    for root in (KERNEL, USER):
        for level in range(3):
            uc.mem_write(root + level * 0x1000, struct.pack("<Q", (root + (level + 1) * 0x1000) | 0x67))
        uc.mem_write(root + 0x3000, struct.pack("<512Q", *((page << 12) | 0x67 for page in range(512))))
    uc.mem_write(CODE, PING_PONG)
    uc.reg_write(x86.UC_X86_REG_CR3, KERNEL)
    uc.reg_write(x86.UC_X86_REG_CR4, uc.reg_read(x86.UC_X86_REG_CR4) | 0x20)
    uc.reg_write(x86.UC_X86_REG_CR0, uc.reg_read(x86.UC_X86_REG_CR0) | 0x8000_0001)
    uc.reg_write(x86.UC_X86_REG_RAX, USER)
    uc.reg_write(x86.UC_X86_REG_RBX, KERNEL)
    return uc


def test_peer_unicorn_reg_write(emulator: Any, measure: Measure) -> None:  # noqa: ANN401
    register = pytest.importorskip("unicorn.x86_const").UC_X86_REG_CR3
    operations = 4_000

    def switch() -> None:
        for _ in itertools.repeat(None, operations // 2):
            emulator.reg_write(register, USER)
            emulator.reg_write(register, KERNEL)

    measure("unicorn scalar", switch, operations=operations)
    assert emulator.reg_read(register) == KERNEL


def test_peer_unicorn_guest_loop(emulator: Any, measure: Measure) -> None:  # noqa: ANN401
    x86 = pytest.importorskip("unicorn.x86_const")
    rounds = 10_000

    def switch() -> None:
        emulator.reg_write(x86.UC_X86_REG_RCX, rounds)
        emulator.emu_start(CODE, CODE + len(PING_PONG))

    measure("unicorn guest", switch, operations=2 * rounds)
    assert emulator.reg_read(x86.UC_X86_REG_RCX) == 0
    assert emulator.reg_read(x86.UC_X86_REG_CR3) == KERNEL
