"""What a walk is made of: its dimensions, their steps, rights. The makers of a dimension decode entries; nothing here knows a bit."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

from shadow_mmu.model.constants import ACC_U, ACC_W, ACC_X

__all__ = [
    "LEVEL_NAMES",
    "AccessAnswer",
    "EntryKind",
    "PageWalk",
    "Rights",
    "ShadowStep",
    "TlbEntry",
    "Verdict",
    "WalkDimension",
    "WalkStep",
    "size_name",
]

LEVEL_NAMES: Final = {1: "PT", 2: "PD", 3: "PDPT", 4: "PML4", 5: "PML5"}


class EntryKind(StrEnum):
    """What an entry turned out to be; the last one of a walk says how the walk ended."""

    TABLE = "table"
    PAGE = "page"
    NOT_PRESENT = "not present"
    RESERVED = "reserved bit set"
    ABSENT = "table not in memory"
    NON_CANONICAL = "non-canonical address"
    NO_ROOT = "no root is loaded"
    DUMMY_ROOT = "the dummy root, which has no entries"


class Verdict(StrEnum):
    """What the shadow tables have of a translation, beside the guest's tables as they are now."""

    AGREE = "agree"
    """The same page, with the same rights but for a W that a first write brings."""
    UNMAPPED = "unmapped"
    """Neither leads to a page."""
    MISSING = "missing"
    """The guest's tables lead to a page, and the shadow has no entry for it yet."""
    MMIO = "mmio"
    """The guest's tables lead to a gpa in no memslot, which is never shadowed."""
    NARROWER = "narrower"
    """The same page, but the shadow gives fewer rights and lets nobody do more: an access that needs the others exits, and gets them."""
    STALE = "stale"
    """The shadow leads elsewhere, or allows more: what the guest's tables said before, until it invalidates."""


@dataclass(frozen=True, slots=True)
class Rights:
    """What the entries of a walk allow together; reading is always allowed where something is mapped.

    >>> str(Rights(writable=True, executable=False, user=False))
    'rw- s'
    """

    writable: bool
    executable: bool
    user: bool

    @classmethod
    def of_access(cls, access: int) -> "Rights":
        """Return the rights of ACC bits (C.1: X 1, W 2, U 4)."""
        return cls(writable=bool(access & ACC_W), executable=bool(access & ACC_X), user=bool(access & ACC_U))

    @property
    def access(self) -> int:
        """The ACC bits."""
        return (ACC_W if self.writable else 0) | (ACC_X if self.executable else 0) | (ACC_U if self.user else 0)

    def __str__(self) -> str:
        return f"r{'w' if self.writable else '-'}{'x' if self.executable else '-'} {'u' if self.user else 's'}"


def size_name(size: int) -> str:
    """Return a size in the largest unit that divides it.

    >>> size_name(4096), size_name(2 << 20), size_name(3 << 30)
    ('4 KiB', '2 MiB', '3 GiB')
    """
    for unit, shift in (("TiB", 40), ("GiB", 30), ("MiB", 20), ("KiB", 10)):
        if size and size % (1 << shift) == 0:
            return f"{size >> shift:,} {unit}"
    return f"{size:,} B"


def _hex(word: int | None) -> str | None:
    return None if word is None else f"{word:#x}"


@dataclass(frozen=True, slots=True)
class WalkStep:
    """One level of a walk.

    Attributes
    ----------
    level : int
        1 (4 KiB pages) to 5; 3 for a PDPTR of PAE paging.
    name : str
        The manual's name of the table: PML5, PML4, PDPT, PD or PT; PDPTR for one of the four registers of PAE paging.
    table : int
        Physical address of the table.
    index : int
        Which of its entries: 0 to 511, of 4-byte entries to 1,023, of PDPTRs to 3.
    entry_bytes : int
        Width of an entry: 8, or 4 under 32-bit paging.
    entry : int
        The entry; 0 if the table is not there.
    kind : EntryKind
    flags : tuple of str
        Names of the flags that are set, in the format of the table, lowest bit first.
    rights : Rights
        Accumulated over this entry and those above it.
    target : int or None
        Physical address of the next table or of the page; ``None`` where the walk ends without one.
    notes : tuple of str
        What is to be known beside.

    """

    level: int
    name: str
    table: int
    index: int
    entry_bytes: int
    entry: int
    kind: EntryKind
    flags: tuple[str, ...]
    rights: Rights
    target: int | None
    notes: tuple[str, ...] = ()

    @property
    def entry_address(self) -> int:
        """Physical address of the entry."""
        return self.table + self.entry_bytes * self.index

    def as_dict(self) -> dict[str, Any]:
        """Return the JSON form; addresses and entries are hexadecimal strings."""
        return {
            "level": self.level,
            "name": self.name,
            "table": f"{self.table:#x}",
            "index": self.index,
            "entry_address": f"{self.entry_address:#x}",
            "entry": f"{self.entry:#x}",
            "kind": str(self.kind),
            "flags": list(self.flags),
            "rights": str(self.rights),
            "target": _hex(self.target),
            "notes": list(self.notes),
        }


@dataclass(frozen=True, slots=True)
class ShadowStep(WalkStep):
    """One level of a shadow walk: addresses are host-physical, a link gives all rights, and ``rights`` are those of its child's role.

    Attributes
    ----------
    page : int or None
        Number of the shadow page; ``None`` for the four entries of a PAE root, which are none.
    gfn : int or None
        The guest table that it shadows, or the first frame that a direct page maps.
    role : int
        The role word (``docs/machine.md`` §1).
    role_words : str
        The same in words.
    unsync : bool
        The guest may have changed the table since: what the page says may be old.
    unsync_children : int
        How many of its entries are, or lead to, unsync pages.
    marked : bool
        Whether this entry is one of them.

    """

    page: int | None = None
    gfn: int | None = None
    role: int = 0
    role_words: str = ""
    unsync: bool = False
    unsync_children: int = 0
    marked: bool = False

    def as_dict(self) -> dict[str, Any]:
        """Return the JSON form."""
        own = {
            "page": self.page,
            "gfn": _hex(self.gfn),
            "role": f"{self.role:#x}",
            "role_words": self.role_words,
            "unsync": self.unsync,
            "unsync_children": self.unsync_children,
            "marked": self.marked,
        }
        return {**WalkStep.as_dict(self), **own}


@dataclass(frozen=True, slots=True)
class WalkDimension:
    """The walk of one set of tables.

    Attributes
    ----------
    name : str
        Whose tables: ``guest``, ``shadow``, or ``direct`` in two-dimensional paging.
    mode : str
        What they are, in words: ``4-level``, ``5-level``, ``PAE``, ``32-bit``, ``paging off``.
    start : int
        The address that is walked: the gva, outside long mode of 32 bits; by direct tables the gpa.
    root : int or None
        Physical address of the top table; ``None`` where there is none.
    levels : int
        How many there are from the root to a 4 KiB page; 0 with paging off.
    steps : tuple of WalkStep
        From the top level down; empty where no table is read.
    end : EntryKind
        How the walk ended: ``EntryKind.PAGE`` if it reached a page.
    address : int or None
        The guest-physical address that is reached, the offset in the page included.
    page_size : int or None
        Bytes of the page; ``None`` if the walk reached none, and with paging off.
    rights : Rights or None
        The rights of the page; ``None`` if the walk reached none.

    """

    name: str
    mode: str
    start: int
    root: int | None
    levels: int
    steps: tuple[WalkStep, ...]
    end: EntryKind
    address: int | None = None
    page_size: int | None = None
    rights: Rights | None = None

    @property
    def result(self) -> str:
        """How the walk ended, in words."""
        if self.address is None:
            return f"{self.end} at level {self.steps[-1].level}" if self.steps else str(self.end)
        size = "" if self.page_size is None else f", in a page of {size_name(self.page_size)}"
        return f"{self.address:#x}{size}, {self.rights}"

    def as_dict(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {
            "name": self.name,
            "mode": self.mode,
            "start": f"{self.start:#x}",
            "root": _hex(self.root),
            "levels": self.levels,
            "steps": [step.as_dict() for step in self.steps],
            "end": str(self.end),
            "address": _hex(self.address),
            "page_size": self.page_size,
            "rights": None if self.rights is None else str(self.rights),
        }


@dataclass(frozen=True, slots=True)
class TlbEntry:
    """What the software TLB keeps of the page.

    Attributes
    ----------
    spte : int
        The leaf as it was when it was used.
    address : int
        The guest-physical address that it leads to.
    rights : Rights
    agrees : bool
        Whether the shadow tables say the same now, A and D aside.

    """

    spte: int
    address: int
    rights: Rights
    agrees: bool

    def as_dict(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {
            "spte": f"{self.spte:#x}",
            "address": f"{self.address:#x}",
            "rights": str(self.rights),
            "agrees": self.agrees,
        }


@dataclass(frozen=True, slots=True)
class AccessAnswer:
    """What the guest's tables, as they are now, say to one access.

    Attributes
    ----------
    access : str
        The access in words.
    outcome : {"allowed", "#PF", "#GP", "MMIO", "triple fault"}
    error_code : int or None
        Of a page fault.
    reason : str
        Which level and which bit, or where it gets to.

    """

    access: str
    outcome: str
    error_code: int | None
    reason: str

    def __str__(self) -> str:
        code = "" if self.error_code is None else f", error code {self.error_code:#x}"
        return f"{self.access}: {self.outcome}{code}: {self.reason}"

    def as_dict(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {"access": self.access, "outcome": self.outcome, "error_code": self.error_code, "reason": self.reason}


@dataclass(frozen=True, slots=True, repr=False)
class PageWalk:
    """How a guest-virtual address is translated; its ``repr`` is a table for people.

    Attributes
    ----------
    gva : int
    guest : WalkDimension
        The walk of the guest's own tables.
    shadow : WalkDimension or None
        The walk of the shadow tables, or with ``mmu=tdp`` of the direct ones for the gpa that the guest's walk reaches; ``None`` in a
        dump, which has none, and where there is no such gpa.
    vcpu : int or None
        Whose registers, root and TLB; ``None`` in a dump.
    verdict : Verdict or None
        How guest and shadow compare; ``None`` in a dump.
    tlb : TlbEntry or None
        What the software TLB has; ``None`` if nothing.
    access : AccessAnswer or None
        What comes of the access that was asked about, if one was.
    notes : tuple of str
        The findings in words: what the rights let whom do, how the dimensions compare, the TLB, pending requests.

    """

    gva: int
    guest: WalkDimension
    shadow: WalkDimension | None = None
    vcpu: int | None = None
    verdict: Verdict | None = None
    tlb: TlbEntry | None = None
    access: AccessAnswer | None = None
    notes: tuple[str, ...] = ()

    @property
    def dimensions(self) -> tuple[WalkDimension, ...]:
        """The dimensions that there are."""
        return (self.guest,) if self.shadow is None else (self.guest, self.shadow)

    def __repr__(self) -> str:
        from .tables import walk_text  # noqa: PLC0415  loads rich, which only a picture needs

        return walk_text(self)

    def _repr_html_(self) -> str:
        from .tables import walk_html  # noqa: PLC0415  the same

        return walk_html(self)

    def as_dict(self) -> dict[str, Any]:
        """Return the JSON form; addresses and entries are hexadecimal strings."""
        walked = {"gva": f"{self.gva:#x}", **{one.name: one.as_dict() for one in self.dimensions}}
        if self.vcpu is None:
            return walked
        return {
            **walked,
            "vcpu": self.vcpu,
            "verdict": None if self.verdict is None else str(self.verdict),
            "tlb": None if self.tlb is None else self.tlb.as_dict(),
            "access": None if self.access is None else self.access.as_dict(),
            "notes": list(self.notes),
        }
