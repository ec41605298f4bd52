use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    thread,
};

use super::*;
use crate::{AtomicU64, Ordering, wait_until};

/// Two threads add to a word by load and store, `rounds` times each; what is left, and what was chosen.
fn lose_updates(strategy: &Strategy, rounds: u64) -> (u64, Trace) {
    let scheduler = Scheduler::new(2, strategy);
    let word = AtomicU64::new(0);
    thread::scope(|scope| {
        for number in 0..2 {
            let (scheduler, word) = (&scheduler, &word);
            scope.spawn(move || {
                let _entered = scheduler.enter(number);
                for _ in 0..rounds {
                    word.store(word.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
                }
            });
        }
    });
    (word.into_inner(), scheduler.trace())
}

fn random(seed: u64) -> Strategy {
    Strategy::Random { seed, one_in: 4 }
}

fn pct(seed: u64) -> Strategy {
    Strategy::Pct { seed, changes: 2, length: 40 }
}

#[test]
fn the_same_seed_is_the_same_run_and_another_is_another() {
    for strategy in [random, pct] {
        let hashes: Vec<u64> = (0..20).map(|seed| lose_updates(&strategy(seed), 10).1.hash()).collect();
        for (seed, hash) in (0..).zip(&hashes) {
            assert_eq!(lose_updates(&strategy(seed), 10).1.hash(), *hash, "seed {seed}");
        }
        assert!(hashes.iter().any(|hash| *hash != hashes[0]));
    }
}

#[test]
fn a_race_is_found_and_its_choices_lose_the_same_update_again() {
    for strategy in [random, pct] {
        let (left, trace) =
            (0..100).map(|seed| lose_updates(&strategy(seed), 10)).find(|(left, _)| *left < 20).unwrap();
        let (again, replayed) = lose_updates(&Strategy::Replay(trace.choices.clone()), 10);
        assert_eq!((again, replayed.diverged), (left, None));
        assert_eq!(replayed.hash(), trace.hash());
    }
}

#[test]
fn without_a_choice_each_thread_runs_to_its_end() {
    let (left, trace) = lose_updates(&Strategy::Replay(Vec::new()), 10);
    assert_eq!((left, trace.choices.len(), trace.points), (20, 0, 2 * (10 * 2 + 1)));
}

#[test]
fn a_replay_of_another_program_says_where_it_diverged() {
    let late = Choice { thread: 0, point: 1000, to: 1 };
    assert_eq!(lose_updates(&Strategy::Replay(vec![late]), 10).1.diverged, Some(late));
    let ended = [Choice { thread: u16::MAX, point: 0, to: 1 }, Choice { thread: 0, point: 3, to: 1 }];
    assert_eq!(
        lose_updates(&Strategy::Replay(ended.to_vec()), 10).1.diverged,
        Some(ended[1]),
        "thread 1 has ended by then"
    );
}

#[test]
fn who_waits_gives_way_to_whom_it_waits_for() {
    for strategy in [random(3), pct(3), Strategy::Replay(Vec::new())] {
        let scheduler = Scheduler::new(2, &strategy);
        let word = AtomicU64::new(0);
        thread::scope(|scope| {
            let (scheduler, word) = (&scheduler, &word);
            scope.spawn(move || {
                let _entered = scheduler.enter(0);
                wait_until(|| word.load(Ordering::Acquire) == 1);
            });
            scope.spawn(move || {
                let _entered = scheduler.enter(1);
                word.store(1, Ordering::Release);
            });
        });
        assert!(!scheduler.trace().exhausted);
    }
}

#[test]
fn a_thread_that_panics_leaves_and_the_others_go_on() {
    let scheduler = Scheduler::new(2, &random(1));
    let word = AtomicU64::new(0);
    thread::scope(|scope| {
        let (scheduler, word) = (&scheduler, &word);
        scope.spawn(move || {
            let _ = catch_unwind(AssertUnwindSafe(|| {
                let _entered = scheduler.enter(0);
                word.store(1, Ordering::Relaxed);
                panic!("on purpose");
            }));
        });
        scope.spawn(move || {
            let _entered = scheduler.enter(1);
            wait_until(|| word.load(Ordering::Relaxed) == 1);
        });
    });
    assert_eq!(word.into_inner(), 1);
}

#[test]
fn who_did_not_enter_is_left_alone() {
    let word = AtomicU64::new(1);
    assert_eq!(word.load(Ordering::Relaxed), 1);
    crate::yield_now();
}
