use std::{
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use shadow_mmu_sync::lock::{QueuedLock, SLOTS};

use super::{Mutex, lock_observed};

#[test]
fn many_more_waiters_than_slots_lose_no_update() {
    let threads = SLOTS * 2 + 3;
    let total = Mutex::new(0_u64);
    thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                for _ in 0..200 {
                    let mut total = total.lock();
                    // A read and a write apart: a second holder would lose one.
                    let seen = *total;
                    std::hint::black_box(&mut *total);
                    *total = seen + 1;
                }
            });
        }
    });
    assert_eq!(total.into_inner(), threads as u64 * 200);
}

#[test]
fn the_lock_is_granted_in_the_order_of_the_requests() {
    let order = Mutex::new(Vec::new());
    let queued = |n: u64| {
        // SAFETY: the raw lock is only looked at.
        let raw: &QueuedLock = unsafe { &order.raw().0 };
        let deadline = Instant::now() + Duration::from_secs(20);
        while raw.tickets() < n {
            assert!(Instant::now() < deadline, "thread {n} never queued");
            thread::yield_now();
        }
    };
    let order = &order;
    thread::scope(|scope| {
        let first = order.lock();
        for n in 0..SLOTS as u64 + 8 {
            scope.spawn(move || order.lock().push(n));
            queued(n + 2);
        }
        drop(first);
    });
    let expected: Vec<u64> = (0..SLOTS as u64 + 8).collect();
    assert_eq!(*order.lock(), expected);
}

#[test]
fn try_lock_takes_a_free_lock_and_no_other() {
    let state = Mutex::new(());
    assert!(!state.is_locked());
    let held = state.try_lock().expect("a new lock is free");
    assert!(state.is_locked());
    assert!(state.try_lock().is_none());
    drop(held);
    for _ in 0..3 * SLOTS {
        assert!(state.try_lock().is_some());
    }
}

#[test]
fn only_a_wait_counts_as_contention() {
    let state = Mutex::new(());
    let (guard, contended) = lock_observed(&state);
    assert!(!contended);
    let (sender, receiver) = mpsc::channel();
    thread::scope(|scope| {
        scope.spawn(|| sender.send(lock_observed(&state).1));
        // SAFETY: the raw lock is only looked at.
        while unsafe { state.raw() }.0.tickets() < 2 {
            thread::yield_now();
        }
        // The second thread has its ticket; give it time to look at its slot.
        thread::sleep(Duration::from_millis(50));
        drop(guard);
        assert_eq!(receiver.recv(), Ok(true));
    });
    assert!(!lock_observed(&state).1);
}

#[test]
fn a_panic_of_the_holder_releases_the_lock() {
    let state = Mutex::new(5);
    let outcome = thread::scope(|scope| {
        scope
            .spawn(|| {
                let _guard = state.lock();
                std::panic::resume_unwind(Box::new("the holder fails"));
            })
            .join()
    });
    assert!(outcome.is_err());
    assert_eq!(*state.lock(), 5);
}

#[cfg(feature = "count-sync")]
#[test]
fn a_free_lock_costs_one_read_modify_write_one_load_and_one_store() {
    use shadow_mmu_sync::count::{Counts, reset, snapshot};

    let state = Mutex::new(());
    reset();
    drop(state.lock());
    assert_eq!(snapshot(), Counts { loads: 1, stores: 1, rmws: 1, fences: 0, locks: 1 });
}
