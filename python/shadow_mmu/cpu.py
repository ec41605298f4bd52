"""What a vCPU's CPUID says of paging: which bits its registers accept and what its entries mean.

>>> from shadow_mmu import CpuModel, Vm
>>> old = CpuModel(maxphyaddr=36, gib_pages=False, smap=False, la57=False)
>>> with Vm("1MiB", vcpus=1, cpu=old) as vm:
...     vm.vcpus[0].write_cr4(1 << 5 | 1 << 21)  # CR4.SMAP, which this processor does not have
Traceback (most recent call last):
    ...
shadow_mmu.errors.GeneralProtection: #GP(0x0)
"""

from dataclasses import dataclass, fields
from typing import Final

from shadow_mmu.checks import shown, whole
from shadow_mmu.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class CpuModel:
    """The processor that every vCPU of a machine is (SDM vol. 3A, 4.1.4).

    The default is what KVM gives a guest on shadow page tables of a recent processor.

    Attributes
    ----------
    maxphyaddr : int
        Width of guest-physical addresses, 36 to 52: higher bits are reserved in entries and in CR3.
    gib_pages : bool
        1 GiB pages in 4- and 5-level paging; without them bit 7 of a PDPTE is reserved.
    pse36 : bool
        Bits 16:13 of a 4 MiB entry are address bits 35:32; without it bits 21:13 are reserved.
    nx : bool
        EFER.NXE may be set.
    wp : bool
        CR0.WP exists, as from the 486 on; without it the bit reads as 0 and the supervisor writes to any page.
    smep, smap : bool
        CR4.SMEP and CR4.SMAP may be set.
    la57 : bool
        CR4.LA57 may be set: 5-level paging.
    long_mode : bool
        EFER.LME may be set: 4- and 5-level paging.
    pku : bool
        CR4.PKE may be set: protection keys of user pages. KVM gives them to no guest on shadow page tables, and the default is
        the same.

    Raises
    ------
    ConfigError
        ``maxphyaddr`` is out of its range, or a feature is no bool.

    """

    maxphyaddr: int = 46
    gib_pages: bool = True
    pse36: bool = True
    nx: bool = True
    wp: bool = True
    smep: bool = True
    smap: bool = True
    la57: bool = True
    long_mode: bool = True
    pku: bool = False

    def __post_init__(self) -> None:
        """Refuse what no processor is."""
        object.__setattr__(self, "maxphyaddr", whole("maxphyaddr", self.maxphyaddr, 36, 52))
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name != "maxphyaddr" and not isinstance(value, bool):
                raise ConfigError(f"{field.name} is {shown(value)}: expected True or False")


DEFAULT_CPU: Final = CpuModel()
"""What a vCPU is unless told otherwise."""
