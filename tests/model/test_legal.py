"""The oracle of D.5: what may be stale, for how long, and what a fault must be."""

import pytest
from tests.model.support import NX, RWU, P, U, W

from shadow_mmu.model import LegalTranslations, Op, Outcome
from shadow_mmu.types import OpFlag, OpKind, OutcomeCode

MEMORY = 0x100000
ENTRY = 0x4008
GVA = 0x1000
USER = int(OpFlag.USER)
OK = Outcome(OutcomeCode.OK)


def word(value: int) -> bytes:
    return value.to_bytes(8, "little")


def oracle(vcpus: int = 1) -> LegalTranslations:
    """Return an oracle whose vCPUs run on a root at 0x1000 that maps GVA to 0x5000."""
    one = LegalTranslations([(0, MEMORY)], vcpus)
    for gpa, entry in ((0x1000, 0x2007), (0x2000, 0x3007), (0x3000, 0x4007), (ENTRY, 0x5007)):
        one.host_write(gpa, word(entry))
    for vcpu in range(vcpus):
        one.observe(Op(OpKind.WRITE_CR3, vcpu=vcpu, addr=0x1000), OK)
    return one


def store(one: LegalTranslations, gpa: int, value: int, size: int = 8) -> None:
    """Let vCPU 0's guest have stored there."""
    one.observe(Op(OpKind.STORE, aux=size, addr=0x9000, value=value), Outcome(OutcomeCode.OK, gpa))


def legal(one: LegalTranslations, vcpu: int = 0, kind: OpKind = OpKind.READ, flags: int = 0) -> set[int]:
    return one.legal(vcpu, GVA, kind, flags)


def test_d5_without_invalidation_the_old_entry_stays_legal_beside_the_new() -> None:
    one = oracle()
    store(one, ENTRY, 0x6007)
    store(one, ENTRY, 0x7007)
    assert legal(one) == {0x5000, 0x6000, 0x7000}


@pytest.mark.parametrize(
    "op",
    [
        Op(OpKind.INVLPG, addr=GVA | 0x123),
        Op(OpKind.WRITE_CR3, addr=0x1000),
        Op(OpKind.WRITE_CR4, addr=0x20 | 1 << 7),
        Op(OpKind.WRITE_CR0, addr=0x80040033),
        Op(OpKind.WRITE_EFER, addr=0x500),
    ],
)
def test_d5_an_invalidation_ends_what_the_entry_held_before(op: Op) -> None:
    one = oracle(2)
    store(one, ENTRY, 0x6007)
    one.observe(op, OK)
    assert legal(one) == {0x6000}
    assert legal(one, 1) == {0x5000, 0x6000}  # the other vCPU did not invalidate
    store(one, ENTRY, 0x7007)
    assert legal(one) == {0x6000, 0x7000}


@pytest.mark.parametrize(
    ("op", "outcome"),
    [
        (Op(OpKind.INVLPG, addr=GVA + 0x1000), OK),
        (Op(OpKind.WRITE_EFER, addr=0xD00), OK),
        (Op(OpKind.WRITE_CR3, addr=1 << 50), Outcome(OutcomeCode.GP)),
        (Op(OpKind.READ, addr=GVA), Outcome(OutcomeCode.OK, 0x5000)),
        (Op(OpKind.READ, addr=GVA), Outcome(OutcomeCode.PAGE_FAULT, GVA, 0)),
        (Op(OpKind.READ, addr=GVA), Outcome(OutcomeCode.PAGE_FAULT, GVA, 9)),
    ],
)
def test_d5_what_is_no_invalidation_ends_nothing(op: Op, outcome: Outcome) -> None:
    one = oracle()
    store(one, ENTRY, 0x6007)
    one.observe(op, outcome)
    assert legal(one) == {0x5000, 0x6000}


def test_d5_an_injected_protection_fault_evicts_its_page() -> None:
    one = oracle()
    store(one, ENTRY, 0x6003)
    one.observe(Op(OpKind.READ, USER, addr=GVA), Outcome(OutcomeCode.PAGE_FAULT, GVA, 5))
    assert legal(one) == {0x6000}


def test_d5_levels_may_come_from_different_instants() -> None:
    one = oracle()
    one.host_write(0x6008, word(0x8007))
    store(one, 0x3000, 0x6007)  # another level-1 table
    store(one, 0x6008, 0x9007)
    assert legal(one) == {0x5000, 0x8000, 0x9000}


def test_d5_never_present_entries_are_never_cached() -> None:
    one = oracle()
    store(one, ENTRY, 0)
    one.observe(Op(OpKind.INVLPG, addr=GVA), OK)
    assert legal(one) == set()
    store(one, ENTRY, 0x6007)
    assert legal(one) == {0x6000}
    assert one.fault(0, GVA, OpKind.READ, 0) is None


def test_d5_a_translation_must_permit_the_access_that_uses_it() -> None:
    one = oracle()
    store(one, ENTRY, 0x6000 | P | U | NX)
    assert legal(one) == {0x5000, 0x6000}
    assert legal(one, kind=OpKind.WRITE) == {0x5000}
    assert legal(one, kind=OpKind.FETCH) == {0x5000}
    store(one, ENTRY, 0x7000 | P | W)
    assert legal(one, flags=USER) == {0x5000, 0x6000}


def test_d5_accessed_and_dirty_bits_are_no_change() -> None:
    one = oracle()
    store(one, ENTRY, 0x5007 | 0x60)
    assert legal(one) == {0x5000}
    store(one, ENTRY, 0x6067 & 0xFF, 1)
    assert legal(one) == {0x5000}
    store(one, ENTRY + 1, 0x60, 1)
    assert legal(one) == {0x5000, 0x6000}


def test_d5_a_fault_is_that_of_the_tables_as_they_are() -> None:
    one = oracle()
    store(one, ENTRY, 0x6000 | P)
    read, write = Op(OpKind.READ, USER, addr=GVA), Op(OpKind.WRITE, addr=GVA)
    assert one.judge(read, Outcome(OutcomeCode.PAGE_FAULT, GVA, 5)) is None
    assert one.judge(read, Outcome(OutcomeCode.PAGE_FAULT, GVA, 4)) is not None
    assert one.judge(read, Outcome(OutcomeCode.PAGE_FAULT, GVA + 1, 5)) is not None
    assert one.judge(write, Outcome(OutcomeCode.PAGE_FAULT, GVA, 3)) is None
    store(one, ENTRY, 0x6000 | RWU)
    assert one.judge(read, Outcome(OutcomeCode.PAGE_FAULT, GVA, 5)) is not None


def test_d5_mmio_and_loads_are_judged_too() -> None:
    one = oracle()
    load = Op(OpKind.LOAD, 0, 0, 8, GVA)
    one.host_write(0x5000, word(0x1234))
    assert one.judge(load, Outcome(OutcomeCode.OK, 0x1234)) is None
    assert one.judge(load, Outcome(OutcomeCode.OK, 0x1235)) is not None
    store(one, ENTRY, MEMORY | RWU)
    read = Op(OpKind.READ, addr=GVA | 0x20)
    assert one.judge(read, Outcome(OutcomeCode.MMIO, MEMORY | 0x20)) is None
    assert one.judge(read, Outcome(OutcomeCode.MMIO, 0x5020)) is not None
    assert one.judge(read, Outcome(OutcomeCode.OK, MEMORY | 0x20)) is not None
    assert one.judge(Op(OpKind.READ, addr=1 << 50), Outcome(OutcomeCode.GP)) is None
    assert one.judge(read, Outcome(OutcomeCode.GP)) is not None
    assert one.judge(read, Outcome(OutcomeCode.TRIPLE_FAULT)) is not None


def test_d5_history_is_dropped_once_no_vcpu_can_use_it() -> None:
    one = oracle()
    for number in range(1000):
        store(one, ENTRY, number << 12 | RWU)
        one.observe(Op(OpKind.WRITE_CR3, addr=0x1000), OK)
    assert sum(map(len, one._history.values())) < 10
