"""P5: an obsolete root against a fast CR3 switch: request bits and guest entry.

The zapper raises a request and waits for every vCPU in guest mode, then frees the root. A vCPU goes into guest mode, then tests
for requests. One of them must see the other.
"""

from typing import Final

from shadow_mmu.litmus.catalogue.knobs import Case, Knobs, Litmus
from shadow_mmu.litmus.expr import value
from shadow_mmu.litmus.order import ACQ, F_SC, REL, RLX
from shadow_mmu.litmus.program import Await, Free, Program, Thread, block, load, store, when

__all__ = ["REQUEST"]


def _request(knobs: Knobs) -> Program:
    free, early = Free("root"), knobs.on("MUT_FREE_BEFORE_REQ")
    zapper = block(
        free if early else None,
        None if knobs.on("MUT_NO_REQ") else store("request", 1, knobs.order("O_REQ")),
        knobs.fence("F_REQ"),
        None if knobs.on("MUT_NO_WAIT") else Await("mode", 0, knobs.order("O_WAIT")),
        None if early else free,
    )
    test = load("asked", "request", knobs.order("O_REQLD"))
    enter = block(store("mode", 1, knobs.order("O_MODE")), knobs.fence("F_ENTER"))
    vcpu = block(
        block(test, enter) if knobs.on("MUT_CHECK_BEFORE_MODE") else block(enter, test),
        when(value("asked").eq(0), load("walk", "root")),
        store("mode", 0, knobs.order("O_LEAVE")),
    )
    return Program((Thread("zapper", zapper), Thread("vCPU", vcpu)), initial={"root": 7})


REQUEST: Final = Litmus(
    name="p5_request",
    short="P5",
    family="protocol",
    title="a root is zapped and freed while a vCPU enters the guest on it",
    forbids="the freed root is used",
    knobs={
        "F_ENTER": F_SC,
        "F_REQ": F_SC,
        "O_MODE": RLX,
        "O_REQ": RLX,
        "O_REQLD": RLX,
        "O_LEAVE": REL,
        "O_WAIT": ACQ,
        "MUT_CHECK_BEFORE_MODE": False,
        "MUT_NO_REQ": False,
        "MUT_NO_WAIT": False,
        "MUT_FREE_BEFORE_REQ": False,
    },
    cases=(
        Case("", "correct"),
        Case("F_ENTER=F_NONE", "fence of the guest entry removed"),
        Case("F_REQ=F_NONE", "fence after the request removed"),
        Case("F_ENTER=F_NONE F_REQ=F_NONE O_MODE=REL O_REQ=REL O_REQLD=ACQ", "Release/Acquire instead of SeqCst"),
        Case("MUT_CHECK_BEFORE_MODE", "requests tested before the mode is set"),
        Case("MUT_NO_REQ", "no request raised"),
        Case("MUT_NO_WAIT", "the zapper does not wait"),
        Case("MUT_FREE_BEFORE_REQ", "freed before the request"),
        Case("O_LEAVE=RLX", "the guest leaves with a Relaxed store"),
        Case("O_WAIT=RLX", "the zapper waits with a Relaxed load"),
    ),
    build=_request,
)
