"""Sequential consistency: there is one order of all events that every thread agrees on.

That is: ``sb``, ``rf``, ``mo`` and ``fr`` together have no cycle (Shasha and Snir 1988). Orders and fences mean nothing here; a
bug that this model shows is a bug of the algorithm, not of its orderings.
"""

from shadow_mmu.litmus.coherence import coherent, is_latest
from shadow_mmu.litmus.graph import Event, Graph
from shadow_mmu.litmus.relations import communications, on_cycle

__all__ = ["Sc"]


class Sc:
    """The model SC."""

    name = "sc"
    title = "sequential consistency"

    def before(self, event: Event) -> int:
        """Return what came before in ``sb`` and ``rf``: every read synchronises with its write."""
        return event.porf

    def allows(self, graph: Graph, changed: tuple[Event, ...]) -> bool:
        """Whether all events fit into one order."""
        return all(coherent(graph, event, event.porf) for event in changed) and not any(
            on_cycle(graph, event, _successors) for event in changed if not is_latest(graph, event)
        )


def _successors(graph: Graph, event: Event) -> int:
    following = 1 << (event.id + 1) if event.index + 1 < graph.counts[event.thread] else 0
    return following | communications(graph, event, own_reads=True)
