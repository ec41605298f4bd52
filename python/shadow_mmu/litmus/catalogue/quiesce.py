"""P3: write-protect and sync against a guest store in flight: the shoot-down waits.

A guest access is a bracketed section: mode in, fence, walk, store, mode out. The sync takes the write permission away, and
then waits for every section that could still use it. That is what the IPI does on a real machine.
"""

from typing import Final

from shadow_mmu.litmus.catalogue.knobs import LOCK_KNOBS, Case, Knobs, Litmus
from shadow_mmu.litmus.expr import value
from shadow_mmu.litmus.order import ACQ, F_SC, REL, RLX
from shadow_mmu.litmus.program import Await, Program, Thread, block, check, load, store, when

__all__ = ["QUIESCE"]


def _quiesce(knobs: Knobs) -> Program:
    clear = store("uchild", 0, knobs.order("O_CLEAR"))
    sync = block(load("pte", "gpte"), store("leaf", "pte"), clear)
    guest = block(
        store("mode", 1, knobs.order("O_MODE")),
        knobs.fence("F_ENTER"),
        load("writable", "spte", knobs.order("O_WALK")),
        when("writable", store("gpte", 1)),
        store("mode", 0, knobs.order("O_LEAVE")),
        when(
            "writable",
            load("marked", "uchild", knobs.order("O_CHK")),
            when(
                "marked",
                knobs.lock(),
                load("still", "uchild"),
                when("still", sync),
                knobs.unlock(),
            ),
            load("used", "leaf"),
            check(value("used").eq(1), "the sync lost the guest's store"),
        ),
    )
    early = knobs.on("MUT_CLEAR_BEFORE_PROTECT")
    syncer = block(
        knobs.lock(),
        load("marked", "uchild"),
        when(
            "marked",
            sync if early else None,
            None if knobs.on("MUT_NO_PROTECT") else store("spte", 0, knobs.order("O_RO")),
            knobs.fence("F_SHOOT"),
            None if knobs.on("MUT_NO_WAIT") else Await("mode", 0, knobs.order("O_WAIT")),
            None if early else sync,
        ),
        knobs.unlock(),
    )
    return Program((Thread("guest", guest), Thread("sync", syncer)), initial={"uchild": 1, "spte": 1})


QUIESCE: Final = Litmus(
    name="p3_quiesce",
    short="P3",
    family="protocol",
    title="write-protect, shoot down and sync while a guest store is in flight",
    forbids="the guest PTE is new, the flag clear, the leaf old",
    knobs={
        "F_ENTER": F_SC,
        "F_SHOOT": F_SC,
        "O_MODE": RLX,
        "O_LEAVE": REL,
        "O_WAIT": ACQ,
        "O_RO": RLX,
        "O_CLEAR": REL,
        "O_CHK": ACQ,
        "O_WALK": ACQ,
        "MUT_NO_WAIT": False,
        "MUT_CLEAR_BEFORE_PROTECT": False,
        "MUT_NO_PROTECT": False,
        **LOCK_KNOBS,
    },
    cases=(
        Case("", "correct"),
        Case("F_ENTER=F_NONE", "fence of the guest entry removed"),
        Case("F_SHOOT=F_NONE", "fence of the shoot-down removed"),
        Case("F_ENTER=F_NONE F_SHOOT=F_NONE O_MODE=REL O_RO=REL", "Release/Acquire on both sides instead of SeqCst"),
        Case("MUT_NO_WAIT", "the shoot-down does not wait"),
        Case("MUT_CLEAR_BEFORE_PROTECT", "synced and flag cleared before the write-protect"),
        Case("MUT_NO_PROTECT", "no write-protect at all"),
        Case("O_LEAVE=RLX", "the guest leaves with a Relaxed store"),
        Case("O_WAIT=RLX", "the shoot-down waits with a Relaxed load"),
        Case("O_CLEAR=RLX", "flag cleared Relaxed"),
        Case("O_CHK=RLX", "flag test Relaxed"),
    ),
    build=_quiesce,
)
