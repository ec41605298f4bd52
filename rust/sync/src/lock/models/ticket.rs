//! The ticket lock.

use loom::thread;

use super::twins::ticket::{ObserveRelaxed, ServeRelaxed};
use super::{Protected, RACE, TicketLock, breaks, exclusion, holds, queueing, trying};
use crate::lock::ticket::Handover;

type Lock<O = Handover> = TicketLock<O>;

#[test]
fn excludes_and_publishes() {
    holds("P9-ticket exclusion", exclusion::<Lock>);
}

#[test]
fn each_waiter_gets_it() {
    holds("P9-ticket waiters", queueing::<Lock, 1, 2>);
}

#[test]
fn try_lock_excludes_and_publishes() {
    holds("P9-ticket try", trying::<Lock>);
}

/// Two threads at once: who drew the lower ticket comes first. (Loom lets two that spin on one word take turns for ever,
/// so nobody holds the lock before.)
fn in_the_order_of_the_tickets() {
    let protected = Protected::<Lock>::new();
    let threads: Vec<_> = (0..2)
        .map(|_| {
            let protected = protected.clone();
            thread::spawn(move || {
                let (grant, _) = protected.lock.acquire();
                assert_eq!(protected.read(), grant.0, "overtaken");
                protected.add_one();
                protected.lock.release(grant);
            })
        })
        .collect();
    for thread in threads {
        thread.join().unwrap();
    }
}

#[test]
fn grants_follow_the_order_of_the_requests() {
    holds("P9-ticket order", in_the_order_of_the_tickets);
}

#[test]
fn twin_observation_relaxed() {
    breaks("P9-ticket observe relaxed", RACE, exclusion::<Lock<ObserveRelaxed>>);
}

#[test]
fn twin_hand_over_relaxed() {
    breaks("P9-ticket serve relaxed", RACE, exclusion::<Lock<ServeRelaxed>>);
}

#[test]
fn twin_try_lock_observation_relaxed() {
    breaks("P9-ticket try observe relaxed", RACE, trying::<Lock<ObserveRelaxed>>);
}
