//! The events of an execution: what a thread did, and, as [`Clock`]s, what came before it.

use core::panic::Location;

use super::clock::{Clock, EventId};
use crate::Ordering;

/// A line of the program.
pub(super) type At = &'static Location<'static>;

/// A word of memory, by the order of its making.
pub(super) type Word = u32;

/// The order of an access; `None` for one that is not atomic.
pub(super) type Order = Option<Ordering>;

pub(super) fn acquires(order: Order) -> bool {
    matches!(order, Some(Ordering::Acquire | Ordering::AcqRel | Ordering::SeqCst))
}

pub(super) fn releases(order: Order) -> bool {
    matches!(order, Some(Ordering::Release | Ordering::AcqRel | Ordering::SeqCst))
}

/// What a read is half of.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Half {
    /// A plain load.
    No,
    /// A read-modify-write that writes in any case.
    Always,
    /// A compare-exchange: it writes if the value is `expected`, and is a load of order `otherwise` if not.
    If { expected: u64, otherwise: Ordering },
}

impl Half {
    pub(super) fn writes(self, value: u64) -> bool {
        match self {
            Self::No => false,
            Self::Always => true,
            Self::If { expected, .. } => value == expected,
        }
    }
}

/// What a thread does next; a second run of it with the same values must do the same.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Action {
    /// `awaits`: it happens only when it returns what the thread waits for.
    Read {
        word: Word,
        order: Order,
        half: Half,
        awaits: bool,
    },
    /// `locked`: the second half of a read-modify-write.
    Write {
        word: Word,
        value: u64,
        order: Order,
        locked: bool,
    },
    Fence {
        order: Ordering,
    },
}

impl Action {
    pub(super) fn word(self) -> Option<Word> {
        match self {
            Self::Read { word, .. } | Self::Write { word, .. } => Some(word),
            Self::Fence { .. } => None,
        }
    }
}

/// Where the value of a read comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Source {
    /// It still waits, and has read nothing.
    Waits,
    /// What the word held before the threads began.
    Initial,
    Write(EventId),
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Event {
    pub(super) action: Action,
    /// The line of the program.
    pub(super) at: At,
    /// Of a read.
    pub(super) source: Source,
    /// What was read or written.
    pub(super) value: u64,
    /// Grows in the order in which events were added.
    pub(super) stamp: u32,
    /// What it depends on: before it in `sb` and `rf`.
    pub(super) porf: Clock,
    /// What happened before it.
    pub(super) hb: Clock,
    /// What a write hands to those that acquire it.
    pub(super) message: Clock,
    /// What the relaxed reads of the thread so far would have acquired: an acquire fence turns it into `hb`.
    pub(super) pending: Clock,
    /// What the last release fence of the thread covers: every later write hands it on.
    pub(super) fenced: Clock,
}

impl Event {
    /// Whether it is the first half of a read-modify-write that goes on to write.
    pub(super) fn writes(&self) -> bool {
        matches!(self.action, Action::Read { half, .. } if !self.waits() && half.writes(self.value))
    }

    pub(super) fn waits(&self) -> bool {
        matches!(self.action, Action::Read { .. }) && self.source == Source::Waits
    }
}
