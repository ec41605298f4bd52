"""Small dumps, byte by byte: page tables, and the files around them. Written from the formats, not from the readers."""

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

PAGE = 4096
P, W, U, A, D, PS, G, NX = 1, 2, 4, 1 << 5, 1 << 6, 1 << 7, 1 << 8, 1 << 63
PT_LOAD, PT_NOTE = 1, 4


@dataclass
class Cpu:
    """The registers of a QEMU note that tests set."""

    cr0: int = 0x80050033
    cr2: int = 0
    cr3: int = 0x1000
    cr4: int = 0x6B0
    rip: int = 0xFFFFFFFF81000000
    rflags: int = 0x246
    cs: int = 0x10


def note(name: bytes, kind: int, descriptor: bytes) -> bytes:
    """Return a note with its padding."""

    def padded(data: bytes) -> bytes:
        return data + bytes(-len(data) % 4)

    return struct.pack("<III", len(name), len(descriptor), kind) + padded(name) + padded(descriptor)


def qemu_state(cpu: Cpu, *, version: int = 1, size: int = 440) -> bytes:
    """Return QEMU's CPU state, 440 bytes."""
    general = struct.pack("<16Q", *range(16)) + struct.pack("<QQ", cpu.rip, cpu.rflags)
    segments = struct.pack("<IIIIQ", cpu.cs, 0xFFFFFFFF, 0xAF9B00, 0, 0) + bytes(9 * 24)
    control = struct.pack("<5Q", cpu.cr0, 0, cpu.cr2, cpu.cr3, cpu.cr4)
    return struct.pack("<II", version, size) + general + segments + control + bytes(8)


@dataclass
class Segment:
    """One PT_LOAD: where it is in memory, its bytes, and lies about them."""

    paddr: int
    data: bytes
    lies: Mapping[str, int] = field(default_factory=dict)


@dataclass
class ElfImage:
    """An ELF vmcore; ``header`` and ``note_header`` replace fields."""

    segments: Sequence[Segment]
    cpus: Sequence[Cpu] = (Cpu(),)
    notes: bytes | None = None
    header: Mapping[str, int] = field(default_factory=dict)
    note_header: Mapping[str, int] = field(default_factory=dict)

    def build(self) -> bytes:
        """Return the file: header, program headers, notes, memory."""
        prstatus = b"".join(note(b"CORE\0", 1, bytes(336)) for _ in self.cpus)
        states = b"".join(note(b"QEMU\0", 0, qemu_state(cpu)) for cpu in self.cpus)
        notes = prstatus + states if self.notes is None else self.notes
        fields = {
            "class": 2, "data": 1, "ident": 1, "type": 4, "machine": 62, "version": 1, "phoff": 64, "shoff": 0,
            "phentsize": 56, "phnum": 1 + len(self.segments),
        } | dict(self.header)  # fmt: skip
        ident = b"\x7fELF" + bytes([fields["class"], fields["data"], fields["ident"]]) + bytes(9)
        rest = struct.pack(
            "<HHIQQQIHHHHHH", fields["type"], fields["machine"], fields["version"], 0, fields["phoff"], fields["shoff"],
            0, 64, fields["phentsize"], fields["phnum"], 64, 1 if fields["shoff"] else 0, 0,
        )  # fmt: skip
        notes_at = 64 + 56 * (1 + len(self.segments))
        at = notes_at + len(notes)
        headers = [_program(PT_NOTE, notes_at, 0, len(notes), self.note_header)]
        for segment in self.segments:
            headers.append(_program(PT_LOAD, at, segment.paddr, len(segment.data), segment.lies))
            at += len(segment.data)
        return ident + rest + b"".join(headers) + notes + b"".join(segment.data for segment in self.segments)


def _program(kind: int, offset: int, paddr: int, size: int, lies: Mapping[str, int]) -> bytes:
    fields = {"type": kind, "offset": offset, "paddr": paddr, "filesz": size, "memsz": size} | dict(lies)
    return struct.pack(
        "<IIQQQQQQ", fields["type"], 0, fields["offset"], 0, fields["paddr"], fields["filesz"], fields["memsz"], 0
    )


def lime_range(first: int, data: bytes, *, last: int | None = None, magic: int = 0x4C694D45, version: int = 1) -> bytes:
    """Return one range of a LiME image."""
    end = first + len(data) - 1 if last is None else last
    return struct.pack("<IIQQQ", magic, version, first, end, 0) + data


def table(entries: Mapping[int, int]) -> bytes:
    """Return a page-table page."""
    words = [0] * 512
    for index, entry in entries.items():
        words[index] = entry
    return struct.pack("<512Q", *words)


def chain(levels: int, root: int = 0x1000, leaf: int = 0x7000 | P | W | U, index: int = 0) -> dict[int, bytes]:
    """Return tables one page apart from ``root`` on, each with one entry that leads to the next, by address."""
    pages = {root + (n << 12): table({index: root + (n + 1 << 12) | P | W | U}) for n in range(levels - 1)}
    pages[root + (levels - 1 << 12)] = table({index: leaf})
    return pages


def flat(pages: Mapping[int, bytes], size: int) -> bytes:
    """Return raw memory of ``size`` bytes with pages in it."""
    memory = bytearray(size)
    for gpa, data in pages.items():
        memory[gpa : gpa + len(data)] = data
    return bytes(memory)


def small_elf(levels: int = 4) -> ElfImage:
    """Return a dump of a few tables in two segments, with one vCPU."""
    pages = chain(levels)
    first = b"".join(pages[gpa] for gpa in sorted(pages) if gpa < 0x3000)
    second = b"".join(pages[gpa] for gpa in sorted(pages) if gpa >= 0x3000)
    cr4 = 0x6B0 | (1 << 12 if levels == 5 else 0)
    return ElfImage([Segment(0x1000, first), Segment(0x3000, second)], [Cpu(cr4=cr4)])
