"""The explorer: visits every execution of a program that a model allows, each once.

The algorithm is TruSt (Kokologiannakis, Marmanis, Gladstein, Vafeiadis: "Truly stateless, optimal dynamic partial order
reduction", 2022). A graph grows by one event at a time. A read branches over the writes that it can return, a write over its
places in ``mo``. A read that was there before a write that it could also have returned is *revisited*: the write becomes its
source, and all that was added in between and that the write does not depend on is taken away, to be added anew. A target graph
is thereby reached from many; it is built only from the one in which all that is taken away was the default choice: reads of the
latest write, writes that were the latest and unread.

Awaits are our addition: an await that still waits has read nothing, is allowed in every model, and is its own default choice.
So a spinning thread costs one branch, not one for each value that it could spin on.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from shadow_mmu.litmus.coherence import newer, places, splits
from shadow_mmu.litmus.expr import evaluate
from shadow_mmu.litmus.graph import Event, Graph
from shadow_mmu.litmus.models.base import Model
from shadow_mmu.litmus.program import Program
from shadow_mmu.litmus.races import race
from shadow_mmu.litmus.thread import Done, Failed, FenceAction, Read, Write

__all__ = ["Bad", "Exploration", "Explorer", "explore"]


@dataclass(frozen=True, slots=True)
class Bad:
    """A bad execution: what is wrong, the sort of it, the graph."""

    kind: Literal["claim", "outcome", "race", "stuck"]
    text: str
    graph: Graph


@dataclass(frozen=True, slots=True)
class Exploration:
    """What was found.

    Attributes
    ----------
    bad : Bad, optional
        The first bad execution.
    executions, blocked : int
        Executions in which every thread reached its end; those in which a thread waits for ever for a write that this
        execution does not have (they are prefixes of others).
    graphs : int
        Partial executions visited.

    """

    bad: Bad | None
    executions: int
    blocked: int
    graphs: int


def explore(program: Program, model: Model, *, to_the_end: bool = False) -> Exploration:
    """Explore a program until the first bad execution; ``to_the_end``: until all were visited."""
    explorer = Explorer(program, model)
    bad: Bad | None = None
    for found in explorer.run():
        if isinstance(found, Bad):
            bad = bad or found
            if not to_the_end:
                break
    return Exploration(bad, explorer.executions, explorer.blocked, explorer.graphs)


class Explorer:
    """One exploration; :meth:`run` yields the complete executions as they are found and the bad ones."""

    def __init__(self, program: Program, model: Model) -> None:
        self.program = program
        self.model = model
        self.executions = self.blocked = self.graphs = 0

    def run(self) -> Iterator[Bad | Graph]:
        """Visit all executions; a bad one is not continued."""
        plain = self.program.plain
        todo: list[tuple[Graph, tuple[Event, ...]]] = [(Graph.of(self.program), ())]
        while todo:
            graph, changed = todo.pop()
            self.graphs += 1
            if plain and (text := next(filter(None, (race(graph, one, self.model) for one in changed)), None)):
                yield Bad("race", text, graph)
                continue
            if text := _failed(graph):
                yield Bad("claim", text, graph)
                continue
            thread = _next_thread(graph)
            if thread is not None:
                todo.extend(self._grown(graph, thread))
                continue
            yield from self._ended(graph)

    def _ended(self, graph: Graph) -> Iterator[Bad | Graph]:
        waiting = [event for event in map(graph.last, range(len(graph.counts))) if event is not None and event.waits]
        if waiting:
            self.blocked += 1
            if all(not _accepts(event, graph.value(event.location)) for event in waiting):
                names = ", ".join(self.program.threads[event.thread].name for event in waiting)
                yield Bad("stuck", f"nothing will ever end the waiting of {names}", graph)
            return
        self.executions += 1
        yield graph
        if self.program.exists is not None and evaluate(self.program.exists, outcome(graph)):
            yield Bad("outcome", "the forbidden outcome", graph)

    def _grown(self, graph: Graph, thread: int) -> Iterator[tuple[Graph, tuple[Event, ...]]]:
        """Yield the graphs that the next action of a thread leads to."""
        match graph.point(thread).action:
            case Read() as action:
                yield from self._with_read(graph, thread, action)
            case Write() as action:
                yield from self._with_write(graph, thread, action)
                yield from self._revisits(graph, thread, action)
            case FenceAction():
                grown = graph.copy()
                grown.add_fence(thread)
                yield grown, ()

    def _with_read(self, graph: Graph, thread: int, action: Read) -> Iterator[tuple[Graph, tuple[Event, ...]]]:
        if action.accepts is not None:
            waiting = graph.copy()
            waiting.add_read(thread, None)
            yield waiting, ()
        for source in graph.mo[action.location]:
            if action.accepts is None or graph.events[source].value == action.accepts:
                grown = graph.copy()
                changed = (grown.add_read(thread, source),)
                if self.model.allows(grown, changed):
                    yield grown, changed

    def _with_write(
        self, graph: Graph, thread: int, action: Write, read: Event | None = None
    ) -> Iterator[tuple[Graph, tuple[Event, ...]]]:
        """Yield a graph for each place of the write; ``read`` is an earlier read that now returns it."""
        last = graph.last(thread)
        source = last.source if action.locked and last is not None else None
        for place in places(graph, action.location, source):
            if splits(graph, action.location, place):
                continue
            grown = graph.copy()
            write = grown.add_write(thread, place)
            changed: tuple[Event, ...] = (write,)
            if read is not None:
                grown.redirect(read, write.id)
                changed = (write, grown.events[read.id])
            if self.model.allows(grown, changed):
                yield grown, changed

    def _revisits(self, graph: Graph, thread: int, action: Write) -> Iterator[tuple[Graph, tuple[Event, ...]]]:
        prefix = graph.prefix(thread)
        for read in graph.events.values():
            if read.kind != "R" or read.location != action.location or prefix >> read.id & 1:
                continue
            if not _accepts(read, action.value):
                continue
            removed = _removed(graph, read, prefix)
            if removed is not None:
                yield from self._with_write(graph.without(removed), thread, action, read)


def outcome(graph: Graph) -> dict[str, int]:
    """Return final memory and the registers of all threads (``"0:r0"``) of a complete execution."""
    found = {location: graph.value(location) for location in graph.mo}
    for thread in range(len(graph.counts)):
        action = graph.point(thread).action
        assert isinstance(action, Done)
        found.update({f"{thread}:{name}": value for name, value in action.registers.items()})
    return found


def _accepts(read: Event, value: int) -> bool:
    assert read.at is not None
    action = read.at.action
    assert isinstance(action, Read)
    return action.accepts is None or action.accepts == value


def _failed(graph: Graph) -> str | None:
    for thread in range(len(graph.counts)):
        action = graph.point(thread).action
        if isinstance(action, Failed):
            return action.text
    return None


def _next_thread(graph: Graph) -> int | None:
    """Return the thread to go on with: halves of atomic steps first, awaits last (then they have less to be revisited by)."""
    best: tuple[int, int] | None = None
    for thread in range(len(graph.counts)):
        if graph.waits(thread):
            continue
        action = graph.point(thread).action
        if isinstance(action, Done):
            continue
        if isinstance(action, Write) and action.locked:
            return thread
        rank = 1 if isinstance(action, Read) and action.accepts is not None else 0
        if best is None or (rank, thread) < best:
            best = rank, thread
    return None if best is None else best[1]


def _removed(graph: Graph, read: Event, prefix: int) -> int | None:
    """Return what a revisit of a read takes away; ``None`` if this is not the graph to revisit it from."""
    removed, seen, reached = 0, prefix, False
    for event in graph.events.values():
        seen |= 1 << event.id
        if event.id == read.id:
            reached = True
        elif not reached or prefix >> event.id & 1:
            continue
        else:
            removed |= 1 << event.id
        if not _is_default(graph, event, seen):
            return None
    return removed


def _is_default(graph: Graph, event: Event, seen: int) -> bool:
    """Whether an event is the default choice in view of what was there before it."""
    if event.kind == "F":
        return True
    if event.kind == "R":
        assert event.at is not None
        action = event.at.action
        assert isinstance(action, Read)
        if action.accepts is not None or event.source is None:
            return event.source is None
        # If this source is taken away too, it says no itself: it has a reader that was there before it.
        write = graph.events[event.source]
    else:
        write = event
        if graph.readers[event.id] & seen:
            return False
    return not any(seen >> late & 1 for late in newer(graph, write))
