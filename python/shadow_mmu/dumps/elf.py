"""ELF vmcores as QEMU's ``dump-guest-memory`` writes them: ELF header, program headers, and through them memory and notes.

Layouts: the ELF-64 object file format, and ``PN_XNUM`` of its extended numbering. Every number of the file is checked against
the size of the file before it is used; nothing is read that is not needed.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from .elf_notes import CpuNotes, read_notes
from .physical import MAX_SEGMENTS, PhysicalMemory
from .source import Source

if TYPE_CHECKING:
    import numpy.typing as npt

__all__ = ["ELF_MAGIC", "read_elf"]

ELF_MAGIC: Final = b"\x7fELF"
_HEADER: Final = np.dtype(
    [
        ("magic", "S4"), ("class", "u1"), ("data", "u1"), ("ident_version", "u1"), ("abi", "u1"), ("pad", "V8"),
        ("type", "<u2"), ("machine", "<u2"), ("version", "<u4"), ("entry", "<u8"), ("phoff", "<u8"), ("shoff", "<u8"),
        ("flags", "<u4"), ("ehsize", "<u2"), ("phentsize", "<u2"), ("phnum", "<u2"), ("shentsize", "<u2"),
        ("shnum", "<u2"), ("shstrndx", "<u2"),
    ]
)  # fmt: skip
_PROGRAM: Final = np.dtype(
    [
        ("type", "<u4"), ("flags", "<u4"), ("offset", "<u8"), ("vaddr", "<u8"), ("paddr", "<u8"), ("filesz", "<u8"),
        ("memsz", "<u8"), ("align", "<u8"),
    ]
)  # fmt: skip
_SECTION_INFO: Final = 44
"""Offset of ``sh_info`` in a section header, which is 64 bytes."""
_SECTION_BYTES: Final = 64
_CLASS_64, _LITTLE, _CURRENT, _CORE, _X86_64 = 2, 1, 1, 4, 62
_PN_XNUM: Final = 0xFFFF
_PT_LOAD, _PT_NOTE = 1, 4
_MACHINES: Final = {
    3: "i386",
    8: "MIPS",
    21: "PPC64",
    22: "S390",
    40: "ARM",
    183: "AArch64",
    243: "RISC-V",
    258: "LoongArch",
}
# Field, what it must be, and in words.
_FIXED: Final = (
    ("class", _CLASS_64, "2 (64-bit)"),
    ("data", _LITTLE, "1 (little endian)"),
    ("ident_version", _CURRENT, "1"),
    ("type", _CORE, "4 (a core file)"),
    ("machine", _X86_64, "62 (x86-64: the first vCPU was in long mode)"),
    ("phentsize", _PROGRAM.itemsize, f"{_PROGRAM.itemsize}"),
)


@dataclass(frozen=True, slots=True)
class ElfDump:
    """What an ELF vmcore holds."""

    memory: PhysicalMemory
    notes: CpuNotes


def read_elf(source: Source) -> ElfDump:
    """Read the structure of an ELF vmcore.

    Raises
    ------
    DumpError
        It is no little-endian 64-bit x86-64 core file, or some number in it leads out of the file.

    """
    header = np.frombuffer(source.read(0, _HEADER.itemsize, "the ELF header"), _HEADER)[0]
    if header["magic"] != ELF_MAGIC:
        raise source.error("no ELF file", offset=0, found=repr(bytes(header["magic"])), expected=repr(ELF_MAGIC))
    for name, wanted, words in _FIXED:
        found = int(header[name])
        if found != wanted:
            known = f" ({_MACHINES[found]})" if name == "machine" and found in _MACHINES else ""
            raise source.error(f"ELF field e_{name}", offset=_field(name), found=f"{found}{known}", expected=words)
    programs, place = _program_headers(source, header)
    _check_sizes(source, programs, place)
    load = programs["type"] == _PT_LOAD
    memory = PhysicalMemory(
        source,
        programs["paddr"][load].astype(np.uint64),
        # What a segment has beyond its file size is not in the file: absent, and not taken for zeros.
        programs["filesz"][load].astype(np.uint64),
        programs["offset"][load].astype(np.uint64),
        place[load],
    )
    where = programs[programs["type"] == _PT_NOTE]
    notes = read_notes(source, zip(where["offset"].tolist(), where["filesz"].tolist(), strict=True))
    return ElfDump(memory, notes)


def _field(name: str) -> int:
    """Return the byte of a field of the ELF header."""
    fields: Any = _HEADER.fields
    return int(fields[name][1])


def _program_headers(source: Source, header: Any) -> "tuple[npt.NDArray[Any], npt.NDArray[np.uint64]]":  # noqa: ANN401  a numpy record
    """Return the program headers, and the byte at which each stands."""
    count, at, counted_at = int(header["phnum"]), int(header["phoff"]), _field("phnum")
    if count == _PN_XNUM:
        # More segments than 16 bits count: the number is in the first section header.
        section = int(header["shoff"])
        if section == 0:
            raise source.error(
                "ELF field e_shoff",
                offset=_field("shoff"),
                found="0",
                expected="a section header, as e_phnum is PN_XNUM",
            )
        data = source.read(section, _SECTION_BYTES, "the section header that counts the segments")
        count = int.from_bytes(data[_SECTION_INFO : _SECTION_INFO + 4], "little")
        counted_at = section + _SECTION_INFO
    if not 0 < count <= MAX_SEGMENTS:
        raise source.error(
            "number of program headers", offset=counted_at, found=f"{count:,}", expected=f"1 to {MAX_SEGMENTS:,}"
        )
    data = source.read(at, count * _PROGRAM.itemsize, f"the table of {count:,} program headers")
    place = np.arange(count, dtype=np.uint64) * np.uint64(_PROGRAM.itemsize) + np.uint64(at)
    return np.frombuffer(data, _PROGRAM), place


def _check_sizes(source: Source, programs: "npt.NDArray[Any]", place: "npt.NDArray[np.uint64]") -> None:
    """Refuse the first memory segment that has more bytes in the file than in memory."""
    bad = np.flatnonzero((programs["type"] == _PT_LOAD) & (programs["filesz"] > programs["memsz"]))
    if bad.size:
        at = int(bad[0])
        raise source.error(
            "segment has more bytes in the file than in memory",
            offset=int(place[at]),
            found=f"p_filesz {int(programs['filesz'][at]):#x}",
            expected=f"at most p_memsz {int(programs['memsz'][at]):#x}",
        )
