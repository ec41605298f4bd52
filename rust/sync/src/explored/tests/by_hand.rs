//! The textbook tests written as code, with their outcomes: what a reader can check without a table.

use std::collections::BTreeMap;

use super::outcomes;
use crate::{AtomicU64, Ordering, fence};

use Ordering::{AcqRel, Acquire, Relaxed, Release, SeqCst};

struct Two {
    x: AtomicU64,
    y: AtomicU64,
}

fn two() -> Two {
    Two { x: AtomicU64::new(0), y: AtomicU64::new(0) }
}

fn each_once<const N: usize>(results: impl IntoIterator<Item = [u64; N]>) -> BTreeMap<[u64; N], u64> {
    results.into_iter().map(|result| (result, 1)).collect()
}

/// Two loads as one result.
fn pair(first: u64, second: u64) -> u64 {
    first * 10 + second
}

#[test]
fn message_passing_with_release_and_acquire_has_three_executions() {
    let write = |two: &Two| {
        two.x.store(1, Relaxed);
        two.y.store(1, Release);
        0
    };
    let read = |two: &Two| {
        let y = two.y.load(Acquire);
        pair(y, two.x.load(Relaxed))
    };
    assert_eq!(outcomes(two, [write, read]).1, each_once([[0, 0], [0, 1], [0, 11]]));
    let relaxed = |two: &Two| {
        two.x.store(1, Relaxed);
        two.y.store(1, Relaxed);
        0
    };
    assert_eq!(outcomes(two, [relaxed, read]).1, each_once([[0, 0], [0, 1], [0, 10], [0, 11]]));
}

#[test]
fn store_buffering_is_stopped_by_seqcst_fences_only() {
    let strong: [fn(&Two) -> u64; 2] = [
        |two| {
            two.x.store(1, Relaxed);
            fence(SeqCst);
            two.y.load(Relaxed)
        },
        |two| {
            two.y.store(1, Relaxed);
            fence(SeqCst);
            two.x.load(Relaxed)
        },
    ];
    assert_eq!(outcomes(two, strong).1, each_once([[0, 1], [1, 0], [1, 1]]));
    let weak: [fn(&Two) -> u64; 2] = [
        |two| {
            two.x.store(1, Release);
            fence(AcqRel);
            two.y.load(Acquire)
        },
        strong[1],
    ];
    assert_eq!(outcomes(two, weak).1, each_once([[0, 0], [0, 1], [1, 0], [1, 1]]));
}

#[test]
fn load_buffering_does_not_happen() {
    let threads: [fn(&Two) -> u64; 2] = [
        |two| {
            let read = two.x.load(Relaxed);
            two.y.store(1, Relaxed);
            read
        },
        |two| {
            let read = two.y.load(Relaxed);
            two.x.store(1, Relaxed);
            read
        },
    ];
    assert_eq!(outcomes(two, threads).1, each_once([[0, 0], [0, 1], [1, 0]]));
}

#[test]
fn two_readers_of_one_word_see_its_writes_in_one_order() {
    let read = |two: &Two| {
        let first = two.x.load(Relaxed);
        pair(first, two.x.load(Relaxed))
    };
    let threads: [fn(&Two) -> u64; 4] = [
        |two| {
            two.x.store(1, Relaxed);
            0
        },
        |two| {
            two.x.store(2, Relaxed);
            0
        },
        read,
        read,
    ];
    let (found, results) = outcomes(two, threads);
    assert_eq!(found.executions, 72);
    assert!(results.contains_key(&[0, 0, 12, 12]) && results.contains_key(&[0, 0, 21, 21]));
    assert!(!results.contains_key(&[0, 0, 12, 21]) && !results.contains_key(&[0, 0, 21, 12]));
}

#[test]
fn a_chain_of_read_modify_writes_hands_a_release_on() {
    let write = |two: &Two| {
        two.x.store(1, Relaxed);
        two.y.store(1, Release);
        0
    };
    let add = |two: &Two| two.y.fetch_add(1, Relaxed);
    let read = |two: &Two| {
        let y = two.y.load(Acquire);
        pair(y, two.x.load(Relaxed))
    };
    let (_, results) = outcomes(two, [write, add, read]);
    assert!(results.contains_key(&[0, 1, 21]));
    assert!(!results.contains_key(&[0, 1, 20]), "the sum of both was read, and not what came before the release");
    let store = |two: &Two| {
        let before = two.y.load(Relaxed);
        two.y.store(before + 1, Relaxed);
        before
    };
    assert!(outcomes(two, [write, store, read]).1.contains_key(&[0, 1, 20]));
}

#[test]
fn additions_are_not_lost_and_of_two_exchanges_one_wins() {
    let add: fn(&Two) -> u64 = |two| two.x.fetch_add(1, Relaxed);
    let sum = outcomes(two, [add; 3]).1;
    assert_eq!(sum.len(), 6);
    assert!(sum.keys().all(|result| result.iter().sum::<u64>() == 3));
    let take: fn(&Two) -> u64 = |two| u64::from(two.x.compare_exchange(0, 1, Relaxed, Relaxed).is_ok());
    assert_eq!(outcomes(two, [take; 2]).1, each_once([[0, 1], [1, 0]]));
}
