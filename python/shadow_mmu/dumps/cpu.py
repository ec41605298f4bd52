"""What a dump says of a vCPU: the registers that decide paging, and where it was."""

from dataclasses import dataclass
from typing import Any

from shadow_mmu.model.constants import CR0_PG, CR4_LA57, CR4_PAE

__all__ = ["CpuState"]


@dataclass(frozen=True, slots=True)
class CpuState:
    """The registers of one vCPU, from the note that QEMU writes for it.

    The note has no EFER: that the vCPU was in long mode follows from the machine type of the file, and that NX is on is
    taken for granted.

    Attributes
    ----------
    cpu : int
        Number of the vCPU, in the order of the notes.
    cr0, cr2, cr3, cr4, rip, rflags : int
        64-bit values.
    cpl : int
        Current privilege level, 0 to 3.

    """

    cpu: int
    cr0: int
    cr2: int
    cr3: int
    cr4: int
    rip: int
    rflags: int
    cpl: int

    @property
    def levels(self) -> int:
        """Levels of the guest's tables: 5 with CR4.LA57, 4 without, 2 (32-bit) without CR4.PAE, 0 with paging off."""
        if not self.cr0 & CR0_PG:
            return 0
        if not self.cr4 & CR4_PAE:
            return 2
        return 5 if self.cr4 & CR4_LA57 else 4

    def as_dict(self) -> dict[str, Any]:
        """Return the JSON form; addresses and registers are hexadecimal strings."""
        words = {name: f"{getattr(self, name):#x}" for name in ("cr0", "cr2", "cr3", "cr4", "rip", "rflags")}
        return {"cpu": self.cpu, **words, "cpl": self.cpl, "levels": self.levels}
