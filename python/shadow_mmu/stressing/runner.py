"""Running the stress on the compiled core."""

import struct
from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any, Final

from shadow_mmu import _native
from shadow_mmu.cpu import DEFAULT_CPU
from shadow_mmu.errors import StuckError
from shadow_mmu.model import LegalTranslations, Outcome
from shadow_mmu.model.ops import OP_RECORD, Op
from shadow_mmu.policy import Policy
from shadow_mmu.stressing.plan import StressPlan
from shadow_mmu.stressing.report import StressFigures, StressFinding, StressReport, TailOp
from shadow_mmu.types import PAGE_SIZE, OpFlag, OpKind

__all__ = ["run_plan", "stress"]

_OUTCOME: Final = struct.Struct("<B3xIQ")
_START: Final = ((OpKind.WRITE_CR0, 0x80050033), (OpKind.WRITE_CR4, 0x20), (OpKind.WRITE_EFER, 0xD00))
_KINDS: Final = (OpKind.READ, OpKind.WRITE, OpKind.FETCH)


def stress(
    *,
    vcpus: int = 2,
    policy: Policy | str = "lru:3",
    seconds: float | None = None,
    steps: int | None = None,
    seed: int = 0,
    memory: int | str = 0,
    audit_every: int = 20_000,
    turns: bool = False,
    lock_times: bool = True,
    patience: float = 5.0,
    keep_going: bool = False,
    rates: Mapping[str, int] | None = None,
    check_model: bool = False,
    progress: Callable[[int], None] | None = None,
) -> StressReport:
    """Let every vCPU do everything at once, and judge each access (``docs/stress.md``).

    Parameters
    ----------
    vcpus, policy, seconds, steps, seed, memory, audit_every, turns, lock_times, patience, keep_going, rates
        As in :class:`StressPlan`; 10 seconds unless told otherwise.
    check_model : bool
        At the end compare every translation with the reference model's walk of the same memory, too; takes some seconds.
    progress : callable, optional
        Called about ten times a second with the number of steps done; what it raises stops the run.

    Returns
    -------
    StressReport
        Ctrl-C ends the run early, with ``interrupted`` set and the figures so far.

    Raises
    ------
    ConfigError
        A parameter is out of range.
    ThreadError
        The threads cannot be had.

    Examples
    --------
    >>> report = stress(vcpus=2, steps=300, seed=1, lock_times=False)
    >>> report.ok, report.figures.accesses_checked > 100
    (True, True)

    """
    plan = StressPlan(
        vcpus=vcpus,
        policy=policy if isinstance(policy, Policy) else Policy.parse(policy),
        seconds=seconds,
        steps=steps,
        seed=seed,
        memory=memory,  # type: ignore[arg-type]  # the plan reads sizes
        audit_every=audit_every,
        turns=bool(turns),
        lock_times=bool(lock_times),
        patience=patience,
        keep_going=bool(keep_going),
        rates=tuple((rates or {}).items()),
    )
    return run_plan(plan, check_model=check_model, progress=progress)


def run_plan(
    plan: StressPlan,
    *,
    check_model: bool = False,
    progress: Callable[[int], None] | None = None,
    native: Any = _native,  # noqa: ANN401  the module, or a test build of it
    mutant: str | None = None,
) -> StressReport:
    """Run a plan; as :func:`stress`. ``mutant`` names a planted defect of a test build ``native``."""
    return _report(plan, *_run(plan, native, mutant, progress, check_model=check_model))


def keywords(plan: StressPlan) -> dict[str, Any]:
    """Return what the core wants to know of a plan."""
    names = ("seed", "seconds", "steps", "audit_every", "turns", "patience", "keep_going")
    return {**{name: getattr(plan, name) for name in names}, "rates": list(plan.rates)}


def machine(plan: StressPlan, native: Any, mutant: str | None = None) -> _native.Vm:  # noqa: ANN401  as above
    """Return the native machine that a plan is run on."""
    made: _native.Vm = native.Vm(
        slots=[(0, plan.memory, False)],
        vcpus=plan.vcpus,
        policy=plan.policy.name,
        **plan.policy.options,
        tlb_entries=1536,
        cpu=DEFAULT_CPU,
        trace=False,
        lock_times=plan.lock_times,
        cr3_times=False,
        lock_watch=True,
        mutant=mutant,
    )
    return made


def _run(
    plan: StressPlan,
    native: Any,  # noqa: ANN401  as above
    mutant: str | None,
    progress: Callable[[int], None] | None,
    *,
    check_model: bool,
) -> tuple[dict[str, Any] | StuckError, int, list[StressFinding]]:
    """Return what the core found, and how many translations were compared with the model's, with the differences."""
    vm = machine(plan, native, mutant)
    try:
        found = vm.stress(keywords(plan), progress)
        if check_model and not found["interrupted"]:
            return found, *_compare_with_model(vm, plan, found["roots"])
    except StuckError as error:
        return error, 0, []
    finally:
        vm.close()
    return found, 0, []


def _compare_with_model(
    vm: _native.Vm, plan: StressPlan, roots: list[tuple[int, list[int]]]
) -> tuple[int, list[StressFinding]]:
    """Translate every page of every root on vCPU 0 and ask the model's oracle, which reads the same memory."""
    oracle = LegalTranslations([(0, plan.memory)], vcpus=1)
    empty = bytes(PAGE_SIZE)
    for gpa in range(0, plan.memory, PAGE_SIZE):
        page = vm.memory_read(gpa, PAGE_SIZE)
        if page != empty:
            oracle.host_write(gpa, page)
    done = 0
    findings: list[StressFinding] = []

    def execute(op: Op) -> None:
        code, value, error = vm.execute(OP_RECORD.pack(*op))
        verdict = oracle.judge(op, Outcome(code, value, error))
        if verdict is not None:
            findings.append(StressFinding(0, "model", f"{op!r}: {verdict}"))
        oracle.observe(op, Outcome(code, value, error))

    for kind, value in _START:
        execute(Op(kind, addr=value))
    for root, pages in roots:
        execute(Op(OpKind.WRITE_CR3, addr=root))
        for gva in pages:
            for kind in _KINDS:
                for flags in (0, int(OpFlag.USER)):
                    execute(Op(kind, flags, addr=gva))
                    done += 1
    return done, findings


def _report(
    plan: StressPlan, found: dict[str, Any] | StuckError, modelled: int, differences: list[StressFinding]
) -> StressReport:
    if isinstance(found, StuckError):
        nothing = StressFigures(*(0 for _ in fields(StressFigures)))
        stuck = (StressFinding(None, "stuck", str(found)),)
        return StressReport(plan, 0.0, False, nothing, (), 0, 0, 0, 0, 0, 0, 0, 0, stuck, 1, ())
    stats = found["stats"]
    findings = [StressFinding(*one) for one in found["findings"]] + differences
    return StressReport(
        plan=plan,
        elapsed=found["seconds"],
        interrupted=found["interrupted"],
        figures=StressFigures.from_dict(found["figures"]),
        per_vcpu=tuple(map(StressFigures.from_dict, found["per_vcpu"])),
        audits=found["audits"],
        syncs=stats["sync_pages"],
        zaps=stats["counters"]["mmu_shadow_zapped"],
        remote_flushes=stats["counters"]["remote_tlb_flush_requests"],
        lock_acquisitions=sum(stats["lock"]["acquisitions"].values()),
        lock_contended=stats["lock"]["contended"],
        longest_hold_ns=found["longest_hold_ns"],
        modelled=modelled,
        findings=tuple(findings),
        finding_count=found["finding_count"] + len(differences),
        tails=tuple(
            tuple(
                TailOp.of(op, outcome)
                for op, outcome in zip(OP_RECORD.iter_unpack(ops), _OUTCOME.iter_unpack(outcomes), strict=True)
            )
            for ops, outcomes in found["tails"]
        ),
    )
