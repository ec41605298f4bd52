"""The compiled core: marshalling only (see ``rust/python``). Use the classes of :mod:`shadow_mmu` instead."""

from collections.abc import Callable, Sequence
from typing import Any, final

from numpy.typing import ArrayLike
from typing_extensions import Buffer

from shadow_mmu.cpu import CpuModel
from shadow_mmu.translations import Translations
from shadow_mmu.types import MmioExit

__version__: str
OP_BYTES: int
OUTCOME_BYTES: int
TRACE_BYTES: int
COUNTER_NAMES: tuple[str, ...]
LOCK_REASONS: tuple[str, ...]
MAX_STRESS_VCPUS: int
STRESS_FIGURES: tuple[str, ...]
STRESS_RATES: tuple[str, ...]

def stress_bytes(vcpus: int, /) -> int: ...

@final
class Vcpu:
    """One virtual CPU. Methods raise ``PageFault``, ``GeneralProtection``, ``InvalidOpcode``, ``TripleFault``, ``VcpuBusyError``, ``ClosedError``."""

    @property
    def index(self) -> int: ...
    @property
    def cr0(self) -> int: ...
    @property
    def cr3(self) -> int: ...
    @property
    def cr4(self) -> int: ...
    @property
    def pkru(self) -> int: ...
    @property
    def efer(self) -> int: ...
    def write_cr0(self, value: int, /) -> None: ...
    def write_cr3(self, value: int, /) -> None: ...
    def write_cr4(self, value: int, /) -> None: ...
    def write_pkru(self, value: int, /) -> None:
        """WRPKRU of EDX:EAX. Raises ``InvalidOpcode`` while CR4.PKE is clear, ``GeneralProtection`` if bits 63:32 are set."""
    def write_efer(self, value: int, /) -> None: ...
    def invlpg(self, gva: int, /) -> None: ...
    def access(
        self, gva: int, kind: str = "read", /, *, user: bool = False, ac: bool = False, implicit: bool = False
    ) -> int | MmioExit: ...
    def translate(
        self, gva: int, kind: str = "read", /, *, user: bool = False, ac: bool = False, implicit: bool = False
    ) -> int:
        """Return where the guest's tables lead such an access now: the gpa, whether or not a memslot has it.

        The walk makes every check of the access and changes nothing: it sets no A or D bit, makes no shadow page or TLB entry,
        counts nothing and takes no lock. What TLB and shadow tables still have of earlier tables is not looked at. A vCPU that
        was shut down can be looked at too.

        Raises
        ------
        PageFault, GeneralProtection
            What the access would raise.

        """
    def translate_many(
        self, gvas: ArrayLike, kind: str = "read", /, *, user: bool = False, ac: bool = False, implicit: bool = False
    ) -> Translations:
        """Translate every address of an array, as :meth:`translate` does. An entry that many of them share may be read once.

        Parameters
        ----------
        gvas : array of unsigned integers, or list of int
            The addresses, in an array of any shape or in a flat list. A C-contiguous array of uint64 is used as it is; of other
            whole numbers a copy is made. It is read once, at the start.
        kind, user, ac, implicit
            As for :meth:`access`.

        Returns
        -------
        Translations
            ``gpa`` and ``error``, arrays of the shape of ``gvas``.

        Raises
        ------
        ProgramError
            ``gvas`` is not made of whole numbers in 0..2**64.
        KeyboardInterrupt
            Ctrl-C; there is no result, and nothing has changed.

        """
    def load(self, gva: int, size: int = 8, /, *, user: bool = False, ac: bool = False) -> int | MmioExit: ...
    def store(
        self, gva: int, value: int, size: int = 8, /, *, user: bool = False, ac: bool = False
    ) -> MmioExit | None: ...
    def roots(self) -> list[tuple[int, int]]:
        """(pgd, hpa) of the current root, then of each previous root. hpa is 2**64 - 1 where invalid."""

@final
class Vm:
    """The native machine; :class:`shadow_mmu.Vm` is its public face."""

    def __new__(
        cls,
        *,
        slots: Sequence[tuple[int, int, bool]],
        vcpus: int,
        policy: str,
        tlb_entries: int,
        cpu: CpuModel,
        trace: bool,
        lock_times: bool,
        cr3_times: bool,
        lock: str = "queued",
        link: str = "mark-first",
        pae_roots: str = "uncached",
        mmu: str = "shadow",
        host: str = "64",
        lock_watch: bool = False,
        mutant: str | None = None,
    ) -> Vm: ...
    @property
    def vcpus(self) -> list[Vcpu]: ...
    def memory_read(self, gpa: int, length: int, /) -> bytes: ...
    def memory_write(self, gpa: int, data: Buffer, /) -> None: ...
    def memory_require(self, gpa: int, length: int, /) -> None:
        """Refuse a range that is not all in memslots."""
    def add_memslot(self, gpa: int, length: int, read_only: bool = False, /) -> None: ...
    def execute(self, op: Buffer, pages: Buffer | None = None, /) -> tuple[int, int, int]:
        """Run one operation record (32 bytes): (outcome code, value or address or gpa, error code)."""
    def run(
        self,
        programs: Sequence[Buffer],
        *,
        pages: Buffer | None = None,
        outcomes: bool = False,
        pin: bool = False,
        poll: Callable[[int], None] | None = None,
    ) -> dict[str, Any]:
        """Run program i on vCPU i, each on its own OS thread, the GIL released. Keys: see ``docs/native.md``."""
    def replay(
        self,
        ops: Buffer,
        pages: Buffer,
        *,
        threads: bool,
        check: bool,
        audit_every: int,
        events: Buffer,
        poll: Callable[[int], None] | None = None,
    ) -> dict[str, Any]: ...
    def stress(self, keywords: dict[str, Any], poll: Callable[[int], None] | None = None, /) -> dict[str, Any]: ...
    def stats(self) -> dict[str, Any]: ...
    def lock_users(self) -> list[tuple[int | None, str, str, int]] | None: ...
    def audit(self) -> list[str]: ...
    def shadow_pages(self) -> list[dict[str, Any]]: ...
    def shadow_path(self, vcpu: int, gva: int, /) -> dict[str, Any]:
        """Tell the shadow tables on the way to an address, nothing changed. Keys: see ``docs/native.md``."""
    def state_words(self) -> bytes: ...
    def take_trace(self) -> bytes: ...
    def close(self) -> None: ...
