"""Mutated dumps: a seed gives a file, a mutation, and what is asked of it; nothing but a typed error may come of it."""

import os
import random
import struct
from collections import Counter
from collections.abc import Callable, Sequence

from tests.dumps.images import PAGE, Cpu, ElfImage, Segment, chain, flat, lime_range, note, table

from shadow_mmu import ShadowMmuError, open_dump

# Values that sizes, offsets and addresses go wrong at.
EDGES = (0, 1, 7, 12, 0xFF, 0xFFF, 0x1000, 0x7FFFFFFF, 0x80000000, 0xFFFF, 0xFFFFFFFF, 1 << 52, (1 << 52) - 1, 1 << 63, (1 << 64) - 1, (1 << 64) - 0x1000)  # fmt: skip
LIMIT = 1 << 14
"""Most pages of one listing: it bounds what tables that lead back to themselves cost."""


def corpus() -> tuple[bytes, ...]:
    """Return good dumps of every form; small, so that a mutation hits what decides."""
    pages = chain(4)
    pages[0x4000] = table({index: 0x7003 | index << 12 for index in range(8)} | {511: 0x1007})
    four = b"".join(pages[gpa] for gpa in sorted(pages))
    deep = chain(5)
    deep[0x1000] = table({0: 0x2007, 1: 0x1007, 256: 0x2007, 511: 0x1007})
    five = b"".join(deep[gpa] for gpa in sorted(deep))
    several = ElfImage([Segment(0x1000, four[:0x2000]), Segment(0x3000, four[0x2000:])], [Cpu(), Cpu(cr3=0x2000)])
    section = ElfImage([Segment(0x1000, five)], [Cpu(cr4=0x16B0)])
    section.header = {"phnum": 0xFFFF, "shoff": len(section.build())}
    counted = section.build() + bytes(44) + struct.pack("<I", 2) + bytes(16)
    pair = flat({0x2000: table({0: 0x4007, 256: 0x4007, 511: 0x4007}), 0x3000: table({0: 0x4007, 256: 0x4007})}, 0x5000)
    noted = ElfImage([Segment(0, pair)], [Cpu(cr3=0x2000)], notes=note(b"VMCOREINFO\0", 0, b"A=1\n") * 3)
    return (
        several.build(),
        counted,
        noted.build(),
        lime_range(0x1000, four[:0x2000]) + lime_range(0x3000, four[0x2000:]),
        flat(pages, 0x9000),
    )


def hot_bytes(good: bytes) -> tuple[int, ...]:
    """Return the bytes that decide something: those that are not zero, and their neighbours."""
    set_ = {at for at, byte in enumerate(good) if byte}
    return tuple(sorted(at for at in set_ | {at + 1 for at in set_} if at < len(good)))


def mutate(good: bytes, hot: Sequence[int], rng: random.Random) -> bytes:
    """Return a dump with a few bytes changed, and now and then cut short or grown."""
    data = bytearray(good)
    for _ in range(rng.choice((1, 1, 1, 2, 3, 8))):
        at = rng.choice(hot) if rng.random() < 0.9 else rng.randrange(len(data))
        kind = rng.randrange(4)
        if kind == 0:
            data[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            data[at] = rng.randrange(256)
        else:
            width = rng.choice((2, 4, 8))
            at &= -width
            now = int.from_bytes(data[at : at + width], "little")
            value = rng.choice(EDGES) if kind == 2 else now + rng.choice((-4096, -1, 1, 4096))
            data[at : at + width] = (value & (1 << 8 * width) - 1).to_bytes(width, "little")[: len(data) - at]
    if rng.random() < 0.01 and len(data) >= 2 * PAGE:
        # A table whose 512 entries lead to one place, perhaps itself: as many pages as an address space has.
        at = rng.randrange(len(data) // PAGE) * PAGE - (-len(data) % PAGE)
        entry = rng.randrange(10) << 12 | 7
        data[max(at, 0) : max(at, 0) + PAGE] = struct.pack("<Q", entry) * 512
    if rng.random() < 0.1:
        del data[rng.randrange(len(data)) :]
    elif rng.random() < 0.05:
        data += bytes(rng.randrange(64))
    return bytes(data)


def use(path: str, rng: random.Random) -> str:
    """Ask everything of a dump; give what came of it: the class of the error, or ``read``."""
    try:
        with open_dump(path) as dump:
            roots = dump.roots
            cr3 = None if dump.cpus and rng.random() < 0.7 else rng.choice((0x1000, 0x2000))
            tables = dump.page_tables(cr3, maxphyaddr=rng.choice((36, 52)))
            for gva in (0, 0x1000, 0xFFFF800000000000, rng.getrandbits(64)):
                repr(tables.walk(gva).guest.result)
            maps = tables.maps(limit=LIMIT, contiguous=rng.random() < 0.5)
            assert sum(one.pages for one in maps[:100]) <= maps.leaves <= LIMIT
            assert all(root.cpus or root.pair is not None for root in roots)
            dump.memory.read(dump.memory.ranges[0].start, 1)
    except ShadowMmuError as error:
        return type(error).__name__ if str(error) else "an error without a text"
    return "read"


def fuzz(seed: int, count: int, *, each: Callable[[Callable[[], str]], str]) -> Counter[str]:
    """Use ``count`` mutated dumps; ``each`` calls what it is given, and may measure.

    A failure names the seed and the number of the input: ``input_of`` makes it again.
    """
    ends: Counter[str] = Counter()
    files = [(good, hot_bytes(good)) for good in corpus()]
    descriptor = os.memfd_create("dump")
    try:
        path = f"/proc/self/fd/{descriptor}"
        for number in range(count):
            rng = random.Random(f"{seed}:{number}")  # noqa: S311  a repeatable test, no secret
            data = mutate(*rng.choice(files), rng)
            os.ftruncate(descriptor, len(data))
            os.pwrite(descriptor, data, 0)
            try:
                ends[each(lambda rng=rng: use(path, rng))] += 1  # type: ignore[misc]
            except Exception as error:
                error.add_note(f"input {number} of seed {seed}: tests.dumps.fuzz.input_of({seed}, {number})")
                raise
    finally:
        os.close(descriptor)
    return ends


def input_of(seed: int, number: int) -> bytes:
    """Return one mutated dump of :func:`fuzz`."""
    rng = random.Random(f"{seed}:{number}")  # noqa: S311  the same
    return mutate(*rng.choice([(good, hot_bytes(good)) for good in corpus()]), rng)
