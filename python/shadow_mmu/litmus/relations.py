"""Edges between the events of a graph, and cycles made of them."""

from collections.abc import Callable, Iterator

from shadow_mmu.litmus.coherence import newer
from shadow_mmu.litmus.graph import INITIAL, Event, Graph

__all__ = ["bits", "communications", "on_cycle"]


def bits(mask: int) -> Iterator[int]:
    """Yield the events of a set."""
    while mask:
        low = mask & -mask
        yield low.bit_length() - 1
        mask ^= low


def communications(graph: Graph, event: Event, *, own_reads: bool) -> int:
    """Return where ``rf``, ``mo`` and ``fr`` lead from an event; of ``mo`` and ``fr`` only the first step, the rest follows.

    Without ``own_reads`` the ``rf`` edges to reads of the same thread are left out.
    """
    if event.kind == "F" or event.waits:
        return 0
    write = event if event.source is None else graph.events[event.source]
    after = newer(graph, write)
    found = 1 << after[0] if after else 0
    if event.kind == "W":
        readers = graph.readers[event.id]
        if not own_reads and event.thread != INITIAL:
            for read in bits(readers):
                if graph.events[read].thread == event.thread:
                    readers &= ~(1 << read)
        found |= readers
    return found


def on_cycle(graph: Graph, event: Event, successors: Callable[[Graph, Event], int]) -> bool:
    """Whether one can get back to an event by going along the edges."""
    seen, todo, goal = 0, successors(graph, event), 1 << event.id
    while todo:
        if todo & goal:
            return True
        low = todo & -todo
        todo ^= low
        if not seen & low:
            seen |= low
            todo |= successors(graph, graph.events[low.bit_length() - 1]) & ~seen
    return False
