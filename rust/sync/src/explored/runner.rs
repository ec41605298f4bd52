//! Runs the threads' code: gives each access of a re-run the recorded value, and lets the graph grow at the first new one.
//!
//! A thread that goes no further is left by unwinding with a private token ([`Stopped`]); nothing is printed, and accesses
//! made by destructors on the way are ignored.

use core::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use super::{
    engine::{Await, End, Engine, Mode, Stopped},
    event::{Action, At, Half, Order, Word},
    graph::Status,
    grow::Growth,
};
use crate::Ordering;

thread_local! {
    static ENGINE: RefCell<Option<Engine>> = const { RefCell::new(None) };
}

/// Asks the checker, and leaves the thread if it says so.
fn ask<T>(question: impl FnOnce(&mut Engine) -> Result<T, Stopped>) -> T {
    let answer = with(question);
    answer.unwrap_or_else(|stopped| resume_unwind(Box::new(stopped)))
}

pub(super) fn with<T>(use_it: impl FnOnce(&mut Engine) -> T) -> T {
    ENGINE.with_borrow_mut(|engine| {
        use_it(engine.as_mut().expect("in a build with `--cfg explored` the atomics work inside an exploration only"))
    })
}

/// Makes a checker for the time of `body`.
pub(super) fn within<T>(growth: Growth, body: impl FnOnce() -> T) -> T {
    struct Gone;
    impl Drop for Gone {
        fn drop(&mut self) {
            ENGINE.set(None);
        }
    }
    ENGINE.with_borrow_mut(|engine| {
        assert!(engine.is_none(), "an exploration inside an exploration");
        *engine = Some(Engine::new(growth));
    });
    let _gone = Gone;
    body()
}

pub(super) fn word(value: u64, at: At) -> Word {
    ask(|engine| {
        if !matches!(engine.mode, Mode::Setup) {
            return engine.misuse("an atomic must be made before the threads begin");
        }
        engine.words.push(at);
        engine.initial.push(value);
        Ok(engine.words.len() as Word - 1)
    })
}

pub(super) fn read(word: Word, order: Order, half: Half, at: At) -> u64 {
    if std::thread::panicking() {
        return with(|engine| engine.last_known(word));
    }
    ask(|engine| engine.read(word, order, half, at))
}

pub(super) fn write(word: Word, value: u64, order: Order, locked: bool, at: At) {
    if !std::thread::panicking() {
        ask(|engine| engine.write(word, value, order, locked, at));
    }
}

pub(super) fn fence(order: Ordering, at: At) {
    if !std::thread::panicking() {
        ask(|engine| engine.fence(order, at));
    }
}

pub(super) fn pause(_: At) {
    if !std::thread::panicking() {
        ask(Engine::pause);
    }
}

/// Tries a condition: whether it holds, what it accesses.
fn probe(done: &mut dyn FnMut() -> bool, answer: Option<u64>) -> (bool, (Action, At)) {
    let before = with(|engine| core::mem::replace(&mut engine.mode, Mode::Probe { answer, met: None, wrote: false }));
    let holds = done();
    ask(|engine| match core::mem::replace(&mut engine.mode, before) {
        Mode::Probe { met: Some(met), wrote, .. } if holds || !wrote => Ok((holds, met)),
        Mode::Probe { met: None, .. } => engine.misuse("a condition that is waited for must be one access"),
        _ => engine.misuse("a condition that does not hold must not change anything"),
    })
}

/// A wait for a condition, which is one access and changes nothing unless it holds.
pub(crate) fn wait_until(done: &mut dyn FnMut() -> bool) {
    if std::thread::panicking() {
        return;
    }
    match ask(Engine::begin_await) {
        Await::Outside => assert!(done(), "nothing will end this wait"),
        Await::Replayed => {
            let holds = done();
            ask(|engine| {
                engine.awaiting = None;
                if holds { Ok(()) } else { engine.stop(End::Dropped) }
            });
        }
        Await::CanItEnd(value) => {
            let (holds, _) = probe(done, Some(value));
            ask(|engine| {
                engine.can_go_on = holds;
                engine.stop::<()>(End::Waits)
            });
        }
        Await::Fresh => {
            let (_, (action, _)) = probe(done, None);
            let mut accepted = with(|engine| engine.candidates(action));
            accepted.retain(|&(_, value)| probe(done, Some(value)).0);
            with(|engine| engine.awaiting = Some(accepted.into_iter().map(|(place, _)| place).collect()));
            let holds = done();
            ask(|engine| {
                engine.awaiting = None;
                if holds { Ok(()) } else { engine.misuse("a condition that is waited for is not deterministic") }
            });
        }
    }
}

/// How far a thread is run.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Extent {
    /// To its end, or until it waits.
    Whole,
    /// To the end of its record.
    Record,
    /// As `Record`, to learn whether its wait can end.
    Stuck,
}

/// Runs a thread from its start.
pub(super) fn run(thread: usize, code: &dyn Fn(), extent: Extent) -> End {
    with(|engine| {
        engine.mode = match extent {
            Extent::Whole => Mode::Run,
            Extent::Record => Mode::Record,
            Extent::Stuck => Mode::Stuck,
        };
        (engine.thread, engine.position) = (thread, 0);
        (engine.paused, engine.awaiting, engine.end, engine.can_go_on) = (None, None, None, false);
    });
    let outcome = caught(code);
    with(|engine| {
        let end = match (outcome, engine.end.take()) {
            (Err(text), _) => End::Panicked(text),
            // The token may be taken for a panic by the thread's own code: its reason stands.
            (Ok(()), Some(end)) => end,
            (Ok(()), None) if engine.record().is_some() => {
                End::Misuse(format!("thread {thread} is not deterministic: it ended before its record"))
            }
            (Ok(()), None) => End::Done,
        };
        match end {
            End::Done => engine.growth.graph.threads[thread].status = Status::Done,
            End::Waits => engine.growth.graph.threads[thread].status = Status::Waits,
            _ => {}
        }
        end
    })
}

/// Runs what is asserted of the final state.
pub(super) fn run_end(code: &dyn Fn()) -> End {
    with(|engine| (engine.mode, engine.end) = (Mode::End, None));
    let outcome = caught(code);
    with(|engine| match (outcome, engine.end.take()) {
        (Err(text), _) => End::Panicked(text),
        (Ok(()), end) => end.unwrap_or(End::Done),
    })
}

/// `Err` with the text of a panic that is not ours.
fn caught(code: &dyn Fn()) -> Result<(), String> {
    match catch_unwind(AssertUnwindSafe(code)) {
        Ok(()) => Ok(()),
        Err(payload) if payload.is::<Stopped>() => Ok(()),
        Err(payload) => Err(match payload.downcast::<String>() {
            Ok(text) => *text,
            Err(payload) => payload.downcast::<&str>().map_or_else(|_| "a panic".to_owned(), |text| (*text).to_owned()),
        }),
    }
}
