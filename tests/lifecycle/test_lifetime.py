"""Handles, cycles, weak references, and what ten thousand machines leave behind: nothing."""

import copy
import gc
import pickle
import weakref
from collections.abc import Callable

import pytest
from tests.api.guest import DATA, GVA, SIZE
from tests.lifecycle.child import script
from tests.lifecycle.work import machine

from shadow_mmu import ClosedError, Vm


def test_r12_a_vcpu_keeps_its_machine_alive() -> None:
    vm = machine()
    vcpu, memory = vm.vcpus[1], vm.memory
    gone = weakref.ref(vm)
    del vm
    gc.collect()
    assert gone() is None
    vcpu.store(GVA, 7)
    assert memory.read(DATA, 1) == b"\x07"
    assert vcpu.load(GVA) == 7


def test_r12_a_closed_machine_is_closed_for_every_handle() -> None:
    vm = machine()
    vcpu, memory = vm.vcpus[1], vm.memory
    vm.close()
    with pytest.raises(ClosedError):
        vcpu.load(GVA)
    with pytest.raises(ClosedError):
        memory.read(0, 1)
    assert repr(vcpu) == "<Vcpu 1>"
    assert (vcpu.index, memory.size) == (1, SIZE)
    del vm
    gc.collect()
    with pytest.raises(ClosedError):
        vcpu.load(GVA)


class Holder:
    """Something that a machine can be in a cycle with."""

    def __init__(self) -> None:
        self.vm = machine()
        self.vcpus = self.vm.vcpus
        self.me = self


def test_a_machine_in_a_cycle_is_collected() -> None:
    holder = Holder()
    gone: list[Callable[[], object]] = [
        weakref.ref(holder),
        weakref.ref(holder.vm),
        weakref.ref(holder.vm.memory),
        weakref.ref(holder.vcpus[0]),
    ]
    del holder
    gc.collect()
    assert [ref() for ref in gone] == [None] * 4


def test_a_weak_reference_tells_when_the_machine_goes() -> None:
    told: list[str] = []
    vm = machine()
    weakref.finalize(vm, told.append, "gone")
    vm.close()
    assert told == []
    del vm
    assert told == ["gone"]


def test_a_collection_in_the_middle_of_a_run_is_harmless() -> None:
    from tests.lifecycle.work import LONG

    calls = []

    def progress(_done: int) -> None:
        Holder()
        calls.append(gc.collect())
        if len(calls) > 2:
            raise TimeoutError

    with machine() as vm, pytest.raises(TimeoutError):
        vm.run([LONG, LONG], progress=progress)


@pytest.mark.parametrize("make", [copy.copy, copy.deepcopy, pickle.dumps], ids=lambda make: make.__name__)
@pytest.mark.parametrize("part", ["vm", "memory", "vcpu"])
def test_r12_what_lives_can_be_neither_copied_nor_pickled(make: Callable[[object], object], part: str) -> None:
    with machine() as vm:
        with pytest.raises(TypeError, match=r"cannot|can't"):
            make({"vm": vm, "memory": vm.memory, "vcpu": vm.vcpus[0]}[part])
        assert vm.vcpus[0].access(GVA) == DATA


def test_attributes_that_are_not_there_cannot_be_set() -> None:
    with machine() as vm:
        for one, name in ((vm, "stats"), (vm, "polcy"), (vm.memory, "size"), (vm.vcpus[0], "cr3"), (vm.vcpus[0], "x")):
            with pytest.raises(AttributeError):
                setattr(one, name, 1)


def test_a_machine_that_could_not_be_made_has_a_repr() -> None:
    class Traced(Vm):
        def __init__(self, **options: object) -> None:
            made.append(self)
            super().__init__(**options)  # type: ignore[arg-type]

    made: list[Vm] = []
    with pytest.raises(ValueError, match="vcpus is 0"):
        Traced(vcpus=0)
    with pytest.raises(MemoryError):
        Traced(memory=1 << 46)
    assert [repr(one) for one in made] == ["<Vm that could not be made>"] * 2


CYCLES = """
import ctypes
# glibc keeps the freed end of its heap while one small chunk lies above it: given back before each measurement.
trim = getattr(ctypes.CDLL(None), "malloc_trim", lambda _pad: 0)

def rss():
    gc.collect()
    trim(0)
    with open("/proc/self/smaps_rollup") as text:
        return sum(int(line.split()[1]) for line in text if line.startswith(("Rss:", "Swap:")))

def threads():
    return len(os.listdir("/proc/self/task"))

def measure(body, rounds):
    # A pool that fills up somewhere in the interpreter or the allocator shows once; what is left behind, in every window.
    grown, at_first = [], threads()
    for _ in range(WINDOWS):
        before = rss()
        for _ in range(rounds // WINDOWS):
            body()
        grown.append(rss() - before)
    print(*grown, threads() - at_first)
"""
WINDOWS = 4

BODIES = {
    "made and closed": (
        10_000,
        """
        def body():
            Vm(SIZE, vcpus=2).close()
        """,
    ),
    "made and dropped": (
        10_000,
        """
        def body():
            Vm(SIZE, vcpus=2)
        """,
    ),
    "driven by single calls": (
        10_000,
        """
        def body():
            with machine() as vm:
                vm.vcpus[0].store(GVA, 1)
                vm.vcpus[1].load(GVA)
        """,
    ),
    "run on threads": (
        2_000,
        """
        def body():
            with machine() as vm:
                vm.run([BUSY[:40]] * 2, outcomes=True)
                vm.audit(), vm.stats, vm.shadow_pages()
        """,
    ),
    "run until a callback raises, in a cycle": (
        200,
        """
        class Stop(Exception):
            pass
        def body():
            vm = machine()
            def progress(done):
                raise Stop(vm, progress)
            try:
                vm.run([LONG[:2000]] * 2, progress=progress)
            except Stop:
                gc.collect()
        """,
    ),
    "runs that are refused": (
        5_000,
        """
        bad = BUSY[:40].copy()
        bad[20]["kind"] = 99
        kept = machine()
        def body():
            try:
                kept._native.run([bad.view(np.uint8).data])
            except Exception:
                pass
        """,
    ),
}


@pytest.mark.parametrize("name", BODIES)
def test_r12_machines_leave_no_memory_and_no_thread_behind(name: str) -> None:
    rounds, body = BODIES[name]
    from textwrap import dedent

    code = f"import gc\nWINDOWS = {WINDOWS}\n{CYCLES}{dedent(body)}\nmeasure(body, {rounds})"
    ended = script(code, limit=500)
    assert ended.code == 0, ended.err
    *grown, more = map(int, ended.out.split())
    print(f"{rounds:,} machines {name}: RSS grew by {grown} KiB, {more} more threads")
    assert min(grown) * WINDOWS < 1024
    assert more == 0
