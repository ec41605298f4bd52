"""What only vCPUs on threads of their own can show. Each round is one race on the compiled core; it raises what it found wrong.

A round counts how often the vCPUs really met; a test repeats rounds until they did so often enough. It ends with an audit, but
for a mutant: the race itself must notice that.
"""

import random
import struct
from collections.abc import Callable, Iterable, Sequence
from types import ModuleType

from tests.behaviour.guest import PAGE, PS, USED, A, D, Guest
from tests.behaviour.machines import NativeMachine

from shadow_mmu.model import Op
from shadow_mmu.types import OpKind
from shadow_mmu.workloads.world import MachineConfig

MEMORY = 64 << 20
FRAMES = 16 << 20
"""The first of the frames that the edited entry leads to, one after another."""
EDITS = 4000
PAUSE = 500_000
"""Nanoseconds of guest work after every 50 turns: 40 ms in a round, for the threads to get a CPU each."""
FLAG = 0x7000
"""Where both vCPUs find the number of the last edit that is done."""
REGION = 1 << 30
"""2 MiB below one level-2 entry."""
LARGE = 0x800000
"""A frame of 2 MiB whose first 4 KiB are a table as well."""

NativeGuest = Guest[NativeMachine]
Outcomes = list[list[tuple[int, int, int]]]


def two_vcpus(
    module: ModuleType, mutant: str | None, policy: str, tlb_entries: int = 1536
) -> tuple[NativeGuest, int, int, int]:
    """Return a guest with both vCPUs on one root: (guest, root, gpa of PAGE's entry, gva of that entry)."""
    config = MachineConfig(policy, 2, tlb_entries, slots=((0, MEMORY, False),))
    one = Guest(NativeMachine(module, config, mutant), 2, tlb_entries)
    root = one.table()
    entry = one.map(root, PAGE, FRAMES, USED)
    one.map(root, FLAG, 0x400000, USED)
    window = one.window(root, entry, USED)
    for one.vcpu in (1, 0):
        one.visit(root)
    return one, root, entry, window


def run(one: NativeGuest, *programs: Sequence[Op]) -> Outcomes:
    """Run a program on each vCPU at once; returns (code, value, error code) of every operation."""
    packed = [b"".join(op.pack() for op in program) for program in programs]
    found = one.machine.vm.run(packed, outcomes=True, pin=True)
    return [
        [(code, value, error) for code, error, value in struct.iter_unpack("<B3xIQ", done)]
        for done in found["outcomes"]
    ]


def paced(turns: Iterable[Sequence[Op]]) -> list[Op]:
    """Return a program of these turns with a pause now and then: it must last long enough for both threads to get a CPU."""
    program: list[Op] = []
    for number, turn in enumerate(turns):
        program += turn
        if number % 50 == 0:
            program.append(Op(OpKind.WORK, value=PAUSE))
    return program


def follow(program: list[Op], outcomes: list[tuple[int, int, int]], reason: str) -> int:
    """Check that no read reached a frame older than the edit that the vCPU knew of; returns how many edits it saw."""
    edits = {0}
    flag = 0
    for op, (code, value, _) in zip(program, outcomes, strict=True):
        assert code == 0
        if op.kind == OpKind.LOAD:
            flag = value
            edits.add(flag)
        elif op.kind == OpKind.READ and (value - FRAMES) >> 12 < flag:
            raise AssertionError(reason)
    return len(edits - {0, EDITS - 1})


def flush_round(module: ModuleType, mutant: str | None, policy: str) -> int:
    """E075: the hypervisor changes the entry and says so; the other vCPU never invalidates anything itself.

    The write flushes remotely and waits before it returns, so who sees the flag has no old translation.
    """
    one, _, entry, _ = two_vcpus(module, mutant, policy)
    edits = [
        (Op(OpKind.HOST_STORE, 0, 0, 0, entry, FRAMES + (number << 12) | USED), Op(OpKind.STORE, 0, 0, 8, FLAG, number))
        for number in range(1, EDITS)
    ]
    reader = paced([(Op(OpKind.LOAD, 0, 1, 8, FLAG), Op(OpKind.READ, 0, 1, 0, PAGE))] * EDITS)
    outcomes = run(one, paced(edits), reader)[1]
    met = follow(reader, outcomes, "an old TLB entry was used after the flush had returned")
    if mutant is None:
        one.audit()
    return met


def publication_round(module: ModuleType, mutant: str | None, policy: str, flush: OpKind) -> int:
    """E051: one vCPU stores through its writable mapping of the table and tells the other, which flushes and reads."""
    one, root, _, window = two_vcpus(module, mutant, policy)
    edits = [
        (Op(OpKind.STORE, 0, 0, 8, window, FRAMES + (number << 12) | USED), Op(OpKind.STORE, 0, 0, 8, FLAG, number))
        for number in range(1, EDITS)
    ]
    invalidate = Op(flush, 0, 1, 0, root if flush == OpKind.WRITE_CR3 else PAGE)
    reader = paced([(Op(OpKind.LOAD, 0, 1, 8, FLAG), invalidate, Op(OpKind.READ, 0, 1, 0, PAGE))] * EDITS)
    outcomes = run(one, paced(edits), reader)[1]
    met = follow(reader, outcomes, "a stale entry was used after the flush")
    if mutant is None:
        one.audit()
    return met


def lost_store_round(module: ModuleType, mutant: str | None) -> int:
    """E105: one vCPU stores clean entries while the walks of the other set A and D in them."""
    one, _, _, window = two_vcpus(module, mutant, "lru:3")
    wanted = [FRAMES + (number << 12) | USED & ~(A | D) for number in range(1, EDITS)]
    gap = Op(OpKind.WORK, value=1000)
    edits = paced((Op(OpKind.STORE, 0, 0, 8, window, word), gap, Op(OpKind.LOAD, 0, 0, 8, window)) for word in wanted)
    walker = paced([(Op(OpKind.INVLPG, 0, 1, 0, PAGE), Op(OpKind.WRITE, 0, 1, 0, PAGE))] * EDITS)
    outcomes = run(one, edits, walker)[0]
    loaded = [value for op, (_, value, _) in zip(edits, outcomes, strict=True) if op.kind == OpKind.LOAD]
    if any(got & ~(A | D) != word for got, word in zip(loaded, wanted, strict=True)):
        raise AssertionError("a store of the guest was overwritten by an A/D update")
    if mutant is None:
        one.audit()
    return sum(got != word for got, word in zip(loaded, wanted, strict=True))


Forms = Callable[[NativeGuest], list[tuple[int, int]]]


def toggle_round(module: ModuleType, mutant: str | None, forms: Forms, seed: int) -> int:
    """F-02, F-03: a level-2 entry toggles between two forms while another vCPU faults on pages below it.

    Between the emulated store and its zap the fault meets the new entry with the old child still linked. Without a TLB every
    access walks; the retries of the faults are bounded by what they step back from.
    """
    one, root, _, _ = two_vcpus(module, mutant, "lru:3", 0)
    at = one.entry(root, REGION, 2)
    window = one.window(root, at, USED)
    (first, _), (second, _) = both = forms(one)
    one.poke(at, first)
    rng = random.Random(seed)  # noqa: S311  a repeatable test, no secret
    stores = paced(
        (Op(OpKind.STORE, 0, 0, 8, window, (second, first)[number & 1]), Op(OpKind.WORK, value=rng.randrange(300)))
        for number in range(EDITS)
    )
    reads = paced([Op(OpKind.READ, 0, 1, 0, REGION | number << 12)] * 8 for number in range(1, 512))
    before = one.counters()["pf_taken"]
    _, outcomes = run(one, stores, reads)
    assert all(code == 0 for code, _, _ in outcomes)
    for entry, base in both:
        one.store(window, entry)
        for number in range(1, 512):
            if one.read(REGION | number << 12).value != base + (number << 12):
                raise AssertionError("a page was filled for the other form of its entry")
    if mutant is None:
        one.audit()
    return one.counters()["pf_taken"] - before - 2 * 511


def _fill(one: NativeGuest, table: int, base: int) -> None:
    """Let a table map the 2 MiB from ``base``."""
    one.machine.memory.write(table, struct.pack("<512Q", *(base + (number << 12) | USED for number in range(512))))


def two_tables(one: NativeGuest) -> list[tuple[int, int]]:
    """Return two tables of the same rights: (entry, where the region's page 0 is). The pages that shadow them differ in gfn."""
    forms = []
    for base in (0xA00000, 0xC00000):
        table = one.table()
        _fill(one, table, base)
        forms.append((table | USED, base))
    return forms


def large_page_and_table(one: NativeGuest) -> list[tuple[int, int]]:
    """Return a 2 MiB page and the table in its first 4 KiB: the page below has the same gfn, but one is direct."""
    _fill(one, LARGE, 0xA00000)
    return [(LARGE | USED | PS, LARGE), (LARGE | USED, 0xA00000)]
