"""LiME images: for each range of memory a 32-byte header (magic, version 1, first and last address) and its bytes.

The format of the Linux Memory Extractor, version 1. It has no CPU state.
"""

import struct
from array import array
from typing import Final

import numpy as np

from .physical import MAX_SEGMENTS, PHYSICAL_BITS, PhysicalMemory
from .source import Source

__all__ = ["LIME_MAGIC", "read_lime"]

LIME_MAGIC: Final = b"EMiL"
_HEADER: Final = struct.Struct("<4sIQQ8x")
_VERSION: Final = 1


def read_lime(source: Source) -> PhysicalMemory:
    """Read the ranges of a LiME image.

    Raises
    ------
    DumpError
        A header is not LiME's, or a range is empty, turned round, cut short, or overlaps another.

    """
    columns = array("Q"), array("Q"), array("Q"), array("Q")
    at = 0
    while at < source.size:
        magic, version, first, last = _HEADER.unpack(source.read(at, _HEADER.size, "the header of a LiME range"))
        if magic != LIME_MAGIC:
            raise source.error("no LiME range", offset=at, found=repr(magic), expected=repr(LIME_MAGIC))
        if version != _VERSION:
            raise source.error("LiME range of another version", offset=at + 4, found=version, expected=_VERSION)
        if not first <= last < 1 << PHYSICAL_BITS:
            raise source.error(
                "LiME range makes no sense",
                offset=at + 8,
                found=f"first gpa {first:#x}, last {last:#x}",
                expected=f"first <= last < {1 << PHYSICAL_BITS:#x}",
            )
        if len(columns[0]) == MAX_SEGMENTS:
            raise source.error("too many segments", offset=at, expected=f"at most {MAX_SEGMENTS:,}")
        length, data = last - first + 1, at + _HEADER.size
        for column, value in zip(columns, (first, length, data, at), strict=True):
            column.append(value)
        # Beyond the file: PhysicalMemory tells which range that is.
        at = data + length
    return PhysicalMemory(source, *(np.frombuffer(column, np.uint64) for column in columns))
