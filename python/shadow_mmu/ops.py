"""The operation language as numpy records: everything that can happen to the machine is one of these 32-byte rows.

A *program* is a one-dimensional, contiguous array of dtype :data:`OP`; recordings, workloads, the fuzzer and the benches
all become programs, and both the core and the model run them (``docs/machine.md`` §2). Outcomes and trace events come back
as arrays of :data:`OUTCOME` and :data:`TRACE`.
"""

from collections.abc import Iterable
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from shadow_mmu.errors import ProgramError
from shadow_mmu.types import PAGE_SIZE, AccessKind, OpFlag, OpKind

OP: Final = np.dtype(
    [
        ("kind", "u1"),
        ("flags", "u1"),
        ("vcpu", "<u2"),
        ("aux", "<u4"),
        ("addr", "<u8"),
        ("value", "<u8"),
        ("expect", "<u8"),
    ]
)
OUTCOME: Final = np.dtype([("code", "u1"), ("pad", "u1", 3), ("error", "<u4"), ("value", "<u8")])
TRACE: Final = np.dtype(
    [("kind", "u1"), ("vcpu", "u1"), ("level", "<u2"), ("role", "<u4"), ("gfn", "<u8"), ("value", "<u8")]
)

# A structured array has no better static type: mypy knows no field names.
Program = npt.NDArray[np.void]
Pages = npt.NDArray[np.uint64]

_ACCESSES = {"read": OpKind.READ, "write": OpKind.WRITE, "fetch": OpKind.FETCH}
_KNOWN_FLAGS = int(OpFlag.USER | OpFlag.AC | OpFlag.IMPLICIT | OpFlag.HOST | OpFlag.CHECK | OpFlag.FUSED)
_PAGE_WORDS = PAGE_SIZE // 8
NO_PAGES: Final[Pages] = np.zeros((0, _PAGE_WORDS), np.dtype("<u8"))


class Op(NamedTuple):
    """One operation in plain integers; the fields are those of :data:`OP`, in its order."""

    kind: int
    flags: int = 0
    vcpu: int = 0
    aux: int = 0
    addr: int = 0
    value: int = 0
    expect: int = 0

    def __repr__(self) -> str:
        """Name the kind and the flags, and leave out what is 0."""
        parts = [OpKind(self.kind).name if self.kind in _KINDS else f"kind={self.kind}"]
        if self.flags:
            parts.append(f"flags={OpFlag(self.flags).name or hex(self.flags)}")
        names = ("vcpu", "aux", "addr", "value", "expect")
        parts += [f"{name}={value:#x}" for name, value in zip(names, self[2:], strict=True) if value]
        return f"Op({', '.join(parts)})"


_KINDS = frozenset(map(int, OpKind))


def _access_flags(*, user: bool, ac: bool, implicit: bool = False) -> int:
    return int(OpFlag.USER * user | OpFlag.AC * ac | OpFlag.IMPLICIT * implicit)


def write_cr0(value: int, *, vcpu: int = 0, host: bool = False) -> Op:
    """MOV to CR0; with ``host`` the register now holds this, whatever order the guest used to get there."""
    return Op(OpKind.WRITE_CR0, OpFlag.HOST * host, vcpu, addr=value)


def write_cr3(value: int, *, vcpu: int = 0, host: bool = False) -> Op:
    """MOV to CR3; ``host`` as for :func:`write_cr0`: no switch, but the roots of another value go."""
    return Op(OpKind.WRITE_CR3, OpFlag.HOST * host, vcpu, addr=value)


def write_cr4(value: int, *, vcpu: int = 0, host: bool = False) -> Op:
    """MOV to CR4; ``host`` as for :func:`write_cr0`."""
    return Op(OpKind.WRITE_CR4, OpFlag.HOST * host, vcpu, addr=value)


def write_efer(value: int, *, vcpu: int = 0, host: bool = False) -> Op:
    """WRMSR to EFER; ``host`` as for :func:`write_cr0`."""
    return Op(OpKind.WRITE_EFER, OpFlag.HOST * host, vcpu, addr=value)


def write_pkru(value: int, *, vcpu: int = 0, host: bool = False) -> Op:
    """WRPKRU of EDX:EAX; with ``host`` the register now holds this."""
    return Op(OpKind.WRITE_PKRU, OpFlag.HOST * host, vcpu, addr=value)


def invlpg(gva: int, *, vcpu: int = 0) -> Op:
    """INVLPG."""
    return Op(OpKind.INVLPG, 0, vcpu, addr=gva)


def access(
    gva: int,
    kind: AccessKind = "read",
    *,
    vcpu: int = 0,
    user: bool = False,
    ac: bool = False,
    implicit: bool = False,
    expect: int | None = None,
) -> Op:
    """Translate ``gva`` for one access; with ``expect`` a replay compares the gpa that it reaches."""
    if kind not in _ACCESSES:
        raise ProgramError(f"no access kind {kind!r}: expected one of {', '.join(map(repr, _ACCESSES))}")
    flags = _access_flags(user=user, ac=ac, implicit=implicit) | OpFlag.CHECK * (expect is not None)
    return Op(_ACCESSES[kind], flags, vcpu, addr=gva, expect=expect or 0)


def load(gva: int, size: int = 8, *, vcpu: int = 0, user: bool = False, ac: bool = False) -> Op:
    """Guest load of 1, 2, 4 or 8 bytes."""
    return Op(OpKind.LOAD, _access_flags(user=user, ac=ac), vcpu, aux=size, addr=gva)


def store(gva: int, value: int, size: int = 8, *, vcpu: int = 0, user: bool = False, ac: bool = False) -> Op:
    """Guest store of 1, 2, 4 or 8 bytes; it may hit a page table."""
    return Op(OpKind.STORE, _access_flags(user=user, ac=ac), vcpu, aux=size, addr=gva, value=value)


def host_store(gpa: int, word: int, *, vcpu: int = 0) -> Op:
    """Hypervisor-side write of one 8-byte word."""
    return Op(OpKind.HOST_STORE, 0, vcpu, addr=gpa, value=word)


def host_page(gpa: int, row: int, *, vcpu: int = 0) -> Op:
    """Hypervisor-side write of the 512 words in ``row`` of the page array."""
    return Op(OpKind.HOST_PAGE, 0, vcpu, aux=row, addr=gpa)


def sync_tlb(*, vcpu: int = 0) -> Op:
    """Enter the guest and leave at once: pending requests are serviced, a root is loaded."""
    return Op(OpKind.SYNC_TLB, 0, vcpu)


def work(nanoseconds: int, *, vcpu: int = 0) -> Op:
    """Let the guest compute for about so many nanoseconds."""
    return Op(OpKind.WORK, 0, vcpu, value=nanoseconds)


def zap_gfn(gfn: int, *, vcpu: int = 0) -> Op:
    """Zap, on the host side, every valid indirect shadow page of the guest frame."""
    return Op(OpKind.ZAP_GFN, 0, vcpu, addr=gfn)


def program(operations: Iterable[Op]) -> Program:
    """Pack operations into an array of dtype :data:`OP`.

    >>> program([write_cr3(0x1000), access(0x400000, "fetch")])["kind"].tolist()
    [2, 8]

    Raises
    ------
    ProgramError
        A field does not fit its width; the text names the operation.

    """
    rows = list(operations)
    try:
        return np.array(rows, dtype=OP)
    except (OverflowError, TypeError, ValueError) as error:
        for position, row in enumerate(rows):
            try:
                np.array([row], dtype=OP)
            except (OverflowError, TypeError, ValueError):
                raise ProgramError(f"operation {position}: {row!r} does not fit the record: {error}") from error
        raise ProgramError(f"no program: {error}") from error


def check_layout(array: object, what: str = "a program") -> Program:
    """Return ``array`` if it has the layout of a program.

    Raises
    ------
    ProgramError
        It is no numpy array, or dtype, dimension or contiguity is wrong.

    """
    if not isinstance(array, np.ndarray):
        raise ProgramError(f"{what} must be a numpy array of dtype OP, not {type(array).__name__}")
    if array.dtype != OP:
        raise ProgramError(f"{what} has dtype {array.dtype}: expected {OP}")
    if array.ndim != 1:
        raise ProgramError(f"{what} has shape {array.shape}: expected one dimension")
    if not array.flags.c_contiguous:
        raise ProgramError(f"{what} is not contiguous (strides {array.strides}): expected a contiguous array")
    return array


def check_pages(array: object) -> Pages:
    """Return ``array`` if it is an n x 512 contiguous array of little-endian 64-bit words.

    Raises
    ------
    ProgramError
        It is not.

    """
    if not isinstance(array, np.ndarray) or array.dtype != np.dtype("<u8"):
        got = array.dtype if isinstance(array, np.ndarray) else type(array).__name__
        raise ProgramError(f"pages must be an array of little-endian uint64, not {got}")
    if array.ndim != 2 or array.shape[1] != _PAGE_WORDS or not array.flags.c_contiguous:
        raise ProgramError(f"pages have shape {array.shape}: expected a contiguous n x {_PAGE_WORDS} array")
    return array


def validate(array: object, *, pages: Pages = NO_PAGES, vcpus: int | None = None, what: str = "a program") -> Program:
    """Return ``array`` if the machine can run every row of it.

    Parameters
    ----------
    array : numpy.ndarray
        The program.
    pages : numpy.ndarray
        What HOST_PAGE rows refer to: n x 512 words.
    vcpus : int, optional
        Where the rows name vCPUs (a replay), how many there are.
    what : str
        How error texts call it.

    Raises
    ------
    ProgramError
        The first bad row, its value and what was expected.

    """
    rows = check_layout(array, what)
    kind, flags, aux, addr = rows["kind"], rows["flags"], rows["aux"], rows["addr"]
    # What no row is is not looked for: then a program of CR3 writes is checked in a small part of the time that it runs.
    kinds = frozenset(np.flatnonzero(np.bincount(kind)).tolist())

    def refuse(bad: npt.NDArray[Any], field: str, expected: str) -> None:
        found = np.flatnonzero(bad)
        if found.size:
            row = int(found[0])
            raise ProgramError(f"{what}, operation {row}: {field} is {int(rows[field][row]):#x}, expected {expected}")

    if kinds - _KINDS:
        refuse(kind > max(OpKind), "kind", f"0..{max(OpKind)}")
    if int(np.bitwise_or.reduce(flags)) & ~_KNOWN_FLAGS:
        refuse((flags & ~np.uint8(_KNOWN_FLAGS)) != 0, "flags", f"bits of {_KNOWN_FLAGS:#x} only")
    in_page = np.uint64(PAGE_SIZE - 1)
    if kinds & {OpKind.LOAD, OpKind.STORE}:
        sized = (kind == OpKind.LOAD) | (kind == OpKind.STORE)
        width = np.where(sized, aux, 1).astype(np.uint64)
        refuse(sized & ~np.isin(aux, (1, 2, 4, 8)), "aux", "an operand size of 1, 2, 4 or 8")
        refuse(sized & ((addr & in_page) + width > PAGE_SIZE), "addr", "an operand within one 4 KiB page")
    if OpKind.HOST_STORE in kinds:
        refuse((kind == OpKind.HOST_STORE) & (addr % np.uint64(8) != 0), "addr", "an 8-byte aligned gpa")
    if OpKind.HOST_PAGE in kinds:
        host_page = kind == OpKind.HOST_PAGE
        refuse(host_page & (addr & in_page != 0), "addr", "a page-aligned gpa")
        refuse(host_page & (aux >= len(pages)), "aux", f"a row below {len(pages)} of the page array")
    if vcpus is not None:
        refuse(rows["vcpu"] >= vcpus, "vcpu", f"a vCPU below {vcpus}")
    return rows
