//! The lock-free protocols, explored by two model checkers with the production types.
//!
//! Each model is a function over the orders of the protocol and over the steps of the algorithm. The right form
//! must hold in every execution; each *twin* has one order weakened or one step misplaced, and must be caught, for
//! the stated reason: a model that cannot fail shows nothing.
//!
//! `make loom` runs them under loom, within a bound on preemptions; `make explore` under the checker of `shadow_mmu_sync`,
//! without one. What loom does not explore, and what x86 hides, is in `docs/memory-ordering.md`.
//!
//! A thread of a model is run many times: it shares atomics only, which are made in [`Model::new`]'s state.

mod clean;
mod cycle;
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

#[cfg(explored)]
mod by_explorer;
#[cfg(loom)]
mod by_loom;

#[cfg(explored)]
use by_explorer::{TOOL, explore, give_way};
#[cfg(loom)]
use by_loom::{TOOL, explore, give_way};

use std::{env, fs::OpenOptions, io::Write, rc::Rc, time::Instant};

/// Why a twin must fail: its assertion fires.
const STALE: &str = "a stale translation was used after the flush";

type Step = Box<dyn Fn()>;

/// What the threads of a model do, and what must be true when they are done.
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
        let state = Rc::new(state);
        let bind = |step: fn(&S)| -> Step {
            let state = Rc::clone(&state);
            Box::new(move || step(&state))
        };
        Self { threads: threads.map(bind).into(), at_end: bind(at_end) }
    }
}

/// The model holds in every execution.
#[track_caller]
fn holds(name: &str, model: fn() -> Model) {
    let start = Instant::now();
    let (executions, outcome) = explore(model);
    assert!(outcome.is_ok(), "{name} fails in execution {executions}: {}", outcome.unwrap_err());
    report(name, "holds", &format!("holds in all {executions} executions"), executions, start);
}

/// The twin fails, with `why` in its message.
#[track_caller]
fn breaks(name: &str, why: &str, model: fn() -> Model) {
    let start = Instant::now();
    let (executions, outcome) = explore(model);
    let message = outcome.expect_err("the weakened twin was not caught");
    assert!(message.contains(why), "{name} fails for another reason: {message}");
    report(name, "caught", &format!("caught in execution {executions}"), executions, start);
}

/// A line for the reader (`cargo test -- --nocapture`), and one of JSON in the file that `MODELS_OUT` names.
#[allow(clippy::print_stdout, reason = "the size of each exploration is what a reader of the run looks for")]
fn report(name: &str, kind: &str, text: &str, executions: u64, start: Instant) {
    let seconds = start.elapsed().as_secs_f64();
    println!("{name}: {text} ({TOOL}, {seconds:.1} s)");
    if let Some(path) = env::var_os("MODELS_OUT") {
        let mut file = OpenOptions::new().create(true).append(true).open(path).expect("MODELS_OUT can be written");
        // One write a line: the tests run on several threads.
        let line = format!(
            "{{\"model\": {name:?}, \"kind\": {kind:?}, \"tool\": {TOOL:?}, \"executions\": {executions}, \
             \"seconds\": {seconds:.3}}}\n"
        );
        file.write_all(line.as_bytes()).expect("MODELS_OUT can be written");
    }
}
