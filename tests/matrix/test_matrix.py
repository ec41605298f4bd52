"""Every combination of entry bits, registers and accesses against the SDM's tables (R5; E100, E104, E106 to E110, E114)."""

import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import pytest
from tests.matrix import sdm
from tests.matrix.layout import DATA, DATA_BYTES, CaseSet, Tables, marked

from shadow_mmu import Memslot, Vm
from shadow_mmu.cpu import CpuModel
from shadow_mmu.model import Machine, Op
from shadow_mmu.ops import OP, OUTCOME, Program
from shadow_mmu.types import OpFlag, OpKind, OutcomeCode

CR0 = 0x8005_0033
WP, SMEP, SMAP, PKE, NXE = 1 << 16, 1 << 20, 1 << 21, 1 << 22, 1 << 11
# Of keys 0 to 3 each has another pair of bits: nothing, access-disable, write-disable, both.
PKRU = 0b11_10_01_00
# CR4 and EFER of each mode.
MODES = {
    "4-level": (0x20, 0x500),
    "5-level": (0x1020, 0x500),
    "PAE": (0x20, 0),
    "32-bit": (0x10, 0),
    "32-bit without PSE": (0, 0),
}
# Sets of 5 levels; others have less, and so less cases.
SETS = 7
KINDS = {"read": OpKind.READ, "write": OpKind.WRITE, "fetch": OpKind.FETCH}


def every_setting() -> list[tuple[sdm.Paging, sdm.Registers]]:
    """Return every mode with every setting of the registers.

    Under 32-bit paging EFER.NXE gives no right and takes none, but KVM reports the fetch in the error code (B.2), where the SDM
    wants CR4.PAE with it: so it is clear there.
    """
    pairs = [(paging, registers) for paging in sdm.PAGINGS.values() for registers in sdm.Registers.all()]
    return [(paging, registers) for paging, registers in pairs if paging.entry_bytes == 8 or not registers.nxe]


def every_keyed_setting() -> list[tuple[sdm.Paging, sdm.Registers, int]]:
    """Return both long modes with protection keys, every setting of the other registers, every key for each level."""
    return [
        (paging, replace(registers, pkru=PKRU), rotation)
        for paging in sdm.PAGINGS.values()
        if paging.levels > 3
        for registers in sdm.Registers.all()
        for rotation in range(4)
    ]


def in_turn(settings: list[tuple[sdm.Paging, sdm.Registers, int]]) -> list[tuple[sdm.Paging, sdm.Registers, int]]:
    """Return one of the four keys for each setting of the registers, another one for each."""
    return [one for number, one in enumerate(settings) if number % 4 == number // 4 % 4]


every = pytest.mark.parametrize(
    ("paging", "registers"), every_setting(), ids=lambda one: one.name if isinstance(one, sdm.Paging) else str(one)
)


def settings(paging: sdm.Paging, registers: sdm.Registers) -> list[Op]:
    """Return the register writes of one setting; the root comes with each set."""
    cr4, efer = MODES[paging.name]
    return [
        Op(OpKind.WRITE_CR0, OpFlag.HOST, addr=CR0 & ~WP | WP * registers.wp),
        Op(
            OpKind.WRITE_CR4,
            OpFlag.HOST,
            addr=cr4 | SMEP * registers.smep | SMAP * registers.smap | PKE * (registers.pkru is not None),
        ),
        Op(OpKind.WRITE_EFER, OpFlag.HOST, addr=efer | NXE * registers.nxe),
        *([] if registers.pkru is None else [Op(OpKind.WRITE_PKRU, addr=registers.pkru)]),
    ]


def flags(access: sdm.Access) -> int:
    return int(OpFlag.USER * access.user | OpFlag.AC * access.ac | OpFlag.IMPLICIT * access.implicit)


def accesses(cases: CaseSet, access: sdm.Access) -> Program:
    """Return one access to each address of a set."""
    rows = np.zeros(len(cases.linear), OP)
    rows["kind"], rows["flags"], rows["addr"] = KINDS[access.kind], flags(access), cases.linear
    return rows


def check(
    cases: CaseSet, found: np.ndarray, verdict: sdm.Verdict, told: str, arrived: OutcomeCode = OutcomeCode.OK
) -> None:
    """Compare outcomes with the oracle's verdict; a difference is told by its first case.

    ``arrived`` is how an access ends that the tables permit.
    """
    code = np.where(verdict.fault, int(OutcomeCode.PAGE_FAULT), int(arrived))
    value = np.where(verdict.fault, cases.linear, verdict.gpa)
    wrong = np.flatnonzero((found["code"] != code) | (found["error"] != verdict.error) | (found["value"] != value))
    if wrong.size:
        at = int(wrong[0])
        pytest.fail(
            f"{wrong.size} of {code.size} differ; {cases.name}, {told}, gva {int(cases.linear[at]):#x}: {found[at]}, the SDM"
            f" says code {code[at]}, error {verdict.error[at]:#x}, value {int(value[at]):#x}"
        )


def processor(tables: Tables) -> CpuModel:
    return CpuModel(maxphyaddr=tables.paging.maxphyaddr, pku=tables.rotation is not None)


@dataclass(frozen=True, slots=True)
class Rom:
    """What of a guest is in read-only memory (E107)."""

    tables: bool = False
    data: bool = False

    def slots(self, tables: Tables) -> list[tuple[int, int, bool]]:
        """Return the memslots."""
        return [(0, len(tables.pages) << 12, self.tables), (DATA, DATA_BYTES, self.data)]

    def marked(self, image: sdm.Words, cases: CaseSet, verdict: sdm.Verdict, access: sdm.Access) -> sdm.Words:
        """Return the tables after an access to each case."""
        return image if self.tables else marked(image, cases, verdict, access)


RAM = Rom()


def with_rom() -> list[tuple[sdm.Paging, sdm.Registers, Rom, str]]:
    """Return every setting with read-only tables and with read-only pages, on shadow tables and in two dimensions, in turn.

    In two dimensions each access through read-only tables is an exit of its own.
    """
    kinds = [
        (rom, policy)
        for policy in ("lru:3", "lru:3,mmu=tdp")
        for rom in (Rom(tables=True), Rom(data=True), Rom(tables=True, data=True))
    ]
    return [
        (*setting, *kinds[(number + turn) % len(kinds)])
        for number, setting in enumerate(every_setting())
        for turn in range(len(kinds))
    ]


def machine(tables: Tables, rom: Rom = RAM, policy: str = "lru:3") -> Vm:
    slots = [Memslot(*slot) for slot in rom.slots(tables)]
    return Vm(slots, vcpus=1, policy=policy, cpu=processor(tables))


@every
def test_r5_every_entry_right_and_access_comes_out_as_the_sdm_says(
    paging: sdm.Paging, registers: sdm.Registers
) -> None:
    run_on_the_core(Tables.build(paging), registers)


@pytest.mark.parametrize(("paging", "registers", "rotation"), in_turn(every_keyed_setting()), ids=str)
def test_e111_every_key_of_a_level_comes_out_as_the_sdm_says(
    paging: sdm.Paging, registers: sdm.Registers, rotation: int
) -> None:
    run_on_the_core(Tables.build(paging, rotation), registers)


@pytest.mark.parametrize(("paging", "registers", "rom", "policy"), with_rom()[::6], ids=str)
def test_e107_no_a_and_d_in_read_only_tables_and_no_write_to_a_read_only_page(
    paging: sdm.Paging, registers: sdm.Registers, rom: Rom, policy: str
) -> None:
    run_on_the_core(Tables.build(paging), registers, rom, policy)


@pytest.mark.soak
@pytest.mark.parametrize(("paging", "registers", "rom", "policy"), with_rom(), ids=str)
def test_e107_the_same_for_every_setting(paging: sdm.Paging, registers: sdm.Registers, rom: Rom, policy: str) -> None:
    run_on_the_core(Tables.build(paging), registers, rom, policy)


@pytest.mark.soak
@pytest.mark.parametrize(("paging", "registers", "rotation"), every_keyed_setting(), ids=str)
def test_e111_every_key_of_every_level_comes_out_as_the_sdm_says(
    paging: sdm.Paging, registers: sdm.Registers, rotation: int
) -> None:
    run_on_the_core(Tables.build(paging, rotation), registers)


def run_on_the_core(tables: Tables, registers: sdm.Registers, rom: Rom = RAM, policy: str = "lru:3") -> None:
    """Make every access to every case, and compare outcomes, A and D."""
    paging = tables.paging
    fresh = tables.image
    with machine(tables, rom, policy) as vm:
        vm.run([np.array(settings(paging, registers), OP)])
        for cases in tables.sets:
            vm.memory.write(0, tables.to_bytes(fresh))
            expected = fresh
            vm.run([np.array([Op(OpKind.WRITE_CR3, addr=cases.root)], OP)])
            for access in sdm.Access.all():
                verdict = sdm.judge(paging, cases.entries(fresh), cases.linear, access, registers)
                outcomes = vm.run([accesses(cases, access)], outcomes=True).outcomes
                assert outcomes is not None
                leaves = rom.data and access.kind == "write"
                check(cases, outcomes[0], verdict, f"{access}", OutcomeCode.MMIO if leaves else OutcomeCode.OK)
                expected = rom.marked(expected, cases, verdict, access)
                after = tables.from_bytes(vm.memory.read(0, len(tables.pages) << 12))
                assert np.array_equal(after, expected), f"A and D after {access} over {cases.name}"
        assert vm.audit() == []


def run_on_the_model(
    tables: Tables, registers: sdm.Registers, choose: Callable[[CaseSet, sdm.Verdict], sdm.Mask], rom: Rom = RAM
) -> int:
    """Run the chosen cases of every set on the model; return how many."""
    paging = tables.paging
    fresh = tables.image
    model = Machine(rom.slots(tables), 1, "lru:3", cpu=processor(tables))
    for op in settings(paging, registers):
        model.execute(op)
    ran = 0
    for cases in tables.sets:
        model.memory.write(0, tables.to_bytes(fresh))
        expected = fresh
        model.execute(Op(OpKind.WRITE_CR3, addr=cases.root))
        for access in sdm.Access.all():
            everything = sdm.judge(paging, cases.entries(fresh), cases.linear, access, registers)
            chosen = np.flatnonzero(choose(cases, everything))
            some = replace(cases, linear=cases.linear[chosen], used=[words[chosen] for words in cases.used])
            verdict = sdm.Verdict(*(getattr(everything, name)[chosen] for name in sdm.Verdict.__slots__))
            rows = [Op(KINDS[access.kind], flags(access), addr=int(gva)) for gva in some.linear]
            outcomes = [model.execute(row) for row in rows]
            found = np.array([(one.code, 0, one.error, one.value) for one in outcomes], OUTCOME)
            leaves = rom.data and access.kind == "write"
            check(some, found, verdict, f"{access}", OutcomeCode.MMIO if leaves else OutcomeCode.OK)
            expected = rom.marked(expected, some, verdict, access)
            ran += len(rows)
        assert np.array_equal(tables.from_bytes(model.memory.read(0, len(tables.pages) << 12)), expected), (
            f"A and D: {cases.name}"
        )
    assert model.audit() == []
    return ran


def seeded(seed: object, wanted: int) -> Callable[[CaseSet, sdm.Verdict], sdm.Mask]:
    """Choose about ``wanted`` cases of one setting: as many of each set and access."""
    rng = np.random.default_rng(zlib.crc32(repr(seed).encode()))
    share = wanted / (len(sdm.Access.all()) * SETS)
    return lambda cases, _: rng.random(len(cases.linear)) < share / len(cases.linear)


@every
def test_r5_seeded_cases_come_out_of_the_model_as_the_sdm_says(paging: sdm.Paging, registers: sdm.Registers) -> None:
    assert 200 < run_on_the_model(Tables.build(paging), registers, seeded((paging.name, registers), 640)) < 2000


@every
def test_e107_seeded_cases_with_read_only_memory_come_out_of_the_model_as_the_sdm_says(
    paging: sdm.Paging, registers: sdm.Registers
) -> None:
    for rom in (Rom(tables=True), Rom(data=True)):
        choose = seeded((paging.name, registers, rom), 320)
        assert 100 < run_on_the_model(Tables.build(paging), registers, choose, rom) < 1000


@pytest.mark.parametrize(("paging", "registers", "rotation"), in_turn(every_keyed_setting()), ids=str)
def test_e111_seeded_cases_with_keys_come_out_of_the_model_as_the_sdm_says(
    paging: sdm.Paging, registers: sdm.Registers, rotation: int
) -> None:
    choose = seeded((paging.name, registers, rotation), 640)
    assert 200 < run_on_the_model(Tables.build(paging, rotation), registers, choose) < 2000


@pytest.mark.soak
@every
def test_r5_a_million_seeded_cases_come_out_of_the_model_as_the_sdm_says(
    paging: sdm.Paging, registers: sdm.Registers
) -> None:
    assert run_on_the_model(Tables.build(paging), registers, seeded((paging.name, registers, "soak"), 70_000)) > 15_000


@pytest.mark.soak
@every
def test_r5_each_case_one_bit_from_a_fault_comes_out_of_the_model_as_the_sdm_says(
    paging: sdm.Paging, registers: sdm.Registers
) -> None:
    """The pair set is left to the seeded cases: there is hardly a case in it that is not at an edge."""

    def at_an_edge(cases: CaseSet, verdict: sdm.Verdict) -> sdm.Mask:
        return cases.edges(verdict.fault) if cases.name != "pair" else np.zeros(len(cases.linear), bool)

    assert run_on_the_model(Tables.build(paging), registers, at_an_edge) > 1_000


@pytest.mark.parametrize("flipped", ["wp", "nxe", "smep", "smap", "pkru"])
def test_a_machine_with_one_register_bit_wrong_would_be_seen(flipped: str) -> None:
    registers = sdm.Registers(wp=True, nxe=True, smep=True, smap=True, pkru=PKRU)
    wrong = replace(registers, **{flipped: False})
    paging = sdm.PAGINGS["4-level"]
    tables = Tables.build(paging, 0)
    with machine(tables) as vm:
        vm.memory.write(0, tables.to_bytes(tables.image))
        vm.run([np.array(settings(paging, wrong), OP)])
        differing = 0
        for cases in tables.sets:
            vm.run([np.array([Op(OpKind.WRITE_CR3, addr=cases.root)], OP)])
            for access in sdm.Access.all():
                verdict = sdm.judge(paging, cases.entries(tables.image), cases.linear, access, registers)
                outcomes = vm.run([accesses(cases, access)], outcomes=True).outcomes
                assert outcomes is not None
                differing += int(((outcomes[0]["code"] == OutcomeCode.PAGE_FAULT) != verdict.fault).sum())
    assert differing > 100
