//! The models under loom: every execution within a number of preemptions.

#![allow(clippy::disallowed_types, reason = "the count of executions is outside the models")]

use std::{
    env,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
};

use loom::{model::Builder, thread};

use super::Model;

pub(super) const TOOL: &str = "loom";

/// Enough for every twin, few enough for three threads; `LOOM_MAX_PREEMPTIONS` overrides it.
const PREEMPTIONS: usize = 3;

/// Lets the other threads run, though nothing is waited for: beyond what the bound on preemptions allows.
pub(super) fn give_way() {
    thread::yield_now();
}

fn run(model: Model, first: usize) {
    let Model { mut threads, at_end } = model;
    let count = threads.len();
    threads.rotate_left(first % count);
    let mut threads = threads.into_iter();
    let own = threads.next().expect("a model has threads");
    let others: Vec<_> = threads.map(thread::spawn).collect();
    own();
    for other in others {
        other.join().expect("loom reports a panic by itself");
    }
    at_end();
}

/// Explores the model once for each choice of the thread that begins: loom finds races by the last access to each
/// word, and a thread that reads a word before it stores there hides the race of its store with an earlier reader.
/// From another beginning it is found.
pub(super) fn explore(model: fn() -> Model) -> (u64, Result<(), String>) {
    let executions = Arc::new(AtomicU64::new(0));
    let threads = Arc::new(AtomicUsize::new(1));
    let preemptions = env::var("LOOM_MAX_PREEMPTIONS").ok().map_or(PREEMPTIONS, |bound| {
        bound.parse().unwrap_or_else(|_| panic!("LOOM_MAX_PREEMPTIONS={bound}: expected a number"))
    });
    let mut first = 0;
    while first < threads.load(Ordering::Relaxed) {
        let mut builder = Builder::new();
        builder.preemption_bound = Some(preemptions);
        let (count, size) = (Arc::clone(&executions), Arc::clone(&threads));
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            builder.check(move || {
                count.fetch_add(1, Ordering::Relaxed);
                let model = model();
                size.store(model.threads.len(), Ordering::Relaxed);
                run(model, first);
            });
        }));
        if let Err(panic) = outcome {
            let text = match panic.downcast::<String>() {
                Ok(text) => *text,
                Err(panic) => panic.downcast::<&str>().map_or_else(|_| String::new(), |text| (*text).to_owned()),
            };
            return (executions.load(Ordering::Relaxed), Err(text));
        }
        first += 1;
    }
    (executions.load(Ordering::Relaxed), Ok(()))
}
