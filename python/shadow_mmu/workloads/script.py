"""Writing a vCPU's program, instruction by instruction or a block of rows at once."""

from typing import TYPE_CHECKING, Final

import numpy as np

from shadow_mmu.errors import ConfigError
from shadow_mmu.ops import OP, Program
from shadow_mmu.types import OpFlag, OpKind
from shadow_mmu.workloads.kernel import DIRECT_MAP, ENTRY_TEXT, KERNEL_TEXT, USER_TEXT
from shadow_mmu.workloads.workload import MAX_OPERATIONS, NO_FAULTS

if TYPE_CHECKING:
    import numpy.typing as npt

_USER, _CHECK = int(OpFlag.USER), int(OpFlag.CHECK)
_P, _W, _U, _F = 1, 2, 4, 16
# Linux flushes page by page up to so many, the whole TLB above (tlb_single_page_flush_ceiling).
FLUSH_CEILING: Final = 33


class Script:
    """The program of one vCPU as it is written.

    Parameters
    ----------
    vcpu : int
        Whose.
    limit : int
        Rows at most.

    Attributes
    ----------
    vcpu : int
        The same.
    cr3 : int
        What the last CR3 write wrote.

    """

    def __init__(self, vcpu: int, limit: int = MAX_OPERATIONS) -> None:
        self.cr3 = 0
        self.vcpu, self._limit = vcpu, limit
        self._blocks: list[Program] = []
        self._rows: list[tuple[int, int, int, int, int, int, int]] = []
        self._before = 0
        self._faults: list[tuple[int, int]] = []

    def __len__(self) -> int:
        return self._before + len(self._rows)

    def _row(self, kind: int, addr: int, *, flags: int = 0, aux: int = 0, value: int = 0, expect: int = 0) -> None:
        self._rows.append((kind, flags, self.vcpu, aux, addr, value, expect))

    def _pack(self) -> None:
        if self._rows:
            self._add(np.array(self._rows, OP))
            self._rows.clear()

    def _add(self, block: Program) -> None:
        self._blocks.append(block)
        self._before += len(block)
        if self._before > self._limit:
            raise ConfigError(f"the programs would have more than {MAX_OPERATIONS:,} operations: expected fewer")

    # ---------------------------------------------------------------------------------------------- privileged

    def load_cr3(self, cr3: int) -> None:
        """MOV to CR3, in the kernel, and the instruction after it."""
        self.cr3 = cr3
        self._row(OpKind.WRITE_CR3, cr3)
        self._row(OpKind.FETCH, KERNEL_TEXT)

    def enter_kernel(self, kernel_cr3: int) -> None:
        """Take a system call, a fault or an interrupt in user mode: entry code, then the kernel's table (KPTI)."""
        self._row(OpKind.FETCH, ENTRY_TEXT)
        self.load_cr3(kernel_cr3)

    def leave_kernel(self, user_cr3: int) -> None:
        """Back to user mode: the user's table, and the last of the entry code. No user instruction is fetched yet."""
        self.cr3 = user_cr3
        self._row(OpKind.WRITE_CR3, user_cr3)
        self._row(OpKind.FETCH, ENTRY_TEXT)

    def put(self, gpa: int, word: int) -> None:
        """Store to a word of memory, a table's or another, in the kernel through the direct map."""
        self._row(OpKind.STORE, DIRECT_MAP + gpa, flags=_CHECK, aux=8, value=word, expect=gpa)

    def put_all(self, gpas: "npt.NDArray[np.uint64]", words: "npt.NDArray[np.uint64]") -> None:
        """Make many such stores, in order."""
        self._pack()
        block = np.zeros(len(gpas), OP)
        block["kind"], block["flags"], block["vcpu"], block["aux"] = OpKind.STORE, _CHECK, self.vcpu, 8
        block["addr"], block["value"], block["expect"] = gpas + np.uint64(DIRECT_MAP), words, gpas
        self._add(block)

    def get(self, gpa: int, word: int) -> None:
        """Load in the kernel through the direct map, and find ``word``."""
        self._row(OpKind.LOAD, DIRECT_MAP + gpa, aux=8, expect=word)

    def peek(self, gpa: int) -> None:
        """Read a word that another vCPU may be writing, in the kernel: what it finds is not known."""
        self._row(OpKind.READ, DIRECT_MAP + gpa, flags=_CHECK, expect=gpa)

    def flush(self, gvas: "npt.NDArray[np.uint64]") -> None:
        """Flush pages from the TLB: INVLPG for each, or the whole by a CR3 write of the value that is there."""
        if len(gvas) > FLUSH_CEILING:
            self.load_cr3(self.cr3)
            return
        self._pack()
        block = np.zeros(len(gvas), OP)
        block["kind"], block["vcpu"], block["addr"] = OpKind.INVLPG, self.vcpu, gvas
        self._add(block)

    # ---------------------------------------------------------------------------------------------- user mode

    def run_user(self, code: int) -> None:
        """Run an instruction of the user's, from the frame ``code``."""
        self._row(OpKind.FETCH, USER_TEXT, flags=_USER | _CHECK, expect=code)

    def miss_user(self) -> None:
        """Run an instruction of the user's whose page is not there: #PF."""
        self._fault(_U | _F)
        self._row(OpKind.FETCH, USER_TEXT, flags=_USER)

    def store(self, gva: int, word: int, gpa: int) -> None:
        """Store in user mode, and reach ``gpa``."""
        self._row(OpKind.STORE, gva, flags=_USER | _CHECK, aux=8, value=word, expect=gpa)

    def miss_store(self, gva: int, word: int, *, present: bool) -> None:
        """Store in user mode, and fault: the page is not there, or is not writable."""
        self._fault(_W | _U | _P * present)
        self._row(OpKind.STORE, gva, flags=_USER, aux=8, value=word)

    def load(self, gva: int, word: int) -> None:
        """Load in user mode, and find ``word``."""
        self._row(OpKind.LOAD, gva, flags=_USER, aux=8, expect=word)

    def _fault(self, code: int) -> None:
        self._faults.append((len(self), code))

    def finish(self) -> "tuple[Program, npt.NDArray[np.int64]]":
        """Return the program, and the rows of its faults with their error codes."""
        self._pack()
        program = np.concatenate(self._blocks) if self._blocks else np.zeros(0, OP)
        return program, np.array(self._faults, np.int64).reshape(-1, 2) if self._faults else NO_FAULTS
