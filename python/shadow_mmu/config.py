"""What a machine is made of, as a value: it can be compared, hashed, pickled, and a machine made of it.

>>> from shadow_mmu import Vm, VmConfig
>>> config = VmConfig("64KiB", vcpus=1, policy="seed")
>>> with Vm.from_config(config) as vm:
...     vm.config == config
True
"""

import operator
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final, SupportsIndex

from shadow_mmu.checks import shown, whole
from shadow_mmu.cpu import DEFAULT_CPU, CpuModel
from shadow_mmu.errors import ConfigError, MemoryRangeError
from shadow_mmu.policy import Policy
from shadow_mmu.types import MAX_VCPUS, Memslot

MAX_TLB_ENTRIES: Final = 1 << 16
_SIZE = re.compile(r"\s*([0-9]{1,20})\s*(B|K|M|G|T|KiB|MiB|GiB|TiB)?\s*", re.ASCII)
_SHIFT = {"B": 0, "K": 10, "M": 20, "G": 30, "T": 40}


def parse_size(text: str) -> int:
    """Read a size such as ``"128MiB"``, ``"4 KiB"`` or ``"1G"`` (binary units) in bytes.

    Raises
    ------
    ConfigError
        It is no such size.

    """
    match = _SIZE.fullmatch(text)
    if match is None:
        raise ConfigError(f"no size {text!r}: expected a number and one of B, KiB, MiB, GiB, TiB")
    return int(match[1]) << _SHIFT[(match[2] or "B")[0]]


def memslots(memory: object, maxphyaddr: int = 46) -> tuple[Memslot, ...]:
    """Return the memslots that ``memory`` asks for: a size (one slot at gpa 0) or a list of slots.

    Raises
    ------
    ConfigError
        It is neither.
    MemoryRangeError
        A slot is misaligned, ends above guest-physical memory, or overlaps another.

    """
    if isinstance(memory, str):
        memory = parse_size(memory)
    if isinstance(memory, SupportsIndex) and not isinstance(memory, bool):
        memory = [Memslot(0, operator.index(memory))]
    if not isinstance(memory, Sequence) or not memory or not all(isinstance(slot, Memslot) for slot in memory):
        raise ConfigError(f"memory is {memory!r}: expected a size such as '128MiB', bytes, or a list of Memslot")
    slots = tuple(sorted(memory, key=lambda slot: slot.gpa))
    for before, after in pairwise(slots):
        if before.gpa + before.bytes > after.gpa:
            raise MemoryRangeError(f"{after!r} overlaps {before!r}")
    if slots[-1].gpa + slots[-1].bytes > 1 << maxphyaddr:
        raise MemoryRangeError(f"{slots[-1]!r} ends above the {maxphyaddr}-bit guest-physical address space")
    return slots


@dataclass(frozen=True, slots=True, init=False)
class VmConfig:
    """Everything that is fixed when a :class:`~shadow_mmu.Vm` is made.

    What may be given more loosely (a size, a policy as text) is kept in one form, so that machines made alike have equal
    configurations.

    Parameters
    ----------
    memory, vcpus, policy, tlb_entries, cpu, trace, lock_times, lock_watch
        As for :class:`~shadow_mmu.Vm`.

    Attributes
    ----------
    memory : tuple of Memslot
        By ascending gpa.
    policy : Policy

    Raises
    ------
    ConfigError, MemoryRangeError
        A parameter is out of its range; the text names the value and what is allowed.

    """

    memory: tuple[Memslot, ...]
    vcpus: int
    policy: Policy
    tlb_entries: int
    cpu: CpuModel
    trace: bool
    lock_times: bool
    lock_watch: bool

    def __init__(
        self,
        memory: str | int | Sequence[Memslot] = "128MiB",
        *,
        vcpus: int = 2,
        policy: Policy | str = "lru:3",
        tlb_entries: int = 1536,
        cpu: CpuModel = DEFAULT_CPU,
        trace: bool = False,
        lock_times: bool = False,
        lock_watch: bool = False,
    ) -> None:
        if not isinstance(cpu, CpuModel):
            raise ConfigError(f"cpu is {shown(cpu)}: expected a CpuModel")
        values = {
            "policy": policy if isinstance(policy, Policy) else Policy.parse(policy),
            "vcpus": whole("vcpus", vcpus, 1, MAX_VCPUS),
            "tlb_entries": whole("tlb_entries", tlb_entries, 0, MAX_TLB_ENTRIES),
            "cpu": cpu,
            "memory": memslots(memory, cpu.maxphyaddr),
            "trace": bool(trace),
            "lock_times": bool(lock_times),
            "lock_watch": bool(lock_watch),
        }
        for name, value in values.items():
            object.__setattr__(self, name, value)
