"""The deterministic machine: every operation of ``docs/machine.md`` §2, one at a time."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, Final

from shadow_mmu.cpu import DEFAULT_CPU, CpuModel
from shadow_mmu.errors import ConfigError, ProgramError
from shadow_mmu.policy import Policy
from shadow_mmu.types import MAX_GUEST_BYTES, MAX_VCPUS

from . import constants as c
from .access import access, effective_address, is_canonical
from .audit import audit
from .invlpg import invlpg
from .memory import GuestMemory, Slot
from .ops import DONE, GENERAL_PROTECTION, INVALID_OPCODE, OK, SHUT_DOWN, OpTuple, Outcome
from .pae_roots import read_pdptrs
from .path import shadow_path
from .registers import PagingMode, Written, cr3_is_legal, set_cr0, set_cr4, set_efer
from .requests import enter_guest
from .roots import load_pdptrs, reset_context, switch_cr3, use_pdptrs, write_same_cr3
from .state import shadow_pages, state_words
from .stats import stats
from .tdp import keeps_root
from .tlb import Tlb
from .translate import as_numbers, translate
from .vcpu import UnsettledCr3Write, Vcpu
from .vm import SharedState
from .writes import host_write
from .zap import zap_gfn

_SIZES: Final = (1, 2, 4, 8)
_TLB_LIMIT: Final = 1 << 20
_ACCESSES: Final = frozenset((c.READ, c.WRITE, c.FETCH, c.STORE))


class HypervisorMemory:
    """Guest memory as the hypervisor reads and writes it: by gpa, past every guest table."""

    __slots__ = ("_vm",)

    def __init__(self, vm: SharedState) -> None:
        self._vm = vm

    def read(self, gpa: int, length: int) -> bytes:
        """Read ``length`` bytes.

        Raises
        ------
        MemoryRangeError
            The range leaves the memslots.

        """
        return self._vm.memory.read(gpa, length)

    def write(self, gpa: int, data: bytes) -> None:
        """Write bytes; shadow entries made from words that change are dropped, in one critical section for each MiB.

        Raises
        ------
        MemoryRangeError
            The range leaves the memslots; nothing was written.

        """
        data = bytes(data)
        self._vm.memory.check_range(gpa, len(data))
        for at in range(0, len(data), c.HOST_PIECE):
            piece = data[at : at + c.HOST_PIECE]
            host_write(self._vm, self._vm.vcpus[0], self._vm.memory.words_of(gpa + at, piece))


class Machine:
    """The reference machine.

    Parameters
    ----------
    slots : sequence of (gpa, bytes) or (gpa, bytes, read_only)
        The memslots, page aligned.
    vcpus : int
        How many vCPUs: 1..1024.
    policy : str
        ``"locked"``, ``"seed"`` or ``"lru:N"``, with ``,lock=KIND`` where the kind of lock matters.
    tlb_entries : int
        Size of each vCPU's TLB; 0 keeps nothing.
    cpu : CpuModel
        What processor each vCPU is.
    trace : bool
        Keep the events for :meth:`take_trace`.

    Raises
    ------
    ConfigError
        A parameter is out of its range.

    Examples
    --------
    A root table at 0x1000 leads, over three more, to the page at 0x5000:

    >>> from shadow_mmu.model import Machine, Op
    >>> from shadow_mmu.types import OpKind
    >>> machine = Machine([(0, 0x10000)], vcpus=1, policy="lru:3")
    >>> for table, entry in ((0x1000, 0x2007), (0x2000, 0x3007), (0x3000, 0x4007), (0x4000, 0x5007)):
    ...     machine.memory.write(table, entry.to_bytes(8, "little"))
    >>> machine.execute(Op(OpKind.WRITE_CR3, addr=0x1000))
    Outcome(code=0, value=0, error=0)
    >>> hex(machine.execute(Op(OpKind.READ, addr=0x123)).value)
    '0x5123'

    """

    def __init__(
        self,
        slots: Sequence[Slot],
        vcpus: int,
        policy: str,
        tlb_entries: int = 1536,
        cpu: CpuModel = DEFAULT_CPU,
        *,
        trace: bool = False,
    ) -> None:
        if type(vcpus) is not int or not 1 <= vcpus <= MAX_VCPUS:
            raise ConfigError(f"vcpus is {vcpus!r}: expected 1..{MAX_VCPUS}")
        if type(tlb_entries) is not int or not 0 <= tlb_entries <= _TLB_LIMIT:
            raise ConfigError(f"tlb_entries is {tlb_entries!r}: expected 0..{_TLB_LIMIT}")
        if not isinstance(cpu, CpuModel):
            raise ConfigError(f"cpu is {cpu!r}: expected a CpuModel")
        parsed = Policy.parse(policy)
        cpu = parsed.processor(cpu)
        memory = GuestMemory(slots, min(MAX_GUEST_BYTES, 1 << cpu.maxphyaddr))
        self.vm = SharedState(
            memory, parsed, [Vcpu(i, parsed, cpu, Tlb(tlb_entries)) for i in range(vcpus)], trace=trace
        )
        self.memory = HypervisorMemory(self.vm)

    def __repr__(self) -> str:
        """Show the configuration."""
        return f"<Machine {self.vm.policy!s}, {len(self.vm.vcpus)} vCPUs, {len(self.vm.books.live)} shadow pages>"

    def execute(self, op: OpTuple, pages: object | None = None) -> Outcome:
        """Run one operation.

        Parameters
        ----------
        op : tuple of 7 int
            An :class:`~shadow_mmu.model.Op`, or any tuple of its fields.
        pages : buffer, optional
            n x 512 words, contiguous: what HOST_PAGE takes its row from.

        Raises
        ------
        ProgramError
            The record makes no sense: unknown kind or flag, no such vCPU, bad size, misaligned address, no such row.
        MemoryRangeError
            A host write to a gpa in no memslot.

        Nothing was changed by an operation that raises.

        """
        kind, flags, index, aux, addr, value, _ = op
        if not 0 <= index < len(self.vm.vcpus):
            raise ProgramError(f"operation on vCPU {index}: expected 0..{len(self.vm.vcpus) - 1}")
        if not 0 <= flags <= c.KNOWN_FLAGS:
            raise ProgramError(f"operation flags are {flags:#x}: expected bits of {c.KNOWN_FLAGS:#x} only")
        vcpu = self.vm.vcpus[index]
        if kind in _ACCESSES:
            if kind == c.STORE:
                _check_operand(addr, aux)
            reached = access(self.vm, vcpu, addr, kind, flags, value=value, size=aux)
            return Outcome(OK, reached) if isinstance(reached, int) else reached
        if kind == c.LOAD:
            return self._load(vcpu, addr, aux, flags)
        if kind == c.WRITE_CR3:
            return self.set_cr3(vcpu, addr) if flags & c.FLAG_HOST else self.write_cr3(vcpu, addr)
        if kind == c.INVLPG:
            addr = effective_address(vcpu, addr)
            if is_canonical(vcpu, addr):
                invlpg(self.vm, vcpu, addr)
            return DONE
        if kind == c.WORK and value > c.MAX_WORK:
            raise ProgramError(f"WORK of {value} ns: expected at most {c.MAX_WORK}")
        if kind in (c.NOP, c.WORK):
            return DONE
        if kind == c.WRITE_PKRU:
            return self._write_pkru(vcpu, addr, host=bool(flags & c.FLAG_HOST))
        if kind == c.SYNC_TLB:
            return self._sync_tlb(vcpu)
        if kind in (c.HOST_STORE, c.HOST_PAGE, c.ZAP_GFN):
            return self._host_operation(op, pages)
        return self._write_register(vcpu, kind, addr, host=bool(flags & c.FLAG_HOST))

    def translate(self, vcpu: int, gva: int, kind: int = c.READ, flags: int = 0) -> Outcome:
        """Look where the guest's tables lead an access now; nothing changes (§16).

        Parameters
        ----------
        vcpu : int
            Whose registers count; one that was shut down has them too.
        gva : int
            The address.
        kind, flags : int
            READ, WRITE or FETCH; USER, AC and IMPLICIT count.

        Returns
        -------
        Outcome
            OK with the gpa, whether or not a memslot has it; PAGE_FAULT or GP, which the access would raise.

        """
        return translate(self.vm, self.vm.vcpus[vcpu], gva, kind, flags)

    def translate_many(
        self, vcpu: int, gvas: Iterable[int], kind: int = c.READ, flags: int = 0
    ) -> list[tuple[int, int]]:
        """Look at many translations: of each gpa and error, as :class:`shadow_mmu.Translations` has them."""
        return [as_numbers(self.translate(vcpu, gva, kind, flags)) for gva in gvas]

    def write_cr3(self, vcpu: Vcpu, value: int) -> Outcome:
        """MOV to CR3 (A.1, A.5, §8)."""
        if not vcpu.context.long:
            value &= 0xFFFFFFFF  # the operand has 32 bits
        if value & c.CR3_BIT63:
            if self.vm.policy.kind == "lru":
                return GENERAL_PROTECTION  # E012: the bit means something only with PCID
            value &= ~c.CR3_BIT63  # E011
        same = value == vcpu.registers.cr3
        if not same and not cr3_is_legal(vcpu.registers, value, vcpu.cpu.maxphyaddr):
            return GENERAL_PROTECTION
        locks = vcpu.lock_count
        vcpu.settle_cr3_write()
        if vcpu.context.mode is PagingMode.PAE:
            loaded = read_pdptrs(self.vm, vcpu, value)
            if loaded is None:
                return GENERAL_PROTECTION
            if not same and self.vm.policy.caches_pae_roots:
                vcpu.pdptrs = loaded  # the outgoing root is parked with those that it was made of
            else:
                # Up to 2021 the same value loaded nothing but where memory differed (pdptrs_changed, E010).
                same = same and (self.vm.policy.kind == "lru" or loaded == vcpu.pdptrs)
                use_pdptrs(self.vm, vcpu, loaded)
        if same:
            hit = True
            write_same_cr3(self.vm, vcpu)
        else:
            hit = switch_cr3(self.vm, vcpu, value)
            vcpu.set_cr3(value)
        if vcpu.cr3_written:
            vcpu.cr3_unsettled = UnsettledCr3Write(same, not hit, vcpu.lock_count - locks)
        vcpu.cr3_written = True
        return DONE

    def set_cr3(self, vcpu: Vcpu, value: int) -> Outcome:
        """Let the host set CR3: no instruction, so no switch; the roots of another value go (KVM: set_sregs)."""
        value = value if vcpu.context.long else value & 0xFFFFFFFF
        if not cr3_is_legal(vcpu.registers, value, vcpu.cpu.maxphyaddr):
            return GENERAL_PROTECTION
        if vcpu.context.mode is PagingMode.PAE and not load_pdptrs(self.vm, vcpu, value):
            return GENERAL_PROTECTION
        if value != vcpu.registers.cr3:
            vcpu.set_cr3(value)
            reset_context(self.vm, vcpu)
        return DONE

    def _write_register(self, vcpu: Vcpu, kind: int, value: int, *, host: bool) -> Outcome:
        """CR0, CR4 or EFER (§4)."""
        written: Written | None
        if kind == c.WRITE_CR0:
            written = set_cr0(vcpu.registers, value, vcpu.cpu, host=host)
        elif kind == c.WRITE_CR4:
            written = set_cr4(vcpu.registers, value, vcpu.cpu, host=host)
        elif kind == c.WRITE_EFER:
            written = set_efer(vcpu.registers, value, vcpu.cpu, host=host)
        else:
            raise ProgramError(f"operation kind is {kind}: expected 0..{c.WRITE_PKRU}")
        if written is None:
            return GENERAL_PROTECTION
        if written.load_pdptrs and not load_pdptrs(self.vm, vcpu, written.registers.cr3):
            return GENERAL_PROTECTION
        old, vcpu.registers = vcpu.registers, written.registers
        if written.reset_context and keeps_root(vcpu, old):
            vcpu.update_context()
        elif written.reset_context:
            reset_context(self.vm, vcpu)
        vcpu.requests |= written.requests
        return DONE

    def _write_pkru(self, vcpu: Vcpu, value: int, *, host: bool) -> Outcome:
        """WRPKRU (§4): no exit, and the next access knows it."""
        if not host and not vcpu.registers.cr4 & c.CR4_PKE:
            return INVALID_OPCODE
        if not vcpu.cpu.pku or value >> 32:
            return GENERAL_PROTECTION
        vcpu.registers = replace(vcpu.registers, pkru=value)
        vcpu.update_context()
        return DONE

    def _load(self, vcpu: Vcpu, gva: int, size: int, flags: int) -> Outcome:
        _check_operand(gva, size)
        reached = access(self.vm, vcpu, gva, c.READ, flags)
        if not isinstance(reached, int):
            return reached
        return Outcome(OK, self.vm.memory.load(reached, size))

    def _sync_tlb(self, vcpu: Vcpu) -> Outcome:
        if vcpu.shut_down:
            return SHUT_DOWN
        return DONE if enter_guest(self.vm, vcpu) else SHUT_DOWN

    def _host_operation(self, op: OpTuple, pages: object | None) -> Outcome:
        kind, _, index, aux, addr, value, _ = op
        memory, vcpu = self.vm.memory, self.vm.vcpus[index]
        if kind == c.ZAP_GFN:
            zap_gfn(self.vm, vcpu, addr)
            return DONE
        if kind == c.HOST_STORE:
            if addr & 7:
                raise ProgramError(f"HOST_STORE to gpa {addr:#x}: expected a multiple of 8")
            data = value.to_bytes(8, "little")
        else:
            if addr & c.PAGE_OFFSET:
                raise ProgramError(f"HOST_PAGE to gpa {addr:#x}: expected a multiple of {c.PAGE_SIZE}")
            data = _page_row(pages, aux)
        memory.check_range(addr, len(data))
        host_write(self.vm, vcpu, memory.words_of(addr, data))
        return DONE

    def add_memslot(self, gpa: int, length: int, *, read_only: bool = False) -> None:
        """Add a memslot of zeroes, under the lock: a fault finds it whole or not at all.

        Raises
        ------
        ConfigError
            It is misaligned, empty, too high, or overlaps another; nothing was added.

        """
        with self.vm.lock.take(self.vm.vcpus[0], "host"):
            self.vm.memory.add_slot(gpa, length, read_only)

    def state_words(self) -> bytes:
        """Return the whole state as little-endian 64-bit words (§11)."""
        return state_words(self.vm)

    def take_trace(self) -> bytes:
        """Return the trace records since the last call (§11); empty if the machine keeps none."""
        trace = self.vm.trace
        if trace is None:
            return b""
        taken = b"".join(trace)
        trace.clear()
        return taken

    def stats(self) -> dict[str, Any]:
        """Return counters, lock acquisitions and CR3 write classes; what is a time is ``None``."""
        return stats(self.vm)

    def audit(self) -> list[str]:
        """Check the invariants of C.11 under the lock; each violation starts with the invariant's id."""
        with self.vm.lock.take(self.vm.vcpus[0], "audit", looks=True):
            return audit(self.vm)

    def shadow_path(self, vcpu: int, gva: int) -> dict[str, Any]:
        """Return the shadow tables on the way to ``gva``, as a vCPU's hardware would walk them now; nothing is changed.

        Raises
        ------
        ConfigError
            There is no such vCPU.

        """
        if not 0 <= vcpu < len(self.vm.vcpus):
            raise ConfigError(f"vCPU {vcpu}: expected 0..{len(self.vm.vcpus) - 1}")
        return shadow_path(self.vm, self.vm.vcpus[vcpu], gva)

    def shadow_pages(self) -> list[dict[str, Any]]:
        """Return every live shadow page, by ascending id."""
        return shadow_pages(self.vm)


def _check_operand(gva: int, size: int) -> None:
    if size not in _SIZES:
        raise ProgramError(f"operand of {size} bytes at gva {gva:#x}: expected 1, 2, 4 or 8")
    if (gva & c.PAGE_OFFSET) + size > c.PAGE_SIZE:
        raise ProgramError(f"operand of {size} bytes at gva {gva:#x}: expected one that does not cross a 4 KiB page")


def _page_row(pages: object | None, row: int) -> bytes:
    view = memoryview(b"" if pages is None else pages).cast("B")  # type: ignore[arg-type]  # any buffer
    if (row + 1) * c.PAGE_SIZE > len(view):
        raise ProgramError(f"HOST_PAGE of row {row}: expected a row below {len(view) // c.PAGE_SIZE}")
    return bytes(view[row * c.PAGE_SIZE : (row + 1) * c.PAGE_SIZE])
