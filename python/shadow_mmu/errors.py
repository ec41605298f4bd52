"""The exceptions: misuse by the host (:class:`ShadowMmuError`) and what the guest runs into (:class:`GuestEvent`).

A guest fault is not an error of the caller: it is what the processor would deliver to the guest. The two families have no
common base but :class:`Exception`, so that ``except ShadowMmuError`` never hides a guest event.
"""

from functools import partial

__all__ = [
    "BrokenError",
    "ClosedError",
    "ConfigError",
    "DumpError",
    "ForkedError",
    "GeneralProtection",
    "GuestEvent",
    "GuestMemoryError",
    "InvalidOpcode",
    "MemoryRangeError",
    "MissingExtraError",
    "PageFault",
    "ProgramError",
    "RecordingError",
    "ShadowMemoryError",
    "ShadowMmuError",
    "StuckError",
    "ThreadError",
    "TripleFault",
    "UnsupportedModeError",
    "VcpuBusyError",
]


class ShadowMmuError(Exception):
    """Base of all misuse errors. Nothing was changed by a call that raises one, unless its class says otherwise."""


class ConfigError(ShadowMmuError, ValueError):
    """A machine, policy or workload parameter is out of its range; the text names the value and what is allowed."""


class MemoryRangeError(ShadowMmuError, ValueError):
    """A guest-physical range is outside memory, misaligned, or overlaps a memslot."""


class GuestMemoryError(ShadowMmuError, MemoryError):
    """The host cannot give the guest memory that was asked for."""


class MissingExtraError(ShadowMmuError, ImportError):
    """A library that only an extra of the package brings is not installed; the text names both.

    Parameters
    ----------
    what : str
        What was asked for.
    library, extra : str
        The library that it takes, and the extra that brings it.

    """

    def __init__(self, what: str, library: str, extra: str) -> None:
        """Say how to get the library."""
        super().__init__(f"{what} needs {library}, which is not installed: pip install 'shadow-mmu[{extra}]'")
        self._parts = (what, library, extra)

    def __reduce__(self) -> tuple[type[Exception], tuple[str, str, str]]:
        """Make the copy of the parts: the text is made of them."""
        return type(self), self._parts


class UnsupportedModeError(ShadowMmuError):
    """A paging mode that what was asked for does not have: long mode on a 32-bit host, a recording in another mode, a list of tables that are not 4- or 5-level."""


class VcpuBusyError(ShadowMmuError, RuntimeError):
    """A vCPU is being driven by another thread."""


class ClosedError(ShadowMmuError, RuntimeError):
    """The machine was closed."""


class ForkedError(ShadowMmuError, RuntimeError):
    """The machine was made in another process, of which this one is a fork: it has no threads here, only a copy."""


class ThreadError(ShadowMmuError, RuntimeError):
    """The host cannot give the threads that were asked for; nothing was run."""


class BrokenError(ShadowMmuError, RuntimeError):
    """A thread panicked in the machine: a bug of this library. It can be looked at and closed, and nothing else.

    The call in which it happened tells what the panic said; every later one that would change the machine is refused.
    """


class StuckError(ShadowMmuError, RuntimeError):
    """A vCPU of a stress run made no step for too long, which is a bug of this library; the text says what each vCPU was at."""


class ProgramError(ShadowMmuError, ValueError):
    """A program has a wrong layout or an operation that the machine refuses; the text names its place."""


class RecordingError(ShadowMmuError, ValueError):
    """A recording is unreadable or malformed; the text names file, row, value and what was expected."""


class DumpError(ShadowMmuError, ValueError):
    """A memory dump is unreadable or malformed, or does not hold what was asked of it.

    The text and the attributes name the file, the byte where it is wrong (``None`` if it is not one place), what was found
    there and what was expected.
    """

    def __init__(
        self, path: object, what: str, *, offset: int | None = None, found: object = None, expected: object = None
    ) -> None:
        """Keep the parts, so that a program need not read the text."""
        super().__init__(path, what, offset, found, expected)
        self.path = str(path)
        self.what = what
        self.offset = offset
        self.found = found
        self.expected = expected

    def __reduce__(self) -> tuple["partial[DumpError]", tuple[str, str]]:
        """Make the copy of the parts, which are not all positional."""
        make = partial(type(self), offset=self.offset, found=self.found, expected=self.expected)
        return make, (self.path, self.what)

    def __str__(self) -> str:
        """Say where, what, found what, expected what."""
        where = self.path if self.offset is None else f"{self.path}: at byte {self.offset:#x}"
        found = [f"found {self.found}"] if self.found is not None else []
        expected = [f"expected {self.expected}"] if self.expected is not None else []
        tail = ", ".join(found + expected)
        return f"{where}: {self.what}: {tail}" if tail else f"{where}: {self.what}"


class ShadowMemoryError(ShadowMmuError, MemoryError):
    """No further shadow page can be had."""


class GuestEvent(Exception):  # noqa: N818  the processor's own name for these is "exception", not "error"
    """Base of what a guest instruction can run into."""


class PageFault(GuestEvent):
    """#PF: ``address`` is the faulting gva (CR2), ``error_code`` the bits P 1, W 2, U 4, RSVD 8, F 16, PK 32."""

    def __init__(self, address: int, error_code: int) -> None:
        """Keep the two words that the processor pushes."""
        super().__init__(address, error_code)
        self.address = address
        self.error_code = error_code

    def __str__(self) -> str:
        """Show the address and the error code, in hexadecimal and in the letters of its bits."""
        bits = "".join(letter for bit, letter in enumerate("PWURFK") if self.error_code >> bit & 1)
        return f"#PF at {self.address:#x}, error code {self.error_code:#x} ({bits or '-'})"


class GeneralProtection(GuestEvent):
    """#GP with its error code (always 0 here: non-canonical address, reserved register bits)."""

    def __init__(self, error_code: int = 0) -> None:
        """Keep the error code."""
        super().__init__(error_code)
        self.error_code = error_code

    def __str__(self) -> str:
        """Show the error code."""
        return f"#GP({self.error_code:#x})"


class InvalidOpcode(GuestEvent):
    """#UD: the processor does not have the instruction as its registers are (WRPKRU while CR4.PKE is clear)."""

    def __str__(self) -> str:
        """Name the fault."""
        return "#UD"


class TripleFault(GuestEvent):
    """The vCPU shut down: its root could not be allocated (E015). Every later access ends the same way."""

    def __str__(self) -> str:
        """Say what happened to the vCPU."""
        return "triple fault: the vCPU is shut down"
