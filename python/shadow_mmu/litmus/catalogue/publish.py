"""P1, P1b, P1c: publication of an unsync page through the hardware's own walk.

A page of a guest's page table becomes guest-writable. Before the SPTE that lets the guest write goes live, the page is marked
unsync and every root above it "has unsync children"; a CR3 switch tests the root's mark without the mmu_lock.
"""

from typing import Final

from shadow_mmu.litmus.catalogue.knobs import LOCK_KNOBS, Case, Knobs, Litmus
from shadow_mmu.litmus.expr import value
from shadow_mmu.litmus.order import ACQ, F_NONE, REL, RLX
from shadow_mmu.litmus.program import Block, Program, Stmt, Thread, block, check, load, lock, store, unlock, when

__all__ = ["PUBLISH2", "PUBLISH3", "SKIP"]

_STALE: Final = "the guest uses a shadow leaf older than the guest PTE that it knows of"


def sync_if_unsync(knobs: Knobs) -> Block:
    """Return the locked sync of the flush: read the guest PTE again, then clear the marks."""
    return block(
        knobs.lock(),
        load("still", "unsync"),
        when("still", load("pte", "gpte"), store("leaf", "pte"), store("unsync", 0), store("uchild", 0, REL)),
        knobs.unlock(),
    )


def _use_leaf() -> Block:
    return block(load("used", "leaf"), check(value("used").eq(1), _STALE))


def _publish3(knobs: Knobs) -> Program:
    sptes = store("spte", 1, knobs.order("O_SPTE"))
    parents = store("uchild", 1, knobs.order("O_FLAG"))
    late, never = knobs.on("MUT_PARENTS_LATE"), knobs.on("MUT_NO_PARENTS")
    first = knobs.on("MUT_SPTE_FIRST")
    host = block(
        knobs.lock(),
        sptes if first else None,
        store("unsync", 1, knobs.order("O_FLAG")),
        None if late or never else parents,
        knobs.fence("F_PUB"),
        None if first else sptes,
        parents if late else None,
        knobs.unlock(),
    )
    guest_a = block(
        load("writable", "spte", knobs.order("O_WALK")),
        when("writable", knobs.fence("F_WALK"), store("gpte", 1), store("sig", 1, knobs.order("O_SIGST"))),
    )
    test = load("marked", "uchild", knobs.order("O_CHK"))
    early = knobs.on("MUT_CHECK_EARLY")
    guest_b = block(
        test if early else None,
        load("signal", "sig", knobs.order("O_SIGLD")),
        when(
            "signal",
            knobs.fence("F_CHK"),
            None if early else test,
            when("marked", sync_if_unsync(knobs)),
            _use_leaf(),
        ),
    )
    return Program((Thread("host", host), Thread("guest A", guest_a), Thread("guest B", guest_b)))


PUBLISH3: Final = Litmus(
    name="p1_publish3",
    short="P1",
    family="protocol",
    title="publication on three CPUs: the host marks and makes the SPTE writable, guest A stores and signals, guest B flushes",
    forbids="guest B has the signal and uses the old leaf",
    knobs={
        "O_FLAG": RLX,
        "F_PUB": F_NONE,
        "O_SPTE": REL,
        "O_WALK": ACQ,
        "O_SIGST": REL,
        "O_SIGLD": ACQ,
        "F_WALK": F_NONE,
        "F_CHK": F_NONE,
        "O_CHK": ACQ,
        "MUT_SPTE_FIRST": False,
        "MUT_PARENTS_LATE": False,
        "MUT_NO_PARENTS": False,
        "MUT_CHECK_EARLY": False,
        **LOCK_KNOBS,
    },
    cases=(
        Case("", "correct: SPTE store Release, walk Acquire, signal Release/Acquire"),
        Case("O_CHK=RLX", "flag test Relaxed (enough here; not for P4)"),
        Case("O_SPTE=RLX", "SPTE store Relaxed"),
        Case("O_FLAG=REL O_SPTE=RLX", "Release on the flag stores instead of the SPTE store"),
        Case("O_FLAG=SCQ O_SPTE=RLX", "SeqCst on the flag stores instead of Release on the SPTE store"),
        Case("MUT_SPTE_FIRST", "SPTE made writable before the marking"),
        Case("MUT_PARENTS_LATE", "parents marked after the SPTE store"),
        Case("MUT_NO_PARENTS", "parents never marked, only the leaf page"),
        Case("O_WALK=RLX", "walk's SPTE load Relaxed"),
        Case("O_SIGST=RLX", "guest's signalling store Relaxed"),
        Case("O_SIGLD=RLX", "guest's signal load Relaxed"),
        Case("O_SIGLD=RLX O_CHK=ACQ", "guest's signal load Relaxed although the flag test is Acquire"),
        Case("O_SIGLD=RLX F_CHK=F_ACQ", "signal load Relaxed, acquire fence before the flag test (smp_rmb)"),
        Case("MUT_CHECK_EARLY", "flag tested before the signal is read"),
        Case(
            "F_PUB=F_REL O_SPTE=RLX O_WALK=RLX F_CHK=F_ACQ O_CHK=RLX",
            "the patch's own barriers (smp_wmb, smp_rmb) and nothing else: they rely on TSO",
        ),
        Case(
            "F_PUB=F_REL O_SPTE=RLX O_WALK=RLX F_WALK=F_ACQ F_CHK=F_ACQ O_CHK=RLX",
            "the patch's own barriers and an acquire fence after the walk",
        ),
    ),
    build=_publish3,
)


def _publish2(knobs: Knobs) -> Program:
    host = block(
        knobs.lock(),
        store("unsync", 1),
        store("uchild", 1),
        knobs.fence("F_PUB"),
        store("spte", 1, knobs.order("O_SPTE")),
        knobs.unlock(),
    )
    guest = block(
        load("writable", "spte", knobs.order("O_WALK")),
        when(
            "writable",
            store("gpte", 1),
            knobs.fence("F_CHK"),
            load("marked", "uchild", knobs.order("O_CHK")),
            when("marked", sync_if_unsync(knobs)),
            _use_leaf(),
        ),
    )
    return Program((Thread("host", host), Thread("guest", guest)))


PUBLISH2: Final = Litmus(
    name="p1b_publish2",
    short="P1b",
    family="protocol",
    title="publication on two CPUs: the vCPU that stores the guest PTE is the one that flushes",
    forbids="it skips the sync and uses the old leaf",
    knobs={"F_PUB": F_NONE, "O_SPTE": REL, "O_WALK": ACQ, "F_CHK": F_NONE, "O_CHK": ACQ, **LOCK_KNOBS},
    cases=(
        Case("", "correct: SPTE store Release, walk Acquire"),
        Case(
            "F_PUB=F_REL O_SPTE=RLX O_WALK=RLX F_CHK=F_ACQ O_CHK=RLX",
            "the patch's own barriers: smp_wmb and smp_rmb, all accesses Relaxed",
        ),
        Case("O_SPTE=RLX F_CHK=F_ACQ", "no smp_wmb"),
        Case("F_PUB=F_REL O_SPTE=RLX O_WALK=RLX O_CHK=RLX", "no smp_rmb"),
        Case("F_PUB=F_REL O_SPTE=RLX O_WALK=RLX O_CHK=ACQ", "no smp_rmb, but the flag test Acquire (the wrong load)"),
    ),
    build=_publish2,
)


def _skip(knobs: Knobs) -> Program:
    leaf: Stmt = store("unsync", 1, knobs.order("O_MARK"))
    parents: Stmt = store("uchild", 1)
    mark = block(leaf, parents) if knobs.on("LEAF_FIRST") else block(parents, leaf)
    locked = block(
        lock("unsync_lock", knobs.order("O_LOCK")),
        load("done", "unsync"),
        when(value("done").eq(0), mark),
        unlock("unsync_lock", knobs.order("O_UNLOCK")),
    )
    short = block(load("skip", "unsync", knobs.order("O_SKIP")), when(value("skip").eq(0), locked))

    def fault(spte: str) -> Block:
        return block(
            locked if knobs.on("NO_SHORTCUT") else short,
            knobs.fence("F_PUB"),
            store(spte, 1, knobs.order("O_SPTE")),
        )

    guest = block(
        load("writable", "spte_b", knobs.order("O_WALK")),
        when(
            "writable",
            knobs.fence("F_CHK"),
            load("marked", "uchild"),
            check("marked", "the flush skips the sync although the SPTE is writable"),
        ),
    )
    return Program((Thread("fault A", fault("spte_a")), Thread("fault B", fault("spte_b")), Thread("guest C", guest)))


SKIP: Final = Litmus(
    name="p1c_skip",
    short="P1c",
    family="protocol",
    title="two faults mark one page; the second takes the short cut 'already unsync' without the lock",
    forbids="guest C writes through the second SPTE and finds the root's flag clear",
    knobs={
        "O_SKIP": ACQ,
        "O_MARK": REL,
        "O_SPTE": REL,
        "F_PUB": F_NONE,
        "O_WALK": ACQ,
        "F_CHK": F_NONE,
        "LEAF_FIRST": False,
        "NO_SHORTCUT": False,
        **LOCK_KNOBS,
    },
    cases=(
        Case("", "correct: parents first, leaf flag Release, short cut Acquire"),
        Case("NO_SHORTCUT LEAF_FIRST O_MARK=RLX", "correct: no short cut, the lock always; then leaf first will do"),
        Case("O_SKIP=RLX", "short cut Relaxed"),
        Case("O_MARK=RLX", "leaf flag store Relaxed"),
        Case("O_SKIP=RLX O_MARK=RLX F_PUB=F_REL O_SPTE=RLX", "short cut Relaxed, fence before the SPTE (smp_wmb)"),
        Case("LEAF_FIRST", "leaf flag set before the parents', with the short cut"),
        Case(
            "LEAF_FIRST O_SKIP=SCQ O_MARK=SCQ O_SPTE=SCQ O_WALK=SCQ F_PUB=F_SC F_CHK=F_SC",
            "the same with SeqCst everywhere: no order repairs it",
        ),
    ),
    build=_skip,
)
