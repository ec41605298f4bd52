"""Running a workload on the compiled core under one policy after another."""

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
        Guest faults that the guest does not mean to have: 0.
    violations : tuple of str
        What the audit after the run found; in fork and thread churn also accesses that did not come out as they must.
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
            **self.policy.options,
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

    def _repr_html_(self) -> str:
        """Show the table that the command line prints, in a notebook."""
        from shadow_mmu.tables import kpti_html  # noqa: PLC0415  rich is for those who look

        return kpti_html(self)


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
    workload = kpti_pingpong(vcpus=vcpus, processes=processes, switches=switches, edits=edits, seed=seed)
    results, interrupted = run_workload(workload, policies, lock_times=lock_times, progress=progress)
    return KptiReport(vcpus, processes, switches, edits, seed, results, interrupted)


def run_workload(
    workload: Workload,
    policies: Iterable[Policy | str],
    *,
    lock_times: bool = True,
    check: bool = False,
    progress: Callable[[int], None] | None = None,
) -> tuple[tuple[KptiResult, ...], bool]:
    """Run a workload, each vCPU on its own pinned OS thread, under each policy.

    Parameters
    ----------
    workload : Workload
    policies : iterable of Policy or str
        At least one, none twice.
    lock_times : bool
        Measure waiting for the mmu_lock and holding it; costs two clock reads for each acquisition.
    check : bool
        Keep every outcome and compare it with what it must be; costs 16 bytes for each operation.
    progress : callable, optional
        Called now and then with the number of operations done under all policies so far.

    Returns
    -------
    tuple of KptiResult, bool
        The policies that were finished, and whether Ctrl-C ended it early.

    Raises
    ------
    ConfigError
        A policy is malformed or comes twice, or there is none.
    UnsupportedModeError
        A policy has no long mode.

    """
    wanted = Policy.parse_list(map(str, policies))
    if not wanted:
        raise ConfigError("no policy given: expected at least one")
    for policy in wanted:
        policy.require_long_mode(f"the guest of workload {workload.name!r}")
    results: list[KptiResult] = []
    try:
        for number, policy in enumerate(wanted):
            poll = None if progress is None else partial(_advance, progress, number * workload.operations)
            results.append(_run_one(workload, policy, poll, lock_times=lock_times, check=check))
    except KeyboardInterrupt:
        return tuple(results), True
    return tuple(results), False


def _advance(progress: Callable[[int], None], before: int, done: int) -> None:
    progress(before + done)


def _run_one(
    workload: Workload, policy: Policy, progress: Callable[[int], None] | None, *, lock_times: bool, check: bool
) -> KptiResult:
    with Vm(memory=workload.memory, vcpus=len(workload.programs), policy=policy, lock_times=lock_times) as vm:
        vm.memory.write(0, workload.image.words)
        report = vm.run(workload.programs, outcomes=check, pin=True, progress=progress)
        rate = workload.switches / report.seconds if report.seconds else 0.0
        violations = [*vm.audit(), *workload.wrong(report.outcomes or ())] if check else vm.audit()
        faults = report.faults - workload.meant_faults
        return KptiResult(policy, report.seconds, rate, faults, tuple(violations), vm.stats)
