"""What is run: a workload of a size, with some work between switches, on a machine of one policy."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Literal

from shadow_mmu.errors import ConfigError
from shadow_mmu.workloads.fork import fork_churn
from shadow_mmu.workloads.kpti import kpti_pingpong
from shadow_mmu.workloads.threads import thread_churn

if TYPE_CHECKING:
    from collections.abc import Callable

    from shadow_mmu.policy import Policy
    from shadow_mmu.stats import Stats
    from shadow_mmu.workloads.workload import Workload

WorkloadName = Literal["kpti", "fork", "threads"]

# Two roots, the user's and the kernel's, go back and forth on each vCPU.
_KPTI_ROOTS: Final = 2
# Switches of each vCPU, after its first CR3 write, before the warm-up of kpti_pingpong is over.
_KPTI_WARM: Final = 3


def _kpti(vcpus: int, switches: int, seed: int) -> "Workload":
    return kpti_pingpong(vcpus=vcpus, switches=switches + _KPTI_WARM, seed=seed)


def _fork(vcpus: int, switches: int, seed: int) -> "Workload":
    def make(forks: int) -> "Workload":
        return fork_churn(vcpus=vcpus, forks=forks, seed=seed)

    return _as_long_as(make, vcpus * switches)


def _threads(vcpus: int, switches: int, seed: int) -> "Workload":
    def make(cycles: int) -> "Workload":
        return thread_churn(vcpus=vcpus, cycles=cycles, seed=seed)

    return _as_long_as(make, vcpus * switches)


def _as_long_as(make: "Callable[[int], Workload]", switches: int) -> "Workload":
    """Make a workload with about so many switches, having tried how many there are in a small one."""
    tried = 16
    small = make(tried)
    return make(max(2, round(tried * switches / small.switches)))


_MAKERS: "Final[dict[str, Callable[[int, int, int], Workload]]]" = {"kpti": _kpti, "fork": _fork, "threads": _threads}
WORKLOADS: Final[tuple[str, ...]] = tuple(_MAKERS)


@dataclass(frozen=True, slots=True)
class Group:
    """Cells that differ in policy and lock only, and are measured in turns.

    Attributes
    ----------
    name : str
        The workload's.
    vcpus : int
    work : int
        Nanoseconds of guest work between switches.
    workload : Workload

    """

    name: str
    vcpus: int
    work: int
    workload: "Workload" = field(repr=False)


def build(name: str, vcpus: int, work: int, switches: int, seed: int) -> Group:
    """Make the workload of a group: about ``switches`` CR3 writes of each vCPU.

    Raises
    ------
    ConfigError
        There is no such workload, or a number is out of its range.

    """
    make = _MAKERS.get(name)
    if make is None:
        raise ConfigError(f"no workload {name!r}: expected {', '.join(WORKLOADS[:-1])} or {WORKLOADS[-1]}")
    return Group(name, vcpus, work, make(vcpus, switches, seed).with_work(work))


@dataclass(frozen=True, slots=True)
class Counts:
    """What a machine counted from the end of the warm-up to the end of a sample, and what it should have."""

    asked: int
    switches: int
    lockless: int
    acquisitions: int
    contended: int

    @classmethod
    def between(cls, asked: int, before: "Stats", after: "Stats") -> "Counts":
        """Return the difference of two statistics."""
        return cls(
            asked,
            after.cr3.writes - before.cr3.writes,
            after.cr3.lockless - before.cr3.lockless,
            after.lock.total - before.lock.total,
            after.lock.contended - before.lock.contended,
        )

    def __add__(self, other: "Counts") -> "Counts":
        return Counts(
            self.asked + other.asked,
            self.switches + other.switches,
            self.lockless + other.lockless,
            self.acquisitions + other.acquisitions,
            self.contended + other.contended,
        )

    def disagree(self, name: str, policy: "Policy") -> list[str]:
        """Return what is wrong with the counts of a workload under a policy; nothing if they are as they must be."""
        wrong = []
        if self.switches != self.asked:
            wrong.append(f"{self.switches:,} switches done, {self.asked:,} asked for")
        if policy.kind == "locked" and (self.acquisitions < self.asked or self.lockless):
            wrong.append(
                f"{self.acquisitions:,} acquisitions and {self.lockless:,} lock-free switches under {policy.kind!r}: "
                f"expected {self.asked:,} at least, and none"
            )
        # The current root and the previous ones: with room for both roots every switch is a hit, and the fast path.
        fast = name == "kpti" and policy.previous + 1 >= _KPTI_ROOTS
        if fast and (self.acquisitions or self.lockless != self.asked):
            wrong.append(
                f"{self.acquisitions:,} acquisitions and {self.lockless:,} lock-free switches on the fast path: "
                f"expected none, and {self.asked:,}"
            )
        return wrong


NO_COUNTS: Final = Counts(0, 0, 0, 0, 0)
