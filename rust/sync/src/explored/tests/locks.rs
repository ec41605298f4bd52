//! The production locks without a bound on preemptions, and each of their orders weakened.

use std::rc::Rc;

use crate::{
    Ordering,
    explored::{Exploration, FailureKind, PlainU64, Program, explore},
    lock::{Grant, QueuedLock, TicketLock, TtasLock, queued, ticket, ttas},
};

trait Lock: 'static {
    fn free() -> Self;
    fn acquire(&self) -> (Grant, bool);
    fn release(&self, grant: Grant);
}

macro_rules! lock {
    ($lock:ident, $order:path) => {
        impl<O: $order + 'static> Lock for $lock<O> {
            fn free() -> Self {
                Self::new()
            }
            fn acquire(&self) -> (Grant, bool) {
                self.acquire()
            }
            fn release(&self, grant: Grant) {
                self.release(grant);
            }
        }
    };
}

lock!(QueuedLock, queued::QueuedOrder);
lock!(TicketLock, ticket::TicketOrder);
lock!(TtasLock, ttas::TtasOrder);

/// Each thread adds 1 so often under the lock.
fn counted<L: Lock, const THREADS: u64, const TIMES: u64>() -> Exploration {
    explore(|| {
        let shared = Rc::new((L::free(), PlainU64::new(0)));
        let threads = (0..THREADS).map(|_| -> Box<dyn Fn()> {
            let shared = Rc::clone(&shared);
            Box::new(move || {
                for _ in 0..TIMES {
                    let (grant, _) = shared.0.acquire();
                    shared.1.set(shared.1.get() + 1);
                    shared.0.release(grant);
                }
            })
        });
        let threads = threads.collect();
        Program::new(threads, move || assert_eq!(shared.1.get(), THREADS * TIMES))
    })
}

/// Shown by `cargo test -- --nocapture`.
#[allow(clippy::print_stdout, reason = "the size of each exploration is what a reader of the run looks for")]
#[track_caller]
fn excludes(name: &str, found: &Exploration) {
    println!("{name}: {} executions, {} blocked, {} graphs", found.executions, found.blocked, found.graphs);
    assert!(found.failure.is_none(), "{found:?}");
    assert!(found.executions > 1, "{found:?}");
}

#[track_caller]
fn races(found: Exploration) {
    assert_eq!(found.failure.map(|failure| failure.kind), Some(FailureKind::Race));
}

#[test]
fn the_ticket_lock_excludes_and_publishes() {
    excludes("ticket lock, 2 threads", &counted::<TicketLock, 2, 2>());
    excludes("ticket lock, 3 threads", &counted::<TicketLock, 3, 1>());
}

#[test]
fn the_test_and_test_and_set_lock_excludes_and_publishes() {
    excludes("test-and-test-and-set lock, 2 threads", &counted::<TtasLock, 2, 2>());
}

#[test]
fn the_queued_lock_excludes_and_publishes() {
    excludes("queued lock, 2 threads", &counted::<QueuedLock, 2, 2>());
    excludes("queued lock, 3 threads", &counted::<QueuedLock, 3, 1>());
}

struct ServeRelaxed;
impl ticket::TicketOrder for ServeRelaxed {
    const OBSERVE_SERVING: Ordering = Ordering::Acquire;
    const SERVE_NEXT: Ordering = Ordering::Relaxed;
}

struct ObserveRelaxed;
impl ticket::TicketOrder for ObserveRelaxed {
    const OBSERVE_SERVING: Ordering = Ordering::Relaxed;
    const SERVE_NEXT: Ordering = Ordering::Release;
}

struct SetRelaxed;
impl ttas::TtasOrder for SetRelaxed {
    const SET: Ordering = Ordering::Relaxed;
    const CLEAR: Ordering = Ordering::Release;
}

struct ClearRelaxed;
impl ttas::TtasOrder for ClearRelaxed {
    const SET: Ordering = Ordering::Acquire;
    const CLEAR: Ordering = Ordering::Relaxed;
}

#[test]
fn twins_race() {
    races(counted::<TicketLock<ServeRelaxed>, 2, 1>());
    races(counted::<TicketLock<ObserveRelaxed>, 2, 1>());
    races(counted::<TtasLock<SetRelaxed>, 2, 1>());
    races(counted::<TtasLock<ClearRelaxed>, 2, 1>());
}
