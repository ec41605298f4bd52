"""Memory dumps of real guests: QEMU's ELF vmcores, LiME images, raw memory; their page tables listed and walked.

:func:`open_dump` gives a :class:`MemoryDump`: ``dump.cpus``, ``dump.memory.read(gpa, length)``, ``dump.roots``,
``dump.maps(cr3)``, ``dump.walk(gva)``. ``docs/dumps.md`` describes the formats and what is checked.

One level of tables, and one page that it maps, in a raw image:

>>> import pathlib, struct, tempfile
>>> image = bytearray(5 << 12)
>>> for level in range(4):  # PML4 at 0x0 -> PDPT -> PD -> PT at 0x3000 -> the page at 0x4000: present, writable, user
...     struct.pack_into("<Q", image, level << 12, (level + 1) << 12 | 7)
>>> with tempfile.TemporaryDirectory() as folder:
...     path = pathlib.Path(folder, "memory.raw")
...     _ = path.write_bytes(image)
...     with open_dump(path) as dump:
...         [one] = dump.maps(cr3=0)
...         walk = dump.walk(0x123, cr3=0)
>>> str(one), hex(one.gpa), hex(walk.guest.address)
('0x0000000000000000-0x0000000000001000 rwx u', '0x4000', '0x4123')
"""

from .cpu import CpuState
from .dump import MemoryDump, open_dump
from .kpti import Root
from .leaves import LEAF, Leaves, Trouble
from .maps import MappedRange, Maps
from .page_tables import PageTables
from .physical import PhysicalMemory, PhysicalRange

__all__ = [
    "LEAF",
    "CpuState",
    "Leaves",
    "MappedRange",
    "Maps",
    "MemoryDump",
    "PageTables",
    "PhysicalMemory",
    "PhysicalRange",
    "Root",
    "Trouble",
    "open_dump",
]
