"""Textbook tests of one location: every model gives coherence and atomicity, at any order."""

from typing import Final

from shadow_mmu.litmus.catalogue.knobs import Case, Knobs, Litmus, textbook
from shadow_mmu.litmus.expr import Expr, as_expr, value
from shadow_mmu.litmus.order import RLX
from shadow_mmu.litmus.program import Block, Cas, Program, Rmw, Thread, block, load, store

__all__ = ["TESTS"]

_RELAXED: Final = (Case("", "Relaxed is enough"),)


def _coherence(name: str, title: str, forbids: str, outcome: Expr, *bodies: Block) -> Litmus:
    threads = tuple(Thread(f"P{number}", body) for number, body in enumerate(bodies))
    return textbook(name, title, forbids, {}, _RELAXED, build=lambda _knobs: Program(threads, outcome))


def _increments(knobs: Knobs) -> Program:
    if knobs.on("MUT_PLAIN"):
        body = block(load("r0", "x"), store("x", value("r0") + 1))
    else:
        body = block(Rmw("r0", "x", "add", as_expr(1), RLX))
    return Program((Thread("P0", body), Thread("P1", body)), value("x").ne(2))


def _one_winner(knobs: Knobs) -> Program:
    if knobs.on("MUT_PLAIN"):
        body = block(load("r0", "x"), store("x", 1))
    else:
        body = block(Cas("r0", "x", as_expr(0), as_expr(1), RLX))
    return Program((Thread("P0", body), Thread("P1", body)), value("0:r0").eq(value("1:r0")).both(value("0:r0").eq(0)))


_READS: Final = block(load("r0", "x"), load("r1", "x"))

TESTS: Final[tuple[Litmus, ...]] = (
    _coherence(
        "CoRR",
        "two reads of one location",
        "the second read is older than the first",
        value("1:r0").eq(1).both(value("1:r1").eq(0)),
        block(store("x", 1)),
        _READS,
    ),
    _coherence(
        "CoRR2",
        "two readers of two writes",
        "they see the writes in opposite order",
        value("2:r0").eq(1).both(value("2:r1").eq(2)).both(value("3:r0").eq(2)).both(value("3:r1").eq(1)),
        block(store("x", 1)),
        block(store("x", 2)),
        _READS,
        _READS,
    ),
    _coherence(
        "CoWW", "two writes of one thread", "the first one stays", value("x").eq(1), block(store("x", 1), store("x", 2))
    ),
    _coherence(
        "CoWR",
        "a write, then a read",
        "the read returns what the write replaced",
        value("0:r0").eq(2).both(value("x").eq(1)),
        block(store("x", 1), load("r0", "x")),
        block(store("x", 2)),
    ),
    _coherence(
        "CoRW1", "a read, then a write", "the read returns the later write", value("0:r0").eq(1), block(load("r0", "x"), store("x", 1))
    ),
    _coherence(
        "CoRW2",
        "a read, then a write, against another write",
        "the write that was read replaces the one made after the read",
        value("0:r0").eq(2).both(value("x").eq(2)),
        block(load("r0", "x"), store("x", 1)),
        block(store("x", 2)),
    ),
    textbook(
        "Inc",
        "two increments",
        "one is lost",
        {"MUT_PLAIN": False},
        (Case("", "Relaxed read-modify-writes"), Case("MUT_PLAIN", "load and store")),
        build=_increments,
    ),
    textbook(
        "CAS",
        "two compare-exchanges from one value",
        "both succeed",
        {"MUT_PLAIN": False},
        (Case("", "Relaxed compare-exchanges"), Case("MUT_PLAIN", "load, test and store")),
        build=_one_winner,
    ),
)  # fmt: skip
