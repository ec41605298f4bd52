//! The search itself: takes one graph after the other and runs its threads until nothing is left to do.

use core::fmt;
use std::rc::Rc;

use super::{
    Rules,
    clock::THREADS,
    engine::{End, race_in},
    graph::{Graph, Status},
    grow::Growth,
    report::dump,
    runner::{Extent, run, run_end, with, within},
};

/// What is explored: threads over a state that was made with them, and what must be true when they are done.
///
/// The threads are run many times, in one OS thread; all that they share must be atomics of this build (or
/// [`super::PlainU64`]), and what they do may depend on nothing but what they load.
pub struct Program {
    threads: Vec<Box<dyn Fn()>>,
    at_end: Box<dyn Fn()>,
}

impl fmt::Debug for Program {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Program({} threads)", self.threads.len())
    }
}

impl Program {
    /// # Panics
    /// If there are more threads than the sets of the checker hold.
    #[must_use]
    pub fn new(threads: Vec<Box<dyn Fn()>>, at_end: impl Fn() + 'static) -> Self {
        assert!(threads.len() <= THREADS, "{} threads: at most {THREADS} can be explored", threads.len());
        Self { threads, at_end: Box::new(at_end) }
    }
}

/// The sort of a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FailureKind {
    /// A panic of the code.
    Assertion,
    /// Two accesses to a [`super::PlainU64`] that nothing orders.
    Race,
    /// Threads wait, and nothing will end it.
    Stuck,
}

/// An execution that must not be.
#[derive(Clone, Debug)]
pub struct Failure {
    /// What sort of failure.
    pub kind: FailureKind,
    /// The text of the panic, or what is wrong.
    pub message: String,
    /// The execution: what each thread did, and where each value came from.
    pub execution: String,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}\n{}", self.message, self.execution)
    }
}

/// What was found.
#[derive(Clone, Debug)]
pub struct Exploration {
    /// Executions in which every thread reached its end.
    pub executions: u64,
    /// Executions in which a thread waits for a write that this execution does not have: prefixes of others.
    pub blocked: u64,
    /// Partial executions that were gone on with.
    pub graphs: u64,
    /// The first failure; the search ends there.
    pub failure: Option<Failure>,
}

/// Explores every execution of a program, until one fails.
///
/// # Panics
/// If the program cannot be checked: it is not deterministic, waits in a way that changes something, or makes an atomic
/// in a thread.
pub fn explore(program: impl FnOnce() -> Program) -> Exploration {
    explore_by(Rules::RC11, program)
}

pub(super) fn explore_by(rules: Rules, program: impl FnOnce() -> Program) -> Exploration {
    let nothing = Graph::new(0, Rc::from([]));
    within(Growth { graph: nothing, todo: Vec::new(), rules }, || {
        let program = program();
        with(|engine| {
            let initial = Rc::from(engine.initial.as_slice());
            engine.growth.todo.push(Graph::new(program.threads.len(), initial));
        });
        let mut search = Search { program, found: Exploration { executions: 0, blocked: 0, graphs: 0, failure: None } };
        search.run();
        search.found
    })
}

struct Search {
    program: Program,
    found: Exploration,
}

impl Search {
    fn run(&mut self) {
        while self.found.failure.is_none()
            && with(|engine| {
                let next = engine.growth.todo.pop();
                next.map(|graph| engine.growth.graph = graph).is_some()
            })
        {
            self.found.graphs += 1;
            self.go_on();
        }
    }

    fn fail(&mut self, kind: FailureKind, message: String) {
        let execution = with(|engine| dump(&engine.growth.graph, &engine.words));
        self.found.failure = Some(Failure { kind, message, execution });
    }

    /// Whether the graph can be gone on with after a run that ended like this.
    fn goes_on(&mut self, end: End) -> bool {
        match end {
            End::Done | End::Waits | End::Recorded => return true,
            End::Dropped => {}
            End::Panicked(text) => self.fail(FailureKind::Assertion, text),
            End::Race(text) => self.fail(FailureKind::Race, text),
            End::Misuse(text) => {
                let execution = with(|engine| dump(&engine.growth.graph, &engine.words));
                panic!("this cannot be explored: {text}\n{execution}");
            }
        }
        false
    }

    fn thread(&mut self, thread: usize, extent: Extent) -> bool {
        let end = run(thread, &*self.program.threads[thread], extent);
        self.goes_on(end)
    }

    /// Runs the threads of the graph at hand to their ends.
    fn go_on(&mut self) {
        if let Some(text) = with(|engine| race_in(engine)) {
            return self.fail(FailureKind::Race, text);
        }
        // First of all: was the wait that this graph ends a wait for that value?
        if let Some(thread) = with(|engine| engine.growth.graph.unverified.take())
            && !self.thread(thread, Extent::Record)
        {
            return;
        }
        while let Some(thread) = with(|engine| next_thread(&engine.growth.graph)) {
            if !self.thread(thread, Extent::Whole) {
                return;
            }
        }
        self.ended();
    }

    fn ended(&mut self) {
        let is = |thread: usize, status| with(|engine| engine.growth.graph.threads[thread].status == status);
        let all = 0..self.program.threads.len();
        let waiting: Vec<_> = all.clone().filter(|&thread| is(thread, Status::Waits)).collect();
        if !waiting.is_empty() {
            self.found.blocked += 1;
            for &thread in &waiting {
                if !self.thread(thread, Extent::Stuck) || with(|engine| engine.can_go_on) {
                    return;
                }
            }
            return self.fail(FailureKind::Stuck, format!("threads {waiting:?} wait, and nothing will end it"));
        }
        self.found.executions += 1;
        // Again, so that what the threads keep outside the atomics is that of this execution; and they must do the same.
        for thread in all {
            if !self.thread(thread, Extent::Record) {
                return;
            }
        }
        let end = run_end(&*self.program.at_end);
        self.goes_on(end);
    }
}

/// A thread between the halves of a read-modify-write first, then the lowest that has more to do.
fn next_thread(graph: &Graph) -> Option<usize> {
    graph.in_between().or_else(|| graph.threads.iter().position(|thread| thread.status == Status::Runs))
}
