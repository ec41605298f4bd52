"""A panic in a thread that drives a machine: everybody stops, the error comes once, the machine says that it is broken."""

import gc
import threading
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from tests.lifecycle.work import LONG
from tests.mutants.scenarios import PANIC_VALUE

from shadow_mmu import BrokenError, ops
from shadow_mmu.cpu import DEFAULT_CPU
from shadow_mmu.types import OpKind
from shadow_mmu.workloads.address_space import AddressSpace, FrameAllocator

if TYPE_CHECKING:
    from collections.abc import Callable

GVA, DATA, SIZE = 0x40_0000, 0x20_0000, 4 << 20
BOMB = ops.program([ops.store(GVA, PANIC_VALUE)])


class Memory:
    """Guest memory of the native machine as page tables are built in."""

    def __init__(self, vm: Any) -> None:  # noqa: ANN401  of the test build
        self.read, self.write = vm.memory_read, vm.memory_write


def broken_by(build: ModuleType, mutant: str, vcpus: int = 2) -> tuple[Any, AddressSpace]:
    """Return a booted machine that has the mutant."""
    vm = build.Vm(
        slots=[(0, SIZE, False)],
        vcpus=vcpus,
        policy="lru:3",
        tlb_entries=64,
        cpu=DEFAULT_CPU,
        trace=False,
        lock_times=False,
        cr3_times=False,
        mutant=mutant,
    )
    space = AddressSpace(Memory(vm), FrameAllocator(0x10000, 0x100000))
    space.map(GVA, DATA, user=True)
    for vcpu in vm.vcpus:
        vcpu.write_cr3(space.root)
        vcpu.access(GVA)
    return vm, space


def raw(program: Any) -> memoryview:  # noqa: ANN401  an array of OP
    return memoryview(program.view(np.uint8).data)


def run(vm: Any, *programs: Any) -> Any:  # noqa: ANN401  the test build
    return vm.run([raw(program) for program in programs])


def refused(vm: Any) -> None:  # noqa: ANN401  the test build
    """Whatever would change the machine says that it is broken; whatever looks at it does not, nor does closing."""
    calls: list[Callable[[], object]] = [
        lambda: run(vm, LONG[:5]),
        lambda: vm.replay(raw(LONG[:5]), b"", threads=False, check=False, audit_every=0, events=bytes(5)),
        lambda: vm.vcpus[0].access(GVA),
        lambda: vm.vcpus[1].write_cr3(0),
        lambda: vm.execute(raw(LONG[:1])),
        lambda: vm.memory_write(DATA, b"x"),
        lambda: vm.add_memslot(1 << 30, 4096),
    ]
    for call in calls:
        with pytest.raises(BrokenError, match="this machine is broken"):
            call()
    assert vm.memory_read(DATA, 8) is not None
    assert len(vm.stats()["per_vcpu"]) == 2
    assert vm.shadow_pages()
    assert vm.state_words()
    vm.audit()
    assert repr(vm.vcpus[0]) == "<Vcpu 0>"
    vm.close()


def test_r11_a_panic_in_a_vcpu_thread_stops_the_others_and_is_told_once(mutant_build: ModuleType) -> None:
    vm, _ = broken_by(mutant_build, "panic-in-guest")
    before = threading.active_count()
    with pytest.raises(BrokenError, match=r"the thread of vCPU 1 panicked: panic-in-guest"):
        run(vm, LONG, np.concatenate([LONG[:50], BOMB, LONG]))
    assert threading.active_count() == before
    # Nobody is inside the guest and no lock is held, or what looks at the machine would hang.
    refused(vm)


def test_r11_panics_in_both_vcpu_threads_are_told_as_one(mutant_build: ModuleType) -> None:
    vm, _ = broken_by(mutant_build, "panic-in-guest")
    with pytest.raises(BrokenError, match=r"the thread of vCPU [01] panicked: panic-in-guest"):
        run(vm, BOMB, BOMB)
    refused(vm)


@pytest.mark.parametrize("threads", [False, True])
def test_r11_a_panic_in_a_replay_is_told_once(mutant_build: ModuleType, threads: bool) -> None:  # noqa: FBT001  a case
    vm, _ = broken_by(mutant_build, "panic-in-guest")
    program = np.tile(np.concatenate([LONG[:4], BOMB]), 2)
    program["vcpu"] = np.arange(10) % 2
    with pytest.raises(BrokenError, match="panic-in-guest"):
        vm.replay(raw(program), b"", threads=threads, check=False, audit_every=0, events=bytes(10))
    refused(vm)


def test_r11_a_panic_in_a_single_call_is_a_typed_error_too(mutant_build: ModuleType) -> None:
    vm, _ = broken_by(mutant_build, "panic-in-guest")
    with pytest.raises(BrokenError, match="the core panicked, which is a bug of shadow-mmu: panic-in-guest"):
        vm.vcpus[0].store(GVA, PANIC_VALUE)
    refused(vm)


def test_r11_a_panic_under_the_lock_gives_it_up_and_the_audit_sees_what_was_left_half_done(
    mutant_build: ModuleType,
) -> None:
    vm, space = broken_by(mutant_build, "panic-under-lock")
    assert vm.audit() == []
    table_entry = space.slot(GVA)
    with pytest.raises(BrokenError, match="panic-under-lock"):
        vm.memory_write(table_entry, PANIC_VALUE.to_bytes(8, "little"))
    assert vm.audit() != []
    refused(vm)


def test_r11_a_panic_under_the_lock_in_a_run_stops_a_vcpu_that_waits_for_it(mutant_build: ModuleType) -> None:
    vm, space = broken_by(mutant_build, "panic-under-lock")
    bomb = ops.program([ops.host_store(space.slot(GVA), PANIC_VALUE)])
    assert bomb["kind"][0] == OpKind.HOST_STORE
    faults = np.tile(ops.program([ops.invlpg(GVA), ops.load(GVA)]), 100_000)
    with pytest.raises(BrokenError, match="vCPU 0 panicked: panic-under-lock"):
        run(vm, np.concatenate([faults[:5_000], bomb]), faults)
    refused(vm)


def test_r11_a_broken_machine_leaves_others_alone_and_is_freed(mutant_build: ModuleType) -> None:
    vm, _ = broken_by(mutant_build, "panic-in-guest")
    other, _ = broken_by(mutant_build, "panic-in-guest")
    with pytest.raises(BrokenError):
        run(vm, BOMB)
    del vm
    gc.collect()
    assert run(other, LONG[:500])["ops_done"] == [500]
    assert other.audit() == []
