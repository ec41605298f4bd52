"""Memory orders, as C11 and Rust name them, and what each is good for."""

from enum import Enum

__all__ = [
    "ACQ",
    "ACQ_REL",
    "F_ACQ",
    "F_ACQ_REL",
    "F_NONE",
    "F_REL",
    "F_SC",
    "NA",
    "REL",
    "RLX",
    "SCQ",
    "Fence",
    "Order",
]


class Order(Enum):
    """The order of one access; the value is its short name in the weakenings (``O_SPTE=RLX``)."""

    NA = "NA"  # not atomic: a concurrent conflicting access is a data race
    RLX = "RLX"
    ACQ = "ACQ"
    REL = "REL"
    ACQ_REL = "ACQ_REL"
    SCQ = "SCQ"

    @property
    def acquires(self) -> bool:
        """Whether a load of this order is an acquire load."""
        return self in _ACQUIRING

    @property
    def releases(self) -> bool:
        """Whether a store of this order is a release store."""
        return self in _RELEASING

    @property
    def c11(self) -> str:
        """The order as C11 spells it."""
        return f"memory_order_{_C11[self]}"


class Fence(Enum):
    """The order of a fence; the value is its short name in the weakenings (``F_CHK=F_ACQ``)."""

    NONE = "F_NONE"
    ACQ = "F_ACQ"
    REL = "F_REL"
    ACQ_REL = "F_ACQ_REL"
    SC = "F_SC"

    @property
    def acquires(self) -> bool:
        """Whether the loads before the fence become acquire loads through it."""
        return self in {Fence.ACQ, Fence.ACQ_REL, Fence.SC}

    @property
    def releases(self) -> bool:
        """Whether the stores after the fence become release stores through it."""
        return self in {Fence.REL, Fence.ACQ_REL, Fence.SC}

    @property
    def c11(self) -> str:
        """The order as C11 spells it."""
        return f"memory_order_{_C11_FENCE[self]}"


NA, RLX, ACQ, REL, ACQ_REL, SCQ = Order.NA, Order.RLX, Order.ACQ, Order.REL, Order.ACQ_REL, Order.SCQ
F_NONE, F_ACQ, F_REL, F_ACQ_REL, F_SC = Fence.NONE, Fence.ACQ, Fence.REL, Fence.ACQ_REL, Fence.SC

_ACQUIRING = frozenset({ACQ, ACQ_REL, SCQ})
_RELEASING = frozenset({REL, ACQ_REL, SCQ})
_C11 = {NA: "relaxed", RLX: "relaxed", ACQ: "acquire", REL: "release", ACQ_REL: "acq_rel", SCQ: "seq_cst"}
_C11_FENCE = {F_NONE: "relaxed", F_ACQ: "acquire", F_REL: "release", F_ACQ_REL: "acq_rel", F_SC: "seq_cst"}
