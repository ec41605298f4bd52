"""What is judged: the model's walk alone, and a whole machine as its guest sees it."""

from array import array
from dataclasses import replace
from typing import Protocol

from tests.behaviour.machines import MachineMaker
from tests.unicorn.cases import Case
from tests.unicorn.judge import Seen
from tests.unicorn.modes import MAXPHYADDR, MEMORY, PSE36, ROOT, TABLES, Mode, Paging

from shadow_mmu.cpu import CpuModel
from shadow_mmu.model import Op
from shadow_mmu.model.constants import GPTE_P, PFN_MASK
from shadow_mmu.model.memory import GuestMemory
from shadow_mmu.model.permissions import Access, Context, make_context, pdptr_is_reserved
from shadow_mmu.model.registers import Registers
from shadow_mmu.model.walk import GuestWalk, walk
from shadow_mmu.types import OpFlag, OpKind, OutcomeCode
from shadow_mmu.workloads.world import MachineConfig

SLOTS = ((0, MEMORY, False), (PSE36, MEMORY, False))
REFUSED = Seen(None, None, None)
"""CR3 could not be loaded: #GP."""

CPU = CpuModel(maxphyaddr=MAXPHYADDR, pku=True)


class Subject(Protocol):
    """What is judged."""

    def load(self, tables: bytes) -> None:
        """Begin anew with these tables."""

    def tables(self) -> bytes:
        """Return the tables as they are now."""

    def access(self, case: Case) -> Seen:
        """Make one access."""


class ModelWalk:
    """The walk of the model alone."""

    def __init__(self, paging: Paging) -> None:
        self._paging = paging
        self.load(bytes(TABLES << 12))

    def load(self, tables: bytes) -> None:
        """Begin anew with these tables."""
        self.memory = GuestMemory(SLOTS, 1 << MAXPHYADDR)
        for frame in range(1, TABLES + 1):
            self.memory.pages[frame] = array("Q", tables[(frame - 1) << 12 : frame << 12])

    def tables(self) -> bytes:
        """Return the tables as they are now."""
        return b"".join(self.memory.page(frame).tobytes() for frame in range(1, TABLES + 1))

    def access(self, case: Case) -> Seen:
        """Make one access."""
        if self.cr3_is_refused():
            return REFUSED
        found = self.walk(case)
        if isinstance(found, GuestWalk):
            return Seen(found.gfn << 12 | case.gva & 0xFFF, None, None)
        return Seen(None, found, case.address)

    def cr3_is_refused(self) -> bool:
        """Whether one of PAE's page-directory pointers is present and has a reserved bit."""
        pointers = (self.memory.word(ROOT + 8 * number) for number in range(4))
        return self._paging.pae and any(one & GPTE_P and pdptr_is_reserved(one, MAXPHYADDR) for one in pointers)

    def first_table(self, case: Case) -> int | None:
        """Return the frame of the table that a walk reads first; ``None`` if its page-directory pointer is not present."""
        if not self._paging.pae:
            return ROOT >> 12
        pointer = self.memory.word(ROOT + 8 * (case.gva >> 30))
        return (pointer & PFN_MASK) >> 12 if pointer & GPTE_P else None

    def walk(self, case: Case) -> GuestWalk | int:
        """Walk for an access."""
        access = Access(case.kind == "write", case.kind == "fetch", case.user, case.mode.ac)
        return walk(self.memory, context_of(case.mode), self.first_table(case), case.gva, access)


def context_of(mode: Mode) -> Context:
    """Return the model's rules of a mode."""
    return make_context(Registers(mode.cr0, ROOT, mode.cr4, mode.efer, mode.pkru or 0), CPU)


class ShadowMmu:
    """A machine with one vCPU; each access with its registers set before, as a hypervisor sets them."""

    def __init__(self, make: MachineMaker, paging: Paging) -> None:
        self._make, self._paging = make, paging
        self.load(bytes(TABLES << 12))

    def load(self, tables: bytes) -> None:
        """Begin anew with these tables."""
        config = MachineConfig("lru:3", vcpus=1, cpu=CPU, slots=SLOTS)
        self.machine = self._make(config)
        # Into the mode over a memory that is empty still: any bit of a page-directory pointer may be reserved.
        mode = Mode(self._paging)
        assert self._set(replace(mode, paging=replace(self._paging, levels=0)))
        assert self._set(mode)
        self.machine.memory.write(ROOT, tables)

    def tables(self) -> bytes:
        """Return the tables as they are now."""
        return self.machine.memory.read(ROOT, TABLES << 12)

    def _set(self, mode: Mode) -> bool:
        """Set the registers; false if that is refused. A CR3 write empties the TLB, as the judge's is at each access."""
        writes = [
            Op(OpKind.WRITE_CR4, OpFlag.HOST, addr=mode.cr4),
            Op(OpKind.WRITE_EFER, OpFlag.HOST, addr=mode.efer),
            Op(OpKind.WRITE_CR0, OpFlag.HOST, addr=mode.cr0),
            Op(OpKind.WRITE_CR3, addr=ROOT),
        ]
        if mode.pkru is not None:
            writes.append(Op(OpKind.WRITE_PKRU, addr=mode.pkru))
        return all(self.machine.execute(write).code == OutcomeCode.OK for write in writes)

    def access(self, case: Case) -> Seen:
        """Make one access."""
        if not self._set(case.mode):
            return REFUSED
        return self.access_as_it_is(case)

    def access_as_it_is(self, case: Case) -> Seen:
        """Make one access with the registers as they are."""
        flags = OpFlag.USER * case.user | OpFlag.AC * case.mode.ac
        done = self.machine.execute(Op(OpKind[case.kind.upper()], int(flags), addr=case.address))
        if done.code == OutcomeCode.PAGE_FAULT:
            return Seen(None, done.error, done.value)
        assert done.code == OutcomeCode.OK, done
        return Seen(done.value - (case.address - case.gva), None, None)
