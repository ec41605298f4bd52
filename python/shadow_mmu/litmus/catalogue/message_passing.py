"""Textbook tests of causality: what is known to one thread must come along with what tells another of it.

Release and Acquire are enough for all of these but load buffering, which RC11 forbids at any order. x86 never gets them wrong.
"""

from typing import Final

from shadow_mmu.litmus.catalogue.knobs import Case, Knobs, Litmus, textbook
from shadow_mmu.litmus.expr import as_expr, value
from shadow_mmu.litmus.order import ACQ, F_NONE, REL, RLX
from shadow_mmu.litmus.program import Await, Program, Rmw, Thread, block, load, store, when

__all__ = ["TESTS"]


def _mp(knobs: Knobs) -> Program:
    sender = block(store("x", 1), knobs.fence("F_ST"), store("y", 1, knobs.order("O_ST")))
    receiver = block(load("r0", "y", knobs.order("O_LD")), knobs.fence("F_LD"), load("r1", "x"))
    return Program((Thread("P0", sender), Thread("P1", receiver)), value("1:r0").eq(1).both(value("1:r1").eq(0)))


def _mp_await(knobs: Knobs) -> Program:
    sender = block(store("x", 1), store("y", 1, knobs.order("O_ST")))
    receiver = block(Await("y", 1, knobs.order("O_LD")), load("r1", "x"))
    return Program((Thread("P0", sender), Thread("P1", receiver)), value("1:r1").eq(0))


def _mp_sequence(knobs: Knobs) -> Program:
    sender = block(store("x", 1), store("y", 1, REL))
    if knobs.on("MUT_PLAIN"):
        between = block(load("r0", "y"), when(value("r0").eq(1), store("y", 2)))
    else:
        between = block(Rmw("r0", "y", "add", as_expr(1), knobs.order("O_RMW")))
    receiver = block(load("r1", "y", knobs.order("O_LD")), load("r2", "x"))
    outcome = value("1:r0").eq(1).both(value("2:r1").eq(2)).both(value("2:r2").eq(0))
    return Program((Thread("P0", sender), Thread("P1", between), Thread("P2", receiver)), outcome)


def _s(knobs: Knobs) -> Program:
    left = block(store("x", 2), store("y", 1, knobs.order("O_ST")))
    right = block(load("r0", "y", knobs.order("O_LD")), store("x", 1))
    return Program((Thread("P0", left), Thread("P1", right)), value("1:r0").eq(1).both(value("x").eq(2)))


def _lb(knobs: Knobs) -> Program:
    left = block(load("r0", "x", knobs.order("O_LD")), store("y", 1, knobs.order("O_ST")))
    right = block(load("r1", "y", knobs.order("O_LD")), store("x", 1, knobs.order("O_ST")))
    return Program((Thread("P0", left), Thread("P1", right)), value("0:r0").eq(1).both(value("1:r1").eq(1)))


def _wrc(knobs: Knobs) -> Program:
    threads = (
        Thread("P0", block(store("x", 1))),
        Thread("P1", block(load("r0", "x"), store("y", 1, knobs.order("O_ST")))),
        Thread("P2", block(load("r1", "y", knobs.order("O_LD")), load("r2", "x"))),
    )
    return Program(threads, value("1:r0").eq(1).both(value("2:r1").eq(1)).both(value("2:r2").eq(0)))


def _isa2(knobs: Knobs) -> Program:
    threads = (
        Thread("P0", block(store("x", 1), store("y", 1, knobs.order("O_STY")))),
        Thread("P1", block(load("r0", "y", knobs.order("O_LDY")), store("z", 1, knobs.order("O_STZ")))),
        Thread("P2", block(load("r1", "z", knobs.order("O_LDZ")), load("r2", "x"))),
    )
    return Program(threads, value("1:r0").eq(1).both(value("2:r1").eq(1)).both(value("2:r2").eq(0)))


_PAIR: Final = {"O_ST": REL, "O_LD": ACQ}
_PAIR_CASES: Final = (
    Case("", "Release/Acquire"),
    Case("O_ST=RLX", "store Relaxed"),
    Case("O_LD=RLX", "load Relaxed"),
    Case("O_ST=RLX O_LD=RLX", "both Relaxed"),
)

TESTS: Final[tuple[Litmus, ...]] = (
    textbook(
        "MP",
        "message passing: data, then a flag",
        "the flag is seen, the data are not",
        {**_PAIR, "F_ST": F_NONE, "F_LD": F_NONE},
        (
            *_PAIR_CASES,
            Case("O_ST=RLX O_LD=RLX F_ST=F_REL F_LD=F_ACQ", "fences instead of orders"),
            Case("O_ST=RLX O_LD=RLX F_ST=F_REL", "only the release fence"),
            Case("O_ST=RLX O_LD=RLX F_LD=F_ACQ", "only the acquire fence"),
        ),
        build=_mp,
    ),
    textbook("MP+await", "message passing; the receiver spins on the flag", "the data are not seen", _PAIR, _PAIR_CASES, build=_mp_await),
    textbook(
        "MP+rs",
        "message passing through a release sequence: a relaxed read-modify-write hands the message on",
        "the flag came through the second thread, the data did not",
        {"O_RMW": RLX, "O_LD": ACQ, "MUT_PLAIN": False},
        (
            Case("", "a Relaxed read-modify-write continues the sequence"),
            Case("MUT_PLAIN", "a load and a store do not"),
            Case("O_LD=RLX", "receiving load Relaxed"),
        ),
        build=_mp_sequence,
    ),
    textbook("S", "a store that comes after a message from an earlier store", "the later store is overwritten by the earlier", _PAIR, _PAIR_CASES, build=_s),
    textbook(
        "LB",
        "load buffering: each thread reads, then writes what the other reads",
        "both read what the other writes later",
        {"O_LD": RLX, "O_ST": RLX},
        (Case("", "Relaxed (C11 allows it, RC11 does not)"), Case("O_LD=ACQ", "loads Acquire"), Case("O_ST=REL", "stores Release")),
        build=_lb,
    ),
    textbook("WRC", "write to read causality: the message comes from one who only read the data", "the message is seen, the data are not", _PAIR, _PAIR_CASES, build=_wrc),
    textbook(
        "ISA2",
        "message passing through a third thread",
        "the second message is seen, the data are not",
        {"O_STY": REL, "O_LDY": ACQ, "O_STZ": REL, "O_LDZ": ACQ},
        (
            Case("", "Release/Acquire at both steps"),
            Case("O_STY=RLX", "first store Relaxed"),
            Case("O_LDY=RLX", "first load Relaxed"),
            Case("O_STZ=RLX", "second store Relaxed"),
            Case("O_LDZ=RLX", "second load Relaxed"),
        ),
        build=_isa2,
    ),
)  # fmt: skip
