"""The machine's surface: operations, registers, host misuse, statistics, TLB, state words."""

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.model.support import PAGE, POLICIES, RWU, USED, Guest, guest, visit

from shadow_mmu.errors import ConfigError, MemoryRangeError, ProgramError, ShadowMmuError
from shadow_mmu.model import Machine, Op
from shadow_mmu.model.tlb import Tlb
from shadow_mmu.types import OpFlag, OpKind, OutcomeCode

HOST = int(OpFlag.HOST)


@pytest.mark.parametrize("size", [1, 2, 4, 8])
def test_loads_and_stores_of_each_size_reach_guest_memory(size: int) -> None:
    one, (a, _) = guest("lru:3")
    visit(one, a)
    value = 0x1122334455667788 & (1 << 8 * size) - 1
    for offset in (0, 3, 0x1000 - size):
        assert one.store(PAGE + offset, 0x1122334455667788, size).value == 0x400000 + offset
        assert one.load(PAGE + offset, size) == value
        assert one.machine.memory.read(0x400000 + offset, size) == value.to_bytes(size, "little")


def test_mmio_installs_nothing_and_returns_the_gpa() -> None:
    one, (a, _) = guest("lru:3")
    one.map(a, 0x5000, 0x7000000)
    visit(one, a)
    for outcome in (one.read(0x5123), one.store(0x5123, 1, 1), one.run(OpKind.LOAD, 0x5123, aux=1)):
        assert outcome == (OutcomeCode.MMIO, 0x7000123, 0)
    assert one.counters()["mmio_exits"] == 3
    one.audit()


@pytest.mark.parametrize(
    ("op", "error"),
    [
        (Op(17), ProgramError),
        (Op(OpKind.READ, vcpu=1), ProgramError),
        (Op(OpKind.READ, flags=64), ProgramError),
        (Op(OpKind.LOAD, aux=3), ProgramError),
        (Op(OpKind.STORE, aux=8, addr=0xFFC), ProgramError),
        (Op(OpKind.HOST_STORE, addr=4), ProgramError),
        (Op(OpKind.HOST_STORE, addr=1 << 40), MemoryRangeError),
        (Op(OpKind.HOST_PAGE, addr=8), ProgramError),
        (Op(OpKind.HOST_PAGE, aux=1), ProgramError),
        (Op(OpKind.HOST_PAGE, addr=1 << 40), MemoryRangeError),
    ],
)
def test_host_misuse_is_a_typed_error_and_changes_nothing(op: Op, error: type[ShadowMmuError]) -> None:
    one, (a, _) = guest("lru:3")
    visit(one, a)
    before = one.machine.state_words()
    with pytest.raises(error, match="expected"):
        one.machine.execute(op, bytes(0x1000))
    assert one.machine.state_words() == before


@pytest.mark.parametrize(
    "options",
    [
        {"vcpus": 0},
        {"vcpus": 1025},
        {"policy": "lru:17"},
        {"policy": "lru:-1"},
        {"policy": ""},
        {"tlb_entries": -1},
        {"cpu": 46},
        {"cpu": "46"},
        {"slots": [(0, 0)]},
        {"slots": [(0x800, 0x1000)]},
        {"slots": [(0, 0x2000), (0x1000, 0x1000)]},
        {"slots": [(1 << 46, 0x1000)]},
        {"slots": [(-0x1000, 0x1000)]},
    ],
)
def test_a_bad_configuration_is_a_config_error(options: dict[str, object]) -> None:
    good = {"slots": [(0, 0x10000)], "vcpus": 1, "policy": "seed"}
    with pytest.raises(ConfigError, match="expected"):
        Machine(**{**good, **options})  # type: ignore[arg-type]


def test_a_bad_memslot_is_refused_and_memory_is_as_it_was() -> None:
    machine = Machine([(0, 0x10000)], 1, "seed")
    with pytest.raises(ConfigError, match="overlap"):
        machine.add_memslot(0xF000, 0x1000)
    machine.add_memslot(0x10000, 0x1000)
    assert machine.memory.read(0xFFFF, 2) == bytes(2)


@pytest.mark.parametrize(("gpa", "length"), [(0xFFFF, 2), (-1, 1), (0, -1), (1 << 60, 1)])
def test_hypervisor_access_outside_memory_is_refused(gpa: int, length: int) -> None:
    machine = Machine([(0, 0x10000)], 1, "seed")
    with pytest.raises(MemoryRangeError, match="expected"):
        machine.memory.read(gpa, length)
    with pytest.raises(MemoryRangeError, match="expected"):
        machine.memory.write(gpa if length > 0 else -1, bytes(abs(length)))
    assert machine.stats()["lock"]["acquisitions"]["host"] == 0


@given(st.integers(0, 60), st.binary(max_size=40))
def test_hypervisor_writes_of_any_alignment_are_byte_exact(offset: int, data: bytes) -> None:
    machine = Machine([(0, 0x1000)], 1, "seed")
    machine.memory.write(0, bytes(range(128)))
    machine.memory.write(offset, data)
    want = bytearray(range(128))
    want[offset : offset + len(data)] = data
    assert machine.memory.read(0, 128) == bytes(want[:128])


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        (OpKind.WRITE_CR0, 1 << 32 | 0x80050033),
        (OpKind.WRITE_CR0, 0x80050032),
        (OpKind.WRITE_CR0, 0xA0050033),
        (OpKind.WRITE_CR0, 0x00050033),
        (OpKind.WRITE_CR4, 0x20 | 1 << 17),
        (OpKind.WRITE_CR4, 0x20 | 1 << 22),
        (OpKind.WRITE_CR4, 0),
        (OpKind.WRITE_CR4, 0x20 | 1 << 12),
        (OpKind.WRITE_EFER, 0xD00 | 2),
        (OpKind.WRITE_EFER, 0xC00),
    ],
)
def test_an_illegal_register_write_is_gp_and_changes_nothing(kind: OpKind, value: int) -> None:
    one, (a, _) = guest("lru:3")
    visit(one, a)
    before = one.machine.state_words()
    assert one.run(kind, value) == (OutcomeCode.GP, 0, 0)
    assert one.machine.state_words() == before


def test_paging_can_be_turned_off_by_the_host_only_and_comes_back_by_the_rules() -> None:
    one, (a, b) = guest("lru:3")
    visit(one, a)
    one.host_cr(OpKind.WRITE_CR0, 0x33)
    assert one.machine.vm.vcpus[0].registers.efer == 0x900
    assert one.read(PAGE).value == PAGE
    assert one.cr3(b).code == OutcomeCode.OK
    one.run(OpKind.WRITE_CR4, 0)
    assert one.run(OpKind.WRITE_CR0, 0x80050033).code == OutcomeCode.GP
    one.run(OpKind.WRITE_CR4, 0x20)
    assert one.run(OpKind.WRITE_CR0, 0x80050023).code == OutcomeCode.OK
    assert one.machine.vm.vcpus[0].registers.cr0 == 0x80050033  # ET is fixed
    assert one.fetch(PAGE).value == 0x401000


@pytest.mark.parametrize("policy", POLICIES)
def test_cr3_classes_are_settled_at_the_next_entry(policy: str) -> None:
    one, (a, b) = guest(policy)
    window = one.window(a, one.entry(a, PAGE))
    one.cr3(a)  # the first is not counted, and without an entry it loads no root
    assert one.machine.stats()["cr3"]["writes"] == 0
    visit(one, b)
    assert one.machine.stats()["cr3"]["locked_miss"] == 1
    visit(one, a, b, a)
    one.store(window, 0x500000 | USED)
    visit(one, b, a, a)
    cr3 = one.machine.stats()["cr3"]
    assert (cr3["writes"], cr3["same"]) == (7, 1)
    if policy in ("locked", "lru:0"):
        assert (cr3["locked_miss"], cr3["lockless"]) == (6, 0)
    else:
        assert (cr3["locked_miss"], cr3["locked_unsync"], cr3["lockless"]) == (2, 1, 3)
    assert cr3["same_locked"] == (policy == "locked")


@pytest.mark.parametrize(("entries", "ways", "sets"), [(1536, 12, 128), (24, 12, 2), (5, 5, 1), (13, 1, 13), (0, 1, 0)])
def test_tlb_geometry_and_round_robin_replacement(entries: int, ways: int, sets: int) -> None:
    tlb = Tlb(entries)
    assert (tlb.ways, tlb.sets) == (ways, sets)
    for turn in range(ways + 1):
        tlb.fill(turn * max(sets, 1), 100 + turn)
    kept = set(tlb.entries.values())
    assert kept == (set(range(101, 101 + ways)) if entries else set())
    if not entries:
        return
    words = tlb.set_words(0)
    assert words[:3] == [1 % ways, ways * sets + 1, 100 + ways]
    tlb.drop(ways * sets)
    assert tlb.set_words(0)[:3] == [1 % ways, 0, 0]
    tlb.fill(7 * sets if ways > 7 else 0, 1)
    tlb.flush()
    assert not tlb.entries
    assert tlb.set_words(0)[1:] == [0] * (2 * ways)


def test_a_tlb_of_another_size_never_changes_what_the_guest_sees_after_a_flush() -> None:
    for entries in (0, 1, 12, 1536):
        one, (a, b) = guest("lru:3", tlb_entries=entries)
        visit(one, a, b)
        assert one.read(PAGE).value == 0x401000
        assert len(one.machine.vm.vcpus[0].tlb.entries) == min(entries, 1)


def test_the_model_imports_neither_numpy_nor_the_core() -> None:
    code = "import sys, shadow_mmu.model; print([m for m in ('numpy', 'shadow_mmu._native') if m in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def test_operations_pack_into_the_records_of_the_operation_language() -> None:
    op = Op(OpKind.STORE, 3, 7, 8, 0x1122, 0x3344, 0x5566)
    assert len(op.pack()) == 32
    assert Op.unpack(op.pack()) == op


def test_a_host_page_takes_its_row_of_the_page_array() -> None:
    one = Guest()
    rows = bytes(0x1000) + (RWU | 0x5000).to_bytes(8, "little") * 512
    assert one.machine.execute(Op(OpKind.HOST_PAGE, aux=1, addr=0x3000), rows).code == OutcomeCode.OK
    assert one.peek(0x3FF8) == RWU | 0x5000
    assert one.lock_reasons()["host"] == 1
