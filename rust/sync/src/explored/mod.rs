//! A stateless model checker: every execution of a few threads that the memory model allows, each once.
//!
//! Under `--cfg explored` the atomics of this crate are those of [`atomics`]: they hold nothing, and ask the checker what
//! each load returns. There are no OS threads. An execution is a [`graph`]; a thread is run from its start with the values
//! that the graph gives to its loads, and each access beyond them [grows](grow) the graph. A thread that can go no
//! further (it waits) is left by unwinding. The memory model is RC11 ([`consistency`]).
//!
//! There is no bound on preemptions: [`explore`] is exhaustive. It needs threads that end: loops wait by
//! [`crate::wait_until`] or [`crate::Backoff`], and a loop that waits changes nothing.
//!
//! ```ignore
//! let found = explore(|| {
//!     let word = Rc::new(AtomicU64::new(0));
//!     let other = Rc::clone(&word);
//!     Program::new(vec![Box::new(move || word.store(1, Ordering::Relaxed))], move || {
//!         assert_eq!(other.load(Ordering::Relaxed), 1);
//!     })
//! });
//! assert!(found.failure.is_none());
//! ```

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
