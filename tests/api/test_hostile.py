"""Hostile arguments: objects that lie about being integers, buffers that go away, not-a-numbers, no depth and no memory left."""

import array
import math
import sys
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from tests.api.guest import DATA, GVA, SIZE, boot
from tests.lifecycle.child import script

from shadow_mmu import (
    ConfigError,
    MemoryRangeError,
    Memslot,
    Policy,
    ProgramError,
    ShadowMmuError,
    Vm,
    VmConfig,
    ops,
    replay_recording,
)
from shadow_mmu.cpu import CpuModel


class Index:
    """Says that it is an integer, by a function."""

    def __init__(self, give: Callable[[], Any]) -> None:
        self.give = give

    def __index__(self) -> Any:  # noqa: ANN401  what must not be given is given
        return self.give()


class Liar(int):
    """An integer that says that it is another one."""

    def __index__(self) -> int:
        return 1 << 70


def fail() -> int:
    raise ZeroDivisionError


INDEX_CALLS: list[Callable[[Vm, Any], object]] = [
    lambda vm, value: vm.memory.read(value, 8),
    lambda vm, value: vm.memory.read(0, value),
    lambda vm, value: vm.memory.read_array(0, value),
    lambda vm, value: vm.memory.write(value, b"x"),
    lambda vm, value: vm.vcpus[0].access(value),
    lambda vm, value: vm.vcpus[0].translate(value),
    lambda vm, value: vm.vcpus[0].translate_many([value]),
    lambda vm, value: vm.vcpus[0].load(value),
    lambda vm, value: vm.vcpus[0].load(GVA, value),
    lambda vm, value: vm.vcpus[0].store(GVA, value),
    lambda vm, value: vm.vcpus[0].invlpg(value),
    lambda vm, value: vm.vcpus[0].write_cr3(value),
    lambda _vm, value: VmConfig(SIZE, vcpus=value),
    lambda _vm, value: VmConfig(SIZE, tlb_entries=value),
    lambda _vm, value: CpuModel(maxphyaddr=value),
    lambda _vm, value: VmConfig(value),
]


@pytest.mark.parametrize("call", INDEX_CALLS)
@pytest.mark.parametrize(
    ("value", "error"),
    [
        (Index(fail), ZeroDivisionError),
        (Index(lambda: "7"), (ShadowMmuError, TypeError)),
        (Index(lambda: None), (ShadowMmuError, TypeError)),
        (Index(lambda: 7.0), (ShadowMmuError, TypeError)),
        (Index(lambda: 1 << 80), ShadowMmuError),
        (Index(lambda: -1), ShadowMmuError),
        (math.nan, (ShadowMmuError, TypeError)),
        (math.inf, (ShadowMmuError, TypeError)),
        (np.float64("nan"), (ShadowMmuError, TypeError)),
        (10**5000, ShadowMmuError),
    ],
    ids=lambda value: None if isinstance(value, (tuple, type)) else type(value).__name__,
)
def test_what_is_no_integer_is_refused_and_changes_nothing(
    call: Callable[[Vm, Any], object], value: object, error: type[Exception]
) -> None:
    with Vm(SIZE, vcpus=1) as vm:
        boot(vm)
        before = vm.state_words().tobytes()
        with pytest.raises(error):
            call(vm, value)
        assert vm.state_words().tobytes() == before
        assert vm.audit() == []


@pytest.mark.parametrize("call", INDEX_CALLS[:12])
def test_an_integer_that_lies_is_taken_for_one_of_its_two_values_or_refused(call: Callable[[Vm, Any], object]) -> None:
    from contextlib import suppress

    with Vm(SIZE, vcpus=1) as vm:
        boot(vm)
        with suppress(Exception):
            call(vm, Liar(8))
        assert vm.audit() == []


def test_an_index_that_closes_the_machine_is_answered() -> None:
    vm = Vm(SIZE, vcpus=1)

    def close() -> int:
        vm.close()
        return 0

    with pytest.raises(ShadowMmuError):
        vm.memory.read(Index(close), 8)
    with pytest.raises(ShadowMmuError):
        vm.vcpus[0].access(Index(close))  # type: ignore[arg-type]


def released() -> memoryview:
    view = memoryview(bytearray(4096))
    view.release()
    return view


BUFFERS: list[tuple[Any, type[Exception]]] = [
    (released(), ConfigError),
    (np.array(["text"]), MemoryRangeError),
    (np.zeros((4, 4)).T[:, :2], ConfigError),
    (np.ma.masked_array([1], [True]).astype(object), ConfigError),
    (memoryview(bytes(16)).cast("d")[::-1], ConfigError),
    ([1, 2, 3], ConfigError),
    (7, ConfigError),
    (None, ConfigError),
    ("text", ConfigError),
    (object(), ConfigError),
]


@pytest.mark.parametrize(("data", "error"), BUFFERS)
def test_what_is_no_plain_buffer_is_not_written(data: Any, error: type[Exception]) -> None:  # noqa: ANN401  nonsense
    with Vm(SIZE, vcpus=1) as vm:
        with pytest.raises(error):
            vm.memory.write(SIZE - 2, data)
        assert vm.memory.read(SIZE - 8, 8) == bytes(8)


@pytest.mark.parametrize("dtype", [">u8", "<i8", "u1", "f8", "c16", "M8[s]", "S3", "?"])
def test_arrays_of_any_plain_type_are_their_bytes(dtype: str) -> None:
    data = np.zeros(4, dtype)
    data.view(np.uint8)[:] = 0xA5
    with Vm(SIZE, vcpus=1) as vm:
        vm.memory.write(16, data)
        assert vm.memory.read(16, data.nbytes) == data.tobytes()


PROGRAMS: list[Any] = [
    np.zeros(3, "u1"),
    np.zeros((2, 2), ops.OP),
    np.zeros(2, ops.OP)[::-1],
    np.zeros((), ops.OP),
    np.zeros(2, ops.OP.newbyteorder(">")),
    np.zeros(2, object),
    bytearray(33),
    memoryview(bytes(32)),
    array.array("Q", [1, 2, 3, 4]),
    [ops.load(GVA)],
    ops.load(GVA),
    "program",
    None,
    7,
]


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda one: type(one).__name__)
def test_what_is_no_program_is_not_run(program: Any) -> None:  # noqa: ANN401  nonsense of any type
    with Vm(SIZE, vcpus=1) as vm, pytest.raises(ProgramError):
        vm.run([program])


def test_a_buffer_that_is_resized_or_written_while_in_use_changes_nothing_that_runs() -> None:
    program = np.tile(ops.program([ops.store(GVA, 5), ops.work(100_000)]), 2_000)
    with Vm(SIZE, vcpus=1) as vm:
        boot(vm)

        def progress(_done: int) -> None:
            program["kind"] = 99

        report = vm.run([program], progress=progress)
        assert (report.ops_done, report.faults) == ((4_000,), 0)
        data = bytearray(8 << 20)
        stop = threading.Event()

        def resize() -> None:
            while not stop.is_set():
                try:
                    data.append(0)
                    data.pop()
                except BufferError:
                    pass  # in use just now

        thread = threading.Thread(target=resize)
        thread.start()
        for _ in range(5):
            vm.memory.write(0, memoryview(data)[:SIZE])
        stop.set()
        thread.join()
        assert vm.audit() == []


@pytest.mark.parametrize("callback", [7, "text", [], object()])
def test_a_callback_that_cannot_be_called_ends_the_run_with_a_type_error(callback: Any) -> None:  # noqa: ANN401  nonsense
    program = np.tile(ops.program([ops.work(50_000_000)]), 100)
    with Vm(SIZE, vcpus=1) as vm:
        with pytest.raises(TypeError, match="not callable"):
            vm.run([program], progress=callback)
        assert vm.audit() == []


def test_a_callback_at_the_recursion_limit_ends_the_run() -> None:
    def deep(_done: int) -> None:
        deep(_done)

    program = np.tile(ops.program([ops.work(50_000_000)]), 100)
    with Vm(SIZE, vcpus=1) as vm:
        with pytest.raises(RecursionError):
            vm.run([program], progress=deep)
        assert vm.audit() == []


def test_calls_at_the_recursion_limit_are_errors_of_python() -> None:
    with Vm(SIZE, vcpus=1) as vm:
        boot(vm)

        def descend(depth: int) -> object:
            return descend(depth - 1) if depth else vm.vcpus[0].access(GVA)

        with pytest.raises(RecursionError):
            descend(sys.getrecursionlimit() + 10)
        assert vm.vcpus[0].access(GVA) == DATA


@pytest.mark.parametrize("lock", ["", "spin", "QUEUED", "queued ", "mcs", "none", "0", "\x00", "ticket,ttas"])
def test_a_lock_that_is_not_there_is_refused_with_those_that_are(lock: str) -> None:
    with pytest.raises(ConfigError, match=r"queued|expected"):
        Vm(SIZE, policy=f"seed,lock={lock}")
    with pytest.raises(ConfigError, match="expected queued, ticket, ttas, mutex or rwlock"):
        Policy.seed(lock=lock)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["", "P99", "p1 ", "../P1", "\x00", "SB2", "all", "MP\n"])
def test_a_litmus_test_that_is_not_there_is_refused_with_those_that_are(name: str) -> None:
    from shadow_mmu.litmus.verdict import run

    with pytest.raises(ShadowMmuError, match=r"expected|known|one of"):
        run(name)


@pytest.mark.parametrize("value", [math.nan, -1, 0, 1.5, "1", True, 1 << 63])
def test_an_audit_period_that_makes_no_sense_is_refused(kpti: Any, value: Any) -> None:  # noqa: ANN401  nonsense
    with pytest.raises(ConfigError, match="audit_every"):
        replay_recording(kpti, ["seed"], audit_every=value)


LIMITED = """
import resource
def limit(more):
    used = int(open("/proc/self/statm").read().split()[0]) * 4096
    resource.setrlimit(resource.RLIMIT_AS, (used + more, resource.getrlimit(resource.RLIMIT_AS)[1]))
def outcome(call):
    try:
        call()
    except Exception as error:
        return type(error).__name__
    return "done"
"""


@pytest.mark.parametrize(
    ("more", "call", "errors"),
    [
        (64, 'Vm("1GiB", vcpus=1)', {"GuestMemoryError"}),
        (64, 'Vm("1MiB", vcpus=64, tlb_entries=65536)', {"GuestMemoryError"}),
        (64, "vm.add_memslot(1 << 30, 1 << 30)", {"GuestMemoryError"}),
        (64, "many.run([BUSY[:4]] * 256)", {"ThreadError"}),
        (32, "vm.memory.read(0, 48 << 20)", {"MemoryError"}),
        (32, "vm.memory.read_array(0, 6 << 20)", {"MemoryError", "_ArrayMemoryError"}),
        (32, "vm.run([np.tile(BUSY, 8)])", {"MemoryError", "_ArrayMemoryError"}),
        (16, "vm.run([long], outcomes=True)", {"GuestMemoryError", "MemoryError"}),
    ],
)
def test_r12_no_memory_is_an_error_and_no_abort(more: int, call: str, errors: set[str]) -> None:
    ended = script(
        LIMITED
        + f"""
vm = Vm("64MiB", vcpus=1)
boot(vm)
many = machine(vcpus=256)
long = np.tile(BUSY, 4)
limit({more} << 20)
said = outcome(lambda: {call})
resource.setrlimit(resource.RLIMIT_AS, resource.getrlimit(resource.RLIMIT_AS)[1:] * 2)
print(said, vm.vcpus[0].access(GVA) == DATA, vm.audit() == [], len(many.vcpus))
"""
    )
    assert ended.code == 0, ended.err
    said, *rest = ended.out.split()
    assert said in errors, ended.err
    assert rest == ["True", "True", "256"]


@pytest.mark.parametrize("gpa", [0, 1 << 20])
def test_memslots_that_fill_memory_are_all_usable(gpa: int) -> None:
    with Vm([Memslot(gpa + (number << 13), 4096) for number in range(512)], vcpus=1) as vm:
        assert len(vm.memory.slots) == 512
        with pytest.raises(ShadowMmuError, match="512"):
            vm.add_memslot(1 << 40, 4096)
        assert len(vm.memory.slots) == 512
