"""P4: the other direction of the root's flag: another vCPU synced and clears it.

Who sees the flag clear relies on the leaves that were synced before. P1 needs nothing of the flag test, this does.
"""

from typing import Final

from shadow_mmu.litmus.catalogue.knobs import LOCK_KNOBS, Case, Knobs, Litmus
from shadow_mmu.litmus.expr import value
from shadow_mmu.litmus.order import ACQ, F_NONE, REL
from shadow_mmu.litmus.program import Program, Thread, block, check, load, store, when

__all__ = ["CLEAN"]


def _clean(knobs: Knobs) -> Program:
    clear = store("uchild", 0, knobs.order("O_CLEAR"))
    leaves = block(load("pte", "gpte"), store("leaf", "pte"))
    sync = block(
        knobs.lock(),
        load("still", "uchild"),
        when("still", block(clear, leaves) if knobs.on("MUT_CLEAR_FIRST") else block(leaves, clear)),
        knobs.unlock(),
    )
    switch = block(
        knobs.fence("F_BEFORE"),
        load("marked", "uchild", knobs.order("O_CHK")),
        when("marked", sync),
        knobs.fence("F_AFTER"),
        load("used", "leaf"),
        check(value("used").eq(1), "the flag was clear and the leaf is old"),
    )
    return Program((Thread("sync", sync), Thread("switch", switch)), initial={"uchild": 1, "gpte": 1})


CLEAN: Final = Litmus(
    name="p4_clean",
    short="P4",
    family="protocol",
    title="one vCPU syncs and clears the root's flag, another tests the flag without the lock",
    forbids="the flag is seen clear and the old leaf is used",
    knobs={
        "O_CLEAR": REL,
        "O_CHK": ACQ,
        "F_BEFORE": F_NONE,
        "F_AFTER": F_NONE,
        "MUT_CLEAR_FIRST": False,
        **LOCK_KNOBS,
    },
    cases=(
        Case("", "correct: clear Release, test Acquire"),
        Case("O_CLEAR=RLX", "clear Relaxed"),
        Case("O_CHK=RLX", "test Relaxed"),
        Case("O_CHK=RLX F_BEFORE=F_ACQ", "test Relaxed, acquire fence before it (the place of the patch's smp_rmb)"),
        Case("O_CHK=RLX F_AFTER=F_ACQ", "test Relaxed, acquire fence after it (enough)"),
        Case("MUT_CLEAR_FIRST", "flag cleared before the leaf is synced"),
    ),
    build=_clean,
)
