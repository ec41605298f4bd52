"""Data races and lifetimes: accesses that are not atomic, locations that are allocated and freed.

Allocating and freeing conflict with every access to the location. An access that did not happen after the allocation or before
the freeing is the bug, whatever value it would see.
"""

from shadow_mmu.litmus.graph import INITIAL, Event, Graph
from shadow_mmu.litmus.models.base import Model
from shadow_mmu.litmus.order import Order

__all__ = ["race"]


def race(graph: Graph, event: Event, model: Model) -> str | None:
    """Return what is wrong between an event that was just added and those before it, ``None`` if nothing is."""
    if event.kind == "F" or event.waits:
        return None
    before = model.before(event)
    for other in graph.events.values():
        if other.location != event.location or other.id == event.id or other.thread == INITIAL or other.waits:
            continue
        ordered = bool(before >> other.id & 1)
        if "free" in {event.life, other.life}:
            if ordered and other.life == "free":
                return f"{event.location} is used after it was freed"
            if not ordered and other.thread != event.thread:
                return f"{event.location} is freed while it is used"
        elif other.thread != event.thread and not ordered and _conflict(event, other):
            if "alloc" in {event.life, other.life}:
                return f"{event.location} is used before it is allocated"
            return f"data race on {event.location}"
    return None


def _conflict(one: Event, other: Event) -> bool:
    return "W" in {one.kind, other.kind} and Order.NA in {one.order, other.order}
