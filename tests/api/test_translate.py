"""Looks at translations from Python: what is taken and given, that nothing changes, that other threads and Ctrl-C get their turn."""

import array
import pickle
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from tests.api.guest import DATA, GVA, OUTSIDE, READ_ONLY, SIZE, boot

from shadow_mmu import (
    ClosedError,
    ConfigError,
    GeneralProtection,
    MmioExit,
    PageFault,
    ProgramError,
    Translations,
    Vcpu,
    VcpuBusyError,
    Vm,
)

NOWHERE = 0x7000_0000
WRONG = 1 << 63
T, N = Translations.TRANSLATED, Translations.NOT_CANONICAL
# A look at 2^24 addresses takes some tenths of a second.
LONG = np.full(1 << 24, GVA, np.uint64)
SLOW = np.full(
    1 << 24, NOWHERE, np.uint64
)  # every one of them is walked from the root, for longer than signals are left waiting


@pytest.fixture
def vm() -> Iterator[Vm]:
    with Vm(SIZE, vcpus=2) as machine:
        boot(machine)
        yield machine


@pytest.fixture
def vcpu(vm: Vm) -> Vcpu:
    return vm.vcpus[0]


def everything(vm: Vm) -> tuple[Any, ...]:
    return vm.state_words().tobytes(), vm.memory.read(0, SIZE), vm.stats


def test_a_look_is_what_an_access_would_come_to(vcpu: Vcpu) -> None:
    assert vcpu.translate(GVA + 5, user=True) == DATA + 5
    assert vcpu.translate(READ_ONLY, "fetch") == DATA + 0x1000
    assert vcpu.translate(OUTSIDE, "write") == 0x3000_0000
    assert vcpu.access(OUTSIDE, "write") == MmioExit(0x3000_0000)
    for gva, kind, user, code in [
        (READ_ONLY, "write", False, 3),
        (READ_ONLY, "read", True, 5),
        (NOWHERE, "fetch", True, 0x14),
    ]:
        for call in (vcpu.translate, vcpu.access):
            with pytest.raises(PageFault) as fault:
                call(gva, kind, user=user)
            assert (fault.value.address, fault.value.error_code) == (gva, code)
    with pytest.raises(GeneralProtection):
        vcpu.translate(WRONG)


def test_a_look_changes_nothing(vm: Vm, vcpu: Vcpu) -> None:
    before = everything(vm)
    for kind in ("read", "write", "fetch"):
        vcpu.translate(GVA, kind)
        vcpu.translate_many([GVA, READ_ONLY, OUTSIDE, NOWHERE, WRONG], kind)
        vcpu.translate_many(np.full(5000, GVA, np.uint64), kind)
    with pytest.raises(PageFault):
        vcpu.translate(NOWHERE, "write")
    assert everything(vm) == before
    vcpu.access(GVA, "write")
    assert everything(vm) != before


def test_a_look_sees_what_the_tables_say_now(vm: Vm) -> None:
    vcpu = vm.vcpus[0]
    entry = boot(vm).slot(GVA)
    assert vcpu.access(GVA) == DATA
    word = int.from_bytes(vm.memory.read(entry, 8), "little")
    vcpu.store(GVA + 0x4000 + (entry & 0xFFF), word + 0x7000)  # the page table as the guest sees it; no INVLPG
    assert vcpu.access(GVA) == DATA
    assert vcpu.translate(GVA) == DATA + 0x7000
    vcpu.invlpg(GVA)
    assert vcpu.access(GVA) == DATA + 0x7000


def test_many_looks_at_once(vcpu: Vcpu) -> None:
    found = vcpu.translate_many([GVA + 1, READ_ONLY, OUTSIDE, NOWHERE, WRONG], "write")
    none = Translations.NO_GPA
    assert found.gpa.tolist() == [DATA + 1, none, 0x3000_0000, none, none]
    assert found.error.tolist() == [T, 3, T, 2, N]
    assert found.translated.tolist() == [True, False, True, False, False]
    assert (found.gpa.dtype.name, found.error.dtype.name) == ("uint64", "int32")
    assert repr(found) == "<Translations of 5 addresses: 2 translated, 2 page faults, 1 not canonical>"
    assert pickle.loads(pickle.dumps(found)) == found  # noqa: S301  our own
    with pytest.raises(ValueError, match="read-only"):
        found.gpa[0] = 1
    with pytest.raises(AttributeError):
        found.error = found.error  # type: ignore[misc]


def test_a_page_fault_of_code_0_is_no_translation(vcpu: Vcpu) -> None:
    found = vcpu.translate_many([NOWHERE])
    assert (found.error.tolist(), found.translated.tolist()) == ([0], [False])


@pytest.mark.parametrize("count", [0, 1, 95, 96, 97, 1023, 1024, 1025, 2049])
def test_any_number_of_addresses(vcpu: Vcpu, count: int) -> None:
    pages = np.array([GVA, READ_ONLY, OUTSIDE, NOWHERE, WRONG], np.uint64)
    gvas = np.resize(pages, count) + np.arange(count, dtype=np.uint64) % np.uint64(4096)
    found = vcpu.translate_many(gvas)
    one_by_one = [vcpu.translate_many(gvas[at : at + 1]) for at in range(count)]
    assert found.gpa.tolist() == [one.gpa[0] for one in one_by_one]
    assert found.error.tolist() == [one.error[0] for one in one_by_one]


def least(work: Callable[[], object]) -> float:
    """Return the CPU time of the best of some tries."""
    times = []
    for _ in range(5):
        began = time.thread_time()
        work()
        times.append(time.thread_time() - began)
    return min(times)


def test_many_looks_cost_less_than_as_many_calls(vcpu: Vcpu) -> None:
    """A quarter of them, where it was measured; half of that is asked for."""
    gvas = np.full(20_000, GVA, np.uint64)
    one_by_one = gvas.tolist()

    def calls() -> None:
        for gva in one_by_one:
            vcpu.translate(gva)

    assert least(lambda: vcpu.translate_many(gvas)) * 2 < least(calls)


WORDS = np.array([[GVA, GVA + 1], [WRONG, NOWHERE]], np.uint64)


@pytest.mark.parametrize(
    "gvas",
    [
        WORDS,
        WORDS.T,
        np.asfortranarray(WORDS),
        np.repeat(WORDS, 2, 1)[:, ::2],
        WORDS[::-1],
        WORDS.astype(">u8"),
        WORDS.astype(object),
        WORDS[:1].astype(np.int64),
        WORDS[:1].astype(np.uint32),
        WORDS[:0],
        np.frombuffer(b"\0" + WORDS.tobytes(), np.uint8)[1:].view(np.uint64),
    ],
    ids=["C", "transposed", "Fortran", "strided", "backwards", "big-endian", "object", "int64", "uint32", "empty", "misaligned"],
)  # fmt: skip
def test_arrays_of_whole_numbers_keep_their_shape(vcpu: Vcpu, gvas: Any) -> None:  # noqa: ANN401  of any dtype
    found = vcpu.translate_many(gvas)
    assert found.gpa.shape == found.error.shape == gvas.shape
    flat = [int(gva) for gva in gvas.ravel().tolist()]
    assert found.gpa.ravel().tolist() == vcpu.translate_many(flat).gpa.tolist()


@pytest.mark.parametrize(
    "gvas",
    [
        [GVA, WRONG],
        (GVA, WRONG),
        [np.uint64(GVA), np.uint64(WRONG)],
        array.array("Q", [GVA, WRONG]),
        memoryview(array.array("Q", [GVA, WRONG])),
    ],
    ids=["list", "tuple", "numpy integers", "array", "memoryview"],
)
def test_other_whole_numbers(vcpu: Vcpu, gvas: Any) -> None:  # noqa: ANN401  of several types
    assert vcpu.translate_many(gvas).error.tolist() == [T, N]
    nothing: list[Any] = [[], (), np.array([]), range(0)]
    assert all(vcpu.translate_many(none).gpa.shape == (0,) for none in nothing)
    assert vcpu.translate_many(range(GVA, GVA + 2)).gpa.tolist() == [DATA, DATA + 1]


@pytest.mark.parametrize(
    ("gvas", "told"),
    [
        (GVA, "gvas is int: expected an array"),
        (None, "gvas is NoneType"),
        ("abc", "gvas is str"),
        (b"abcdefgh", "gvas is bytes"),
        (np.uint64(GVA), "one value"),
        ([1.0], r"gvas\[0\] is 1.0"),
        ([GVA, -1], r"gvas\[1\] is -0x1"),
        ([1 << 64], r"gvas\[0\] is 0x10000000000000000"),
        ([10**5000], r"gvas\[0\] is an integer of 16,610 bits"),
        ([[GVA]], r"gvas\[0\] is \["),
        ([None], r"gvas\[0\] is None"),
        (np.array([1.5]), "array of float64"),
        (np.array([True]), "array of bool"),
        (np.array(["x"]), "array of <U1"),
        (np.array([GVA, -2]), "gvas has -2"),
        (np.array([GVA, None], object), r"gvas\[1\] is None"),
    ],
)
def test_what_is_no_array_of_addresses_is_told_with_what_it_is(vm: Vm, gvas: Any, told: str) -> None:  # noqa: ANN401  anything
    before = everything(vm)
    with pytest.raises(ProgramError, match=told):
        vm.vcpus[0].translate_many(gvas)
    assert everything(vm) == before


def test_a_kind_that_is_none_is_told(vcpu: Vcpu) -> None:
    for call in (lambda: vcpu.translate(GVA, "look"), lambda: vcpu.translate_many([GVA], "look")):
        with pytest.raises(ConfigError, match='got "look", expected "read", "write" or "fetch"'):
            call()


def test_a_machine_that_is_closed_is_not_looked_at(vm: Vm, vcpu: Vcpu) -> None:
    vm.close()
    with pytest.raises(ClosedError):
        vcpu.translate(GVA)
    with pytest.raises(ClosedError):
        vcpu.translate_many(LONG[:3000])


def test_a_long_look_lets_other_threads_work_and_keeps_its_vcpu(vm: Vm) -> None:
    looking = threading.Event()
    done: list[Translations] = []

    def look() -> None:
        looking.set()
        done.append(vm.vcpus[0].translate_many(LONG))

    thread = threading.Thread(target=look)
    thread.start()
    looking.wait()
    busy = others = 0
    while not done:
        try:
            vm.vcpus[0].translate(GVA)
        except VcpuBusyError:
            busy += 1
        others += vm.vcpus[1].access(GVA, "write") == DATA
    thread.join()
    assert busy > 100
    assert others > 100
    assert done[0].translated.all()
    assert vm.vcpus[0].translate(GVA) == DATA


def look_for_ever(vcpu: Vcpu) -> None:
    while True:
        vcpu.translate_many(LONG)


def test_ctrl_c_ends_a_long_look_and_the_vcpu_is_free(vm: Vm, vcpu: Vcpu) -> None:
    before = everything(vm)
    main = threading.main_thread().ident
    assert main is not None
    old = signal.signal(signal.SIGINT, signal.default_int_handler)
    timer = threading.Timer(0.08, signal.pthread_kill, (main, signal.SIGINT))
    try:
        began = time.perf_counter()
        timer.start()
        with pytest.raises(KeyboardInterrupt):
            look_for_ever(vcpu)
        assert time.perf_counter() - began < 2
    finally:
        timer.join()
        signal.signal(signal.SIGINT, old)
    assert everything(vm) == before
    assert vcpu.translate(GVA) == DATA


def test_a_handler_that_looks_at_the_same_vcpu_is_told_that_it_is_busy(vcpu: Vcpu) -> None:
    told: list[BaseException] = []

    def handler(_number: int, _frame: object) -> None:
        try:
            vcpu.translate(GVA)
        except VcpuBusyError as error:
            told.append(error)

    old = signal.signal(signal.SIGALRM, handler)
    signal.setitimer(signal.ITIMER_REAL, 0.02, 0.02)
    try:
        for _ in range(20):
            assert not vcpu.translate_many(SLOW).translated.any()
            if told:
                break
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old)
    assert told
