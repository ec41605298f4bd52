"""P9 and P10: the mmu_lock itself, and the reference that a parked root keeps."""

from typing import Final

from shadow_mmu.litmus.catalogue.knobs import LOCK_KNOBS, Case, Knobs, Litmus
from shadow_mmu.litmus.expr import value
from shadow_mmu.litmus.order import ACQ, NA
from shadow_mmu.litmus.program import Free, Program, Thread, block, either, load, store

__all__ = ["LOCK", "REFCOUNT"]


def _lock(knobs: Knobs) -> Program:
    body = block(knobs.lock(), load("old", "data", NA), store("data", value("old") + 1, NA), knobs.unlock())
    return Program((Thread("CPU 0", body), Thread("CPU 1", body)), exists=value("data").ne(2))


LOCK: Final = Litmus(
    name="p9_lock",
    short="P9",
    family="protocol",
    title="the mmu_lock protects data that is not atomic",
    forbids="a data race, or an increment is lost",
    knobs=LOCK_KNOBS,
    cases=(
        Case("", "correct: taken Acquire, released Release"),
        Case("O_LOCK=RLX", "taken Relaxed"),
        Case("O_UNLOCK=RLX", "released Relaxed"),
    ),
    build=_lock,
)

_FIELDS: Final = ("uchild", "count", "invalid")


def _refcount(knobs: Knobs) -> Program:
    zapper = block(
        knobs.lock(),
        load("users", "count", NA),
        either(value("users").eq(0), block(*map(Free, _FIELDS)), store("invalid", 1, NA)),
        knobs.unlock(),
    )
    drop = block(knobs.lock(), load("users", "count", NA), store("count", value("users") - 1, NA), knobs.unlock())
    vcpu = block(drop if knobs.on("MUT_DROP_REF_WHEN_PARKED") else None, load("marked", "uchild", ACQ))
    return Program((Thread("zapper", zapper), Thread("vCPU", vcpu)), initial={"count": 1, "uchild": 0})


REFCOUNT: Final = Litmus(
    name="p10_refcount",
    short="P10",
    family="protocol",
    title="a root parked as the previous one is zapped while a vCPU switches back to it",
    forbids="the flag of a freed root is read",
    knobs={"MUT_DROP_REF_WHEN_PARKED": False, **LOCK_KNOBS},
    cases=(
        Case("", "correct: a parked root keeps its reference"),
        Case("MUT_DROP_REF_WHEN_PARKED", "the reference is dropped when the root is parked"),
    ),
    build=_refcount,
)
