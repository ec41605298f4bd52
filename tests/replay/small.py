"""Small recordings, made by hand and broken in one place at a time."""

import io
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Arrays = dict[str, npt.NDArray[Any]]

PAGE, STORE, CR3, CR0, CR4, INVLPG, READ, WRITE, FETCH, MARK, EFER = range(1, 12)
ROOT, PT, DATA = 0x10000, 0x13000, 0x20000
GVA = 0x40_0000
# The page table itself is mapped at the second page of the same 2 MiB.
PT_GVA = GVA + 0x1000
META = {"name": "small", "paging": "4-level", "vcpus": 2, "ram_bytes": 1 << 20}


def page(**entries: int) -> list[int]:
    """A page of 512 words; ``e5=0x1007`` is entry 5."""
    words = [0] * 512
    for name, value in entries.items():
        words[int(name[1:])] = value
    return words


PAGES = [
    page(e0=0x11007),
    page(e0=0x12007),
    page(e2=PT | 7),
    page(e0=DATA | 0x67, e1=PT | 0x67, e2=0x21067),
]
# kind, cpu, user, size, addr, value, gva
ROWS: list[tuple[int, int, int, int, int, int, int]] = [
    (CR0, 0, 0, 0, 0x80050033, 0, 0),
    (CR4, 0, 0, 0, 0x20, 0, 0),
    (EFER, 0, 0, 0, 0xD01, 0, 0),
    (PAGE, 0, 0, 0, ROOT, 0, 0),
    (PAGE, 0, 0, 0, 0x11000, 1, 0),
    (PAGE, 0, 0, 0, 0x12000, 2, 0),
    (PAGE, 0, 0, 0, PT, 3, 0),
    (CR3, 0, 0, 0, ROOT, 0, 0),
    (CR3, 1, 0, 0, ROOT, 0, 0),
    (READ, 0, 1, 8, GVA + 0x18, DATA + 0x18, 0),  # row 9
    (FETCH, 1, 1, 1, GVA + 0x20, DATA + 0x20, 0),
    (WRITE, 0, 0, 8, PT_GVA, PT, 0),  # row 11: the same instruction as row 12
    (STORE, 0, 0, 8, PT, 0x22067, PT_GVA),
    (INVLPG, 0, 0, 0, GVA, 0, 0),
    (READ, 0, 1, 8, GVA + 0x18, 0x22018, 0),  # row 14
    (INVLPG, 1, 0, 0, GVA, 0, 0),
    (READ, 1, 1, 8, GVA + 0x18, 0x22018, 0),
    (STORE, 1, 0, 8, 0x12000 + 8, 0, 0),  # row 17: from the hypervisor's side
    (MARK, 0, 0, 0, 0x5A5A0002, 0, 0),
]


def arrays(rows: list[tuple[int, int, int, int, int, int, int]] | None = None, **meta: object) -> Arrays:
    """The arrays of a recording."""
    table = np.array(ROWS if rows is None else rows, np.uint64).reshape(-1, 7)
    columns = {
        name: table[:, index].astype(np.uint8 if index < 4 else "<u8")
        for index, name in enumerate(("kind", "cpu", "user", "size", "addr", "value", "gva"))
    }
    return {**columns, "page_data": np.array(PAGES, "<u8"), "meta": np.array(json.dumps({**META, **meta}))}


def write(path: Path, found: Arrays, *, twice: str | None = None) -> Path:
    """Write arrays as a recording; ``twice`` names one that is put in a second time."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, array in found.items():
            for _ in range(2 if name == twice else 1):
                stream = io.BytesIO()
                np.lib.format.write_array(stream, array)
                archive.writestr(f"{name}.npy", stream.getvalue())
    return path
