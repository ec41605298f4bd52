//! The lock under loom: exclusion, order of the grants, visibility; and what each order is there for.
//!
//! The twins weaken one order each and must fail: loom then reports the data race on the cell.

use loom::{cell::UnsafeCell, model::Builder, sync::Arc, thread};

use super::{Handover, LockOrder, QueuedLock, SLOTS};
use crate::{AtomicU64, Ordering};

/// The load of the slot is Relaxed: the holder need not see what earlier ones wrote.
struct ObserveRelaxed;
impl LockOrder for ObserveRelaxed {
    const OBSERVE_GRANT: Ordering = Ordering::Relaxed;
    const GRANT: Ordering = Ordering::Release;
}

/// The store of the grant is Relaxed: it may be seen before what the holder wrote.
struct GrantRelaxed;
impl LockOrder for GrantRelaxed {
    const OBSERVE_GRANT: Ordering = Ordering::Acquire;
    const GRANT: Ordering = Ordering::Relaxed;
}

struct Protected<O> {
    lock: QueuedLock<O>,
    /// Not atomic: loom fails the model if two accesses are not ordered.
    value: UnsafeCell<u64>,
}

impl<O: LockOrder> Protected<O> {
    fn new() -> Arc<Self> {
        Arc::new(Self { lock: QueuedLock::new(), value: UnsafeCell::new(0) })
    }

    fn add_one(&self) {
        // SAFETY: called between acquire and release; loom checks that this is enough.
        self.value.with_mut(|value| unsafe { *value += 1 });
    }

    fn read(&self) -> u64 {
        // SAFETY: as above.
        self.value.with(|value| unsafe { *value })
    }
}

#[allow(clippy::disallowed_types, reason = "the count of executions is outside the model")]
#[allow(clippy::print_stdout, reason = "the size of each exploration is what a reader of the run looks for")]
fn explore(name: &str, preemptions: usize, model: impl Fn() + Sync + Send + 'static) {
    let executions = std::sync::Arc::new(std::sync::atomic::AtomicU64::new(0));
    let mut builder = Builder::new();
    builder.preemption_bound = Some(preemptions);
    let count = std::sync::Arc::clone(&executions);
    builder.check(move || {
        count.fetch_add(1, Ordering::Relaxed);
        model();
    });
    println!("{name}: {} executions", executions.load(Ordering::Relaxed));
}

fn exclusion<O: LockOrder + 'static>() {
    let protected = Protected::<O>::new();
    let threads: Vec<_> = (0..2)
        .map(|_| {
            let protected = protected.clone();
            thread::spawn(move || {
                let (grant, _) = protected.lock.acquire();
                protected.add_one();
                protected.lock.release(grant);
            })
        })
        .collect();
    for thread in threads {
        thread.join().unwrap();
    }
    let (grant, contended) = protected.lock.acquire();
    assert!(!contended);
    assert_eq!(protected.read(), 2);
    protected.lock.release(grant);
}

/// The main thread holds; two others queue (three tickets on two slots), and a third tries.
fn sharing_a_slot<O: LockOrder + 'static>() {
    let protected = Protected::<O>::new();
    let (first, _) = protected.lock.acquire();
    let threads: Vec<_> = (0..SLOTS)
        .map(|_| {
            let protected = protected.clone();
            thread::spawn(move || {
                let (grant, _) = protected.lock.acquire();
                protected.add_one();
                protected.lock.release(grant);
            })
        })
        .collect();
    protected.add_one();
    protected.lock.release(first);
    for thread in threads {
        thread.join().unwrap();
    }
    let (grant, _) = protected.lock.acquire();
    assert_eq!(protected.read(), 1 + SLOTS as u64);
    protected.lock.release(grant);
}

fn trying<O: LockOrder + 'static>() {
    let protected = Protected::<O>::new();
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
    let (grant, _) = protected.lock.acquire();
    protected.add_one();
    protected.lock.release(grant);
    let got = thread.join().unwrap();
    let (grant, _) = protected.lock.acquire();
    assert_eq!(protected.read(), 1 + u64::from(got));
    protected.lock.release(grant);
}

#[test]
fn lock_excludes_and_publishes() {
    explore("lock exclusion", 3, exclusion::<Handover>);
}

#[test]
fn lock_with_waiters_that_share_a_slot() {
    explore("lock shared slot", 2, sharing_a_slot::<Handover>);
}

#[test]
fn try_lock_excludes_and_publishes() {
    explore("lock try", 3, trying::<Handover>);
}

#[test]
fn grants_follow_the_order_of_the_requests() {
    explore("lock order", 3, || {
        let protected = Protected::<Handover>::new();
        let next = Arc::new(AtomicU64::new(0));
        let (first, _) = protected.lock.acquire();
        let spawn = || {
            let (protected, next) = (protected.clone(), next.clone());
            thread::spawn(move || {
                let (grant, _) = protected.lock.acquire();
                // Tickets 1 and 2: the place in the queue is the ticket.
                assert_eq!(next.load(Ordering::Relaxed) + 1, grant.0);
                next.store(grant.0, Ordering::Relaxed);
                protected.lock.release(grant);
            })
        };
        let threads = [spawn(), spawn()];
        protected.lock.release(first);
        for thread in threads {
            thread.join().unwrap();
        }
        assert_eq!(next.load(Ordering::Relaxed), 2);
    });
}

#[test]
#[should_panic(expected = "Causality violation")]
fn twin_lock_with_a_relaxed_observation_races() {
    explore("twin", 3, exclusion::<ObserveRelaxed>);
}

#[test]
#[should_panic(expected = "Causality violation")]
fn twin_lock_with_a_relaxed_grant_races() {
    explore("twin", 3, exclusion::<GrantRelaxed>);
}

#[test]
#[should_panic(expected = "Causality violation")]
fn twin_try_lock_with_a_relaxed_observation_races() {
    explore("twin", 3, trying::<ObserveRelaxed>);
}
