"""One set of page tables in a dump: a root, the rules of its mode, and what can be asked of it."""

from dataclasses import dataclass
from typing import Any, Final, Literal

from shadow_mmu.cpu import CpuModel
from shadow_mmu.errors import ConfigError, UnsupportedModeError
from shadow_mmu.model.constants import (
    CR4_LA57,
    CR4_PAE,
    CR4_PSE,
    EFER_LMA,
    EFER_LME,
    EFER_NXE,
    PAGE_SIZE,
    PFN_MASK,
    WORD,
)
from shadow_mmu.model.permissions import Context, make_context
from shadow_mmu.model.registers import Registers
from shadow_mmu.pagewalk import PageWalk
from shadow_mmu.pagewalk.guest import guest_dimension

from .leaves import DEFAULT_LIMIT, Leaves, find_leaves
from .maps import Maps, merge
from .physical import PHYSICAL_BITS, PhysicalMemory

__all__ = ["PageTables", "cr3_fault", "open_tables"]

_CR3_LAM: Final = 3 << 61
"""CR3.LAM_U48 and LAM_U57: they change which data addresses are canonical, not the walk."""
_LONG: Final = EFER_LMA | EFER_LME | EFER_NXE
_MODES: Final = {2: (CR4_PSE, EFER_NXE), 3: (CR4_PAE, EFER_NXE), 4: (CR4_PAE, _LONG), 5: (CR4_PAE | CR4_LA57, _LONG)}
"""By number of levels the CR4 and EFER of the mode."""
_PDPT_BYTES: Final = 32


@dataclass(frozen=True, slots=True)
class PageTables:
    """The page tables that a CR3 names.

    Attributes
    ----------
    memory : PhysicalMemory
    cr3 : int
        As given, PCID and cache bits included.
    levels : {2, 3, 4, 5}
        2 is 32-bit paging, 3 PAE.
    levels_from : {"argument", "CR4", "assumed"}
        Where the number of levels comes from; ``assumed`` means that nothing told and 4 was taken.
    context : shadow_mmu.model.permissions.Context
        The rules for entries in this mode.

    """

    memory: PhysicalMemory
    cr3: int
    levels: int
    levels_from: Literal["argument", "CR4", "assumed"]
    context: Context

    @property
    def root(self) -> int:
        """Physical address of the top table; of PAE's four entries, which need no page of their own."""
        return _root(self.cr3, self.levels)

    def leaves(self, *, limit: int = DEFAULT_LIMIT) -> Leaves:
        """Find every page that the tables map.

        Raises
        ------
        DumpError
            There are more than ``limit``, or the file cannot be read.
        UnsupportedModeError
            The tables are those of 32-bit or PAE paging: they are walked, but not listed.

        """
        if not self.context.long:
            raise UnsupportedModeError(
                f"tables of {self.levels} levels: expected 4- or 5-level paging to list what they map"
            )
        return find_leaves(self.memory, self.context, self.root, limit=limit)

    def maps(self, *, contiguous: bool = False, limit: int = DEFAULT_LIMIT) -> Maps:
        """Return what is mapped, neighbours of the same rights and page size merged.

        Parameters
        ----------
        contiguous : bool
            Merge only what is contiguous in physical memory too.
        limit : int
            Most pages.

        Raises
        ------
        DumpError, UnsupportedModeError
            As for :meth:`leaves`.

        """
        return merge(self.leaves(limit=limit), cr3=self.cr3, levels=self.levels, contiguous=contiguous)

    def walk(self, gva: int) -> PageWalk:
        """Explain the translation of an address; not to be mapped, or not canonical, is an answer too.

        Raises
        ------
        ConfigError
            ``gva`` is no unsigned 64-bit number.
        DumpError
            The file cannot be read.

        """
        if not 0 <= gva <= WORD:
            raise ConfigError(f"gva {gva:#x}: expected 0 to {WORD:#x}")
        return PageWalk(gva, guest_dimension(self.memory, self.context, self.cr3, gva))

    def as_dict(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {"cr3": f"{self.cr3:#x}", "levels": self.levels, "levels_from": self.levels_from}


def cr3_fault(cr3: int, maxphyaddr: int) -> str | None:
    """Return what was expected of a CR3 that has a reserved bit set; ``None`` if it has none."""
    if 0 <= cr3 <= WORD and not (cr3 & ~_CR3_LAM) >> maxphyaddr:
        return None
    return f"64 bits, none above {maxphyaddr - 1} but 61 and 62 (LAM)"


def _root(cr3: int, levels: int) -> int:
    return cr3 & (0xFFFFFFE0 if levels == 3 else PFN_MASK)


def open_tables(
    memory: PhysicalMemory,
    cr3: int,
    levels: int,
    levels_from: Literal["argument", "CR4", "assumed"],
    maxphyaddr: int = PHYSICAL_BITS,
    *,
    pse: bool = True,
) -> PageTables:
    """Return the tables of a CR3.

    NX is taken for on, for no dump format has EFER; and so is CR4.PSE under 32-bit paging, where nothing says that it is off. The
    PDPTRs of PAE, which are loaded from the table and in no dump, are taken from it.

    Raises
    ------
    ConfigError
        ``levels`` is not 2 to 5, ``maxphyaddr`` not 36 to 52, or ``cr3`` has a reserved bit.
    DumpError
        The top table is not in the dump.

    """
    if levels not in _MODES:
        raise ConfigError(f"levels {levels!r}: expected 4 or 5, or to walk 2 (32-bit) or 3 (PAE)")
    cpu = CpuModel(maxphyaddr=maxphyaddr)
    if reason := cr3_fault(cr3, maxphyaddr if levels > 3 else 32):
        raise ConfigError(f"CR3 {cr3:#x}: expected {reason}")
    cr4, efer = _MODES[levels]
    context = make_context(Registers(cr3=cr3, cr4=cr4 if pse else cr4 & ~CR4_PSE, efer=efer), cpu)
    root = _root(cr3, levels)
    if not memory.holds(root, _PDPT_BYTES if levels == 3 else PAGE_SIZE):
        raise memory.absent(f"CR3 {cr3:#x}: its table at gpa {root:#x}")
    return PageTables(memory, cr3, levels, levels_from, context)
