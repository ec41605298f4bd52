"""KPTI ping-pong: what the fast CR3 switch was made for.

Each process has two top tables, the user's one 4 KiB above the kernel's, so that their CR3 values differ in bit 12. The kernel
half is shared by all processes; the user's table maps of it only the entry code. A vCPU runs one process for a while, going
back and forth between its two tables, then the next. Kernel code edits the process's page tables through the direct map.

>>> workload = kpti_pingpong(vcpus=1, switches=4)
>>> [hex(addr) for addr in workload.programs[0]["addr"][workload.programs[0]["kind"] == 2]]
['0x1d000', '0x1c000', '0x1d000', '0x1c000', '0x1d000']
"""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from shadow_mmu.errors import ConfigError
from shadow_mmu.ops import OP, Program
from shadow_mmu.types import MAX_VCPUS, PAGE_SIZE, OpFlag, OpKind
from shadow_mmu.workloads.address_space import NO_EXECUTE
from shadow_mmu.workloads.kernel import (
    DATA,
    DIRECT_MAP,
    KERNEL_TEXT,
    USER_DATA,
    USER_TEXT,
    Guest,
    kernel_half,
    top_tables,
)
from shadow_mmu.workloads.workload import NO_FAULTS, Workload

if TYPE_CHECKING:
    import numpy.typing as npt

_MAX_PROCESSES: Final = 1024
_MAX_SWITCHES: Final = 200_000_000
_MAX_EDITS: Final = 64.0
# A process's own frames: two top tables, three tables below, two page tables, a code page; the data pages come on top.
_FRAMES_PER_PROCESS: Final = 10


@dataclass(frozen=True, slots=True)
class _Process:
    """Where a process's tables and data pages are."""

    kernel_cr3: int
    user_cr3: int
    code: int
    entries: "npt.NDArray[np.uint64]"
    frames: "npt.NDArray[np.uint64]"


def kpti_pingpong(
    *,
    vcpus: int = 2,
    processes: int = 1,
    switches: int = 100_000,
    edits: float = 0.0,
    seed: int = 0,
    pairs: int = 8,
    data_pages: int = 8,
) -> Workload:
    """Build the guest and its programs.

    Parameters
    ----------
    vcpus : int
        1 to 1,024, each with processes of its own.
    processes : int
        Processes of each vCPU, 1 to 1,024.
    switches : int
        CR3 writes of each vCPU after its first; each is followed by an instruction fetch.
    edits : float
        Page-table edits for each switch on average, 0 to 64: a store to a leaf entry, INVLPG, a read of the page.
    seed : int
        Of what is random: when there is an edit, and of which page.
    pairs : int
        Round trips of a process before the next one runs.
    data_pages : int
        Pages of each process that edits move from one frame to another, 1 to 512.

    Raises
    ------
    ConfigError
        A parameter is out of range, or the programs together would have more than 200,000,000 switches.

    """
    for name, value, low, high in (
        ("vcpus", vcpus, 1, MAX_VCPUS),
        ("processes", processes, 1, _MAX_PROCESSES),
        ("switches", switches, 1, _MAX_SWITCHES),
        ("seed", seed, 0, (1 << 64) - 1),
        ("pairs", pairs, 1, _MAX_SWITCHES),
        ("data_pages", data_pages, 1, 512),
    ):
        if type(value) is not int or not low <= value <= high:
            raise ConfigError(f"{name} is {value!r}: expected a whole number from {low:,} to {high:,}")
    if type(edits) not in (int, float) or not 0 <= edits <= _MAX_EDITS:
        raise ConfigError(f"edits is {edits!r}: expected a number of edits a switch from 0 to {_MAX_EDITS:g}")
    if vcpus * switches * (1 + edits) > _MAX_SWITCHES:
        raise ConfigError(f"{vcpus} x {switches:,} switches with {edits:g} edits: expected {_MAX_SWITCHES:,} at most")

    guest = kernel_half(vcpus * processes * (_FRAMES_PER_PROCESS + 2 * data_pages))
    programs = []
    for vcpu in range(vcpus):
        own = [_process(guest, data_pages) for _ in range(processes)]
        rng = np.random.default_rng([seed, vcpu])
        programs.append(_program(own, _schedule(processes, switches, edits, pairs, rng), rng, vcpu))
    # Every root and every translation was used by then: with several processes each of them has to have had its turn.
    warm = 4 if processes == 1 else processes * (2 * pairs + 1) + 3
    cut = [int(np.flatnonzero(one["kind"] == OpKind.WRITE_CR3)[min(warm, switches)]) for one in programs]
    return Workload("kpti", guest.image, tuple(programs), (NO_FAULTS,) * vcpus, tuple(cut))


def _process(guest: Guest, data_pages: int) -> _Process:
    in_kernel, in_user = top_tables(guest)
    top = in_kernel.root
    code = guest.frames.take()
    in_kernel.map(USER_TEXT, code, user=True, write=False)
    first = guest.frames.take(size=2 * data_pages * PAGE_SIZE)
    in_kernel.map(USER_DATA, first, pages=data_pages, user=True, execute=False)
    in_user.share(USER_TEXT, in_kernel)
    # As Linux does: in the kernel's table nothing of the user's half can be executed.
    in_kernel.protect(USER_TEXT, set_bits=NO_EXECUTE, level=in_kernel.levels)
    entries = [in_kernel.slot(USER_DATA + page * PAGE_SIZE) for page in range(data_pages)]
    homes = first + PAGE_SIZE * np.arange(2 * data_pages, dtype=np.uint64).reshape(2, data_pages)
    return _Process(top, top + PAGE_SIZE, code, np.array(entries, np.uint64), homes)


@dataclass(frozen=True, slots=True)
class _Schedule:
    """For each CR3 write: whose table, whether the kernel's, and how many edits follow it."""

    owner: "npt.NDArray[np.int64]"
    in_kernel: "npt.NDArray[np.bool_]"
    edits: "npt.NDArray[np.int64]"


def _owners(processes: int, switches: int, pairs: int) -> tuple["npt.NDArray[np.int64]", "npt.NDArray[np.bool_]"]:
    """Return, for each CR3 write, whose it is and whether it is the kernel's.

    The first is the user's table of process 0. A process runs kernel, user, kernel, ... and gives way to the next from its
    kernel side, so the next starts with its kernel table: K0 U0 K0 ... K0 K1 U1 K1 ... K1 K0 and so on.
    """
    index = np.arange(switches)
    if processes == 1:
        return np.zeros(switches + 1, np.int64), np.concatenate([[False], index % 2 == 0])
    burst, place = np.divmod(index, 2 * pairs + 1)
    return np.concatenate([[0], burst % processes]), np.concatenate([[False], place % 2 == 0])


def _schedule(processes: int, switches: int, edits: float, pairs: int, rng: np.random.Generator) -> _Schedule:
    """Draw after which kernel-side switches there are edits, so that there are ``edits`` for each switch on average."""
    owner, in_kernel = _owners(processes, switches, pairs)
    counts = np.zeros(switches + 1, np.int64)
    places = np.flatnonzero(in_kernel)
    mean = edits * switches / max(len(places), 1)
    counts[places] = math.floor(mean) + (rng.random(len(places)) < mean % 1)
    return _Schedule(owner, in_kernel, counts)


def _program(processes: list[_Process], schedule: _Schedule, rng: np.random.Generator, vcpu: int) -> Program:
    """Return the operations of one vCPU."""
    owner, in_kernel, counts = schedule.owner, schedule.in_kernel, schedule.edits
    # Each switch takes two operations and each edit after it three.
    sizes = 2 + 3 * counts
    starts = np.cumsum(sizes) - sizes
    ops = np.zeros(int(sizes.sum()), OP)
    ops["vcpu"] = vcpu
    kernel_cr3, user_cr3, code = (
        np.array([getattr(one, name) for one in processes], np.uint64) for name in ("kernel_cr3", "user_cr3", "code")
    )
    ops["kind"][starts] = OpKind.WRITE_CR3
    ops["addr"][starts] = np.where(in_kernel, kernel_cr3[owner], user_cr3[owner])
    fetches = starts + 1
    ops["kind"][fetches] = OpKind.FETCH
    # Each side fetches what only it runs: the kernel its text, the user its own.
    ops["flags"][fetches] = np.where(in_kernel, int(OpFlag.NONE), int(OpFlag.USER))
    ops["addr"][fetches] = np.where(in_kernel, np.uint64(KERNEL_TEXT), np.uint64(USER_TEXT))
    ops["flags"][fetches[~in_kernel]] |= np.uint8(OpFlag.CHECK)
    ops["expect"][fetches[~in_kernel]] = code[owner[~in_kernel]]
    _fill_edits(ops, starts, schedule, processes, rng)
    return ops


def _fill_edits(
    ops: Program,
    starts: "npt.NDArray[np.int64]",
    schedule: _Schedule,
    processes: list[_Process],
    rng: np.random.Generator,
) -> None:
    """Write the edits: each moves a data page of the running process to its other frame."""
    counts = schedule.edits
    total = int(counts.sum())
    if not total:
        return
    switch = np.repeat(np.arange(len(counts)), counts)
    within = np.arange(total) - np.repeat(np.cumsum(counts) - counts, counts)
    first = starts[switch] + 2 + 3 * within
    pages = len(processes[0].entries)
    page = rng.integers(0, pages, total)
    whose = schedule.owner[switch]
    # How often this page was moved before decides where it goes.
    key = whose * pages + page
    order = np.argsort(key, kind="stable")
    sorted_key = key[order]
    group_start = np.searchsorted(sorted_key, sorted_key)
    moved = np.empty(total, np.int64)
    moved[order] = np.arange(total) - group_start
    entries = np.stack([one.entries for one in processes])
    homes = np.stack([one.frames for one in processes])
    target = homes[whose, (moved + 1) % 2, page]
    gva = np.uint64(USER_DATA) + page.astype(np.uint64) * np.uint64(PAGE_SIZE)

    ops["kind"][first] = OpKind.STORE
    ops["flags"][first] = int(OpFlag.CHECK)
    ops["aux"][first] = 8
    ops["addr"][first] = np.uint64(DIRECT_MAP) + entries[whose, page]
    ops["value"][first] = target | np.uint64(DATA)
    ops["expect"][first] = entries[whose, page]
    ops["kind"][first + 1] = OpKind.INVLPG
    ops["addr"][first + 1] = gva
    ops["kind"][first + 2] = OpKind.READ
    ops["flags"][first + 2] = int(OpFlag.CHECK | OpFlag.AC)
    ops["addr"][first + 2] = gva
    ops["expect"][first + 2] = target
