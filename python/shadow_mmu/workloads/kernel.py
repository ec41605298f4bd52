"""What the guest kernels of the workloads have in common: the layout of address spaces, and the kernel's half of them.

KPTI: each process has two top tables, the user's one 4 KiB above the kernel's. The kernel's half is shared by all processes;
the user's table maps of it only the entry code.
"""

from typing import Final, NamedTuple

from shadow_mmu.types import PAGE_SIZE
from shadow_mmu.workloads.address_space import (
    ACCESSED,
    DIRTY,
    NO_EXECUTE,
    PRESENT,
    USER,
    WRITABLE,
    AddressSpace,
    FrameAllocator,
    Image,
)

DIRECT_MAP: Final = 0xFFFF_8880_0000_0000
KERNEL_TEXT: Final = 0xFFFF_FFFF_8100_0000
ENTRY_TEXT: Final = 0xFFFF_FE00_0000_0000
USER_TEXT: Final = 0x40_0000
USER_DATA: Final = 0x60_0000

# Bits of the entries that the kernels write: an upper table, a page of code, a page of data, a word of which is U.
TABLE: Final = PRESENT | WRITABLE | USER | ACCESSED
TEXT: Final = PRESENT | USER | ACCESSED
DATA: Final = PRESENT | WRITABLE | USER | ACCESSED | DIRTY | NO_EXECUTE

_LARGE: Final = 2 << 20
_KERNEL_FRAMES: Final = 64


class Guest(NamedTuple):
    """A guest's memory that is being filled: what is left of it, and an address space with the kernel's half only."""

    image: Image
    frames: FrameAllocator
    kernel: AddressSpace


def kernel_half(process_frames: int) -> Guest:
    """Make memory with the kernel's half of every address space in it: direct map, text, entry code.

    Parameters
    ----------
    process_frames : int
        4 KiB frames that all else will take.

    """
    needed = _KERNEL_FRAMES + process_frames
    # The direct map takes one table for each GiB of itself.
    size = -(-(needed + (needed >> 18) + 2) * PAGE_SIZE // _LARGE) * _LARGE
    image = Image(size)
    frames = FrameAllocator(0x10000, size)
    kernel = AddressSpace(image, frames)
    kernel.map(DIRECT_MAP, 0, level=2, pages=size // _LARGE, execute=False)
    kernel.map(KERNEL_TEXT, frames.take(), write=False)
    kernel.map(ENTRY_TEXT, frames.take(), write=False)
    # Process frames start at a round number, so that addresses in a trace are easy to read.
    return Guest(image, FrameAllocator(-(-frames.next // 0x4000) * 0x4000, size), kernel)


def top_tables(guest: Guest) -> tuple[AddressSpace, AddressSpace]:
    """Make the two top tables of a process, with the kernel's half in them; returns the kernel's and the user's."""
    top = guest.frames.take(align=2 * PAGE_SIZE, size=2 * PAGE_SIZE)
    in_kernel = AddressSpace(guest.image, guest.frames, root=top)
    in_user = AddressSpace(guest.image, guest.frames, root=top + PAGE_SIZE)
    for gva in (DIRECT_MAP, KERNEL_TEXT, ENTRY_TEXT):
        in_kernel.share(gva, guest.kernel)
    in_user.share(ENTRY_TEXT, guest.kernel)
    return in_kernel, in_user
