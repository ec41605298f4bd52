"""What a memory model has to say about an execution graph."""

from typing import Protocol

from shadow_mmu.litmus.graph import Event, Graph

__all__ = ["Model"]


class Model(Protocol):
    """A memory model.

    The graphs that it allows must be closed under taking the last event away, and every thread must always be able to go on
    (reading the latest write, writing the latest): then the explorer misses none.
    """

    @property
    def name(self) -> str:
        """The name on the command line."""

    @property
    def title(self) -> str:
        """The name in full."""

    def allows(self, graph: Graph, changed: tuple[Event, ...]) -> bool:
        """Whether the graph can happen, given that it could before the ``changed`` events were added or redirected."""

    def before(self, event: Event) -> int:
        """Return the set of events that happened before this one, for coherence and races."""
