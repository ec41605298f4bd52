"""The two implementations behind one interface: the model's own, which the compiled core is fitted to."""

from collections.abc import Callable
from functools import partial
from types import ModuleType
from typing import Any, Protocol

from shadow_mmu.model import Machine, Op, Outcome
from shadow_mmu.policy import Policy
from shadow_mmu.workloads.world import MachineConfig


class HypervisorMemory(Protocol):
    """Guest memory from the hypervisor's side."""

    def read(self, gpa: int, length: int) -> bytes:
        """Read bytes."""

    def write(self, gpa: int, data: bytes) -> None:
        """Write bytes."""


class AnyMachine(Protocol):
    """A machine that the tests of behaviour can drive."""

    @property
    def memory(self) -> HypervisorMemory:
        """Guest memory."""

    def execute(self, op: Op) -> Outcome:
        """Run one operation."""

    def add_memslot(self, gpa: int, length: int, *, read_only: bool = False) -> None:
        """Add memory."""

    def stats(self) -> dict[str, Any]:
        """Return what was counted."""

    def audit(self) -> list[str]:
        """Check the invariants."""

    def shadow_pages(self) -> list[dict[str, Any]]:
        """Return every live shadow page."""

    def state_words(self) -> bytes:
        """Return the whole state."""

    def take_trace(self) -> bytes:
        """Return the events since the last call."""


class NativeMemory:
    """Guest memory of the compiled core."""

    def __init__(self, vm: Any) -> None:  # noqa: ANN401  of one of several loaded builds
        self.read = vm.memory_read
        self.write = vm.memory_write


class NativeMachine:
    """The compiled core. ``module`` is the build to use, ``mutant`` the rule to switch off in it."""

    def __init__(self, module: ModuleType, config: MachineConfig, mutant: str | None = None) -> None:
        policy = Policy.parse(config.policy)
        self.vm = module.Vm(
            slots=list(config.slots),
            vcpus=config.vcpus,
            policy=policy.name,
            **policy.options,
            tlb_entries=config.tlb_entries,
            cpu=config.cpu,
            trace=True,
            lock_times=False,
            cr3_times=False,
            mutant=mutant,
        )
        self.memory = NativeMemory(self.vm)
        self.stats, self.audit, self.shadow_pages = self.vm.stats, self.vm.audit, self.vm.shadow_pages
        self.state_words, self.take_trace = self.vm.state_words, self.vm.take_trace

    def add_memslot(self, gpa: int, length: int, *, read_only: bool = False) -> None:
        """Add memory."""
        self.vm.add_memslot(gpa, length, read_only)

    def execute(self, op: Op) -> Outcome:
        """Run one operation."""
        return Outcome(*self.vm.execute(op.pack()))


MachineMaker = Callable[[MachineConfig], AnyMachine]


def model(config: MachineConfig) -> Machine:
    """Make the reference model."""
    return Machine(config.slots, config.vcpus, config.policy, config.tlb_entries, config.cpu, trace=True)


def native(module: ModuleType, mutant: str | None = None) -> MachineMaker:
    """Return the maker of a build of the core."""
    return partial(NativeMachine, module, mutant=mutant)
