"""Bad input gets a typed exception that names the value, and changes nothing."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from tests.api.guest import GVA, SIZE, boot

from shadow_mmu import (
    ClosedError,
    ConfigError,
    GeneralProtection,
    GuestMemoryError,
    MemoryRangeError,
    Memslot,
    ProgramError,
    ShadowMmuError,
    Vm,
    ops,
)
from shadow_mmu.cpu import CpuModel

NONSENSE: list[tuple[dict[str, Any], type[ShadowMmuError], str]] = [
    ({"vcpus": 0}, ConfigError, "vcpus is 0"),
    ({"vcpus": 1025}, ConfigError, "vcpus is 1025"),
    ({"vcpus": -1}, ConfigError, "vcpus is -1"),
    ({"vcpus": 2.0}, ConfigError, r"vcpus is 2\.0"),
    ({"vcpus": True}, ConfigError, "vcpus is True"),
    ({"vcpus": None}, ConfigError, "vcpus is None"),
    ({"tlb_entries": -1}, ConfigError, "tlb_entries is -1"),
    ({"tlb_entries": 1 << 40}, ConfigError, "tlb_entries is"),
    ({"cpu": 46}, ConfigError, "cpu is 46: expected a CpuModel"),
    ({"policy": "lru:17"}, ConfigError, "lru:17"),
    ({"policy": "lru:-1"}, ConfigError, "lru:-1"),
    ({"policy": None}, ConfigError, "None"),
    ({"memory": 0}, MemoryRangeError, "empty"),
    ({"memory": -4096}, MemoryRangeError, "-0x1000"),
    ({"memory": 4097}, MemoryRangeError, "0x1001"),
    ({"memory": 1 << 47}, MemoryRangeError, "0x800000000000"),
    ({"memory": 1 << 200}, MemoryRangeError, "ends above"),
    ({"memory": "128 apples"}, ConfigError, "128 apples"),
    ({"memory": "1e3MiB"}, ConfigError, "1e3MiB"),
    ({"memory": "-1MiB"}, ConfigError, "-1MiB"),
    ({"memory": "99999999999999999999TiB"}, MemoryRangeError, "ends above"),
    ({"memory": 1.5}, ConfigError, r"1\.5"),
    ({"memory": None}, ConfigError, "None"),
    ({"memory": []}, ConfigError, r"\[\]"),
    ({"memory": [(0, 4096)]}, ConfigError, "list of Memslot"),
    ({"memory": [Memslot(0, 8192), Memslot(4096, 4096)]}, MemoryRangeError, "overlaps"),
    ({"memory": [Memslot(1 << 36, 4096)], "cpu": CpuModel(maxphyaddr=36)}, MemoryRangeError, "36-bit"),
]


@pytest.mark.parametrize(("options", "error", "text"), NONSENSE)
def test_a_machine_that_cannot_be_is_refused(options: dict[str, Any], error: type[ShadowMmuError], text: str) -> None:
    with pytest.raises(error, match=text):
        Vm(**{"memory": SIZE, **options})


def test_memory_that_cannot_be_had_is_refused() -> None:
    with pytest.raises(GuestMemoryError):
        Vm(1 << 46, vcpus=1)


@pytest.mark.parametrize(
    ("gpa", "length"),
    [
        (1, 4096),
        (0, 0),
        (0, 4095),
        (-4096, 4096),
        (0, -4096),
        (1 << 46, 4096),
        (0, 1 << 60),
        (0.0, 4096),
        (0, "4096"),
        (True, 4096),
    ],
)
def test_a_memslot_that_cannot_be_is_refused(gpa: Any, length: Any) -> None:  # noqa: ANN401  nonsense of any type
    with pytest.raises(MemoryRangeError):
        Memslot(gpa, length)
    with Vm(SIZE, vcpus=1) as vm, pytest.raises(MemoryRangeError):
        vm.add_memslot(gpa, length)


@pytest.mark.parametrize("flag", [None, 0, 1, "yes", [True]])
def test_a_memslot_is_read_only_or_not(flag: Any) -> None:  # noqa: ANN401  nonsense of any type
    with pytest.raises(MemoryRangeError, match="read_only must be True or False"):
        Memslot(0, 4096, flag)
    with Vm(SIZE, vcpus=1) as vm, pytest.raises(MemoryRangeError, match="read_only"):
        vm.add_memslot(1 << 30, 4096, read_only=flag)


def test_an_overlapping_memslot_is_refused_and_not_added() -> None:
    with Vm(SIZE, vcpus=1) as vm:
        with pytest.raises(ShadowMmuError):
            vm.add_memslot(SIZE - 4096, 8192)
        assert vm.memory.slots == (Memslot(0, SIZE),)
        with pytest.raises(MemoryRangeError):
            vm.memory.read(SIZE, 1)


Call = Callable[[Vm], object]
CALLS: list[tuple[Call, type[Exception], str]] = [
    (lambda vm: vm.memory.read(-1, 1), MemoryRangeError, "-0x1"),
    (lambda vm: vm.memory.read(0, -1), MemoryRangeError, "-0x1 bytes"),
    (lambda vm: vm.memory.read(SIZE - 1, 2), MemoryRangeError, "."),
    (lambda vm: vm.memory.read(1 << 70, 1), MemoryRangeError, "."),
    (lambda vm: vm.memory.read(0, 1 << 60), MemoryRangeError, "."),
    (lambda vm: vm.memory.read("0", 1), MemoryRangeError, "'0'"),  # type: ignore[arg-type]
    (lambda vm: vm.memory.read_array(0, -1), ConfigError, "words is -1"),
    (lambda vm: vm.memory.write(SIZE, b"x"), MemoryRangeError, "."),
    (lambda vm: vm.memory.write(0, "text"), ConfigError, "data is str"),  # type: ignore[arg-type]
    (lambda vm: vm.memory.write(0, np.zeros(8)[::2]), ConfigError, "strides"),
    (lambda vm: vm.memory.write(0, memoryview(b"abcdef")[::2]), ConfigError, "memoryview"),
    (lambda vm: vm.memory.write(0, np.array([object()])), ConfigError, "object"),
    (lambda vm: vm.vcpus[0].access(1 << 47), GeneralProtection, "."),
    (lambda vm: vm.vcpus[0].access(1 << 64), ShadowMmuError, "."),
    (lambda vm: vm.vcpus[0].access(-1), ShadowMmuError, "."),
    (lambda vm: vm.vcpus[0].access(GVA, "execute"), ShadowMmuError, "execute"),
    (lambda vm: vm.vcpus[0].load(GVA, 3), ShadowMmuError, "3"),
    (lambda vm: vm.vcpus[0].load(GVA, 0), ShadowMmuError, "0"),
    (lambda vm: vm.vcpus[0].load(GVA + 4090, 8), ShadowMmuError, "."),
    (lambda vm: vm.vcpus[0].store(GVA, 1 << 64), ShadowMmuError, "."),
    (lambda vm: vm.vcpus[0].store(GVA, -1), ShadowMmuError, "."),
    (lambda vm: vm.vcpus[0].write_cr3(1 << 46), GeneralProtection, "."),
    (lambda vm: vm.vcpus[0].write_cr3(1 << 63), GeneralProtection, "."),
    (lambda vm: vm.vcpus[0].write_cr3(-1), ShadowMmuError, "."),
    (lambda vm: vm.vcpus[0].write_cr0(1 << 32), GeneralProtection, "."),
    (lambda vm: vm.vcpus[0].write_cr0(0x80000000), GeneralProtection, "."),
    (lambda vm: vm.vcpus[0].write_cr4(0x20 | 1 << 17), GeneralProtection, "."),
    (lambda vm: vm.vcpus[0].write_cr4(0), GeneralProtection, "."),
    (lambda vm: vm.vcpus[0].write_efer(0xD00 | 1 << 12), GeneralProtection, "."),
    (lambda vm: vm.run([]), ProgramError, "0 programs"),
    (lambda vm: vm.run([np.zeros(0, ops.OP)] * 3), ProgramError, "3 programs"),
    (lambda vm: vm.run(np.zeros(2, ops.OP)), ProgramError, "programs is ndarray"),  # type: ignore[arg-type]
    (lambda vm: vm.run([np.zeros(2, "u8")]), ProgramError, "program 0 has dtype"),
    (lambda vm: vm.run([np.zeros(1, ops.OP), np.zeros(4, ops.OP)[::2]]), ProgramError, "program 1 is not contiguous"),
    (lambda vm: vm.run([ops.program([ops.Op(99)])]), ProgramError, "kind is 0x63"),
    (lambda vm: vm.run([ops.program([ops.host_page(0, 0)])]), ProgramError, "row below 0"),
    (lambda vm: vm.run([ops.program([ops.sync_tlb()])], pages=np.zeros((1, 5), "<u8")), ProgramError, "pages"),
]


@pytest.mark.parametrize(("call", "error", "text"), CALLS)
def test_a_call_that_makes_no_sense_is_refused_and_changes_nothing(
    call: Call, error: type[Exception], text: str
) -> None:
    with Vm(SIZE, vcpus=2) as vm:
        boot(vm)
        vm.vcpus[0].access(GVA)
        memory = vm.memory.read(0, SIZE)
        state = vm.state_words().tobytes()
        with pytest.raises(error, match=text):
            call(vm)
        assert vm.state_words().tobytes() == state
        assert vm.memory.read(0, SIZE) == memory
        assert vm.vcpus[0].access(GVA) == vm.vcpus[1].access(GVA)


def test_use_after_close_is_refused() -> None:
    vm = Vm(SIZE, vcpus=1)
    boot(vm)
    vcpu, memory = vm.vcpus[0], vm.memory
    vm.close()
    vm.close()
    calls: list[Callable[[], object]] = [
        lambda: vcpu.access(GVA),
        lambda: vcpu.write_cr3(0),
        lambda: vcpu.invlpg(0),
        lambda: vcpu.load(GVA),
        lambda: vcpu.store(GVA, 1),
        lambda: memory.read(0, 1),
        lambda: memory.write(0, b"x"),
        lambda: vm.stats,
        vm.audit,
        vm.shadow_pages,
        vm.trace,
        vm.state_words,
        lambda: vm.add_memslot(1 << 30, 4096),
        lambda: vm.run([ops.program([ops.sync_tlb()])]),
    ]
    for call in calls:
        with pytest.raises(ClosedError):
            call()
