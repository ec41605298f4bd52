"""What the Python benches share: a guest with two roots, and a bench that is measured by the rules of the table.

Nine rounds, in CPU time of the thread (of the process where the core's own threads do the work), median and least printed by
``benches/table.py``. An answer that is wrong fails the bench, and the table has no such row then.
"""

import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest

from shadow_mmu import Vm

if TYPE_CHECKING:
    from pytest_benchmark.fixture import BenchmarkFixture

KERNEL, USER = 0x10_0000, 0x10_8000
ENTRY_BITS = 0x67  # present, writable, user, accessed, dirty
ROUNDS = 9

# `measure(row, function, *args, operations=...)`: CPU time of a function that does so many operations.
Measure = Callable[..., None]
# `collect(row, function)`: the function returns its own figure.
Collect = Callable[[str, Callable[[], float]], None]


@pytest.fixture
def seed_vm() -> Iterator[Vm]:
    """A machine under policy ``seed`` whose two roots map one page each, both known to vCPU 0."""
    with Vm(memory="4MiB", vcpus=1, policy="seed") as vm:
        for root in (KERNEL, USER):
            for level in range(4):
                entry = (root + (level + 1) * 0x1000) | ENTRY_BITS
                vm.memory.write(root + level * 0x1000, entry.to_bytes(8, "little"))
        for cr3 in (USER, KERNEL, USER, KERNEL):
            vm.vcpus[0].write_cr3(cr3)
            assert vm.vcpus[0].access(0x123, "fetch") == cr3 + 0x4123
        yield vm


@pytest.fixture
def measure(benchmark: "BenchmarkFixture") -> Measure:
    """Measure ``function(*args)``, which does ``operations`` operations, in CPU time."""

    def run(row: str, function: Callable[..., Any], *args: object, operations: int, process: bool = False) -> None:
        # The clock belongs to the bench: the plugin takes one for each test, and has no setter.
        benchmark._timer = time.process_time if process else time.thread_time  # noqa: SLF001
        benchmark.extra_info.update(row=row, operations=operations)
        benchmark.pedantic(function, args=args, rounds=ROUNDS, warmup_rounds=1)  # type: ignore[no-untyped-call]

    return run


@pytest.fixture
def collect(benchmark: "BenchmarkFixture") -> Collect:
    """Collect the figure that ``function`` returns in each round; what the plugin itself measures is of no interest."""

    def run(row: str, function: Callable[[], float]) -> None:
        values: list[float] = []
        benchmark.pedantic(lambda: values.append(function()), rounds=ROUNDS)  # type: ignore[no-untyped-call]
        benchmark.extra_info.update(row=row, values=values)

    return run
