"""Running the product of workloads, numbers of vCPUs, amounts of work, policies and locks.

What differs in policy and lock only is measured in turns, A B B A, each sample on a machine of its own: the warm-up, a look at
the statistics, the sample, another look. A run with clocks and outcomes comes first; no rate is taken from it.

A sample is *clean* if its vCPUs were at work together for 90 % of it and none was kept from a CPU for longer than 1 % of it.
Where there are no more vCPUs than CPUs, clean samples are what is wanted, and up to eight times as many are tried; with more
vCPUs than that every sample counts.
"""

import math
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import TYPE_CHECKING, Final, TypeVar

import numpy as np

from shadow_mmu.checks import whole
from shadow_mmu.contend.cells import NO_COUNTS, Counts, Group, build
from shadow_mmu.contend.report import ContentionReport, ContentionRow
from shadow_mmu.errors import ConfigError
from shadow_mmu.policy import Policy
from shadow_mmu.stats import RunReport
from shadow_mmu.types import MAX_VCPUS
from shadow_mmu.vm import Vm

if TYPE_CHECKING:
    from shadow_mmu.stats import LongestUse, Quantiles

_T = TypeVar("_T")
_MAX_REPEAT: Final = 1000
_MAX_SWITCHES: Final = 10_000_000
_MAX_WORK: Final = 1_000_000
_MAX_SECONDS: Final = 60.0
# Switches of each vCPU from which the length of a sample is estimated.
_TRIAL: Final = 2000
_SHOWN: Final = 3
# Samples tried for each that is wanted.
_TRIES: Final = 8
# Runs with clocks of which a clean one is wanted.
_LOOKS: Final = 4
# Of a clean sample: the least part in which all vCPUs are at work, and the most in which one has no CPU.
_OVERLAP: Final = 0.9
_STARVED: Final = 0.01


def contend(
    workloads: Iterable[str] = ("kpti", "fork", "threads"),
    policies: Iterable[Policy | str] = ("locked", "seed"),
    *,
    vcpus: Iterable[int] = (1, 2),
    work: Iterable[int] = (0,),
    switches: int = 10_000,
    seconds: float | None = None,
    repeat: int = 9,
    seed: int = 0,
    progress: Callable[[int], None] | None = None,
) -> ContentionReport:
    """Measure every combination.

    Parameters
    ----------
    workloads : iterable of str
        ``kpti``, ``fork``, ``threads``; at least one, none twice.
    policies : iterable of Policy or str
        Each with its kind of lock (``seed,lock=ticket``); at least one, none twice.
    vcpus : iterable of int
        1 to 1,024 each.
    work : iterable of int
        Guest work between switches in nanoseconds, 0 to 1,000,000 each.
    switches : int
        CR3 writes of each vCPU in a sample, 1 to 10,000,000; fork and thread churn come close to it.
    seconds : float, optional
        Instead of ``switches``: about how long a sample under the slowest policy is, up to 60.
    repeat : int
        Clean samples of each combination, 1 to 1,000.
    seed : int
        Of what is random in the workloads.
    progress : callable, optional
        Called after each run with how far this is, up to what :func:`runs_of` returns.

    Returns
    -------
    ContentionReport
        Ctrl-C ends it early, with ``interrupted`` set and the rows that have samples.

    Raises
    ------
    ConfigError
        A parameter is out of range.
    UnsupportedModeError
        A policy has no long mode.
    GuestMemoryError
        The host has not the memory for a machine.

    """
    names, wanted = _each_once("workload", workloads), Policy.parse_list(map(str, policies))
    if not wanted:
        raise ConfigError("no policy given: expected at least one")
    for policy in wanted:
        policy.require_long_mode("the guest of every workload")
    counts = [whole("vcpus", one, 1, MAX_VCPUS) for one in _each_once("number of vCPUs", vcpus)]
    pauses = [whole("work", one, 0, _MAX_WORK) for one in _each_once("amount of work", work)]
    length = whole("switches", switches, 1, _MAX_SWITCHES)
    samples = whole("repeat", repeat, 1, _MAX_REPEAT)
    start = whole("seed", seed, 0, (1 << 64) - 1)
    if seconds is not None and not (type(seconds) in (int, float) and 0 < seconds <= _MAX_SECONDS):
        raise ConfigError(f"seconds is {seconds!r}: expected more than 0, and {_MAX_SECONDS:g} at most")

    rows: list[ContentionRow] = []
    run = _Run(samples, progress)
    cpus = len(os.sched_getaffinity(0))
    interrupted = False
    try:
        for name, count, pause in product(names, counts, pauses):
            group = build(name, count, pause, _TRIAL if seconds else length, start)
            if seconds:
                slowest = min(sample_of(group, policy).rate for policy in wanted)
                fitting = round(seconds * slowest / count)
                group = build(name, count, pause, min(max(fitting, 1), _MAX_SWITCHES), start)
            cells = [_Cell(group, policy, crowded=count > cpus) for policy in wanted]
            try:
                run.group(cells)
            finally:
                rows += [cell.row(samples) for cell in cells if cell.rates]
    except KeyboardInterrupt:
        interrupted = True
    return ContentionReport(tuple(rows), samples, start, cpus, interrupted)


def runs_of(*numbers: int, repeat: int) -> int:
    """Return where the ``progress`` of :func:`contend` ends, for so many workloads, policies and so on."""
    return math.prod(numbers) * (1 + repeat)


def _each_once(what: str, given: Iterable[_T]) -> list[_T]:
    found = list(given)
    if not found:
        raise ConfigError(f"no {what} given: expected at least one")
    for index, one in enumerate(found):
        if one in found[:index]:
            raise ConfigError(f"{what} {one!r} is given twice: expected each at most once")
    return found


@dataclass(frozen=True, slots=True)
class Sample:
    """One run of a workload on a machine of its own; the times are there if it was timed."""

    rate: float
    clean: bool
    counts: Counts
    wrong: tuple[str, ...]
    wait_ns: "Quantiles | None" = None
    hold_ns: "Quantiles | None" = None
    longest_wait: "LongestUse | None" = None


def _is_clean(report: RunReport) -> bool:
    """Tell whether nothing kept the vCPUs from running side by side."""
    starved = report.starved or 0.0
    return report.overlap >= _OVERLAP * report.seconds and starved <= _STARVED * report.seconds


def sample_of(group: Group, policy: Policy, *, timed: bool = False) -> Sample:
    """Run a workload once on a fresh machine; with ``timed`` also look at every outcome and at the lock's times."""
    workload = group.workload
    warm_up, measured = workload.split()
    with Vm(workload.memory, vcpus=group.vcpus, policy=policy, lock_times=timed) as vm:
        vm.memory.write(0, workload.image.words)
        first = vm.run(warm_up, outcomes=timed, pin=True)
        before = vm.stats
        report = vm.run(measured, outcomes=timed, pin=True)
        after = vm.stats
        wrong = [f"audit: {one}" for one in vm.audit()[:_SHOWN]]
    asked = workload.switches - before.cr3.writes
    if first.faults + report.faults != workload.meant_faults:
        wrong.append(f"{first.faults + report.faults:,} guest faults, {workload.meant_faults:,} are meant")
    if first.outcomes is not None and report.outcomes is not None:
        pairs = zip(first.outcomes, report.outcomes, strict=True)
        wrong += workload.wrong([np.concatenate(pair) for pair in pairs])[:_SHOWN]
    counts = Counts.between(asked, before, after)
    rate = asked / report.seconds if report.seconds else 0.0
    return Sample(
        rate, _is_clean(report), counts, tuple(wrong), after.lock.wait_ns, after.lock.hold_ns, after.lock.longest_wait
    )


@dataclass(slots=True)
class _Cell:
    """One combination while it is measured."""

    group: Group
    policy: Policy
    crowded: bool
    rates: list[float] = field(default_factory=list)
    clean: list[float] = field(default_factory=list)
    counts: Counts = NO_COUNTS
    void: list[str] = field(default_factory=list)
    timed: Sample | None = None

    def look(self) -> None:
        """Run with clocks and outcomes; again, a few times, if it was disturbed."""
        for _ in range(_LOOKS):
            self.timed = sample_of(self.group, self.policy, timed=True)
            self._check(self.timed)
            if self.timed.clean or self.crowded:
                break

    def take(self) -> None:
        """Take a sample of the rate."""
        sample = sample_of(self.group, self.policy)
        self.rates.append(sample.rate)
        if sample.clean or self.crowded:
            self.clean.append(sample.rate)
        self.counts += sample.counts
        self._check(sample)

    def progress(self, wanted: int) -> int:
        """Return how far this is: runs, the first and as many as are wanted."""
        return (self.timed is not None) + min(max(len(self.clean), len(self.rates) // _TRIES), wanted)

    def _check(self, sample: Sample) -> None:
        found = [*sample.wrong, *sample.counts.disagree(self.group.name, self.policy)]
        self.void += [one for one in found if one not in self.void]

    def row(self, wanted: int) -> ContentionRow:
        # Without an acquisition after the warm-up there are no times but the warm-up's.
        timed = self.timed if self.timed is not None and self.timed.counts.acquisitions else None
        noisy = len(self.clean) < wanted
        return ContentionRow(
            workload=self.group.name,
            policy=self.policy,
            vcpus=self.group.vcpus,
            work=self.group.work,
            switches=self.counts.asked // len(self.rates),
            rates=tuple(self.rates if noisy else self.clean),
            noisy=noisy,
            acquisitions_per_switch=self.counts.acquisitions / self.counts.asked,
            contended_share=self.counts.contended / self.counts.acquisitions if self.counts.acquisitions else 0.0,
            wait_ns=None if timed is None else timed.wait_ns,
            hold_ns=None if timed is None else timed.hold_ns,
            longest_wait=None if timed is None else timed.longest_wait,
            void=tuple(self.void),
        )


class _Run:
    """The order of the runs, and how far they are."""

    def __init__(self, repeat: int, progress: Callable[[int], None] | None) -> None:
        self.repeat, self.progress = repeat, progress
        self.before = 0

    def group(self, cells: Sequence[_Cell]) -> None:
        """Measure cells in turns: forwards, backwards, forwards; those that have enough clean samples rest."""
        for cell in cells:
            cell.look()
            self._tell(cells)
        for number in range(_TRIES * self.repeat):
            waiting = [cell for cell in cells if len(cell.clean) < self.repeat]
            if not waiting:
                break
            for cell in reversed(waiting) if number % 2 else waiting:
                cell.take()
                self._tell(cells)
        self.before += len(cells) * (1 + self.repeat)

    def _tell(self, cells: Sequence[_Cell]) -> None:
        if self.progress is not None:
            self.progress(self.before + sum(cell.progress(self.repeat) for cell in cells))
