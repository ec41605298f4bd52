"""Recordings of real guests: loading a ``.npz`` file without trusting it.

The format is described in ``recordings/README.md``. Each array's header is read and compared with the size of its archive
member before any data is, so a file that promises more than it holds costs nothing; nothing is ever unpickled.
"""

import json
import os
import zipfile
import zlib
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Final

import numpy as np
from numpy.lib import format as npy

from shadow_mmu.errors import RecordingError
from shadow_mmu.frozen import FrozenDict, digest, same
from shadow_mmu.recording_rules import check_meta, check_rows

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy.typing as npt

_BYTE, _WORD = np.dtype("u1"), np.dtype("<u8")
_ROW_ARRAYS: "Final[Mapping[str, np.dtype[Any]]]" = {
    "kind": _BYTE,
    "cpu": _BYTE,
    "user": _BYTE,
    "size": _BYTE,
    "addr": _WORD,
    "value": _WORD,
    "gva": _WORD,
}
_MEMBERS: Final = (*_ROW_ARRAYS, "page_data", "meta")
_PAGE_WORDS: Final = 512
_MAX_META_CHARS: Final = 1 << 20
# What a damaged archive makes zipfile, zlib and the npy header parser raise.
_DAMAGED: Final = (
    zipfile.BadZipFile,
    zlib.error,
    EOFError,
    NotImplementedError,
    OSError,
    RuntimeError,
    SyntaxError,
    ValueError,
)


@dataclass(frozen=True, slots=True, eq=False)
class Recording:
    """What a shadow MMU would see of one guest, in the order in which it happened. The arrays are read-only.

    Two recordings are equal if what they hold is, wherever they were loaded from.

    Attributes
    ----------
    name : str
        File stem.
    path : Path
    meta : Mapping[str, object]
        What the recorder says of the guest; ``paging``, ``vcpus`` and ``ram_bytes`` were checked.
    kind, cpu, user, size : numpy.ndarray
        uint8, one row an event.
    addr, value, gva : numpy.ndarray
        uint64, one row an event.
    page_data : numpy.ndarray
        uint64, n x 512: contents of pages that became page tables.

    """

    name: str
    path: Path = field(compare=False)
    meta: "Mapping[str, Any]"
    kind: "npt.NDArray[np.uint8]" = field(repr=False)
    cpu: "npt.NDArray[np.uint8]" = field(repr=False)
    user: "npt.NDArray[np.uint8]" = field(repr=False)
    size: "npt.NDArray[np.uint8]" = field(repr=False)
    addr: "npt.NDArray[np.uint64]" = field(repr=False)
    value: "npt.NDArray[np.uint64]" = field(repr=False)
    gva: "npt.NDArray[np.uint64]" = field(repr=False)
    page_data: "npt.NDArray[np.uint64]" = field(repr=False)

    __eq__ = same
    __hash__ = digest

    @property
    def events(self) -> int:
        """Number of rows."""
        return len(self.kind)

    @property
    def vcpus(self) -> int:
        """Number of vCPUs."""
        return int(self.meta["vcpus"])

    @property
    def ram_bytes(self) -> int:
        """Size of the guest's memory, which starts at gpa 0."""
        return int(self.meta["ram_bytes"])

    @property
    def paging(self) -> str:
        """``4-level`` or ``5-level``."""
        return str(self.meta["paging"])

    def __repr__(self) -> str:
        return f"<Recording {self.name}: {self.events:,} events, {self.vcpus} vCPUs, {self.paging}>"


def load_recording(path: str | os.PathLike[str]) -> Recording:
    """Load and check a recording.

    Raises
    ------
    RecordingError
        The file is unreadable, truncated or malformed; the text names file, row, value and what was expected.
    UnsupportedModeError
        A register row leaves the paging mode that meta states.

    """
    where = Path(path)
    try:
        with zipfile.ZipFile(where) as archive:
            arrays = _read_members(archive, where)
    except RecordingError:
        raise
    except FileNotFoundError as error:
        raise RecordingError(f"{where}: no such file") from error
    except _DAMAGED as error:
        raise RecordingError(f"{where}: unreadable or truncated, expected a .npz recording ({error})") from error
    meta = _parse_meta(arrays.pop("meta"), where)
    recording = Recording(where.name.removesuffix(".npz"), where, FrozenDict(meta), **arrays)
    check_rows(recording)
    return recording


def _read_members(archive: zipfile.ZipFile, where: Path) -> dict[str, "npt.NDArray[Any]"]:
    """Return every array of a recording, read-only, each of the right type and shape."""
    counts = Counter(archive.namelist())
    twice = sorted(name for name, count in counts.items() if count > 1)
    if twice:
        raise RecordingError(f"{where}: array {twice[0]!r} is there {counts[twice[0]]} times, expected once")
    missing = [name for name in _MEMBERS if f"{name}.npy" not in counts]
    if missing:
        raise RecordingError(f"{where}: array {missing[0]!r} is missing, expected {', '.join(_MEMBERS)}")
    arrays = {name: _read_array(archive, name, where) for name in _MEMBERS}
    rows = len(arrays["kind"])
    if rows == 0:
        raise RecordingError(f"{where}: no events, expected at least one row")
    for name in _ROW_ARRAYS:
        if len(arrays[name]) != rows:
            raise RecordingError(f"{where}: array {name!r} has {len(arrays[name])} rows, expected {rows} as in 'kind'")
    return arrays


def _read_array(archive: zipfile.ZipFile, name: str, where: Path) -> "npt.NDArray[Any]":
    """Read one array whose header agrees with what a recording holds and with the size of its member."""
    member = archive.getinfo(f"{name}.npy")
    with archive.open(member) as stream:
        shape, fortran, dtype = _read_header(stream)
        _check_header(name, shape, dtype, where)
        length = int(np.prod(shape, dtype=object)) * dtype.itemsize
        header = stream.tell()
        if fortran and len(shape) > 1:
            raise RecordingError(f"{where}: array {name!r} is in Fortran order, expected C order")
        if member.file_size != header + length:
            raise RecordingError(
                f"{where}: array {name!r} of shape {shape} has {member.file_size - header} bytes, expected {length}"
            )
        data = stream.read()
    # An array over bytes is read-only, as wanted.
    return np.frombuffer(data, dtype).reshape(shape)


def _read_header(stream: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Read an npy header of either version that numpy writes for such arrays."""
    version = npy.read_magic(stream)
    if version == (1, 0):
        return npy.read_array_header_1_0(stream)
    if version == (2, 0):
        return npy.read_array_header_2_0(stream)
    raise ValueError(f"npy format version {version}, expected 1.0 or 2.0")


def _check_header(name: str, shape: tuple[int, ...], dtype: np.dtype[Any], where: Path) -> None:
    if name == "meta":
        if dtype.kind != "U" or shape != () or dtype.byteorder == ">":
            raise RecordingError(f"{where}: 'meta' is {dtype} of shape {shape}, expected one (little-endian) string")
        if dtype.itemsize > 4 * _MAX_META_CHARS:
            raise RecordingError(f"{where}: 'meta' has {dtype.itemsize // 4:,} characters, at most {_MAX_META_CHARS:,}")
        return
    wanted = _ROW_ARRAYS.get(name, _WORD)
    # str distinguishes what == would take for the same: '>u1' is '|u1', but '>u8' must not pass for '<u8'.
    if dtype.str != wanted.str:
        raise RecordingError(f"{where}: array {name!r} has dtype {dtype.str!r}, expected {wanted.str!r}")
    if name == "page_data":
        if len(shape) != 2 or shape[1] != _PAGE_WORDS:
            raise RecordingError(f"{where}: array 'page_data' has shape {shape}, expected (n, {_PAGE_WORDS})")
    elif len(shape) != 1:
        raise RecordingError(f"{where}: array {name!r} has shape {shape}, expected (events,)")


def _parse_meta(array: "npt.NDArray[Any]", where: Path) -> dict[str, Any]:
    try:
        meta = json.loads(str(array[()]))
    except (ValueError, RecursionError) as error:
        raise RecordingError(f"{where}: 'meta' is not JSON ({error})") from error
    if not isinstance(meta, dict):
        raise RecordingError(f"{where}: 'meta' is a JSON {type(meta).__name__}, expected an object")
    check_meta(meta, str(where))
    return meta
