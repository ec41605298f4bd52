//! A deterministic scheduler behind the facade, in a build with `scheduled`: real threads, of which one runs at a time.
//!
//! Each access to an atomic, each fence and each wait of a thread that [entered](Scheduler::enter) is a *point*: there the
//! [`Strategy`] says who goes on. So a run is a function of the strategy's seed, and what it chose can be written down and
//! played again. Threads that did not enter are left alone.
//!
//! What it explores is interleavings. Stores are seen in the order in which they are made: a fence that is missing shows in the
//! models, or on the hardware, and not here.
//!
//! A thread that waits must do so by the facade. One that sleeps in a lock of another crate would keep everybody waiting.

#![allow(clippy::disallowed_types, reason = "this is a scheduler of threads; it is no part of the machine")]

mod strategy;
#[cfg(test)]
mod tests;

use std::{
    cell::{Cell, RefCell},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
};

use self::strategy::Chooser;
pub use self::strategy::{Choice, Strategy};

/// Points after which the threads are let go: a run that long is a livelock.
pub const MOST_POINTS: u64 = 50_000_000;

/// What a thread is at when somebody must be chosen.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum At {
    /// An access or a fence.
    Point,
    /// It waits for another.
    Wait,
    /// It has ended.
    End,
}

/// Who may run.
#[derive(Debug)]
pub struct Scheduler {
    state: Mutex<State>,
    turns: Box<[Condvar]>,
}

#[derive(Debug)]
struct State {
    chooser: Chooser,
    entered: usize,
    alive: Vec<bool>,
    /// Whose turn it is; nobody's before all have entered.
    current: Option<usize>,
    /// Points of each thread.
    points: Vec<u64>,
    total: u64,
    /// Everybody runs as the system likes: the run was too long.
    free: bool,
}

/// What was chosen in a run.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Trace {
    /// Every choice that was not the default: to stay at an access, to go on with the next thread at a wait and at an end.
    pub choices: Vec<Choice>,
    /// Points of all threads.
    pub points: u64,
    /// The first choice of a replay that could not be made: the program is not the one that was recorded.
    pub diverged: Option<Choice>,
    /// The run was too long: its end was not scheduled.
    pub exhausted: bool,
}

impl Trace {
    /// One number for all choices and points: equal runs have equal ones (FNV-1a).
    #[must_use]
    pub fn hash(&self) -> u64 {
        let words = self.choices.iter().flat_map(|one| [u64::from(one.thread), one.point, u64::from(one.to)]);
        words.chain([self.points]).fold(0xcbf2_9ce4_8422_2325, |hash, word| {
            word.to_le_bytes().iter().fold(hash, |hash, &byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
        })
    }
}

thread_local! {
    static ENTERED: Cell<bool> = const { Cell::new(false) };
    static PLACE: RefCell<Option<(Arc<Scheduler>, usize)>> = const { RefCell::new(None) };
}

/// A thread's stay with a scheduler; it ends when this is dropped.
#[derive(Debug)]
#[must_use = "the thread leaves when this is dropped"]
pub struct Entered(());

impl Scheduler {
    /// A scheduler of so many threads, each of which must enter.
    #[must_use]
    pub fn new(threads: usize, strategy: &Strategy) -> Arc<Self> {
        Arc::new(Self {
            state: Mutex::new(State {
                chooser: Chooser::new(threads, strategy),
                entered: 0,
                alive: vec![true; threads],
                current: None,
                points: vec![0; threads],
                total: 0,
                free: false,
            }),
            turns: (0..threads).map(|_| Condvar::new()).collect(),
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // A thread that panics leaves in good order; nothing panics in here.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The calling thread is number `thread` from now on. Returns when all have entered and it is this one's turn.
    pub fn enter(self: &Arc<Self>, thread: usize) -> Entered {
        let mut state = self.state();
        state.entered += 1;
        if state.entered == state.alive.len() {
            let first = state.chooser.first();
            state.current = Some(first);
            self.turns[first].notify_one();
        }
        self.wait_for_turn(state, thread);
        PLACE.set(Some((Arc::clone(self), thread)));
        ENTERED.set(true);
        Entered(())
    }

    /// What was chosen, once all threads have left.
    #[must_use]
    pub fn trace(&self) -> Trace {
        let state = self.state();
        Trace {
            choices: state.chooser.choices().to_vec(),
            points: state.total,
            diverged: state.chooser.diverged(),
            exhausted: state.free,
        }
    }

    fn wait_for_turn(&self, state: MutexGuard<'_, State>, thread: usize) {
        let _state = self.turns[thread]
            .wait_while(state, |state| !state.free && state.current != Some(thread))
            .unwrap_or_else(PoisonError::into_inner);
    }

    /// Chooses who goes on, and waits until it is the caller.
    fn choose(&self, thread: usize, at: At) {
        let mut state = self.state();
        if state.free {
            return;
        }
        state.points[thread] += 1;
        state.total += 1;
        if state.total > MOST_POINTS {
            state.free = true;
            for turn in &self.turns {
                turn.notify_one();
            }
            return;
        }
        if at == At::End {
            state.alive[thread] = false;
        }
        let point = state.points[thread];
        let State { chooser, alive, .. } = &mut *state;
        let Some(next) = chooser.choose(thread, point, at, alive) else { return };
        if next == thread {
            return;
        }
        state.current = Some(next);
        self.turns[next].notify_one();
        if at != At::End {
            self.wait_for_turn(state, thread);
        }
    }
}

impl Drop for Entered {
    fn drop(&mut self) {
        ENTERED.set(false);
        if let Some((scheduler, thread)) = PLACE.take() {
            scheduler.choose(thread, At::End);
        }
    }
}

fn here(at: At) -> bool {
    if !ENTERED.get() {
        return false;
    }
    let place = PLACE.with_borrow(Clone::clone);
    if let Some((scheduler, thread)) = place {
        scheduler.choose(thread, at);
    }
    true
}

/// An access or a fence follows.
#[inline]
pub(crate) fn point() {
    let _ = here(At::Point);
}

/// The thread waits for another; false if it is not scheduled, and must wait as others do.
#[inline]
pub(crate) fn wait() -> bool {
    here(At::Wait)
}
