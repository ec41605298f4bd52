"""Which translations an access may use: the oracle of D.5, which knows no shadow pages.

A translation is legal if **each** entry it uses held the value that it is used with at some instant since this vCPU last
invalidated the page, or everything. Different levels may come from different instants, because processors cache upper-level
entries. An entry that is not present is never cached, so a fault is judged by the tables as they are now.

Entries are compared modulo their A and D bits: the walker sets those when it will, and no translation depends on them.
"""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import NamedTuple

from shadow_mmu.cpu import DEFAULT_CPU, CpuModel
from shadow_mmu.policy import Policy

from . import constants as c
from .memory import GuestMemory, Slot
from .ops import GP, MMIO, OK, PAGE_FAULT, OpTuple, Outcome
from .permissions import (
    Access,
    Context,
    access_code,
    gpte_access,
    has_reserved_bits,
    is_denied,
    key_denies,
    key_of,
    make_access,
    make_context,
)
from .registers import PagingMode, Registers, Written, set_cr0, set_cr4, set_efer
from .walk import entry_gpa, is_leaf, leaf_gfn, read_entry

_AD = c.GPTE_A | c.GPTE_D
_IGNORED = 0x7FF << 52
"""Bits 62:52, which long mode ignores and PAE reserves."""
_ACCESSES = (c.READ, c.WRITE, c.FETCH, c.LOAD, c.STORE)
_PAGE_AD = int.from_bytes(_AD.to_bytes(8, "little") * c.ENTRIES, "little")
_PAGE_AD_4 = int.from_bytes(_AD.to_bytes(4, "little") * 2 * c.ENTRIES, "little")


class _VcpuView:
    """What the oracle knows of one vCPU: its registers and when it invalidated what."""

    __slots__ = (
        "context",
        "cpu",
        "everything",
        "pages",
        "pdptrs",
        "registers",
        "shadow_context",
        "walked_four_byte",
        "was_outside",
    )

    def __init__(self, cpu: CpuModel) -> None:
        self.cpu = cpu
        self.everything = 0
        """Time of the last invalidation of the whole context."""
        self.pages: dict[int, int] = {}
        """Time of the last invalidation of single pages since then."""
        self.pdptrs: tuple[int, ...] = (0, 0, 0, 0)
        """The PDPTRs as they were when they were loaded: what PAE paging starts from."""
        self.walked_four_byte = False
        """Some walk of this vCPU may have set A and D in entries of 4 bytes."""
        self.was_outside = False
        """Some CR3 was outside memory: the vCPU may have shut down over it (E015)."""
        self.set_registers(Registers.booted(cpu))

    def set_registers(self, registers: Registers) -> None:
        self.registers = registers
        self.context: Context = make_context(registers, self.cpu)
        # Three rules that KVM's shadow entries cannot express. EFER.NX is not in the role (efer_nx is always 1, C.1), so an
        # entry with bit 63 that was made under NX=1 stays when the bit becomes reserved. Nor is the mode: PAE finds the pages
        # of levels 1 and 2 that long mode shadowed, where bits 62:52 are ignored. And a supervisor write under CR0.WP=0 makes
        # its entry a supervisor page, which SMAP lets through (B.5).
        shadow = make_context(replace(registers, efer=registers.efer | c.EFER_NXE), self.cpu)
        self.walked_four_byte |= self.context.four_byte
        reserved = tuple((small & ~_IGNORED, large & ~_IGNORED) for small, large in shadow.reserved)
        self.shadow_context = replace(shadow, smap=shadow.smap and shadow.wp, reserved=reserved)

    def invalidate_everything(self, now: int) -> None:
        self.everything = now
        self.pages.clear()

    def since(self, gva: int) -> int:
        return self.pages.get(gva >> c.PAGE_SHIFT, self.everything)

    def is_canonical(self, gva: int) -> bool:
        if not self.context.long:
            return not gva >> 32
        sign = self.context.address_bits - 1
        return gva >> sign in (0, (1 << 64 - sign) - 1)

    def effective(self, gva: int) -> int:
        """Return the address as an instruction of this mode forms it."""
        return gva if self.context.long else gva & 0xFFFFFFFF

    def first_table(self, gva: int) -> int | None:
        """Return the frame of the first table of a walk; ``None`` if its PDPTR is not present."""
        if self.context.mode is not PagingMode.PAE:
            return (self.registers.cr3 & c.PFN_MASK) >> c.PAGE_SHIFT
        pdptr = self.pdptrs[gva >> 30]
        return (pdptr & c.PFN_MASK) >> c.PAGE_SHIFT if pdptr & c.GPTE_P else None


class _Search(NamedTuple):
    """One access whose legal targets are looked for."""

    view: _VcpuView
    gva: int
    access: Access
    since: int


class LegalTranslations:
    """The legal translations of every vCPU, kept up to date by telling the oracle each operation and its outcome.

    Parameters
    ----------
    slots : iterable of (gpa, bytes) or (gpa, bytes, read_only)
        The memslots.
    vcpus : int
        How many vCPUs.
    cpu : CpuModel
        What processor each vCPU is.
    policy : Policy or str
        The machine's: which register writes invalidate depends on it.

    Examples
    --------
    >>> oracle = LegalTranslations([(0, 0x10000)], vcpus=1)
    >>> for table, entry in ((0x1000, 0x2007), (0x2000, 0x3007), (0x3000, 0x4007), (0x4000, 0x5007)):
    ...     oracle.host_write(table, entry.to_bytes(8, "little"))
    >>> oracle.observe((c.WRITE_CR3, 0, 0, 0, 0x1000, 0, 0), Outcome(OK))
    >>> [hex(gpa) for gpa in oracle.legal(0, 0x123, c.READ, 0)]
    ['0x5123']
    >>> oracle.fault(0, 0x1000, c.WRITE, 0)
    2

    """

    def __init__(
        self,
        slots: Iterable[Slot],
        vcpus: int,
        cpu: CpuModel = DEFAULT_CPU,
        *,
        policy: Policy | str = "lru:3",
    ) -> None:
        self._policy = Policy.parse(str(policy))
        cpu = self._policy.processor(cpu)
        self._memory = GuestMemory(slots, 1 << cpu.maxphyaddr)
        self._vcpus = [_VcpuView(cpu) for _ in range(vcpus)]
        self._clock = 0
        self._history: dict[int, list[tuple[int, int]]] = {}
        """Former values of each word: (when it was replaced, value), oldest first."""

    def add_memslot(self, gpa: int, length: int, *, read_only: bool = False) -> None:
        """Take note of a new memslot."""
        self._memory.add_slot(gpa, length, read_only)

    def host_write(self, gpa: int, data: bytes) -> None:
        """Take note of a hypervisor-side write."""
        self._clock += 1
        for at, word in list(self._memory.words_of(gpa, data)):
            self._set_word(at, word)

    def observe(self, op: OpTuple, outcome: Outcome, pages: object | None = None) -> None:
        """Take note of an operation that ended with ``outcome``; ``pages`` as for :meth:`.Machine.execute`."""
        kind, flags, index, aux, addr, value, _ = op
        self._clock += 1
        vcpu = self._vcpus[index]
        if outcome.code == PAGE_FAULT:
            if outcome.error & c.PF_P and not outcome.error & c.PF_RSVD:
                vcpu.pages[addr >> c.PAGE_SHIFT] = self._clock  # a fault evicts the entry (E070)
            return
        if outcome.code != OK:
            return
        if kind == c.STORE:
            self._store(outcome.value, value, aux)
        elif kind == c.HOST_STORE:
            self._set_word(addr, value)
        elif kind == c.HOST_PAGE:
            view = memoryview(pages).cast("B")  # type: ignore[arg-type]  # any buffer
            row = bytes(view[aux * c.PAGE_SIZE : (aux + 1) * c.PAGE_SIZE])
            for at, word in list(self._memory.words_of(addr, row)):
                self._set_word(at, word)
        elif kind == c.INVLPG:
            addr = vcpu.effective(addr)
            if vcpu.is_canonical(addr):
                vcpu.pages[addr >> c.PAGE_SHIFT] = self._clock
        elif kind in (c.WRITE_CR0, c.WRITE_CR3, c.WRITE_CR4, c.WRITE_EFER):
            self._write_register(vcpu, kind, addr, host=bool(flags & c.FLAG_HOST))
        elif kind == c.WRITE_PKRU:
            # It takes effect at once, on translations that are cached too.
            vcpu.set_registers(replace(vcpu.registers, pkru=addr))

    def _write_register(self, vcpu: _VcpuView, kind: int, value: int, *, host: bool) -> None:
        old = vcpu.registers
        written: Written | None
        if kind == c.WRITE_CR3:
            cr3 = value & ~c.CR3_BIT63 if vcpu.context.long else value & 0xFFFFFFFF
            pae = vcpu.context.mode is PagingMode.PAE
            # The host may set the value that is there, which invalidates nothing.
            written = Written(replace(old, cr3=cr3), reset_context=not host or cr3 != old.cr3, load_pdptrs=pae)
        elif kind == c.WRITE_CR0:
            written = set_cr0(old, value, vcpu.cpu, host=host)
        elif kind == c.WRITE_CR4:
            written = set_cr4(old, value, vcpu.cpu, host=host)
        else:
            written = set_efer(old, value, vcpu.cpu, host=host)
        assert written is not None, "a register write that ended well is legal"
        vcpu.set_registers(written.registers)
        if written.load_pdptrs:
            table = written.registers.cr3 & 0xFFFFFFE0
            loaded = tuple(self._memory.word(table + 8 * i) for i in range(4))
            # Others than before give up the root, and with it every translation; the same ones leave all as it is (B.3).
            if loaded != vcpu.pdptrs:
                vcpu.invalidate_everything(self._clock)
            vcpu.pdptrs = loaded
        vcpu.was_outside |= not self._memory.has((written.registers.cr3 & c.PFN_MASK) >> c.PAGE_SHIFT)
        # Hardware that walks the guest's tables judges its entries by CR0.WP as it is, and drops none when it changes.
        kept = self._policy.mmu == "tdp" and self._policy.kind == "lru" and old.cr0 ^ written.registers.cr0 == c.CR0_WP
        if (written.reset_context and not kept) or written.requests:
            vcpu.invalidate_everything(self._clock)

    def _store(self, gpa: int, value: int, size: int) -> None:
        """Take note of a guest store; A and D bits of the words are not known, and not wanted."""
        for at in {gpa & ~7, gpa + size - 1 & ~7}:
            first, last = max(gpa, at), min(gpa + size, at + 8)
            mask = ((1 << (last - first) * 8) - 1) << (first - at) * 8
            part = value >> (first - gpa) * 8 << (first - at) * 8
            self._set_word(at, self._memory.word(at) & ~mask | part & mask)

    def _set_word(self, gpa: int, word: int) -> None:
        old, new = self._memory.word(gpa), word & ~_AD
        if old == new:
            return
        floor = min(vcpu.everything for vcpu in self._vcpus)
        kept = [entry for entry in self._history.get(gpa, ()) if entry[0] > floor]
        self._history[gpa] = [*kept, (self._clock, old)]
        self._memory.set_word(gpa, new)

    def _values(self, gpa: int, since: int) -> set[int]:
        """Return the values, modulo A and D, that a word held at some instant from ``since`` on."""
        values = {value for until, value in self._history.get(gpa, ()) if until > since}
        values.add(self._memory.word(gpa))
        return values

    def _entry_values(self, context: Context, gpa: int, since: int) -> set[int]:
        """Return the values that an entry held, 4 or 8 bytes wide."""
        if not context.four_byte:
            return self._values(gpa, since)
        return {word >> 8 * (gpa & 4) & 0xFFFFFFFF for word in self._values(gpa & ~7, since)}

    def legal(self, vcpu: int, gva: int, kind: int, flags: int) -> set[int]:
        """Return the gpas that an access may reach without a fault.

        Parameters
        ----------
        vcpu : int
            Which vCPU.
        gva : int
            The address.
        kind, flags : int
            As in an operation: READ, WRITE, FETCH, LOAD or STORE; USER, AC, IMPLICIT.

        """
        view = self._vcpus[vcpu]
        gva = view.effective(gva)
        if not view.is_canonical(gva):
            return set()
        root = view.first_table(gva)
        search = _Search(view, gva, make_access(kind, flags), view.since(gva))
        frames: set[int] = set()
        if not view.context.top:
            frames = {gva >> c.PAGE_SHIFT}
        elif root is not None:
            frames = set(self._reach(search, view.context.top, root, c.ACC_ALL))
        return {gfn << c.PAGE_SHIFT | gva & c.PAGE_OFFSET for gfn in frames if self._is_memory(gfn, search.access)}

    def _is_memory(self, gfn: int, access: Access) -> bool:
        return self._memory.has(gfn) and not (access.write and self._memory.is_read_only(gfn))

    def _reach(self, search: _Search, level: int, table: int, acc: int) -> Iterator[int]:
        """Give the target frames over every value that each entry on the way may be cached with."""
        if not self._memory.has(table):
            return
        context, gva = search.view.shadow_context, search.gva
        for gpte in self._entry_values(context, entry_gpa(context, table, gva, level), search.since):
            if not gpte & c.GPTE_P or has_reserved_bits(context, gpte, level):
                continue
            rights = acc & gpte_access(gpte)
            if not is_leaf(context, gpte, level):
                yield from self._reach(search, level - 1, (gpte & c.PFN_MASK) >> c.PAGE_SHIFT, rights)
            elif not is_denied(context, rights, search.access) and not key_denies(
                context, rights, key_of(context, gpte), search.access
            ):
                yield leaf_gfn(context, gpte, gva, level)

    def fault(self, vcpu: int, gva: int, kind: int, flags: int) -> int | None:
        """Return the error code that a walk of the tables as they are now ends with; ``None`` if it reaches a frame."""
        return self._walk_now(vcpu, gva, kind, flags)[0]

    def _walk_now(self, vcpu: int, gva: int, kind: int, flags: int) -> tuple[int | None, int]:
        """Walk the tables as they are: (error code, 0) or (none, target frame)."""
        view = self._vcpus[vcpu]
        context, access = view.context, make_access(kind, flags)
        code = access_code(access)
        if access.fetch and not context.nx and not context.smep:
            code ^= c.PF_F
        gva = view.effective(gva)
        if not context.top:
            return None, gva >> c.PAGE_SHIFT
        frame, acc = view.first_table(gva), c.ACC_ALL
        for level in range(context.top, 0, -1):
            if frame is None or not self._memory.has(frame):
                return code, 0
            gpte = read_entry(self._memory, context, entry_gpa(context, frame, gva, level))
            if not gpte & c.GPTE_P:
                return code, 0
            if has_reserved_bits(context, gpte, level):
                return code | c.PF_P | c.PF_RSVD, 0
            acc &= gpte_access(gpte)
            if is_leaf(context, gpte, level):
                frame = leaf_gfn(context, gpte, gva, level)
                if key_denies(context, acc, key_of(context, gpte), access):
                    return code | c.PF_P | c.PF_PK, 0
                break
            frame = (gpte & c.PFN_MASK) >> c.PAGE_SHIFT
        assert frame is not None
        return (code | c.PF_P, 0) if is_denied(context, acc, access) else (None, frame)

    def judge(self, op: OpTuple, outcome: Outcome) -> str | None:
        """Say what is wrong with the outcome of a guest access that is not observed yet; ``None`` if nothing is."""
        kind, flags, vcpu, aux, gva, _, _ = op
        if kind not in _ACCESSES:
            return None
        gva = self._vcpus[vcpu].effective(gva)
        if outcome.code == GP:
            return "#GP at a canonical address" if self._vcpus[vcpu].is_canonical(gva) else None
        if outcome.code == OK:
            legal = self.legal(vcpu, gva, kind, flags)
            if kind == c.LOAD:
                values = {self._comparable(gpa, self._memory.load(gpa, aux), aux) for gpa in legal}
                got = {self._comparable(gpa, outcome.value, aux) for gpa in legal}
                return None if values & got else f"loaded {outcome.value:#x}, not what the legal {sorted(legal)} hold"
            return None if outcome.value in legal else f"reached {outcome.value:#x}: legal are {[*map(hex, legal)]}"
        code, frame = self._walk_now(vcpu, gva, kind, flags)
        if outcome.code == PAGE_FAULT:
            right = code == outcome.error and outcome.value == gva
            return None if right else f"fault {outcome.error:#x} at {outcome.value:#x}: a walk gives {code}"
        if outcome.code == MMIO:
            right = code is None and not self._is_memory(frame, make_access(kind, flags))
            right = right and outcome.value == frame << c.PAGE_SHIFT | gva & c.PAGE_OFFSET
            return None if right else f"MMIO at {outcome.value:#x}: a walk gives {code}, frame {frame:#x}"
        return None if self._vcpus[vcpu].was_outside else "a triple fault, and every root was in memory"

    def _comparable(self, gpa: int, value: int, size: int) -> int:
        """Return a loaded value without the bits that may be A and D of an entry."""
        marks = _PAGE_AD_4 if any(vcpu.walked_four_byte for vcpu in self._vcpus) else _PAGE_AD
        return value & ~(marks >> (gpa & c.PAGE_OFFSET) * 8) & ((1 << size * 8) - 1)
