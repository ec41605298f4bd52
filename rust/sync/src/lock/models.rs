//! The locks under loom: exclusion, visibility, order of the grants; and what each order is there for.
//!
//! Each model is generic over the lock. The right lock must hold in every execution; each *twin* has one order weakened
//! and must be caught. Loom reports two accesses that are not ordered as a "Causality violation": of the protected
//! cell, or of the life of a queue node. That nobody waits for ever is checked too: a thread that waits for what no
//! longer comes is a deadlock, or spins until loom gives up on the execution.

#![allow(clippy::disallowed_types, reason = "the count of executions is outside the models")]

mod queued;
mod subject;
mod ticket;
mod ttas;
mod twins;

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc as Counter, atomic::AtomicU64 as AtomicCount},
    time::Instant,
};

use loom::{cell::UnsafeCell, model::Builder, sync::Arc, thread};

use self::subject::{Lock, report};
use super::{QueuedLock, TicketLock, TtasLock};
use crate::{AtomicU64, Ordering};

/// Loom's report of a race.
const RACE: &str = "Causality violation";

struct Protected<L> {
    lock: L,
    /// Not atomic: loom fails the model if two accesses are not ordered.
    value: UnsafeCell<u64>,
}

impl<L: Lock> Protected<L> {
    fn new() -> Arc<Self> {
        Arc::new(Self { lock: L::free(), value: UnsafeCell::new(0) })
    }

    fn add_one(&self) {
        // SAFETY: called between acquire and release; loom checks that this is enough.
        self.value.with_mut(|value| unsafe { *value += 1 });
    }

    fn read(&self) -> u64 {
        // SAFETY: as above.
        self.value.with(|value| unsafe { *value })
    }

    fn locked_add(&self) {
        let (grant, _) = self.lock.acquire();
        self.add_one();
        self.lock.release(grant);
    }
}

/// Preemptions of each execution at most.
const PREEMPTIONS: usize = 3;
/// The same where two threads spin on one word (with three, loom can let them take turns for ever), or where three take minutes.
const FEWER: usize = 2;

fn explore(preemptions: usize, model: fn()) -> (u64, Result<(), String>) {
    let executions = Counter::new(AtomicCount::new(0));
    let mut builder = Builder::new();
    builder.preemption_bound = Some(preemptions);
    let count = Counter::clone(&executions);
    let outcome = catch_unwind(AssertUnwindSafe(|| {
        builder.check(move || {
            count.fetch_add(1, Ordering::Relaxed);
            model();
        });
    }));
    let outcome = outcome.map_err(|panic| match panic.downcast::<String>() {
        Ok(text) => *text,
        Err(panic) => panic.downcast::<&str>().map_or_else(|_| String::new(), |text| (*text).to_owned()),
    });
    (executions.load(Ordering::Relaxed), outcome)
}

/// The model holds in every execution.
#[track_caller]
fn holds(name: &str, model: fn()) {
    holds_within(PREEMPTIONS, name, model);
}

#[track_caller]
fn holds_within(preemptions: usize, name: &str, model: fn()) {
    let start = Instant::now();
    let (executions, outcome) = explore(preemptions, model);
    assert_eq!(outcome, Ok(()), "{name} fails in execution {executions}");
    report(name, "holds", &format!("holds in all {executions} executions"), executions, start);
}

/// The twin fails, with `why` in its message.
#[track_caller]
fn breaks(name: &str, why: &str, model: fn()) {
    let start = Instant::now();
    let (executions, outcome) = explore(PREEMPTIONS, model);
    let message = outcome.expect_err("the weakened twin was not caught");
    assert!(message.contains(why), "{name} fails for another reason: {message}");
    report(name, "caught", &format!("caught in execution {executions}"), executions, start);
}

/// Two threads and the one that began them, each once; who comes last finds it free.
fn exclusion<L: Lock>() {
    let protected = Protected::<L>::new();
    let threads: Vec<_> = (0..2)
        .map(|_| {
            let protected = protected.clone();
            thread::spawn(move || protected.locked_add())
        })
        .collect();
    for thread in threads {
        thread.join().unwrap();
    }
    let (grant, contended) = protected.lock.acquire();
    assert!(!contended, "nobody else is there");
    assert_eq!(protected.read(), 2);
    protected.lock.release(grant);
    assert!(!protected.lock.is_held());
}

/// The main thread holds while others come: they wait, and each gets it.
fn queueing<L: Lock, const WAITERS: u64, const TIMES: u64>() {
    let protected = Protected::<L>::new();
    let (first, _) = protected.lock.acquire();
    let threads: Vec<_> = (0..WAITERS)
        .map(|_| {
            let protected = protected.clone();
            thread::spawn(move || (0..TIMES).for_each(|_| protected.locked_add()))
        })
        .collect();
    protected.add_one();
    protected.lock.release(first);
    for thread in threads {
        thread.join().unwrap();
    }
    let (grant, _) = protected.lock.acquire();
    assert_eq!(protected.read(), 1 + WAITERS * TIMES);
    protected.lock.release(grant);
}

/// One takes the lock, one tries to.
fn trying<L: Lock>() {
    let protected = Protected::<L>::new();
    let other = protected.clone();
    let thread = thread::spawn(move || {
        let taken = other.lock.try_acquire();
        let got = taken.is_some();
        if let Some(grant) = taken {
            other.add_one();
            other.lock.release(grant);
        }
        got
    });
    protected.locked_add();
    let got = thread.join().unwrap();
    let (grant, _) = protected.lock.acquire();
    assert_eq!(protected.read(), 1 + u64::from(got));
    protected.lock.release(grant);
}

/// While the main thread holds, one waiter joins, then, knowing that, another: `joined` tells that the first one did.
fn first_come_first_served<L: Lock>(joined: impl Fn(&L) -> bool) {
    let protected = Protected::<L>::new();
    let turn = Arc::new(AtomicU64::new(0));
    let (held, _) = protected.lock.acquire();
    let spawn = |number: u64| {
        let (protected, turn) = (protected.clone(), turn.clone());
        thread::spawn(move || {
            let (grant, _) = protected.lock.acquire();
            assert_eq!(turn.load(Ordering::Relaxed), number, "overtaken");
            turn.store(number + 1, Ordering::Relaxed);
            protected.lock.release(grant);
        })
    };
    let first = spawn(0);
    while !joined(&protected.lock) {
        thread::yield_now();
    }
    let second = spawn(1);
    protected.lock.release(held);
    first.join().unwrap();
    second.join().unwrap();
    assert_eq!(turn.load(Ordering::Relaxed), 2);
}
