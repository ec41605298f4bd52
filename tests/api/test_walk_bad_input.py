"""`Vm.walk` with arguments and machines that it refuses."""

import threading
from collections.abc import Iterator

import pytest

from shadow_mmu import ClosedError, ConfigError, Memslot, VcpuBusyError, Vm, ops

SIZE = 8 << 20


@pytest.fixture
def vm() -> Iterator[Vm]:
    with Vm(SIZE, vcpus=2) as machine:
        yield machine


@pytest.mark.parametrize("gva", [-1, 1 << 64, 1 << 9999, "0", 1.0, None, True, b"1"])
def test_a_gva_that_is_none_is_refused(vm: Vm, gva: object) -> None:
    with pytest.raises(ConfigError, match=r"gva is .*: expected a whole number from 0"):
        vm.walk(gva)  # type: ignore[arg-type]


@pytest.mark.parametrize("vcpu", [-1, 2, 1 << 64, "0", None, 0.5])
def test_a_vcpu_that_is_not_there_is_refused(vm: Vm, vcpu: object) -> None:
    with pytest.raises(ConfigError, match=r"vcpu is .*: expected a whole number from 0 to 1"):
        vm.walk(0, vcpu)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["", "READ", "load", 1, b"read", 1 << 9999])
def test_a_kind_that_there_is_not_is_refused(vm: Vm, kind: object) -> None:
    with pytest.raises(ConfigError, match=r"kind is .*: expected 'read', 'write' or 'fetch'"):
        vm.walk(0, kind=kind)  # type: ignore[arg-type]


def test_a_closed_machine_and_one_that_is_driven_are_refused() -> None:
    vm = Vm(SIZE, vcpus=2)
    program = ops.program([ops.work(50_000_000)] * 8)
    started, done = threading.Event(), threading.Event()

    def run() -> None:
        vm.run([program], progress=lambda _: started.set())
        done.set()

    thread = threading.Thread(target=run)
    thread.start()
    assert started.wait(10)
    if not done.is_set():
        with pytest.raises(VcpuBusyError):
            vm.walk(0, 1)
    thread.join()
    vm.close()
    with pytest.raises(ClosedError):
        vm.walk(0)


def test_memory_holds_what_is_in_slots() -> None:
    with Vm([Memslot(0x1000, 0x1000), Memslot(0x2000, 0x1000), Memslot(0x8000, 0x1000)], vcpus=1) as vm:
        asked = [
            (0x1000, 0x2000),
            (0x1FFF, 2),
            (0, 1),
            (0x2FFF, 2),
            (0x8FFF, 1),
            (0x9000, 1),
            (0x3000, 0x5001),
            (-1, 2),
        ]
        assert [vm.memory.holds(gpa, length) for gpa, length in asked] == [True, True, *[False] * 2, True, *[False] * 3]
