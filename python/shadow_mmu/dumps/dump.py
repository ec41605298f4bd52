"""A memory dump: what of the machine is in the file, and the page tables of it."""

import os
from types import TracebackType
from typing import TYPE_CHECKING, Final, Literal, Self

from shadow_mmu.errors import ConfigError, UnsupportedModeError
from shadow_mmu.model.constants import CR4_PSE

from .cpu import CpuState
from .elf import ELF_MAGIC, read_elf
from .kpti import Root, find_roots, other_half
from .leaves import DEFAULT_LIMIT
from .lime import LIME_MAGIC, read_lime
from .page_tables import PageTables, cr3_fault, open_tables
from .physical import PHYSICAL_BITS, PhysicalMemory
from .raw import read_raw
from .source import Source

if TYPE_CHECKING:
    from shadow_mmu.pagewalk import PageWalk

    from .maps import Maps

__all__ = ["Format", "MemoryDump", "open_dump"]

Format = Literal["elf", "lime", "raw"]
_MAGIC_BYTES: Final = 8
# Formats that would pass for raw memory, and give wrong answers.
_FOREIGN: Final = (
    (b"KDUMP   ", "a kdump-compressed dump", "an ELF dump: dump-guest-memory without -z, -l, -s or -w"),
    (b"PAGEDU64", "a Windows crash dump", "an ELF dump: dump-guest-memory without -w"),
    (b"PAGEDUMP", "a Windows crash dump", "an ELF dump: dump-guest-memory without -w"),
    (b"QFI\xfb", "a qcow2 image", "an ELF dump, a LiME image or raw memory"),
    (b"\xfd7zXZ", "an xz archive", "the file in it"),
    (b"\x1f\x8b", "a gzip archive", "the file in it"),
    (b"\x28\xb5\x2f\xfd", "a zstd archive", "the file in it"),
)


class MemoryDump:
    """Memory of a guest in a file, opened by :func:`open_dump`; a context manager that closes it.

    Attributes
    ----------
    path : str
    format : {"elf", "lime", "raw"}
    memory : PhysicalMemory
        Guest-physical memory: ``memory.read(gpa, length)``, ``memory.ranges``.
    cpus : tuple of CpuState
        The vCPUs whose registers are in the dump; none in a LiME or raw image.

    """

    __slots__ = ("_source", "cpus", "format", "memory", "path")

    def __init__(
        self, source: Source, found_format: Format, memory: PhysicalMemory, cpus: tuple[CpuState, ...]
    ) -> None:
        self._source = source
        self.path = source.path
        self.format = found_format
        self.memory = memory
        self.cpus = cpus

    def close(self) -> None:
        """Close the file; whatever reads from it afterwards raises ``ClosedError``."""
        self._source.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        ranges = len(self.memory.ranges)
        return (
            f"<MemoryDump {self.path}: {self.format}, {self.memory.size:,} bytes in {ranges:,} ranges, "
            f"{len(self.cpus)} vCPUs>"
        )

    def _repr_html_(self) -> str:
        from .render import dump_html  # noqa: PLC0415  loads rich, which only a picture needs

        return dump_html(self)

    @property
    def roots(self) -> tuple[Root, ...]:
        """The tables that vCPUs had in CR3, each followed by the other half of its KPTI pair if it is in one."""
        return find_roots(self.memory, [cpu.cr3 for cpu in self.cpus])

    def other_half(self, cr3: int) -> Root | None:
        """Return the other table of the KPTI pair that ``cr3`` is in; ``None`` if it is in none."""
        return other_half(self.memory, cr3)

    def page_tables(
        self,
        cr3: int | None = None,
        *,
        cpu: int | None = None,
        levels: int | None = None,
        maxphyaddr: int = PHYSICAL_BITS,
    ) -> PageTables:
        """Return the page tables of a vCPU, or those that ``cr3`` names.

        Parameters
        ----------
        cr3 : int, optional
            Which root; without it, that of the vCPU.
        cpu : int, optional
            Whose CR3; without it and without ``cr3``, that of vCPU 0.
        levels : {2, 3, 4, 5}, optional
            Without it, as CR4 of the vCPU says; 4 where there is none, and ``levels_from`` tells that. 2 is 32-bit paging, 3 PAE:
            such tables are walked, not listed.
        maxphyaddr : int, optional
            32 to 52: an entry with an address bit at or above it has a reserved bit set.

        Raises
        ------
        ConfigError
            An argument is out of its range, or the dump has no such vCPU, or no vCPU at all and ``cr3`` is missing.
        UnsupportedModeError
            The vCPU had paging off.
        DumpError
            The root is not in the dump, or the vCPU's CR3 there has a reserved bit set.

        """
        if cr3 is not None and cpu is not None:
            raise ConfigError(f"cr3 {cr3:#x} and cpu {cpu}: expected one of the two")
        state = self._cpu(cpu, needed=cr3 is None)
        if cr3 is None:
            assert state is not None
            cr3 = state.cr3
            # Under 32-bit paging it has 32 bits, unless its tables are to be taken for others.
            narrow = levels is None and state.levels == 2
            if reason := cr3_fault(cr3, 32 if narrow else maxphyaddr):
                raise self._source.error(f"CR3 of vCPU {state.cpu}", found=f"{cr3:#x}", expected=reason)
        if levels is not None:
            return open_tables(self.memory, cr3, levels, "argument", maxphyaddr)
        if state is None:
            return open_tables(self.memory, cr3, 4, "assumed", maxphyaddr)
        if state.levels == 0:
            raise UnsupportedModeError(
                f"{self.path}: vCPU {state.cpu} has CR0 {state.cr0:#x} and CR4 {state.cr4:#x}: expected paging to be on; "
                "give levels to walk its tables nevertheless"
            )
        return open_tables(self.memory, cr3, state.levels, "CR4", maxphyaddr, pse=bool(state.cr4 & CR4_PSE))

    def _cpu(self, cpu: int | None, *, needed: bool) -> CpuState | None:
        if not self.cpus:
            if not needed:
                return None
            raise ConfigError(f"{self.path}: no vCPU's registers are in the dump: expected a CR3")
        number = cpu or 0
        if not 0 <= number < len(self.cpus):
            raise ConfigError(f"{self.path}: no vCPU {number}: expected 0 to {len(self.cpus) - 1}")
        return self.cpus[number]

    def maps(
        self,
        cr3: int | None = None,
        *,
        cpu: int | None = None,
        levels: int | None = None,
        contiguous: bool = False,
        limit: int = DEFAULT_LIMIT,
    ) -> "Maps":
        """Return what is mapped: :meth:`page_tables` and :meth:`PageTables.maps` in one."""
        return self.page_tables(cr3, cpu=cpu, levels=levels).maps(contiguous=contiguous, limit=limit)

    def walk(
        self, gva: int, cr3: int | None = None, *, cpu: int | None = None, levels: int | None = None
    ) -> "PageWalk":
        """Explain the translation of an address: :meth:`page_tables` and :meth:`PageTables.walk` in one."""
        return self.page_tables(cr3, cpu=cpu, levels=levels).walk(gva)


def open_dump(path: str | os.PathLike[str], *, format: Format | None = None) -> MemoryDump:  # noqa: A002  the field's word
    """Open a memory dump: an ELF vmcore of QEMU, a LiME image, or raw memory from gpa 0 on.

    Only headers and notes are read; memory is when it is asked for. At most 24 bytes a segment are kept, and at most
    2^20 segments accepted.

    Parameters
    ----------
    path : str or path-like
    format : {"elf", "lime", "raw"}, optional
        Without it, as the file's first bytes say; what has no known first bytes is taken for raw memory.

    Raises
    ------
    DumpError
        The file cannot be opened, is cut short, or something in it leads nowhere; the text says where and what.
    ConfigError
        No such format.

    """
    if format not in (None, "elf", "lime", "raw"):
        raise ConfigError(f"dump format {format!r}: expected 'elf', 'lime' or 'raw'")
    source = Source(path)
    try:
        return _open(source, format)
    except BaseException:
        source.close()
        raise


def _open(source: Source, wanted: Format | None) -> MemoryDump:
    if wanted is None:
        start = source.read(0, min(_MAGIC_BYTES, source.size), "the first bytes")
        for magic, what, expected in _FOREIGN:
            if start.startswith(magic):
                raise source.error(f"this is {what}", offset=0, expected=expected)
        wanted = "elf" if start.startswith(ELF_MAGIC) else "lime" if start.startswith(LIME_MAGIC) else "raw"
    if wanted == "elf":
        found = read_elf(source)
        return MemoryDump(source, wanted, found.memory, found.notes.cpus)
    return MemoryDump(source, wanted, read_lime(source) if wanted == "lime" else read_raw(source), ())
