"""Rows 8 to 11 from Python: looks at translations one at a time and in batches, beside numpy and a plain walk; unicorn's accesses."""

import itertools
import struct
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
from benches import numpy_walk
from benches.conftest import ENTRY_BITS, Measure
from benches.numpy_walk import FRAME, SHIFTS, Words

from shadow_mmu import Translations, Vm, _native

PAGES = {"148 KiB": 1 << 14, "8 MiB": 1 << 20, "64 MiB": 1 << 23}
BATCH = 1 << 18
SCALAR = 20_000
CHUNKS = (1 << 18, 1 << 15, 1 << 13)


class Guest(NamedTuple):
    """A guest that maps pages from gva 0 on to frames in no order, its tables as words, and random addresses in it."""

    vm: Vm
    tables: Words
    gvas: Words
    gpas: Words


def make_guest(pages: int) -> Guest:
    leaves = pages // 512
    directories = -(-leaves // 512)
    tables = np.zeros((2 + directories + leaves) * 512, np.int64)
    first = 2 + directories
    tables[0] = 1 << 12 | ENTRY_BITS
    tables[512 : 512 + directories] = np.arange(2, first) << 12 | ENTRY_BITS
    tables[1024 : 1024 + leaves] = np.arange(first, first + leaves) << 12 | ENTRY_BITS
    tables[first * 512 :] = np.arange(pages) * 0x9E37 % pages << 12 | ENTRY_BITS
    gvas = np.random.default_rng(pages).integers(0, pages << 12, BATCH)
    gpas = (gvas >> 12) * 0x9E37 % pages << 12 | gvas & 0xFFF
    vm = Vm(memory=tables.nbytes, vcpus=1)
    vm.memory.write(0, tables)
    return Guest(vm, tables, gvas, gpas)


@pytest.fixture(scope="module", params=PAGES)
def guest(request: pytest.FixtureRequest) -> Any:  # noqa: ANN401  a generator of guests
    made = make_guest(PAGES[request.param])
    with made.vm:
        yield request.param, made


@pytest.fixture(scope="module")
def small() -> Any:  # noqa: ANN401  a generator of guests
    made = make_guest(PAGES["148 KiB"])
    with made.vm:
        yield made


Peer = numpy_walk.Unchecked | numpy_walk.ByLevels | numpy_walk.ByRegions
PEERS: dict[str, Callable[[Words, int], Peer]] = {
    "numpy": numpy_walk.Unchecked,
    "numpy answers": numpy_walk.ByLevels,
    "numpy regions": numpy_walk.ByRegions,
}


class InChunks:
    """A walk of so many addresses at a time: what numpy has in between then stays in cache."""

    def __init__(self, peer: str, tables: Words, gvas: Words, chunk: int) -> None:
        self.gvas, self.chunk, self.walker = gvas, chunk, PEERS[peer](tables, min(chunk, len(gvas)))
        self.gpa, self.error = np.empty(len(gvas), np.int64), np.empty(len(gvas), np.int32)

    def __call__(self) -> None:
        if isinstance(self.walker, numpy_walk.ByRegions):
            self.walker.begin(self.gvas)
        for at in range(0, len(self.gvas), self.chunk):
            piece = slice(at, at + self.chunk)
            self.walker.walk(self.gvas[piece], self.gpa[piece], self.error[piece])


def spoil(guest: Guest) -> Words:
    """Give entries of every level what is odd about some, and return addresses with some that are not canonical, or of no table."""
    rng = np.random.default_rng(7)
    words = guest.tables
    bits = (1, 2, 4, 1 << 7, 1 << 7 | 1 << 20, 1 << 46, 1 << 51, 1 << 45, 1 << 63)
    odd = np.array(bits, np.uint64).view(np.int64)
    for first, last, share in ((513, 640, 8), (1024, 1536, 8), (1536, len(words), 4)):
        which = rng.choice(
            np.arange(first, min(last, len(words))), (min(last, len(words)) - first) // share, replace=False
        )
        words[which] ^= rng.choice(odd, len(which))
    guest.vm.memory.write(0, words)
    gvas = np.where(rng.random(BATCH) < 0.1, rng.integers(-(1 << 62), 1 << 62, BATCH), guest.gvas)
    return np.where(rng.random(BATCH) < 0.1, rng.integers(0, 600 << 30, BATCH), gvas)


@pytest.mark.parametrize("peer", ["numpy answers", "numpy regions"])
def test_peers_with_answers_give_those_of_translate_many(peer: str, measure: Measure) -> None:
    """Not one translation is wrong where every second address has something odd about it; timed too, for comparison."""
    guest = make_guest(1 << 18)
    with guest.vm:
        gvas = spoil(guest)
        if peer == "numpy regions":
            gvas = gvas[(gvas >= 0) & (gvas < 1 << 40)]
        found = guest.vm.vcpus[0].translate_many(gvas.view(np.uint64), "write", user=True)
        assert set(np.unique(found.error)) >= {-1, 6, 7, 15}
        walk = InChunks(peer, guest.tables, gvas, 1 << 15)
        walk()
        assert np.array_equal(found.gpa, walk.gpa.view(np.uint64))
        assert np.array_equal(found.error, walk.error)
        measure(f"{peer} odd", walk, operations=len(gvas))


def test_batch(guest: tuple[str, Guest], measure: Measure) -> None:
    name, (vm, _, gvas, gpas) = guest
    addresses, translate_many = gvas.view(np.uint64), vm.vcpus[0].translate_many
    found = translate_many(addresses, "write", user=True)
    assert found.translated.all()
    assert np.array_equal(found.gpa, gpas.view(np.uint64))

    def translate() -> None:
        translate_many(addresses, "write", user=True)

    measure(f"translate_many {name}", translate, operations=BATCH)


@pytest.mark.parametrize("chunk", CHUNKS)
@pytest.mark.parametrize("peer", PEERS)
def test_peer_numpy(guest: tuple[str, Guest], chunk: int, peer: str, measure: Measure) -> None:
    name, (_, tables, gvas, gpas) = guest
    walk = InChunks(peer, tables, gvas, chunk)
    walk()
    assert np.array_equal(walk.gpa, gpas)
    assert peer == "numpy" or (walk.error == Translations.TRANSLATED).all()
    measure(f"{peer} {name} {chunk}", walk, operations=BATCH)


def test_peer_numpy_expressions(guest: tuple[str, Guest], measure: Measure) -> None:
    name, (_, tables, gvas, gpas) = guest
    assert np.array_equal(numpy_walk.expressions(tables, gvas), gpas)
    measure(f"numpy expressions {name}", lambda: numpy_walk.expressions(tables, gvas), operations=BATCH)


@pytest.mark.parametrize("count", [8, 64])
def test_small_batch(small: Guest, count: int, measure: Measure) -> None:
    addresses, translate_many = small.gvas[:count].view(np.uint64), small.vm.vcpus[0].translate_many
    assert np.array_equal(translate_many(addresses).gpa, small.gpas[:count].view(np.uint64))
    calls = 2_000

    def translate() -> None:
        for _ in itertools.repeat(None, calls):
            translate_many(addresses)

    measure(f"translate_many of {count}", translate, operations=calls)


@pytest.mark.parametrize("count", [8, 64])
@pytest.mark.parametrize("peer", ["numpy", "numpy answers"])
def test_peer_numpy_small_batch(small: Guest, count: int, peer: str, measure: Measure) -> None:
    walk = InChunks(peer, small.tables, small.gvas[:count], count)
    walk()
    assert np.array_equal(walk.gpa, small.gpas[:count])
    calls, walker, gvas, gpa, error = 500, walk.walker, walk.gvas, walk.gpa, walk.error

    def walks() -> None:
        for _ in itertools.repeat(None, calls):
            walker.walk(gvas, gpa, error)

    measure(f"{peer} of {count}", walks, operations=calls)


@pytest.mark.parametrize("count", [8, 64])
def test_peer_numpy_expressions_small_batch(small: Guest, count: int, measure: Measure) -> None:
    gvas = small.gvas[:count]
    assert np.array_equal(numpy_walk.expressions(small.tables, gvas), small.gpas[:count])
    calls = 500

    def walk() -> None:
        for _ in itertools.repeat(None, calls):
            numpy_walk.expressions(small.tables, gvas)

    measure(f"numpy expressions of {count}", walk, operations=calls)


def test_scalar(small: Guest, measure: Measure) -> None:
    translate, gvas = small.vm.vcpus[0].translate, small.gvas[:SCALAR].tolist()
    assert [translate(gva) for gva in gvas] == small.gpas[:SCALAR].tolist()

    def one_by_one() -> None:
        for gva in gvas:
            translate(gva)

    measure("translate", one_by_one, operations=SCALAR)


def test_peer_empty_call(measure: Measure) -> None:
    """A function of the same module that takes an integer and returns one, and does a multiplication."""
    call, vcpus = _native.stress_bytes, [2] * SCALAR
    assert call(2) > 0

    def one_by_one() -> None:
        for count in vcpus:
            call(count)

    measure("empty call", one_by_one, operations=SCALAR)


def plain_walk(memory: bytes, gva: int) -> int:
    table = 0
    for shift in SHIFTS:
        (entry,) = struct.unpack_from("<Q", memory, table | (gva >> shift & 511) << 3)
        if not entry & 1:
            raise KeyError(gva)
        table = entry & FRAME
    return table | gva & 0xFFF


def test_peer_plain_python(small: Guest, measure: Measure) -> None:
    memory, gvas = small.tables.tobytes(), small.gvas[:2_000].tolist()
    assert [plain_walk(memory, gva) for gva in gvas] == small.gpas[:2_000].tolist()

    def one_by_one() -> None:
        for gva in gvas:
            plain_walk(memory, gva)

    measure("plain Python walk", one_by_one, operations=2_000)


CODE, TABLES = 0x1_0000, 32 << 20
# mov rax, [rsi]; add rsi, 0x1000; and rsi, rdi; dec ecx; jnz to the start
LOADS = bytes.fromhex("488b06 4881c600100000 4821fe ffc9 75ef")


@pytest.mark.parametrize(("name", "pages"), [("hit", 64), ("miss", 4096)])
def test_peer_unicorn_access(name: str, pages: int, measure: Measure) -> None:
    """Loads from so many pages in turn, the loop around them included; the first 256 fit the TLB that unicorn begins with."""
    unicorn = pytest.importorskip("unicorn")
    x86 = pytest.importorskip("unicorn.x86_const")
    uc = unicorn.Uc(unicorn.UC_ARCH_X86, unicorn.UC_MODE_64)
    uc.mem_map(0, 64 << 20)
    for level in range(2):
        uc.mem_write(TABLES + level * 0x1000, struct.pack("<Q", (TABLES + (level + 1) * 0x1000) | ENTRY_BITS))
    directory = TABLES + 0x2000
    uc.mem_write(directory, struct.pack("<8Q", *((directory + (1 + table << 12)) | ENTRY_BITS for table in range(8))))
    uc.mem_write(directory + 0x1000, struct.pack("<4096Q", *(page << 12 | ENTRY_BITS for page in range(4096))))
    uc.mem_write(CODE, LOADS)
    uc.reg_write(x86.UC_X86_REG_CR3, TABLES)
    uc.reg_write(x86.UC_X86_REG_CR4, uc.reg_read(x86.UC_X86_REG_CR4) | 0x20)
    uc.reg_write(x86.UC_X86_REG_CR0, uc.reg_read(x86.UC_X86_REG_CR0) | 0x8000_0001)
    uc.reg_write(x86.UC_X86_REG_RDI, (pages << 12) - 1)
    loads = 64 * 4096

    def load() -> None:
        uc.reg_write(x86.UC_X86_REG_RSI, 0)
        uc.reg_write(x86.UC_X86_REG_RCX, loads)
        uc.emu_start(CODE, CODE + len(LOADS))

    measure(f"unicorn {name}", load, operations=loads)
    assert uc.reg_read(x86.UC_X86_REG_RCX) == 0
    assert uc.reg_read(x86.UC_X86_REG_RSI) == 0
    # Each page begins with what was written there: nothing but the code's has anything.
    assert uc.reg_read(x86.UC_X86_REG_RAX) == 0
