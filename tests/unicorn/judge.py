"""The independent MMU: unicorn (QEMU's x86 core) walks tables in its physical memory for one instruction of a guest.

Nothing of the project is asked here. An access is a real instruction at its privilege level, so that what is seen is what a
guest sees: the fault with its error code and CR2, the memory that was reached, the A and D bits in the tables.

Unicorn has no register for the error code that it would push. It is in a saved context, at a place that is found by faults
whose codes are beyond doubt (:func:`_find_error_code`).
"""

import ctypes
import struct
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Final

import numpy as np

__all__ = ["CODE_SLOT", "DATA", "MEMORY", "TABLES", "UNIT", "Judge", "Mode", "Seen"]

# Typed in part only: taken as a whole for untyped.
unicorn: Any = import_module("unicorn")
x86: Any = import_module("unicorn.x86_const")

MEMORY: Final = 4 << 20
"""Bytes of physical memory, from 0 on."""
TABLES: Final = 24
"""Frames 1 to 24 are for the tables of a case; frame 1 is the root."""
DATA: Final = 0x40000
"""Data lies from here to the end of memory."""
UNIT: Final = 16
"""Each unit of data is `mov eax, <its own physical address>`, a jump to itself and nops: fetched or read, it tells where it is."""
CODE_SLOT: Final = 0x1F0
"""The entry of the root through which the instructions are mapped."""
_CODE_TABLE: Final = 0x20000
_SUPERVISOR_CODE, _USER_CODE = 0x24000, 0x25000
_READ, _WRITE, _SYSRET, _END = 0, 0x100, 0x200, 0xF00
_EFER, _STAR = 0xC0000080, 0xC0000081
_CR0, _CR4, _LMA_LME_SCE, _NXE = 0x80000033, 0x30, 0x501, 0x800
_LA57: Final = 1 << 12
_AC: Final = 1 << 18
_PAGE_FAULT: Final = 14
_MARK: Final = 0xC3
_NOP: Final = 0x90


@dataclass(frozen=True, slots=True)
class Mode:
    """The registers of an access."""

    wp: bool
    nx: bool
    smep: bool
    smap: bool
    ac: bool
    levels: int = 4

    @property
    def cr0(self) -> int:
        """CR0."""
        return _CR0 | self.wp << 16

    @property
    def cr4(self) -> int:
        """CR4."""
        return _CR4 | (self.levels == 5) * _LA57 | self.smep << 20 | self.smap << 21

    @property
    def efer(self) -> int:
        """EFER."""
        return _LMA_LME_SCE | self.nx * _NXE


@dataclass(frozen=True, slots=True)
class Seen:
    """What came of an access: the physical address that it reached, or a page fault's error code and CR2."""

    reached: int | None
    error_code: int | None
    cr2: int | None


class Judge:
    """One emulator, used again and again.

    Parameters
    ----------
    levels : {4, 5}
        Levels of the tables.

    """

    def __init__(self, levels: int) -> None:
        self.levels = levels
        top = 12 + 9 * (levels - 1)
        self._code = CODE_SLOT << top | (1 << 64) - (1 << top + 9)  # the slot is in the upper half
        self._uc: Any = unicorn.Uc(unicorn.UC_ARCH_X86, unicorn.UC_MODE_64)
        self._uc.ctl_set_cpu_model(x86.UC_CPU_X86_ICELAKE_SERVER)
        self._uc.mem_map(0, MEMORY)
        self._faults: list[tuple[int, int, bytes]] = []
        self._uc.hook_add(unicorn.UC_HOOK_INTR, self._interrupt)
        units = np.full((MEMORY // UNIT, UNIT), _NOP, np.uint8)
        units[:, 0] = 0xB8
        # A jump ends what the judge translates at once: else it would read on into the next page, and may fault there.
        units[:, 5:7] = (0xEB, 0xFE)
        units[:, 1:5] = np.arange(0, MEMORY, UNIT, dtype="<u4").view(np.uint8).reshape(-1, 4)
        self._uc.mem_write(DATA, units[DATA // UNIT :].tobytes())
        self._write_code()
        # A and D are set, so that the instructions' own walk changes nothing.
        self._uc.mem_write(0x1000, bytes(TABLES << 12))
        self._uc.mem_write(0x1000 + 8 * CODE_SLOT, self.code_entry.to_bytes(8, "little"))
        self._supervisor = self._start()
        self._user = self._enter_user_mode()
        self._code_at = self._find_error_code()
        self.maxphyaddr = self._find_maxphyaddr()

    @property
    def code_entry(self) -> int:
        """What the root must have at ``CODE_SLOT``."""
        return _CODE_TABLE | 0x67

    def _write_code(self) -> None:
        """Write the tables below the root and two pages of instructions: for the supervisor, and for user mode."""
        for below in range(self.levels - 2):
            self._uc.mem_write(_CODE_TABLE + (below << 12), struct.pack("<Q", _CODE_TABLE + (below + 1 << 12) | 0x67))
        self._uc.mem_write(
            _CODE_TABLE + (self.levels - 2 << 12), struct.pack("<QQ", _SUPERVISOR_CODE | 0x63, _USER_CODE | 0x67)
        )
        for page in (_SUPERVISOR_CODE, _USER_CODE):
            self._uc.mem_write(page, bytes([_NOP]) * 4096)
            self._uc.mem_write(page + _READ, b"\x8b\x03")  # mov eax, [rbx]
            self._uc.mem_write(page + _WRITE, b"\x88\x03")  # mov [rbx], al
            self._uc.mem_write(page + _SYSRET, b"\x48\x0f\x07")  # sysretq

    def _start(self) -> Any:  # noqa: ANN401  unicorn's context has no type
        uc = self._uc
        mode = Mode(wp=False, nx=True, smep=False, smap=False, ac=False, levels=self.levels)
        uc.reg_write(x86.UC_X86_REG_CR4, mode.cr4)
        uc.msr_write(_EFER, mode.efer)
        uc.msr_write(_STAR, 0x23 << 48 | 8 << 32)
        uc.reg_write(x86.UC_X86_REG_CR3, 0x1000)
        uc.reg_write(x86.UC_X86_REG_CR0, mode.cr0)
        return uc.context_save()

    def _enter_user_mode(self) -> Any:  # noqa: ANN401  the same
        """Enter CPL 3 as a kernel does; without SMEP, for the end address is looked up at both levels."""
        self._uc.reg_write(x86.UC_X86_REG_RCX, self._code + 0x1000)
        self._uc.reg_write(x86.UC_X86_REG_R11, 0x202)
        self._uc.emu_start(self._code + _SYSRET, self._code + 0x1000 + _END, count=1)
        assert self._uc.reg_read(x86.UC_X86_REG_CS) & 3 == 3
        assert not self._faults
        return self._uc.context_save()

    def _interrupt(self, uc: Any, number: int, _data: object) -> None:  # noqa: ANN401  the same
        context = uc.context_save()
        saved = ctypes.string_at(context._context, context.size)
        self._faults.append((number, uc.reg_read(x86.UC_X86_REG_CR2), saved))
        uc.emu_stop()

    def _find_error_code(self) -> int:
        """Return where in a saved context the error code is: the one word that is right for eight known faults."""
        mode = Mode(wp=True, nx=True, smep=True, smap=True, ac=False, levels=self.levels)
        path = {at << 12: (at + 1 << 12) | 0x67 for at in range(1, self.levels)}
        known = []
        # Entry of the page, access, user, error code.
        for entry, kind, user, code in (
            (0, "read", False, 0), (0, "write", False, 2), (0, "read", True, 4), (0, "fetch", True, 0x14),
            (DATA | 1, "write", False, 3), (DATA | 3, "write", True, 7), (DATA | 7, "read", False, 1),
            (DATA | 7 | 1 << 63, "fetch", True, 0x15),
        ):  # fmt: skip
            for table, leads in {**path, self.levels << 12: entry}.items():
                self.store(table, leads)
            self._run(mode, 0, kind, user=user)
            ((number, _, saved),) = self._faults
            assert number == _PAGE_FAULT
            known.append((np.frombuffer(saved[: len(saved) & ~3], "<u4"), code))
        words, codes = np.array([row for row, _ in known]), np.array([code for _, code in known])
        (place,) = np.flatnonzero((words == codes[:, None]).all(axis=0))
        return 4 * int(place)

    def _find_maxphyaddr(self) -> int:
        """Return MAXPHYADDR: from this bit on an address bit is reserved."""
        mode = Mode(wp=True, nx=True, smep=False, smap=False, ac=False, levels=self.levels)
        refused = []
        for bit in range(32, 52):
            self.store(self.levels << 12, 1 << bit | DATA | 3)
            self._run(mode, 0, "fetch", user=False, may_leave_memory=True)
            refused.append(bool(self._faults) and self._error_code() == 0x19)
        first = refused.index(True)
        assert refused == [bit >= first for bit in range(20)]
        self.store(self.levels << 12, 0)
        return 32 + first

    def _error_code(self) -> int:
        ((_, _, saved),) = self._faults
        return int.from_bytes(saved[self._code_at : self._code_at + 4], "little")

    def store(self, gpa: int, word: int) -> None:
        """Write 8 bytes of physical memory."""
        self._uc.mem_write(gpa, word.to_bytes(8, "little"))

    @property
    def tables(self) -> bytes:
        """The frames of the tables."""
        return bytes(self._uc.mem_read(0x1000, TABLES << 12))

    @tables.setter
    def tables(self, data: bytes) -> None:
        self._uc.mem_write(0x1000, data)

    def _run(self, mode: Mode, gva: int, kind: str, *, user: bool, may_leave_memory: bool = False) -> None:
        """Execute one instruction; a write to CR3 empties the TLB, for nothing is global with CR4.PGE clear."""
        uc = self._uc
        self._faults.clear()
        uc.context_restore(self._user if user else self._supervisor)
        uc.reg_write(x86.UC_X86_REG_CR0, mode.cr0)
        uc.reg_write(x86.UC_X86_REG_CR4, mode.cr4)
        uc.msr_write(_EFER, mode.efer)
        uc.reg_write(x86.UC_X86_REG_CR3, 0x1000)
        uc.reg_write(x86.UC_X86_REG_EFLAGS, 2 | mode.ac * _AC)
        uc.reg_write(x86.UC_X86_REG_RAX, _MARK)
        uc.reg_write(x86.UC_X86_REG_RBX, gva + {"read": 1, "write": UNIT - 1, "fetch": 0}[kind])
        code = self._code + 0x1000 * user
        begin = gva if kind == "fetch" else code + (_READ if kind == "read" else _WRITE)
        try:
            uc.emu_start(begin, code + _END, count=1)
        except unicorn.UcError:
            if not may_leave_memory:
                raise

    def access(self, mode: Mode, gva: int, kind: str, *, user: bool, expected: int | None) -> Seen:
        """Make one access to the unit at ``gva``.

        Parameters
        ----------
        mode : Mode
        gva : int
            Canonical, a multiple of ``UNIT``.
        kind : {"read", "write", "fetch"}
        user : bool
            At CPL 3.
        expected : int or None
            Where a write should arrive: only there is looked for its mark, which is taken away again.

        """
        self._run(mode, gva, kind, user=user)
        if self._faults:
            ((number, cr2, _),) = self._faults
            assert number == _PAGE_FAULT, number
            return Seen(None, self._error_code(), cr2)
        if kind != "write":
            return Seen(self._uc.reg_read(x86.UC_X86_REG_RAX), None, None)
        if expected is None or self._uc.mem_read(expected + UNIT - 1, 1)[0] != _MARK:
            return Seen(-1, None, None)
        self._uc.mem_write(expected + UNIT - 1, bytes([_NOP]))
        return Seen(expected, None, None)
