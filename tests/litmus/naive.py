"""Slow and obvious counterparts of the explorer and of its models, to compare with on small programs.

They share with it the program, the tree of a thread's points and the graph as a container; not the search, not the models.
"""

import itertools
from collections.abc import Iterable, Iterator
from typing import TypeVar

from shadow_mmu.litmus.explore import outcome
from shadow_mmu.litmus.graph import INITIAL, Event, Graph
from shadow_mmu.litmus.order import Fence, Order
from shadow_mmu.litmus.program import Program
from shadow_mmu.litmus.thread import Done, FenceAction, Point, Read, Write

_T = TypeVar("_T")
Pairs = set[tuple[int, int]]
Key = tuple[frozenset[tuple[int, int | None]], tuple[tuple[int, ...], ...]]
Outcome = frozenset[tuple[str, int]]


def key(graph: Graph) -> Key:
    """Return what makes two executions the same."""
    return (
        frozenset((event.id, event.source) for event in graph.events.values()),
        tuple(tuple(writes) for writes in graph.mo.values()),
    )


def candidates(program: Program, limit: int | None = None) -> list[Graph] | None:
    """Return every complete graph without a cycle of sb and rf, whatever its mo, allowed or not.

    ``None`` if more than ``limit`` graphs, complete or not, would have to be looked at.
    """
    seen: set[Key] = set()
    found = []
    todo = [Graph.of(program)]
    while todo:
        if limit is not None and len(seen) > limit:
            return None
        graph = todo.pop()
        if key(graph) in seen:
            continue
        seen.add(key(graph))
        if all(isinstance(graph.point(thread).action, Done) for thread in range(len(graph.counts))):
            found.append(graph)
            continue
        for thread in range(len(graph.counts)):
            todo.extend(_grown(graph, thread))
    return found


def _grown(graph: Graph, thread: int) -> Iterator[Graph]:
    match graph.point(thread).action:
        case Read(location=location, accepts=accepts):
            for source in graph.mo[location]:
                if accepts is None or graph.events[source].value == accepts:
                    grown = graph.copy()
                    grown.add_read(thread, source)
                    yield grown
        case Write(location=location):
            for place in range(1, len(graph.mo[location]) + 1):
                grown = graph.copy()
                grown.add_write(thread, place)
                yield grown
        case FenceAction():
            grown = graph.copy()
            grown.add_fence(thread)
            yield grown


class Relations:
    """The relations of a complete graph as sets of pairs, each written as in the papers."""

    def __init__(self, graph: Graph) -> None:
        self.events = graph.events
        events = graph.events.values()
        self.sb: Pairs = {
            (a.id, b.id)
            for a, b in itertools.permutations(events, 2)
            if b.thread != INITIAL and (a.thread == INITIAL or (a.thread == b.thread and a.index < b.index))
        }
        self.rf: Pairs = {(event.source, event.id) for event in events if event.source is not None}
        self.mo: Pairs = {pair for writes in graph.mo.values() for pair in itertools.combinations(writes, 2)}
        self.fr: Pairs = {(r, w) for source, r in self.rf for older, w in self.mo if older == source and r != w}
        self.rmw: Pairs = {
            (a.id, b.id)
            for a, b in self._pairs(self.sb)
            if a.locked
            and b.locked
            and a.kind == "R"
            and b.kind == "W"
            and a.thread == b.thread
            and b.index == a.index + 1
        }

    def _pairs(self, relation: Pairs) -> Iterator[tuple[Event, Event]]:
        return ((self.events[a], self.events[b]) for a, b in relation)

    def at_one_location(self, relation: Pairs) -> Pairs:
        return {(a.id, b.id) for a, b in self._pairs(relation) if a.location and a.location == b.location}

    def identity(self, which: Iterable[Event]) -> Pairs:
        return {(event.id, event.id) for event in which}

    def happens_before(self) -> Pairs:
        """``hb = (sb | sw)+``, ``sw = [REL]; ([F]; sb)?; [W]; (rf; rmw)*; rf; [R]; (sb; [F])?; [ACQ]``."""
        events = self.events.values()
        every = self.identity(events)
        fences = self.identity(event for event in events if event.kind == "F")
        releasing = self.identity(
            event
            for event in events
            if (event.fence is not None and event.fence.releases)
            or (event.kind == "W" and event.order is not None and event.order.releases)
        )
        acquiring = self.identity(
            event
            for event in events
            if (event.fence is not None and event.fence.acquires)
            or (event.kind == "R" and event.order is not None and event.order.acquires)
        )
        sequence = closed(compose(self.rf, self.rmw)) | every
        sw = compose(
            releasing,
            compose(fences, self.sb) | every,
            self.identity(event for event in events if event.kind == "W"),
            sequence,
            self.rf,
            compose(self.sb, fences) | every,
            acquiring,
        )
        return closed(self.sb | sw)

    def atomic(self) -> bool:
        """``rmw & (fr; mo)`` is empty."""
        return not self.rmw & compose(self.fr, self.mo)


def compose(*relations: Pairs) -> Pairs:
    """Return ``a; b; c``."""
    found = relations[0]
    for relation in relations[1:]:
        after: dict[int, set[int]] = {}
        for a, b in relation:
            after.setdefault(a, set()).add(b)
        found = {(a, c) for a, b in found for c in after.get(b, ())}
    return found


def closed(relation: Pairs) -> Pairs:
    """Return ``r+``."""
    found = set(relation)
    while not (more := compose(found, relation)) <= found:
        found |= more
    return found


def acyclic(relation: Pairs) -> bool:
    return all(a != b for a, b in closed(relation))


def allowed_sc(graph: Graph) -> bool:
    rel = Relations(graph)
    return rel.atomic() and acyclic(rel.sb | rel.rf | rel.mo | rel.fr)


def allowed_rc11(graph: Graph) -> bool:
    """Definitions 1 and 2 of the RC11 paper, read from the page."""
    rel = Relations(graph)
    events = rel.events.values()
    hb = rel.happens_before()
    eco = closed(rel.rf | rel.mo | rel.fr)
    every = rel.identity(events)
    coherence = all(a != b for a, b in compose(hb, eco | every))
    elsewhere = rel.sb - rel.at_one_location(rel.sb)
    scb = rel.sb | compose(elsewhere, hb, elsewhere) | rel.at_one_location(hb) | rel.mo | rel.fr
    strong = rel.identity(event for event in events if event.order is Order.SCQ or event.fence is Fence.SC)
    fences = rel.identity(event for event in events if event.fence is Fence.SC)
    maybe_hb = hb | every
    base = compose(strong | compose(fences, maybe_hb), scb, strong | compose(maybe_hb, fences))
    between = compose(fences, hb | compose(hb, eco, hb), fences)
    return coherence and rel.atomic() and acyclic(base | between)


def outcomes_sc(program: Program) -> set[Outcome]:
    """Return the outcomes of all interleavings: memory is one place, one thread does one step at a time."""
    return _machine(program, buffered=False)


def outcomes_tso(program: Program) -> set[Outcome]:
    """Return the outcomes of the machine of Owens, Sarkar and Sewell: a FIFO store buffer for each CPU."""
    return _machine(program, buffered=True)


_Memory = tuple[tuple[str, int], ...]
_State = tuple[tuple[Point, ...], _Memory, tuple[tuple[tuple[str, int], ...], ...]]


def _machine(program: Program, *, buffered: bool) -> set[Outcome]:
    memory = tuple((location, program.initial.get(location, 0)) for location in program.locations)
    start: _State = (tuple(Point(thread.body) for thread in program.threads), memory, ((),) * len(program.threads))
    seen, todo, found = {start}, [start], set()
    while todo:
        state = todo.pop()
        points, memory, buffers = state
        if all(isinstance(point.action, Done) for point in points) and not any(buffers):
            found.add(_outcome(points, memory))
        for cpu in range(len(points)):
            for following in _steps(state, cpu, buffered=buffered):
                if following not in seen:
                    seen.add(following)
                    todo.append(following)
    return found


def _steps(state: _State, cpu: int, *, buffered: bool) -> Iterator[_State]:
    points, memory, buffers = state
    buffer = buffers[cpu]
    if buffer:
        yield points, _stored(memory, *buffer[0]), _replaced(buffers, cpu, buffer[1:])
    action = points[cpu].action
    match action:
        case Read(locked=True):
            if not buffer:
                yield from _atomic_step(state, cpu, action)
        case Read():
            waiting = [value for location, value in buffer if location == action.location]
            value = waiting[-1] if waiting else dict(memory)[action.location]
            if action.accepts is None or action.accepts == value:
                yield _replaced(points, cpu, points[cpu].after(value)), memory, buffers
        case Write():
            after = _replaced(points, cpu, points[cpu].after())
            if not buffered:
                yield after, _stored(memory, action.location, action.value), buffers
            elif action.order is not Order.SCQ:
                yield after, memory, _replaced(buffers, cpu, (*buffer, (action.location, action.value)))
            elif not buffer:  # XCHG
                yield after, _stored(memory, action.location, action.value), buffers
        case FenceAction(order):
            if order is not Fence.SC or not buffer:
                yield _replaced(points, cpu, points[cpu].after()), memory, buffers


def _atomic_step(state: _State, cpu: int, action: Read) -> Iterator[_State]:
    points, memory, buffers = state
    value = dict(memory)[action.location]
    if action.accepts is not None and action.accepts != value:
        return
    point = points[cpu].after(value)
    if isinstance(point.action, Write) and point.action.locked:
        memory = _stored(memory, point.action.location, point.action.value)
        point = point.after()
    yield _replaced(points, cpu, point), memory, buffers


def _stored(memory: _Memory, location: str, value: int) -> _Memory:
    return tuple((name, value if name == location else old) for name, old in memory)


def _replaced(of: tuple[_T, ...], place: int, new: _T) -> tuple[_T, ...]:
    return (*of[:place], new, *of[place + 1 :])


def _outcome(points: tuple[Point, ...], memory: _Memory) -> Outcome:
    found = set(memory)
    for thread, point in enumerate(points):
        assert isinstance(point.action, Done)
        found.update((f"{thread}:{name}", value) for name, value in point.action.registers.items())
    return frozenset(found)


def outcome_of(graph: Graph) -> Outcome:
    """Return the outcome of a complete execution in the form that the machines use."""
    return frozenset(outcome(graph).items())
