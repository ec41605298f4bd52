"""Running the KPTI workload on the compiled core under one policy after another."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

from shadow_mmu.errors import ConfigError
from shadow_mmu.policy import Policy
from shadow_mmu.stats import Stats
from shadow_mmu.vm import Vm
from shadow_mmu.workloads.kpti import kpti_pingpong
from shadow_mmu.workloads.workload import Workload


@dataclass(frozen=True, slots=True)
class KptiResult:
    """One policy's run.

    Attributes
    ----------
    policy : Policy
    seconds : float
        From the first operation to the last.
    switches_per_second : float
        CR3 writes of all vCPUs together, a second.
    faults : int
        Guest faults: 0, the guest has none.
    violations : tuple of str
        What the audit after the run found.
    stats : Stats

    """

    policy: Policy
    seconds: float
    switches_per_second: float
    faults: int
    violations: tuple[str, ...]
    stats: Stats

    def as_dict(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {
            "policy": str(self.policy),
            "lock": self.policy.lock,
            "link": self.policy.link,
            "seconds": self.seconds,
            "switches_per_second": self.switches_per_second,
            "faults": self.faults,
            "violations": list(self.violations),
            **self.stats.figures(),
        }


@dataclass(frozen=True, slots=True)
class KptiReport:
    """The runs of one workload."""

    vcpus: int
    processes: int
    switches: int
    edits: float
    seed: int
    results: tuple[KptiResult, ...]
    interrupted: bool = False

    @property
    def ok(self) -> bool:
        """Whether no run faulted and every invariant held."""
        return not any(result.faults or result.violations for result in self.results)

    def as_dict(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {
            "workload": "kpti",
            "vcpus": self.vcpus,
            "processes": self.processes,
            "switches": self.switches,
            "edits": self.edits,
            "seed": self.seed,
            "results": [result.as_dict() for result in self.results],
            "interrupted": self.interrupted,
        }


def run_kpti(
    policies: Iterable[Policy | str] = ("locked", "seed"),
    *,
    vcpus: int = 2,
    processes: int = 1,
    switches: int = 100_000,
    edits: float = 0.0,
    seed: int = 0,
    lock_times: bool = True,
    progress: Callable[[int], None] | None = None,
) -> KptiReport:
    """Run KPTI ping-pong, each vCPU on its own pinned OS thread, under each policy.

    Parameters
    ----------
    policies : iterable of Policy or str
        At least one, none twice.
    vcpus, processes, switches, edits, seed
        As for :func:`shadow_mmu.workloads.kpti.kpti_pingpong`.
    lock_times : bool
        Measure waiting for the mmu_lock and holding it; costs two clock reads for each acquisition.
    progress : callable, optional
        Called now and then with the number of operations done under all policies so far.

    Returns
    -------
    KptiReport
        Ctrl-C ends it early, with ``interrupted`` set and the results of the policies that were finished.

    Raises
    ------
    ConfigError
        A parameter is out of range.

    """
    wanted = Policy.parse_list(map(str, policies))
    if not wanted:
        raise ConfigError("no policy given: expected at least one")
    workload = kpti_pingpong(vcpus=vcpus, processes=processes, switches=switches, edits=edits, seed=seed)
    total = sum(map(len, workload.programs))
    results: list[KptiResult] = []
    interrupted = False
    try:
        for number, policy in enumerate(wanted):
            poll = None if progress is None else partial(_advance, progress, number * total)
            results.append(_run_one(workload, policy, poll, lock_times=lock_times))
    except KeyboardInterrupt:
        interrupted = True
    return KptiReport(vcpus, processes, switches, edits, seed, tuple(results), interrupted)


def _advance(progress: Callable[[int], None], before: int, done: int) -> None:
    progress(before + done)


def _run_one(
    workload: Workload, policy: Policy, progress: Callable[[int], None] | None, *, lock_times: bool
) -> KptiResult:
    vcpus = len(workload.programs)
    with Vm(memory=workload.memory, vcpus=vcpus, policy=policy, lock_times=lock_times) as vm:
        vm.memory.write(0, workload.image.words)
        report = vm.run(workload.programs, pin=True, progress=progress)
        rate = workload.switches / report.seconds if report.seconds else 0.0
        violations = tuple(vm.audit())
        return KptiResult(policy, report.seconds, rate, report.faults, violations, vm.stats)
