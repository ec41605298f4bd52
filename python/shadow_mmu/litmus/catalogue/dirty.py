"""P8 and P8b: the fast page fault and the dirty harvest, both on one SPTE without the fault's lock."""

from typing import Final

from shadow_mmu.litmus.catalogue.knobs import LOCK_KNOBS, Case, Knobs, Litmus
from shadow_mmu.litmus.expr import as_expr, value
from shadow_mmu.litmus.order import ACQ, F_SC, REL, RLX
from shadow_mmu.litmus.program import Await, Block, Cas, Program, Rmw, Thread, block, load, store, when

__all__ = ["DIRTY", "FASTPF"]

_W: Final = 1
_MMU_WRITABLE: Final = 2
_D: Final = 2


def _fastpf(knobs: Knobs) -> Program:
    writable = value("old") | _W
    fast = block(
        load("old", "spte"),
        when(
            value("old") & _MMU_WRITABLE,
            store("spte", writable)
            if knobs.on("MUT_PLAIN_STORE")
            else Cas("found", "spte", value("old"), writable, RLX),
        ),
    )
    protect = block(knobs.lock(), Rmw("before", "spte", "and", as_expr(~(_W | _MMU_WRITABLE)), RLX), knobs.unlock())
    # Both bits are taken away whatever the fast path did; W without MMU-writable would be the protection lost.
    return Program(
        (Thread("fast fault", fast), Thread("protect", protect)),
        exists=value("spte").ne(0),
        initial={"spte": _MMU_WRITABLE},
    )


FASTPF: Final = Litmus(
    name="p8_fastpf",
    short="P8",
    family="protocol",
    title="a fast page fault sets W without the lock while the page is write-protected",
    forbids="W or MMU-writable stays set: the protection is lost",
    knobs={"MUT_PLAIN_STORE": False, **LOCK_KNOBS},
    cases=(
        Case("", "correct: compare-exchange against the value that was judged"),
        Case("MUT_PLAIN_STORE", "plain store"),
    ),
    build=_fastpf,
)


def _dirty(knobs: Knobs) -> Program:
    guest = block(
        store("mode", 1),
        knobs.fence("F_ENTER"),
        load("old", "spte"),
        when(value("old") & _W, _dirtied(knobs)),
        store("mode", 0, knobs.order("O_LEAVE")),
    )
    copy = block(load("page", "data"), store("copy", "page"))
    keep = as_expr(~(_W | _D))
    harvester = block(
        knobs.lock(),
        copy if knobs.on("MUT_COPY_FIRST") else None,
        block(load("taken", "spte"), store("spte", value("taken") & keep))
        if knobs.on("MUT_PLAIN_HARVEST")
        else Rmw("taken", "spte", "and", keep, RLX),
        knobs.fence("F_SHOOT"),
        None if knobs.on("MUT_NO_WAIT") else Await("mode", 0, knobs.order("O_WAIT")),
        when(value("taken") & _D, store("bitmap", 1)),
        None if knobs.on("MUT_COPY_FIRST") else block(load("dirty", "bitmap"), when("dirty", copy)),
        knobs.unlock(),
    )
    lost = value("data").ne(value("copy")).both((value("spte") & _D).eq(0))
    return Program(
        (Thread("guest", guest), Thread("harvester", harvester)),
        exists=lost.either((value("spte") & _W).ne(0)),
        initial={"spte": _W},
    )


def _dirtied(knobs: Knobs) -> Block:
    """Return what the hardware walk does before the store: set D, in one step with the test of W."""
    marked, write_data = value("old") | _D, block(store("data", 1))
    if knobs.on("MUT_NO_D"):
        return write_data
    if knobs.on("MUT_PLAIN_D"):
        return block(store("spte", marked), write_data)
    return block(
        Cas("found", "spte", value("old"), marked, RLX),
        when(value("found").eq(value("old")), write_data),
    )


DIRTY: Final = Litmus(
    name="p8b_dirty",
    short="P8b",
    family="protocol",
    title="the dirty bits are harvested and the page copied while a guest store is in flight",
    forbids="the data is new, the copy old, and neither bitmap nor SPTE remembers; or W stays set",
    knobs={
        "F_ENTER": F_SC,
        "F_SHOOT": F_SC,
        "O_LEAVE": REL,
        "O_WAIT": ACQ,
        "MUT_NO_D": False,
        "MUT_PLAIN_D": False,
        "MUT_COPY_FIRST": False,
        "MUT_PLAIN_HARVEST": False,
        "MUT_NO_WAIT": False,
        **LOCK_KNOBS,
    },
    cases=(
        Case("", "correct: one atomic harvest, D before the data, then wait"),
        Case("MUT_PLAIN_HARVEST", "harvest by load and store"),
        Case("MUT_PLAIN_D", "the walk sets D by load and store"),
        Case("MUT_NO_D", "the walk does not set D"),
        Case("MUT_COPY_FIRST", "page copied before the harvest"),
        Case("MUT_NO_WAIT", "the harvest does not wait"),
        Case("F_ENTER=F_NONE", "fence of the guest entry removed"),
        Case("F_SHOOT=F_NONE", "fence of the shoot-down removed"),
        Case("O_LEAVE=RLX", "the guest leaves with a Relaxed store"),
        Case("O_WAIT=RLX", "the harvest waits with a Relaxed load"),
    ),
    build=_dirty,
)
