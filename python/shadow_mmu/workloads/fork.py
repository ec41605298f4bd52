"""Fork churn: processes that fork, write to what they share, exec, exit; what shells and build systems do all day.

Each vCPU runs a process of its own, which forks children without end. A fork copies the leaf entries and write-protects both
sides; a write to such a page faults, and the kernel copies the page, or takes the protection off if nobody else has it; exec
and exit tear the tables down, entry by entry, and the next process gets the same frames for its own tables, last freed first.
All of it is instructions of the guest: stores through the direct map, INVLPG, CR3 writes, page faults.

>>> workload = fork_churn(vcpus=1, forks=2)
>>> workload.name, workload.meant_faults > 0
('fork', True)
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from shadow_mmu.errors import ConfigError
from shadow_mmu.types import MAX_VCPUS, PAGE_SIZE
from shadow_mmu.workloads.address_space import (
    ACCESSED,
    NO_EXECUTE,
    PRESENT,
    WRITABLE,
    Image,
)
from shadow_mmu.workloads.kernel import DATA, TABLE, TEXT, USER_DATA, USER_TEXT, Guest, kernel_half, top_tables
from shadow_mmu.workloads.script import Script
from shadow_mmu.workloads.workload import MAX_OPERATIONS, Workload

if TYPE_CHECKING:
    import numpy.typing as npt

_MAX_FORKS: Final = 10_000_000
_MAX_DEPTH: Final = 8
# Below the two top tables: level 3, level 2, and a page table each for text and data.
_TABLES: Final = 4
_FRAME: Final = (1 << 52) - PAGE_SIZE
# The words of a page that are used.
_BLANK: Final = (0, 0)
_PD_TEXT, _PD_DATA = USER_TEXT >> 21, USER_DATA >> 21


@dataclass(frozen=True, slots=True)
class _Rates:
    """What the processes do; the parameters of :func:`fork_churn`."""

    pages: int
    child_writes: int
    parent_writes: int
    execs: float
    depth: int
    syscalls: int


@dataclass(slots=True, eq=False)
class _Mm:
    """A process's memory: where its tables are, and what the kernel last wrote to its leaf entries."""

    pgd: int
    upper: int
    middle: int
    text: int
    data: int
    entries: "npt.NDArray[np.uint64]"

    @property
    def slots(self) -> "npt.NDArray[np.uint64]":
        """Where the leaf entries of the data pages are."""
        return np.uint64(self.data) + 8 * np.arange(len(self.entries), dtype=np.uint64)


def fork_churn(
    *,
    vcpus: int = 2,
    forks: int = 200,
    pages: int = 48,
    child_writes: int = 6,
    parent_writes: int = 3,
    execs: float = 0.5,
    depth: int = 2,
    syscalls: int = 2,
    seed: int = 0,
) -> Workload:
    """Build the guest and its programs.

    Parameters
    ----------
    vcpus : int
        1 to 1,024, each with a process tree of its own.
    forks : int
        Forks on each vCPU.
    pages : int
        Data pages of a process, 1 to 512; every one is copied on write after a fork.
    child_writes, parent_writes : int
        Pages that a child writes before it execs or exits, and its parent while it is alive and after it; 0 to ``pages``.
    execs : float
        Share of the children that exec, 0 to 1: a new address space, and ``child_writes`` first touches in it.
    depth : int
        Generations below a vCPU's first process, 1 to 8; a child forks in its turn with a chance of one half.
    syscalls : int
        System calls of a child that touch no table, 0 to 10,000.
    seed : int
        Of what is random: which pages are written, who forks, who execs.

    Raises
    ------
    ConfigError
        A parameter is out of range, or the programs together would have more than 20,000,000 operations.

    """
    for name, value, low, high in (
        ("vcpus", vcpus, 1, MAX_VCPUS),
        ("forks", forks, 1, _MAX_FORKS),
        ("pages", pages, 1, 512),
        ("child_writes", child_writes, 0, pages),
        ("parent_writes", parent_writes, 0, pages),
        ("depth", depth, 1, _MAX_DEPTH),
        ("syscalls", syscalls, 0, 10_000),
        ("seed", seed, 0, (1 << 64) - 1),
    ):
        if type(value) is not int or not low <= value <= high:
            raise ConfigError(f"{name} is {value!r}: expected a whole number from {low:,} to {high:,}")
    if type(execs) not in (int, float) or not 0 <= execs <= 1:
        raise ConfigError(f"execs is {execs!r}: expected a share from 0 to 1")
    rates = _Rates(pages, child_writes, parent_writes, float(execs), depth, syscalls)

    # Alive at once: the first process, one child a generation, and one that execs, which has two address spaces.
    alive = depth + 2
    guest = kernel_half(1 + vcpus * alive * (2 + 1 + _TABLES + pages))
    code = guest.frames.take()
    programs, faults, warm_up = [], [], []
    for vcpu in range(vcpus):
        script = Script(vcpu, MAX_OPERATIONS // vcpus)
        owner = _Kernel(guest, script, rates, code, np.random.default_rng([seed, vcpu]))
        warm_up.append(owner.run(forks))
        program, meant = script.finish()
        programs.append(program)
        faults.append(meant)
    return Workload("fork", guest.image, tuple(programs), tuple(faults), tuple(warm_up))


class _Kernel:
    """The guest's kernel on one vCPU, which writes the program as it acts."""

    def __init__(self, guest: Guest, script: Script, rates: _Rates, code: int, rng: np.random.Generator) -> None:
        self.script, self.rates, self.code, self.rng = script, rates, code, rng
        alive = rates.depth + 2
        # Free lists, last freed first. Top tables keep the kernel's half; every other table is empty when it is freed.
        self.tops = [top_tables(guest)[0].root for _ in range(alive)]
        self.tables = [guest.frames.take() for _ in range(alive * _TABLES)]
        self.frames = [guest.frames.take() for _ in range(alive * rates.pages)]
        self.users: dict[int, int] = {}
        self.words: dict[int, tuple[int, ...]] = {}
        self.forks = self.stamp = 0
        self.first = self._first(guest.image)

    def _first(self, image: Image) -> _Mm:
        """Return the process that is there at the start: all of its pages are, and are writable."""
        upper, middle, text, data = (self.tables.pop() for _ in range(_TABLES))
        mm = _Mm(self.tops.pop(), upper, middle, text, data, self._no_entries())
        for gpa, word in (*self._links(mm, mm.data, _PD_DATA, top=True), *self._links(mm, mm.text, _PD_TEXT)):
            image.write(gpa, word.to_bytes(8, "little"))
        image.write(mm.text, (self.code | TEXT).to_bytes(8, "little"))
        for page in range(self.rates.pages):
            frame = self._frame()
            mm.entries[page] = frame | DATA
        image.write(mm.data, mm.entries.tobytes())
        return mm

    def _no_entries(self) -> "npt.NDArray[np.uint64]":
        return np.zeros(self.rates.pages, np.uint64)

    def _frame(self) -> int:
        frame: int = self.frames.pop()
        self.users[frame], self.words[frame] = 1, _BLANK
        return frame

    def _links(self, mm: _Mm, table: int, index: int, *, top: bool = False) -> list[tuple[int, int]]:
        """Return the entries that hang a page table, and with ``top`` what is above it, into an address space."""
        links = [(mm.middle + 8 * index, table | TABLE)]
        if top:
            # As Linux does: in the kernel's table nothing of the user's half can be executed.
            links += [
                (mm.upper, mm.middle | TABLE),
                (mm.pgd, mm.upper | TABLE | NO_EXECUTE),
                (mm.pgd + PAGE_SIZE, mm.upper | TABLE),
            ]
        return links

    # ---------------------------------------------------------------------------------------------- life

    def run(self, forks: int) -> int:
        """Write the whole program; returns the length of its warm-up, the first process's first child."""
        script, first = self.script, self.first
        script.leave_kernel(first.pgd + PAGE_SIZE)
        script.run_user(self.code)
        for page in range(self.rates.pages):
            self._write(first, page)
        script.enter_kernel(first.pgd)
        self._child_of(first, forks, 1)
        warm = len(script)
        while self.forks < forks:
            self._child_of(first, forks, 1)
        return warm if forks > 1 else 0

    def _child_of(self, parent: _Mm, forks: int, generation: int) -> None:
        """Fork in the parent's kernel, live the child's life, and come back to the parent's kernel."""
        script, rates, rng = self.script, self.rates, self.rng
        child = self._fork(parent)
        script.leave_kernel(parent.pgd + PAGE_SIZE)
        script.run_user(self.code)
        self._writes(parent, rates.parent_writes)
        script.enter_kernel(parent.pgd)  # to wait for the child
        script.load_cr3(child.pgd)
        self._start(child)
        for page in rng.choice(rates.pages, min(4, rates.pages), replace=False).tolist():
            self._read(child, page)
        self._writes(child, rates.child_writes)
        for _ in range(rates.syscalls):
            script.enter_kernel(child.pgd)
            script.leave_kernel(child.pgd + PAGE_SIZE)
            script.run_user(self.code)
        if generation < rates.depth and self.forks < forks and rng.random() < 0.5:
            script.enter_kernel(child.pgd)
            self._child_of(child, forks, generation + 1)
            script.leave_kernel(child.pgd + PAGE_SIZE)
            script.run_user(self.code)
        if rng.random() < rates.execs:
            script.enter_kernel(child.pgd)
            child = self._exec(child)
            self._start(child)
            self._writes(child, rates.child_writes)
        script.enter_kernel(child.pgd)
        self._exit(child, parent)
        script.leave_kernel(parent.pgd + PAGE_SIZE)
        script.run_user(self.code)
        self._writes(parent, rates.parent_writes)
        # What the child wrote is its own: here is what was here before.
        page = int(rng.integers(rates.pages))
        self._read(parent, page)
        script.enter_kernel(parent.pgd)

    def _read(self, mm: _Mm, page: int) -> None:
        """Read a page in user mode."""
        for index, word in enumerate(self.words[int(mm.entries[page]) & _FRAME]):
            self.script.load(USER_DATA + page * PAGE_SIZE + 8 * index, word)

    def _start(self, mm: _Mm) -> None:
        """Go to user mode for the first time: the text is mapped when it is first run."""
        script = self.script
        script.leave_kernel(mm.pgd + PAGE_SIZE)
        script.miss_user()
        script.enter_kernel(mm.pgd)
        mm.text = self.tables.pop()
        script.put(mm.text, self.code | TEXT)
        for gpa, word in self._links(mm, mm.text, _PD_TEXT):
            script.put(gpa, word)
        script.leave_kernel(mm.pgd + PAGE_SIZE)
        script.run_user(self.code)

    def _writes(self, mm: _Mm, count: int) -> None:
        for page in self.rng.choice(self.rates.pages, count, replace=False).tolist():
            self._write(mm, page)

    # ---------------------------------------------------------------------------------------------- the calls

    def _new(self) -> _Mm:
        """Make an address space with the kernel's half, the upper tables and a page table for data."""
        upper, middle, data = (self.tables.pop() for _ in range(_TABLES - 1))
        mm = _Mm(self.tops.pop(), upper, middle, 0, data, self._no_entries())
        for gpa, word in reversed(self._links(mm, data, _PD_DATA, top=True)):
            self.script.put(gpa, word)
        return mm

    def _fork(self, parent: _Mm) -> _Mm:
        self.forks += 1
        child = self._new()
        old = parent.entries.copy()
        there = np.flatnonzero(old & np.uint64(PRESENT))
        protected = old & ~np.uint64(WRITABLE)
        # A child's entry has not been accessed; each takes two stores, or one where the parent's is protected already.
        child.entries = protected & ~np.uint64(ACCESSED)
        places = np.stack([parent.slots[there], child.slots[there]], axis=1)
        words = np.stack([protected[there], child.entries[there]], axis=1)
        wanted = np.stack([old[there] != protected[there], np.ones(len(there), np.bool_)], axis=1)
        self.script.put_all(places[wanted], words[wanted])
        parent.entries = protected
        for entry in protected[there].tolist():
            self.users[entry & _FRAME] += 1
        # The whole TLB, however few the pages (dup_mmap).
        self.script.load_cr3(parent.pgd)
        return child

    def _write(self, mm: _Mm, page: int) -> None:
        """Write a word of a page in user mode, with what the kernel does about the fault if there is one."""
        script = self.script
        self.stamp += 1
        # What is written are the words in turns, so that a copy is seen to have them all.
        place = self.stamp % len(_BLANK)
        gva = USER_DATA + page * PAGE_SIZE + 8 * place
        entry = int(mm.entries[page])
        frame = entry & _FRAME
        if not entry & WRITABLE:
            script.miss_store(gva, self.stamp, present=bool(entry & PRESENT))
            script.enter_kernel(mm.pgd)
            if not entry & PRESENT:
                frame = self._fill(_BLANK)
            elif self.users[frame] > 1:
                self.users[frame] -= 1
                for index, word in enumerate(self.words[frame]):
                    script.get(frame + 8 * index, word)
                frame = self._fill(self.words[frame])
            mm.entries[page] = frame | DATA
            script.put(mm.data + 8 * page, frame | DATA)
            if entry & PRESENT:
                script.flush(np.array([gva], np.uint64))
            script.leave_kernel(mm.pgd + PAGE_SIZE)
        words = list(self.words[frame])
        words[place] = self.stamp
        self.words[frame] = tuple(words)
        script.store(gva, self.stamp, frame + 8 * place)

    def _fill(self, words: tuple[int, ...]) -> int:
        """Take a frame and store to it, in the kernel; returns it."""
        frame = self._frame()
        for index, word in enumerate(words):
            self.script.put(frame + 8 * index, word)
        self.words[frame] = words
        return frame

    def _exec(self, old: _Mm) -> _Mm:
        """Leave the address space for an empty one, then tear it down: no vCPU runs it any more."""
        new = self._new()
        self.script.load_cr3(new.pgd)
        self._tear_down(old)
        self._free(old)
        return new

    def _exit(self, mm: _Mm, parent: _Mm) -> None:
        """Tear the address space down while it is still the current one, then run the parent."""
        self._tear_down(mm)
        self.script.load_cr3(mm.pgd)
        self.script.load_cr3(parent.pgd)
        self._free(mm)

    def _tear_down(self, mm: _Mm) -> None:
        """Clear every entry, from the leaves up, so that each table is empty when it is free."""
        there = np.flatnonzero(mm.entries & np.uint64(PRESENT))
        self.script.put_all(mm.slots[there], np.zeros(len(there), np.uint64))
        self.script.put(mm.text, 0)
        for gpa, _ in (*self._links(mm, mm.text, _PD_TEXT), *self._links(mm, mm.data, _PD_DATA, top=True)):
            self.script.put(gpa, 0)

    def _free(self, mm: _Mm) -> None:
        for entry in mm.entries[mm.entries & np.uint64(PRESENT) != 0].tolist():
            frame = entry & _FRAME
            self.users[frame] -= 1
            if not self.users[frame]:
                del self.users[frame]
                self.frames.append(frame)
        self.tables += [mm.upper, mm.middle, mm.data, mm.text]
        self.tops.append(mm.pgd)
