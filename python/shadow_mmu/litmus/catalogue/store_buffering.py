"""Textbook tests that need SeqCst: threads that must agree on one order of unrelated writes.

Release and Acquire do not help. Where a thread reads after it wrote (SB, R, RWC) x86 gets them wrong too without a fence.
"""

from typing import Final

from shadow_mmu.litmus.catalogue.knobs import Case, Knob, Knobs, Litmus, textbook
from shadow_mmu.litmus.expr import as_expr, value
from shadow_mmu.litmus.order import ACQ, F_SC, REL, RLX, SCQ
from shadow_mmu.litmus.program import Block, Program, Rmw, Thread, block, load, store

__all__ = ["TESTS"]


def _write_read(knobs: Knobs, fence: str, written: str, reg: str, read: str) -> Block:
    """Return one side of store buffering: write, fence, read."""
    return block(store(written, 1, knobs.order("O_ST")), knobs.fence(fence), load(reg, read, knobs.order("O_LD")))


def _sb(knobs: Knobs) -> Program:
    left, right = _write_read(knobs, "F_0", "x", "r0", "y"), _write_read(knobs, "F_1", "y", "r1", "x")
    return Program((Thread("P0", left), Thread("P1", right)), value("0:r0").eq(0).both(value("1:r1").eq(0)))


def _sb3(knobs: Knobs) -> Program:
    threads = (
        Thread("P0", _write_read(knobs, "F_0", "x", "r0", "y")),
        Thread("P1", _write_read(knobs, "F_1", "y", "r1", "z")),
        Thread("P2", _write_read(knobs, "F_2", "z", "r2", "x")),
    )
    return Program(threads, value("0:r0").eq(0).both(value("1:r1").eq(0)).both(value("2:r2").eq(0)))


def _sb_rmw(knobs: Knobs) -> Program:
    def side(written: str, reg: str, read: str) -> Block:
        return block(
            Rmw("old", written, "xchg", as_expr(1), knobs.order("O_RMW")), load(reg, read, knobs.order("O_LD"))
        )

    threads = (Thread("P0", side("x", "r0", "y")), Thread("P1", side("y", "r1", "x")))
    return Program(threads, value("0:r0").eq(0).both(value("1:r1").eq(0)))


def _two_writes(knobs: Knobs) -> Program:
    order = knobs.order("O_ST")
    left = block(store("x", 1, order), knobs.fence("F_0"), store("y", 2, order))
    right = block(store("y", 1, order), knobs.fence("F_1"), store("x", 2, order))
    return Program((Thread("P0", left), Thread("P1", right)), value("x").eq(1).both(value("y").eq(1)))


def _r(knobs: Knobs) -> Program:
    order = knobs.order("O_ST")
    left = block(store("x", 1, order), knobs.fence("F_0"), store("y", 1, order))
    right = block(store("y", 2, order), knobs.fence("F_1"), load("r0", "x", knobs.order("O_LD")))
    return Program((Thread("P0", left), Thread("P1", right)), value("y").eq(2).both(value("1:r0").eq(0)))


def _iriw(knobs: Knobs) -> Program:
    store_order, load_order = knobs.order("O_ST"), knobs.order("O_LD")

    def reader(fence: str, first: str, second: str) -> Block:
        return block(load("r0", first, load_order), knobs.fence(fence), load("r1", second, load_order))

    threads = (
        Thread("P0", block(store("x", 1, store_order))),
        Thread("P1", block(store("y", 1, store_order))),
        Thread("P2", reader("F_2", "x", "y")),
        Thread("P3", reader("F_3", "y", "x")),
    )
    one, other = (value(f"{cpu}:r0").eq(1).both(value(f"{cpu}:r1").eq(0)) for cpu in (2, 3))
    return Program(threads, one.both(other))


def _rwc(knobs: Knobs) -> Program:
    load_order = knobs.order("O_LD")
    threads = (
        Thread("P0", block(store("x", 1, knobs.order("O_ST")))),
        Thread("P1", block(load("r0", "x", load_order), knobs.fence("F_1"), load("r1", "y", load_order))),
        Thread("P2", _write_read(knobs, "F_2", "y", "r2", "x")),
    )
    return Program(threads, value("1:r0").eq(1).both(value("1:r1").eq(0)).both(value("2:r2").eq(0)))


def _w_rwc(knobs: Knobs) -> Program:
    threads = (
        Thread("P0", block(store("x", 1), store("y", 1, knobs.order("O_STY")))),
        Thread("P1", block(load("r0", "y", knobs.order("O_LDY")), knobs.fence("F_1"), load("r1", "z"))),
        Thread("P2", block(store("z", 1), knobs.fence("F_2"), load("r2", "x"))),
    )
    return Program(threads, value("1:r0").eq(1).both(value("1:r1").eq(0)).both(value("2:r2").eq(0)))


def _w_rwc_sc(knobs: Knobs) -> Program:
    order = knobs.order("O_SC")
    threads = (
        Thread("P0", block(store("x", 1, order), store("y", 1, knobs.order("O_STY")))),
        Thread("P1", block(load("r0", "y", ACQ), load("r1", "z", order))),
        Thread("P2", block(store("z", 1, order), load("r2", "x", order))),
    )
    return Program(threads, value("1:r0").eq(1).both(value("1:r1").eq(0)).both(value("2:r2").eq(0)))


def _z6u(knobs: Knobs) -> Program:
    order = knobs.order("O_LD")
    threads = (
        Thread("P0", block(store("x", 1, SCQ), store("y", 1, knobs.order("O_STY")))),
        Thread("P1", block(Rmw("r0", "y", "add", as_expr(1), SCQ), load("r1", "y", order))),
        Thread("P2", block(store("y", 3, SCQ), load("r2", "x", SCQ))),
    )
    return Program(threads, value("1:r0").eq(1).both(value("1:r1").eq(3)).both(value("2:r2").eq(0)))


def _fences(*names: str) -> dict[str, Knob]:
    return {**dict.fromkeys(names, F_SC), "O_ST": RLX, "O_LD": RLX}


def _no_fence(*names: str) -> str:
    return " ".join(f"{name}=F_NONE" for name in names)


_NONE_01: Final = _no_fence("F_0", "F_1")
_NONE_23: Final = _no_fence("F_2", "F_3")
_NONE_12: Final = _no_fence("F_1", "F_2")

TESTS: Final[tuple[Litmus, ...]] = (
    textbook(
        "SB",
        "store buffering: each thread writes, then reads what the other writes (Dekker)",
        "both read the old value",
        _fences("F_0", "F_1"),
        (
            Case("", "a SeqCst fence on both sides"),
            Case("F_0=F_NONE", "one fence"),
            Case(_NONE_01, "no fence"),
            Case("F_0=F_ACQ_REL F_1=F_ACQ_REL", "acquire-release fences"),
            Case(f"{_NONE_01} O_ST=REL O_LD=ACQ", "Release/Acquire"),
            Case(f"{_NONE_01} O_ST=SCQ", "only the stores SeqCst: x86 has XCHG there, C11 has nothing"),
            Case(f"{_NONE_01} O_ST=SCQ O_LD=SCQ", "SeqCst accesses"),
        ),
        build=_sb,
    ),
    textbook(
        "SB+rmws",
        "store buffering with exchanges instead of stores",
        "both read the old value",
        {"O_RMW": SCQ, "O_LD": SCQ},
        (
            Case("", "SeqCst"),
            Case("O_RMW=ACQ_REL O_LD=ACQ", "acquire-release: a full fence on x86, none in C11"),
            Case("O_RMW=RLX O_LD=RLX", "Relaxed: the same"),
        ),
        build=_sb_rmw,
    ),
    textbook(
        "3.SB",
        "store buffering around three threads",
        "all read the old value",
        _fences("F_0", "F_1", "F_2"),
        (
            Case("", "a SeqCst fence in each"),
            Case("F_2=F_NONE", "one fence removed"),
            Case(f"{_NONE_01} F_2=F_NONE O_ST=SCQ O_LD=SCQ", "SeqCst accesses"),
        ),
        build=_sb3,
    ),
    textbook(
        "2+2W",
        "two threads write two locations in opposite order",
        "each location keeps the first write of a thread",
        {"F_0": F_SC, "F_1": F_SC, "O_ST": RLX},
        (
            Case("", "a SeqCst fence on both sides"),
            Case("F_0=F_NONE", "one fence"),
            Case(_NONE_01, "no fence"),
            Case(f"{_NONE_01} O_ST=REL", "Release"),
            Case(f"{_NONE_01} O_ST=SCQ", "SeqCst stores"),
        ),
        build=_two_writes,
    ),
    textbook(
        "R",
        "two writes against a write and a read",
        "the second write of y wins and its thread reads the old x",
        _fences("F_0", "F_1"),
        (
            Case("", "a SeqCst fence on both sides"),
            Case("F_0=F_NONE", "no fence between the writes"),
            Case("F_1=F_NONE", "no fence between write and read"),
            Case(f"{_NONE_01} O_ST=REL O_LD=ACQ", "Release/Acquire"),
            Case(f"{_NONE_01} O_ST=SCQ O_LD=SCQ", "SeqCst accesses"),
        ),
        build=_r,
    ),
    textbook(
        "IRIW",
        "independent reads of independent writes",
        "two readers see two writes in opposite order",
        _fences("F_2", "F_3"),
        (
            Case("", "a SeqCst fence between the reads"),
            Case("F_2=F_NONE", "one fence"),
            Case(_NONE_23, "no fence"),
            Case(f"{_NONE_23} O_ST=REL O_LD=ACQ", "Release/Acquire"),
            Case(f"{_NONE_23} O_ST=SCQ O_LD=SCQ", "SeqCst accesses"),
        ),
        build=_iriw,
    ),
    textbook(
        "RWC",
        "read to write causality",
        "a thread that saw x misses y, and the writer of y misses x",
        _fences("F_1", "F_2"),
        (
            Case("", "a SeqCst fence in both threads that read"),
            Case("F_1=F_NONE", "no fence between the reads"),
            Case("F_2=F_NONE", "no fence between write and read"),
            Case(f"{_NONE_12} O_ST=SCQ O_LD=SCQ", "SeqCst accesses"),
        ),
        build=_rwc,
    ),
    textbook(
        "W+RWC",
        "read to write causality behind a message",
        "a thread that got the message misses z, and the writer of z misses x",
        {"O_STY": REL, "O_LDY": ACQ, "F_1": F_SC, "F_2": F_SC},
        (
            Case("", "Release/Acquire and two SeqCst fences"),
            Case("F_1=F_NONE", "no fence between the reads"),
            Case("F_2=F_NONE", "no fence between write and read"),
            Case("O_STY=RLX", "message sent Relaxed"),
            Case("O_LDY=RLX", "message received Relaxed: the fence behind it acquires"),
        ),
        build=_w_rwc,
    ),
    textbook(
        "W+RWC+sc",
        "read to write causality behind a message, with SeqCst accesses: the message orders them",
        "a thread that got the message misses z, and the writer of z misses x",
        {"O_SC": SCQ, "O_STY": REL},
        (
            Case("", "SeqCst accesses on both sides of a Release/Acquire message"),
            Case("O_STY=RLX", "message sent Relaxed"),
            Case("O_SC=RLX", "accesses Relaxed"),
        ),
        build=_w_rwc_sc,
    ),
    textbook(
        "Z6.U",
        "the test for which RC11 was made: SeqCst and weaker accesses to one location, mixed",
        "the SeqCst accesses seem to contradict happens-before",
        {"O_STY": SCQ, "O_LD": SCQ},
        (
            Case("", "all accesses SeqCst"),
            Case("O_LD=RLX", "last load Relaxed"),
            Case("O_STY=REL", "message sent Release"),
            Case("O_STY=REL O_LD=RLX", "as in the paper: POWER does it, RC11 allows it, C11 of 2011 did not"),
        ),
        build=_z6u,
    ),
)
