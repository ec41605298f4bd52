"""P11: the whole cycle: fault, mark, store, signal, flush, sync, with two storing vCPUs and one or two that flush.

Two guest vCPUs store to entries 0 and 1 of one guest table through one write-protected SPTE. Each flusher takes one signal,
tests the root's flag without the lock, and syncs under it: write-protect, shoot down, clear, read again.
"""

from typing import Final

from shadow_mmu.litmus.catalogue.knobs import LOCK_KNOBS, Case, Knobs, Litmus
from shadow_mmu.litmus.expr import value
from shadow_mmu.litmus.order import ACQ, F_SC, REL
from shadow_mmu.litmus.program import Await, Block, Program, Thread, block, check, either, load, store, when

__all__ = ["CYCLE"]

_TRIES: Final = 2


def _write(knobs: Knobs, entry: int, tries: int) -> Block:
    """Return one guest store: a bracketed section, and if the SPTE is read-only the fault and another try."""
    if not tries:
        return ()
    sptes, marks = store("spte", 1, knobs.order("O_SPTE")), block(store("unsync", 1), store("uchild", 1))
    fault = block(
        knobs.lock(),
        load("present", "spte"),
        when(
            value("present").eq(0),
            block(sptes, marks) if knobs.on("MUT_SPTE_FIRST") else block(marks, sptes),
        ),
        knobs.unlock(),
    )
    return block(
        store(f"mode{entry}", 1),
        knobs.fence("F_ENTER"),
        load("writable", "spte", knobs.order("O_WALK")),
        when("writable", store(f"gpte{entry}", 1)),
        store(f"mode{entry}", 0, REL),
        either("writable", store(f"sig{entry}", 1, REL), block(fault, _write(knobs, entry, tries - 1))),
    )


def _sync(knobs: Knobs) -> Block:
    clear, first = store("uchild", 0, knobs.order("O_CLEAR")), knobs.on("MUT_CLEAR_FIRST")
    wait = block(Await("mode0", 0, ACQ), Await("mode1", 0, ACQ))
    protect = block(store("spte", 0), knobs.fence("F_SHOOT"), None if knobs.on("MUT_NO_WAIT") else wait)
    leaves = block(load("pte", "gpte0"), store("leaf0", "pte"), load("pte", "gpte1"), store("leaf1", "pte"))
    return block(
        None if knobs.on("MUT_NO_PROTECT") else protect,
        store("unsync", 0),
        clear if first else None,
        leaves,
        None if first else clear,
    )


def _flush(knobs: Knobs, entry: int) -> Block:
    return block(
        load("signal", f"sig{entry}", ACQ),
        when(
            "signal",
            load("marked", "uchild", knobs.order("O_CHK")),
            when("marked", knobs.lock(), load("still", "unsync"), when("still", _sync(knobs)), knobs.unlock()),
            load("used", f"leaf{entry}"),
            check(value("used").eq(1), "a stale leaf is used after a flush"),
        ),
    )


def _cycle(knobs: Knobs) -> Program:
    writers = (Thread(f"guest {entry}", _write(knobs, entry, _TRIES)) for entry in range(2))
    flushers = (Thread(f"flusher {entry}", _flush(knobs, entry)) for entry in range(knobs.number("NF")))
    return Program((*writers, *flushers))


CYCLE: Final = Litmus(
    name="p11_full",
    short="P11",
    family="protocol",
    title="the whole cycle: two guests fault, store and signal, flushers sync",
    forbids="the leaf of a signalled entry is old",
    knobs={
        "NF": (1, 2),
        "O_SPTE": REL,
        "O_WALK": ACQ,
        "O_CLEAR": REL,
        "O_CHK": ACQ,
        "F_ENTER": F_SC,
        "F_SHOOT": F_SC,
        "MUT_SPTE_FIRST": False,
        "MUT_NO_PROTECT": False,
        "MUT_NO_WAIT": False,
        "MUT_CLEAR_FIRST": False,
        **LOCK_KNOBS,
    },
    cases=(
        Case("", "correct: two writers and two flushers"),
        Case("O_SPTE=RLX", "SPTE store Relaxed"),
        Case("O_WALK=RLX", "walk's load Relaxed"),
        Case("O_CLEAR=RLX", "flag cleared Relaxed"),
        Case("O_CHK=RLX", "flag test Relaxed"),
        Case("F_ENTER=F_NONE", "fence of the guest entry removed"),
        Case("F_SHOOT=F_NONE", "fence of the shoot-down removed"),
        Case("MUT_SPTE_FIRST", "SPTE writable before the marking"),
        Case("MUT_NO_PROTECT", "no write-protect before the sync"),
        Case("MUT_NO_WAIT", "the shoot-down does not wait"),
        Case("MUT_CLEAR_FIRST", "flag cleared before the leaves are synced"),
    ),
    build=_cycle,
)
