//! Execution graphs: the events of each thread, which write each read returned, the order of the writes to each word.
//!
//! An execution is not a sequence of steps but a graph: `sb` (sequenced before), the order of each thread; `rf` from a
//! write to the reads that return it; `mo`, the order of the writes to one word; and `fr` from a read to the writes
//! after the one that it returned. A memory model is a rule that says which of these graphs can happen.
//!
//! What precedes an event is fixed when it is added: `sb` and `rf` together have no cycle (no load buffering, no values
//! out of thin air). So each event carries, as [`Clock`]s, what came before it.

use std::rc::Rc;

use super::{
    Rule, Rules,
    clock::{Clock, EventId},
    event::{Action, At, Event, Half, Source, Word, acquires, releases},
};
use crate::Ordering;

/// What is known of a thread without running it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Status {
    /// It has more to do.
    Runs,
    /// It reached its end.
    Done,
    /// It waits for a write that this graph does not have, or that its load did not return.
    Waits,
}

#[derive(Clone, Debug)]
pub(super) struct Thread {
    pub(super) events: Vec<Event>,
    pub(super) status: Status,
}

/// A partial execution.
#[derive(Clone, Debug)]
pub(super) struct Graph {
    pub(super) threads: Vec<Thread>,
    /// The writes to each word, oldest first, without the initial one. A *place* counts from that: 0 is the initial value.
    mo: Vec<Vec<EventId>>,
    initial: Rc<[u64]>,
    stamps: u32,
    /// The events that the last step added or changed.
    pub(super) changed: [Option<EventId>; 2],
    /// A thread whose wait was given a new write, and that may find it not to be what it waits for.
    pub(super) unverified: Option<usize>,
}

impl Graph {
    /// No thread has done anything yet.
    pub(super) fn new(threads: usize, initial: Rc<[u64]>) -> Self {
        Self {
            threads: vec![Thread { events: Vec::new(), status: Status::Runs }; threads],
            mo: vec![Vec::new(); initial.len()],
            initial,
            stamps: 0,
            changed: [None; 2],
            unverified: None,
        }
    }

    /// How many words there are.
    pub(super) fn words(&self) -> usize {
        self.mo.len()
    }

    pub(super) fn event(&self, id: EventId) -> &Event {
        &self.threads[id.thread()].events[id.index()]
    }

    pub(super) fn events(&self) -> impl Iterator<Item = (EventId, &Event)> {
        self.threads.iter().enumerate().flat_map(|(thread, one)| {
            one.events.iter().enumerate().map(move |(index, event)| (EventId::new(thread, index), event))
        })
    }

    pub(super) fn last(&self, thread: usize) -> Option<&Event> {
        self.threads[thread].events.last()
    }

    pub(super) fn next_id(&self, thread: usize) -> EventId {
        EventId::new(thread, self.threads[thread].events.len())
    }

    pub(super) fn writes(&self, word: Word) -> &[EventId] {
        &self.mo[word as usize]
    }

    /// The place of the latest write.
    pub(super) fn latest(&self, word: Word) -> usize {
        self.mo[word as usize].len()
    }

    pub(super) fn source_at(&self, word: Word, place: usize) -> Source {
        if place == 0 { Source::Initial } else { Source::Write(self.mo[word as usize][place - 1]) }
    }

    pub(super) fn value_at(&self, word: Word, place: usize) -> u64 {
        match self.source_at(word, place) {
            Source::Write(write) => self.event(write).value,
            _ => self.initial[word as usize],
        }
    }

    pub(super) fn place_of(&self, word: Word, source: Source) -> Option<usize> {
        match source {
            Source::Waits => None,
            Source::Initial => Some(0),
            Source::Write(write) => self.mo[word as usize].iter().position(|&one| one == write).map(|place| place + 1),
        }
    }

    /// The place of what an event wrote or returned; `None` for a fence and for a read that waits.
    pub(super) fn place(&self, id: EventId) -> Option<usize> {
        let event = self.event(id);
        match event.action {
            Action::Read { word, .. } => self.place_of(word, event.source),
            Action::Write { word, .. } => self.place_of(word, Source::Write(id)),
            Action::Fence { .. } => None,
        }
    }

    /// Whether the write at a place is the second half of a read-modify-write: nothing may come between the halves.
    pub(super) fn is_locked(&self, word: Word, place: usize) -> bool {
        place >= 1
            && place <= self.latest(word)
            && matches!(self.event(self.mo[word as usize][place - 1]).action, Action::Write { locked: true, .. })
    }

    /// What the next event of a thread depends on.
    pub(super) fn prefix(&self, thread: usize) -> Clock {
        self.past(self.next_id(thread)).porf
    }

    /// What happens before the next event of a thread.
    pub(super) fn next_hb(&self, thread: usize) -> Clock {
        self.past(self.next_id(thread)).hb
    }

    /// A thread that has done the first half of a read-modify-write only.
    pub(super) fn in_between(&self) -> Option<usize> {
        (0..self.threads.len()).find(|&thread| self.last(thread).is_some_and(Event::writes))
    }

    /// What an event at this position takes over from the one before it.
    fn past(&self, id: EventId) -> Past {
        let Some(index) = id.index().checked_sub(1) else { return Past::default() };
        let before = EventId::new(id.thread(), index);
        let event = self.event(before);
        let hb = event.hb.with(before);
        Past { porf: event.porf.with(before), hb, pending: event.pending, fenced: event.fenced }
    }

    fn push(&mut self, thread: usize, event: Event) -> EventId {
        let id = self.next_id(thread);
        self.stamps += 1;
        self.threads[thread].events.push(Event { stamp: self.stamps, ..event });
        id
    }

    /// A read that returns `source`.
    pub(super) fn add_read(&mut self, thread: usize, action: Action, at: At, source: Source, rules: Rules) -> EventId {
        let event = self.read_event(self.next_id(thread), action, at, source, rules);
        self.push(thread, event)
    }

    /// Lets a read that is the last event of its thread return another write; it keeps its place among the events.
    pub(super) fn redirect(&mut self, id: EventId, source: Source, rules: Rules) {
        let Event { action, at, stamp, .. } = *self.event(id);
        let event = self.read_event(id, action, at, source, rules);
        self.threads[id.thread()].events[id.index()] = Event { stamp, ..event };
        self.threads[id.thread()].status = if source == Source::Waits { Status::Waits } else { Status::Runs };
    }

    fn read_event(&self, id: EventId, action: Action, at: At, source: Source, rules: Rules) -> Event {
        let Action::Read { word, order, half, .. } = action else { unreachable!("{action:?} is no read") };
        let Past { mut porf, mut hb, mut pending, fenced } = self.past(id);
        let value = match source {
            Source::Write(write) => self.event(write).value,
            Source::Initial | Source::Waits => self.initial[word as usize],
        };
        let order = match half {
            Half::If { otherwise, .. } if !half.writes(value) => Some(otherwise),
            _ => order,
        };
        if let Source::Write(write) = source {
            let written = self.event(write);
            porf = porf.joined(&written.porf).with(write);
            if order.is_some() && rules.hold(Rule::FencesSynchronise) {
                pending.join(&written.message);
            }
            if acquires(order) {
                hb.join(&written.message);
            }
        }
        Event { action, at, source, value, stamp: 0, porf, hb, message: Clock::default(), pending, fenced }
    }

    /// A write at a place.
    pub(super) fn add_write(&mut self, thread: usize, action: Action, at: At, place: usize, rules: Rules) -> EventId {
        let Action::Write { word, value, order, locked } = action else { unreachable!("{action:?} is no write") };
        let id = self.next_id(thread);
        let Past { porf, hb, pending, fenced } = self.past(id);
        let mut message = if order.is_some() { fenced } else { Clock::default() };
        if releases(order) {
            message.join(&hb.with(id));
        }
        if locked
            && rules.hold(Rule::ReleaseSequences)
            && let Some(Event { source: Source::Write(replaced), .. }) = self.last(thread)
        {
            // The release sequence: a read-modify-write hands on what the write that it replaced handed on (C++20's rule,
            // which is Rust's; a plain later store of the same thread does not).
            message.join(&self.event(*replaced).message);
        }
        let source = Source::Initial;
        self.push(thread, Event { action, at, source, value, stamp: 0, porf, hb, message, pending, fenced });
        self.mo[word as usize].insert(place - 1, id);
        id
    }

    pub(super) fn add_fence(&mut self, thread: usize, order: Ordering, at: At) -> EventId {
        let id = self.next_id(thread);
        let Past { porf, mut hb, pending, mut fenced } = self.past(id);
        if acquires(Some(order)) {
            hb.join(&pending);
        }
        if releases(Some(order)) {
            fenced = hb.with(id);
        }
        let (action, source, message) = (Action::Fence { order }, Source::Initial, Clock::default());
        self.push(thread, Event { action, at, source, value: 0, stamp: 0, porf, hb, message, pending, fenced })
    }

    /// What is left when all but `kept` is taken away; nothing that stays may depend on what goes.
    pub(super) fn restricted(&self, kept: &Clock) -> Self {
        let threads = self.threads.iter().enumerate().map(|(number, thread)| {
            let count = kept.count(number).min(thread.events.len());
            let status = if count == thread.events.len() { thread.status } else { Status::Runs };
            Thread { events: thread.events[..count].to_vec(), status }
        });
        let stay = |writes: &Vec<EventId>| writes.iter().copied().filter(|&write| kept.contains(write)).collect();
        Self {
            threads: threads.collect(),
            mo: self.mo.iter().map(stay).collect(),
            initial: Rc::clone(&self.initial),
            stamps: self.stamps,
            changed: [None; 2],
            unverified: None,
        }
    }
}

/// What an event takes over from the one before it in its thread.
#[derive(Default)]
struct Past {
    porf: Clock,
    hb: Clock,
    pending: Clock,
    fenced: Clock,
}
