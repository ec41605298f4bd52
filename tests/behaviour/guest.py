"""A small guest: page tables built by the hypervisor, operations by name, counters by difference."""

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Generic, TypeVar

from tests.behaviour.machines import AnyMachine, MachineMaker
from tests.behaviour.state import VcpuState, vcpu_states

from shadow_mmu.cpu import DEFAULT_CPU, CpuModel
from shadow_mmu.model import Op, Outcome
from shadow_mmu.types import OpFlag, OpKind
from shadow_mmu.workloads.world import MachineConfig

P, W, U, A, D, PS, NX = 1, 2, 4, 1 << 5, 1 << 6, 1 << 7, 1 << 63
RWU = P | W | U
USED = RWU | A | D
ADDRESS = ((1 << 52) - 1) & ~0xFFF
MEMORY = 16 << 20
ROM, ROM_BYTES = 1 << 30, 1 << 20
"""Where a guest has read-only memory, if it has any."""
WINDOW = 0x7F00_0000_0000
"""Where :meth:`Guest.window` maps a frame for guest loads and stores."""


M = TypeVar("M", bound=AnyMachine)

POLICIES = ["locked", "seed", "lru:0", "lru:3"]
CACHING = ["seed", "lru:1", "lru:3", "lru:16"]
PAGE = 0x1000
"""What every root of :class:`GuestMaker` maps."""


class Guest(Generic[M]):
    """A machine and the guest in it. Tables are handed out from 1 MiB up, data frames are the test's own choice."""

    def __init__(self, machine: M, vcpus: int = 1, tlb_entries: int = 1536) -> None:
        self.machine = machine
        self.vcpus, self.tlb_entries = vcpus, tlb_entries
        self.next_table = 0x100000
        self.vcpu = 0

    def state(self, vcpu: int | None = None) -> VcpuState:
        """Return registers, requests, roots and TLB of a vCPU, the current one unless told otherwise."""
        states = vcpu_states(self.machine.state_words(), self.vcpus, self.tlb_entries)
        return states[self.vcpu if vcpu is None else vcpu]

    def visit(self, *roots: int) -> None:
        """Switch to each root in turn and fetch ``PAGE`` there."""
        for root in roots:
            self.cr3(root)
            assert self.fetch(PAGE).code == 0, f"PAGE cannot be fetched under root {root:#x}"

    def table(self) -> int:
        """Return the gpa of a fresh, empty table."""
        self.next_table += 0x1000
        return self.next_table - 0x1000

    def poke(self, gpa: int, word: int) -> None:
        """Hypervisor-side write."""
        self.machine.memory.write(gpa, struct.pack("<Q", word))

    def peek(self, gpa: int) -> int:
        """Hypervisor-side read."""
        return int.from_bytes(self.machine.memory.read(gpa, 8), "little")

    def levels(self) -> int:
        """Levels of the guest's tables."""
        return 5 if self.state().cr4 >> 12 & 1 else 4

    def entry(self, root: int, gva: int, level: int = 1) -> int:
        """Return the gpa of the entry that maps ``gva`` at a level, making the tables above it."""
        table = root & ADDRESS
        for at in range(self.levels(), level, -1):
            gpa = table | (gva >> (3 + 9 * at) & 511) << 3
            if not self.peek(gpa) & P:
                self.poke(gpa, self.table() | RWU)
            table = self.peek(gpa) & ADDRESS
        return table | (gva >> (3 + 9 * level) & 511) << 3

    def map(self, root: int, gva: int, gpa: int, bits: int = RWU, level: int = 1) -> int:
        """Map a page (4 KiB, or larger by ``level``) and return the gpa of its entry."""
        at = self.entry(root, gva, level)
        self.poke(at, gpa | bits | (PS if level > 1 else 0))
        return at

    def window(self, root: int, gpa: int, bits: int = RWU) -> int:
        """Map the frame of ``gpa`` for the guest's own use and return the gva of ``gpa``."""
        gva = WINDOW + (gpa & ~0xFFF)
        self.map(root, gva, gpa & ~0xFFF, bits)
        return gva | gpa & 0xFFF

    def run(self, kind: OpKind, addr: int = 0, *, flags: int = 0, aux: int = 0, value: int = 0) -> Outcome:
        """Run one operation on the current vCPU."""
        return self.machine.execute(Op(kind, flags, self.vcpu, aux, addr, value))

    def cr3(self, value: int) -> Outcome:
        """MOV to CR3."""
        return self.run(OpKind.WRITE_CR3, value)

    def enter(self) -> Outcome:
        """Enter the guest once."""
        return self.run(OpKind.SYNC_TLB)

    def go(self, value: int) -> None:
        """MOV to CR3 and enter the guest."""
        assert self.cr3(value).code == 0
        assert self.enter().code == 0

    def read(self, gva: int, flags: int = 0) -> Outcome:
        """Data read."""
        return self.run(OpKind.READ, gva, flags=flags)

    def write(self, gva: int, flags: int = 0) -> Outcome:
        """Data write, nothing stored."""
        return self.run(OpKind.WRITE, gva, flags=flags)

    def fetch(self, gva: int, flags: int = 0) -> Outcome:
        """Instruction fetch."""
        return self.run(OpKind.FETCH, gva, flags=flags)

    def load(self, gva: int, size: int = 8, flags: int = 0) -> int:
        """Guest load."""
        outcome = self.run(OpKind.LOAD, gva, flags=flags, aux=size)
        assert outcome.code == 0
        return outcome.value

    def store(self, gva: int, value: int, size: int = 8, flags: int = 0) -> Outcome:
        """Guest store."""
        return self.run(OpKind.STORE, gva, flags=flags, aux=size, value=value)

    def invlpg(self, gva: int) -> None:
        """INVLPG."""
        assert self.run(OpKind.INVLPG, gva).code == 0

    def host_cr(self, kind: OpKind, value: int) -> None:
        """Let the host set a register."""
        assert self.run(kind, value, flags=OpFlag.HOST).code == 0

    def set_cr3_by_host(self, value: int) -> None:
        """Give the vCPU a CR3 without the requests of a MOV."""
        self.host_cr(OpKind.WRITE_CR3, value)

    def roots(self, vcpu: int | None = None) -> list[tuple[int, int]]:
        """Return (pgd, hpa) of the current and of each previous root."""
        return list(self.state(vcpu).roots)

    def cached(self) -> list[int | None]:
        """Return the CR3 of each previous root that is valid, ``None`` for the others."""
        return [pgd if hpa != (1 << 64) - 1 else None for pgd, hpa in self.roots()[1:]]

    def locks(self) -> int:
        """Return how often the mmu_lock was taken."""
        return sum(self.machine.stats()["lock"]["acquisitions"].values())

    def lock_reasons(self) -> dict[str, int]:
        """Return acquisitions by reason."""
        reasons: dict[str, int] = self.machine.stats()["lock"]["acquisitions"]
        return reasons

    def counters(self) -> dict[str, int]:
        """Return the counters."""
        counters: dict[str, int] = self.machine.stats()["counters"]
        return counters

    @contextmanager
    def moved(self) -> Iterator[dict[str, int]]:
        """Give a dictionary that holds, after the block, every counter and lock reason that moved."""
        before = {**self.counters(), **{f"lock.{k}": v for k, v in self.lock_reasons().items()}}
        delta: dict[str, int] = {}
        yield delta
        after = {**self.counters(), **{f"lock.{k}": v for k, v in self.lock_reasons().items()}}
        delta.update({name: after[name] - before[name] for name in after if after[name] != before[name]})

    def page(self, gpa: int, *, level: int | None = None) -> dict[str, Any]:
        """Return the newest valid indirect shadow page of a table."""
        return self.pages(gpa, level=level)[-1]

    def pages(self, gpa: int, *, level: int | None = None) -> list[dict[str, Any]]:
        """Return the valid shadow pages of a table, oldest first."""
        return [
            page
            for page in self.machine.shadow_pages()
            if page["gfn"] == gpa >> 12 and not page["invalid"] and level in (None, page["level"])
        ]

    def trace(self) -> list[tuple[int, int, int, int, int, int]]:
        """Return the events since the last call: (kind, vcpu, level, role, gfn, value)."""
        return list(struct.iter_unpack("<BBHIQQ", self.machine.take_trace()))

    def audit(self) -> None:
        """Fail on any violated invariant."""
        found = self.machine.audit()
        assert found == [], "; ".join(found)


class GuestMaker:
    """Makes guests on one implementation."""

    def __init__(self, machine: MachineMaker) -> None:
        self.machine = machine

    def bare(
        self,
        policy: str = "lru:3",
        *,
        vcpus: int = 1,
        memory: int = MEMORY,
        tlb_entries: int = 1536,
        cpu: CpuModel = DEFAULT_CPU,
        rom: bool = False,
    ) -> Guest[AnyMachine]:
        """Return a guest without tables."""
        slots = ((0, memory, False), *([(ROM, ROM_BYTES, True)] if rom else []))
        config = MachineConfig(policy, vcpus, tlb_entries, cpu, slots)
        return Guest(self.machine(config), vcpus, tlb_entries)

    def __call__(
        self,
        policy: str,
        roots: int = 2,
        *,
        vcpus: int = 1,
        memory: int = MEMORY,
        tlb_entries: int = 1536,
    ) -> tuple[Guest[AnyMachine], list[int]]:
        """Return a guest with so many roots, each mapping ``PAGE`` to a frame of its own, and none entered yet."""
        one = self.bare(policy, vcpus=vcpus, memory=memory, tlb_entries=tlb_entries)
        return one, with_roots(one, roots)


def with_roots(one: Guest[M], roots: int) -> list[int]:
    """Give a guest so many roots, each mapping ``PAGE`` to a frame of its own: 0x400000, 0x401000 and so on."""
    tables = [one.table() for _ in range(roots)]
    for number, root in enumerate(tables):
        one.map(root, PAGE, 0x400000 + (number << 12), USED)
    return tables
