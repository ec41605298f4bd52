"""What a replay found, policy by policy, and its JSON form."""

from dataclasses import dataclass
from typing import Any, Literal

from shadow_mmu.policy import Policy
from shadow_mmu.stats import Stats
from shadow_mmu.types import OpKind, OutcomeCode

Mode = Literal["ordered", "threads"]
Implementation = Literal["native", "python"]

# What KVM 4.19 to 6.19 do at INVLPG differs by policy, and shows where nobody expects it.
INVLPG_NOTE = (
    "INVLPG takes the mmu_lock once for each valid root, the current one and every previous one, "
    "so lru:8 can take it more often than lru:3."
)


@dataclass(frozen=True, slots=True)
class Difference:
    """An operation that did not come out as recorded.

    Attributes
    ----------
    event : int
        The recorded row.
    vcpu, kind, gva : int
        Of the operation; ``kind`` is an ``OpKind``.
    outcome : int
        An ``OutcomeCode``.
    reached : int
        The gpa that it reached, or the address of the fault.
    expected : int
        The recorded gpa.

    """

    event: int
    vcpu: int
    kind: int
    gva: int
    outcome: int
    reached: int
    expected: int

    def __str__(self) -> str:
        came_to = f"{self.reached:#x}" if self.outcome == OutcomeCode.OK else OutcomeCode(self.outcome).name
        return (
            f"event {self.event}: vCPU {self.vcpu} {OpKind(self.kind).name} {self.gva:#x} came to {came_to}, "
            f"recorded {self.expected:#x}"
        )

    def as_dict(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {
            "event": self.event,
            "vcpu": self.vcpu,
            "kind": OpKind(self.kind).name,
            "gva": self.gva,
            "outcome": OutcomeCode(self.outcome).name,
            "reached": self.reached,
            "expected": self.expected,
        }


@dataclass(frozen=True, slots=True)
class Violation:
    """A broken invariant; ``event`` is the recorded row before which it was found, ``None`` at the end."""

    event: int | None
    text: str

    def __str__(self) -> str:
        return f"{'at the end' if self.event is None else f'before event {self.event}'}: {self.text}"


@dataclass(frozen=True, slots=True)
class ReplayResult:
    """One policy's replay.

    Attributes
    ----------
    policy : Policy
    mode : {"ordered", "threads"}
    model : {"native", "python"}
    events_done : int
        Recorded rows that were replayed; fewer than the recording has if it was interrupted.
    accesses_checked, stores_checked : int
        Recorded accesses, and page-table stores, whose gpa was compared.
    mismatch_count : int
        Operations that differ and are not legally stale; ``mismatches`` holds the first of them.
    mismatches, stale_legal : tuple of Difference
    guest_faults : int
        Faults that the recorded guest did not have.
    violations : tuple of Violation
    audits : int
        Audits made.
    max_parallel : int
        Most operations under way at once.
    seconds : float
        From the first operation to the last.
    interrupted : bool
    stats : Stats

    """

    policy: Policy
    mode: Mode
    model: Implementation
    events_done: int
    accesses_checked: int
    stores_checked: int
    mismatch_count: int
    mismatches: tuple[Difference, ...]
    stale_legal: tuple[Difference, ...]
    guest_faults: int
    violations: tuple[Violation, ...]
    audits: int
    max_parallel: int
    seconds: float
    interrupted: bool
    stats: Stats

    @property
    def ok(self) -> bool:
        """Whether nothing differed and every invariant held."""
        return not (self.mismatch_count or self.violations or self.guest_faults)

    def as_dict(self) -> dict[str, Any]:
        """Return the JSON form; the keys of the first block stay, the others may grow."""
        stats, cr3 = self.stats, self.stats.cr3
        return {
            "policy": str(self.policy),
            **self.policy.options,
            "mode": self.mode,
            "model": self.model,
            "accesses_checked": self.accesses_checked,
            "mismatches": self.mismatch_count,
            "stale_legal": len(self.stale_legal),
            "guest_faults": self.guest_faults,
            "violations": len(self.violations),
            **stats.figures(),
            "max_parallel": self.max_parallel,
            "seconds": self.seconds,
            # Extras.
            "stores_checked": self.stores_checked,
            "cr3_locked_miss": cr3.locked_miss,
            "cr3_locked_unsync": cr3.locked_unsync,
            "unsync_marks": stats.unsync_marks,
            "sync_pages": stats.sync_pages,
            "sync_pages_unchanged": stats.sync_pages_unchanged,
            "shadow_pages_live": stats.shadow_pages_live,
            "shadow_pages_peak": stats.shadow_pages_peak,
            "tlb_full_flushes": stats.tlb_full_flushes,
            "mismatch_list": [one.as_dict() for one in self.mismatches],
            "stale_legal_list": [one.as_dict() for one in self.stale_legal],
            "violation_list": [{"event": one.event, "text": one.text} for one in self.violations],
            "audits": self.audits,
            "events_done": self.events_done,
            "interrupted": self.interrupted,
        }


@dataclass(frozen=True, slots=True)
class ReplayReport:
    """The replays of one recording.

    Attributes
    ----------
    recording : str
        File stem.
    events : int
        Recorded rows.
    results : tuple of ReplayResult
        In the order of the policies; a policy that an interrupt left undone is not in it.
    interrupted : bool

    """

    recording: str
    events: int
    results: tuple[ReplayResult, ...]
    interrupted: bool

    @property
    def ok(self) -> bool:
        """Whether every result is."""
        return all(result.ok for result in self.results)

    def as_dict(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {
            "recording": self.recording,
            "events": self.events,
            "results": [result.as_dict() for result in self.results],
            "interrupted": self.interrupted,
        }

    def _repr_html_(self) -> str:
        """Show the table that the command line prints, in a notebook."""
        from shadow_mmu.tables import replay_html  # noqa: PLC0415  rich is for those who look

        return replay_html(self)
