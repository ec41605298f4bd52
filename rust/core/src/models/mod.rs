//! The lock-free protocols, explored by loom with the production types.
//!
//! Each model is a function over the orders of the protocol and over the steps of the algorithm. The right form
//! must hold in every execution; each *twin* has one order weakened or one step misplaced, and must be caught, for
//! the stated reason: a model that cannot fail shows nothing.
//!
//! Run with `make loom`. What loom does not explore, and what x86 hides, is in `docs/memory-ordering.md`.

#![allow(clippy::disallowed_types, reason = "the count of executions is outside the models")]

mod clean;
mod fast_fault;
mod harvest;
mod hint;
mod invalidate;
mod kick;
mod link;
mod obsolete;
mod orders;
mod plain;
mod publish;
mod root;
mod shortcut;
mod walk;

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use loom::{model::Builder, thread};

/// Enough for every twin, few enough for three threads.
const PREEMPTIONS: usize = 3;

/// Of each model at most; rotating a smaller one further begins anew.
const THREADS: usize = 3;

/// Why a twin must fail: its assertion fires.
const STALE: &str = "a stale translation was used after the flush";

type Step = Box<dyn FnOnce()>;

/// One execution of a model: what its threads do, and what must be true when they are done.
struct Model {
    threads: Vec<Step>,
    at_end: Step,
}

impl Model {
    /// Threads over the same `state`; what must hold is asserted in them.
    fn new<S: 'static, const N: usize>(state: S, threads: [fn(&S); N]) -> Self {
        Self::checked(state, threads, |_| ())
    }

    /// As [`Model::new`], with an assertion about the final state.
    fn checked<S: 'static, const N: usize>(state: S, threads: [fn(&S); N], at_end: fn(&S)) -> Self {
        let state = Arc::new(state);
        let bind = |step: fn(&S)| -> Step {
            let state = Arc::clone(&state);
            Box::new(move || step(&state))
        };
        Self { threads: threads.map(bind).into(), at_end: bind(at_end) }
    }

    fn run(mut self, first: usize) {
        let count = self.threads.len();
        self.threads.rotate_left(first % count);
        let mut threads = self.threads.into_iter();
        let own = threads.next().expect("a model has threads");
        let others: Vec<_> = threads.map(thread::spawn).collect();
        own();
        for other in others {
            other.join().expect("loom reports a panic by itself");
        }
        (self.at_end)();
    }
}

/// Explores the model once for each choice of the thread that begins: loom finds races by the last access to each
/// word, and a thread that reads a word before it stores there hides the race of its store with an earlier reader.
/// From another beginning it is found.
fn explore(model: fn() -> Model) -> (u64, Result<(), String>) {
    let executions = Arc::new(AtomicU64::new(0));
    for first in 0..THREADS {
        let mut builder = Builder::new();
        builder.preemption_bound = Some(PREEMPTIONS);
        let count = Arc::clone(&executions);
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            builder.check(move || {
                count.fetch_add(1, Ordering::Relaxed);
                model().run(first);
            });
        }));
        if let Err(panic) = outcome {
            let text = match panic.downcast::<String>() {
                Ok(text) => *text,
                Err(panic) => panic.downcast::<&str>().map_or_else(|_| String::new(), |text| (*text).to_owned()),
            };
            return (executions.load(Ordering::Relaxed), Err(text));
        }
    }
    (executions.load(Ordering::Relaxed), Ok(()))
}

/// The model holds in every execution.
#[track_caller]
fn holds(name: &str, model: fn() -> Model) {
    let (executions, outcome) = explore(model);
    assert_eq!(outcome, Ok(()), "{name} fails in execution {executions}");
    report(&format!("{name}: holds in all {executions} executions"));
}

/// The twin fails, with `why` in its message.
#[track_caller]
fn breaks(name: &str, why: &str, model: fn() -> Model) {
    let (executions, outcome) = explore(model);
    let message = outcome.expect_err("the weakened twin was not caught");
    assert!(message.contains(why), "{name} fails for another reason: {message}");
    report(&format!("{name}: caught in execution {executions}"));
}

/// Shown by `cargo test -- --nocapture`.
#[allow(clippy::print_stdout, reason = "the size of each exploration is what a reader of the run looks for")]
fn report(line: &str) {
    println!("{line}");
}
