"""Execution graphs: the events of a run, which write each read returned, and the order of the writes to each location.

An execution is not a sequence of steps but a graph. ``sb`` (sequenced before) is the program order of each thread, ``rf``
leads from a write to the reads that return it, ``mo`` is the order of the writes to one location, ``fr`` leads from a read to
the writes after the one that it returned. A memory model is nothing but a rule that says which of these graphs can happen.

Sets of events are bit masks: the event with identity ``n`` is bit ``n``. Identities are fixed by thread and position, so a
mask stays true while other events come and go. What precedes an event is fixed when it is added, for in no model here can an
event depend on what comes later (``sb`` and ``rf`` together have no cycle: load buffering and values out of thin air are
forbidden).
"""

from dataclasses import dataclass
from typing import Final, Literal, NamedTuple

from shadow_mmu.errors import ConfigError
from shadow_mmu.litmus.order import NA, RLX, Fence, Order
from shadow_mmu.litmus.program import Program
from shadow_mmu.litmus.thread import FenceAction, Point, Read, Write

__all__ = ["INITIAL", "Event", "Graph"]

INITIAL: Final = -1
"""The thread of the writes that give the locations their first values."""

# Identities set aside for each thread.
_STRIDE: Final = 64


@dataclass(frozen=True, slots=True)
class Event:
    """One access or fence.

    Attributes
    ----------
    id, thread, index : int
        Its bit in masks; the number of its thread; its position there.
    at : Point, optional
        The point of the thread whose action this is; the first values have none.
    order : Order, optional
        The order of the access as it turned out; ``None`` for a fence.
    fence : Fence, optional
        The order of the fence; ``None`` for an access.
    locked : bool
        One half of an atomic read-modify-write (of a failed compare-exchange: the only half).
    life : {"alloc", "free"}, optional
        A write that begins or ends its location.
    source : int, optional
        The write that a read returned; ``None`` for an await that still waits, which has read nothing.
    sb, porf, hb : int
        What comes before: in the thread (and the first values); through ``sb`` and ``rf``; by happens-before.
    message : int
        What a write hands to those that acquire it: everything that then happened before them.
    pending : int
        What the relaxed reads of the thread so far would have acquired: an acquire fence turns it into happens-before.
    fenced : int
        What the last release fence of the thread covers: every later write hands it on.

    """

    id: int
    thread: int
    index: int
    kind: Literal["R", "W", "F"]
    at: Point | None = None
    location: str = ""
    value: int = 0
    order: Order | None = None
    fence: Fence | None = None
    locked: bool = False
    life: Literal["alloc", "free"] | None = None
    source: int | None = None
    sb: int = 0
    porf: int = 0
    hb: int = 0
    message: int = 0
    pending: int = 0
    fenced: int = 0

    @property
    def waits(self) -> bool:
        """Whether this is an await whose condition does not hold yet."""
        return self.kind == "R" and self.source is None


class _Past(NamedTuple):
    """What the next event of a thread takes over from its last one."""

    sb: int
    porf: int
    hb: int
    pending: int
    fenced: int


class Graph:
    """A partial execution. Its events stand in the order in which they were added.

    Attributes
    ----------
    events : dict of int to Event
    mo : dict of str to list of int
        The writes to each location, oldest first.
    readers : dict of int to int
        For each write the set of reads that return it.
    counts : list of int
        How many events each thread has.
    initial : int
        The set of the writes that gave the locations their first values.

    """

    __slots__ = ("counts", "events", "initial", "mo", "readers", "starts")

    def __init__(self, starts: tuple[Point, ...], initial: int) -> None:
        self.starts: Final = starts
        self.initial: Final = initial
        self.events: dict[int, Event] = {}
        self.mo: dict[str, list[int]] = {}
        self.readers: dict[int, int] = {}
        self.counts: list[int] = [0] * len(starts)

    @classmethod
    def of(cls, program: Program) -> "Graph":
        """Return the graph in which no thread has done anything yet."""
        locations = program.locations
        graph = cls(tuple(Point(thread.body) for thread in program.threads), (1 << len(locations)) - 1)
        for number, location in enumerate(locations):
            first = program.initial.get(location, 0)
            graph.events[number] = Event(number, INITIAL, number, "W", None, location, first, RLX)
            graph.mo[location] = [number]
            graph.readers[number] = 0
        return graph

    def copy(self) -> "Graph":
        """Return a graph of its own with the same events."""
        other = Graph(self.starts, self.initial)
        other.events = self.events.copy()
        other.mo = {location: writes.copy() for location, writes in self.mo.items()}
        other.readers = self.readers.copy()
        other.counts = self.counts.copy()
        return other

    def without(self, removed: int) -> "Graph":
        """Return what is left when a set of events is taken away; no event that stays may depend on them."""
        other = Graph(self.starts, self.initial)
        other.events = {number: event for number, event in self.events.items() if not removed >> number & 1}
        other.mo = {
            location: [write for write in writes if not removed >> write & 1] for location, writes in self.mo.items()
        }
        other.readers = {
            number: readers & ~removed for number, readers in self.readers.items() if not removed >> number & 1
        }
        for event in other.events.values():
            if event.thread != INITIAL:
                other.counts[event.thread] += 1
        return other

    def last(self, thread: int) -> Event | None:
        """Return the latest event of a thread."""
        return self._event(thread, self.counts[thread] - 1)

    def later(self, event: Event) -> list[Event]:
        """Return the events of the same thread after this one."""
        return [self.events[event.id + step] for step in range(1, self.counts[event.thread] - event.index)]

    def point(self, thread: int) -> Point:
        """Return where a thread stands."""
        last = self.last(thread)
        if last is None or last.at is None:
            return self.starts[thread]
        if last.waits:
            return last.at
        return last.at.after(last.value if last.kind == "R" else 0)

    def waits(self, thread: int) -> bool:
        """Whether a thread stands in an await whose condition does not hold yet."""
        last = self.last(thread)
        return last is not None and last.waits

    def prefix(self, thread: int) -> int:
        """Return the set of events that the next event of a thread follows in ``sb`` and ``rf``."""
        return self._past(self.last(thread)).porf

    def value(self, location: str) -> int:
        """Return what a location holds in the end: its last write."""
        return self.events[self.mo[location][-1]].value

    def add_read(self, thread: int, source: int | None) -> Event:
        """Let a thread do the read that is its next action and return a write, or wait."""
        event = self._read(thread, self.counts[thread], self.point(thread), source)
        self.counts[thread] += 1
        self.events[event.id] = event
        return event

    def redirect(self, read: Event, source: int) -> None:
        """Let a read that was already there, the last event of its thread, return another write."""
        if read.source is not None:
            self.readers[read.source] &= ~(1 << read.id)
        assert read.at is not None
        # It keeps its place among the events: that is the place at which it was added.
        self.events[read.id] = self._read(read.thread, read.index, read.at, source)

    def add_write(self, thread: int, place: int) -> Event:
        """Let a thread do the write that is its next action, at this position among the writes to its location."""
        at = self.point(thread)
        action = at.action
        assert isinstance(action, Write)
        index, last = self.counts[thread], self.last(thread)
        identity, past = self._identity(thread, index), self._past(last)
        message = 0 if action.order is NA else past.fenced
        if action.order.releases:
            message |= past.hb | 1 << identity
        if action.locked and last is not None and last.source is not None:
            # The release sequence: a read-modify-write hands on what the write that it replaced handed on (C++20's rule,
            # which is Rust's; a plain later store of the same thread does not).
            message |= self.events[last.source].message
        event = Event(
            identity, thread, index, "W", at, action.location, action.value, action.order, None, action.locked,
            action.life, None, past.sb, past.porf, past.hb, message, past.pending, past.fenced,
        )  # fmt: skip
        self.counts[thread] += 1
        self.events[identity] = event
        self.mo[action.location].insert(place, identity)
        self.readers[identity] = 0
        return event

    def add_fence(self, thread: int) -> Event:
        """Let a thread pass the fence that is its next action."""
        at = self.point(thread)
        assert isinstance(at.action, FenceAction)
        order, index = at.action.order, self.counts[thread]
        identity, past = self._identity(thread, index), self._past(self.last(thread))
        hb = past.hb | past.pending if order.acquires else past.hb
        fenced = hb | 1 << identity if order.releases else past.fenced
        event = Event(
            identity, thread, index, "F", at, fence=order,
            sb=past.sb, porf=past.porf, hb=hb, pending=past.pending, fenced=fenced,
        )  # fmt: skip
        self.counts[thread] += 1
        self.events[identity] = event
        return event

    def _read(self, thread: int, index: int, at: Point, source: int | None) -> Event:
        action = at.action
        assert isinstance(action, Read)
        identity, past = self._identity(thread, index), self._past(self._event(thread, index - 1))
        sb, porf, hb, pending, fenced = past
        value, order = 0, action.order
        if source is not None:
            write = self.events[source]
            value, order = write.value, action.order_at(write.value)
            porf |= write.porf | 1 << source
            if order is not NA:
                pending |= write.message
            if order.acquires:
                hb |= write.message
            self.readers[source] |= 1 << identity
        return Event(
            identity, thread, index, "R", at, action.location, value, order, None, action.locked,
            None, source, sb, porf, hb, 0, pending, fenced,
        )  # fmt: skip

    def _event(self, thread: int, index: int) -> Event | None:
        return None if index < 0 else self.events[self._identity(thread, index)]

    def _identity(self, thread: int, index: int) -> int:
        if index >= _STRIDE:
            raise ConfigError(f"thread {thread} of this litmus test has more than {_STRIDE} events; split the test")
        return self.initial.bit_length() + thread * _STRIDE + index

    def _past(self, last: Event | None) -> _Past:
        if last is None:
            return _Past(self.initial, self.initial, self.initial, 0, 0)
        bit = 1 << last.id
        return _Past(last.sb | bit, last.porf | bit, last.hb | bit, last.pending, last.fenced)
