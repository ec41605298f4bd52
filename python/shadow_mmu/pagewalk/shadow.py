"""The shadow tables' side of a walk: the path that a machine tells (``docs/native.md``), decoded into steps."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final, NamedTuple, Self

from shadow_mmu.model import role as roles
from shadow_mmu.model import spte as sptes
from shadow_mmu.model.constants import ACC_ALL, DUMMY_ROOT, INVALID_ROOT, PAGE_OFFSET, PAGE_SHIFT, PFN_MASK

from .types import LEVEL_NAMES, EntryKind, Rights, ShadowStep, TlbEntry, WalkDimension

__all__ = ["PathEntry", "ShadowPath", "role_words", "shadow_dimension", "spte_flags", "spte_rights", "tlb_entry"]

_FLAGS: Final = (
    (sptes.P, "P"),
    (sptes.W, "W"),
    (sptes.U, "U"),
    (sptes.A, "A"),
    (sptes.D, "D"),
    (sptes.HOST_WRITABLE, "host-writable"),
    (sptes.MMU_WRITABLE, "mmu-writable"),
    (sptes.NX, "NX"),
)
_ROLE_BITS: Final = (
    (roles.INVALID, "invalid"),
    (roles.EFER_NX, "efer_nx"),
    (roles.CR0_WP, "cr0_wp"),
    (roles.SMEP_ANDNOT_WP, "smep_andnot_wp"),
    (roles.SMAP_ANDNOT_WP, "smap_andnot_wp"),
    (roles.PKE_ANDNOT_WP, "pke_andnot_wp"),
    (roles.NO_PSE, "no_pse"),
)
_MODES: Final = {3: "PAE", 4: "4-level", 5: "5-level"}


class PathEntry(NamedTuple):
    """One entry on the way, and the shadow page that has it."""

    page: int
    gfn: int
    role: int
    at: int
    spte: int
    unsync: bool
    unsync_children: int
    marked: bool

    @property
    def level(self) -> int:
        """Level of the page's entries."""
        return self.role & roles.LEVEL_MASK


class ShadowPath(NamedTuple):
    """What ``shadow_path`` of a machine tells."""

    registers: tuple[int, int, int, int, int]
    pdptrs: tuple[int, ...]
    two_dimensions: bool
    root: int
    entries: tuple[int, ...] | None
    steps: tuple[PathEntry, ...]
    tlb: int | None
    requests: int
    shut_down: bool

    @classmethod
    def from_dict(cls, found: Mapping[str, Any]) -> Self:
        """Read the dictionary of a machine."""
        parts: dict[str, Any] = {name: found[name] for name in cls._fields}
        parts |= {name: tuple(parts[name]) for name in ("registers", "pdptrs", "entries") if parts[name] is not None}
        return cls(**parts | {"steps": tuple(PathEntry(*step) for step in found["steps"])})


def spte_flags(spte: int) -> tuple[str, ...]:
    """Return the names of the flags of a shadow entry, lowest bit first (C.2).

    >>> spte_flags(sptes.read_only_leaf(5, access=0, key=0, accessed=True))
    ('P', 'A', 'host-writable', 'NX')
    >>> spte_flags(sptes.read_only_leaf(5, access=0, key=3, accessed=False))
    ('P', 'host-writable', 'PK=3', 'NX')
    """
    key = sptes.key_of(spte)
    named = [*_FLAGS[:-1], *([(spte, f"PK={key}")] if key else []), _FLAGS[-1]]
    return tuple(name for bit, name in named if spte & bit)


def spte_rights(spte: int) -> Rights:
    """Return the rights that the hardware finds in a leaf."""
    return Rights(writable=bool(spte & sptes.W), executable=not spte & sptes.NX, user=bool(spte & sptes.U))


def role_words(role: int) -> str:
    """Return a role word in words (C.1).

    >>> role_words(4 | 7 << 8 | 1 << 12 | 1 << 13)
    'rwx u efer_nx cr0_wp'
    """
    words = ["direct"] if role & roles.DIRECT else []
    words.append(str(Rights.of_access(role >> roles.ACCESS_SHIFT & ACC_ALL)))
    if role & roles.FOUR_BYTE:
        words.append(f"4-byte quadrant {(role & roles.QUADRANT_MASK) >> roles.QUADRANT_SHIFT}")
    if key := roles.key_of(role):
        words.append(f"key {key}")
    return " ".join([*words, *(name for bit, name in _ROLE_BITS if role & bit)])


def shadow_dimension(path: ShadowPath, address: int, *, canonical: bool = True) -> WalkDimension:
    """Decode the path of an address, as the hardware sees it; of one that is not canonical no table is read."""
    steps = [] if path.entries is None or not canonical else [_pae_root(path.root, path.entries, address)]
    for at, found in enumerate(path.steps):
        below = path.steps[at + 1] if at + 1 < len(path.steps) else None
        steps.append(_step(found, below))
    levels = steps[0].level if steps else 0
    end = EntryKind.NON_CANONICAL
    if steps:
        end = steps[-1].kind
    elif canonical and path.root == INVALID_ROOT:
        end = EntryKind.NO_ROOT
    elif canonical and path.root == DUMMY_ROOT:
        end = EntryKind.DUMMY_ROOT
    page = steps[-1] if end is EntryKind.PAGE else None
    return WalkDimension(
        name="direct" if path.two_dimensions else "shadow",
        mode=_MODES.get(levels, f"{levels}-level"),
        start=address,
        root=None if path.root == INVALID_ROOT else path.root,
        levels=levels,
        steps=tuple(steps),
        end=end,
        address=None if page is None else _gpa(page.entry, address),
        page_size=None if page is None else 1 << PAGE_SHIFT + 9 * (page.level - 1),
        rights=None if page is None else page.rights,
    )


def tlb_entry(path: ShadowPath, guest: WalkDimension) -> TlbEntry | None:
    """Return what the TLB keeps of a page, beside what the tables say now: the shadow's; in two dimensions the guest's."""
    if path.tlb is None:
        return None
    address, rights = _gpa(path.tlb, guest.start), spte_rights(path.tlb)
    if path.two_dimensions:
        # W is kept only with D.
        same = guest.rights is not None and rights in (guest.rights, replace(guest.rights, writable=False))
        return TlbEntry(path.tlb, address, rights, same and address == guest.address)
    now = path.steps[-1].spte if path.steps else 0
    return TlbEntry(path.tlb, address, rights, not (now ^ path.tlb) & ~(sptes.A | sptes.D))


def _gpa(leaf: int, address: int) -> int:
    return sptes.leaf_gfn(leaf) << PAGE_SHIFT | address & PAGE_OFFSET


def _pae_root(root: int, entries: tuple[int, ...], address: int) -> ShadowStep:
    """Return the step through a root of four entries, which is no shadow page (E043)."""
    index = address >> 30
    entry = entries[index]
    kind = EntryKind.TABLE if entry else EntryKind.NOT_PRESENT
    return ShadowStep(
        level=3, name="PAE root", table=root, index=index, entry_bytes=8, entry=entry, kind=kind, flags=(),
        rights=Rights.of_access(ACC_ALL), target=entry or None,
    )  # fmt: skip


def _step(found: PathEntry, below: PathEntry | None) -> ShadowStep:
    level, spte = found.level, found.spte
    kind = EntryKind.NOT_PRESENT
    rights = Rights.of_access(found.role >> roles.ACCESS_SHIFT & ACC_ALL)
    if below is not None:
        kind, rights = EntryKind.TABLE, Rights.of_access(below.role >> roles.ACCESS_SHIFT & ACC_ALL)
    elif spte & sptes.P:
        kind, rights = EntryKind.PAGE, spte_rights(spte)
    marks = ["unsync"] if found.unsync else []
    if found.unsync_children:
        marks.append(f"{found.unsync_children} unsync below" + (", here too" if found.marked else ", not here"))
    return ShadowStep(
        level=level,
        name=LEVEL_NAMES[level],
        table=sptes.page_hpa(found.page),
        index=found.at,
        entry_bytes=8,
        entry=spte,
        kind=kind,
        flags=spte_flags(spte),
        rights=rights,
        target=spte & PFN_MASK if spte & sptes.P else None,
        notes=tuple(marks),
        page=found.page,
        gfn=found.gfn,
        role=found.role,
        role_words=role_words(found.role),
        unsync=found.unsync,
        unsync_children=found.unsync_children,
        marked=found.marked,
    )
