"""Seeded random operations over a small guest: table edits, aliases, CR3 switches, page sizes, several vCPUs.

The address space is tiny on purpose, so that the same tables, entries and pages meet again and again. A window over all of it,
whose own tables nobody edits, lets the guest write its tables.
"""

import random
from collections.abc import Iterator

from shadow_mmu.model import Op
from shadow_mmu.types import OpKind

FRAMES = 28
"""Frames 0..27 hold everything: roots 0..3, tables of level 3 4..6, 2 7..9, 1 10..13, the window 14..16, data from 17."""
MEMORY = FRAMES << 12
_BELOW = {4: (4, 5, 6), 3: (7, 8, 9), 2: (10, 11, 12, 13), 1: tuple(range(FRAMES))}
_LEVEL = {frame: 4 if frame < 4 else 3 if frame < 7 else 2 if frame < 10 else 1 for frame in range(14)}
_WINDOW = 2 << 39
_LARGE = 0x80
_BITS = (0x67, 0x67, 0x67, 0x67, 0x27, 0x07, 0x63, 0x65, 0x61, 0x0, 0x67 | 1 << 63)


def initial_words(rng: random.Random) -> Iterator[tuple[int, int]]:
    """Give the starting tables: 4 roots over shared lower levels, and the window."""
    for frame, level in _LEVEL.items():
        for index in range(4 if level == 1 else 2):
            yield frame << 12 | index << 3, rng.choice(_BELOW[level]) << 12 | 0x67
        if level == 4:
            yield frame << 12 | 2 << 3, 14 << 12 | 0x67
    yield 14 << 12, 15 << 12 | 0x67
    yield 15 << 12, 16 << 12 | 0x67
    for frame in range(FRAMES):
        yield 16 << 12 | frame << 3, frame << 12 | 0x67


def gva(rng: random.Random) -> int:
    """Return an address inside the tiny space: two entries at each upper level, four at the lowest."""
    upper = sum(rng.randrange(2) << shift for shift in (39, 30, 21))
    return upper | rng.randrange(4) << 12 | rng.choice((0, 8, 16, 24, 0x120, 0xFF8))


def entry(rng: random.Random, level: int) -> int:
    """Return an entry of a level, most often a usable one."""
    dice = rng.random()
    frame = rng.choice(_BELOW[level]) if dice < 0.9 else rng.randrange(FRAMES)
    bits = rng.choice(_BITS)
    if dice > 0.97:
        return rng.choice((FRAMES, 1 << 30)) << 12 | bits
    if dice > 0.95:
        return frame << 12 | bits | 1 << 50
    if level in (2, 3) and rng.random() < 0.25:
        return bits | _LARGE
    return frame << 12 | bits


def operations(seed: int, count: int, vcpus: int = 2) -> Iterator[Op]:
    """Give the starting tables as HOST_STOREs, then ``count`` random operations."""
    rng = random.Random(seed)  # noqa: S311  a repeatable test, no secret
    for gpa, word in initial_words(rng):
        yield Op(OpKind.HOST_STORE, addr=gpa, value=word)
    for vcpu in range(vcpus):
        yield Op(OpKind.WRITE_CR3, vcpu=vcpu)
    for _ in range(count):
        yield _operation(rng, rng.randrange(vcpus))


def _operation(rng: random.Random, vcpu: int) -> Op:
    dice = rng.random()
    flags = rng.choice((0, 1, 2, 2, 2, 4))
    if dice < 0.45:
        return Op(rng.choice((OpKind.READ, OpKind.WRITE, OpKind.FETCH)), flags, vcpu, addr=gva(rng))
    if dice < 0.65:
        frame = rng.choice((rng.randrange(14), rng.randrange(10, 14), rng.randrange(10, 14)))
        at = _WINDOW | frame << 12 | rng.randrange(4 if frame > 9 else 2) << 3
        if rng.random() < 0.2:
            return Op(OpKind.WRITE, 2, vcpu, addr=at)
        return Op(OpKind.STORE, 2, vcpu, 8, at, entry(rng, _LEVEL[frame]))
    if dice < 0.70:
        size = rng.choice((8, 4, 2, 1))
        return Op(
            OpKind.STORE, flags, vcpu, size, gva(rng) & ~(size - 1) | rng.choice((0, size & 3)), rng.randrange(256)
        )
    if dice < 0.74:
        return Op(OpKind.LOAD, flags, vcpu, 8, gva(rng) & ~7)
    if dice < 0.82:
        return Op(OpKind.INVLPG, 0, vcpu, addr=gva(rng))
    if dice < 0.93:
        return Op(OpKind.WRITE_CR3, 0, vcpu, addr=rng.randrange(4) << 12 | rng.choice((0, 0, 0, 8, 0x18)))
    if dice < 0.965:
        frame = rng.randrange(14)
        at = frame << 12 | rng.randrange(4 if frame > 9 else 2) << 3
        return Op(OpKind.HOST_STORE, 0, vcpu, 0, at, entry(rng, _LEVEL[frame]))
    if dice < 0.975:
        return Op(OpKind.ZAP_GFN, 0, vcpu, addr=rng.randrange(16))
    if dice < 0.98:
        return Op(OpKind.SYNC_TLB, 0, vcpu)
    return _register_write(rng, vcpu)


def _register_write(rng: random.Random, vcpu: int) -> Op:
    """Return a change of mode, an illegal value, or (rarely) a CR3 outside memory."""
    dice = rng.random()
    if dice < 0.40:
        return Op(OpKind.WRITE_CR4, 0, vcpu, addr=0x20 | rng.choice((0, 0, 1 << 7, 1 << 20, 1 << 21, 3 << 20, 1 << 17)))
    if dice < 0.70:
        return Op(OpKind.WRITE_CR0, 0, vcpu, addr=rng.choice((0x80050033, 0x80050033, 0x80040033, 0x80000000)))
    if dice < 0.90:
        return Op(OpKind.WRITE_EFER, 0, vcpu, addr=rng.choice((0xD00, 0xD00, 0x500, 0x1)))
    if dice < 0.97:
        return Op(OpKind.WRITE_CR3, 0, vcpu, addr=1 << 63 | rng.randrange(4) << 12)
    return Op(OpKind.WRITE_CR3, 0, vcpu, addr=rng.choice((FRAMES << 12, 1 << 50)))
