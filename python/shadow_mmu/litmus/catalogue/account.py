"""P2: the first shadow page of a gfn against an emulated guest write (store buffering).

The fault counts the shadow page, then reads the guest PTE; the emulator stores the guest PTE, then tests the count without the
mmu_lock. One of them must see the other.
"""

from typing import Final

from shadow_mmu.litmus.catalogue.knobs import LOCK_KNOBS, Case, Knobs, Litmus
from shadow_mmu.litmus.expr import value
from shadow_mmu.litmus.order import F_SC, RLX
from shadow_mmu.litmus.program import Program, Thread, block, load, store, when

__all__ = ["ACCOUNT"]


def _account(knobs: Knobs) -> Program:
    read = load("pte", "gpte", knobs.order("O_GPTELD"))
    count = block(store("count", 1, knobs.order("O_CNT")), knobs.fence("F_ACC"))
    fault = block(
        knobs.lock(),
        block(read, count) if knobs.on("MUT_READ_FIRST") else block(count, read),
        store("leaf", "pte"),
        knobs.unlock(),
    )
    emulator = block(
        store("gpte", 1, knobs.order("O_GPTE")),
        knobs.fence("F_EMU"),
        load("shadowed", "count", knobs.order("O_CNTLD")),
        when("shadowed", knobs.lock(), store("leaf", 1), knobs.unlock()),
    )
    return Program((Thread("fault", fault), Thread("emulator", emulator)), exists=value("leaf").ne(1))


ACCOUNT: Final = Litmus(
    name="p2_account",
    short="P2",
    family="protocol",
    title="the first shadow page of a gfn is counted while an emulated write hits the table",
    forbids="the shadow keeps the old value and nobody will fix it",
    knobs={
        "F_ACC": F_SC,
        "F_EMU": F_SC,
        "O_CNT": RLX,
        "O_CNTLD": RLX,
        "O_GPTE": RLX,
        "O_GPTELD": RLX,
        "MUT_READ_FIRST": False,
        **LOCK_KNOBS,
    },
    cases=(
        Case("", "correct: a SeqCst fence on both sides"),
        Case("F_ACC=F_NONE", "fence of the fault removed"),
        Case("F_EMU=F_NONE", "fence of the emulator removed"),
        Case(
            "F_ACC=F_NONE F_EMU=F_NONE O_CNT=REL O_CNTLD=ACQ O_GPTE=REL O_GPTELD=ACQ",
            "Release/Acquire instead of SeqCst fences",
        ),
        Case(
            "F_ACC=F_NONE F_EMU=F_NONE O_CNT=SCQ O_CNTLD=SCQ O_GPTE=SCQ O_GPTELD=SCQ",
            "SeqCst accesses and no fences (enough too)",
        ),
        Case("MUT_READ_FIRST", "guest PTE read before the count is raised"),
    ),
    build=_account,
)
