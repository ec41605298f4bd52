//! How a graph grows: `TruSt` (Kokologiannakis, Marmanis, Gladstein, Vafeiadis: "Truly stateless, optimal dynamic partial
//! order reduction", 2022).
//!
//! A read branches over the writes that it can return, a write over its places in `mo`. The graph at hand goes on with one
//! choice, always possible: the latest write, the latest place; the others wait in `todo`. A read that was there before a
//! write that it could also have returned is *revisited*: the write becomes its source, and all that was added in
//! between and that the write does not depend on is taken away, to be added anew. A target graph is thereby reached from
//! many; it is built only from the one in which all that is taken away was the default choice: reads of the latest write,
//! writes that were the latest and unread.
//!
//! An await that still waits has read nothing, is allowed always, and is its own default choice. So a waiting thread
//! costs one branch, not one for each value that it could wait on.

use core::ops::RangeInclusive;

use super::{
    Rule, Rules,
    clock::{Clock, EventId},
    consistency::{allows, floor},
    event::{Action, At, Event, Half, Source, Word},
    graph::{Graph, Status},
};

/// The graph at hand and those still to be gone on with.
#[derive(Debug)]
pub(super) struct Growth {
    pub(super) graph: Graph,
    pub(super) todo: Vec<Graph>,
    pub(super) rules: Rules,
}

impl Growth {
    /// The places that the next read of a thread may return, oldest first; the latest is always among them.
    ///
    /// The first half of a read-modify-write may return what another one replaced: no write half fits there, but what
    /// the write would have revisited is reached from there only.
    pub(super) fn sources(&self, thread: usize, word: Word) -> RangeInclusive<usize> {
        let oldest = floor(&self.graph, word, &self.graph.next_hb(thread), self.rules);
        oldest..=self.graph.latest(word)
    }

    fn is_locked(&self, graph: &Graph, word: Word, place: usize) -> bool {
        self.rules.hold(Rule::Atomicity) && graph.is_locked(word, place)
    }

    fn later(&mut self, mut graph: Graph, changed: [Option<EventId>; 2]) {
        graph.changed = changed;
        self.todo.push(graph);
    }

    /// Keeps the graph in which a read returns what stands at a place, if that is allowed.
    fn read_later(&mut self, thread: usize, action: Action, at: At, word: Word, place: usize) {
        let mut graph = self.graph.clone();
        let source = graph.source_at(word, place);
        let read = graph.add_read(thread, action, at, source, self.rules);
        if allows(&graph, &[read], self.rules) {
            self.later(graph, [Some(read), None]);
        }
    }

    /// A load, or the first half of a read-modify-write.
    pub(super) fn read(&mut self, thread: usize, action: Action, at: At) -> EventId {
        let Action::Read { word, .. } = action else { unreachable!("{action:?} is no read") };
        let latest = self.graph.latest(word);
        for place in self.sources(thread, word) {
            if place != latest {
                self.read_later(thread, action, at, word, place);
            }
        }
        let source = self.graph.source_at(word, latest);
        self.graph.add_read(thread, action, at, source, self.rules)
    }

    /// The read of an await, which goes on with what stands at the places `accepted`; `None` if it waits for now.
    pub(super) fn read_awaited(
        &mut self,
        thread: usize,
        action: Action,
        at: At,
        accepted: &[usize],
    ) -> Option<EventId> {
        let Action::Read { word, .. } = action else { unreachable!("{action:?} is no read") };
        let latest = self.graph.latest(word);
        for &place in accepted {
            if place != latest {
                self.read_later(thread, action, at, word, place);
            }
        }
        if accepted.contains(&latest) {
            let mut waiting = self.graph.clone();
            waiting.add_read(thread, action, at, Source::Waits, self.rules);
            waiting.threads[thread].status = Status::Waits;
            self.later(waiting, [None; 2]);
            let source = self.graph.source_at(word, latest);
            return Some(self.graph.add_read(thread, action, at, source, self.rules));
        }
        self.graph.add_read(thread, action, at, Source::Waits, self.rules);
        None
    }

    /// A store, or the second half of a read-modify-write; `None` if nothing allowed comes of it.
    pub(super) fn write(&mut self, thread: usize, action: Action, at: At) -> Option<EventId> {
        self.revisit(thread, action, at);
        let mut places = self.places(&self.graph, thread, action);
        let own = places.pop()?;
        for place in places {
            let mut graph = self.graph.clone();
            let write = graph.add_write(thread, action, at, place, self.rules);
            if allows(&graph, &[write], self.rules) {
                self.later(graph, [Some(write), None]);
            }
        }
        let write = self.graph.add_write(thread, action, at, own, self.rules);
        allows(&self.graph, &[write], self.rules).then_some(write)
    }

    /// The places in `mo` that the next write of a thread may take, oldest first.
    fn places(&self, graph: &Graph, thread: usize, action: Action) -> Vec<usize> {
        let Action::Write { word, locked, .. } = action else { unreachable!("{action:?} is no write") };
        if locked && self.rules.hold(Rule::Atomicity) {
            let source = graph.last(thread).map_or(Source::Waits, |read| read.source);
            let after = graph.place_of(word, source).map(|place| place + 1);
            return after.filter(|&place| !graph.is_locked(word, place)).into_iter().collect();
        }
        let oldest = floor(graph, word, &graph.next_hb(thread), self.rules) + 1;
        (oldest..=graph.latest(word) + 1).filter(|&place| !self.is_locked(graph, word, place)).collect()
    }

    /// Lets the reads that are there already return the next write of a thread.
    fn revisit(&mut self, thread: usize, action: Action, at: At) {
        let Action::Write { word, value, .. } = action else { unreachable!("{action:?} is no write") };
        let prefix = self.graph.prefix(thread);
        let mut found = Vec::new();
        for (id, event) in self.graph.events() {
            let Action::Read { word: read, half, awaits, .. } = event.action else { continue };
            let refuses = awaits && matches!(half, Half::If { .. }) && !half.writes(value);
            if read == word
                && !prefix.contains(id)
                && !refuses
                && let Some(kept) = kept(&self.graph, event, &prefix)
            {
                found.push((id, awaits, kept));
            }
        }
        for (read, awaits, kept) in found {
            let rest = self.graph.restricted(&kept);
            for place in self.places(&rest, thread, action) {
                let mut graph = rest.clone();
                let write = graph.add_write(thread, action, at, place, self.rules);
                graph.redirect(read, Source::Write(write), self.rules);
                if allows(&graph, &[write, read], self.rules) {
                    graph.unverified = awaits.then(|| read.thread());
                    self.later(graph, [Some(write), Some(read)]);
                }
            }
        }
    }
}

/// What stays when a read is revisited; `None` if this is not the graph to revisit it from.
fn kept(graph: &Graph, read: &Event, prefix: &Clock) -> Option<Clock> {
    let mut kept = *prefix;
    for (number, thread) in graph.threads.iter().enumerate() {
        kept.raise(number, thread.events.partition_point(|event| event.stamp <= read.stamp));
    }
    graph
        .events()
        .filter(|(id, event)| event.stamp == read.stamp || !kept.contains(*id))
        .all(|(id, event)| is_default(graph, id, event, prefix))
        .then_some(kept)
}

/// Whether an event is the default choice in view of what was there before it.
fn is_default(graph: &Graph, id: EventId, event: &Event, prefix: &Clock) -> bool {
    let seen = |other: EventId| prefix.contains(other) || graph.event(other).stamp <= event.stamp;
    let word = match event.action {
        Action::Fence { .. } => return true,
        Action::Read { awaits: true, .. } => return event.waits(),
        Action::Read { word, .. } => word,
        Action::Write { word, .. } => {
            let reads_it = |(reader, one): (EventId, &Event)| one.source == Source::Write(id) && seen(reader);
            if graph.events().any(reads_it) {
                return false;
            }
            word
        }
    };
    let place = graph.place(id).unwrap_or(0);
    !graph.writes(word)[place..].iter().any(|&newer| seen(newer))
}
