"""Where unicorn and the machine are known to differ: all there is, each with the verdict of the SDM.

No other difference is let pass (:mod:`.compare`), and ``test_differences.py`` shows each of these.
"""

from dataclasses import dataclass, replace
from enum import Enum

from tests.unicorn.cases import Case
from tests.unicorn.judge import Seen
from tests.unicorn.modes import PAGINGS, ROOT
from tests.unicorn.subjects import REFUSED, ModelWalk, Subject

from shadow_mmu.model.constants import PF_F, PF_P, PF_RSVD
from shadow_mmu.model.walk import GuestWalk


class Verdict(Enum):
    """Whom the SDM (volume 3A) supports."""

    JUDGE = "unicorn is right"
    MACHINE = "the machine is right"
    BOTH = "it allows both"


@dataclass(frozen=True, slots=True)
class Difference:
    """One row of the table.

    Attributes
    ----------
    name : str
        By which it is counted.
    modes : tuple of str
        Where it can be.
    shadow_only : bool
        It comes of shadow pages: the walk alone does not have it.
    drawn : bool
        The random cases meet it; else only its own test does.
    judge, machine : str
        What each does.
    verdict : Verdict
    sdm : str
        The SDM's words, and where.
    rule : str
        The row of the semantics that the machine follows.

    """

    name: str
    modes: tuple[str, ...]
    shadow_only: bool
    drawn: bool
    judge: str
    machine: str
    verdict: Verdict
    sdm: str
    rule: str


_ABOVE_36_BITS = 0xF << 17
_WITH_TABLES = tuple(name for name, paging in PAGINGS.items() if paging.levels)
_WIDE = tuple(name for name in _WITH_TABLES if PAGINGS[name].entry_bytes == 8)
_NARROW = tuple(name for name in _WITH_TABLES if PAGINGS[name].entry_bytes == 4)
A_ABOVE_A_FAULT = Difference(
    "A above a fault", _WITH_TABLES, shadow_only=False, drawn=True,
    judge="sets A in the entries above the one that faults",
    machine="writes nothing unless every check passes",
    verdict=Verdict.BOTH,
    sdm="4.8: A is set whenever an entry is used for a translation, and nothing excludes a translation that then faults",
    rule="E106, B.2 step 11",
)  # fmt: skip
NX_BECAME_RESERVED = Difference(
    "NX became reserved", _WIDE, shadow_only=True, drawn=True,
    judge="faults with RSVD once EFER.NXE is cleared",
    machine="reaches a page with NX still that was shadowed while NXE was set: the new root finds the old shadow page",
    verdict=Verdict.JUDGE,
    sdm="4.6, 4.7: bit 63 is reserved while NXE = 0",
    rule="C.1: efer_nx of a role is 1 whatever the guest has",
)  # fmt: skip
SMAP_LET_THROUGH = Difference(
    "SMAP let through", _WITH_TABLES, shadow_only=True, drawn=False,
    judge="faults: SMAP keeps a supervisor from a user page",
    machine="reaches a read-only user page that a supervisor wrote to under CR0.WP = 0: its shadow entry is a supervisor's by then",
    verdict=Verdict.JUDGE,
    sdm="4.6.1: with CR4.SMAP = 1 and EFLAGS.AC = 0 data may not be read from a user-mode address",
    rule="B.5: a supervisor's write under WP = 0 maps with W and without U",
)  # fmt: skip
PSE36_ABOVE_36_BITS = Difference(
    "PSE-36 above 36 bits", ("32-bit",), shadow_only=False, drawn=True,
    judge="takes bits 20:17 of the entry of a 4 MiB page as address bits 39:36",
    machine="faults with RSVD: they are reserved whatever MAXPHYADDR is",
    verdict=Verdict.JUDGE,
    sdm="table 4-4: bits (M-20):13 are address bits (M-1):32 with M = min(40, MAXPHYADDR), and MAXPHYADDR is 40 here",
    rule="B.4: PSE-36 with 36 bits",
)  # fmt: skip
F_WITHOUT_PAE = Difference(
    "F without PAE", _NARROW, shadow_only=False, drawn=True,
    judge="reports no F for a fetch with CR4.PAE = 0 and CR4.SMEP = 0, whatever EFER.NXE is",
    machine="reports F if EFER.NXE is set",
    verdict=Verdict.JUDGE,
    sdm="4.7: I/D is set only if CR4.SMEP = 1, or CR4.PAE = 1 and IA32_EFER.NXE = 1",
    rule="B.2: F if EFER.NX or CR4.SMEP",
)  # fmt: skip
RESERVED_PDPTR = Difference(
    "reserved bit of a PDPTR", ("PAE",), shadow_only=False, drawn=True,
    judge="loads CR3; bits 63:40 fault with RSVD when an address uses the entry, bits 8:5 and 2:1 never",
    machine="refuses MOV to CR3 with #GP",
    verdict=Verdict.MACHINE,
    sdm="4.4.1: #GP if a page-directory-pointer that is present sets a reserved bit (table 4-8), when CR3 is loaded",
    rule="B.3",
)  # fmt: skip
PDPTR_READ_AGAIN = Difference(
    "PDPTR read again", ("PAE",), shadow_only=False, drawn=False,
    judge="reads the page-directory-pointer in memory for each walk",
    machine="uses it as it was when CR3 was loaded",
    verdict=Verdict.MACHINE,
    sdm="4.4.1: the processor uses the PDPTE registers, loaded by MOV to CR3, and does not read the entries in memory",
    rule="E101, B.3",
)  # fmt: skip
DIFFERENCES = (
    A_ABOVE_A_FAULT,
    NX_BECAME_RESERVED,
    SMAP_LET_THROUGH,
    PSE36_ABOVE_36_BITS,
    F_WITHOUT_PAE,
    RESERVED_PDPTR,
    PDPTR_READ_AGAIN,
)


def explain(subject: Subject, case: Case, seen: Seen, told: Seen) -> Difference | None:
    """Return the difference that is the reason why the judge saw something else; ``None`` if none is.

    Each says exactly what both must have seen, so that nothing else hides behind it. A bits are none of this.
    """
    paging, mode = case.mode.paging, case.mode
    now = ModelWalk(paging)
    now.load(subject.tables())
    if told == REFUSED:
        return RESERVED_PDPTR if now.cr3_is_refused() else None
    if told.error_code is not None and seen == _without_f(case, told):
        return F_WITHOUT_PAE
    if told.error_code is not None and told.error_code & PF_RSVD:
        return PSE36_ABOVE_36_BITS if seen == _with_40_bits(now, case) else None
    if told.reached is None or seen.error_code is None:
        return None
    if not mode.nx and seen.error_code & PF_RSVD:
        return NX_BECAME_RESERVED if now.access(replace(case, mode=replace(mode, nx=True))) == told else None
    smap_denies = mode.smap and not mode.wp and not mode.ac and not case.user and case.kind != "fetch"
    if smap_denies and seen.error_code & ~2 == PF_P:
        return SMAP_LET_THROUGH if now.access(replace(case, mode=replace(mode, smap=False))) == told else None
    return None


def _without_f(case: Case, told: Seen) -> Seen:
    """Return a fault as it is told where F needs CR4.PAE or CR4.SMEP."""
    without = case.mode.paging.entry_bytes == 4 and not case.mode.smep
    return replace(told, error_code=told.error_code & ~PF_F) if without and told.error_code else told


def _with_40_bits(walk: ModelWalk, case: Case) -> Seen | None:
    """Return what comes of an access if the entry of a 4 MiB page has 40 address bits; ``None`` if 36 are enough for it."""
    at = ROOT + 4 * (case.gva >> 22)
    entry = walk.memory.load(at, 4)
    if case.mode.paging.name != "32-bit" or not entry & _ABOVE_36_BITS:
        return None
    walk.memory.store(at, entry & ~_ABOVE_36_BITS, 4)
    told = walk.access(case)
    if told.reached is None:
        return _without_f(case, told)
    # A write cannot be told where it went: its mark is not where it was looked for.
    above = (entry & _ABOVE_36_BITS) >> 17 << 36
    return replace(told, reached=-1 if case.kind == "write" else told.reached + above)


def found_at(walk: GuestWalk | int, gva: int) -> int | None:
    """Return the physical address that a walk found."""
    return walk.gfn << 12 | gva & 0xFFF if isinstance(walk, GuestWalk) else None
