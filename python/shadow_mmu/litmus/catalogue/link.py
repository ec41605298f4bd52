"""P12: a page that is already unsync is linked under a new root.

The fault must sync the page, mark the new root and link, in an order in which a guest store to the page, which does not fault,
cannot slip through.
"""

from typing import Final

from shadow_mmu.litmus.catalogue.knobs import LOCK_KNOBS, Case, Knobs, Litmus
from shadow_mmu.litmus.expr import value
from shadow_mmu.litmus.order import ACQ, F_SC, REL
from shadow_mmu.litmus.program import Program, Thread, block, check, load, store, when

__all__ = ["LINK"]


def _link(knobs: Knobs) -> Program:
    mark, link = store("uchild", 1), store("link", 1, knobs.order("O_LINK"))
    sync = block(load("pte", "gpte"), store("leaf", "pte"))
    fence = knobs.fence("F_MARK")
    steps = (
        block(sync, link, mark),
        block(sync, mark, link),
        block(mark, fence, sync, link),
        block(sync, mark, link, fence, sync),
    )
    fault = block(knobs.lock(), steps[knobs.number("ORDER")], knobs.unlock())
    writer = block(store("gpte", 1), store("sig", 1, REL))
    flusher = block(
        load("signal", "sig", ACQ),
        when(
            "signal",
            knobs.fence("F_FLUSH"),
            load("marked", "uchild", ACQ),
            when("marked", knobs.lock(), load("still", "uchild"), when("still", sync), knobs.unlock()),
            load("linked", "link", knobs.order("O_WALK")),
            when(
                "linked",
                load("used", "leaf"),
                check(value("used").eq(1), "a stale leaf is reached through the new link"),
            ),
        ),
    )
    return Program((Thread("fault", fault), Thread("writer", writer), Thread("flusher", flusher)))


LINK: Final = Litmus(
    name="p12_link",
    short="P12",
    family="protocol",
    title="an already-unsync page is linked under a new root while the guest stores to it and flushes",
    forbids="a stale leaf stays reachable after a flush",
    knobs={"ORDER": (0, 1, 3, 2), "F_MARK": F_SC, "F_FLUSH": F_SC, "O_LINK": REL, "O_WALK": ACQ, **LOCK_KNOBS},
    cases=(
        Case("", "correct: mark, SeqCst fence, sync, link"),
        Case("ORDER=0", "sync, link, mark"),
        Case("ORDER=1", "sync, mark, link"),
        Case("ORDER=3", "sync, mark, link, sync again"),
        Case("F_MARK=F_NONE", "no fence between marking and sync"),
        Case("F_FLUSH=F_NONE", "no fence before the flush's test"),
        Case("O_LINK=RLX", "link Relaxed"),
        Case("O_WALK=RLX", "walk Relaxed"),
    ),
    build=_link,
)
