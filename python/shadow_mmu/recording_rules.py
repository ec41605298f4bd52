"""What every row of a recording must satisfy; each rule names the first row that breaks it.

The checks are vectorised. A recorded gpa of an access (``value`` of kinds 7 to 9) is *not* compared with anything here:
that is what a replay is for.
"""

from collections.abc import Mapping
from enum import IntEnum
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from shadow_mmu.errors import RecordingError, UnsupportedModeError
from shadow_mmu.types import MAX_GUEST_BYTES, MAX_VCPUS, PAGE_SIZE

if TYPE_CHECKING:
    import numpy.typing as npt

    from shadow_mmu.recording import Recording

_PAGINGS: Final = ("4-level", "5-level", "PAE", "32-bit")
_32_BIT_ADDRESSES: Final = frozenset({"PAE", "32-bit"})
LONG_PAGINGS: Final = frozenset(_PAGINGS) - _32_BIT_ADDRESSES
_MAXPHYADDR: Final = 46
_CR0_NEEDED: Final = 1 << 31 | 1  # PG and PE
_CR4_ALLOWED: Final = sum(1 << bit for bit in (*range(13), 16, 18, 20, 21))
_CR4_PAE, _CR4_LA57 = 1 << 5, 1 << 12
_EFER_ALLOWED: Final = 1 | 1 << 8 | 1 << 10 | 1 << 11  # SCE, LME, LMA, NXE
_EFER_LME: Final = 1 << 8
_GPA_BITS: Final = 52


class EventKind(IntEnum):
    """The ``kind`` of a recorded row."""

    PAGE = 1
    STORE = 2
    CR3 = 3
    CR0 = 4
    CR4 = 5
    INVLPG = 6
    READ = 7
    WRITE = 8
    FETCH = 9
    MARK = 10
    EFER = 11


def check_meta(meta: Mapping[str, Any], where: str) -> None:
    """Check the parts of ``meta`` that the replay relies on.

    Raises
    ------
    RecordingError
        A key is missing or its value implausible.

    """
    for key in ("paging", "vcpus", "ram_bytes"):
        if key not in meta:
            raise RecordingError(f"{where}: 'meta' has no {key!r}")
    if meta["paging"] not in _PAGINGS:
        raise RecordingError(f"{where}: meta 'paging' is {meta['paging']!r}, expected one of {', '.join(_PAGINGS)}")
    vcpus, ram = meta["vcpus"], meta["ram_bytes"]
    if type(vcpus) is not int or not 1 <= vcpus <= MAX_VCPUS:
        raise RecordingError(f"{where}: meta 'vcpus' is {vcpus!r}, expected a whole number from 1 to {MAX_VCPUS:,}")
    if type(ram) is not int or ram % PAGE_SIZE or not PAGE_SIZE <= ram <= MAX_GUEST_BYTES:
        raise RecordingError(
            f"{where}: meta 'ram_bytes' is {ram!r}, expected a multiple of {PAGE_SIZE} up to {MAX_GUEST_BYTES:#x}"
        )


def check_rows(recording: "Recording") -> None:
    """Check every row.

    Raises
    ------
    RecordingError
        The first row that breaks a rule, its value and what was expected.
    UnsupportedModeError
        A register row leaves the paging mode that meta states.

    """
    _check_indices(recording)
    _check_addresses(recording)
    _check_registers(recording)
    _check_first_cr3(recording)


def _refuse(recording: "Recording", bad: "npt.NDArray[np.bool_]", array: str, expected: str) -> None:
    """Raise for the first row where ``bad`` is set."""
    row = _first(bad)
    if row is not None:
        raise RecordingError(f"{recording.path}, row {row}: {_shown(recording, row, array)}, expected {expected}")


def _first(bad: "npt.NDArray[np.bool_]") -> int | None:
    row = int(bad.argmax())
    return row if bad[row] else None


def _shown(recording: "Recording", row: int, array: str) -> str:
    number = int(getattr(recording, array)[row])
    text = f"{number:#x}" if array in {"addr", "value", "gva"} else str(number)
    return f"'{array}' of a kind-{int(recording.kind[row])} row is {text}" if array != "kind" else f"'kind' is {text}"


def _check_indices(recording: "Recording") -> None:
    kind = recording.kind
    _refuse(recording, (kind < min(EventKind)) | (kind > max(EventKind)), "kind", f"1..{max(EventKind)}")
    _refuse(recording, recording.cpu >= recording.vcpus, "cpu", f"a vCPU below {recording.vcpus}")
    _refuse(recording, recording.user > 1, "user", "0 or 1")
    pages = len(recording.page_data)
    _refuse(
        recording, (kind == EventKind.PAGE) & (recording.value >= pages), "value", f"a row of page_data below {pages}"
    )


def _canonical(recording: "Recording", address: "npt.NDArray[np.uint64]") -> "npt.NDArray[np.bool_]":
    if recording.paging in _32_BIT_ADDRESSES:
        narrow: npt.NDArray[np.bool_] = address >> np.uint64(32) == 0
        return narrow
    top = address.view(np.int64) >> (56 if recording.paging == "5-level" else 47)
    canonical: npt.NDArray[np.bool_] = (top == 0) | (top == -1)
    return canonical


def _check_addresses(recording: "Recording") -> None:
    kind, addr, gva, ram = recording.kind, recording.addr, recording.gva, recording.ram_bytes
    inside = addr < ram
    _refuse(
        recording,
        (kind == EventKind.PAGE) & ~(inside & (addr % np.uint64(PAGE_SIZE) == 0)),
        "addr",
        f"a page-aligned gpa below {ram:#x}",
    )
    store = kind == EventKind.STORE
    _refuse(recording, store & ~(inside & (addr % np.uint64(8) == 0)), "addr", f"an 8-byte aligned gpa below {ram:#x}")
    _refuse(
        recording,
        store & ~(_canonical(recording, gva) & (gva % np.uint64(8) == 0)),
        "gva",
        "an 8-byte aligned canonical address",
    )
    access = (kind >= EventKind.READ) & (kind <= EventKind.FETCH)
    _refuse(recording, access & ~_canonical(recording, addr), "addr", "a canonical address")
    _refuse(recording, access & (recording.value >> np.uint64(_GPA_BITS) != 0), "value", f"a gpa of {_GPA_BITS} bits")
    reserved = addr >> np.uint64(_MAXPHYADDR) != 0
    _refuse(recording, (kind == EventKind.CR3) & (reserved | ~inside), "addr", f"a page table below {ram:#x}")


def _check_registers(recording: "Recording") -> None:
    kind, addr = recording.kind, recording.addr
    cr0, cr4, efer = (kind == which for which in (EventKind.CR0, EventKind.CR4, EventKind.EFER))
    pae, lme = (
        (_CR4_PAE if recording.paging != "32-bit" else 0),
        (0 if recording.paging in _32_BIT_ADDRESSES else _EFER_LME),
    )
    leaves = (
        (cr0 & (addr & np.uint64(_CR0_NEEDED) != _CR0_NEEDED))
        | (cr4 & (addr & np.uint64(_CR4_PAE) != pae))
        | (efer & (addr & np.uint64(_EFER_LME) != lme))
    )
    row = _first(leaves)
    if row is not None:
        raise UnsupportedModeError(
            f"{recording.path}, row {row}: {_shown(recording, row, 'addr')}, which leaves {recording.paging} paging"
        )
    _refuse(recording, cr0 & (addr >> np.uint64(32) != 0), "addr", "bits 63:32 of CR0 clear")
    _refuse(recording, cr4 & (addr & ~np.uint64(_CR4_ALLOWED) != 0), "addr", f"CR4 bits of {_CR4_ALLOWED:#x} only")
    _refuse(recording, efer & (addr & ~np.uint64(_EFER_ALLOWED) != 0), "addr", f"EFER bits of {_EFER_ALLOWED:#x} only")
    la57 = _CR4_LA57 if recording.paging == "5-level" else 0
    # Outside long mode the bit is allowed, and means nothing.
    checked = cr4 if lme else np.zeros_like(cr4)
    _refuse(
        recording,
        checked & (addr & np.uint64(_CR4_LA57) != la57),
        "addr",
        f"CR4.LA57 {'set' if la57 else 'clear'}, since meta says {recording.paging}",
    )


def _check_first_cr3(recording: "Recording") -> None:
    """Refuse an access before the vCPU's first CR3, and before the registers that select another mode than 4-level paging."""
    kind = recording.kind
    translates = (kind == EventKind.INVLPG) | ((kind >= EventKind.READ) & (kind <= EventKind.FETCH))
    translates |= (kind == EventKind.STORE) & (recording.gva != 0)
    needed = [(EventKind.CR3, "CR3")]
    needed += [(EventKind.CR4, "CR4")] * (recording.paging in {"5-level", "32-bit"})
    needed += [(EventKind.EFER, "EFER")] * (recording.paging in _32_BIT_ADDRESSES)
    rows = np.arange(recording.events)
    for cpu in np.unique(recording.cpu):
        own = recording.cpu == cpu
        for event, register in needed:
            written = _first(own & (kind == event))
            early = own & translates & (rows < (recording.events if written is None else written))
            _refuse(recording, early, "kind", f"no access of vCPU {cpu} before its first {register} row")
