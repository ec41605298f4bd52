"""x86-TSO: stores wait in a buffer of their CPU, so that a load may overtake earlier stores; nothing else is reordered.

As a rule about graphs (Owens, Sarkar and Sewell 2009; Alglave's x86tso.cat): each location by itself behaves, and ``mo``, ``fr``,
``rf`` between threads and the part of ``sb`` that the buffer keeps have no cycle. The buffer keeps everything but a store
before a load; a locked instruction, a SeqCst fence (MFENCE) and a SeqCst store (XCHG) empty it. The other orders and fences
mean nothing to this machine: its loads acquire and its stores release. A compare-exchange that fails is a locked instruction
too.
"""

from shadow_mmu.litmus.coherence import coherent, is_latest
from shadow_mmu.litmus.graph import Event, Graph
from shadow_mmu.litmus.order import Fence, Order
from shadow_mmu.litmus.relations import communications, on_cycle

__all__ = ["Tso"]


class Tso:
    """The model TSO."""

    name = "tso"
    title = "x86-TSO"

    def before(self, event: Event) -> int:
        """Return what came before in ``sb`` and ``rf``: every load acquires, every store releases."""
        return event.porf

    def allows(self, graph: Graph, changed: tuple[Event, ...]) -> bool:
        """Whether the store buffers can bring this about."""
        return all(coherent(graph, event, event.porf) for event in changed) and not any(
            on_cycle(graph, event, _successors) for event in changed if not is_latest(graph, event)
        )


def _empties(event: Event) -> bool:
    """Whether the store buffer of the CPU is empty after this event."""
    return event.locked or event.fence is Fence.SC or (event.kind == "W" and event.order is Order.SCQ)


def _successors(graph: Graph, event: Event) -> int:
    found = communications(graph, event, own_reads=False)
    kept = event.kind != "W" or _empties(event)
    for later in graph.later(event):
        # What is behind something that empties the buffer is reached through that.
        if kept or later.kind == "W" or _empties(later):
            found |= 1 << later.id
    return found
