"""What a stress run did and found, and its JSON form."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, NamedTuple, Self

from shadow_mmu.stressing.plan import StressPlan
from shadow_mmu.types import OpKind, OutcomeCode

__all__ = ["StressFigures", "StressFinding", "StressReport", "TailOp"]


@dataclass(frozen=True, slots=True)
class StressFigures:
    """What one vCPU did, or all of them.

    Attributes
    ----------
    operations : int
        Operations of the machine.
    accesses_checked, unjudged : int
        Accesses whose outcome was found right, and those that could not be judged because too many edits had come meanwhile.
    faults : int
        Guest faults.
    switches, edits, shoot_downs, table_reuses, register_writes, host_operations : int
        CR3 writes to another root, edits of table words, shoot-downs that all vCPUs acknowledged, tables that were data
        meanwhile, writes of CR0, CR4 and EFER, zaps and stores of the host.
    swept : int
        Pages translated under each root at the end.
    max_tries, max_retries : int
        Most tries of one access, and most beyond the steps that other vCPUs made meanwhile (at most 16 are right).
    violations : int
        What the vCPUs found wrong.

    """

    operations: int
    accesses_checked: int
    unjudged: int
    faults: int
    switches: int
    edits: int
    shoot_downs: int
    table_reuses: int
    register_writes: int
    host_operations: int
    swept: int
    max_tries: int
    max_retries: int
    violations: int

    @classmethod
    def from_dict(cls, found: Mapping[str, int]) -> Self:
        """Read the dictionary of the core."""
        return cls(**{field.name: found[field.name] for field in fields(cls)})


@dataclass(frozen=True, slots=True)
class StressFinding:
    """Something that must not be.

    Attributes
    ----------
    vcpu : int or None
        Whose access or word it was.
    what : str
        The broken rule: ``D.5``, ``audit``, ``memory``, ``liveness``, ``lock hold``, ``model``, ``stuck``, ...
    text : str
        What was found and what was expected.

    """

    vcpu: int | None
    what: str
    text: str

    def __str__(self) -> str:
        return f"{self.what}{'' if self.vcpu is None else f', vCPU {self.vcpu}'}: {self.text}"


class TailOp(NamedTuple):
    """One of a vCPU's last operations and what it came to."""

    kind: str
    flags: int
    size: int
    addr: int
    value: int
    outcome: str
    result: int
    error: int

    @classmethod
    def of(cls, op: tuple[int, ...], outcome: tuple[int, int, int]) -> Self:
        """Read the fields of an operation record and of an outcome record."""
        kind, flags, _, size, addr, value, _ = op
        code, error, result = outcome
        return cls(OpKind(kind).name, flags, size, addr, value, OutcomeCode(code).name, result, error)

    def __str__(self) -> str:
        return f"{self.kind} {self.addr:#x} size {self.size} value {self.value:#x} -> {self.outcome} {self.result:#x}"


@dataclass(frozen=True, slots=True)
class StressReport:
    """One run.

    Attributes
    ----------
    plan : StressPlan
    elapsed : float
        Seconds from the first step to the last.
    interrupted : bool
    figures : StressFigures
        All vCPUs together.
    per_vcpu : tuple of StressFigures
    audits : int
    syncs, zaps, remote_flushes, lock_acquisitions, lock_contended : int
        Shadow pages synced and zapped, remote flushes, acquisitions of the mmu_lock and those that waited.
    longest_hold_ns : int
        Longest hold of the mmu_lock by a vCPU; 0 where holds are not measured.
    modelled : int
        Translations that were compared with the reference model's walk of the same memory.
    findings : tuple of StressFinding
        What was wrong; the first of it.
    finding_count : int
        How much.
    tails : tuple of tuple of TailOp
        The last operations of each vCPU, oldest first.

    """

    plan: StressPlan
    elapsed: float
    interrupted: bool
    figures: StressFigures
    per_vcpu: tuple[StressFigures, ...]
    audits: int
    syncs: int
    zaps: int
    remote_flushes: int
    lock_acquisitions: int
    lock_contended: int
    longest_hold_ns: int
    modelled: int
    findings: tuple[StressFinding, ...]
    finding_count: int
    tails: tuple[tuple[TailOp, ...], ...]

    @property
    def ok(self) -> bool:
        """Whether nothing was wrong."""
        return not self.finding_count

    def as_dict(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {
            "plan": self.plan.as_dict(),
            "elapsed": self.elapsed,
            "interrupted": self.interrupted,
            "figures": asdict(self.figures),
            "per_vcpu": [asdict(one) for one in self.per_vcpu],
            **{name: getattr(self, name) for name in NUMBERS},
            "findings": [asdict(one) for one in self.findings],
            "finding_count": self.finding_count,
            "tails": [[one._asdict() for one in tail] for tail in self.tails],
        }

    def _repr_html_(self) -> str:
        from shadow_mmu.stressing.table import stress_html  # noqa: PLC0415  a report needs no rich until it is shown

        return stress_html(self)


NUMBERS = (
    "audits",
    "syncs",
    "zaps",
    "remote_flushes",
    "lock_acquisitions",
    "lock_contended",
    "longest_hold_ns",
    "modelled",
)
