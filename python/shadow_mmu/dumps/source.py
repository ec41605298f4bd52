"""The file of a dump: bounded reads at a place, each a typed error if the file does not reach so far.

Read with ``pread``, not mapped: a page of a mapping of a file that another process cuts short is a SIGBUS, which no exception
handler sees; a short read is an error like any other (``docs/adr/007-memory-dumps.md``).
"""

import os
import stat
from types import TracebackType
from typing import Self

from shadow_mmu.errors import ClosedError, DumpError

__all__ = ["Source"]


class Source:
    """A file open for reading.

    Parameters
    ----------
    path : str or path-like

    Raises
    ------
    DumpError
        No such file, no regular file, or not to be read.

    """

    __slots__ = ("_descriptor", "path", "size")

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.fspath(path)
        self._descriptor = -1
        try:
            # Not blocking: to open a pipe would wait for a writer.
            self._descriptor = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
            status = os.fstat(self._descriptor)
        except (OSError, ValueError) as error:  # ValueError: a NUL in the name
            self.close()
            reason = error.strerror if isinstance(error, OSError) else error
            raise DumpError(self.path, f"cannot be opened ({reason})") from error
        if not stat.S_ISREG(status.st_mode):
            self.close()
            raise DumpError(self.path, "is no regular file")
        self.size = status.st_size
        """Bytes in the file when it was opened."""

    def close(self) -> None:
        """Close the file; twice is harmless."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()

    def error(
        self, what: str, *, offset: int | None = None, found: object = None, expected: object = None
    ) -> DumpError:
        """Return the error that this file has ``what`` at ``offset``."""
        return DumpError(self.path, what, offset=offset, found=found, expected=expected)

    def read(self, offset: int, length: int, what: str) -> bytes:
        """Return ``length`` bytes at ``offset``; ``what`` is their name in an error.

        The check of the size comes first, so a length that the file cannot have costs no memory.

        Raises
        ------
        DumpError
            The file ends before, or cannot be read.
        ClosedError
            The dump was closed.

        """
        if self._descriptor < 0:
            raise ClosedError(f"{self.path}: the dump is closed")
        if offset > self.size or length > self.size - offset:
            raise self.error(
                f"{what} ends after the file",
                offset=offset,
                found=f"{max(0, self.size - offset)} bytes",
                expected=f"{length} bytes",
            )
        parts = []
        at, left = offset, length
        while left:
            try:
                part = os.pread(self._descriptor, left, at)
            except OSError as error:
                raise self.error(f"{what} cannot be read ({error.strerror})", offset=at) from error
            if not part:
                raise self.error(
                    f"{what} is gone: the file was cut short while it was open", offset=at, expected=f"{left} bytes"
                )
            parts.append(part)
            at, left = at + len(part), left - len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)
