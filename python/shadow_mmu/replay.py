"""Replaying a recording on the compiled core, or on the model.

>>> from shadow_mmu import load_recording, replay_recording
>>> recording = load_recording("recordings/linux61-4level-kpti-small.npz")
>>> report = replay_recording(recording, ["seed"])
>>> report.ok, report.results[0].accesses_checked
(True, 399490)
"""

import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, get_args

import numpy as np

from shadow_mmu.cpu import DEFAULT_CPU
from shadow_mmu.errors import ConfigError
from shadow_mmu.history import split_legal
from shadow_mmu.policy import Policy
from shadow_mmu.recording_program import ReplayProgram, compile_recording
from shadow_mmu.recording_rules import LONG_PAGINGS
from shadow_mmu.report import Difference, Implementation, Mode, ReplayReport, ReplayResult, Violation
from shadow_mmu.stats import Stats
from shadow_mmu.types import OpFlag, OpKind, OutcomeCode

if TYPE_CHECKING:
    from shadow_mmu.recording import Recording

_KEPT_MISMATCHES: Final = 100_000
_POLL_EVERY: Final = 4096
_MAX_AUDIT_PERIOD: Final = 1 << 63


@dataclass(frozen=True, slots=True)
class _Options:
    """What is the same for every policy of a replay."""

    mode: Mode
    model: Implementation
    check: bool
    audit_every: int | None
    lock_times: bool


def replay_recording(
    recording: "Recording",
    policies: Iterable[Policy | str],
    *,
    mode: Mode = "ordered",
    model: Implementation = "native",
    check: bool = True,
    audit_every: int | None = None,
    lock_times: bool = False,
    progress: Callable[[int], object] | None = None,
) -> ReplayReport:
    """Replay a recording under each policy, each on a machine of its own.

    Parameters
    ----------
    recording : Recording
    policies : iterable of Policy or str
        At least one, none twice.
    mode : {"ordered", "threads"}
        All events in recorded order on one thread, or each vCPU on its own pinned thread.
    model : {"native", "python"}
        The compiled core, or the reference model (``ordered`` only).
    check : bool
        Compare the gpa that each access reaches with the recorded one.
    audit_every : int, optional
        Check the invariants every so many recorded events; they are always checked at the end.
    lock_times : bool
        Measure how long the mmu_lock is held.
    progress : callable, optional
        Called now and then with the number of operations done under all policies so far.

    Returns
    -------
    ReplayReport
        Ctrl-C ends the replay early with ``interrupted`` set and what was done so far.

    Raises
    ------
    ConfigError
        A parameter is out of range, or the parameters do not go together.
    UnsupportedModeError
        The recorded guest has long mode, and a policy has none.
    ProgramError, GuestMemoryError, ShadowMemoryError
        The machine refused.

    """
    wanted = Policy.parse_list(map(str, policies))
    if not wanted:
        raise ConfigError("no policy given: expected at least one")
    if recording.paging in LONG_PAGINGS:
        for policy in wanted:
            policy.require_long_mode(f"{recording.path}: a {recording.paging} guest")
    for name, value, choices in (("mode", mode, get_args(Mode)), ("model", model, get_args(Implementation))):
        if value not in choices:
            raise ConfigError(f"no {name} {value!r}: expected {' or '.join(choices)}")
    if model == "python" and mode == "threads":
        raise ConfigError("the Python model has no threads: expected mode 'ordered' with model 'python'")
    if audit_every is not None and (type(audit_every) is not int or not 1 <= audit_every < _MAX_AUDIT_PERIOD):
        raise ConfigError(f"audit_every is {audit_every!r}: expected a whole number of events from 1 on")

    options = _Options(mode, model, check, audit_every, lock_times)
    program = compile_recording(recording, check=check)
    results: list[ReplayResult] = []
    interrupted = False
    try:
        for number, policy in enumerate(wanted):
            poll = _shifted(progress, number * len(program.ops))
            run = _replay_native if model == "native" else _replay_model
            found, stats = run(recording, program, policy, options, poll)
            results.append(_result(program, policy, options, found, stats))
            interrupted = found["interrupted"]
            if interrupted:
                break
    except KeyboardInterrupt:
        # Between two replays; what they found stays.
        interrupted = True
    return ReplayReport(recording.name, recording.events, tuple(results), interrupted)


def _shifted(progress: Callable[[int], object] | None, before: int) -> Callable[[int], None] | None:
    """Count the operations of the policies that are done already."""
    if progress is None:
        return None

    def poll(done: int) -> None:
        progress(before + done)

    return poll


def _replay_native(
    recording: "Recording",
    program: ReplayProgram,
    policy: Policy,
    options: _Options,
    poll: Callable[[int], None] | None,
) -> tuple[dict[str, Any], Stats]:
    from shadow_mmu import _native  # noqa: PLC0415  the model must be usable without the compiled core

    vm = _native.Vm(
        slots=[(0, recording.ram_bytes, False)],
        vcpus=recording.vcpus,
        policy=policy.name,
        **policy.options,
        tlb_entries=1536,
        cpu=DEFAULT_CPU,
        trace=False,
        lock_times=options.lock_times,
        cr3_times=True,
    )
    try:
        found = vm.replay(
            program.ops.view(np.uint8).data,
            program.pages.reshape(-1).view(np.uint8).data,
            threads=options.mode == "threads",
            check=options.check,
            audit_every=options.audit_every or 0,
            events=program.audit_flags(options.audit_every).data,
            poll=poll,
        )
        return found, Stats.from_dict(vm.stats())
    finally:
        vm.close()


def _replay_model(
    recording: "Recording",
    program: ReplayProgram,
    policy: Policy,
    options: _Options,
    poll: Callable[[int], None] | None,
) -> tuple[dict[str, Any], Stats]:
    """Do in Python what the core's replay does; the result has the same keys."""
    from shadow_mmu.model import Machine  # noqa: PLC0415  thousands of lines that a native replay never needs

    machine = Machine([(0, recording.ram_bytes)], recording.vcpus, str(policy))
    execute = machine.execute
    check = options.check
    checks, fused, store, write_cr3 = int(OpFlag.CHECK) if check else 0, OpFlag.FUSED, OpKind.STORE, OpKind.WRITE_CR3
    pages = program.pages
    accesses = stores = faults = differing = audits = done = 0
    mismatches: list[tuple[int, int, int, int]] = []
    violations: list[tuple[int | None, str]] = []
    cr3_ns: list[int] = []
    begin = time.perf_counter()
    with _deferred_interrupt() as interrupts:
        for op, audit_due in zip(_tuples(program), program.audit_flags(options.audit_every).tolist(), strict=True):
            if audit_due:
                audits += 1
                violations += [(done, text) for text in machine.audit()]
            kind, flags = op[0], op[1]
            if kind == write_cr3:
                start = time.perf_counter_ns()
                outcome = execute(op)
                cr3_ns.append(time.perf_counter_ns() - start)
            else:
                outcome = execute(op, pages)
            done += 1
            checked = flags & checks
            if checked:
                stores += kind == store
                accesses += kind != store or bool(flags & fused)
            if outcome.code:
                faults += 1
            if (outcome.code and check) or (checked and outcome.value != op[6]):
                differing += 1
                if differing <= _KEPT_MISMATCHES:
                    mismatches.append((done - 1, outcome.code, outcome.value, op[6]))
            if poll is not None and not done % _POLL_EVERY:
                poll(done)
            if interrupts:
                break
    seconds = time.perf_counter() - begin
    violations += [(None, text) for text in machine.audit()]
    found = {
        "seconds": seconds,
        "events_done": done,
        "interrupted": bool(interrupts),
        "accesses_checked": accesses,
        "stores_checked": stores,
        "guest_faults": faults,
        "mismatches": mismatches,
        "mismatch_count": differing,
        "violations": violations,
        "max_parallel": 1,
        "audits": audits + 1,
    }
    return found, Stats.from_dict({**machine.stats(), "cr3_write_ns": _quantiles(cr3_ns)})


@contextmanager
def _deferred_interrupt() -> Iterator[list[int]]:
    """Collect Ctrl-C instead of raising it, so that no operation of the model is cut in two.

    Signals reach the main thread only; elsewhere there is nothing to defer.
    """
    seen: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield seen
        return
    before = signal.signal(signal.SIGINT, lambda number, _frame: seen.append(number))
    try:
        yield seen
    finally:
        signal.signal(signal.SIGINT, before)


def _tuples(program: ReplayProgram) -> Iterable[tuple[int, int, int, int, int, int, int]]:
    """Yield the operations as plain integers, a few thousand at a time."""
    for start in range(0, len(program.ops), _POLL_EVERY):
        yield from program.ops[start : start + _POLL_EVERY].tolist()


def _quantiles(times: list[int]) -> dict[str, int] | None:
    if not times:
        return None
    p50, p99 = np.percentile(times, (50, 99), method="inverted_cdf").tolist()
    return {"p50": int(p50), "p99": int(p99), "max": max(times)}


def _result(
    program: ReplayProgram, policy: Policy, options: _Options, found: dict[str, Any], stats: Stats
) -> ReplayResult:
    """Judge what differed and name everything by recorded row."""
    ops, event_of = program.ops, program.event_of

    def difference(index: int, code: int, value: int, expected: int) -> Difference:
        row = ops[index]
        return Difference(
            int(event_of[index]), int(row["vcpu"]), int(row["kind"]), int(row["addr"]), code, value, expected
        )

    faults = [index for index, code, *_ in found["mismatches"] if code == OutcomeCode.PAGE_FAULT]
    elsewhere = [one for one in found["mismatches"] if one[1] == OutcomeCode.OK]
    legal, _ = split_legal(
        ops, program.pages, [(index, value, expected) for index, _, value, expected in elsewhere], faults
    )
    stale = {elsewhere[position][0] for position in legal}
    done = found["events_done"]
    return ReplayResult(
        policy=policy,
        mode=options.mode,
        model=options.model,
        events_done=program.events if done == len(ops) else int(event_of[done]),
        accesses_checked=found["accesses_checked"],
        stores_checked=found["stores_checked"],
        mismatch_count=found["mismatch_count"] - len(stale),
        mismatches=tuple(difference(*one) for one in found["mismatches"] if one[0] not in stale),
        stale_legal=tuple(difference(*one) for one in found["mismatches"] if one[0] in stale),
        guest_faults=found["guest_faults"],
        violations=tuple(
            Violation(None if index is None or index < 0 else int(event_of[index]), text)
            for index, text in found["violations"]
        ),
        audits=found["audits"],
        max_parallel=found["max_parallel"],
        seconds=found["seconds"],
        interrupted=found["interrupted"],
        stats=stats,
    )
