"""Thread churn: one address space on every vCPU, whose threads map, touch and unmap memory, move pages, exit and start.

All vCPUs run on the same two roots. A thread's short-lived pages lie beside the other threads' in the same page tables; its
stack has a page table of its own, which goes with the thread and comes back elsewhere with the next. Whoever takes a
translation away flushes it on its own vCPU and signals the others: it stores to their mailboxes, and they look there, flush
and acknowledge at their next interrupt.

A program cannot branch, so nobody waits for an acknowledgement, as a kernel would. What that would guard against is kept from
happening: a thread's frames are its own whatever they map, and a page that moves has the same contents in both of its frames.

>>> workload = thread_churn(vcpus=2, cycles=3)
>>> workload.name, len({int(one["addr"][0]) for one in workload.programs})
('threads', 1)
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from shadow_mmu.errors import ConfigError
from shadow_mmu.types import MAX_VCPUS, PAGE_SIZE
from shadow_mmu.workloads.address_space import AddressSpace
from shadow_mmu.workloads.kernel import DATA, TABLE, USER_DATA, USER_TEXT, Guest, kernel_half, top_tables
from shadow_mmu.workloads.script import Script
from shadow_mmu.workloads.workload import MAX_OPERATIONS, Workload

if TYPE_CHECKING:
    import numpy.typing as npt

ARENA: Final = 0x80_0000
STACKS: Final = 0x4000_0000

_MAX_CYCLES: Final = 10_000_000
_MAX_PAGES: Final = 64
_TABLE_SPAN: Final = 2 << 20
# What lies in a shared page, whichever of its frames it is in.
_TAG: Final = 0x5EED_0000


@dataclass(frozen=True, slots=True)
class _Rates:
    """What the threads do; the parameters of :func:`thread_churn`."""

    vcpus: int
    pages: int
    stack: int
    shared: int
    lifetime: int
    syscalls: int


@dataclass(frozen=True, slots=True, eq=False)
class _Process:
    """The address space that all threads share."""

    space: AddressSpace
    code: int
    homes: "npt.NDArray[np.uint64]"
    mailboxes: tuple[int, ...]
    acknowledged: tuple[int, ...]

    @property
    def kernel_cr3(self) -> int:
        return self.space.root

    @property
    def user_cr3(self) -> int:
        return self.space.root + PAGE_SIZE


def thread_churn(
    *,
    vcpus: int = 2,
    cycles: int = 500,
    pages: int = 4,
    stack: int = 4,
    shared: int = 8,
    moves: float = 0.25,
    lifetime: int = 8,
    syscalls: int = 2,
    seed: int = 0,
) -> Workload:
    """Build the guest and its programs.

    Parameters
    ----------
    vcpus : int
        1 to 1,024, each running one thread of the process after another.
    cycles : int
        On each vCPU: a mapping made, touched and taken away, a stack page used, what the other vCPUs signalled handled.
    pages : int
        Pages of a mapping, 1 to 64.
    stack : int
        Pages of a stack, 1 to 64.
    shared : int
        Pages that all threads read and that move from one frame to another, 1 to 512.
    moves : float
        Moved pages a cycle on average, 0 to 1, on each vCPU that owns one: page p is vCPU p's, modulo their number.
    lifetime : int
        Cycles after which a thread exits and another starts, 1 to 10,000,000.
    syscalls : int
        System calls of each cycle that touch no table, 0 to 10,000.
    seed : int
        Of what is random: which pages are read, written and moved, and when.

    Raises
    ------
    ConfigError
        A parameter is out of range, or the programs together would have more than 20,000,000 operations.

    """
    for name, value, low, high in (
        ("vcpus", vcpus, 1, MAX_VCPUS),
        ("cycles", cycles, 1, _MAX_CYCLES),
        ("pages", pages, 1, _MAX_PAGES),
        ("stack", stack, 1, _MAX_PAGES),
        ("shared", shared, 1, 512),
        ("lifetime", lifetime, 1, _MAX_CYCLES),
        ("syscalls", syscalls, 0, 10_000),
        ("seed", seed, 0, (1 << 64) - 1),
    ):
        if type(value) is not int or not low <= value <= high:
            raise ConfigError(f"{name} is {value!r}: expected a whole number from {low:,} to {high:,}")
    if type(moves) not in (int, float) or not 0 <= moves <= 1:
        raise ConfigError(f"moves is {moves!r}: expected a number of moves a cycle from 0 to 1")
    if vcpus * vcpus * cycles > MAX_OPERATIONS:
        # Each cycle of a vCPU tells each other vCPU.
        raise ConfigError(f"the programs would have more than {MAX_OPERATIONS:,} operations: expected fewer")

    rates = _Rates(vcpus, pages, stack, shared, lifetime, syscalls)
    guest, process, own = _build(rates)
    plan = _moves(rates, cycles, float(moves), seed)
    programs, faults, warm_up = [], [], []
    for vcpu in range(vcpus):
        script = Script(vcpu, MAX_OPERATIONS // vcpus)
        thread = _Thread(rates, process, script, own[vcpu], plan)
        warm_up.append(thread.run(cycles, np.random.default_rng([seed, vcpu, 1])))
        program, meant = script.finish()
        programs.append(program)
        faults.append(meant)
    return Workload("threads", guest.image, tuple(programs), tuple(faults), tuple(warm_up))


def _build(rates: _Rates) -> tuple[Guest, _Process, list[list[int]]]:
    """Make the guest, its one process, and the frames of each vCPU: a page table first, then pages."""
    mail = -(-8 * rates.vcpus // PAGE_SIZE)
    each = 2 * mail + 1 + rates.pages + rates.stack
    tables = 8 + 2 * rates.vcpus // 512 + rates.vcpus * rates.pages // 512 + 4
    guest = kernel_half(tables + 2 * rates.shared + rates.vcpus * each)
    in_kernel, in_user = top_tables(guest)
    code = guest.frames.take()
    in_kernel.map(USER_TEXT, code, user=True, write=False)
    homes = [[guest.frames.take() for _ in range(rates.shared)] for _ in range(2)]
    for page in range(rates.shared):
        in_kernel.map(USER_DATA + page * PAGE_SIZE, homes[0][page], user=True, execute=False)
        for home in homes:
            guest.image.write(home[page], (_TAG + page).to_bytes(8, "little"))
    # Tables that are there from the start: those of the arena, and what is above the stacks' own.
    for index in range(0, rates.vcpus * rates.pages, 512):
        in_kernel.slot(ARENA + index * PAGE_SIZE, create=True)
    for vcpu in range(0, rates.vcpus, 256):
        in_kernel.slot(STACKS + 2 * vcpu * _TABLE_SPAN, level=2, create=True)
    in_user.share(USER_TEXT, in_kernel)
    in_kernel.protect(USER_TEXT, set_bits=1 << 63, level=in_kernel.levels)
    boxes = [[guest.frames.take(size=mail * PAGE_SIZE) for _ in range(rates.vcpus)] for _ in range(2)]
    own = [[guest.frames.take() for _ in range(1 + rates.pages + rates.stack)] for _ in range(rates.vcpus)]
    process = _Process(in_kernel, code, np.array(homes, np.uint64), tuple(boxes[0]), tuple(boxes[1]))
    return guest, process, own


def _moves(rates: _Rates, cycles: int, moves: float, seed: int) -> "npt.NDArray[np.int64]":
    """Return, by vCPU and cycle, which of its shared pages a vCPU moves; -1 for none."""
    plan = np.full((rates.vcpus, cycles), -1, np.int64)
    for vcpu in range(min(rates.vcpus, rates.shared)):
        rng = np.random.default_rng([seed, vcpu, 0])
        owned = np.arange(vcpu, rates.shared, rates.vcpus)
        plan[vcpu] = np.where(rng.random(cycles) < moves, rng.choice(owned, cycles), -1)
    return plan


class _Thread:
    """One vCPU and the threads that run on it, one after another."""

    def __init__(
        self, rates: _Rates, process: _Process, script: Script, own: list[int], plan: "npt.NDArray[np.int64]"
    ) -> None:
        self.rates, self.process, self.script, self.plan = rates, process, script, plan
        self.vcpu = vcpu = script.vcpu
        self.table, *self.frames = own
        self.stack: dict[int, int] = {}
        self.lives = self.stamp = 0
        self.others = [other for other in range(rates.vcpus) if other != vcpu]
        first = rates.pages * vcpu
        self.mapping = self._mapping(vcpu)
        self.slots = np.array(
            [process.space.slot(ARENA + (first + page) * PAGE_SIZE) for page in range(rates.pages)], np.uint64
        )

    # ---------------------------------------------------------------------------------------------- addresses

    def _mapping(self, vcpu: int) -> "npt.NDArray[np.uint64]":
        """Return where the short-lived pages of a vCPU's threads are."""
        first = self.rates.pages * vcpu
        return np.uint64(ARENA) + PAGE_SIZE * np.arange(first, first + self.rates.pages, dtype=np.uint64)

    def _stack(self, vcpu: int, life: int) -> int:
        """Return where the stack of a vCPU's ``life``-th thread is: one of two places, in turns."""
        return STACKS + (2 * vcpu + life % 2) * _TABLE_SPAN

    def _exits(self, vcpu: int, cycle: int) -> bool:
        """Tell whether a vCPU's thread exits at the end of a cycle; not on all vCPUs at once."""
        return (cycle + vcpu + 1) % self.rates.lifetime == 0

    def _gone(self, vcpu: int, cycle: int) -> "npt.NDArray[np.uint64]":
        """Return the pages that a vCPU took away in a cycle, for the others to flush."""
        gone = [self._mapping(vcpu)]
        if self.plan[vcpu, cycle] >= 0:
            gone.append(np.array([USER_DATA + int(self.plan[vcpu, cycle]) * PAGE_SIZE], np.uint64))
        if self._exits(vcpu, cycle):
            life = (cycle + vcpu) // self.rates.lifetime
            bottom = self._stack(vcpu, life)
            gone.append(np.uint64(bottom) + PAGE_SIZE * np.arange(self.rates.stack, dtype=np.uint64))
        return np.concatenate(gone)

    # ---------------------------------------------------------------------------------------------- life

    def run(self, cycles: int, rng: np.random.Generator) -> int:
        """Write the whole program; returns the length of its warm-up, the first cycle."""
        script = self.script
        script.leave_kernel(self.process.user_cr3)
        script.run_user(self.process.code)
        # So that thread number and stack follow from the cycle: see _gone.
        self.lives = self.vcpu // self.rates.lifetime
        warm = 0
        for cycle in range(cycles):
            self._cycle(cycle, rng)
            warm = warm or len(script)
        return warm if cycles > 1 else 0

    def _cycle(self, cycle: int, rng: np.random.Generator) -> None:
        rates, script = self.rates, self.script
        for page in rng.integers(0, rates.shared, rates.syscalls).tolist():
            self._enter()
            self._leave()
            script.load(USER_DATA + page * PAGE_SIZE, _TAG + page)
        taken = [self._first_touch(int(gva), int(slot)) for gva, slot in zip(self.mapping, self.slots, strict=True)]
        page = int(rng.integers(rates.pages))
        script.load(int(self.mapping[page]), self.stamp - rates.pages + 1 + page)
        self._use_stack(int(rng.integers(rates.stack)))
        self._enter()
        script.put_all(self.slots, np.zeros(rates.pages, np.uint64))
        script.flush(self.mapping)
        self.frames += reversed(taken)
        self._signal(cycle)
        self._leave()
        moved = int(self.plan[self.vcpu, cycle])
        if moved >= 0:
            self._move(moved, cycle)
        if self._exits(self.vcpu, cycle):
            self._exit(cycle)
        self._interrupt(cycle)

    def _enter(self) -> None:
        self.script.enter_kernel(self.process.kernel_cr3)

    def _leave(self) -> None:
        self.script.leave_kernel(self.process.user_cr3)
        self.script.run_user(self.process.code)

    def _first_touch(self, gva: int, slot: int) -> int:
        """Store to a page that is not there yet, with what the kernel does about it; returns the frame."""
        script = self.script
        self.stamp += 1
        script.miss_store(gva, self.stamp, present=False)
        self._enter()
        frame = self.frames.pop()
        script.put(frame, 0)
        script.put(slot, frame | DATA)
        self._leave()
        script.store(gva, self.stamp, frame)
        return frame

    def _use_stack(self, page: int) -> None:
        """Store to a page of the stack; the first one of a thread brings the page table, and each page comes once."""
        gva = self._stack(self.vcpu, self.lives) + page * PAGE_SIZE
        if page in self.stack:
            self.stamp += 1
            self.script.store(gva, self.stamp, self.stack[page])
            return
        if not self.stack:
            self._enter()
            self.script.put(self.process.space.slot(gva, level=2), self.table | TABLE)
            self._leave()
        self.stack[page] = self._first_touch(gva, self.table + 8 * (gva >> 12 & 511))

    def _move(self, page: int, cycle: int) -> None:
        """Move a shared page to its other frame."""
        script, homes = self.script, self.process.homes[:, page].tolist()
        before = int(np.count_nonzero(self.plan[self.vcpu, :cycle] == page))
        here, there = homes[before % 2], homes[(before + 1) % 2]
        gva = USER_DATA + page * PAGE_SIZE
        self._enter()
        script.get(here, _TAG + page)
        script.put(there, _TAG + page)
        script.put(self.process.space.slot(gva), there | DATA)
        script.flush(np.array([gva], np.uint64))
        self._signal(cycle)
        self._leave()
        script.load(gva, _TAG + page)

    def _exit(self, cycle: int) -> None:
        """End the thread: its stack goes, page table and all. The next thread starts on another stack."""
        script = self.script
        bottom = self._stack(self.vcpu, self.lives)
        self._enter()
        used = np.array(sorted(self.stack), np.uint64)
        script.put_all(np.uint64(self.table + 8 * (bottom >> 12 & 511)) + 8 * used, np.zeros(len(used), np.uint64))
        if self.stack:
            script.put(self.process.space.slot(bottom, level=2), 0)
        script.flush(np.uint64(bottom) + PAGE_SIZE * used)
        self._signal(cycle)
        self.frames += [self.stack[page] for page in sorted(self.stack)]
        self.stack.clear()
        self.lives += 1
        self._leave()

    # ---------------------------------------------------------------------------------------------- signalling

    def _signal(self, cycle: int) -> None:
        """Tell the other vCPUs what to flush, and see how far they are."""
        for other in self.others:
            self.script.put(self.process.mailboxes[other] + 8 * self.vcpu, cycle + 1)
        for other in self.others:
            self.script.peek(self.process.acknowledged[other] + 8 * self.vcpu)

    def _interrupt(self, cycle: int) -> None:
        """Take the interrupts of the other vCPUs: flush what they took away, and acknowledge."""
        if not self.others:
            return
        self._enter()
        for other in self.others:
            self.script.peek(self.process.mailboxes[self.vcpu] + 8 * other)
        self.script.flush(np.concatenate([self._gone(other, cycle) for other in self.others]))
        for other in self.others:
            self.script.put(self.process.acknowledged[self.vcpu] + 8 * other, cycle + 1)
        self._leave()
