"""Running fork churn and thread churn on the compiled core under one policy after another, every access checked."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from inspect import signature
from typing import Any, Final, Literal

from shadow_mmu.errors import ConfigError
from shadow_mmu.policy import Policy
from shadow_mmu.workloads.fork import fork_churn
from shadow_mmu.workloads.runner import KptiResult, run_workload
from shadow_mmu.workloads.threads import thread_churn
from shadow_mmu.workloads.workload import Workload

ChurnName = Literal["fork", "threads"]

_MAKERS: Final[Mapping[str, Callable[..., Workload]]] = {"fork": fork_churn, "threads": thread_churn}


@dataclass(frozen=True, slots=True)
class ChurnReport:
    """The runs of one workload.

    Attributes
    ----------
    workload : str
        ``fork`` or ``threads``.
    vcpus : int
    seed : int
    rates : tuple of (str, int or float)
        The other parameters that were given.
    switches : int
        CR3 writes of all vCPUs together, each vCPU's first not counted.
    meant_faults : int
        Page faults that the guest means to have, of all vCPUs together.
    results : tuple of KptiResult
        In the order of the policies; one that an interrupt left undone is not in it.
    interrupted : bool

    """

    workload: str
    vcpus: int
    seed: int
    rates: tuple[tuple[str, int | float], ...]
    switches: int
    meant_faults: int
    results: tuple[KptiResult, ...]
    interrupted: bool = False

    @property
    def ok(self) -> bool:
        """Whether every access came out as it must and every invariant held."""
        return not any(result.faults or result.violations for result in self.results)

    def as_dict(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {
            "workload": self.workload,
            "vcpus": self.vcpus,
            "seed": self.seed,
            **dict(self.rates),
            "switches": self.switches,
            "meant_faults": self.meant_faults,
            "results": [result.as_dict() for result in self.results],
            "interrupted": self.interrupted,
        }

    def _repr_html_(self) -> str:
        """Show the table that the command line prints, in a notebook."""
        from shadow_mmu.tables import churn_html  # noqa: PLC0415  rich is for those who look

        return churn_html(self)


def run_churn(
    name: ChurnName,
    policies: Iterable[Policy | str] = ("locked", "seed"),
    *,
    vcpus: int = 2,
    seed: int = 0,
    lock_times: bool = True,
    progress: Callable[[int], None] | None = None,
    **rates: float,
) -> ChurnReport:
    """Run fork churn or thread churn, each vCPU on its own pinned OS thread, under each policy.

    Parameters
    ----------
    name : {"fork", "threads"}
    policies : iterable of Policy or str
        At least one, none twice.
    vcpus, seed, **rates
        As for :func:`shadow_mmu.workloads.fork.fork_churn` and :func:`shadow_mmu.workloads.threads.thread_churn`.
    lock_times : bool
        Measure waiting for the mmu_lock and holding it; costs two clock reads for each acquisition.
    progress : callable, optional
        Called now and then with the share of all operations that are done, in thousandths.

    Returns
    -------
    ChurnReport
        Ctrl-C ends it early, with ``interrupted`` set and the results of the policies that were finished.

    Raises
    ------
    ConfigError
        There is no such workload, or a parameter is out of range.

    """
    make = _MAKERS.get(name)
    if make is None:
        raise ConfigError(f"no workload {name!r}: expected {' or '.join(_MAKERS)}")
    wanted = Policy.parse_list(map(str, policies))
    workload = make(vcpus=vcpus, seed=seed, **rates)

    def told(done: int) -> None:
        if progress is not None:
            progress(1000 * done // (workload.operations * len(wanted)))

    # In the order of the workload's parameters, whatever the order in which they were given.
    given = tuple((one, rates[one]) for one in signature(make).parameters if one in rates)
    results, interrupted = run_workload(workload, wanted, lock_times=lock_times, check=True, progress=told)
    return ChurnReport(name, vcpus, seed, given, workload.switches, workload.meant_faults, results, interrupted)
