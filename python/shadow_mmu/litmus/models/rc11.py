"""RC11: the C11 memory model as repaired by Lahav, Vafeiadis, Kang, Hur and Dreyer (2017), which Rust follows.

- Coherence: happens-before and what was read and written agree at each location.
- Atomicity: nothing comes between the two halves of a read-modify-write.
- SC: the partial order ``psc`` of SeqCst accesses and fences has no cycle.
- No thin air: ``sb`` and ``rf`` together have no cycle. This forbids load buffering, which hardware other than x86 may do and
  C11 allows; the explorer relies on it.

Release sequences are those of C++20 (read-modify-writes only). Happens-before is kept by the graph itself.
"""

from collections.abc import Iterator

from shadow_mmu.litmus.coherence import coherent, is_latest
from shadow_mmu.litmus.graph import Event, Graph
from shadow_mmu.litmus.order import Fence, Order
from shadow_mmu.litmus.relations import bits

__all__ = ["Rc11"]


class Rc11:
    """The model RC11."""

    name = "rc11"
    title = "RC11 (C11 and Rust)"

    def before(self, event: Event) -> int:
        """Return what happened before."""
        return event.hb

    def allows(self, graph: Graph, changed: tuple[Event, ...]) -> bool:
        """Whether C11, without load buffering, allows the graph."""
        return all(coherent(graph, event, event.hb) for event in changed) and (
            all(is_latest(graph, event) for event in changed) or _psc_is_acyclic(graph)
        )


def _is_sc(event: Event) -> bool:
    return event.order is Order.SCQ or event.fence is Fence.SC


def _psc_is_acyclic(graph: Graph) -> bool:
    strong = [event for event in graph.events.values() if _is_sc(event)]
    if len(strong) < 2:
        return True
    edges = _Psc(graph, strong).edges()
    # Take away what nothing leads to, until nothing is left or only cycles are.
    left = {event.id for event in strong}
    while free := {one for one in left if not any(source in left for source in edges[one])}:
        left -= free
    return not left


class _Psc:
    """The order of the SeqCst events that RC11 asks for, as a set of predecessors for each."""

    def __init__(self, graph: Graph, strong: list[Event]) -> None:
        self.graph = graph
        self.strong = strong
        self.position = {write: place for writes in graph.mo.values() for place, write in enumerate(writes)}
        self.at = {
            location: sum(1 << one.id for one in graph.events.values() if one.location == location)
            for location in graph.mo
        }
        self.scb = {event.id: self._scb(event) for event in graph.events.values()}
        self.eco = {event.id: self._eco(event) for event in graph.events.values()}

    def edges(self) -> dict[int, set[int]]:
        """Return ``psc_base`` and ``psc_F`` together."""
        # From a fence a path may start with a step of happens-before, to a fence it may end with one.
        starts = {event.id: 1 << event.id | self._after(event) for event in self.strong}
        found: dict[int, set[int]] = {}
        for goal in self.strong:
            ends = 1 << goal.id | (goal.hb if goal.fence else 0)
            base = fences = 0
            for end in bits(ends):
                base |= self.scb[end]
                if goal.fence and end != goal.id:
                    fences |= self.eco[end]
            fences |= goal.hb if goal.fence else 0
            found[goal.id] = {
                source.id
                for source in self.strong
                if base & starts[source.id] or (source.fence and goal.fence and fences & starts[source.id])
            }
        return found

    def _after(self, event: Event) -> int:
        if event.fence is None:
            return 0
        return sum(1 << other.id for other in self.graph.events.values() if other.hb >> event.id & 1)

    def _scb(self, event: Event) -> int:
        """``sb``, ``sb; hb; sb`` between different locations, ``hb`` at one location, ``mo``, ``fr``."""
        found = event.sb | self._mo_fr(event)
        if event.location:
            found |= event.hb & self.at[event.location]
        for middle in bits(self._sb_elsewhere(event)):
            for first in bits(self.graph.events[middle].hb):
                found |= self._sb_elsewhere(self.graph.events[first])
        return found

    def _sb_elsewhere(self, event: Event) -> int:
        return event.sb & ~self.at.get(event.location, 0)

    def _mo_fr(self, event: Event) -> int:
        """Return the older writes to the location and their readers, if this is a write."""
        if event.kind != "W":
            return 0
        found = 0
        for older in self._older(event):
            found |= 1 << older | self.graph.readers[older]
        return found & ~(1 << event.id)

    def _eco(self, event: Event) -> int:
        """Return what comes before by ``rf``, ``mo``, ``fr`` and their compositions."""
        if event.kind == "W":
            return self._mo_fr(event)
        if event.source is None:
            return 0
        source = self.graph.events[event.source]
        return 1 << source.id | self._mo_fr(source)

    def _older(self, write: Event) -> Iterator[int]:
        yield from self.graph.mo[write.location][: self.position[write.id]]
