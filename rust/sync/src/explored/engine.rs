//! The checker of one exploration: what each access of the code comes to, by what is going on.

use super::{
    clock::EventId,
    consistency::race,
    event::{Action, At, Event, Half, Order, Word},
    grow::Growth,
};
use crate::Ordering;

/// More events than this in one thread are taken for a loop that waits without saying so.
const EVENTS: usize = 1000;

/// The token of an unwinding that is no failure.
pub(super) struct Stopped;

/// Why a run of a thread ended.
#[derive(Debug, PartialEq)]
pub(super) enum End {
    /// The thread's end.
    Done,
    /// It waits.
    Waits,
    /// All of its record was run again.
    Recorded,
    /// The graph is of no use: a wait was given a value that it does not wait for, or no write fits.
    Dropped,
    /// An assertion of the thread.
    Panicked(String),
    Race(String),
    /// The thread cannot be checked; this is a mistake of the model, never a verdict.
    Misuse(String),
}

/// What the accesses do.
#[derive(Debug)]
pub(super) enum Mode {
    /// Before the threads begin: words are made and changed.
    Setup,
    /// A thread runs, and goes on beyond its record.
    Run,
    /// A thread runs to the end of its record.
    Record,
    /// As `Record`, to learn whether its wait could ever end in this graph.
    Stuck,
    /// A condition is tried with this value, or with any.
    Probe { answer: Option<u64>, met: Option<(Action, At)>, wrote: bool },
    /// All threads are done: loads return the last value.
    End,
}

/// The checker of one thread of the test program.
#[derive(Debug)]
pub(super) struct Engine {
    pub(super) growth: Growth,
    pub(super) words: Vec<At>,
    pub(super) initial: Vec<u64>,
    pub(super) mode: Mode,
    pub(super) thread: usize,
    pub(super) position: usize,
    /// Where the last round of a waiting loop ended.
    pub(super) paused: Option<usize>,
    /// The places with which the await under way goes on.
    pub(super) awaiting: Option<Vec<usize>>,
    pub(super) end: Option<End>,
    /// Of a `Stuck` run: the wait can end.
    pub(super) can_go_on: bool,
}

impl Engine {
    pub(super) fn new(growth: Growth) -> Self {
        Self {
            growth,
            words: Vec::new(),
            initial: Vec::new(),
            mode: Mode::Setup,
            thread: 0,
            position: 0,
            paused: None,
            awaiting: None,
            end: None,
            can_go_on: false,
        }
    }

    pub(super) fn stop<T>(&mut self, end: End) -> Result<T, Stopped> {
        self.end = Some(end);
        Err(Stopped)
    }

    pub(super) fn misuse<T>(&mut self, why: impl Into<String>) -> Result<T, Stopped> {
        self.stop(End::Misuse(why.into()))
    }

    pub(super) fn record(&self) -> Option<&Event> {
        self.growth.graph.threads[self.thread].events.get(self.position)
    }

    /// The next event if it is on record: it must be the same as then.
    fn replayed(&mut self, action: Action) -> Result<Option<u64>, Stopped> {
        match self.record() {
            Some(event) if event.action == action => {
                let value = event.value;
                self.position += 1;
                Ok(Some(value))
            }
            Some(event) => {
                let text = format!(
                    "thread {} is not deterministic: {:?} where an earlier run did {:?}",
                    self.thread, action, event.action
                );
                self.misuse(text)
            }
            None if matches!(self.mode, Mode::Record | Mode::Stuck) => self.stop(End::Recorded),
            None if self.position >= EVENTS => {
                let thread = self.thread;
                self.misuse(format!(
                    "thread {thread} has more than {EVENTS} events: a loop must wait by Backoff, and change nothing then"
                ))
            }
            None => Ok(None),
        }
    }

    fn added(&mut self, id: EventId) -> Result<(), Stopped> {
        self.position += 1;
        match race(&self.growth.graph, id) {
            Some(other) => {
                let text = race_text(self, id, other);
                self.stop(End::Race(text))
            }
            None => Ok(()),
        }
    }

    pub(super) fn read(&mut self, word: Word, order: Order, half: Half, at: At) -> Result<u64, Stopped> {
        let action = Action::Read { word, order, half, awaits: self.awaiting.is_some() };
        let graph = &self.growth.graph;
        match &mut self.mode {
            Mode::Setup => Ok(self.initial[word as usize]),
            Mode::End => Ok(graph.value_at(word, graph.latest(word))),
            Mode::Probe { met: Some(_), .. } => self.misuse("a condition that is waited for must be one access"),
            Mode::Probe { answer, met, .. } => {
                *met = Some((Action::Read { word, order, half, awaits: true }, at));
                Ok(answer.unwrap_or_else(|| graph.value_at(word, graph.latest(word))))
            }
            Mode::Run | Mode::Record | Mode::Stuck => {
                if let Some(value) = self.replayed(action)? {
                    return Ok(value);
                }
                let id = match self.awaiting.clone() {
                    Some(places) => match self.growth.read_awaited(self.thread, action, at, &places) {
                        Some(id) => id,
                        None => return self.stop(End::Waits),
                    },
                    None => self.growth.read(self.thread, action, at),
                };
                self.added(id)?;
                Ok(self.growth.graph.event(id).value)
            }
        }
    }

    pub(super) fn write(&mut self, word: Word, value: u64, order: Order, locked: bool, at: At) -> Result<(), Stopped> {
        let action = Action::Write { word, value, order, locked };
        match &mut self.mode {
            Mode::Setup => {
                self.initial[word as usize] = value;
                Ok(())
            }
            Mode::Probe { met: Some(_), wrote, .. } if locked => {
                *wrote = true;
                Ok(())
            }
            Mode::Probe { .. } => self.misuse("a condition that is waited for must not store"),
            Mode::End => self.misuse("a store after the threads"),
            Mode::Run | Mode::Record | Mode::Stuck => {
                if self.replayed(action)?.is_some() {
                    return Ok(());
                }
                match self.growth.write(self.thread, action, at) {
                    Some(id) => self.added(id),
                    None => self.stop(End::Dropped),
                }
            }
        }
    }

    pub(super) fn fence(&mut self, order: Ordering, at: At) -> Result<(), Stopped> {
        match self.mode {
            Mode::Setup | Mode::End => Ok(()),
            Mode::Probe { .. } => self.misuse("a condition that is waited for must be one access, without a fence"),
            Mode::Run | Mode::Record | Mode::Stuck => {
                if self.replayed(Action::Fence { order })?.is_none() {
                    self.growth.graph.add_fence(self.thread, order, at);
                    self.position += 1;
                }
                Ok(())
            }
        }
    }

    /// A loop waits: after a round in which it changed nothing and learned nothing new, the thread stays here.
    ///
    /// Another round would be the same, until one of its loads returns a newer write: then it is that load that returns
    /// it, by a revisit.
    pub(super) fn pause(&mut self) -> Result<(), Stopped> {
        match self.mode {
            Mode::Setup | Mode::End => return self.misuse("nothing will end this wait"),
            Mode::Probe { .. } => return self.misuse("a condition that is waited for must not wait"),
            Mode::Run | Mode::Record | Mode::Stuck => {}
        }
        let Some(begin) = self.paused.replace(self.position) else { return Ok(()) };
        let graph = &self.growth.graph;
        let events = &graph.threads[self.thread].events[..self.position];
        let mut reads = 0;
        let mut newest = true;
        for (index, event) in events.iter().enumerate().skip(begin) {
            let word = match event.action {
                Action::Write { .. } => return Ok(()),
                Action::Fence { .. } => continue,
                Action::Read { word, .. } => word,
            };
            let place = graph.place(EventId::new(self.thread, index));
            let known = events[..index].iter().rposition(|before| before.action.word() == Some(word));
            if known.is_none_or(|before| graph.place(EventId::new(self.thread, before)) != place) {
                return Ok(());
            }
            reads += 1;
            newest &= place == Some(graph.latest(word));
        }
        if reads == 0 {
            return self.misuse("a loop that waits must read what it waits for");
        }
        self.can_go_on = !newest;
        self.stop(End::Waits)
    }

    pub(super) fn last_known(&self, word: Word) -> u64 {
        let own = self.growth.graph.threads.get(self.thread);
        let known = own.and_then(|own| own.events.iter().rev().find(|event| event.action.word() == Some(word)));
        known.map_or_else(|| self.initial[word as usize], |event| event.value)
    }

    pub(super) fn begin_await(&mut self) -> Result<Await, Stopped> {
        match self.mode {
            Mode::Setup | Mode::End => Ok(Await::Outside),
            Mode::Probe { .. } => self.misuse("a condition that is waited for must not wait"),
            Mode::Run | Mode::Record | Mode::Stuck => match self.record() {
                Some(event) if !event.waits() => {
                    self.awaiting = Some(Vec::new());
                    Ok(Await::Replayed)
                }
                Some(event) => match (&self.mode, event.action) {
                    (Mode::Stuck, Action::Read { word, .. }) => {
                        let graph = &self.growth.graph;
                        Ok(Await::CanItEnd(graph.value_at(word, graph.latest(word))))
                    }
                    _ => self.stop(End::Waits),
                },
                None if !matches!(self.mode, Mode::Run) => self.stop(End::Recorded),
                None => Ok(Await::Fresh),
            },
        }
    }

    /// The value of each place that the condition may see, given the access it makes.
    pub(super) fn candidates(&self, action: Action) -> Vec<(usize, u64)> {
        let Action::Read { word, .. } = action else { return Vec::new() };
        self.growth.sources(self.thread, word).map(|place| (place, self.growth.graph.value_at(word, place))).collect()
    }
}

/// What a wait that begins is.
pub(super) enum Await {
    /// Before or after the threads: the condition must hold.
    Outside,
    /// It ended in the record.
    Replayed,
    /// It never ended; would this value end it?
    CanItEnd(u64),
    Fresh,
}

fn race_text(engine: &Engine, id: EventId, other: EventId) -> String {
    let line = |id: EventId| engine.growth.graph.event(id).at;
    format!("data race: {} and {} are not ordered", line(other), line(id))
}

/// What is wrong with an event that a graph begins with.
pub(super) fn race_in(engine: &Engine) -> Option<String> {
    let graph = &engine.growth.graph;
    let racing = |id: EventId| race(graph, id).map(|other| race_text(engine, id, other));
    graph.changed.iter().flatten().find_map(|&id| racing(id))
}
