//! A stateless model checker: every execution of a few threads that the memory model allows, each once.
//!
//! Under `--cfg explored` the atomics of this crate are those of `atomics`: they hold nothing, and ask the checker what
//! each load returns. There are no OS threads. An execution is a graph (`graph`); a thread is run from its start with the values
//! that the graph gives to its loads, and each access beyond them grows it (`grow`). A thread that can go no
//! further (it waits) is left by unwinding. The memory model is RC11 (`consistency`).
//!
//! There is no bound on preemptions: [`explore`] is exhaustive. It needs threads that end: loops wait by
//! [`crate::wait_until`] or [`crate::Backoff`], and a loop that waits changes nothing. A wait is taken to last until what
//! it reads changes: what a loop does that gives up after a number of rounds is not explored.
//!
//! `tests/by_hand.rs` shows how it is used.

mod atomics;
mod clock;
mod consistency;
mod engine;
mod event;
mod graph;
mod grow;
mod plain;
mod report;
mod runner;
mod search;
mod seqcst;

#[cfg(test)]
mod tests;

pub(crate) use self::runner::wait_until;
pub use self::{
    atomics::{AtomicBool, AtomicU32, AtomicU64, fence, spin_loop, yield_now},
    plain::PlainU64,
    search::{Exploration, Failure, FailureKind, Program, explore},
};

/// A rule of the memory model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rule {
    Coherence,
    Atomicity,
    ScFences,
    ReleaseSequences,
    FencesSynchronise,
}

/// The rules that hold: all, but in the tests that break one to see that it is missed.
#[derive(Clone, Copy, Debug)]
struct Rules {
    broken: Option<Rule>,
}

impl Rules {
    const RC11: Self = Self { broken: None };

    fn hold(self, rule: Rule) -> bool {
        self.broken != Some(rule)
    }
}
