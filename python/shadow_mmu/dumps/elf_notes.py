"""The notes of an ELF vmcore: QEMU's CPU state, one note a vCPU, beside the ``NT_PRSTATUS`` that any core file has.

A note is a header (size of the name, size of the descriptor, type), the name and the descriptor, each padded to 4 bytes. QEMU's
descriptor (name ``QEMU``, type 0, version 1) is ``QEMUCPUState`` of its ``target/i386/arch_dump.c``: the general registers, ten
segment registers, CR0 to CR4. Its last field (``kernel_gs_base``) is younger and not needed.
"""

import struct
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

import numpy as np

from .cpu import CpuState
from .source import Source

__all__ = ["MAX_NOTES", "CpuNotes", "read_notes"]

MAX_NOTES: Final = 1 << 16
"""Most notes of one dump; QEMU writes two a vCPU."""
_HEADER: Final = struct.Struct("<III")
_NT_PRSTATUS: Final = 1
_LONGEST_NAME: Final = 16
_SEGMENT: Final = [("selector", "<u4"), ("limit", "<u4"), ("flags", "<u4"), ("pad", "<u4"), ("base", "<u8")]
_GENERAL: Final = (
    *("rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rsp", "rbp"),
    *(f"r{number}" for number in range(8, 16)),
    *("rip", "rflags"),
)
_SEGMENTS: Final = ("cs", "ds", "es", "fs", "gs", "ss", "ldt", "tr", "gdt", "idt")
_QEMU_STATE: Final = np.dtype(
    [
        ("version", "<u4"),
        ("size", "<u4"),
        *((name, "<u8") for name in _GENERAL),
        *((name, _SEGMENT) for name in _SEGMENTS),
        ("cr", "<u8", 5),
    ]
)
_VERSION: Final = 1


@dataclass(frozen=True, slots=True)
class CpuNotes:
    """The vCPUs that have QEMU's note, and how many have an ``NT_PRSTATUS``."""

    cpus: tuple[CpuState, ...]
    prstatus: int


def read_notes(source: Source, segments: Iterable[tuple[int, int]]) -> CpuNotes:
    """Read the notes in segments given as (offset, bytes).

    Only what is needed is read: headers, short names, QEMU's descriptors.

    Raises
    ------
    DumpError
        A note leaves its segment or the file, there are too many, or QEMU's note has another version or size.

    """
    cpus: list[CpuState] = []
    prstatus = count = 0
    for start, length in segments:
        source.read(start, 0, "a note segment")
        if length > source.size - start:
            raise source.error(
                "note segment leaves the file",
                offset=start,
                found=f"{length:#x} bytes",
                expected=f"{source.size - start:#x}",
            )
        at, end = start, start + length
        while at < end:
            count += 1
            if count > MAX_NOTES:
                raise source.error("too many notes", offset=at, expected=f"at most {MAX_NOTES:,}")
            name_bytes, bytes_, kind = _HEADER.unpack(_part(source, at, _HEADER.size, end, "the header of a note"))
            name_at = at + _HEADER.size
            descriptor = name_at + _padded(name_bytes)
            next_at = descriptor + _padded(bytes_)
            # The padding of the last one may be missing.
            if descriptor + bytes_ > end:
                raise source.error(
                    "note leaves its segment",
                    offset=at,
                    found=f"a name of {name_bytes:#x} and a descriptor of {bytes_:#x} bytes",
                    expected=f"{end - name_at:#x} bytes in all",
                )
            name = (
                source.read(name_at, name_bytes, "a note's name").rstrip(b"\0") if name_bytes <= _LONGEST_NAME else b""
            )
            if name == b"QEMU" and kind == 0:
                cpus.append(_cpu(source, descriptor, bytes_, len(cpus)))
            elif name == b"CORE" and kind == _NT_PRSTATUS:
                prstatus += 1
            at = next_at
    return CpuNotes(tuple(cpus), prstatus)


def _padded(length: int) -> int:
    return (length + 3) & ~3


def _part(source: Source, at: int, length: int, end: int, what: str) -> bytes:
    if length > end - at:
        raise source.error(f"{what} leaves its segment", offset=at, found=f"{end - at} bytes", expected=f"{length}")
    return source.read(at, length, what)


def _cpu(source: Source, at: int, length: int, cpu: int) -> CpuState:
    """Decode QEMU's state of one vCPU."""
    if length < _QEMU_STATE.itemsize:
        raise source.error(
            "QEMU's CPU note is too short",
            offset=at,
            found=f"{length} bytes",
            expected=f"at least {_QEMU_STATE.itemsize}",
        )
    state = np.frombuffer(source.read(at, _QEMU_STATE.itemsize, "QEMU's CPU note"), _QEMU_STATE)[0]
    if state["version"] != _VERSION:
        raise source.error(
            "QEMU's CPU note has another version", offset=at, found=str(state["version"]), expected=str(_VERSION)
        )
    if not _QEMU_STATE.itemsize <= state["size"] <= length:
        raise source.error(
            "QEMU's CPU note has another size",
            offset=at + 4,
            found=str(state["size"]),
            expected=f"{_QEMU_STATE.itemsize} to the {length} of its descriptor",
        )
    cr = [int(word) for word in state["cr"]]
    return CpuState(
        cpu=cpu,
        cr0=cr[0],
        cr2=cr[2],
        cr3=cr[3],
        cr4=cr[4],
        rip=int(state["rip"]),
        rflags=int(state["rflags"]),
        cpl=int(state["cs"]["selector"]) & 3,
    )
