//! Sets of events that hold, with an event, all earlier ones of its thread: one number a thread.
//!
//! What happened before an event, what it depends on, what a release hands over: all are such sets.

/// The most threads of a model.
pub(super) const THREADS: usize = 8;

/// An event: the thread, and the position there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct EventId {
    pub(super) thread: u8,
    pub(super) index: u16,
}

impl EventId {
    pub(super) fn new(thread: usize, index: usize) -> Self {
        Self { thread: thread as u8, index: index as u16 }
    }

    pub(super) fn thread(self) -> usize {
        usize::from(self.thread)
    }

    pub(super) fn index(self) -> usize {
        usize::from(self.index)
    }
}

/// For each thread, how many of its events are in the set.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Clock([u16; THREADS]);

impl Clock {
    pub(super) fn contains(&self, event: EventId) -> bool {
        self.0[event.thread()] > event.index
    }

    pub(super) fn count(&self, thread: usize) -> usize {
        usize::from(self.0[thread])
    }

    /// At least the first `count` events of a thread.
    pub(super) fn raise(&mut self, thread: usize, count: usize) {
        self.0[thread] = self.0[thread].max(count as u16);
    }

    pub(super) fn join(&mut self, other: &Self) {
        for (own, other) in self.0.iter_mut().zip(other.0) {
            *own = (*own).max(other);
        }
    }

    /// With an event and all before it in its thread.
    pub(super) fn with(mut self, event: EventId) -> Self {
        self.raise(event.thread(), event.index() + 1);
        self
    }

    pub(super) fn joined(mut self, other: &Self) -> Self {
        self.join(other);
        self
    }
}
