//! What the checker must not take for a verdict: programs that it cannot explore are refused by a panic that says why.

use std::{cell::Cell, rc::Rc};

use crate::{
    AtomicU64, Backoff, Ordering,
    explored::{FailureKind, Program, explore},
    wait_until,
};

use Ordering::{Acquire, Relaxed};

/// Two words, and one thread that does something with them beside one that stores to the first.
fn with_a_writer(thread: impl Fn(&AtomicU64, &AtomicU64) + 'static) -> crate::explored::Exploration {
    explore(|| {
        let words = Rc::new((AtomicU64::new(0), AtomicU64::new(0)));
        let (own, other) = (Rc::clone(&words), Rc::clone(&words));
        let writer = move || words.0.store(1, Relaxed);
        Program::new(vec![Box::new(move || thread(&own.0, &own.1)), Box::new(writer)], move || {
            assert_ne!(other.1.load(Relaxed), 9, "the second word was nine");
        })
    })
}

#[test]
#[should_panic(expected = "thread 0 is not deterministic")]
fn a_thread_that_does_something_else_when_it_is_run_again() {
    let runs = Cell::new(0);
    with_a_writer(move |x, _| {
        runs.set(runs.get() + 1);
        x.load(if runs.get() % 2 == 0 { Acquire } else { Relaxed });
        x.load(Relaxed);
    });
}

#[test]
#[should_panic(expected = "it ended before its record")]
fn a_thread_that_does_less_when_it_is_run_again() {
    let runs = Cell::new(0);
    with_a_writer(move |x, _| {
        runs.set(runs.get() + 1);
        if runs.get() < 2 {
            x.load(Relaxed);
        }
    });
}

#[test]
#[should_panic(expected = "more than 1000 events")]
fn a_loop_that_waits_without_saying_so() {
    with_a_writer(|x, _| while x.load(Relaxed) != 5 {});
}

#[test]
#[should_panic(expected = "more than 1000 events: a loop must wait by Backoff, and change nothing then")]
fn a_loop_that_waits_and_stores() {
    with_a_writer(|x, y| {
        let mut backoff = Backoff::new();
        while x.load(Relaxed) == 0 {
            y.store(1, Relaxed);
            backoff.wait();
        }
    });
}

#[test]
#[should_panic(expected = "must read what it waits for")]
fn a_loop_that_waits_for_nothing() {
    with_a_writer(|_, _| {
        let mut backoff = Backoff::new();
        loop {
            backoff.wait();
        }
    });
}

#[test]
#[should_panic(expected = "must be one access")]
fn a_condition_of_two_words() {
    with_a_writer(|x, y| wait_until(|| x.load(Relaxed) == 1 && y.load(Relaxed) == 0));
}

#[test]
#[should_panic(expected = "a condition that does not hold must not change anything")]
fn a_condition_that_writes_when_it_does_not_hold() {
    with_a_writer(|x, _| wait_until(|| x.swap(2, Relaxed) == 1));
}

#[test]
#[should_panic(expected = "an atomic must be made before the threads begin")]
fn an_atomic_made_by_a_thread() {
    with_a_writer(|_, _| {
        let _ = AtomicU64::new(0);
    });
}

#[test]
#[should_panic(expected = "inside an exploration only")]
fn an_atomic_outside_of_an_exploration() {
    let _ = AtomicU64::new(0);
}

#[test]
fn an_assertion_is_a_failure_with_its_text_and_its_execution() {
    let found = with_a_writer(|x, _| assert_ne!(x.load(Relaxed), 1, "the store was seen"));
    let failure = found.failure.unwrap();
    assert_eq!(failure.kind, FailureKind::Assertion);
    assert!(failure.message.contains("the store was seen"));
    assert!(failure.execution.contains("= 0x1 from 1.0"), "{failure}");
    let found = with_a_writer(|_, y| y.store(9, Relaxed));
    assert!(found.failure.unwrap().message.contains("the second word was nine"));
}
