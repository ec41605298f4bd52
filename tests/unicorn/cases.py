"""Random tables and accesses for every paging mode."""

import random
import struct
from dataclasses import dataclass

from tests.unicorn.judge import UNIT
from tests.unicorn.modes import DATA, MAXPHYADDR, MEMORY, ROOT, TABLES, Mode, Paging

P, W, U, A, D, PS, G, NX = 1, 2, 4, 1 << 5, 1 << 6, 1 << 7, 1 << 8, 1 << 63
PS_ODDS = {1: 0.2, 2: 0.3, 3: 0.25, 4: 0.04, 5: 0.04}
KEY_SHIFT = 59
BITS = ((P, 0.94), (W, 0.75), (U, 0.65), (A, 0.5), (D, 0.5), (G, 0.2), (NX, 0.12))
PDPTR_RESERVED = (1, 2, 5, 6, 7, 8, *range(MAXPHYADDR, 64))
# Where a table outside memory is: it reads as zeros.
OUTSIDE = {4: (MEMORY + 0x5000, 0xF0000000), 8: (MEMORY + 0x5000, 1 << 35)}


@dataclass(frozen=True)
class Case:
    """One access."""

    mode: Mode
    gva: int
    kind: str
    user: bool

    @property
    def address(self) -> int:
        """The address of the access: a read is of the number in the unit, a write of its last byte."""
        return self.gva + {"read": 1, "write": UNIT - 1, "fetch": 0}[self.kind]


def random_entry(rng: random.Random, paging: Paging, level: int) -> int:
    """Return an entry of a table of this level: mostly what belongs there, now and then what does not."""
    wide = paging.entry_bytes == 8
    entry = sum(bit for bit, odds in BITS if rng.random() < odds and (wide or bit != NX))
    ps = PS if rng.random() < PS_ODDS[level] else 0
    if level > 1 and rng.random() < 0.03:
        return entry | ps | rng.choice(OUTSIDE[paging.entry_bytes])
    if wide and rng.random() < 0.04:
        # Reserved; under 4- and 5-level paging bits 62:52 are not.
        entry |= 1 << rng.randrange(MAXPHYADDR, 63 if paging.pae else 52)
    if paging.long and rng.random() < 0.5:
        # The key of a page; of a table it is ignored.
        entry |= rng.randrange(16) << KEY_SHIFT
    if level == 1:
        return entry | ps | rng.randrange(DATA >> 12, MEMORY >> 12) << 12
    if ps and level <= paging.largest:
        return entry | ps | (_large(rng, level) if wide else _large_of_4_bytes(rng))
    below = level - 1 if rng.random() < 0.95 else rng.randint(1, paging.levels - paging.pae)
    return entry | ps | rng.choice(paging.frames[below]) << 12


def _large(rng: random.Random, level: int) -> int:
    """Return the frame of a page of 2 MiB or 1 GiB, now and then with a bit below it: PAT, or a reserved one."""
    base = rng.choice((0, 2 << 20)) if level == 2 else 0
    return base | (1 << rng.randrange(12, 12 + 9 * (level - 1)) if rng.random() < 0.1 else 0)


def _large_of_4_bytes(rng: random.Random) -> int:
    """Return the frame of a page of 4 MiB: low, or above 4 GiB by PSE-36; now and then PAT, or a bit that KVM or anyone reserves."""
    high = 5 << 13 if rng.random() < 0.3 else 0
    odd = rng.random()
    if odd < 0.05:
        return high | 1 << 12
    if odd < 0.25:
        return high | 1 << 21
    return 1 << rng.randrange(17, 21) if odd < 0.32 else high


def random_pdptr(rng: random.Random, paging: Paging) -> int:
    """Return a page-directory-pointer of PAE: no rights, and no A."""
    if rng.random() < 0.06:
        return 0
    # 3 and 4 are PWT and PCD; 9 to 11 are ignored.
    ignored = sum(1 << bit for bit in (3, 4, 9, 10, 11) if rng.random() < 0.2)
    return rng.choice(paging.frames[2]) << 12 | P | ignored


def random_tables(rng: random.Random, paging: Paging, code_entry: int) -> bytes:
    """Return the frames of the tables; ``code_entry`` leads to the judge's instructions."""
    if not paging.levels:
        return bytes(TABLES << 12)
    frames = []
    for level in range(paging.levels, 0, -1):
        for _ in paging.frames[level]:
            words = [0] * paging.entries
            for index in set(paging.indices(level)):
                pointers = paging.pae and level == paging.levels
                words[index] = random_pdptr(rng, paging) if pointers else random_entry(rng, paging, level)
            frames.append(words)
    frames[0][paging.code_slot] = code_entry
    if paging.pae and rng.random() < 0.03:
        # With one of these CR3 cannot be loaded.
        frames[0][rng.randrange(3)] |= P | 1 << rng.choice(PDPTR_RESERVED)
    form = f"<{paging.entries}{'Q' if paging.entry_bytes == 8 else 'I'}"
    return b"".join(struct.pack(form, *words) for words in frames)


def random_pkru(rng: random.Random) -> int | None:
    """Return a PKRU that denies some, or ``None``: protection keys are off."""
    if rng.random() < 0.5:
        return None
    return rng.choice((rng.getrandbits(32), rng.getrandbits(32) & rng.getrandbits(32), 1 << rng.randrange(32)))


def random_case(rng: random.Random, paging: Paging) -> Case:
    """Return an access with registers of its own."""
    if paging.levels:
        levels = range(1, paging.levels + 1)
        gva = sum(rng.choice(paging.indices(level)) << paging.shift(level) for level in levels)
        top = paging.shift(paging.levels + 1)
        gva |= (1 << 64) - (1 << top) if paging.long and gva >> top - 1 else 0
        gva |= rng.randrange(0, 4096, UNIT)
    else:
        gva = rng.randrange(ROOT if rng.random() < 0.1 else DATA, MEMORY, UNIT)
    # Under 32-bit paging EFER.NXE only changes what F says.
    nx_odds = 0.8 if paging.entry_bytes == 8 else 0.3
    wp, nx, smep, smap, ac, pse = (rng.random() < odds for odds in (0.6, nx_odds, 0.4, 0.4, 0.4, 0.5))
    mode = Mode(paging, wp, nx, smep, smap, ac, pse, random_pkru(rng) if paging.long else None)
    return Case(mode, gva, rng.choice(("read", "write", "fetch")), rng.random() < 0.5)
