"""Raw images: the bytes of memory from gpa 0 on, and nothing else."""

import numpy as np

from shadow_mmu.model.constants import PAGE_SIZE

from .physical import PhysicalMemory
from .source import Source

__all__ = ["read_raw"]


def read_raw(source: Source) -> PhysicalMemory:
    """Take a whole file for memory from gpa 0 on.

    Raises
    ------
    DumpError
        It is empty or no multiple of a page.

    """
    if source.size == 0 or source.size % PAGE_SIZE:
        raise source.error(
            "size of a raw memory image", found=f"{source.size} bytes", expected=f"a multiple of {PAGE_SIZE}, not 0"
        )
    zero = np.zeros(1, np.uint64)
    return PhysicalMemory(source, zero, np.array([source.size], np.uint64), zero, zero)
