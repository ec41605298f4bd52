"""Recordings as operations: each row's meaning, and which rows are one instruction."""

from pathlib import Path

import numpy as np
import pytest
from tests.replay import small

from shadow_mmu import OpFlag, OpKind, Recording, load_recording
from shadow_mmu.ops import validate
from shadow_mmu.recording_program import compile_recording, fused_rows

USER, AC, HOST, CHECK, FUSED = OpFlag.USER, OpFlag.AC, OpFlag.HOST, OpFlag.CHECK, OpFlag.FUSED


@pytest.fixture
def tiny(tmp_path: Path) -> Recording:
    return load_recording(small.write(tmp_path / "tiny.npz", small.arrays()))


def changed(tmp_path: Path, name: str, row: int, value: int) -> Recording:
    arrays = small.arrays()
    arrays[name][row] = value
    return load_recording(small.write(tmp_path / "changed.npz", arrays))


def test_every_row_becomes_its_operation(tiny: Recording) -> None:
    program = compile_recording(tiny)
    assert program.event_of.tolist() == [*range(11), *range(12, 19)]
    by_event = dict(zip(program.event_of.tolist(), program.ops.tolist(), strict=True))
    assert by_event[0] == (OpKind.WRITE_CR0, HOST, 0, 0, 0x80050033, 0, 0)
    assert by_event[1] == (OpKind.WRITE_CR4, HOST, 0, 0, 0x20, 0, 0)
    assert by_event[2] == (OpKind.WRITE_EFER, HOST, 0, 0, 0xD01, 0, 0)
    assert by_event[6] == (OpKind.HOST_PAGE, 0, 0, 3, small.PT, 0, 0)
    assert by_event[8] == (OpKind.WRITE_CR3, 0, 1, 0, small.ROOT, 0, 0)
    assert by_event[9] == (OpKind.READ, USER | CHECK, 0, 0, small.GVA + 0x18, 0, small.DATA + 0x18)
    assert by_event[10] == (OpKind.FETCH, USER | CHECK, 1, 0, small.GVA + 0x20, 0, small.DATA + 0x20)
    assert by_event[12] == (OpKind.STORE, AC | CHECK | FUSED, 0, 8, small.PT_GVA, 0x22067, small.PT)
    assert by_event[13] == (OpKind.INVLPG, 0, 0, 0, small.GVA, 0, 0)
    assert by_event[17] == (OpKind.HOST_STORE, 0, 1, 0, 0x12008, 0, 0)
    assert by_event[18] == (OpKind.NOP, 0, 0, 0, 0x5A5A0002, 0, 0)


def test_supervisor_data_accesses_carry_ac_and_fetches_do_not(tmp_path: Path) -> None:
    for row, flags in ((9, AC | CHECK), (10, CHECK)):
        program = compile_recording(changed(tmp_path, "user", row, 0))
        assert program.ops["flags"][row] == flags


def test_without_check_nothing_is_compared(tiny: Recording) -> None:
    assert not (compile_recording(tiny, check=False).ops["flags"] & CHECK).any()


@pytest.mark.parametrize(
    ("name", "row", "value"),
    [
        ("user", 11, 1),  # another privilege
        ("addr", 11, small.PT_GVA + 8),  # another word
        ("addr", 11, small.GVA),  # another page
        ("value", 11, small.PT + 0x1000),  # another frame: an altered gpa must not vanish in the fusion
        ("value", 11, small.PT + 8),
        ("value", 11, small.PT + 1),
        ("cpu", 11, 1),  # another vCPU
        ("kind", 11, small.READ),
    ],
)
def test_a_write_that_disagrees_with_the_store_stays_an_access(tmp_path: Path, name: str, row: int, value: int) -> None:
    recording = changed(tmp_path, name, row, value)
    assert not fused_rows(recording).any()
    program = compile_recording(recording)
    assert 11 in program.event_of.tolist()
    assert not (program.ops["flags"] & FUSED).any()


def test_rows_of_other_vcpus_between_do_not_part_an_instruction(tmp_path: Path) -> None:
    rows = [*small.ROWS[:12], (small.READ, 1, 1, 8, small.GVA, small.DATA, 0), *small.ROWS[12:]]
    recording = load_recording(small.write(tmp_path / "between.npz", small.arrays(rows)))
    assert np.flatnonzero(fused_rows(recording)).tolist() == [11]
    program = compile_recording(recording)
    # In the place of the store.
    assert [event for event, flags in zip(program.event_of, program.ops["flags"], strict=True) if flags & FUSED] == [13]


def test_audits_are_due_where_the_recorded_rows_reach_each_multiple(tiny: Recording) -> None:
    program = compile_recording(tiny)
    due = {every: program.event_of[program.audit_flags(every) == 1].tolist() for every in (1, 6, 11, 18, 19)}
    assert due[1] == program.event_of.tolist()[1:]
    assert due[6] == [6, 12, 18]
    assert due[11] == [12]  # row 11 is fused into row 12
    assert due[18] == [18]
    assert due[19] == []
    assert not program.audit_flags(None).any()


def test_the_shipped_recording_compiles_to_a_valid_program(kpti: Recording) -> None:
    program = compile_recording(kpti)
    validate(program.ops, pages=program.pages, vcpus=kpti.vcpus)
    kinds = np.bincount(program.ops["kind"], minlength=16)
    fused = int((program.ops["flags"] & FUSED > 0).sum())
    assert (len(program.ops) + fused, fused) == (kpti.events, 1553)
    assert kinds[OpKind.READ] + kinds[OpKind.WRITE] + kinds[OpKind.FETCH] + fused == 399_490
    assert not program.ops.flags.writeable
