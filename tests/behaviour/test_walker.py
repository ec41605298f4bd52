"""The guest walk and its checks against the rules of paging (E1xx), through whole accesses of the machine."""

import itertools

import pytest
from tests.behaviour.guest import NX, PS, RWU, A, D, Guest, GuestMaker, P, U, W
from tests.behaviour.machines import AnyMachine

from shadow_mmu.cpu import CpuModel
from shadow_mmu.model.constants import CR4_LA57, CR4_SMAP, CR4_SMEP, EFER_NXE
from shadow_mmu.types import OpFlag, OpKind, OutcomeCode

USER, AC, IMPLICIT = int(OpFlag.USER), int(OpFlag.AC), int(OpFlag.IMPLICIT)

CR0, EFER = 0x80050033, 0xD00


def paged(
    guest: GuestMaker, levels: int = 4, *, memory: int = 16 << 20, maxphyaddr: int = 46
) -> tuple[Guest[AnyMachine], int]:
    """Return a guest of 4 or 5 levels and its root."""
    one = guest.bare(memory=memory, cpu=CpuModel(maxphyaddr=maxphyaddr))
    if levels == 5:
        one.host_cr(OpKind.WRITE_CR4, 0x20 | CR4_LA57)
    root = one.table()
    one.cr3(root)
    return one, root


@pytest.mark.parametrize("levels", [4, 5])
@pytest.mark.parametrize("leaf", [1, 2, 3])
def test_e100_walk_reaches_the_frame_of_each_page_size(guest: GuestMaker, levels: int, leaf: int) -> None:
    one, root = paged(guest, levels, memory=4 << 30)
    span = 1 << (3 + 9 * leaf)
    for number, indices in enumerate(itertools.product((0, 1, 255), repeat=levels - leaf + 1)):
        gva = sum(index << (3 + 9 * (levels - at)) for at, index in enumerate(indices))
        base = (number % 3 + 1) * span if leaf > 1 else (0x400 + number) << 12
        one.map(root, gva, base, level=leaf)
        for offset in {0, 0x123, span - 1, span // 2}:
            assert one.read(gva + offset) == (OutcomeCode.OK, base + offset, 0)
    one.audit()


@pytest.mark.parametrize("levels", [4, 5])
@pytest.mark.parametrize("leaf", [1, 2, 3])
def test_e104_accessed_at_every_level_dirty_at_the_leaf_of_a_write(guest: GuestMaker, levels: int, leaf: int) -> None:
    one, root = paged(guest, levels, memory=4 << 30)
    gva, base = 0x7F80_4060_1000 & ~((1 << (3 + 9 * leaf)) - 1), 1 << 30 if leaf > 1 else 0x400000
    one.map(root, gva, base, level=leaf)
    path = [one.entry(root, gva, level) for level in range(levels, leaf - 1, -1)]
    before = [one.peek(at) for at in path]
    one.read(gva)
    assert [one.peek(at) for at in path] == [word | A for word in before]
    one.write(gva)
    assert [one.peek(at) for at in path] == [word | A for word in before[:-1]] + [before[-1] | A | D]


def test_e105_a_walk_restarts_when_its_own_accessed_bit_changed_the_next_entry(guest: GuestMaker) -> None:
    one, root = paged(guest)
    one.poke(root, root | RWU)  # the table is its own child at every level
    assert one.write(0x10) == (OutcomeCode.OK, root + 0x10, 0)
    assert one.peek(root) == root | RWU | A | D


@pytest.mark.parametrize(
    ("level", "word"),
    [(1, 0), (1, 0x400000 | P), (1, 0x400000 | RWU | 1 << 50), (3, 0), (2, 0x400000 | RWU | PS | 1 << 13)],
)
def test_e106_a_faulting_walk_writes_nothing(guest: GuestMaker, level: int, word: int) -> None:
    one, root = paged(guest)
    at = one.entry(root, 0x1000, level)
    one.poke(at, word)
    before = one.machine.memory.read(0, 0x200000)
    assert one.write(0x1000, USER).code == OutcomeCode.PAGE_FAULT
    assert one.machine.memory.read(0, 0x200000) == before


def reserved(level: int, *, large: bool, nx: bool, maxphyaddr: int) -> set[int]:
    """Return the reserved bits as the manual's tables list them (B.4, written anew)."""
    bits = set(range(maxphyaddr, 52))
    if not nx:
        bits.add(63)
    if level >= 4:
        bits.add(7)
    if large and level in (2, 3):
        bits |= set(range(13, 21 if level == 2 else 30))
    return bits


@pytest.mark.parametrize("nx", [True, False])
@pytest.mark.parametrize("maxphyaddr", [36, 46, 52])
@pytest.mark.parametrize(
    ("level", "large"), [(1, False), (2, False), (2, True), (3, False), (3, True), (4, False), (5, False)]
)
def test_e108_each_reserved_bit_is_a_reserved_fault(
    guest: GuestMaker,
    level: int,
    large: bool,  # noqa: FBT001
    maxphyaddr: int,
    nx: bool,  # noqa: FBT001
) -> None:
    one, root = paged(guest, 5, maxphyaddr=maxphyaddr)
    one.run(OpKind.WRITE_EFER, EFER if nx else EFER & ~EFER_NXE)
    at = one.map(root, 0, 0 if large else 0x400000, level=level if large else 1)
    at = one.entry(root, 0, level)
    word = one.peek(at)
    wanted = reserved(level, large=large, nx=nx, maxphyaddr=maxphyaddr)
    for bit in set(range(6, 64)) - {level < 4 and level > 1 and 7}:
        one.poke(at, word | 1 << bit)
        outcome = one.read(0)
        is_reserved = (outcome.code, outcome.error & 9) == (OutcomeCode.PAGE_FAULT, 9)
        assert is_reserved == (bit in wanted), f"bit {bit} at level {level}"
    one.poke(at, word)
    assert one.read(0).code == OutcomeCode.OK


@pytest.mark.parametrize("nx", [True, False])
@pytest.mark.parametrize("smep", [True, False])
def test_e109_fetch_bit_is_reported_iff_nx_or_smep(guest: GuestMaker, nx: bool, smep: bool) -> None:  # noqa: FBT001
    one, root = paged(guest)
    one.run(OpKind.WRITE_EFER, EFER if nx else EFER & ~EFER_NXE)
    one.run(OpKind.WRITE_CR4, 0x20 | (CR4_SMEP if smep else 0))
    assert one.fetch(0x1000, USER).error == 4 | (16 if nx or smep else 0)
    one.map(root, 0x2000, 0x400000, P | W | U | NX)
    outcome = one.fetch(0x2000, USER)
    assert outcome.error == (1 | 4 | 16 if nx else 1 | 8 | 4 | (16 if smep else 0))
    assert one.read(0x2000, USER).code == (OutcomeCode.OK if nx else OutcomeCode.PAGE_FAULT)


def refuses(rights: tuple[int, int, int], kind: OpKind, flags: int, wp: int, smep: int, smap: int, nx: int) -> bool:  # noqa: PLR0917
    """Say whether the SDM's rules (vol. 3A, 4.6.1) refuse the access, written without a look at the model."""
    user_page, writable, executable = rights
    if flags & USER:
        if not user_page:
            return True
        if kind == OpKind.FETCH:
            return bool(nx and not executable)
        return kind == OpKind.WRITE and not writable
    if kind == OpKind.FETCH:
        return bool((nx and not executable) or (user_page and smep))
    explicit_ac = flags & AC and not flags & IMPLICIT
    if user_page and smap and not explicit_ac:
        return True
    return bool(kind == OpKind.WRITE and not writable and wp)


@pytest.mark.parametrize("mode", list(itertools.product((0, 1), repeat=4)))
@pytest.mark.parametrize("flags", [0, AC, IMPLICIT, AC | IMPLICIT, USER, USER | AC])
def test_e110_permission_matrix_is_the_manuals(guest: GuestMaker, mode: tuple[int, int, int, int], flags: int) -> None:
    wp, smep, smap, nx = mode
    for kind in (OpKind.READ, OpKind.WRITE, OpKind.FETCH):
        one, root = paged(guest)
        one.run(OpKind.WRITE_CR0, CR0 if wp else CR0 & ~(1 << 16))
        one.run(OpKind.WRITE_CR4, 0x20 | smep * CR4_SMEP | smap * CR4_SMAP)
        one.run(OpKind.WRITE_EFER, EFER if nx else EFER & ~EFER_NXE)
        for number in range(8):
            rights = user_page, writable, executable = number >> 2, number >> 1 & 1, number & 1
            if not executable and not nx:
                continue  # bit 63 is reserved then (E109)
            gva = 0x10000 + (number << 12)
            bits = P | user_page * U | writable * W | (0 if executable else NX)
            one.map(root, gva, 0x400000, bits)
            outcome = one.run(kind, gva, flags=flags)
            refused = refuses(rights, kind, flags, wp, smep, smap, nx)
            assert (outcome.code == OutcomeCode.PAGE_FAULT) == refused, (kind, rights)
            code = 1 | (2 if kind == OpKind.WRITE else 0) | (4 if flags & USER else 0)
            code |= 16 if kind == OpKind.FETCH and (nx or smep) else 0
            assert outcome == ((OutcomeCode.PAGE_FAULT, gva, code) if refused else (OutcomeCode.OK, 0x400000, 0))
            assert one.run(kind, gva, flags=flags) == outcome  # the same once the entry is there
        one.audit()


def test_e114_access_is_folded_from_all_ancestors(guest: GuestMaker) -> None:
    one, root = paged(guest)
    gvas = [index << 30 for index in range(4)]
    one.map(root, gvas[0], 0x400000)
    shared = one.peek(one.entry(root, gvas[0], 3)) & ~0xFFF
    rights = [RWU, P | W, P | U, P]
    for gva, bits in zip(gvas, rights, strict=True):
        one.poke(one.entry(root, gva, 3), shared | bits)
    for gva, bits in zip(gvas, rights, strict=True):
        assert one.read(gva).code == OutcomeCode.OK
        assert one.read(gva, USER).code == (OutcomeCode.OK if bits & U else OutcomeCode.PAGE_FAULT)
        write_is_allowed = bits & U and bits & W
        assert one.write(gva, USER).code == (OutcomeCode.OK if write_is_allowed else OutcomeCode.PAGE_FAULT)
        assert one.write(gva).code == (OutcomeCode.OK if bits & W else OutcomeCode.PAGE_FAULT)
    assert sorted(page["access"] for page in one.pages(shared)) == [1, 3, 5, 7]
    one.audit()


@pytest.mark.parametrize(("levels", "top"), [(4, 47), (5, 56)])
def test_e116_canonical_means_that_the_upper_bits_repeat_the_top_bit(guest: GuestMaker, levels: int, top: int) -> None:
    one, _ = paged(guest, levels)
    high = (1 << 64) - (1 << top)
    for gva in (0, (1 << top) - 1, high, (1 << 64) - 1):
        assert one.read(gva).code == OutcomeCode.PAGE_FAULT
    for gva in (1 << top, high - 1, 1 << 63, 1 << 62):
        before = one.machine.state_words()
        assert one.read(gva) == (OutcomeCode.GP, 0, 0)
        assert one.machine.state_words() == before
