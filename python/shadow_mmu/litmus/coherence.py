"""What all models here share: each location by itself behaves, and a read-modify-write is one step."""

from shadow_mmu.litmus.graph import Event, Graph

__all__ = ["coherent", "is_latest", "newer", "places", "splits"]


def newer(graph: Graph, write: Event) -> list[int]:
    """Return the writes after this one in ``mo``."""
    writes = graph.mo[write.location]
    return writes[writes.index(write.id) + 1 :]


def places(graph: Graph, location: str, source: int | None) -> range:
    """Return the positions in ``mo`` that a new write may take; ``source`` is what its read half returned.

    Atomicity: the write half of a read-modify-write comes right after the write that it replaces, and nothing ever comes
    between the two.
    """
    writes = graph.mo[location]
    return range(1, len(writes) + 1) if source is None else range(at := writes.index(source) + 1, at + 1)


def splits(graph: Graph, location: str, place: int) -> bool:
    """Whether a write at this position comes between a read-modify-write's two halves."""
    writes = graph.mo[location]
    return place < len(writes) and graph.events[writes[place]].locked


def coherent(graph: Graph, event: Event, before: int) -> bool:
    """Whether a read or write that was just added respects what was already seen of its location.

    Nothing in ``before`` (the events that happened before it) may be, or have returned, a write that comes later in ``mo``
    than what this event returned or wrote: the rules CoRR, CoWR, CoRW, CoWW.
    """
    write = event if event.source is None else graph.events[event.source]
    return not any(before & (1 << late | graph.readers[late]) for late in newer(graph, write))


def is_latest(graph: Graph, event: Event) -> bool:
    """Whether nothing in the graph comes after an event in ``mo`` or ``fr``.

    An event that is added last and is the latest has no outgoing edge at all, so it is on no cycle: the models need not look.
    """
    if event.kind == "F":
        return True
    write = event.id if event.source is None else event.source
    return graph.mo[event.location][-1] == write
