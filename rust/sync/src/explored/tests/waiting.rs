//! Waiting: an await is one step, a loop that reads is as good, and a wait that nothing ends is reported.

use super::outcomes;
use crate::{
    AtomicU64, Backoff, Ordering,
    explored::{FailureKind, PlainU64},
    wait_until,
};

use Ordering::{Acquire, Relaxed, Release};

struct Message {
    data: PlainU64,
    flag: AtomicU64,
}

fn message() -> Message {
    Message { data: PlainU64::new(0), flag: AtomicU64::new(0) }
}

fn send(message: &Message) -> u64 {
    message.data.set(7);
    message.flag.store(1, Release);
    0
}

#[test]
fn a_wait_ends_with_what_it_waits_for_and_is_blocked_once() {
    let receive = |message: &Message| {
        wait_until(|| message.flag.load(Acquire) == 1);
        message.data.get()
    };
    let (found, results) = outcomes(message, [send, receive]);
    assert!(found.failure.is_none(), "{found:?}");
    assert_eq!((found.executions, found.blocked), (1, 1));
    assert_eq!(results.into_keys().collect::<Vec<_>>(), [[0, 7]]);
}

#[test]
fn a_loop_that_waits_by_backoff_is_as_good() {
    let receive = |message: &Message| {
        let mut backoff = Backoff::new();
        while message.flag.load(Acquire) != 1 {
            backoff.wait();
        }
        message.data.get()
    };
    let (found, results) = outcomes(message, [send, receive]);
    assert!(found.failure.is_none(), "{found:?}");
    // It finds the flag set at once, or after a round that did not; or never.
    assert_eq!((found.executions, found.blocked), (2, 1));
    assert_eq!(results.into_keys().collect::<Vec<_>>(), [[0, 7]]);
}

#[test]
fn a_loop_that_waits_before_it_looks_again_is_explored_beyond_the_wait() {
    let receive = |message: &Message| {
        let look = || message.flag.load(Acquire) == 1;
        if look() {
            return 1;
        }
        let mut backoff = Backoff::new();
        loop {
            backoff.wait();
            if look() {
                return 2;
            }
        }
    };
    let (found, results) = outcomes(message, [send, receive]);
    assert!(found.failure.is_none(), "{found:?}");
    assert_eq!(results.into_keys().collect::<Vec<_>>(), [[0, 1], [0, 2]]);
}

#[test]
fn a_wait_that_does_not_acquire_races() {
    let receive = |message: &Message| {
        wait_until(|| message.flag.load(Relaxed) == 1);
        message.data.get()
    };
    let (found, _) = outcomes(message, [send, receive]);
    let failure = found.failure.expect("the reads of the data are not ordered");
    assert_eq!(failure.kind, FailureKind::Race);
    assert!(failure.message.contains("data race: ") && failure.message.contains("waiting.rs"), "{}", failure.message);
    assert!(failure.execution.contains("= 0x1 from 0.1"), "{}", failure.execution);
}

fn stuck(threads: [fn(&Message) -> u64; 2]) {
    let (found, _) = outcomes(message, threads);
    let failure = found.failure.expect("both wait for ever");
    assert_eq!((failure.kind, found.executions), (FailureKind::Stuck, 0));
    assert!(failure.execution.contains("(Waits)"), "{}", failure.execution);
}

#[test]
fn a_wait_that_nothing_ends_is_reported() {
    stuck([send, |message| {
        wait_until(|| message.flag.load(Acquire) == 2);
        0
    }]);
    stuck([send, |message| {
        let mut backoff = Backoff::new();
        while message.flag.load(Acquire) != 2 {
            backoff.wait();
        }
        0
    }]);
}

#[test]
fn two_that_wait_for_each_other_are_stuck() {
    struct Both([AtomicU64; 2]);
    let state = || Both([AtomicU64::new(0), AtomicU64::new(0)]);
    let (found, _) = outcomes(
        state,
        [
            |both: &Both| {
                wait_until(|| both.0[1].load(Acquire) == 1);
                both.0[0].store(1, Release);
                0
            },
            |both: &Both| {
                wait_until(|| both.0[0].load(Acquire) == 1);
                both.0[1].store(1, Release);
                0
            },
        ],
    );
    assert_eq!(found.failure.map(|failure| failure.kind), Some(FailureKind::Stuck));
}
