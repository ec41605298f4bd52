"""P7: the MMU notifier's sequence against a fault that looks the host page up without the mmu_lock.

The fault takes a snapshot of the sequence number, looks the page up, and under the lock installs the SPTE only if no
invalidation is in progress or was completed since.
"""

from typing import Final

from shadow_mmu.litmus.catalogue.knobs import LOCK_KNOBS, Case, Knobs, Litmus
from shadow_mmu.litmus.expr import as_expr, value
from shadow_mmu.litmus.order import ACQ, REL, RLX
from shadow_mmu.litmus.program import Program, Set, Thread, block, load, store, when

__all__ = ["INVALIDATE"]


def _invalidate(knobs: Knobs) -> Program:
    notifier = block(
        knobs.lock(),
        load("running", "in_progress"),
        store("in_progress", value("running") + 1),
        store("spte", 0),
        knobs.unlock(),
        store("host_pfn", 2, knobs.order("O_HOSTST")),
        knobs.lock(),
        None
        if knobs.on("MUT_NO_SEQ")
        else block(load("number", "seq"), store("seq", value("number") + 1, knobs.order("O_SEQST"))),
        load("running", "in_progress"),
        store("in_progress", value("running") - 1),
        knobs.unlock(),
    )
    look_up, snapshot = load("pfn", "host_pfn"), load("snapshot", "seq", knobs.order("O_SEQLD"))
    unlocked = knobs.on("MUT_CHECK_UNLOCKED")
    order = ACQ if unlocked else RLX
    test = block(
        Set("running", as_expr(0)) if knobs.on("MUT_NO_INPROGRESS") else load("running", "in_progress", order),
        # As in C the second test is not made if the first already says no.
        when(value("running").eq(0), load("now", "seq")),
    )
    fault = block(
        block(look_up, snapshot) if knobs.on("MUT_SNAP_AFTER") else block(snapshot, look_up),
        test if unlocked else None,
        knobs.lock(),
        None if unlocked else test,
        when(
            value("running").eq(0).both(value("now").eq(value("snapshot"))),
            store("spte", "pfn", REL),
        ),
        knobs.unlock(),
    )
    return Program(
        (Thread("notifier", notifier), Thread("fault", fault)),
        exists=value("spte").eq(1),
        initial={"host_pfn": 1},
    )


INVALIDATE: Final = Litmus(
    name="p7_invalidate",
    short="P7",
    family="protocol",
    title="a host page (pfn 1) is given back while a fault looks it up without the lock",
    forbids="an SPTE maps the page that was given back",
    knobs={
        "O_SEQLD": ACQ,
        "O_SEQST": REL,
        "O_HOSTST": RLX,
        "MUT_SNAP_AFTER": False,
        "MUT_CHECK_UNLOCKED": False,
        "MUT_NO_INPROGRESS": False,
        "MUT_NO_SEQ": False,
        **LOCK_KNOBS,
    },
    cases=(
        Case("", "correct"),
        Case("O_SEQLD=RLX", "snapshot Relaxed (no smp_rmb)"),
        Case("O_SEQST=RLX", "sequence store Relaxed (it is under the lock, but the snapshot is not)"),
        Case("MUT_SNAP_AFTER", "snapshot taken after the look-up"),
        Case("MUT_CHECK_UNLOCKED", "tested outside the lock"),
        Case("MUT_NO_INPROGRESS", "the count of running invalidations is not tested"),
        Case("MUT_NO_SEQ", "the sequence is never advanced"),
    ),
    build=_invalidate,
)
