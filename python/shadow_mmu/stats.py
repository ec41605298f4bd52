"""What a machine counted, as frozen values: counters, lock use, CR3 writes, shadow pages, the report of a run.

Both implementations hand over plain dictionaries of the same keys; :meth:`Stats.from_dict` is the one place that reads them.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from shadow_mmu.frozen import FrozenDict, digest, same

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt


@dataclass(frozen=True, slots=True)
class Quantiles:
    """A distribution of times in nanoseconds; ``total`` is ``None`` where no sum is kept."""

    p50: int
    p99: int
    max: int
    total: int | None = None

    @classmethod
    def from_dict(cls, found: Mapping[str, Any] | None) -> Self | None:
        """Read the dictionary of a machine; ``None`` (nothing was measured) stays ``None``."""
        return None if found is None else cls(found["p50"], found["p99"], found["max"], found.get("total"))

    def as_dict(self) -> dict[str, int]:
        """Return the measured parts by name."""
        parts = {"p50": self.p50, "p99": self.p99, "max": self.max}
        return parts if self.total is None else {**parts, "total": self.total}


@dataclass(frozen=True, slots=True)
class LongestUse:
    """The longest wait for, or hold of, the mmu_lock: how long, by which vCPU (``None``: the host), and what for."""

    ns: int
    vcpu: int | None
    reason: str

    @classmethod
    def from_dict(cls, found: Mapping[str, Any] | None) -> Self | None:
        """Read the dictionary of a machine; ``None`` (nothing was measured) stays ``None``."""
        return None if found is None else cls(found["ns"], found["vcpu"], found["reason"])

    def as_dict(self) -> dict[str, Any]:
        """Return the parts by name."""
        return {"ns": self.ns, "vcpu": self.vcpu, "reason": self.reason}


@dataclass(frozen=True, slots=True)
class LockUser:
    """One who waits for or holds the mmu_lock at the moment of the look.

    Attributes
    ----------
    vcpu : int or None
        ``None``: the host.
    phase : {"waiting", "holding", "sharing"}
        ``sharing``: holding it together with others, which only a reader-writer lock allows.
    reason : str
        As in :attr:`LockStats.acquisitions`.
    ns : int
        For how long.

    """

    vcpu: int | None
    phase: str
    reason: str
    ns: int


@dataclass(frozen=True, slots=True)
class LockStats:
    """Use of the mmu_lock.

    Attributes
    ----------
    acquisitions : Mapping[str, int]
        By reason: load, free, sync, fault, pte_write, invlpg, zap, host, audit; shared ones too.
    shared : int
        Acquisitions that were shared: 0 unless the lock is a reader-writer lock (``docs/machine.md`` §12).
    contended : int
        Acquisitions that had to wait.
    wait_ns, hold_ns : Quantiles or None
        How long a vCPU waited for it, and held it; ``None`` unless the machine was made with ``lock_times=True``.
    longest_wait, longest_hold : LongestUse or None
        Who waited longest and who held it longest; ``None`` as above, or while nobody took it.

    """

    acquisitions: Mapping[str, int]
    shared: int
    contended: int
    wait_ns: Quantiles | None
    hold_ns: Quantiles | None
    longest_wait: LongestUse | None
    longest_hold: LongestUse | None

    @property
    def total(self) -> int:
        """All acquisitions together."""
        return sum(self.acquisitions.values())

    def as_dict(self) -> dict[str, Any]:
        """Return the shape that the JSON report uses."""
        return {
            "acquisitions": dict(self.acquisitions),
            "shared": self.shared,
            "contended": self.contended,
            "wait_ns": self.wait_ns and self.wait_ns.as_dict(),
            "hold_ns": self.hold_ns and self.hold_ns.as_dict(),
            "longest_wait": self.longest_wait and self.longest_wait.as_dict(),
            "longest_hold": self.longest_hold and self.longest_hold.as_dict(),
        }


@dataclass(frozen=True, slots=True)
class Cr3Stats:
    """CR3 writes after each vCPU's first: ``writes`` = ``same`` + ``lockless`` + ``locked``.

    A write is lock-free if neither it nor a request that it raised took the mmu_lock before the vCPU's next access;
    ``locked`` = ``locked_miss`` (no cached root) + ``locked_unsync`` (a cached root that had to sync). ``same_locked`` of
    the writes of an unchanged value took the lock.
    """

    writes: int
    same: int
    same_locked: int
    lockless: int
    locked: int
    locked_miss: int
    locked_unsync: int

    @classmethod
    def from_dict(cls, found: Mapping[str, int]) -> Self:
        """Read the dictionary of a machine."""
        return cls(**{name: found[name] for name in cls.__dataclass_fields__})


@dataclass(frozen=True, slots=True)
class VcpuStats:
    """The share of one vCPU."""

    counters: Mapping[str, int]
    cr3: Cr3Stats


@dataclass(frozen=True, slots=True)
class Stats:
    """Everything a machine counts.

    Attributes
    ----------
    counters : Mapping[str, int]
        KVM's names: pf_fixed, mmu_cache_miss, remote_tlb_flush and so on (E164). ``mmu_unsync`` is a gauge.
    lock : LockStats
    cr3 : Cr3Stats
    cr3_write_ns : Quantiles or None
        Duration of the CR3 writes, where the machine measured it.
    tlb_full_flushes : int
        Flushes of a whole software TLB.
    shadow_pages_live, shadow_pages_peak : int
        Shadow pages now and at most.
    shadow_bytes_peak : int
        Shadow memory at its largest.
    unsync_marks : int
        Times that a shadow page was marked unsync; ``counters["mmu_unsync"]`` is how many are unsync now.
    sync_pages, sync_pages_unchanged : int
        Page syncs, and those that changed no entry.
    per_vcpu : tuple of VcpuStats

    """

    counters: Mapping[str, int]
    lock: LockStats
    cr3: Cr3Stats
    cr3_write_ns: Quantiles | None
    tlb_full_flushes: int
    shadow_pages_live: int
    shadow_pages_peak: int
    shadow_bytes_peak: int
    unsync_marks: int
    sync_pages: int
    sync_pages_unchanged: int
    per_vcpu: tuple[VcpuStats, ...]

    def _repr_html_(self) -> str:
        """Show every figure, in a notebook."""
        from shadow_mmu.text import html_table  # noqa: PLC0415  rich is for those who look

        parts: dict[str, Mapping[str, Any]] = {"": self.counters, "mmu_lock: ": self.lock.acquisitions}
        rows = [(f"{part}{name}", f"{value:,}") for part, found in parts.items() for name, value in found.items()]
        rows += [("mmu_lock: contended", f"{self.lock.contended:,}")]
        rows += [(f"CR3 writes: {name}", f"{getattr(self.cr3, name):,}") for name in self.cr3.__dataclass_fields__]
        plain = ("tlb_full_flushes", "shadow_pages_live", "shadow_pages_peak", "shadow_bytes_peak", "unsync_marks")
        rows += [(name, f"{getattr(self, name):,}") for name in (*plain, "sync_pages", "sync_pages_unchanged")]
        return html_table(("counter", "value"), rows)

    def figures(self) -> dict[str, Any]:
        """Return what the JSON form of every result tells of its machine."""
        return {
            "cr3_writes": self.cr3.writes,
            "cr3_same": self.cr3.same,
            "cr3_same_locked": self.cr3.same_locked,
            "cr3_lockless": self.cr3.lockless,
            "cr3_locked": self.cr3.locked,
            "mmu_lock": self.lock.as_dict(),
            "counters": dict(self.counters),
            "cr3_write_ns": self.cr3_write_ns and self.cr3_write_ns.as_dict(),
            "shadow_bytes": self.shadow_bytes_peak,
        }

    @classmethod
    def from_dict(cls, found: Mapping[str, Any]) -> Self:
        """Read the dictionary that ``stats()`` of a machine returns."""
        lock = found["lock"]
        return cls(
            counters=FrozenDict(dict(found["counters"])),
            lock=LockStats(
                FrozenDict(dict(lock["acquisitions"])),
                lock["shared"],
                lock["contended"],
                Quantiles.from_dict(lock["wait_ns"]),
                Quantiles.from_dict(lock["hold_ns"]),
                LongestUse.from_dict(lock["longest_wait"]),
                LongestUse.from_dict(lock["longest_hold"]),
            ),
            cr3=Cr3Stats.from_dict(found["cr3"]),
            cr3_write_ns=Quantiles.from_dict(found["cr3_write_ns"]),
            per_vcpu=tuple(
                VcpuStats(FrozenDict(dict(one["counters"])), Cr3Stats.from_dict(one["cr3"]))
                for one in found["per_vcpu"]
            ),
            **{
                name: found[name]
                for name in (
                    "tlb_full_flushes",
                    "shadow_pages_live",
                    "shadow_pages_peak",
                    "shadow_bytes_peak",
                    "unsync_marks",
                    "sync_pages",
                    "sync_pages_unchanged",
                )
            },
        )


@dataclass(frozen=True, slots=True)
class ShadowPage:
    """One live shadow page (``struct kvm_mmu_page``).

    Attributes
    ----------
    id : int
        Its number; ``hpa`` is where it lies.
    gfn : int
        The guest table that it shadows, or the first frame that a direct page maps.
    role : int
        The role word (``docs/machine.md`` §1), of which ``level``, ``direct``, ``access`` and ``invalid`` are parts.
    parents : tuple of (int, int)
        (shadow page id, index) of each entry that links it.
    sptes : Mapping[int, int]
        The entries that are not 0, by index.

    """

    id: int
    gfn: int
    hpa: int
    role: int
    level: int
    direct: bool
    access: int
    invalid: bool
    unsync: bool
    unsync_children: int
    root_count: int
    flooding: int
    parents: tuple[tuple[int, int], ...]
    sptes: Mapping[int, int]

    @classmethod
    def from_dict(cls, found: Mapping[str, Any]) -> Self:
        """Read one item of what ``shadow_pages()`` of a machine returns."""
        plain = {name: found[name] for name in cls.__dataclass_fields__ if name not in {"parents", "sptes"}}
        plain |= {name: bool(plain[name]) for name in ("direct", "invalid", "unsync")}
        parents = tuple((page, index) for page, index in found["parents"])
        return cls(**plain, parents=parents, sptes=FrozenDict(dict(found["sptes"])))

    def __repr__(self) -> str:
        marks = "".join(f" {name}" for name in ("direct", "invalid", "unsync") if getattr(self, name))
        return (
            f"<ShadowPage {self.id} gfn={self.gfn:#x} level={self.level} role={self.role:#x}{marks} "
            f"sptes={len(self.sptes)} parents={len(self.parents)} roots={self.root_count}>"
        )


@dataclass(frozen=True, slots=True, eq=False)
class RunReport:
    """What a run of programs did. Equal to another whose numbers and outcomes are.

    Attributes
    ----------
    seconds : float
        From the first operation to the last.
    overlap : float
        Seconds in which every program was under way.
    starved : float or None
        The longest time in seconds that a program was ready to go on and had no CPU; ``None`` where the system does not tell.
    ops_done : tuple of int
        Operations done, by vCPU.
    faults : int
        Outcomes that were not OK.
    outcomes : tuple of numpy.ndarray or None
        By vCPU, arrays of dtype ``OUTCOME``; ``None`` unless asked for.

    """

    seconds: float
    overlap: float
    starved: float | None
    ops_done: tuple[int, ...]
    faults: int
    outcomes: "tuple[npt.NDArray[np.void], ...] | None"

    __eq__ = same
    __hash__ = digest

    def _repr_html_(self) -> str:
        """Show a row for each vCPU, in a notebook."""
        from shadow_mmu.text import html_table  # noqa: PLC0415  rich is for those who look

        rows = [(f"vCPU {index}", f"{count:,}") for index, count in enumerate(self.ops_done)]
        rows += [("faults", f"{self.faults:,}"), ("seconds", f"{self.seconds:.3f}")]
        return html_table(("", "operations"), rows)

    def __repr__(self) -> str:
        return f"<RunReport {sum(self.ops_done):,} operations in {self.seconds:.3f} s, {self.faults:,} faults>"
