"""Programs are packed, and what no machine can run is refused with its place."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from shadow_mmu import OpFlag, OpKind, ProgramError, _native, ops
from shadow_mmu.model.ops import OP_RECORD
from shadow_mmu.ops import OP, OUTCOME, TRACE, Op, check_pages, program, validate

PAGES = np.zeros((2, 512), "<u8")


def test_records_have_the_size_that_the_core_reads() -> None:
    assert (OP.itemsize, OUTCOME.itemsize, TRACE.itemsize) == (32, 16, 24)
    assert (_native.OP_BYTES, _native.OUTCOME_BYTES, _native.TRACE_BYTES) == (32, 16, 24)
    assert OP_RECORD.size == 32


def test_core_model_and_numpy_agree_on_the_layout() -> None:
    op = Op(OpKind.STORE, OpFlag.USER | OpFlag.CHECK, 0x102, 8, 0x1122334455667788, 2**64 - 1, 0x99)
    assert program([op]).tobytes() == OP_RECORD.pack(*op)


@pytest.mark.parametrize(
    ("made", "row"),
    [
        (ops.write_cr0(5, vcpu=1, host=True), (OpKind.WRITE_CR0, OpFlag.HOST, 1, 0, 5, 0, 0)),
        (ops.write_cr3(5), (OpKind.WRITE_CR3, 0, 0, 0, 5, 0, 0)),
        (ops.write_cr4(5), (OpKind.WRITE_CR4, 0, 0, 0, 5, 0, 0)),
        (ops.write_efer(5, host=True), (OpKind.WRITE_EFER, OpFlag.HOST, 0, 0, 5, 0, 0)),
        (ops.invlpg(5, vcpu=2), (OpKind.INVLPG, 0, 2, 0, 5, 0, 0)),
        (ops.access(5), (OpKind.READ, 0, 0, 0, 5, 0, 0)),
        (ops.access(5, "write", user=True, expect=0), (OpKind.WRITE, OpFlag.USER | OpFlag.CHECK, 0, 0, 5, 0, 0)),
        (ops.access(5, "fetch", ac=True, implicit=True), (OpKind.FETCH, OpFlag.AC | OpFlag.IMPLICIT, 0, 0, 5, 0, 0)),
        (ops.load(5, 2, user=True), (OpKind.LOAD, OpFlag.USER, 0, 2, 5, 0, 0)),
        (ops.store(5, 6, 4, ac=True), (OpKind.STORE, OpFlag.AC, 0, 4, 5, 6, 0)),
        (ops.host_store(8, 6), (OpKind.HOST_STORE, 0, 0, 0, 8, 6, 0)),
        (ops.host_page(4096, 3), (OpKind.HOST_PAGE, 0, 0, 3, 4096, 0, 0)),
        (ops.sync_tlb(vcpu=1), (OpKind.SYNC_TLB, 0, 1, 0, 0, 0, 0)),
        (ops.work(9), (OpKind.WORK, 0, 0, 0, 0, 9, 0)),
        (ops.zap_gfn(9), (OpKind.ZAP_GFN, 0, 0, 0, 9, 0, 0)),
    ],
)
def test_builders_fill_the_fields(made: Op, row: tuple[int, ...]) -> None:
    assert tuple(made) == row
    assert program([made]).tolist() == [row]


def test_a_field_that_does_not_fit_names_its_operation() -> None:
    with pytest.raises(ProgramError, match=r"operation 1: Op\(INVLPG"):
        program([ops.sync_tlb(), ops.invlpg(1 << 64)])
    with pytest.raises(ProgramError, match="operation 0"):
        program([ops.invlpg(-1)])
    with pytest.raises(ProgramError, match="no access kind 'execute'"):
        ops.access(0, "execute")  # type: ignore[arg-type]


def test_an_operation_shows_what_is_not_zero() -> None:
    assert repr(ops.store(0x10, 2, user=True)) == "Op(STORE, flags=USER, aux=0x8, addr=0x10, value=0x2)"
    assert repr(Op(99)) == "Op(kind=99)"


def rows(*found: Op) -> npt.NDArray[np.void]:
    return program(found)


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        ([ops.sync_tlb()], "must be a numpy array"),
        (b"\0" * 32, "must be a numpy array"),
        (np.zeros(3, "<u8"), "has dtype"),
        (np.zeros(3, OP.newbyteorder(">")), "has dtype"),
        (np.zeros((1, 3), OP), r"shape \(1, 3\)"),
        (np.zeros(6, OP)[::2], "not contiguous"),
        (rows(Op(17)), "operation 0: kind is 0x11, expected 0..16"),
        (rows(Op(0), Op(0, 64)), "operation 1: flags is 0x40"),
        (rows(Op(OpKind.LOAD, aux=3)), "operation 0: aux is 0x3, expected an operand size"),
        (rows(Op(OpKind.STORE, aux=0)), "aux is 0x0"),
        (rows(Op(OpKind.STORE, aux=2**32 - 1)), "aux"),
        (rows(ops.load(0xFFD, 4)), "addr is 0xffd, expected an operand within one 4 KiB page"),
        (rows(ops.host_store(4, 0)), "addr is 0x4, expected an 8-byte aligned gpa"),
        (rows(ops.host_page(8, 0)), "addr is 0x8, expected a page-aligned gpa"),
        (rows(ops.host_page(0, 2)), "aux is 0x2, expected a row below 2"),
        (rows(ops.sync_tlb(vcpu=3)), "vcpu is 0x3, expected a vCPU below 2"),
    ],
)
def test_what_no_machine_can_run_is_refused(array: object, expected: str) -> None:
    with pytest.raises(ProgramError, match=expected):
        validate(array, pages=PAGES, vcpus=2)


def test_what_a_machine_can_run_passes() -> None:
    good = rows(
        ops.load(0xFFC, 4), ops.store(0x1FF8, 1), ops.host_page(0x1000, 1, vcpu=1), ops.host_store(8, 1), Op(15)
    )
    assert validate(good, pages=PAGES, vcpus=2) is good
    assert len(validate(np.zeros(0, OP))) == 0


@pytest.mark.parametrize(
    "pages",
    [
        None,
        [[0] * 512],
        np.zeros((1, 511), "<u8"),
        np.zeros(512, "<u8"),
        np.zeros((1, 512), ">u8"),
        np.zeros((1, 512), "<i8"),
        np.zeros((4, 512), "<u8")[::2],
    ],
)
def test_pages_of_another_layout_are_refused(pages: Any) -> None:  # noqa: ANN401  nonsense of any type
    with pytest.raises(ProgramError, match="pages"):
        check_pages(pages)
