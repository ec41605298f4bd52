#![allow(clippy::disallowed_types, reason = "what the tests count is outside the locks")]

use std::{
    sync::Mutex,
    thread,
    time::{Duration, Instant},
};

use super::{Grant, QueuedLock, TicketLock};

/// Threads that come one after the other while the lock is held: the order in which they got it.
fn order_of_grants(
    threads: u64,
    acquire: impl Fn() -> Grant + Sync,
    release: impl Fn(Grant) + Sync,
    is_waiting: impl Fn(u64) -> bool,
) -> Vec<u64> {
    let order = Mutex::new(Vec::new());
    let (acquire, release, granted) = (&acquire, &release, &order);
    thread::scope(|scope| {
        let first = acquire();
        for number in 0..threads {
            scope.spawn(move || {
                let grant = acquire();
                granted.lock().unwrap().push(number);
                release(grant);
            });
            let deadline = Instant::now() + Duration::from_mins(1);
            while !is_waiting(number) {
                assert!(Instant::now() < deadline, "thread {number} never queued");
                thread::yield_now();
            }
        }
        release(first);
    });
    order.into_inner().unwrap()
}

#[test]
fn the_queued_lock_is_granted_in_the_order_of_the_requests() {
    let lock = QueuedLock::<super::queued::Handover>::new();
    let order = order_of_grants(
        60,
        || lock.acquire().0,
        |grant| lock.release(grant),
        |number| u64::from(lock.tail()) == number + 1,
    );
    assert_eq!(order, (0..60).collect::<Vec<_>>());
}

#[test]
fn the_ticket_lock_is_granted_in_the_order_of_the_requests() {
    let lock = TicketLock::<super::ticket::Handover>::new();
    let order =
        order_of_grants(100, || lock.acquire().0, |grant| lock.release(grant), |number| lock.drawn() == number + 2);
    assert_eq!(order, (0..100).collect::<Vec<_>>());
}

#[cfg(feature = "count-sync")]
#[test]
fn a_free_lock_costs_one_read_modify_write_one_load_and_one_store() {
    use super::TtasLock;
    use crate::count::{Counts, reset, snapshot};

    let expected = Counts { loads: 1, stores: 1, rmws: 1, fences: 0, locks: 1 };
    let (queued, ticket, ttas) = (
        QueuedLock::<super::queued::Handover>::new(),
        TicketLock::<super::ticket::Handover>::new(),
        TtasLock::<super::ttas::Handover>::new(),
    );
    reset();
    queued.release(queued.acquire().0);
    assert_eq!(snapshot(), expected);
    reset();
    ticket.release(ticket.acquire().0);
    assert_eq!(snapshot(), expected);
    reset();
    ttas.release(ttas.acquire().0);
    assert_eq!(snapshot(), expected);
}
