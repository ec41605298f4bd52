"""A recording as a program: what each recorded row makes the machine do.

=====  =========================  =====================================================================================
kind   row                        operation
=====  =========================  =====================================================================================
1      a page is a table now      HOST_PAGE
2      page-table store           STORE of 8 bytes through its gva, checked against ``addr``; HOST_STORE where gva is 0
3      MOV to CR3                 WRITE_CR3
4, 5   CR0, CR4 now hold          WRITE_CR0, WRITE_CR4 with HOST
6      INVLPG                     INVLPG
7-9    access                     READ, WRITE, FETCH, checked against the recorded gpa
10     mark                       NOP
11     EFER now holds             WRITE_EFER with HOST
=====  =========================  =====================================================================================

The emulator behind the recordings sets the accessed bit of PAE's page-directory-pointer entries, where processors reserve it and
refuse to load it (SDM 3A, table 4-8). It is taken out of those entries, so that the guest's own CR3 writes do not fault.

A data write and the page-table store right after it on the same vCPU and word are one instruction: one fault, counted once
for write flooding. They become one STORE with FUSED, in the place of the store.
"""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import numpy as np

from shadow_mmu.errors import ConfigError
from shadow_mmu.frozen import digest, same
from shadow_mmu.ops import OP, Pages, Program
from shadow_mmu.recording_rules import EventKind
from shadow_mmu.types import OpFlag, OpKind

if TYPE_CHECKING:
    import numpy.typing as npt

    from shadow_mmu.recording import Recording

_OP_OF: Final = {
    EventKind.PAGE: OpKind.HOST_PAGE,
    EventKind.STORE: OpKind.STORE,
    EventKind.CR3: OpKind.WRITE_CR3,
    EventKind.CR0: OpKind.WRITE_CR0,
    EventKind.CR4: OpKind.WRITE_CR4,
    EventKind.INVLPG: OpKind.INVLPG,
    EventKind.READ: OpKind.READ,
    EventKind.WRITE: OpKind.WRITE,
    EventKind.FETCH: OpKind.FETCH,
    EventKind.MARK: OpKind.NOP,
    EventKind.EFER: OpKind.WRITE_EFER,
}
AUDIT_DUE: Final = 1
_ACCESSED: Final = 1 << 5


@dataclass(frozen=True, slots=True, eq=False)
class ReplayProgram:
    """The operations of a recording, in recorded order.

    Attributes
    ----------
    ops : numpy.ndarray
        Of dtype ``OP``, read-only.
    pages : numpy.ndarray
        What HOST_PAGE operations refer to.
    event_of : numpy.ndarray
        int64, the recorded row that each operation comes from (of two fused rows, the store).
    events : int
        Rows of the recording.

    """

    ops: Program = field(repr=False)
    pages: Pages = field(repr=False)
    event_of: "npt.NDArray[np.int64]" = field(repr=False)
    events: int

    __eq__ = same
    __hash__ = digest

    def audit_flags(self, every: int | None) -> "npt.NDArray[np.uint8]":
        """Return one byte for each operation: 1 where an audit is due before it.

        An audit is due before the first operation whose recorded row reaches a multiple of ``every`` rows.
        """
        flags = np.zeros(len(self.ops), np.uint8)
        if every is not None:
            period = self.event_of // every
            flags[1:] = period[1:] != period[:-1]
        return flags


def fused_rows(recording: "Recording") -> "npt.NDArray[np.bool_]":
    """Return which rows are data writes (kind 8) that are the same instruction as the vCPU's next row, a store.

    They agree in privilege, in the 8-byte word of the gva, and in that of the gpa that the write reached: a write whose
    recorded gpa is another one stays an access of its own, and is checked as such.
    """
    kind, gva, addr, value = recording.kind, recording.gva, recording.addr, recording.value
    word = np.uint64(7)
    fused = np.zeros(recording.events, np.bool_)
    for cpu in np.unique(recording.cpu):
        own = np.flatnonzero(recording.cpu == cpu)
        first, then = own[:-1], own[1:]
        fused[first] = (
            (kind[first] == EventKind.WRITE)
            & (kind[then] == EventKind.STORE)
            & (recording.user[first] == recording.user[then])
            & (addr[first] & ~word == gva[then])
            & (value[first] & ~word == addr[then])
            & (value[first] & word == addr[first] & word)
        )
    return fused


def compile_recording(recording: "Recording", *, check: bool = True) -> ReplayProgram:
    """Turn a recording into operations.

    Parameters
    ----------
    recording : Recording
        A checked recording.
    check : bool
        Whether the gpa that an access or a store reaches is to be compared with the recorded one.

    Raises
    ------
    ConfigError
        The recording has more rows than an operation index can count.

    """
    if recording.events >= 1 << 32:
        raise ConfigError(f"{recording.name} has {recording.events:,} events: expected fewer than {1 << 32:,}")
    fused = fused_rows(recording)
    kind, gva, addr, value = recording.kind, recording.gva, recording.addr, recording.value
    is_store = kind == EventKind.STORE
    from_host = is_store & (gva == 0)
    through_gva = is_store & ~from_host
    is_access = (kind >= EventKind.READ) & (kind <= EventKind.FETCH)

    ops = np.zeros(recording.events, OP)
    table = np.zeros(max(EventKind) + 1, np.uint8)
    for event, operation in _OP_OF.items():
        table[event] = operation
    ops["kind"] = table[kind]
    ops["kind"][from_host] = OpKind.HOST_STORE
    ops["vcpu"] = recording.cpu
    ops["addr"] = np.where(through_gva, gva, addr)
    pages, value = without_accessed_pdptes(recording)
    ops["value"] = np.where(is_store, value, 0)
    ops["aux"] = np.where(kind == EventKind.PAGE, value, np.where(through_gva, 8, 0))
    ops["expect"] = np.where(through_gva, addr, np.where(is_access, value, 0))

    user = recording.user.astype(np.bool_)
    translated = through_gva | is_access
    is_data = through_gva | (is_access & (kind != EventKind.FETCH))
    is_register = np.isin(kind, (EventKind.CR0, EventKind.CR4, EventKind.EFER))
    after_fused = _store_of(recording, fused)
    flags = np.zeros(recording.events, np.uint8)
    for where, flag in (
        (translated & user, OpFlag.USER),
        # EFLAGS.AC is not recorded; Linux touches user pages under STAC.
        (is_data & ~user, OpFlag.AC),
        (is_register, OpFlag.HOST),
        (translated & check, OpFlag.CHECK),
        (after_fused, OpFlag.FUSED),
    ):
        flags[where] |= np.uint8(flag)
    ops["flags"] = flags

    kept = np.flatnonzero(~fused)
    ops = ops[kept]
    ops.flags.writeable = False
    return ReplayProgram(ops, pages, kept.astype(np.int64), recording.events)


def without_accessed_pdptes(recording: "Recording") -> "tuple[Pages, npt.NDArray[np.uint64]]":
    """Return the recorded pages and values without the accessed bit in the entries that PAE's CR3 leads to."""
    pages, value = recording.page_data, recording.value
    if recording.paging != "PAE":
        return pages, value
    tables = np.unique(recording.addr[recording.kind == EventKind.CR3] & np.uint64(0xFFFF_FFE0))
    entries = (tables[:, None] + np.arange(0, 32, 8, dtype=np.uint64)).reshape(-1)
    keep = ~np.uint64(_ACCESSED)
    value = np.where((recording.kind == EventKind.STORE) & np.isin(recording.addr, entries), value & keep, value)
    arrivals = np.flatnonzero(
        (recording.kind == EventKind.PAGE) & np.isin(recording.addr >> np.uint64(12), entries >> np.uint64(12))
    )
    cleared = pages[value[arrivals].astype(np.int64)].copy()
    for row, at in zip(cleared, arrivals, strict=True):
        words = entries[entries >> np.uint64(12) == recording.addr[at] >> np.uint64(12)] >> np.uint64(3) & np.uint64(
            511
        )
        row[words.astype(np.int64)] &= keep
    value[arrivals] = np.arange(len(pages), len(pages) + len(arrivals), dtype=np.uint64)
    return np.concatenate([pages, cleared]), value


def _store_of(recording: "Recording", fused: "npt.NDArray[np.bool_]") -> "npt.NDArray[np.bool_]":
    """Return which rows are the stores that fused writes belong to: each is the next row of the same vCPU."""
    stores = np.zeros(recording.events, np.bool_)
    for cpu in np.unique(recording.cpu):
        own = np.flatnonzero(recording.cpu == cpu)
        stores[own[1:]] |= fused[own[:-1]]
    return stores
