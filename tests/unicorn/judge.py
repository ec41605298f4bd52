"""The independent MMU: unicorn (QEMU's x86 core) walks tables in its physical memory for one instruction of a guest.

Nothing of the project is asked here. An access is a real instruction at its privilege level, so that what is seen is what a
guest sees: the fault with its error code and CR2, the memory that was reached, the A and D bits in the tables.

Unicorn has no register for the error code that it would push. It is in a saved context, at a place that is found by faults
whose codes are beyond doubt (:func:`_find_error_code`).
"""

import ctypes
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Final

import numpy as np
from tests.unicorn.modes import DATA, HIGH, MEMORY, PSE36, ROOT, TABLES, Mode, Paging

__all__ = ["UNIT", "Judge", "Seen"]

# Typed in part only: taken as a whole for untyped.
unicorn: Any = import_module("unicorn")
x86: Any = import_module("unicorn.x86_const")

UNIT: Final = 16
"""Each unit of data is `mov eax, <its own physical address>`, a jump to itself and nops: fetched or read, it tells where it is."""
_CODE_TABLE: Final = 0x20000
_SUPERVISOR_CODE, _USER_CODE = 0x24000, 0x25000
_READ, _WRITE, _LEAVE, _WRPKRU, _MORE, _END = 0, 0x100, 0x200, 0x280, 0x300, 0xF00
_EFER, _STAR, _SYSENTER_CS = 0xC0000080, 0xC0000081, 0x174
_AC: Final = 1 << 18
_PAGE_FAULT: Final = 14
_MARK: Final = 0xC3
_NOP: Final = 0x90


@dataclass(frozen=True, slots=True)
class Seen:
    """What came of an access: the physical address that it reached, or a page fault's error code and CR2.

    All three are ``None`` if the registers could not be set for it: MOV to CR3 faults with #GP.
    """

    reached: int | None
    error_code: int | None
    cr2: int | None


class Judge:
    """One emulator, used again and again.

    Parameters
    ----------
    paging : Paging
        The mode that it stays in.

    """

    def __init__(self, paging: Paging) -> None:
        self.paging = paging
        self._code = self._code_address()
        mode = unicorn.UC_MODE_64 if paging.long else unicorn.UC_MODE_32
        self._uc: Any = unicorn.Uc(unicorn.UC_ARCH_X86, mode)
        self._uc.ctl_set_cpu_model(x86.UC_CPU_X86_ICELAKE_SERVER)
        self._faults: list[tuple[int, int, bytes]] = []
        self._uc.hook_add(unicorn.UC_HOOK_INTR, self._interrupt)
        self._more = _MORE
        self._write_data()
        self._write_code()
        # A and D are set, so that the instructions' own walk changes nothing.
        self._uc.mem_write(ROOT, bytes(TABLES << 12))
        if paging.levels:
            self.store(ROOT + paging.entry_bytes * paging.code_slot, self.code_entry)
        self._supervisor = self._start()
        self._user = self._enter_user_mode()
        self._code_at = self._find_error_code() if paging.levels else None

    def _code_address(self) -> int:
        """Return the linear address of the instructions."""
        if not self.paging.levels:
            return _SUPERVISOR_CODE
        top = self.paging.shift(self.paging.levels)
        address = self.paging.code_slot << top
        return address | (1 << 64) - (1 << top + 9) if self.paging.long else address

    @property
    def code_entry(self) -> int:
        """What the root must have at ``Paging.code_slot``."""
        return _CODE_TABLE | (1 if self.paging.pae else 0x67)

    def _write_data(self) -> None:
        """Write the units of all memory: addresses above 4 GiB are told in bits 31:24."""
        units = np.full((MEMORY // UNIT, UNIT), _NOP, np.uint8)
        units[:, 0] = 0xB8
        # A jump ends what the judge translates at once: else it would read on into the next page, and may fault there.
        units[:, 5:7] = (0xEB, 0xFE)
        for base in (0, PSE36, *HIGH):
            addresses = np.arange(0, MEMORY, UNIT, dtype="<u4") | np.uint32(base >> 32 << 24)
            units[:, 1:5] = addresses.view(np.uint8).reshape(-1, 4)
            self._uc.mem_map(base, MEMORY)
            first = 0 if base else DATA
            self._uc.mem_write(base + first, units[first // UNIT :].tobytes())

    def _write_code(self) -> None:
        """Write the tables below the root and two pages of instructions: for the supervisor, and for user mode."""
        lowest = max(self.paging.levels - 2, 0)
        for below in range(lowest):
            self.store(_CODE_TABLE + (below << 12), _CODE_TABLE + (below + 1 << 12) | 0x67)
        if self.paging.levels:
            self.store(_CODE_TABLE + (lowest << 12), _SUPERVISOR_CODE | 0x63)
            self.store(_CODE_TABLE + (lowest << 12) + self.paging.entry_bytes, _USER_CODE | 0x67)
        # `sysretq`, `sysexit`: no descriptor tables are needed.
        leave = b"\x48\x0f\x07" if self.paging.long else b"\x0f\x35"
        for page in (_SUPERVISOR_CODE, _USER_CODE):
            self._uc.mem_write(page, bytes([_NOP]) * 4096)
            self._uc.mem_write(page + _READ, b"\x8b\x03")  # mov eax, [rbx]
            self._uc.mem_write(page + _WRITE, b"\x88\x03")  # mov [rbx], al
            self._uc.mem_write(page + _LEAVE, leave)
            self._uc.mem_write(page + _WRPKRU, b"\x0f\x01\xef")

    def _start(self) -> Any:  # noqa: ANN401  unicorn's context has no type
        self._set_registers(Mode(self.paging, wp=False))
        self._uc.msr_write(_STAR, 0x23 << 48 | 8 << 32)
        self._uc.msr_write(_SYSENTER_CS, 8)
        return self._uc.context_save()

    def _enter_user_mode(self) -> Any:  # noqa: ANN401  the same
        """Enter CPL 3 as a kernel does; without SMEP, for the end address is looked up at both levels."""
        if self.paging.long:
            self._uc.reg_write(x86.UC_X86_REG_RCX, self._code + 0x1000)
            self._uc.reg_write(x86.UC_X86_REG_R11, 0x202)
        else:
            self._uc.reg_write(x86.UC_X86_REG_EDX, self._code + 0x1000)
        self._uc.emu_start(self._code + _LEAVE, self._code + 0x1000 + _END, count=1)
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
        mode = Mode(self.paging, smep=True, smap=True)
        known = []
        # Entry of the page, access, user, error code.
        for entry, kind, user, code in (
            (0, "read", False, 0), (0, "write", False, 2), (0, "read", True, 4), (0, "fetch", True, 0x14),
            (DATA | 1, "write", False, 3), (DATA | 3, "write", True, 7), (DATA | 7, "read", False, 1),
            (DATA | 7, "fetch", False, 0x11),
        ):  # fmt: skip
            self.map_first_page(entry)
            self.run(mode, 0, kind, user=user)
            ((number, _, saved),) = self._faults
            assert number == _PAGE_FAULT
            known.append((np.frombuffer(saved[: len(saved) & ~3], "<u4"), code))
        words, codes = np.array([row for row, _ in known]), np.array([code for _, code in known])
        (place,) = np.flatnonzero((words == codes[:, None]).all(axis=0))
        return 4 * int(place)

    def refuses_address_bit(self, bit: int) -> bool:
        """Whether an entry of a page that sets this address bit faults with RSVD."""
        self.map_first_page(1 << bit | DATA | 3)
        self.run(Mode(self.paging), 0, "fetch", user=False, may_leave_memory=True)
        return bool(self._faults) and self._error_code() == 0x19

    def map_first_page(self, entry: int) -> None:
        """Make the first entry of each of the first tables lead to the next one, and that of the last be ``entry``."""
        top = self.paging.levels
        for at in range(1, top):
            link = (at + 1 << 12) | (1 if self.paging.pae and at == 1 else 0x67)
            self.store(at << 12, link)
        self.store(top << 12, entry)

    def _error_code(self) -> int:
        ((_, _, saved),) = self._faults
        assert self._code_at is not None
        return int.from_bytes(saved[self._code_at : self._code_at + 4], "little")

    def store(self, gpa: int, entry: int) -> None:
        """Write an entry of a table."""
        self._uc.mem_write(gpa, entry.to_bytes(self.paging.entry_bytes, "little"))

    @property
    def tables(self) -> bytes:
        """The frames of the tables."""
        return bytes(self._uc.mem_read(ROOT, TABLES << 12))

    @tables.setter
    def tables(self, data: bytes) -> None:
        self._uc.mem_write(ROOT, data)

    def execute(self, instruction: bytes, eax: int = 0, ecx: int = 0) -> tuple[list[int], dict[str, int]]:
        """Execute one instruction of the supervisor with the registers as they are; what interrupted it, and registers after it.

        It stays as it is for the next access ``as_it_is``.
        """
        # Each at a place of its own: the emulator keeps what it translated.
        at, self._more = self._more, self._more + 16
        assert at < _END
        self._uc.mem_write(_SUPERVISOR_CODE + at, instruction)
        self._faults.clear()
        for register, value in ((x86.UC_X86_REG_RAX, eax), (x86.UC_X86_REG_RCX, ecx), (x86.UC_X86_REG_RDX, 0)):
            self._uc.reg_write(register, value)
        self._uc.emu_start(self._code + at, self._code + _END, count=1)
        names = ("EAX", "EBX", "ECX", "EDX", "CR3", "CR4")
        after = {name.lower(): self._uc.reg_read(getattr(x86, f"UC_X86_REG_{name}")) for name in names}
        return [number for number, _, _ in self._faults], after

    def begin(self, mode: Mode, cr4: int = 0) -> None:
        """Become a supervisor in this mode, with these bits in CR4 besides."""
        self._uc.context_restore(self._supervisor)
        self._set_registers(mode)
        self._uc.reg_write(x86.UC_X86_REG_CR4, mode.cr4 | cr4)

    def _set_registers(self, mode: Mode) -> None:
        """Set them in an order that a processor takes from a reset, and with paging on."""
        uc = self._uc
        uc.reg_write(x86.UC_X86_REG_CR4, mode.cr4)
        uc.msr_write(_EFER, mode.efer)
        uc.reg_write(x86.UC_X86_REG_CR3, ROOT)
        uc.reg_write(x86.UC_X86_REG_CR0, mode.cr0)

    def _write_pkru(self, pkru: int, *, user: bool) -> None:
        """Execute WRPKRU, which either level may; there is no other way to the register."""
        for register, value in ((x86.UC_X86_REG_EAX, pkru), (x86.UC_X86_REG_ECX, 0), (x86.UC_X86_REG_EDX, 0)):
            self._uc.reg_write(register, value)
        code = self._code + 0x1000 * user
        self._uc.emu_start(code + _WRPKRU, code + _END, count=1)
        assert not self._faults

    def run(
        self, mode: Mode, gva: int, kind: str, *, user: bool, may_leave_memory: bool = False, as_it_is: bool = False
    ) -> None:
        """Execute one instruction; a write to CR3 empties the TLB, for nothing is global with CR4.PGE clear."""
        uc, wide = self._uc, self.paging.long
        self._faults.clear()
        if not as_it_is:
            uc.context_restore(self._user if user else self._supervisor)
            self._set_registers(mode)
            if mode.pkru is not None:
                self._write_pkru(mode.pkru, user=user)
        uc.reg_write(x86.UC_X86_REG_EFLAGS, 2 | mode.ac * _AC)
        uc.reg_write(x86.UC_X86_REG_EAX, _MARK)
        at = gva + {"read": 1, "write": UNIT - 1, "fetch": 0}[kind]
        uc.reg_write(x86.UC_X86_REG_RBX if wide else x86.UC_X86_REG_EBX, at)
        code = self._code + 0x1000 * user
        begin = gva if kind == "fetch" else code + (_READ if kind == "read" else _WRITE)
        try:
            uc.emu_start(begin, code + _END, count=1)
        except unicorn.UcError:
            if not may_leave_memory:
                raise

    def access(
        self, mode: Mode, gva: int, kind: str, *, user: bool, expected: int | None, as_it_is: bool = False
    ) -> Seen:
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
        as_it_is : bool
            With the registers, the TLB and the privilege level that are there: those of the access before.

        """
        self.run(mode, gva, kind, user=user, as_it_is=as_it_is)
        if self._faults:
            ((number, cr2, _),) = self._faults
            assert number == _PAGE_FAULT, number
            return Seen(None, self._error_code(), cr2)
        if kind != "write":
            told = self._uc.reg_read(x86.UC_X86_REG_EAX)
            return Seen(told & 0xFFFFFF | told >> 24 << 32, None, None)
        if expected is None or self._uc.mem_read(expected + UNIT - 1, 1)[0] != _MARK:
            return Seen(-1, None, None)
        self._uc.mem_write(expected + UNIT - 1, bytes([_NOP]))
        return Seen(expected, None, None)
