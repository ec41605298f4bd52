"""P6: a lock-free walk of the shadow tables against freeing a shadow page (a grace period)."""

from typing import Final

from shadow_mmu.litmus.catalogue.knobs import Case, Knobs, Litmus
from shadow_mmu.litmus.expr import value
from shadow_mmu.litmus.order import ACQ, F_SC, REL
from shadow_mmu.litmus.program import Alloc, Await, Free, Program, Thread, block, check, load, store, when

__all__ = ["WALK"]


def _walk(knobs: Knobs) -> Program:
    walker = block(
        store("mode", 1),
        knobs.fence("F_BEGIN"),
        load("linked", "parent", knobs.order("O_WALK")),
        when("linked", load("entry", "child"), check(value("entry").eq(7), "the child page is not initialised")),
        store("mode", 0, knobs.order("O_END")),
    )
    mapper = block(
        Alloc("child"),
        store("child", 7),
        store("parent", 1, knobs.order("O_PUBLISH")),
        store("parent", 0),
        knobs.fence("F_FLUSH"),
        None if knobs.on("MUT_NO_WAIT") else Await("mode", 0, knobs.order("O_WAIT")),
        Free("child"),
    )
    return Program((Thread("walker", walker), Thread("mapper", mapper)))


WALK: Final = Litmus(
    name="p6_walk",
    short="P6",
    family="protocol",
    title="a walk without the lock while a shadow page is linked, unlinked and freed",
    forbids="a page is used before it is initialised or after it was freed",
    knobs={
        "F_BEGIN": F_SC,
        "F_FLUSH": F_SC,
        "O_END": REL,
        "O_WAIT": ACQ,
        "O_PUBLISH": REL,
        "O_WALK": ACQ,
        "MUT_NO_WAIT": False,
    },
    cases=(
        Case("", "correct"),
        Case("F_BEGIN=F_NONE", "fence at the begin of the walk removed"),
        Case("F_FLUSH=F_NONE", "fence of the flush removed"),
        Case("O_END=RLX", "the walk ends with a Relaxed store"),
        Case("MUT_NO_WAIT", "the freeing does not wait"),
        Case("O_PUBLISH=RLX", "child linked with a Relaxed store"),
        Case("O_WALK=RLX", "walk's load Relaxed (a dependency only)"),
    ),
    build=_walk,
)
