use std::{
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use super::{MmuLock, Mutex, RawMmuLock, lock_observed, read_observed};

const KINDS: [fn() -> RawMmuLock; 5] =
    [RawMmuLock::queued, RawMmuLock::ticket, RawMmuLock::ttas, RawMmuLock::mutex, RawMmuLock::read_write];

/// The same with every kind of lock.
fn each_kind<T: Clone>(data: T, test: impl Fn(&MmuLock<T>)) {
    for kind in KINDS {
        test(&MmuLock::from_raw(kind(), data.clone()));
    }
}

#[test]
fn many_threads_lose_no_update() {
    let threads = 131;
    each_kind(0_u64, |total| {
        thread::scope(|scope| {
            for _ in 0..threads {
                scope.spawn(|| {
                    for _ in 0..50 {
                        let mut total = total.write();
                        // A read and a write apart: a second holder would lose one.
                        let seen = *total;
                        std::hint::black_box(&mut *total);
                        *total = seen + 1;
                    }
                });
            }
        });
        assert_eq!(*total.read(), threads * 50, "{total:?}");
    });
}

#[test]
fn try_lock_takes_a_free_lock_and_no_other() {
    each_kind((), |state| {
        assert!(!state.is_locked());
        let held = state.try_write().expect("a new lock is free");
        assert!(state.is_locked() && state.is_locked_exclusive());
        assert!(state.try_write().is_none() && state.try_read().is_none());
        drop(held);
        for _ in 0..200 {
            assert!(state.try_write().is_some());
        }
        assert!(!state.is_locked());
    });
}

#[test]
fn only_the_reader_writer_lock_has_readers_at_once() {
    each_kind((), |state| {
        let first = state.read();
        let second = state.try_read();
        assert_eq!(second.is_some(), !state.is_locked_exclusive());
        assert!(state.is_locked() && state.try_write().is_none());
        drop((first, second));
        drop(state.try_write().expect("what was shared is given back"));
        drop(read_observed(state));
        assert!(!state.is_locked());
    });
    let shared = MmuLock::from_raw(RawMmuLock::read_write(), ());
    let _first = shared.read();
    assert!(shared.try_read().is_some());
}

#[test]
fn only_a_wait_counts_as_contention() {
    each_kind((), |state| {
        let (sender, receiver) = mpsc::channel();
        // The other thread may come too late to have to wait; then once more.
        let waited = (0..200).any(|_| {
            let (guard, contended) = lock_observed(state);
            assert!(!contended);
            thread::scope(|scope| {
                scope.spawn(|| sender.send(lock_observed(state).1));
                thread::sleep(Duration::from_millis(10));
                drop(guard);
            });
            receiver.recv().expect("the other thread took the lock")
        });
        assert!(waited, "{state:?}");
        assert!(!lock_observed(state).1 && !read_observed(state).1);
    });
}

#[test]
fn a_writer_is_not_starved_by_readers() {
    let state = MmuLock::from_raw(RawMmuLock::read_write(), false);
    let deadline = Instant::now() + Duration::from_mins(1);
    thread::scope(|scope| {
        for _ in 0..3 {
            // Each takes the lock again before the others gave it back: it is never free of readers.
            scope.spawn(|| {
                loop {
                    let first = state.read();
                    if *first {
                        break;
                    }
                    assert!(Instant::now() < deadline, "no writer came through");
                    std::hint::black_box(&first);
                }
            });
        }
        scope.spawn(|| *state.write() = true);
    });
    assert!(*state.read());
}

#[test]
fn a_panic_of_the_holder_releases_the_lock() {
    each_kind(5, |state| {
        for shared in [false, true] {
            let outcome = thread::scope(|scope| {
                scope
                    .spawn(|| {
                        let _guards = if shared { (None, Some(state.read())) } else { (Some(state.write()), None) };
                        std::panic::resume_unwind(Box::new("the holder fails"));
                    })
                    .join()
            });
            assert!(outcome.is_err());
            assert_eq!(*state.write(), 5);
        }
    });
}

#[test]
fn the_small_mutex_excludes_and_is_released_by_a_panic() {
    let total = Mutex::new(0_u64);
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..1000 {
                    *total.lock() += 1;
                }
            });
        }
    });
    let held = total.try_lock().expect("free");
    assert!(total.is_locked() && total.try_lock().is_none());
    drop(held);
    let outcome = thread::scope(|scope| {
        scope
            .spawn(|| {
                let _guard = total.lock();
                std::panic::resume_unwind(Box::new("the holder fails"));
            })
            .join()
    });
    assert!(outcome.is_err());
    assert_eq!(total.into_inner(), 4000);
}
