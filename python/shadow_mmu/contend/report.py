"""What a contention run found: one row for each workload, policy, lock, number of vCPUs and amount of work."""

import statistics
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from shadow_mmu.policy import LOCK_KINDS

if TYPE_CHECKING:
    from shadow_mmu.policy import Policy
    from shadow_mmu.stats import LongestUse, Quantiles


def rate(per_second: float) -> str:
    """Write a rate with three digits that matter.

    >>> rate(16_029_192), rate(131_087), rate(999)
    ('16.0 M', '131 k', '999')
    """
    for unit, scale in (("M", 1e6), ("k", 1e3)):
        if per_second >= scale:
            value = per_second / scale
            return f"{value:.{2 if value < 10 else 1 if value < 100 else 0}f} {unit}"
    return f"{per_second:.0f}"


@dataclass(frozen=True, slots=True)
class ContentionRow:
    """One cell of the product.

    Attributes
    ----------
    workload : str
        ``kpti``, ``fork`` or ``threads``.
    policy : Policy
        With its kind of lock.
    vcpus : int
        Each an OS thread pinned to a CPU, as many of them as there are.
    work : int
        Guest work between switches, in nanoseconds.
    switches : int
        CR3 writes in each sample, of all vCPUs together, the warm-up left out.
    rates : tuple of float
        Of each sample: switches a second, of all vCPUs together.
    noisy : bool
        Whether so many samples were disturbed that ``rates`` are those of all, not of the clean ones; such a row has no ratio.
    acquisitions_per_switch : float
        Acquisitions of the mmu_lock for each switch, in all samples.
    contended_share : float
        Share of the acquisitions that had to wait, 0 where there are none.
    wait_ns, hold_ns : Quantiles or None
        How long the mmu_lock was waited for and held, in a run of its own: asking the clock costs some 30 ns each time.
        ``None`` where it was not taken after the warm-up.
    longest_wait : LongestUse or None
        Who waited longest in that run, and what for.
    void : tuple of str
        What disagrees with what must be; a row with any has no ratio.

    """

    workload: str
    policy: "Policy"
    vcpus: int
    work: int
    switches: int
    rates: tuple[float, ...]
    noisy: bool
    acquisitions_per_switch: float
    contended_share: float
    wait_ns: "Quantiles | None"
    hold_ns: "Quantiles | None"
    longest_wait: "LongestUse | None"
    void: tuple[str, ...]

    @property
    def label(self) -> str:
        """The policy without its lock."""
        return str(replace(self.policy, lock=LOCK_KINDS[0]))

    @property
    def median(self) -> float:
        """Switches a second: the median of the samples, 0 if there is none."""
        return statistics.median(self.rates) if self.rates else 0.0

    @property
    def best(self) -> float:
        """Switches a second in the fastest sample: the least time."""
        return max(self.rates, default=0.0)

    def as_dict(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {
            "workload": self.workload,
            "policy": str(self.policy),
            **self.policy.options,
            "vcpus": self.vcpus,
            "work_ns": self.work,
            "switches": self.switches,
            "samples": len(self.rates),
            "switches_per_second": self.median,
            "best_switches_per_second": self.best,
            "rates": list(self.rates),
            "noisy": self.noisy,
            "acquisitions_per_switch": self.acquisitions_per_switch,
            "contended_share": self.contended_share,
            "wait_ns": self.wait_ns and self.wait_ns.as_dict(),
            "hold_ns": self.hold_ns and self.hold_ns.as_dict(),
            "longest_wait": self.longest_wait and self.longest_wait.as_dict(),
            "void": list(self.void),
        }


@dataclass(frozen=True, slots=True)
class ContentionReport:
    """The whole product.

    Attributes
    ----------
    rows : tuple of ContentionRow
        Those that have a sample at least.
    repeat : int
        Clean samples that were asked for.
    seed : int
    cpus : int
        CPUs that this process may run on: more vCPUs than these measure the scheduler.
    interrupted : bool

    """

    rows: tuple[ContentionRow, ...]
    repeat: int
    seed: int
    cpus: int
    interrupted: bool = False

    @property
    def ok(self) -> bool:
        """Whether no row is void."""
        return not any(row.void for row in self.rows)

    def ratio(self, row: ContentionRow) -> float | None:
        """Return how much faster a row is than policy ``locked`` all else equal, the lock too.

        ``None`` if there is no such row, or one of the two is void or noisy.
        """

        def rest(one: ContentionRow) -> tuple[object, ...]:
            return one.workload, one.policy.options, one.vcpus, one.work

        for other in self.rows:
            if other.policy.kind == "locked" and rest(other) == rest(row):
                usable = other.median and not any(one.void or one.noisy for one in (row, other))
                return row.median / other.median if usable else None
        return None

    def as_dict(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {
            "repeat": self.repeat,
            "seed": self.seed,
            "cpus": self.cpus,
            "rows": [{**row.as_dict(), "over_locked": self.ratio(row)} for row in self.rows],
            "interrupted": self.interrupted,
        }

    def _repr_html_(self) -> str:
        from shadow_mmu.contend.table import contention_html  # noqa: PLC0415  a report needs no rich until it is shown

        return contention_html(self)
